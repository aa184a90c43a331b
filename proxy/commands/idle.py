"""Who pays for idle energy in a report: ways to give it to the lines, in whole microjoules that add up.

    proportional  to the requests of the same backend, by their active energy
    per-token     to the requests of the same backend, by their tokens; each prompt token and each output token counts 1
    reserved      to tenants, by the part of every backend that is kept for them, whether they used it or not

Idle that nobody takes stays in the account `idle`. In a report by hour it stays in its hour. There is no policy
`last-active` (idle to whoever ran before it): the ledger has idle by the hour and does not say who ran when.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, get_args

from proxy.stores.books import Key
from proxy.stores.sums import Accounts, Total

Allocation = Literal["proportional", "per-token", "reserved"]
Idle = Literal["separate", Allocation]
IDLE: tuple[str, ...] = ("separate", *get_args(Allocation))
Pools = Mapping[tuple[str, ...], Accounts]
"""Accounts by backend, in a report by hour by backend and hour."""

MILLIONTHS = 1_000_000
"""A reservation is counted in whole millionths, so that what is left of the idle energy is exact."""


def parts_of(total: int, weights: Sequence[int]) -> list[int]:
    """Splits whole `total` in proportion to whole, non-negative weights; the parts add up to it exactly.

    The running sums are rounded down, so what one part loses the next one gets. All weights zero: ValueError. Integers
    throughout, unlike accounting's `apportion`: a fleet's idle energy has more digits than a float.
    """
    reached = [0, *accumulate(weights)]
    if reached[-1] <= 0:
        raise ValueError("nothing to be in proportion to")
    return [high - low for low, high in pairwise(total * r // reached[-1] for r in reached)]


def by_work(allocation: Allocation, totals: Sequence[Total], pools: Pools, *, hourly: bool) -> Counter[str]:
    """Idle energy by the name of a line, in microjoules, given to the requests of the pool it was used in.

    totals: by (backend, name), or by (backend, hour). A pool whose requests have no weight gives nothing away.
    """
    members = defaultdict(list)
    for total in totals:
        members[total.keys if hourly else total.keys[:1]].append(total)
    loads: Counter[str] = Counter()
    for key, sharing in members.items():
        weights = [total.energy_uj if allocation == "proportional" else _tokens(total) for total in sharing]
        if any(weights):
            parts = parts_of(pools.get(key, Accounts()).idle_uj, weights)
            for total, part in zip(sharing, parts, strict=True):
                loads[total.keys[-1]] += part
    return loads


def _tokens(total: Total) -> int:
    return (total.prompt_tokens or 0) + (total.completion_tokens or 0)


def by_reservation(reserve: Mapping[str, int], pools: Pools, by: Key) -> Counter[str]:
    """Idle energy by the name of a line, in microjoules, given to those for whom it was held ready.

    reserve: millionths of every backend by tenant, together at most 1,000,000. by: tenant; or backend or hour, whose
    lines then hold what is reserved of them by anybody. A reservation is nobody's model: ValueError.
    """
    if by == "model":
        raise ValueError("what is reserved is reserved for a tenant, not for a model")
    tenants = sorted(reserve)
    weights = [*(reserve[tenant] for tenant in tenants), MILLIONTHS - sum(reserve.values())]
    loads: Counter[str] = Counter()
    for key, pool in pools.items():
        for tenant, part in zip(tenants, parts_of(pool.idle_uj, weights)[:-1], strict=True):
            loads[tenant if by == "tenant" else key[-1]] += part
    return loads


def reservations(texts: Sequence[str]) -> dict[str, int]:
    """Millionths by tenant from texts like `search=0.5`. Raises ValueError that says what is wrong with which."""
    found: dict[str, int] = {}
    for text in texts:
        tenant, sign, share = text.rpartition("=")
        try:
            millionths = round(float(share) * MILLIONTHS)
        except (ValueError, OverflowError):
            millionths = -1
        if not sign or not tenant or tenant in found or not 0 <= millionths <= MILLIONTHS:
            raise ValueError(f"{text!r} is not a tenant and its part of all, such as search=0.5, once for each tenant")
        found[tenant] = millionths
    if sum(found.values()) > MILLIONTHS:
        raise ValueError("more than all of it is reserved")
    return found
