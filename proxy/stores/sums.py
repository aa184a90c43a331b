"""What the books add up to: plain values, whole microjoules; an imbalance is computed, never assumed."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sums over the requests that share `keys`. Energy in microjoules; tokens are None where none of them is known.

    uncertainty_uj: standard deviation of the energy against other requests'; None where that of one request is not
    known. Within a backend what cancels between requests has; those of different backends are added, because nobody
    knows whether they err alike. absolute_uncertainty: relative, common to all figures of the worst of the meters.
    grade: of the worst request; None where that of one is not known.
    """

    keys: tuple[str, ...]
    requests: int
    energy_uj: int
    token_share_uj: int
    prefill_uj: int
    decode_uj: int
    shared_uj: int
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    uncertainty_uj: float | None = None
    absolute_uncertainty: float | None = None
    grade: str | None = None

    @property
    def relative_uncertainty(self) -> float | None:
        """Of the energy; None where it is not known or there is no energy."""
        return self.uncertainty_uj / self.energy_uj if self.uncertainty_uj is not None and self.energy_uj else None

    @property
    def joules_per_output_token(self) -> float | None:
        """All energy over all output tokens; undefined without any."""
        return self.energy_uj / 1e6 / self.completion_tokens if self.completion_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Where the meters' energy went, in microjoules: the four accounts, and what the meters counted."""

    requests_uj: int = 0
    idle_uj: int = 0
    unattributed_uj: int = 0
    unmeasured_uj: int = 0
    meter_uj: int = 0

    @property
    def imbalance_uj(self) -> int:
        """Zero, or the books are wrong."""
        return self.requests_uj + self.idle_uj + self.unattributed_uj + self.unmeasured_uj - self.meter_uj


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterIdentity:
    """A meter that the books know; the fields are those of the port Meter.

    absolute_uncertainty: relative standard deviation common to all its figures; None where it is not known.
    """

    meter: str
    gpu: str
    kind: str
    estimated: bool
    description: str
    absolute_uncertainty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendBalance:
    """One backend's books since they began. rows_uj: the sum over its request rows, kept and retired."""

    backend: str
    meters: tuple[MeterIdentity, ...]
    accounts: Accounts
    rows_uj: int

    @property
    def rows_imbalance_uj(self) -> int:
        """What the requests hold beyond the account `requests`; zero, or the books are wrong."""
        return self.rows_uj - self.accounts.requests_uj

    @property
    def imbalance_uj(self) -> int:
        """Both differences, without letting one hide the other; zero, or the books are wrong."""
        return abs(self.accounts.imbalance_uj) + abs(self.rows_imbalance_uj)


def known_sum(counts: Iterable[int | None]) -> int | None:
    """Of what is known; None when nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def whole_doubt(parts: Iterable[float | None]) -> float | None:
    """The sum, or None when one of them is: part of a doubt would be mistaken for all of it."""
    found = tuple(parts)
    return None if None in found else sum(part for part in found if part is not None)


def worst_grade(grades: Iterable[str | None]) -> str | None:
    """Of A to D and `unmeasured`, which are in the order of their letters; None when one is not known or there is none.

    A sum is no better known than what is known least of it, and part of it may be all that matters to somebody.
    """
    found = tuple(grades)
    return None if None in found else max((grade for grade in found if grade is not None), default=None)
