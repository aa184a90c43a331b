"""The engine's steps in a window, read off the tokens of the streams that run all through it.

A stream gains its tokens once per step, so its own tokens are the engine's steps.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nlargest
from operator import itemgetter

from proxy.accounting.activity import Span
from proxy.accounting.flight import Flight
from proxy.accounting.units import Nanoseconds

CLOCKS = 4
"""Streams asked for the engine's steps."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How an engine turns steps into tokens; with speculative decoding neither is 1.

    tokens_per_step: tokens a sequence gains in a step. positions_per_token: positions computed for each, the drafted
    ones that were rejected too.
    """

    tokens_per_step: float = 1.0
    positions_per_token: float = 1.0


ONE_BY_ONE = Pace()


class StreamClock:
    """The engine's steps as one stream shows them.

    rate: steps per nanosecond over its part of the window. at: when its tokens came.
    """

    def __init__(self, stream: Flight, window: Span, pace: Pace) -> None:
        per_step, every = stream.sequences * pace.tokens_per_step, stream.ticks
        # From the last tick before the window to the first one after it, or as far as they go.
        begun = max(0, bisect_left(every, (window.start + 1, 0)) - 1)
        ticks = every[begun : bisect_left(every, (window.end + 1, 0)) + 1]
        self.at = [tick.at for tick in ticks]
        self._steps = [tick.tokens / per_step for tick in ticks]
        self.rate = self.steps(window) / max(1, self._known(window))

    def _known(self, span: Span) -> int:
        return min(span.end, self.at[-1]) - max(span.start, self.at[0])

    def up_to(self, instant: Nanoseconds) -> float:
        """Steps until an instant, from wherever the stream began."""
        times, steps = self.at, self._steps
        index = bisect_right(times, instant) - 1
        if index < 0:
            return steps[0]
        if index + 1 == len(times):
            return steps[-1]
        at, done = times[index], steps[index]
        return done + (instant - at) / (times[index + 1] - at) * (steps[index + 1] - done)

    def steps(self, span: Span) -> float:
        """Steps in a span, where the stream gave tokens; beyond its ends it says nothing, which is 0."""
        return self.up_to(span.end) - self.up_to(span.start)

    def knows(self, span: Span) -> bool:
        """Whether the stream gave tokens from before the span until after it."""
        return self.at[0] <= span.start and span.end <= self.at[-1]


class StepClock:
    """The engine's steps in a window, by the streams that cover most of it; several, because tokens come unevenly."""

    def __init__(self, flights: Iterable[Flight], window: Span, pace: Pace) -> None:
        covering, start, end = [], window.start, window.end
        for flight in flights:
            ticks = flight.ticks
            if len(ticks) > 1 and not flight.silent:
                (first, _), (last, _) = ticks[0], ticks[-1]
                time_ns = (last if last < end else end) - (first if first > start else start)
                if time_ns > 0:
                    covering.append((time_ns, flight))
        longest = nlargest(CLOCKS, covering, key=itemgetter(0))
        self._clocks = [StreamClock(flight, window, pace) for _, flight in longest]

    @property
    def rate(self) -> float | None:
        """Steps per nanosecond; None where no stream tells."""
        return self._clocks[0].rate if self._clocks else None

    def steps(self, span: Span) -> float | None:
        """Steps in a span of the window; None where no stream was there all the while."""
        start, end, steps, clocks = span.start, span.end, 0.0, 0
        for clock in self._clocks:
            at = clock.at
            if at[0] <= start and end <= at[-1]:
                steps += clock.up_to(end) - clock.up_to(start)
                clocks += 1
        return steps / clocks if clocks else None
