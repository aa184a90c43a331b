"""Who did what in a window, inferred from token times (grade B).

Without a step log the engine's steps are read off the tokens: a stream gives one token per sequence and step, so
its own tokens are its steps; a prefill lives through the steps of the streams beside it. Source of the rules:
research on attribution without a step log (section 6.4).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from operator import attrgetter

from proxy.accounting.activity import Activity, Span, Work, presence
from proxy.accounting.crowd import Crowd, Presence
from proxy.accounting.experts import Streamed
from proxy.accounting.flight import Flight
from proxy.accounting.step_clock import ONE_BY_ONE, Pace, shown_steps
from proxy.accounting.strangers import Strangers
from proxy.accounting.units import SECOND, Nanoseconds
from proxy.accounting.unseen import UnseenTraffic
from proxy.accounting.weights import Weights

BATCHED_TOKENS = 2048
"""vLLM's default budget of prompt tokens per step (max_num_batched_tokens of the online server)."""


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


@dataclass(frozen=True, slots=True)
class Reading:
    """What all requests of a window have in common. streamed: of a mixture of experts."""

    window: Span
    crowd: Crowd
    weights: Weights
    pace: Pace = ONE_BY_ONE
    streamed: Streamed | None = None


def reconstruct(
    window: Span,
    flights: Iterable[Flight],
    *,
    weights: Weights,
    unseen: Sequence[UnseenTraffic] = (),
    pace: Pace = ONE_BY_ONE,
    engines: int = 1,
) -> Activity:
    """The activity of a window, ordered by row; flights that the engine did not hold in it are left out.

    engines: data-parallel ones behind the same address.
    """
    begins, ends, strangers = window.start, window.end, Strangers(window, unseen)
    # Of most it is seen at once that they were over.
    asked = sorted([one for one in flights if one.ended is None or one.ended > begins], key=attrgetter("row"))
    held = [(flight, where) for flight in asked if (where := presence(flight, begins, ends)) is not None]
    present = [flight for flight, _ in held]
    presences = [(start, end, float(flight.sequences)) for flight, (start, end) in held]
    crowd = Crowd(window, [*presences, *strangers.presences], engines, shown_steps(present, window, pace))
    reading = reading_of(window, crowd, present, weights, pace, strangers.readers)
    works = [work_of(flight, end - start, reading) for flight, (start, end) in held]
    unknown = strangers.works(crowd, weights, pace, present, reading.streamed)
    return Activity(present, works, unknown, crowd.covered_ns, covered=crowd.covered, clocked=crowd.shown)


def reading_of(
    window: Span,
    crowd: Crowd,
    present: Iterable[Flight],
    weights: Weights,
    pace: Pace,
    readers: Iterable[Presence] = (),
) -> Reading:
    """What `work_of` needs to know of a window and of those present in it. readers: strangers that read a prompt."""
    if not weights.experts:
        return Reading(window, crowd, weights, pace)
    readers = list(readers)
    for flight in present:
        span = prefill_span(flight, weights, window.end)
        part = span.within(window) if span else None
        if part:
            readers.append((part.start, part.end, float(flight.sequences)))
    positions = pace.positions_per_token * pace.tokens_per_step
    return Reading(window, crowd, weights, pace, Streamed(crowd, readers, weights.touched, positions))


def work_of(flight: Flight, held_ns: int, reading: Reading) -> Work:
    """One flight's work in a window in which the engine held it for so long."""
    window = reading.window
    work = Work(present_ns=float(held_ns * flight.sequences))
    first = flight.first
    if first is None or first > window.start or flight.silent:
        prefill = prefill_span(flight, reading.weights, window.end)
        if prefill and prefill.start < window.end and prefill.end > window.start:
            _add_prefill(work, flight, prefill, reading)
    if flight.silent:
        _add_silent_decode(work, flight, reading)
    else:
        _add_ticks(work, flight, reading)
    return work


