"""What the engine does not say in time, inferred meanwhile: who queues, and what was cached.

A stream names its queueing time and its cached prompt tokens in its last chunk only, long after its first windows
are divided. What earlier requests put into the cache is known here when the next one is sent; the engine's own page
tells every second how many requests wait and how many prompt tokens were hits.
"""

from collections.abc import Iterable, Sequence

from proxy.accounting.flight import Flight
from proxy.accounting.reconstruction import prefill_s
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import Weights

UNDER_WAY = Nanoseconds(100 * MILLISECOND)
"""A first token that comes so long after a look, and later than is usual, was not in it."""
PREFILL_MARGIN = 2.0
"""A prefill beside others' decodes takes longer than by itself."""
MOST_RATIO = 1.2
"""A match is at most so much short of the hits: a piece is cut off, and some text has more tokens than other text."""


def queued_rows(flights: Iterable[Flight], waiting: float) -> set[str]:
    """Rows of the requests that the engine has not taken up: the newest of those without a sign of life.

    First come, first served is vLLM's default order.
    """
    silent_so_far = [f for f in flights if f.metered_work and f.ended is None and f.first is None]
    newest_first = sorted(silent_so_far, key=lambda flight: -flight.sent)
    return {flight.row for flight in newest_first[: round(waiting)]}


def guess_schedule(flight: Flight, scrapes: Sequence[EngineCounters], weights: Weights) -> None:
    """Sets when a request was taken up that met a queue; one that met none was taken up when it was sent.

    It cannot have begun much earlier than its prefill takes before its first token. One that left without a token
    while others queued is taken never to have begun.
    """
    heard = flight.first if flight.first is not None else flight.ended
    if heard is None or flight.scheduled is not None or flight.scheduled_guess is not None or flight.silent:
        return
    if not any(scrape.waiting > 0 and flight.sent <= scrape.at <= heard for scrape in scrapes):
        return
    if flight.first is None:
        flight.scheduled_guess = heard
        return
    took = round(PREFILL_MARGIN * prefill_s(flight, weights) * SECOND)
    flight.scheduled_guess = Nanoseconds(max(flight.sent, heard - took))


def guess_cached(flights: Iterable[Flight], before: EngineCounters, now: EngineCounters) -> None:
    """Brings the guesses for the prompts read between two scrapes in line with the cache hits counted in between.

    Prompts that the engine counted and that are not known here (a stranger's, or of a request whose first token is
    under way) leave room: so many of the hits may be theirs. Within that the guesses stay. A prompt that the look
    before may have counted says nothing: a stranger's as long as it would hide that it is not in these counts.
    """
    if before.cached_prompt_tokens is None or now.cached_prompt_tokens is None:
        return
    read = [one for one in flights if before.at + one.lag + UNDER_WAY < _read_at(one) <= now.at]
    hits = now.cached_prompt_tokens - before.cached_prompt_tokens
    hits -= sum(flight.hits_told for flight in read if flight.hits_told is not None)
    strange = now.prompt_tokens - before.prompt_tokens - sum(flight.read for flight in read)
    unknown = [flight for flight in read if flight.hits_told is None]
    most, least = hits - min(0.0, strange), hits - max(0.0, strange)
    guessed = _hits(unknown)
    if guessed > max(0.0, most):
        _scale(unknown, max(0.0, most) / guessed)
    elif guessed < least:
        _scale(unknown, min(MOST_RATIO, least / guessed) if guessed else 1.0)
        _spread(unknown, least - _hits(unknown))


def _read_at(flight: Flight) -> Nanoseconds:
    """When the engine counted the prompt as read, as far as it shows; before all times if it does not yet."""
    read = flight.first if flight.decodes else flight.ended
    return Nanoseconds(-1) if read is None else read


def _hits(flights: Sequence[Flight]) -> int:
    """Cache hits as the engine counts them: each prompt once for each answer to it."""
    return sum(flight.read - flight.computed for flight in flights)


def _scale(flights: Sequence[Flight], factor: float) -> None:
    """What matched something goes up or down by a factor, what did not stays."""
    for flight in flights:
        flight.cached_part = min(1.0, factor * flight.cached_part)
        flight.reread_part = min(1.0, factor * flight.reread_part)


def _spread(flights: Sequence[Flight], missing: float) -> None:
    """Hits that nothing explains go by what is left of the prompts: right in sum, and exact when it is only one."""
    left = sum(flight.computed for flight in flights)
    if missing <= 0 or left <= 0:
        return
    part = min(1.0, missing / left)
    for flight in flights:
        flight.cached_part += part * (1 - flight.cached_part)
        flight.reread_part += part * (1 - flight.reread_part)
