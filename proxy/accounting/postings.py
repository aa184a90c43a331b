"""What settlement hands to the ledger: whole microjoules that add up, or they are refused here.

A posting is one step of the books and is kept or not kept as a whole. Its balances are increments, its
request rows are absolute: posting a row again replaces it.
"""

from dataclasses import dataclass
from typing import Literal

State = Literal["open", "settled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancePosting:
    """What one meter counted for one backend since the last posting, and where it went.

    Increments in microjoules: `requests_uj + idle_uj + unattributed_uj + unmeasured_uj == meter_uj`, or ValueError.
    meter: stable name of the meter; gpu, kind, estimated, description: as in the port Meter.
    epoch, last_counter_uj: origin and absolute value of the last accepted sample these increments reach to.
    absolute_uncertainty: relative standard deviation common to all figures of the meter; None where unknown.
    """

    backend: str
    meter: str
    gpu: str
    kind: str
    estimated: bool
    epoch: str
    description: str
    requests_uj: int
    idle_uj: int
    unattributed_uj: int
    unmeasured_uj: int
    meter_uj: int
    last_counter_uj: int
    absolute_uncertainty: float | None = None

    def __post_init__(self) -> None:
        accounts_uj = self.requests_uj + self.idle_uj + self.unattributed_uj + self.unmeasured_uj
        if accounts_uj != self.meter_uj:
            raise ValueError(f"{self.meter}: accounts hold {accounts_uj} µJ, the meter counted {self.meter_uj} µJ")


@dataclass(slots=True, kw_only=True)
class RequestRow:
    """One request as the ledger keeps it, with absolute energies in microjoules. Nobody changes it; it is not frozen
    because so many are made, and setting thirty frozen fields costs 4 µs more.

    `prefill_uj + decode_uj + shared_uj == energy_uj` and not negative, or ValueError.
    row: unique random hex, the idempotency key. request_id: what the client sees; may repeat.
    state: 'open' while it runs; 'settled' is final, and such a row is never posted again.
    metered_uj: what the meters read while it ran, all requests together.
    tokens: None where they are not known. started_at_unix_ns: wall clock, the only one here.
    relative_uncertainty: standard deviation against other requests'; absolute_uncertainty: common to all of the
    meters. Both relative to the energy. The tilts (signed, joules) and the noise (joules squared) make up the
    former, and are kept because only they can be added up; see proxy/accounting/uncertainty.py. None: not known.
    """

    row: str
    request_id: str
    tenant: str
    model: str
    backend: str
    endpoint: str
    stream: bool
    state: State
    outcome: str
    policy: str
    grade: str
    estimated: bool
    energy_uj: int
    token_share_uj: int
    prefill_uj: int
    decode_uj: int
    shared_uj: int
    metered_uj: int
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    started_at_unix_ns: int
    duration_ns: int
    ttft_ns: int | None = None
    tpot_ns: int | None = None
    relative_uncertainty: float | None = None
    absolute_uncertainty: float | None = None
    prefill_tilt_j: float | None = None
    shared_tilt_j: float | None = None
    unseen_tilt_j: float | None = None
    guess_tilt_j: float | None = None
    noise_j2: float | None = None
    http_status: int | None = None

    def __post_init__(self) -> None:
        phases_uj = self.prefill_uj + self.decode_uj + self.shared_uj
        if phases_uj != self.energy_uj:
            raise ValueError(f"{self.request_id}: phases hold {phases_uj} µJ, the request {self.energy_uj} µJ")
        if self.energy_uj < 0:
            raise ValueError(f"{self.request_id}: {self.energy_uj} µJ is less than nothing")


@dataclass(frozen=True, slots=True)
class Posting:
    """One step of the books: what the meters counted, and every request that got a part of it.

    The requests' energies grow by exactly the sum of `requests_uj`, backend by backend; only the ledger, which
    knows what they were before, can check that, and its balance does.
    """

    balances: tuple[BalancePosting, ...] = ()
    requests: tuple[RequestRow, ...] = ()


def joined(earlier: BalancePosting, later: BalancePosting) -> BalancePosting:
    """One posting that says what two in sequence said: increments add, the counter is the later one."""
    return BalancePosting(
        backend=later.backend,
        meter=later.meter,
        gpu=later.gpu,
        kind=later.kind,
        estimated=later.estimated,
        epoch=later.epoch,
        description=later.description,
        requests_uj=earlier.requests_uj + later.requests_uj,
        idle_uj=earlier.idle_uj + later.idle_uj,
        unattributed_uj=earlier.unattributed_uj + later.unattributed_uj,
        unmeasured_uj=earlier.unmeasured_uj + later.unmeasured_uj,
        meter_uj=earlier.meter_uj + later.meter_uj,
        last_counter_uj=later.last_counter_uj,
        absolute_uncertainty=later.absolute_uncertainty,
    )
