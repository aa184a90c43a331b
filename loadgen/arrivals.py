"""When requests are due: pure schedules in nanoseconds after the start, independent of how fast the server answers."""

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from proxy.accounting.units import SECOND, Nanoseconds

KINDS = ("poisson", "constant", "gamma")


def poisson(rate_per_s: float, n: int, seed: int) -> list[Nanoseconds]:
    """`n` arrivals of a Poisson process: exponential gaps with a mean of 1 / rate."""
    draw = random.Random(f"arrivals {seed}")
    return _summed(draw.expovariate(rate_per_s) for _ in range(n))


def constant(rate_per_s: float, n: int) -> list[Nanoseconds]:
    """`n` arrivals at equal gaps; the first at once."""
    return [Nanoseconds(round(i * SECOND / rate_per_s)) for i in range(n)]


def gamma(rate_per_s: float, n: int, seed: int, burstiness: float) -> list[Nanoseconds]:
    """`n` arrivals with gamma distributed gaps of shape `burstiness` and a mean of 1 / rate.

    The gaps' coefficient of variation is burstiness ** -0.5: below 1 is burstier than Poisson, 1 is Poisson, above
    is steadier (the meaning `vllm bench serve` gives the word).
    """
    draw = random.Random(f"arrivals {seed}")
    return _summed(draw.gammavariate(burstiness, 1 / (rate_per_s * burstiness)) for _ in range(n))


def due_times(kind: str, rate_per_s: float, n: int, seed: int, burstiness: float) -> list[Nanoseconds]:
    """`n` arrivals of the kind named; raises ValueError for an unknown one."""
    if kind == "poisson":
        return poisson(rate_per_s, n, seed)
    if kind == "constant":
        return constant(rate_per_s, n)
    if kind == "gamma":
        return gamma(rate_per_s, n, seed, burstiness)
    raise ValueError(f"no arrivals {kind!r}: one of {', '.join(KINDS)}")


def requests_due(due: Sequence[int], elapsed: int, sent: int) -> int:
    """How many requests an open loop owes `elapsed` ns after the start, `sent` being gone; never negative."""
    return max(0, bisect_right(due, elapsed) - sent)


def _summed(gaps_s: Iterable[float]) -> list[Nanoseconds]:
    return [Nanoseconds(round(at_s * SECOND)) for at_s in accumulate(gaps_s)]
