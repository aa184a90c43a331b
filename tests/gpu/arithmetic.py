"""The arithmetic of the GPU runs: a counter over time, a straight line through points, a mean with its interval."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median, stdev

T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t, two-sided 95 %, for 1 to 30 degrees of freedom; from there on 2.042 is used, which is a little wide."""

COVERED = 0.8
"""Of a stretch, by the points in it: a counter that paused says little of where its energy went."""


class OutsideCurve(LookupError):
    """An instant before the first or after the last point of a curve."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A counter that only grows, at the instants at which it was seen to have moved (monotonic ns, rising)."""

    times: Sequence[int]
    values: Sequence[float]

    def at(self, when: int) -> float:
        """The counter at an instant, on the straight line between its neighbours; raises OutsideCurve."""
        if not self.times or not self.times[0] <= when <= self.times[-1]:
            raise OutsideCurve(f"{when} is not within the {len(self.times)} points seen")
        right = bisect_left(self.times, when)
        if self.times[right] == when:
            return self.values[right]
        (t0, t1), (v0, v1) = self.times[right - 1 : right + 1], self.values[right - 1 : right + 1]
        return v0 + (v1 - v0) * (when - t0) / (t1 - t0)

    def between(self, start: int, end: int) -> float:
        """What it grew by."""
        return self.at(end) - self.at(start)

    def within(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last point between two instants; raises OutsideCurve when a fifth lies outside of them."""
        left, right = bisect_left(self.times, start), bisect_right(self.times, end) - 1
        if right <= left or self.times[right] - self.times[left] < COVERED * (end - start):
            raise OutsideCurve(f"the {max(0, right + 1 - left)} points from {start} to {end} leave too much uncovered")
        return self.times[left], self.times[right]

    def period_s(self) -> float:
        """Median time between points in seconds; at least two points."""
        return median((b - a) / 1e9 for a, b in zip(self.times, self.times[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Line:
    """y = fixed + slope * x. worst: the largest error of the line, relative to the point."""

    fixed: float
    slope: float
    r2: float
    worst: float


def line(points: Sequence[tuple[float, float]]) -> Line:
    """Least squares; ValueError for fewer than three different x, through which no line can be doubted."""
    if len({x for x, _ in points}) < 3:
        raise ValueError(f"a line needs three different x, these are {sorted({x for x, _ in points})}")
    x_mean, y_mean = fmean(x for x, _ in points), fmean(y for _, y in points)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
    fixed = y_mean - slope * x_mean
    left = sum((y - fixed - slope * x) ** 2 for x, y in points)
    spread = sum((y - y_mean) ** 2 for _, y in points)
    worst = max(abs(fixed + slope * x - y) / abs(y) for x, y in points)
    return Line(fixed, slope, 1 - left / spread if spread else 1.0, worst)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and half the width of its 95 % interval (Student)."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Its lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half:.2g} (n = {self.n})"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its interval; ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError("one value tells nothing of its spread")
    t = T_95[min(len(values) - 1, len(T_95)) - 1]
    return Interval(fmean(values), t * stdev(values) / sqrt(len(values)), len(values))


@dataclass(frozen=True, slots=True)
class Stretch:
    """A measured stretch of time: energy in joules, engine steps, seconds; units: of what was added in it."""

    joules: float
    steps: float
    seconds: float
    added: float = 0.0


def marginal_j(alone: Stretch, beside: Stretch) -> float:
    """Joules that one added request costs: what a step beside it costs more than one without, over the requests.

    Per step and not per second, because longer steps leave the rest of the load less work per second; in each step
    the rest of the load has the same work.
    """
    return (beside.joules / beside.steps - alone.joules / alone.steps) * beside.steps / beside.added