def _add_prefill(work: Work, flight: Flight, span: Span, reading: Reading) -> None:
    """The part of it that falls in the window."""
    window, start, end, length = reading.window, span.start, span.end, span.length
    low = 0.0
    if start < window.start:
        start, low = window.start, (window.start - start) / length
    if end > window.end:
        end = window.end
    part_done = (end - start) / length
    # Without a first token nobody knows how far the prefill is: it holds its place in the steps, no more.
    begun = flight.first is not None or flight.silent or flight.ended is not None
    tokens, prompts = float(flight.computed) if begun else 0.0, flight.prompts
    if flight.first is None and flight.ended is not None and not flight.silent:
        # It left before its first token: no more than there was time for.
        tokens *= min(1.0, length / SECOND / prefill_s(flight, reading.weights))
    if begun:
        cached, uncached = flight.cached / prompts, flight.uncached / prompts
        context = reading.weights.prefill_context(cached + uncached * low, uncached * part_done)
        work.prefill += tokens * part_done
        work.prefill_context += context * (tokens / uncached if uncached else 0.0)
        work.tokens += flight.prompt * part_done
    steps, shares, shown = reading.crowd.between(start, end)
    if not shown:
        # No stream was there all the while.
        known = max(1, ceil(tokens / BATCHED_TOKENS)) * part_done
        steps, shares = known, shares * known / steps if steps > 0 else 0.0
    work.steps += shares * flight.sequences
    if reading.streamed:
        work.experts += steps * reading.streamed.reading(start, end) * flight.sequences
    if not flight.silent or flight.ended is not None:
        first = flight.sequences if flight.completion_tokens else 0
        work.tokens += first * part_done
        work.output_tokens += first * part_done


def _add_ticks(work: Work, flight: Flight, reading: Reading) -> None:
    """The decode of a stream; the first token of a sequence belongs to its prefill."""
    ticks, start, end = flight.ticks, reading.window.start, reading.window.end
    times = ticks.times
    if len(times) < 2 or times[-1] <= start or times[0] >= end:
        return
    first, last = times[0], times[-1]
    before = float(ticks.tokens[0]) if first >= start else ticks.made_at(start)
    made = float(ticks.tokens[-1]) if last <= end else ticks.made_at(end)
    if made > before:
        start, end = max(first, start), min(last, end)
        _add_decode(work, flight, made - before, (before + made) / 2, start, end, reading)


def _add_silent_decode(work: Work, flight: Flight, reading: Reading) -> None:
    """The decode of an answer whose token times are unknown: even, over what its prefill leaves."""
    weights, window = reading.weights, reading.window
    prefill = prefill_span(flight, weights, window.end)
    start = flight.sent if prefill is None else prefill.end
    if flight.ended is not None:
        rest = max(0.0, float(flight.completion_tokens or 0) - flight.sequences)
        before = float(flight.completion_tokens or 0) - rest
        span = Span(start, flight.ended)
    elif flight.decodes and window.end > start:
        # Open: as many tokens as the engine makes steps, so far as anybody tells.
        per_ns = reading.crowd.rate or 1e-9 / (weights.step_s + weights.token_s)
        span, before = Span(start, window.end), float(flight.sequences)
        rest = per_ns * reading.pace.tokens_per_step * span.length * flight.sequences
    else:
        return
    inside = span.within(window) if span.length > 0 else None
    if inside is None or not rest:
        return
    low, high = (inside.start - span.start) / span.length, (inside.end - span.start) / span.length
    _add_decode(work, flight, rest * (high - low), before + rest * (low + high) / 2, inside.start, inside.end, reading)


def _add_decode(
    work: Work, flight: Flight, tokens: float, made: float, start: Nanoseconds, end: Nanoseconds, reading: Reading
) -> None:
    """Tokens that were made from start to end. made: those of all sequences that are there half-way."""
    pace = reading.pace
    steps = tokens / pace.tokens_per_step
    context = flight.prompt / flight.prompts + made / flight.sequences
    work.decode += tokens * pace.positions_per_token
    work.decode_context += steps * reading.weights.context_of(context)
    work.steps += steps * reading.crowd.mean_share(start, end)
    if reading.streamed:
        work.experts += steps * reading.streamed.decoding(start, end)
    work.tokens += tokens
    work.output_tokens += tokens
