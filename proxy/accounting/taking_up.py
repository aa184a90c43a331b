"""When the engine took a prompt up, read off the streams beside it.

A new prompt awaits the end of the step that runs, and then its turn; it is read in whole steps, in each of which a
stream beside it gains its tokens. So its first step begins with one of that stream's tokens: as many before its own
first token as it took steps to read.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import islice
from math import ceil, floor

from proxy.accounting.chunk_size import ChunkSize
from proxy.accounting.flight import Flight
from proxy.accounting.step_clock import Pace
from proxy.accounting.units import Nanoseconds

UNEVEN = 0.2
"""Of a step: by so much may steps that are read off the arrival of tokens be too few."""
ASKED = 64
"""Streams that may be asked about one prompt."""
BELIEVED = 3
"""Streams whose answers are averaged, because tokens come unevenly; where more may be asked one must do, for each
answer costs."""


class TakingUp:
    """Of one engine, from prompt to prompt."""

    def __init__(self) -> None:
        self._chunk = ChunkSize()

    def guess(self, flights: Sequence[Flight], pace: Pace) -> None:
        """Sets when those were taken up whose first token came and who had a stream beside them all the while."""
        new = [
            one for one in flights if one.first is not None and one.scheduled_guess is None and one.scheduled is None
        ]
        new = [one for one in new if one.metered_work and not one.silent]
        if new:
            streams = [one for one in flights if len(one.ticks) > 1 and one.told_by_its_tokens]
            streams.sort(key=_begun)
            begun = [*map(_begun, streams)]
            for flight in new:
                # Who began but just before it is the likeliest to have gone on until its first token.
                began = bisect_left(begun, flight.start)
                self._guess(flight, _begun(flight), streams[max(0, began - ASKED) : began][::-1], pace)

    def _guess(self, flight: Flight, first: Nanoseconds, streams: Sequence[Flight], pace: Pace) -> None:
        start = flight.start
        beside = (one for one in streams if one.ticks.times[0] < start and first <= one.ticks.times[-1])
        clocks = [_Clock(one, start, first, pace) for one in islice(beside, BELIEVED if len(streams) < ASKED else 1)]
        if not clocks:
            return
        steps = sum(clock.steps for clock in clocks) / len(clocks)
        if flight.sequences == 1:
            self._chunk.learn(flight.computed, steps)
        read = max(1, floor(steps + UNEVEN))
        if self._chunk.tokens is not None:
            read = min(read, max(1, ceil(flight.computed / flight.prompts / self._chunk.tokens)))
        begun = sum(clock.before(read) for clock in clocks) / len(clocks)
        flight.scheduled_guess = Nanoseconds(max(flight.sent, round(begun) - flight.lag))


def _begun(flight: Flight) -> Nanoseconds:
    return flight.sent if flight.first is None else flight.first


class _Clock:
    """One stream's tokens about a prompt. steps: those from the prompt's sending to its first token."""

    def __init__(self, stream: Flight, start: Nanoseconds, first: Nanoseconds, pace: Pace) -> None:
        self._times, self._tokens = stream.ticks.times, stream.ticks.tokens
        self._per_step = stream.sequences * pace.tokens_per_step
        self._start = start
        self._last = self._same_step(first)
        self.steps = max(0.0, self._tokens[self._last] - stream.ticks.made_at(start)) / self._per_step

    def _same_step(self, first: Nanoseconds) -> int:
        """The tick of the step that gave the prompt its first token.

        One of those nearest to it: that at the end of the longest step, because a prompt makes a step long.
        """
        times, tokens = self._times, self._tokens
        later = bisect_left(times, first)
        found, longest, nearest = later, 0.0, abs(times[later] - first)
        for tick in (later - 1, later, later + 1):
            if 0 < tick < len(times):
                length, away = times[tick] - times[tick - 1], abs(times[tick] - first)
                step = length * self._per_step / max(1, tokens[tick] - tokens[tick - 1])
                # One that is too far off for its step is taken only where all are.
                if 2 * away <= step and step > longest:
                    found, longest = tick, step
                elif not longest and away < nearest:
                    found, nearest = tick, away
        return found

    def before(self, steps: int) -> float:
        """The instant that is so many steps before the first token, or when the prompt was sent."""
        wanted = self._tokens[self._last] - steps * self._per_step
        later = bisect_right(self._tokens, wanted, 0, self._last)
        if not later:
            return float(self._start)
        before, made = self._times[later - 1], self._tokens[later - 1]
        part = (wanted - made) / (self._tokens[later] - made)
        return max(float(self._start), before + part * (self._times[later] - before))
