"""Turns the books of a range of hours into lines that add up to the meter, in whole microjoules.

Each line has three figures. `active_uj` leaves idle energy in its own account. `loaded_uj` gives idle to the lines as
the policy says (in proportion to active energy if it is `separate`; see idle.py). `energy_uj` is the active one if
idle is separate, else the loaded one. Over all lines each of the three sums to what the meters counted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from proxy.accounting.uncertainty import widest
from proxy.commands.idle import Idle, by_reservation, by_work
from proxy.stores.books import Books, Key
from proxy.stores.sums import Accounts, MeterIdentity, Total, known_sum, whole_doubt, worst_grade


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One key's requests, or one account. Tokens are None where unknown, and for accounts; so is `requests`.

    uncertainty_uj: standard deviation of the active energy against other lines'; None where it is not known.
    absolute_uncertainty: relative, common to all figures of the worst of its meters. grade: of its worst request.
    """

    name: str
    active_uj: int
    loaded_uj: int
    energy_uj: int
    requests: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    uncertainty_uj: float | None = None
    absolute_uncertainty: float | None = None
    grade: str | None = None

    @property
    def relative_uncertainty(self) -> float | None:
        """Of the active energy; None where it is not known or there is none."""
        return self.uncertainty_uj / self.active_uj if self.uncertainty_uj is not None and self.active_uj else None

    @property
    def joules_per_output_token(self) -> float | None:
        """The chosen energy over all output tokens; undefined without any."""
        return self.energy_uj / 1e6 / self.completion_tokens if self.completion_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The lines of a report. lines: requests by key. accounts: the energy that no line has.

    meter_uj: what the meters counted in the range. imbalance_uj: of the books as a whole; zero, or they are wrong.
    reserved: millionths of every backend by tenant, where idle is given away so.
    """

    by: Key
    idle: Idle
    lines: tuple[Line, ...]
    accounts: tuple[Line, ...]
    meter_uj: int
    imbalance_uj: int
    reserved: Mapping[str, int]
    meters: tuple[MeterIdentity, ...]

    @property
    def estimated(self) -> tuple[MeterIdentity, ...]:
        """The meters that model instead of measuring."""
        return tuple(meter for meter in self.meters if meter.estimated)

    @property
    def absolute_uncertainty(self) -> float | None:
        """Relative standard deviation common to all figures: of the worst meter; None where one is not known."""
        return widest(meter.absolute_uncertainty for meter in self.meters)


def draw_up(
    books: Books, by: Key, since: int | None, until: int | None, idle: Idle, reserve: Mapping[str, int] | None = None
) -> Statement:
    """The statement of the hours that start in [since, until), nanoseconds since 1970; both on whole hours.

    reserve: for the policy `reserved`, millionths of every backend by tenant. Raises ValueError if that cannot be
    shown by this key.
    """
    hourly = by == "hour"
    with books.snapshot() as now:
        totals = now.totals(("backend",) if by == "backend" else ("backend", by), since, until)
        pools = now.accounts(("backend", "hour") if hourly else ("backend",), since, until)
        meters = now.meters()
        imbalance_uj = sum(balance.imbalance_uj for balance in now.balance())
    if idle == "reserved":
        loads = by_reservation(reserve or {}, pools, by)
    else:
        loads = by_work("proportional" if idle == "separate" else idle, totals, pools, hourly=hourly)
    lines = _lines(totals, loads, idle)
    whole = _sum_of(pools.values())
    return Statement(
        by=by,
        idle=idle,
        lines=lines,
        accounts=_remaining(whole, lines, idle),
        meter_uj=whole.meter_uj,
        imbalance_uj=imbalance_uj,
        reserved=reserve or {},
        meters=tuple(meter for backend in sorted(meters) for meter in meters[backend]),
    )


def _lines(totals: Sequence[Total], loads: Counter[str], idle: Idle) -> tuple[Line, ...]:
    """One for each name that has requests or pays for idle energy: what is reserved costs without requests too."""
    named: dict[str, list[Total]] = defaultdict(list)
    for total in totals:
        named[total.keys[-1]].append(total)
    for name, load_uj in loads.items():
        if load_uj:
            named.setdefault(name, [])
    lines = [_line(name, same, loads[name], idle) for name, same in named.items()]
    return tuple(sorted(lines, key=lambda line: (-line.active_uj, line.name)))


def _line(name: str, same: Sequence[Total], load_uj: int, idle: Idle) -> Line:
    active_uj = sum(total.energy_uj for total in same)
    loaded_uj = active_uj + load_uj
    return Line(
        name=name,
        active_uj=active_uj,
        loaded_uj=loaded_uj,
        energy_uj=active_uj if idle == "separate" else loaded_uj,
        requests=sum(total.requests for total in same),
        prompt_tokens=known_sum(total.prompt_tokens for total in same),
        cached_tokens=known_sum(total.cached_tokens for total in same),
        completion_tokens=known_sum(total.completion_tokens for total in same),
        uncertainty_uj=whole_doubt(total.uncertainty_uj for total in same),
        absolute_uncertainty=widest(total.absolute_uncertainty for total in same),
        grade=worst_grade(total.grade for total in same),
    )


def _remaining(whole: Accounts, lines: Sequence[Line], idle: Idle) -> tuple[Line, ...]:
    """The accounts, and the requests that cross the range's edges if there are any.

    A request belongs to the hour of its start, its energy to the hours in which it was used. What the account
    `requests` holds beyond the lines (or lacks) is that of requests begun before the range or still running after.
    """
    given_uj = sum(line.loaded_uj - line.active_uj for line in lines)
    edges_uj = whole.requests_uj - sum(line.active_uj for line in lines)
    kept_uj = whole.idle_uj - given_uj
    chosen_uj = whole.idle_uj if idle == "separate" else kept_uj
    rest = {"unattributed": whole.unattributed_uj, "unmeasured": whole.unmeasured_uj}
    if edges_uj:
        rest["across the edges"] = edges_uj
    return (
        Line(name="idle", active_uj=whole.idle_uj, loaded_uj=kept_uj, energy_uj=chosen_uj),
        *(Line(name=name, active_uj=uj, loaded_uj=uj, energy_uj=uj) for name, uj in rest.items()),
    )


def _sum_of(pools: Iterable[Accounts]) -> Accounts:
    found = tuple(pools)
    return Accounts(
        requests_uj=sum(pool.requests_uj for pool in found),
        idle_uj=sum(pool.idle_uj for pool in found),
        unattributed_uj=sum(pool.unattributed_uj for pool in found),
        unmeasured_uj=sum(pool.unmeasured_uj for pool in found),
        meter_uj=sum(pool.meter_uj for pool in found),
    )
