"""What an engine must have counted of one request of ours up to an instant: to be taken off its own counts.

Streams show it by their tokens. Of an answer in one piece nothing is known until its end: meanwhile it is taken to
gain a token a step, as the engine counts its steps, from when its prompt must have been read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from proxy.accounting.activity import Span
from proxy.accounting.curve import Curve
from proxy.accounting.flight import Flight
from proxy.accounting.reconstruction import prefill_s
from proxy.accounting.step_clock import Pace
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.unseen import EngineCounters, SeenTokens
from proxy.accounting.weights import Weights

JITTER = Nanoseconds(50 * MILLISECOND)
"""A first token that came so shortly after an instant may have been made before it."""
PREFILL_MARGIN = 2.0
"""A prefill beside others' decodes takes longer than by itself."""


def steps_of(scrapes: Iterable[EngineCounters]) -> Curve | None:
    """The engine's steps by its own count, also between two looks; None where it does not tell them."""
    known = [(scrape.at, scrape.steps) for scrape in scrapes if scrape.steps is not None]
    # A count that fell is another engine's.
    begins = max((n for n, ((_, a), (_, b)) in enumerate(pairwise(known), 1) if b < a), default=0)
    return Curve([at for at, _ in known[begins:]], [steps for _, steps in known[begins:]]) if known else None


@dataclass(slots=True)
class Looking:
    """An instant on the engine's clock, and what is needed to tell what a request had got by then.

    lag: by which its tokens arrive later. steps, weights: None while they are not known. blur: by which the instant
    may be off.
    """

    at: Nanoseconds
    lag: int
    steps: Curve | None
    pace: Pace
    weights: Weights | None
    blur: int = 0

    def certain(self, flight: Flight) -> SeenTokens:
        """The least the engine had counted of one flight: what was here well before, whatever the lag.

        Of an answer whose tokens are not known nothing is certain before its end.
        """
        before = Nanoseconds(self.at - JITTER - self.blur)
        if flight.refused or not flight.metered_work or (flight.ended is not None and flight.ended <= before):
            return self.counted(flight)
        if flight.silent or flight.rough:
            return SeenTokens(0, 0, 0)
        begun = _begun(flight, before)
        return SeenTokens(_read(flight, begun), flight.made_by(before) if begun else 0, 0, firsts=begun)

    def of_all(self, flights: Iterable[Flight]) -> tuple[SeenTokens, SeenTokens]:
        """The counts of several, and the least of them that is certain."""
        here, before = self.at + self.lag, self.at - JITTER - self.blur
        others, read, made, least, held, firsts = [], 0, 0, 0, 0, 0
        for flight in flights:
            if flight.first is None or flight.first > before or not flight.told_by_its_tokens:
                others.append(flight)
                continue
            # Nearly all: they began well before, so that only their tokens need be looked for.
            read += flight.read
            firsts += flight.sequences
            made += flight.made_by(Nanoseconds(here))
            least += flight.made_by(Nanoseconds(before))
            held += self._held(flight)
        counted = [SeenTokens(read, made, 0, held, firsts=firsts), *map(self.counted, others)]
        certain = [SeenTokens(read, least, 0, firsts=firsts), *map(self.certain, others)]
        return SeenTokens(*map(sum, zip(*counted, strict=True))), SeenTokens(*map(sum, zip(*certain, strict=True)))

    def read_by(self, flight: Flight) -> bool:
        """Whether something of its prompt is among these counts."""
        if flight.first is not None and flight.told_by_its_tokens:
            return flight.first <= self.at + self.lag and flight.read > 0
        return self.counted(flight).prompt > 0

    def counted(self, flight: Flight) -> SeenTokens:
        """The part of one flight that was sent before."""
        if flight.refused or not flight.metered_work:
            return SeenTokens(0, 0, 0)
        here = Nanoseconds(self.at + self.lag)
        over, held = flight.ended is not None and flight.ended <= here, self._held(flight)
        if (flight.silent or flight.rough) and not (over and flight.completion_tokens is not None):
            return self._estimated(flight, held)
        begun, soon = _begun(flight, here), _begun(flight, Nanoseconds(here + JITTER + self.blur))
        read, pending = _read(flight, begun), _read(flight, soon) - _read(flight, begun)
        made = flight.made_by(here) if begun else 0
        return SeenTokens(read, made, 0, held, pending, firsts=begun, pending_firsts=soon - begun)

    def _held(self, flight: Flight) -> int:
        """Sequences it may have had in the engine, whatever the lag: what runs beside them is somebody else's."""
        over = flight.ended
        return flight.sequences if over is None or over > self.at - self.blur else 0

    def _estimated(self, flight: Flight, held: int) -> SeenTokens:
        """Of one whose tokens are not known, or not yet, or that will never be because its client left."""
        uncounted = int(flight.ended is None)
        until = self.at if flight.ended is None else min(self.at, flight.ended)
        took = round(prefill_s(flight, self.weights) * SECOND) if self.weights else 0
        if flight.first is None and until < flight.start + PREFILL_MARGIN * took + JITTER:
            return SeenTokens(0, 0, uncounted, held, flight.read, pending_firsts=flight.sequences)
        begun = Nanoseconds(flight.start + took) if flight.first is None else flight.first
        made = max(flight.made_by(self.at), self._made(flight, begun, until)) if flight.decodes else 0
        if flight.ended is not None and flight.completion_tokens is not None:
            made = min(made, flight.completion_tokens)
        return SeenTokens(flight.read, made, uncounted, held, firsts=flight.sequences)

    def _made(self, flight: Flight, begun: Nanoseconds, until: Nanoseconds) -> int:
        """The first token, and one more in each step since, for each of its sequences."""
        steps = self.steps.within(Span(begun, until)) if self.steps and until > begun else 0.0
        return round((1 + steps * self.pace.tokens_per_step) * flight.sequences)


def _begun(flight: Flight, by: Nanoseconds) -> int:
    """Sequences of whose first token it is known that it was there; of an answer in one piece all, at its end."""
    if flight.first is None and flight.completion_tokens is not None and flight.ended is not None:
        return flight.sequences if flight.ended <= by else 0
    return flight.begun_by(by)


def _read(flight: Flight, begun: int) -> int:
    """Prompt tokens that the engine has read for so many of a flight's sequences, one like the other."""
    return flight.read * begun // flight.sequences
