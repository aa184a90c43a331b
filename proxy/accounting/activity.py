"""What each request did in a window: the features of the attribution rule.

    P   uncached prompt tokens computed            PC  sum over them of their context length
    D   decode positions                           C   sum over them of their context length
    S   sum over engine steps that hold the request of (its sequences / sequences in the step)

Without a step log the engine's steps are read off the token times: a stream gives one token per sequence and
step, so its own tokens are its steps; a prefill lives through the steps of the streams beside it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from proxy.accounting.flight import Flight
from proxy.accounting.units import Nanoseconds
from proxy.accounting.weights import Weights

BATCHED_TOKENS = 2048
"""vLLM's default budget of prompt tokens per step (max_num_batched_tokens of the online server)."""


@dataclass(frozen=True, slots=True)
class Span:
    """The half-open time [start, end)."""

    start: Nanoseconds
    end: Nanoseconds

    def within(self, other: "Span") -> "Span | None":
        """The part inside `other`, or None where they do not meet."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Span(start, end) if end > start else None

    @property
    def length(self) -> int:
        """Nanoseconds."""
        return self.end - self.start


@dataclass(slots=True)
class Work:
    """Work of one request in one window; all figures are expectations, hence floats.

    tokens: prompt tokens (cached ones too) and completion tokens that fall in the window, for plain token share.
    output_tokens: the completion tokens among them. present_ns: time in the engine times sequences.
    """

    prefill: float = 0.0
    prefill_context: float = 0.0
    decode: float = 0.0
    decode_context: float = 0.0
    steps: float = 0.0
    tokens: float = 0.0
    output_tokens: float = 0.0
    present_ns: float = 0.0


class Crowd:
    """How many sequences the engine held at each instant of a window, and the integral of one over that."""

    def __init__(self, window: Span, presences: Iterable[tuple[Span, float]]) -> None:
        change: dict[Nanoseconds, float] = {window.start: 0.0, window.end: 0.0}
        for span, sequences in presences:
            change[span.start] = change.get(span.start, 0.0) + sequences
            change[span.end] = change.get(span.end, 0.0) - sequences
        self._edges = sorted(change)
        self._rates: list[float] = []
        self._integral = [0.0]
        self.covered_ns = 0
        held = 0.0
        for edge, following in pairwise(self._edges):
            held += change[edge]
            occupied = held > 1e-9
            self.covered_ns += (following - edge) if occupied else 0
            self._rates.append(1.0 / held if occupied else 0.0)
            self._integral.append(self._integral[-1] + self._rates[-1] * (following - edge))

    def _up_to(self, instant: Nanoseconds) -> float:
        index = min(bisect_right(self._edges, instant) - 1, len(self._rates) - 1)
        return self._integral[index] + self._rates[index] * (instant - self._edges[index])

    def mean_share(self, span: Span) -> float:
        """Time mean of 1/n over a span inside the window; n counts sequences."""
        return (self._up_to(span.end) - self._up_to(span.start)) / span.length


def presence(flight: Flight, window: Span) -> Span | None:
    """When the engine held the flight, as far as it falls in the window; never for one it refused."""
    if flight.refused or not flight.metered_work:
        return None
    end = window.end if flight.ended is None else flight.ended
    return Span(flight.start, end).within(window) if end > flight.start else None


def prefill_s(flight: Flight, weights: Weights) -> float:
    """Seconds that the flight's prefill takes by itself, as predicted."""
    return weights.step_s * max(1, ceil(flight.computed / BATCHED_TOKENS)) + weights.token_s * flight.computed


def prefill_span(flight: Flight, weights: Weights, now: Nanoseconds) -> Span | None:
    """From schedule to first token; for silent answers predicted from the weights' times, within what is known.

    A silent answer that is over divides its time between prefill and decode as predicted.
    """
    start = flight.start
    if flight.first is not None:
        end = flight.first
    elif not flight.silent:
        end = now if flight.ended is None else flight.ended
    else:
        predicted = prefill_s(flight, weights)
        steps = (flight.completion_tokens or 0) / flight.sequences
        if flight.ended is None:
            end = Nanoseconds(start + round(predicted * 1e9))
        else:
            part = predicted / (predicted + max(0.0, steps - 1) * (weights.step_s + weights.token_s))
            end = Nanoseconds(start + round((flight.ended - start) * part))
    return Span(start, Nanoseconds(end)) if end > start else None


