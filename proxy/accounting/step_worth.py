"""What single steps were worth, as far as the sensor looked at them.

Steps that hold the same differ by some percent in what they take, and the weights are not quite right. Once it is
known when a sensor looks (`exposure`), a reading says more than the energy of its window: it is that of the few steps
that ran during the look. Each of them differs from its prediction by a factor, all alike uncertain; what the reading
has beyond the forecast is then shared by the squares of their parts in it (the mean of a normal distribution under
that one condition):

    f_s = 1 + w_s * (R/g - sum w) / sum w^2        w_s: predicted joules of step s in the reading, g: level, R: reading

Steps that nobody looked at keep 1. Where steps are but inferred (`inferred_log`), only the weights are taught by what
was seen of them, the less the more doubtful it is which of them were. The windows' sums stay the meter's; this decides
who pays in them.
On our bench this brings grade A from 1.3 and 1.7 to 1.2 and 1.3 % at concurrency 4 and 28 (part-time sensor, seed 1),
where the right weights and no sensor at all would leave 0.6 and 1.5 %: the noise of single steps.
"""

from collections.abc import Mapping, Sequence
from math import hypot
from typing import NamedTuple

from proxy.accounting.activity import Span, Work
from proxy.accounting.counter_edges import CounterClock, Edge
from proxy.accounting.exposure import GRID, POINTS, Exposure, ExposureFinder
from proxy.accounting.power_curve import Done, PowerCurve, StepName
from proxy.accounting.samples import Move, Window
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds, joules

FURTHEST = Nanoseconds(SECOND)
"""More than a counter is ever late."""
SEEN_AFTER = Nanoseconds(40 * MILLISECOND)
"""Steps whose tokens arrive so long after a counter moved may have been seen before."""
MOST_WAITING = 50
MOST = 0.3
"""No step is believed to be further from its prediction."""


class Look(NamedTuple):
    """What one reading tells: its microjoules, the time and the work that it stands for, its relative noise."""

    energy_uj: int
    span_ns: Nanoseconds
    work: Work
    noise: float


class StepWorth:
    """One sensor's view of the steps."""

    def __init__(self) -> None:
        self._clock = CounterClock()
        self._finder = ExposureFinder()
        self._lag = 0.0
        self._reached: Nanoseconds | None = None
        self._waiting: list[Move] = []
        self.factors: dict[StepName, float] = {}

    @property
    def finder(self) -> ExposureFinder:
        """Where it looks."""
        return self._finder

    def ripe(self, moves: Sequence[Move], until: Nanoseconds | None) -> list[Move]:
        """Of the moves so far, in order, those of which all is known that the sensor may have seen; others wait.

        until: so far steps are known; None: nothing is to be waited for.
        """
        moved = [*self._waiting, *moves]
        known = len(moved) if until is None else sum(one.at + SEEN_AFTER <= until for one in moved)
        self._waiting = moved[known:][-MOST_WAITING:]
        return moved[:known]

    def looked(self, moves: Sequence[Move], curve: PowerCurve | None) -> list[Look]:
        """Takes in the moves of a window, in order, and gives the looks that are known; sets `factors`.

        curve: None where nothing more is known of the moves than their times.
        """
        self.factors = {}
        looks = []
        for move in moves:
            edge = self._clock.moved(move)
            exposure = self._finder.exposure
            if edge is None:
                continue
            if exposure is not None and curve is not None and not curve.blur:
                # Not by arrival times: who pays is told by those as well, and both are late.
                self._lag = max(0.0, move.at - exposure.span(edge)[1])
            if curve is not None:
                looks += [] if exposure is None else self._told(move, edge, curve, exposure)
                self._learn(move, edge, curve)
        if self._finder.exposure is None:
            self._lag = 0.0
        return looks

    def time_of(self, window: Window) -> Span:
        """When what a window's energy was used for ran: a counter shows late what its sensor saw.

        Asked once for each window, after `looked`; one begins where the last ended, so that no work counts twice.
        """
        follows = self._reached is not None and abs(window.start - self._reached) <= FURTHEST
        start = self._reached if follows and self._reached is not None else Nanoseconds(round(window.start - self._lag))
        end = Nanoseconds(round(window.end - self._lag))
        span = Span(start, end) if end > start else Span(window.start, window.end)
        self._reached = span.end
        return span

    def _learn(self, move: Move, edge: Edge, curve: PowerCurve) -> None:
        grid = [edge.at - edge.period * place / GRID for place in POINTS]
        if curve.since is None or grid[-1] < curve.since or not curve.busy(grid[-1], grid[0]):
            return
        until = [curve.joules_until(at) for at in grid]
        polled = curve.joules_until(move.at) - curve.joules_until(move.at - edge.period)
        self._finder.learn(joules(move.energy), polled, until)

    def _told(self, move: Move, edge: Edge, curve: PowerCurve, exposure: Exposure) -> list[Look]:
        start, end = exposure.span(edge)
        if curve.since is None or start < curve.since or not curve.busy(start, end):
            return []
        stands_for = GRID / exposure.length
        seen = [(done, part * stands_for) for done, part in curve.parts(start, end)]
        self._believe(seen, joules(move.energy) / self._finder.level)
        work = Work()
        for done, part in seen:
            work.add_part(done.work, part)
        noise = hypot(self._finder.noise, _blurred(curve, start, end))
        return [Look(move.energy, Nanoseconds(round(edge.period)), work, noise)]

    def _believe(self, seen: Sequence[tuple[Done, float]], reading: float) -> None:
        parts = [part * done.joules for done, part in seen]
        squares = sum(part * part for part in parts)
        if squares <= 0:
            return
        factors: Mapping[StepName, float] = self.factors
        off = reading - sum(part * factors.get(done.name, 1.0) for (done, _), part in zip(seen, parts, strict=True))
        for (done, _), part in zip(seen, parts, strict=True):
            factor = factors.get(done.name, 1.0) + part * off / squares
            self.factors[done.name] = min(1 + MOST, max(1 - MOST, factor))


def _blurred(curve: PowerCurve, start: float, end: float) -> float:
    """Relative error of a look's energy for want of knowing when steps ended: of steps that differ about its edges."""
    until, blur = curve.joules_until, curve.blur
    whole = until(end) - until(start)
    if not blur or whole <= 0:
        return 0.0
    return hypot(*(until(at + blur) - 2 * until(at) + until(at - blur) for at in (start, end))) / whole
