"""Predicted power over time, from the engine's own step log: constant within a step, none between steps."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from proxy.accounting.activity import Work, union
from proxy.accounting.attribution import predicted
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import Nanoseconds
from proxy.accounting.weights import Weights

StepName = tuple[int, int, int]
"""Engine, boot and number of a step."""


class Done(NamedTuple):
    """A step, the work of all its sequences, and the joules that predicts."""

    step: EngineStep
    work: Work
    joules: float

    @property
    def name(self) -> StepName:
        """Unlike any other step's."""
        return self.step.engine, self.step.boot, self.step.number


class Track:
    """The steps of one engine, in order and without overlap."""

    def __init__(self, done: Sequence[Done]) -> None:
        self._done = done
        self._starts = [one.step.start for one in done]
        self._before = [0.0, *accumulate(one.joules for one in done)]

    def joules_until(self, at: float) -> float:
        """Of all steps from the first on."""
        place = bisect_right(self._starts, at) - 1
        if place < 0:
            return 0.0
        step = self._done[place].step
        if at >= step.end:
            return self._before[place + 1]
        return self._before[place] + self._done[place].joules * (at - step.start) / (step.end - step.start)

    def meeting(self, start: float, end: float) -> Iterator[Done]:
        """Steps that overlap a stretch of time."""
        place = max(0, bisect_right(self._starts, start) - 1)
        while place < len(self._done) and self._starts[place] < end:
            if self._done[place].step.end > start:
                yield self._done[place]
            place += 1


class PowerCurve:
    """What the engines of one server did lately, as power.

    since, until: between them everything is known. blur: by which the ends of steps may be off.
    """

    def __init__(self, logs: Iterable[Iterable[tuple[EngineStep, Work]]], weights: Weights, *, blur: int = 0) -> None:
        self.blur = blur
        done = [[Done(step, work, sum(predicted(work, weights))) for step, work in log] for log in logs]
        self._tracks = [Track(steps) for steps in done if steps]
        self._busy = union((one.step.start, one.step.end) for steps in done for one in steps)
        self.since: Nanoseconds | None = max((steps[0].step.start for steps in done if steps), default=None)
        self.until: Nanoseconds | None = min((steps[-1].step.end for steps in done if steps), default=None)

    def joules_until(self, at: float) -> float:
        """Predicted joules up to an instant, from wherever the curve begins; only differences mean something."""
        return sum(track.joules_until(at) for track in self._tracks)

    def busy(self, start: float, end: float) -> bool:
        """Whether something ran all the time."""
        place = bisect_right(self._busy, start, key=lambda span: span.start) - 1
        return place >= 0 and self._busy[place].end >= end

    def parts(self, start: float, end: float) -> list[tuple[Done, float]]:
        """The steps that overlap a stretch of time, and how much of each lies in it."""
        return [
            (one, (min(end, one.step.end) - max(start, one.step.start)) / (one.step.end - one.step.start))
            for track in self._tracks
            for one in track.meeting(start, end)
        ]
