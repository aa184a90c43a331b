"""What the engine's own counters tell of the requests: who queues, what was cached, who else is there."""

from collections import deque
from collections.abc import Sequence

from proxy.accounting.alignment import ArrivalLag
from proxy.accounting.cache_guess import CacheGuess
from proxy.accounting.flight import Flight
from proxy.accounting.guesses import guess_cached, guess_schedule, queued_rows
from proxy.accounting.step_clock import ONE_BY_ONE, Pace
from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters, SeenTokens, UnseenTraffic, UnseenWatch
from proxy.accounting.weights import Weights

REMEMBERED_SCRAPES = 64
"""Looks at the engine that tell whether a request met a queue: a minute at the usual pace."""


class EngineView:
    """One engine as its /metrics page shows it, scrape after scrape.

    unseen: traffic that did not come through here and may lie in windows not divided yet. pace: how many tokens a
    step gives, as of late.
    """

    def __init__(self) -> None:
        self.unseen: list[UnseenTraffic] = []
        self._now: EngineCounters | None = None
        self._scrapes: deque[EngineCounters] = deque(maxlen=REMEMBERED_SCRAPES)
        self._scraped: Nanoseconds | None = None
        self.pace = ONE_BY_ONE
        self._cache = CacheGuess()
        self._arrival = ArrivalLag()
        self._watch = UnseenWatch()
        self._closed_prompt = self._closed_completion = 0

    @property
    def busy(self) -> bool:
        """Whether it ran anything at the last look; False also while nothing is known."""
        return self._now is not None and self._now.running > 0

    def opened(self, flight: Flight) -> None:
        """A request is about to be sent: guesses what the engine has in its cache, and how late tokens will arrive."""
        self._cache.opened(flight)
        flight.lag = self._arrival.lag

    def seen_after(self, instant: Nanoseconds) -> bool:
        """Whether there was a look at it since then, whatever came of it."""
        return self._scraped is not None and self._scraped >= instant

    def scraped(
        self,
        counters: EngineCounters | None,
        at: Nanoseconds,
        flights: Sequence[Flight],
        *,
        reached: Nanoseconds | None,
    ) -> None:
        """A look at `at`; None when the page could not be read. reached: up to there windows are divided."""
        self._scraped = at
        if counters is not None:
            if self._now is not None:
                guess_cached(flights, self._now, counters)
                self.pace = pace_between(self._now, counters) or self.pace
            self._cache.scraped(counters)
            found = self._watch.compare(counters, self._seen(flights))
            self.unseen = [one for one in self.unseen if reached is None or one.span.end > reached]
            self.unseen += [found] if found else []
            # While no meter gives readings to divide, only the latest are kept.
            self.unseen = self.unseen[-REMEMBERED_SCRAPES:]
            self._scrapes.append(counters)
        self._now = counters

    def _seen(self, flights: Sequence[Flight]) -> SeenTokens:
        uncounted = sum(1 for flight in flights if flight.uncounted)
        prompt = sum(f.read for f in flights if f.first or f.completion_tokens is not None)
        completion = sum(f.completion_tokens or 0 for f in flights)
        held = sum(f.sequences for f in flights if f.metered_work and f.ended is None)
        pending = sum(f.read for f in flights if f.metered_work and f.ended is None and f.first is None)
        return SeenTokens(self._closed_prompt + prompt, self._closed_completion + completion, uncounted, held, pending)

    def closed(self, flight: Flight, weights: Weights) -> None:
        """A request is over and will not be among the flights any more; its tokens stay counted."""
        self._cache.finished(flight)
        self._arrival.finished(flight, weights)
        if flight.metered_work:
            self._closed_prompt += flight.read if flight.completion_tokens is not None else 0
            self._closed_completion += flight.completion_tokens or 0

    def taken_up(self, flights: Sequence[Flight], weights: Weights) -> list[Flight]:
        """The flights that the engine holds or held, with what is inferred of their start; queued ones are left out."""
        # Most looks show no queue: sorted out once here, not again for every flight of every window.
        queues = [scrape for scrape in self._scrapes if scrape.waiting > 0]
        for flight in flights:
            guess_schedule(flight, queues, weights)
        if self._now is None or not self._now.waiting:
            return list(flights)
        queued = queued_rows(flights, self._now.waiting)
        return [flight for flight in flights if flight.row not in queued]


def pace_between(before: EngineCounters, now: EngineCounters) -> Pace | None:
    """Tokens a step and positions a token between two looks; None where nothing was drafted.

    In a step each sequence computes one position more than was drafted for it, and gains one token more than was
    accepted.
    """
    if before.drafts is None or now.drafts is None or now.drafts.steps <= before.drafts.steps:
        return None
    steps = now.drafts.steps - before.drafts.steps
    drafted = now.drafts.drafted - before.drafts.drafted
    accepted = now.drafts.accepted - before.drafts.accepted
    return Pace((steps + accepted) / steps, (steps + drafted) / (steps + accepted))
