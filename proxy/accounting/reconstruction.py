"""Who did what in a window, inferred from token times (grade B).

Without a step log the engine's steps are read off the tokens: a stream gives one token per sequence and step, so
its own tokens are its steps; a prefill lives through the steps of the streams beside it. Source of the rules:
research on attribution without a step log (section 6.4).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from operator import attrgetter

from proxy.accounting import experts
from proxy.accounting.activity import Activity, Span, Work, presence
from proxy.accounting.crowd import Crowd
from proxy.accounting.flight import Flight, Tick
from proxy.accounting.step_clock import ONE_BY_ONE, Pace, StepClock
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
    """What all requests of a window have in common. clock: None where only one of them is looked at."""

    window: Span
    crowd: Crowd
    weights: Weights
    clock: StepClock | None
    pace: Pace = ONE_BY_ONE


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
    present, spans = [], []
    # Of most it is seen at once that they were over.
    begins = window.start
    for flight in sorted([one for one in flights if one.ended is None or one.ended > begins], key=attrgetter("row")):
        where = presence(flight, window)
        if where is not None:
            present.append(flight)
            spans.append((where, float(flight.sequences)))
    strangers = Strangers(window, unseen)
    crowd = Crowd(window, [*spans, *strangers.presences], engines)
    reading = Reading(window, crowd, weights, StepClock(present, window, pace), pace)
    works = [work_of(flight, where, reading) for flight, (where, _) in zip(present, spans, strict=True)]
    unknown = strangers.works(crowd, weights, pace, present)
    if weights.experts and crowd.covered_ns:
        every = [*works, *unknown]
        held = sum(work.present_ns for work in every) / crowd.covered_ns / engines
        experts.infer(every, weights.touched, held)
    return Activity(present, works, unknown, crowd.covered_ns, covered=crowd.covered)


def work_of(flight: Flight, held: Span, reading: Reading) -> Work:
    """One flight's work in a window in which the engine held it during `held`."""
    window = reading.window
    work = Work(present_ns=float(held.length * flight.sequences))
    first = flight.first
    if first is None or first > window.start or flight.silent:
        prefill = prefill_span(flight, reading.weights, window.end)
        part = prefill.within(window) if prefill else None
        if prefill and part:
            _add_prefill(work, flight, prefill, part, reading)
    if flight.silent:
        _add_silent_decode(work, flight, reading)
    else:
        _add_ticks(work, flight, reading)
    return work


def _add_prefill(work: Work, flight: Flight, span: Span, part: Span, reading: Reading) -> None:
    begins, length = span.start, span.length
    low, high = (part.start - begins) / length, (part.end - begins) / length
    part_done = high - low
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
    steps = reading.clock.steps(part) if reading.clock else None
    if steps is None:
        steps = max(1, ceil(tokens / BATCHED_TOKENS)) * part_done
    share = steps * reading.crowd.mean_share(part) * flight.sequences
    work.steps += share
    if reading.weights.experts:
        work.experts += share
    if not flight.silent or flight.ended is not None:
        first = flight.sequences if flight.completion_tokens else 0
        work.tokens += first * part_done
        work.output_tokens += first * part_done


def _add_ticks(work: Work, flight: Flight, reading: Reading) -> None:
    """The decode of a stream; the first token of a sequence belongs to its prefill."""
    ticks, window = flight.ticks, reading.window
    if len(ticks) < 2 or ticks[-1].at <= window.start or ticks[0].at >= window.end:
        return
    first_made, last_made, steps = _made_in(ticks, window, reading.crowd)
    if last_made > first_made:
        _add_decode(work, flight, last_made - first_made, (first_made + last_made) / 2, steps, reading)


def _made_in(ticks: Sequence[Tick], window: Span, crowd: Crowd) -> tuple[float, float, float]:
    """Tokens made before a window and until its end, and the sum of 1/n over those in between.

    Called for every stream of every window, so it is one plain loop over the ticks of the window only.
    """
    start, end = window.start, window.end
    edges, rates, integrals = crowd.edges, crowd.rates, crowd.integrals
    begun = bisect_left(ticks, (max(start, ticks[0].at) + 1, 0)) - 1
    inside: Sequence[tuple[int, float]] = ticks[begun : bisect_left(ticks, (end, 0), begun) + 1]
    at, made = inside[0]
    if at < start:
        next_at, next_made = inside[1]
        made, at = made + (next_made - made) * (start - at) / (next_at - at), start
    first, place = made, bisect_right(edges, at) - 1
    integral, steps = integrals[place] + rates[place] * (at - edges[place]), 0.0
    for next_at, next_made in inside[1:]:
        if next_at > at:
            if next_at > end:
                next_made, next_at = made + (next_made - made) * (end - at) / (next_at - at), end
            # up to, but not into, the stretch that begins there: the last edge begins none
            place = bisect_left(edges, next_at, place) - 1
            after = integrals[place] + rates[place] * (next_at - edges[place])
            steps += (next_made - made) * (after - integral) / (next_at - at)
            integral = after
        at, made = next_at, next_made
    return first, made, steps


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
        per_ns = (reading.clock and reading.clock.rate) or 1e-9 / (weights.step_s + weights.token_s)
        span, before = Span(start, window.end), float(flight.sequences)
        rest = per_ns * reading.pace.tokens_per_step * span.length * flight.sequences
    else:
        return
    inside = span.within(window) if span.length > 0 else None
    if inside is None or not rest:
        return
    low, high = (inside.start - span.start) / span.length, (inside.end - span.start) / span.length
    tokens, share = rest * (high - low), reading.crowd.mean_share(inside)
    _add_decode(work, flight, tokens, before + rest * (low + high) / 2, tokens * share, reading)


def _add_decode(work: Work, flight: Flight, tokens: float, made: float, steps: float, reading: Reading) -> None:
    """made: tokens of all sequences that are there half-way. steps: the tokens' sum of 1/n."""
    pace = reading.pace
    context = flight.prompt / flight.prompts + made / flight.sequences
    work.decode += tokens * pace.positions_per_token
    work.decode_context += tokens / pace.tokens_per_step * reading.weights.context_of(context)
    work.steps += steps / pace.tokens_per_step
    work.tokens += tokens
    work.output_tokens += tokens
