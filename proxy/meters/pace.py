"""How often a meter's counter moves and what a reading costs, found out at start instead of assumed."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from proxy.accounting.samples import Sample
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds, seconds

LIMIT = Nanoseconds(3 * SECOND)
POLL = Nanoseconds(10 * MILLISECOND)


@dataclass(frozen=True, slots=True)
class CounterPace:
    """period_s: median time between changes, None if the counter moved fewer than two times.
    read_s: median duration of one reading. changes: how many were seen.
    """

    period_s: float | None
    read_s: float
    changes: int

    @property
    def poll_s(self) -> float | None:
        """Half the period within 20-100 ms, so that an edge is known to half a poll; None while unknown."""
        return None if self.period_s is None else min(0.1, max(0.02, self.period_s / 2))


def counter_pace(samples: Sequence[Sample], costs: Sequence[int]) -> CounterPace:
    """What polled samples and the durations of their readings in nanoseconds (at least one) tell.

    The median, since a stall of the poller stretches single gaps.
    """
    edges = [after.at for before, after in pairwise(samples) if after.counter != before.counter]
    gaps = [after - before for before, after in pairwise(edges)]
    return CounterPace(
        statistics.median(gaps) / SECOND if gaps else None, statistics.median(costs) / SECOND, len(edges)
    )


def change_edges(
    read: Callable[[], Sample],
    clock: Callable[[], int],
    pause: Callable[[float], None],
    *,
    changes: int = 12,
    limit: Nanoseconds = LIMIT,
    poll: Nanoseconds = POLL,
) -> CounterPace:
    """Polls until the counter has moved `changes` times or `limit` is over; raises what `read` raises.

    pause: sleeps that many seconds. Zeus warns that some boards answer power with nothing when asked more
    often than every 50 ms; the counter, which this is about, does not mind.
    """
    samples: list[Sample] = []
    costs: list[int] = []
    seen = 0
    start = clock()
    while not samples or (seen < changes and clock() - start < limit):
        before = clock()
        samples.append(read())
        costs.append(clock() - before)
        seen += len(samples) > 1 and samples[-1].counter != samples[-2].counter
        pause(seconds(poll))
    return counter_pace(samples, costs)
