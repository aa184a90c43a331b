"""Running totals of one meter and one backend since this process began: what metrics show, what postings carry."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from proxy.accounting.attribution import Share, Split
from proxy.accounting.bill import Bill


@dataclass(slots=True)
class Accounts:
    """Microjoules by account; `meter` is what they must add up to."""

    requests: int = 0
    idle: int = 0
    unattributed: int = 0
    unmeasured: int = 0
    meter: int = 0

    def add(self, split: Split) -> None:
        """Books one divided window. Raises ArithmeticError rather than book what does not add up."""
        if split.imbalance:
            raise ArithmeticError(f"a window of {split.window.meter} is off by {split.imbalance} µJ")
        self.requests += split.requests
        self.idle += split.idle
        self.unattributed += split.unattributed
        self.unmeasured += split.unmeasured
        self.meter += split.window.energy

    @property
    def booked(self) -> int:
        """The four accounts together."""
        return self.requests + self.idle + self.unattributed + self.unmeasured

    @property
    def imbalance(self) -> int:
        """Meter minus accounts; 0, or there is a bug."""
        return self.meter - self.booked


@dataclass(slots=True)
class Tallies:
    """Counts by label of one backend. Energies in microjoules, under keys (model, phase) and tenant.

    Both energy tallies add up to the account `requests` after every window.
    """

    energy_by_model_phase: Counter[tuple[str, str]] = field(default_factory=Counter)
    energy_by_tenant: Counter[str] = field(default_factory=Counter)
    tokens_by_model_kind: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests_by_model_outcome: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests_by_grade: Counter[str] = field(default_factory=Counter)

    def charged(self, charges: Iterable[tuple[Bill, Share]]) -> None:
        """Requests got their shares of a window; few tenants and models have them all, so these are summed up first."""
        tenants: dict[str, int] = {}
        models: dict[str, list[int]] = {}
        for bill, (_, energy, prefill, decode, shared, *_) in charges:
            tenants[bill.tenant] = tenants.get(bill.tenant, 0) + energy
            sums = models.get(bill.model)
            if sums is None:
                sums = models[bill.model] = [0, 0, 0]
            sums[0] += prefill
            sums[1] += decode
            sums[2] += shared
        for tenant, energy in tenants.items():
            self.energy_by_tenant[tenant] += energy
        for model, sums in models.items():
            for phase, energy in zip(("prefill", "decode", "shared"), sums, strict=True):
                self.energy_by_model_phase[model, phase] += energy

    def closed(self, bills: Iterable[Bill]) -> None:
        """Requests are settled: their tokens and their outcomes count."""
        models: dict[str, list[int]] = {}
        for bill in bills:
            flight = bill.flight
            sums = models.get(bill.model)
            if sums is None:
                sums = models[bill.model] = [0, 0, 0]
            sums[0] += flight.prompt_tokens or 0
            sums[1] += flight.cached_tokens or 0
            sums[2] += flight.completion_tokens or 0
            self.requests_by_model_outcome[bill.model, flight.outcome or "ok"] += 1
            if flight.metered_work and bill.grade is not None:
                self.requests_by_grade["unmeasured" if bill.unmeasured else bill.grade] += 1
        for model, sums in models.items():
            for kind, tokens in zip(("prompt", "cached", "completion"), sums, strict=True):
                self.tokens_by_model_kind[model, kind] += tokens
