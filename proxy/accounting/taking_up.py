"""When the engine took a prompt up, read off the streams beside it.

A new prompt awaits the end of the step that runs, and then its turn; it is read in whole steps, in each of which a
stream beside it gains its tokens. So its first step begins with one of that stream's tokens: as many before its own
first token as it took steps to read.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import islice
from math import ceil, floor

from proxy.accounting.chunk_size import ChunkSize
from proxy.accounting.flight import Flight
from proxy.accounting.step_clock import Pace
from proxy.accounting.units import Nanoseconds

UNEVEN = 0.2
"""Of a step: by so much may steps that are read off the arrival of tokens be too few."""
ASKED = 16
"""Streams that may be asked about one prompt: the oldest have been there in most of the time."""
BELIEVED = 3
"""Streams whose answers are averaged, because tokens come unevenly."""


class TakingUp:
    """Of one engine, from prompt to prompt."""

    def __init__(self) -> None:
        self._chunk = ChunkSize()

    def guess(self, flights: Sequence[Flight], pace: Pace) -> None:
        """Sets when those were taken up whose first token came and who had a stream beside them all the while."""
        streams: list[Flight] | None = None
        for flight in flights:
            if flight.scheduled is not None or flight.scheduled_guess is not None or flight.first is None:
                continue
            if flight.silent or not flight.metered_work:
                continue
            if streams is None:
                streams = [one for one in flights if len(one.ticks) > 1 and one.told_by_its_tokens]
            self._guess(flight, flight.first, streams, pace)

    def _guess(self, flight: Flight, first: Nanoseconds, streams: Iterable[Flight], pace: Pace) -> None:
        start = flight.start
        beside = (one for one in islice(streams, ASKED) if one.ticks.times[0] < start and first <= one.ticks.times[-1])
        clocks = [_Clock(one, start, first, pace) for one in islice(beside, BELIEVED)]
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
        later = bisect_left(self._times, first)
        near = [tick for tick in (later - 1, later, later + 1) if 0 < tick < len(self._times)]
        within = [tick for tick in near if abs(self._times[tick] - first) <= self._step_ns(tick) / 2]
        return max(within, key=self._step_ns) if within else min(near, key=lambda tick: abs(self._times[tick] - first))

    def _step_ns(self, tick: int) -> float:
        gained = self._tokens[tick] - self._tokens[tick - 1]
        return (self._times[tick] - self._times[tick - 1]) * self._per_step / gained if gained > 0 else 0.0

    def before(self, steps: int) -> float:
        """The instant that is so many steps before the first token, or when the prompt was sent."""
        wanted = self._tokens[self._last] - steps * self._per_step
        later = bisect_right(self._tokens, wanted, 0, self._last)
        if not later:
            return float(self._start)
        before, made = self._times[later - 1], self._tokens[later - 1]
        part = (wanted - made) / (self._tokens[later] - made)
        return max(float(self._start), before + part * (self._times[later] - before))
