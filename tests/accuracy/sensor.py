"""The board's energy counter as a poller sees it: it moves every 100 ms, and may have looked only part of the time.

True power is constant within a step. The counter adds, at each edge, the mean power of the last `looks_s` seconds times
the period: all of it, a part (the part-time sensor of data-centre boards), or more (a power reading that is itself a
mean over a second, added up where there is no counter). It is shown `lag_s` late, times the board's gain, in whole
millijoules, and some polls are lost.
"""

import random
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

from proxy.accounting.samples import Sample
from proxy.accounting.units import Microjoules, Nanoseconds, from_millijoules
from tests.accuracy.engine import Run


@dataclass(frozen=True, slots=True)
class Board:
    """What a sensor is like. Seconds; gain and lost are plain fractions. grade: what accounting calls it."""

    name: str
    period_s: float = 0.1
    looks_s: float = 0.1
    lag_s: float = 0.0
    lost: float = 0.0
    gain_spread: float = 0.0
    poll_s: float = 0.05
    poll_late_s: float = 0.0
    grade: str = "B"


EXACT = Board("exact", poll_s=0.02)
PART_TIME = Board("part-time", looks_s=0.025, lag_s=0.02, lost=0.02, gain_spread=0.05, poll_s=0.05, poll_late_s=0.004)
SLOW = Board("slow", looks_s=0.025, lag_s=0.02, lost=0.02, gain_spread=0.05, poll_s=1.0, poll_late_s=0.02)
"""A counter that is asked once a second, as over a network."""
LATE = replace(PART_TIME, name="late", lag_s=0.1)
"""A counter that shows what it saw a whole period later."""
AVERAGED = Board(
    "averaged", looks_s=1.0, lag_s=0.02, lost=0.02, gain_spread=0.05, poll_s=0.05, poll_late_s=0.004, grade="C"
)
"""No counter: the power reading of an H100, a mean over the last second, added up."""
BOARDS = {board.name: board for board in (EXACT, PART_TIME, SLOW, LATE, AVERAGED)}


class Power:
    """Integral of the true power since 0."""

    def __init__(self, run: Run) -> None:
        parts = [(step.start, step.end, step.joules) for step in run.steps]
        parts += [(start, end, (end - start) * watts) for start, end, watts in run.idle]
        parts.sort()
        self._starts = [start for start, _, _ in parts]
        self._parts = parts
        self._before = [0.0, *accumulate(joules for _, _, joules in parts)]

    def joules_until(self, at: float) -> float:
        """True joules from 0 to `at`."""
        index = bisect_right(self._starts, at) - 1
        if index < 0:
            return 0.0
        start, end, joules = self._parts[index]
        return self._before[index] + joules * min(1.0, (at - start) / (end - start))


def samples(run: Run, board: Board, rng: random.Random) -> tuple[list[Sample], float]:
    """The readings over the whole run, and the board's gain."""
    power = Power(run)
    gain = 1 + rng.uniform(-board.gain_spread, board.gain_spread)
    phase = rng.random() * board.period_s
    edges, counter = [0.0], [5000.0]
    at = phase
    while at < run.end:
        since = max(0.0, at - board.looks_s)
        seen = power.joules_until(at) - power.joules_until(since)
        counter.append(counter[-1] + gain * seen * board.period_s / max(at - since, board.period_s / 10))
        edges.append(at + board.lag_s)
        at += board.period_s
    found = []
    poll = 0.001
    while poll < run.end:
        if rng.random() >= board.lost:
            when = poll + rng.random() * board.poll_late_s
            shown = counter[bisect_right(edges, when) - 1]
            found.append(Sample(Nanoseconds(round(when * 1e9)), Microjoules(from_millijoules(round(shown * 1000)))))
        poll += board.poll_s
    return found, gain
