"""Where between two looks at the engine strangers did their work, as far as our own streams show it.

A chunk of a prompt makes a step long, so the streams beside it stall: time that their tokens and our own prompts do
not explain is somebody else's prefill. Whose prompt has been read begins to decode; how many there were at both ends,
how many came, and the tokens they made in all say about when the others left.
"""

from collections.abc import Sequence
from heapq import nlargest
from itertools import accumulate, pairwise
from statistics import median

from proxy.accounting.activity import Span
from proxy.accounting.curve import Curve
from proxy.accounting.flight import Flight
from proxy.accounting.reconstruction import BATCHED_TOKENS, prefill_span
from proxy.accounting.step_clock import Pace
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.unseen import Piece, UnseenTraffic
from proxy.accounting.weights import Weights

BIN = Nanoseconds(25 * MILLISECOND)
MOST_BINS = 400
STREAMS = 8
"""Streams asked for the engine's steps; several, because tokens come unevenly."""
SHARP = 1e-3
"""Leaving within so small a part of the time is leaving at once."""


class Placing:
    """One finding between two looks, in bins. lag: by which tokens arrive later than they are made."""

    def __init__(
        self, found: UnseenTraffic, flights: Sequence[Flight], weights: Weights, pace: Pace, lag: Nanoseconds
    ) -> None:
        start, length = Nanoseconds(found.span.start + lag), found.span.length
        count = max(1, min(MOST_BINS, round(length / BIN)))
        edges = [Nanoseconds(start + length * number // count) for number in range(count + 1)]
        self._bins = [Span(low, high) for low, high in pairwise(edges)]
        self._found = found
        self._token_ns = weights.token_s * SECOND
        self._pace = pace
        self._flights = flights
        self._weights = weights
        self._listen(_streams(flights, Span(edges[0], edges[-1])))

    def _listen(self, streams: Sequence[Flight]) -> None:
        """Takes the engine's steps in each bin from the streams; the rest of its own count is where none was."""
        per_step = [stream.sequences * self._pace.tokens_per_step for stream in streams]
        ticks = [
            ([*one.ticks.times], [tokens / per for tokens in one.ticks.tokens])
            for one, per in zip(streams, per_step, strict=True)
        ]
        curves = [Curve(at, steps) for at, steps in ticks]
        self._usual_ns = _usual_ns(ticks, Span(self._bins[0].start, self._bins[-1].end))
        told = [[curve.within(one) for curve in curves if curve.covers(one)] for one in self._bins]
        self._lit = [bool(one) for one in told]
        self._dark_ns = sum(one.length for one, lit in zip(self._bins, self._lit, strict=True) if not lit)
        heard = sum(sum(one) / len(one) for one in told if one)
        if self._found.steps is not None:
            rest = max(0.0, self._found.steps - heard)
        else:
            rest = self._dark_ns / (self._usual_ns or BIN)
        self._steps = [
            sum(seen) / len(seen) if seen else rest * one.length / self._dark_ns
            for one, seen in zip(self._bins, told, strict=True)
        ]
        self._counted = (self._found.steps is not None or self._usual_ns > 0) and sum(self._steps) > 0
        if not sum(self._steps) > 0:
            self._steps = [float(one.length) for one in self._bins]

    def pieces(self) -> tuple[Piece, ...]:
        """The finding's work, bin by bin."""
        found, prompts = self._found, self._prompts()
        held = self._held(prompts)
        shares = [step * sequences for step, sequences in zip(self._steps, held, strict=True)]
        whole = sum(shares) or 1.0
        most = max(1.0, found.arrived or 0.0)
        chunk = min(BATCHED_TOKENS, found.prompt / most)
        pieces = []
        for span, tokens, step, sequences, share in zip(self._bins, prompts, self._steps, held, shares, strict=True):
            steps = step if self._counted else None
            reading = tokens / chunk / step if steps and tokens else tokens * self._token_ns / span.length
            reading = min(most, reading)
            pieces.append(Piece(span, tokens, found.decode * share / whole, sequences + reading, steps, reading))
        return tuple(pieces)

    def _prompts(self) -> list[float]:
        """Prompt tokens of strangers in each bin: by unexplained time, the rest where no stream tells, else evenly."""
        if not self._found.prompt:
            return [0.0] * len(self._bins)
        own = self._own_prompts()
        excess = [
            max(0.0, one.length - self._usual_ns * step - self._token_ns * tokens) if lit else 0.0
            for one, step, tokens, lit in zip(self._bins, self._steps, own, self._lit, strict=True)
        ]
        needed = self._found.prompt * self._token_ns
        level = level_above(excess, needed)
        excess = [max(0.0, one - level) for one in excess]
        if self._dark_ns:
            part = min(1.0, max(0.0, needed - sum(excess)) / self._dark_ns) if any(excess) else 1.0
            excess = [
                e if lit else part * one.length for one, e, lit in zip(self._bins, excess, self._lit, strict=True)
            ]
        whole = sum(excess)
        if not whole:
            excess = [float(one.length) for one in self._bins]
            whole = sum(excess)
        return [self._found.prompt * one / whole for one in excess]

    def _own_prompts(self) -> list[float]:
        """Prompt tokens of our own in each bin."""
        tokens = [0.0] * len(self._bins)
        start, end = self._bins[0].start, self._bins[-1].end
        each = (end - start) / len(self._bins)
        for flight in self._flights:
            begun = flight.first is not None or flight.silent or flight.ended is not None
            span = prefill_span(flight, self._weights, end) if begun else None
            inside = span.within(Span(start, end)) if span else None
            if span is None or inside is None:
                continue
            for number in range(int((inside.start - start) / each), len(tokens)):
                part = inside.within(self._bins[number])
                if part is not None:
                    tokens[number] += flight.computed * part.length / span.length
                elif self._bins[number].start >= inside.end:
                    break
        return tokens

    def _held(self, prompts: Sequence[float]) -> list[float]:
        """Decoding sequences in each bin: those there before, who came as their prompts were read, less who left."""
        found, steps, whole = self._found, self._steps, sum(self._steps)
        before, after = found.held or (found.sequences, found.sequences)
        arrived = max(0.0, after - before) if found.arrived is None else found.arrived
        left = max(0.0, before + arrived - after)
        wanted = found.sequences
        if self._counted:
            wanted = found.decode / self._pace.tokens_per_step / whole
        time = [part / whole for part in _middles(steps)]
        come = [part / found.prompt for part in _middles(prompts)] if found.prompt else time
        there = [before + arrived * part for part in come]
        mean = sum(step * sequences for step, sequences in zip(steps, there, strict=True)) / whole
        if left:
            gone = _gone(time, left, 1 - min(1.0, max(0.0, (mean - wanted) / left)))
            there = [max(0.0, sequences - less) for sequences, less in zip(there, gone, strict=True)]
            mean = sum(step * sequences for step, sequences in zip(steps, there, strict=True)) / whole
        return [sequences * wanted / mean for sequences in there] if mean > 0 else [wanted] * len(there)


def _streams(flights: Sequence[Flight], span: Span) -> list[Flight]:
    """Those that tell of the most of a span."""
    covering = []
    for flight in flights:
        times = flight.ticks.times
        if not flight.silent and not flight.rough and len(times) > 1:
            time_ns = min(times[-1], span.end) - max(times[0], span.start)
            if time_ns > 0:
                covering.append((time_ns, flight))
    return [flight for _, flight in nlargest(STREAMS, covering, key=lambda pair: pair[0])]


def _usual_ns(ticks: Sequence[tuple[Sequence[Nanoseconds], Sequence[float]]], span: Span) -> float:
    """Nanoseconds of a step without a chunk of a prompt: most steps are such. 0 where no stream tells."""
    gaps = [
        (next_at - at) / (next_made - made)
        for times, steps in ticks
        for (at, made), (next_at, next_made) in pairwise(zip(times, steps, strict=True))
        if next_at > span.start and at < span.end
    ]
    return median(gaps) if gaps else 0.0


def _middles(parts: Sequence[float]) -> list[float]:
    """Running sums, up to the middle of each part."""
    return [total - part / 2 for total, part in zip(accumulate(parts), parts, strict=True)]


def _gone(time: Sequence[float], left: float, mean: float) -> list[float]:
    """How many of those that left had left by each time (0 to 1), evenly about the mean time of leaving."""
    wide = min(mean, 1 - mean) * (1 - 1 / max(1.0, left))
    if wide < SHARP:
        return [left * (at > mean) for at in time]
    return [left * min(1.0, max(0.0, (at - mean + wide) / (2 * wide))) for at in time]


def level_above(heights: Sequence[float], wanted: float) -> float:
    """The level above which the heights sum up to what is wanted; 0 where they do not, even in all."""
    reached = 0.0
    ordered = sorted(heights, reverse=True)
    for count, (height, lower) in enumerate(pairwise([*ordered, 0.0]), 1):
        if reached + count * (height - lower) >= wanted:
            return height - (wanted - reached) / count
        reached += count * (height - lower)
    return 0.0
