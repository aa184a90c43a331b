"""The engine's steps in a window, read off the tokens of the streams that run all through it.

A stream gains its tokens once per step, so its own tokens are the engine's steps.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from itertools import pairwise
from operator import itemgetter

from proxy.accounting.activity import Span
from proxy.accounting.flight import Flight
from proxy.accounting.units import Nanoseconds

Changes = Mapping[Nanoseconds, tuple[float, int]]
"""What changes at an instant: by how much the rates of the streams' steps (per nanosecond) add up to more from then
on, and how many streams more there are that show it."""
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


def shown_steps(flights: Iterable[Flight], window: Span, pace: Pace = ONE_BY_ONE) -> Changes:
    """Those of the streams that cover most of the window; of several, because tokens come unevenly."""
    changes: dict[Nanoseconds, tuple[float, int]] = {}
    covering, start, end = [], window.start, window.end
    for flight in flights:
        times = flight.ticks.times
        if len(times) > 1 and not flight.silent:
            first, last = times[0], times[-1]
            time_ns = (last if last < end else end) - (first if first > start else start)
            if time_ns > 0:
                covering.append((time_ns, flight))
    for _, flight in nlargest(CLOCKS, covering, key=itemgetter(0)):
        for at, rate, streams in _shown_by(flight, window, flight.sequences * pace.tokens_per_step):
            known = changes.get(at, (0.0, 0))
            changes[at] = known[0] + rate, known[1] + streams
    return changes


def _shown_by(stream: Flight, window: Span, tokens_per_step: float) -> Iterator[tuple[Nanoseconds, float, int]]:
    start, end = window.start, window.end
    ticks = stream.ticks.within(start, end)
    before, streams = 0.0, 1
    for (at, made), (following, then) in pairwise(ticks.items()):
        rate = (then - made) / (tokens_per_step * (following - at))
        yield max(at, start), rate - before, streams
        before, streams = rate, 0
    if not streams:
        yield min(max(ticks), end), -before, -1
