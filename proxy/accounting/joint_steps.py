"""The engine's steps one by one, as all its streams together show them.

A stream gains a token in each step, so its tokens are the engine's steps, but for where its count begins. A new stream
is laid beside those that are there: of the few places near its first token the one where its tokens arrive with the
others'. A step ends when its tokens arrive, in the mean.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from proxy.accounting.flight import Flight
from proxy.accounting.ticks import Tick
from proxy.accounting.units import MILLISECOND, Nanoseconds
from proxy.accounting.weights import Weights

SURE = 12
"""Tokens of a stream before it is placed, or all of its: fewer may fit beside the wrong steps."""
ASKED = 60
"""Tokens that are compared."""
TRIED = 6
"""Steps before and after the nearest that a first token may belong to."""
UNEVEN = Nanoseconds(6 * MILLISECOND)
"""Standard deviation of arrival until the streams have told theirs."""
EVENEST = Nanoseconds(MILLISECOND // 5)
FADE = 0.999
"""What a token leaves of the mean square by which tokens of one step arrive apart."""
FAR, NOBODY = 40.0, 3.0
"""Squares over the variance that a token costs at most, and where no other stream shows its step."""
LONG_PROMPT, SHORT_STEP = 256, 6.0
"""Tokens of a prompt that make the step long in which its first token comes; what a step costs that is not."""
SLIPPED = 5
"""Tokens that must be comparable before a stream is believed to have missed a step, or to have had two in one."""
KEPT = 300
"""Steps."""


@dataclass(slots=True)
class Shown:
    """One step: how many tokens arrived with it, whose, the sum of their times; its decode positions and contexts."""

    arrived: int = 0
    times: int = 0
    decode: int = 0
    context: float = 0.0
    rows: set[str] = field(default_factory=set)

    @property
    def end(self) -> float:
        """Nanoseconds; only of a step with which something arrived."""
        return self.times / self.arrived


@dataclass(slots=True)
class Stream:
    """offset: number of a step less the tokens that there are after it; None until it is placed.

    known: tokens, the last of which came at `last`.
    """

    offset: int | None = None
    known: int = 0
    last: int = 0
    waiting: list[Tick] = field(default_factory=list)


class JointSteps:
    """Of one engine. steps: by number, in no order; those between may be shown by nobody."""

    def __init__(self) -> None:
        self.steps: dict[int, Shown] = {}
        self._streams: dict[str, Stream] = {}
        self._next = 0
        self._square = float(UNEVEN**2)

    def after(self, number: int) -> int:
        """Steps since this one."""
        return self._next - 1 - number

    def placed(self, row: str) -> bool:
        """Whether the tokens of this stream are among the steps."""
        stream = self._streams.get(row)
        return stream is not None and stream.offset is not None

    def take(self, flights: Iterable[Flight], weights: Weights) -> Iterator[tuple[Flight, int]]:
        """Takes in what streams of one sequence have new; the steps of first tokens, as those become known."""
        heard = [(self._heard(flight), flight) for flight in flights]
        for stream, flight in sorted([one for one in heard if one[0].waiting], key=_in_doubt):
            begun = None
            if stream.offset is not None:
                stream.offset += self._slip(stream.waiting, stream.offset)
            elif len(stream.waiting) >= SURE or flight.ended is not None:
                begun = flight.first == stream.waiting[0].at
                stream.offset = self._beside(flight, stream.waiting)
                stream.known = 0 if begun else stream.waiting[0].tokens - 1
            else:
                continue
            self._note(flight, stream, stream.offset, weights)
            if begun:
                yield flight, stream.offset + 1

    def _heard(self, flight: Flight) -> Stream:
        stream, ticks = self._streams.setdefault(flight.row, Stream()), flight.ticks
        new = bisect_right(ticks.tokens, stream.waiting[-1].tokens if stream.waiting else stream.known)
        stream.waiting += map(Tick, ticks.times[new:], ticks.tokens[new:])
        return stream

    def keep(self, rows: Collection[str], number: int) -> None:
        """Forgets streams that are not among these, and steps long before this one."""
        for row in [row for row in self._streams if row not in rows]:
            del self._streams[row]
        if len(self.steps) > 2 * KEPT:
            self.steps = {at: step for at, step in self.steps.items() if at > number - KEPT}

    def _note(self, flight: Flight, stream: Stream, offset: int, weights: Weights) -> None:
        for at, tokens in stream.waiting:
            # The first token of an answer is its prompt's.
            for made in range(max(stream.known, 1) + 1, tokens + 1):
                step = self.steps.setdefault(offset + made, Shown())
                step.decode += 1
                step.context += weights.context_of(flight.prompt + made - 1)
            step = self.steps.setdefault(offset + tokens, Shown())
            if step.arrived:
                self._square = FADE * self._square + (1 - FADE) * (at - step.end) ** 2
            step.arrived += 1
            step.times += at
            step.rows.add(flight.row)
            stream.known, stream.last = tokens, at
        stream.waiting.clear()
        self._next = max(self._next, offset + stream.known + 1)

    def _beside(self, flight: Flight, ticks: Sequence[Tick]) -> int:
        begun, tokens = ticks[0]
        shown = [number for number, step in self.steps.items() if step.arrived]
        if not shown:
            return self._next - tokens
        near = min(shown, key=lambda number: abs(self.steps[number].end - begun))
        tried = range(near - TRIED, near + TRIED + 1)
        asked = ticks[:ASKED]
        costs = {number: self._apart(asked, number - tokens) for number in tried}
        if flight.first == begun and flight.computed > LONG_PROMPT:
            costs = {number: cost + SHORT_STEP * self._is_short(number) for number, cost in costs.items()}
        best = min(costs, key=lambda number: costs[number])
        later = begun > max(self.steps[number].end for number in shown)
        return (self._next if later and costs[best] >= NOBODY * len(asked) else best) - tokens

    def _apart(self, ticks: Sequence[Tick], offset: int) -> float:
        """Squares over the variance by which tokens would arrive apart from those of the others."""
        least, cost = max(self._square, float(EVENEST**2)), 0.0
        for at, tokens in ticks:
            step = self.steps.get(offset + tokens)
            cost += min(FAR, (at - step.end) ** 2 / least) if step is not None and step.arrived else NOBODY
        return cost

    def _is_short(self, number: int) -> bool:
        lengths = [self._length(one) for one in (number - 1, number, number + 1)]
        return lengths[1] < max(lengths) / 2

    def _length(self, number: int) -> float:
        before, step = self.steps.get(number - 1), self.steps.get(number)
        return step.end - before.end if before and step and before.arrived and step.arrived else 0.0

    def _slip(self, ticks: Sequence[Tick], offset: int) -> int:
        """By how many steps more a stream is behind its tokens than before: it may have been preempted."""
        found: dict[int, float] = {}
        for slip in (0, -1, 1):
            steps = [(at, self.steps.get(offset + slip + tokens)) for at, tokens in ticks[:ASKED]]
            apart = [(at - step.end) ** 2 for at, step in steps if step is not None and step.arrived]
            if len(apart) < SLIPPED:
                return 0
            found[slip] = sum(apart) / len(apart)
        best = min(found, key=lambda slip: found[slip])
        return best if found[best] < found[0] - self._square / 3 else 0


def _in_doubt(heard: tuple[Stream, Flight]) -> tuple[bool, int]:
    """Last come the streams that are new, and before them those that paused: they are laid beside the others."""
    stream, begun = heard[0], heard[0].waiting[0].at
    return stream.offset is None, begun if stream.offset is None else begun - stream.last