def decode_bursts(
    flight: Flight, weights: Weights, window: Span, step_rate: float
) -> Iterable[tuple[Span, float, float]]:
    """(span, tokens before it, tokens in it) of the decode; the first token of a sequence belongs to its prefill.

    For a silent flight that is still open the tokens are those of `step_rate` steps per nanosecond.
    """
    if not flight.silent:
        for before, after in pairwise(flight.ticks):
            if before.at >= window.end:
                return
            if after.at > window.start and after.at > before.at:
                yield Span(before.at, after.at), float(before.tokens), float(after.tokens - before.tokens)
        return
    prefill = prefill_span(flight, weights, window.end)
    start = flight.sent if prefill is None else prefill.end
    if flight.ended is not None:
        total = float(flight.completion_tokens or 0)
        rest = max(0.0, total - flight.sequences)
        if flight.ended > start and rest:
            yield Span(start, flight.ended), total - rest, rest
    elif flight.decodes and window.end > start and step_rate > 0:
        done = float(flight.sequences) * (1 + step_rate * max(0, window.start - start))
        begin = max(start, window.start)
        yield Span(begin, window.end), done, step_rate * (window.end - begin) * flight.sequences


def step_rate(flights: Sequence[Flight], window: Span) -> float | None:
    """Engine steps per nanosecond in the window: those of the stream that covers most of it; None without one."""
    best, most_ns = None, 0
    for flight in flights:
        if flight.silent or (flight.ended is not None and flight.ended <= window.start):
            continue
        tokens, time_ns = _decoded(flight, window)
        if time_ns > most_ns:
            best, most_ns = tokens / flight.sequences / time_ns, time_ns
    return best


def _decoded(flight: Flight, window: Span) -> tuple[float, int]:
    """Tokens decoded inside the window, and the nanoseconds of it that the flight's bursts cover."""
    tokens, time_ns = 0.0, 0
    for before, after in pairwise(flight.ticks):
        if before.at >= window.end:
            break
        inside = min(after.at, window.end) - max(before.at, window.start)
        if inside > 0:
            tokens += (after.tokens - before.tokens) * inside / (after.at - before.at)
            time_ns += inside
    return tokens, time_ns


def _add_prefill(work: Work, flight: Flight, span: Span, part: Span, share: float, rate: float | None) -> None:
    low, high = (part.start - span.start) / span.length, (part.end - span.start) / span.length
    # Without a first token nobody knows how far the prefill is: it holds its place in the steps, no more.
    begun = flight.first is not None or flight.silent or flight.ended is not None
    tokens = float(flight.computed) if begun else 0.0
    cached, uncached = flight.cached / flight.prompts, flight.uncached / flight.prompts
    work.prefill += tokens * (high - low)
    work.prefill_context += tokens * (high - low) * (cached + uncached * (low + high) / 2)
    work.tokens += flight.prompt * (high - low) if begun else 0.0
    alone = max(1, ceil(tokens / BATCHED_TOKENS)) * (high - low)
    steps = alone if rate is None else rate * part.length
    work.steps += steps * share * flight.sequences


def work_in(flight: Flight, window: Span, crowd: Crowd, weights: Weights, rate: float | None) -> Work:
    """The flight's work in the window. `rate` is the window's step rate, None when no stream tells it."""
    work = Work()
    held = presence(flight, window)
    if held is None:
        return work
    work.present_ns = float(held.length * flight.sequences)
    prefill = prefill_span(flight, weights, window.end)
    part = prefill.within(window) if prefill else None
    if prefill and part:
        _add_prefill(work, flight, prefill, part, crowd.mean_share(part), rate)
        if not flight.silent or flight.ended is not None:
            first = flight.sequences if flight.completion_tokens else 0
            work.tokens += first * part.length / prefill.length
            work.output_tokens += first * part.length / prefill.length
    silent_rate = rate if rate is not None else 1e-9 / (weights.step_s + weights.token_s)
    for span, before, tokens in decode_bursts(flight, weights, window, silent_rate):
        inside = span.within(window)
        if inside:
            _add_decode(work, flight, span, inside, before, tokens, crowd.mean_share(inside))
    return work


def _add_decode(work: Work, flight: Flight, span: Span, part: Span, before: float, tokens: float, share: float) -> None:
    low, high = (part.start - span.start) / span.length, (part.end - span.start) / span.length
    positions = tokens * (high - low)
    made = before + tokens * (low + high) / 2
    work.decode += positions
    work.decode_context += positions * (flight.prompt / flight.prompts + made / flight.sequences)
    work.steps += positions * share
    work.tokens += positions
    work.output_tokens += positions
