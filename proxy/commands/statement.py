"""Turns the books of a range of hours into lines that add up to the meter, in whole microjoules.

Each line has three figures. `active_uj` leaves idle energy in its own account. `loaded_uj` gives idle to the
requests in proportion to their active energy, backend by backend (hour by hour in a report by hour). `energy_uj`
is one of the two, as the reader chose. Over all lines each of the three sums to what the meters counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from proxy.stores.books import Books, Key
from proxy.stores.sums import Accounts, MeterIdentity, Total

Idle = Literal["separate", "proportional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One key's requests, or one account. Tokens are None where unknown, and for accounts; so is `requests`."""

    name: str
    active_uj: int
    loaded_uj: int
    energy_uj: int
    requests: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def joules_per_output_token(self) -> float | None:
        """The chosen energy over all output tokens; undefined without any."""
        return self.energy_uj / 1e6 / self.completion_tokens if self.completion_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The lines of a report. lines: requests by key. accounts: the energy that no line has.

    meter_uj: what the meters counted in the range. imbalance_uj: of the books as a whole; zero, or they are wrong.
    """

    by: Key
    idle: Idle
    lines: tuple[Line, ...]
    accounts: tuple[Line, ...]
    meter_uj: int
    imbalance_uj: int
    meters: tuple[MeterIdentity, ...]

    @property
    def estimated(self) -> tuple[MeterIdentity, ...]:
        """The meters that model instead of measuring."""
        return tuple(meter for meter in self.meters if meter.estimated)


def draw_up(books: Books, by: Key, since: int | None, until: int | None, idle: Idle) -> Statement:
    """The statement of the hours that start in [since, until), nanoseconds since 1970; both on whole hours."""
    hourly = by == "hour"
    with books.snapshot() as now:
        totals = now.totals(("backend",) if by == "backend" else ("backend", by), since, until)
        pools = now.accounts(("backend", "hour") if hourly else ("backend",), since, until)
        meters = now.meters()
        imbalance_uj = sum(balance.imbalance_uj for balance in now.balance())
    loads = _loads(totals, pools, hourly=hourly)
    lines = _lines(totals, loads, idle)
    whole = _sum_of(pools.values())
    return Statement(
        by=by,
        idle=idle,
        lines=lines,
        accounts=_remaining(whole, lines, idle),
        meter_uj=whole.meter_uj,
        imbalance_uj=imbalance_uj,
        meters=tuple(meter for backend in sorted(meters) for meter in meters[backend]),
    )


def parts_of(total: int, weights: Sequence[int]) -> list[int]:
    """Splits whole `total` in proportion to whole, non-negative weights; the parts add up to it exactly.

    The running sums are rounded down, so what one part loses the next one gets. All weights zero: ValueError.
    """
    reached = [0, *accumulate(weights)]
    if reached[-1] <= 0:
        raise ValueError("nothing to be in proportion to")
    return [high - low for low, high in pairwise(total * r // reached[-1] for r in reached)]


def _loads(totals: Sequence[Total], pools: dict[tuple[str, ...], Accounts], *, hourly: bool) -> dict[Total, int]:
    """Each total's share of its pool's idle energy; a pool without active energy gives none away."""
    members = defaultdict(list)
    for total in totals:
        members[total.keys if hourly else total.keys[:1]].append(total)
    loads: dict[Total, int] = {}
    for key, sharing in members.items():
        weights = [total.energy_uj for total in sharing]
        if any(weights):
            loads |= zip(sharing, parts_of(pools.get(key, Accounts()).idle_uj, weights), strict=True)
    return loads


def _lines(totals: Sequence[Total], loads: dict[Total, int], idle: Idle) -> tuple[Line, ...]:
    named = defaultdict(list)
    for total in totals:
        named[total.keys[-1]].append(total)
    lines = [_line(name, same, sum(loads.get(total, 0) for total in same), idle) for name, same in named.items()]
    return tuple(sorted(lines, key=lambda line: (-line.active_uj, line.name)))


def _line(name: str, same: Sequence[Total], load_uj: int, idle: Idle) -> Line:
    active_uj = sum(total.energy_uj for total in same)
    loaded_uj = active_uj + load_uj
    return Line(
        name=name,
        active_uj=active_uj,
        loaded_uj=loaded_uj,
        energy_uj=loaded_uj if idle == "proportional" else active_uj,
        requests=sum(total.requests for total in same),
        prompt_tokens=_known_sum(total.prompt_tokens for total in same),
        cached_tokens=_known_sum(total.cached_tokens for total in same),
        completion_tokens=_known_sum(total.completion_tokens for total in same),
    )


def _remaining(whole: Accounts, lines: Sequence[Line], idle: Idle) -> tuple[Line, ...]:
    """The accounts, and the requests that cross the range's edges if there are any.

    A request belongs to the hour of its start, its energy to the hours in which it was used. What the account
    `requests` holds beyond the lines (or lacks) is that of requests begun before the range or still running after.
    """
    given_uj = sum(line.loaded_uj - line.active_uj for line in lines)
    edges_uj = whole.requests_uj - sum(line.active_uj for line in lines)
    kept_uj = whole.idle_uj - given_uj
    chosen_uj = kept_uj if idle == "proportional" else whole.idle_uj
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


def _known_sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
