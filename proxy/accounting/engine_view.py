"""What the engine's own counters tell of the requests: who queues, what was cached, who else is there."""

from collections import deque
from collections.abc import Sequence

from proxy.accounting.flight import Flight
from proxy.accounting.guesses import guess_cached, guess_schedule, queued_rows
from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters, SeenTokens, UnseenTraffic, UnseenWatch
from proxy.accounting.weights import Weights

REMEMBERED_SCRAPES = 64
"""Looks at the engine that tell whether a request met a queue: a minute at the usual pace."""


class EngineView:
    """One engine as its /metrics page shows it, scrape after scrape.

    unseen: traffic that did not come through here and may lie in windows not divided yet.
    """

    def __init__(self) -> None:
        self.unseen: list[UnseenTraffic] = []
        self._now: EngineCounters | None = None
        self._scrapes: deque[EngineCounters] = deque(maxlen=REMEMBERED_SCRAPES)
        self._scraped: Nanoseconds | None = None
        self._watch = UnseenWatch()
        self._closed_prompt = self._closed_completion = 0

    @property
    def busy(self) -> bool:
        """Whether it ran anything at the last look; False also while nothing is known."""
        return self._now is not None and self._now.running > 0

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
            found = self._watch.compare(counters, self._seen(flights))
            self.unseen = [one for one in self.unseen if reached is None or one.span.end > reached]
            self.unseen += [found] if found else []
            self._scrapes.append(counters)
        self._now = counters

    def _seen(self, flights: Sequence[Flight]) -> SeenTokens:
        uncounted = sum(1 for flight in flights if flight.uncounted)
        prompt = sum(f.read for f in flights if f.first or f.completion_tokens is not None)
        completion = sum(f.completion_tokens or 0 for f in flights)
        held = sum(f.sequences for f in flights if f.metered_work and f.ended is None)
        return SeenTokens(self._closed_prompt + prompt, self._closed_completion + completion, uncounted, held)

    def closed(self, flight: Flight) -> None:
        """A request is over and will not be among the flights any more; its tokens stay counted."""
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
