"""What the engine does not say in time, inferred from its counters: who queues, and what was cached.

A stream names its queueing time and its cached prompt tokens in its last chunk only, long after its first windows
are divided. The engine's own page tells every second how many requests wait and how many prompt tokens were hits.
"""

from collections.abc import Iterable, Sequence

from proxy.accounting.activity import prefill_s
from proxy.accounting.flight import Flight
from proxy.accounting.units import SECOND, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import Weights

PREFILL_MARGIN = 2.0
"""A prefill beside others' decodes takes longer than by itself."""


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
    """Spreads the cache hits counted between two scrapes over the prompts that were read in between.

    What finished requests have told of their own hits is taken off first; the rest goes by prompt length, which is
    exact when one prompt was read and right in sum when there were several.
    """
    if before.cached_prompt_tokens is None or now.cached_prompt_tokens is None:
        return
    hits = now.cached_prompt_tokens - before.cached_prompt_tokens
    read = [f for f in flights if f.first is not None and before.at < f.first <= now.at]
    hits -= sum(flight.cached_tokens for flight in read if flight.cached_tokens is not None)
    unknown = [flight for flight in read if flight.cached_tokens is None]
    prompts = sum(flight.prompt for flight in unknown)
    if hits <= 0 or prompts <= 0:
        return
    part = min(1.0, hits / prompts)
    for flight in unknown:
        flight.cached_guess = int(flight.prompt * part)
