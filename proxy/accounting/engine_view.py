"""What the engine's own counters tell of the requests: who queues, what was cached, who else is there."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from operator import add

from proxy.accounting.alignment import ArrivalLag
from proxy.accounting.cache_guess import CacheGuess
from proxy.accounting.curve import Curve
from proxy.accounting.flight import Flight
from proxy.accounting.guesses import guess_cached, guess_schedule, queued_rows
from proxy.accounting.own_counts import Looking, steps_of
from proxy.accounting.placing import Placing
from proxy.accounting.step_clock import ONE_BY_ONE
from proxy.accounting.taking_up import TakingUp
from proxy.accounting.units import MILLISECOND, Nanoseconds
from proxy.accounting.unseen import EngineCounters, SeenTokens, UnseenTraffic, pace_between
from proxy.accounting.unseen_watch import UnseenWatch
from proxy.accounting.weights import Weights

HINDSIGHT = Nanoseconds(100 * MILLISECOND)
"""A look is compared with what has come here so long after the tokens made by then should have arrived."""
CROWD = 200
"""Requests. Among more a second is divided at once (`divider`), and where in it a prompt was read matters only to the
experts of a mixture."""
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
        self._pending: EngineCounters | None = None
        self._looked: Nanoseconds | None = None
        self.pace = ONE_BY_ONE
        self._cache = CacheGuess()
        self._taking_up = TakingUp()
        self._arrival = ArrivalLag()
        self._watch = UnseenWatch()
        self._gone = [0, 0, 0]
        self._steps: Curve | None = None
        self._weights: Weights | None = None
        self._read: set[str] = set()
        self._computed = 0

    @property
    def engines(self) -> int:
        """Data-parallel engines at the last look; one while nothing is known."""
        return 1 if self._now is None else self._now.engines

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
        return self._looked is not None and self._looked >= instant

    def scraped(
        self,
        counters: EngineCounters | None,
        at: Nanoseconds,
        flights: Sequence[Flight],
        *,
        reached: Nanoseconds | None,
    ) -> None:
        """A look at `at`; None when the page could not be read. reached: up to there windows are divided."""
        self.look_back(None, flights)
        if counters is not None:
            if self._now is not None:
                guess_cached(flights, self._now, counters)
                self.pace = pace_between(self._now, counters) or self.pace
            self._cache.scraped(counters)
            self.unseen = [one for one in self.unseen if reached is None or one.span.end > reached]
            # While no meter gives readings to divide, only the latest are kept.
            self.unseen = self.unseen[1 - REMEMBERED_SCRAPES :]
            self._scrapes.append(counters)
            self._steps = steps_of(self._scrapes)
            self._pending = counters
        else:
            self._looked = at
        self._now = counters
        if not flights:
            self.look_back(None, flights)

    def look_back(self, now: Nanoseconds | None, flights: Sequence[Flight]) -> None:
        """Compares the latest look with what has come here, once the tokens made by then have arrived.

        None: does not wait for that.
        """
        pending = self._pending
        if pending is None or (now is not None and now < pending.at + self._arrival.lag + HINDSIGHT):
            return
        self._pending, self._looked = None, pending.at
        found = self._watch.compare(pending, *self._seen(flights, pending))
        self.unseen += [found] if found else []

    def _seen(self, flights: Sequence[Flight], look: EngineCounters) -> tuple[SeenTokens, SeenTokens]:
        """What the engine must have counted of ours at a look, and of that what is certain."""
        looking = Looking(look.at, self._arrival.lag, self._steps, self.pace, self._weights, look.blur)
        sent = [flight for flight in flights if flight.sent < look.at]
        for flight in sent:
            if flight.row not in self._read and looking.read_by(flight):
                self._read.add(flight.row)
                self._computed += flight.computed
        seen, least = looking.of_all(sent)
        prompt, completion, firsts = self._gone
        gone = SeenTokens(prompt, completion, 0, firsts=firsts)
        return gone.plus(seen)._replace(computed=self._computed), gone.plus(least)

    def closed(self, flight: Flight, weights: Weights) -> None:
        """A request is over and will not be among the flights any more; its tokens stay counted."""
        self._cache.finished(flight)
        self._read.discard(flight.row)
        self._arrival.finished(flight, weights)
        self._watch.usual.closed(flight)
        if flight.first is not None and flight.told_by_its_tokens:
            self._gone = [*map(add, self._gone, (flight.read, flight.completion_tokens or 0, flight.sequences))]
        elif flight.ended is not None:
            one = Looking(flight.ended, 0, self._steps, self.pace, weights).counted(flight)
            self._gone = [*map(add, self._gone, (one.prompt, one.completion, one.firsts))]

    def taken_up(self, flights: Sequence[Flight], weights: Weights) -> list[Flight]:
        """The flights that the engine holds or held, with what is inferred of their start; queued ones are left out."""
        self._weights = weights
        if weights.experts or len(flights) <= CROWD:
            self._taking_up.guess(flights, self.pace)
        if any(not one.pieces for one in self.unseen):
            self._place(flights, weights)
        # Most looks show no queue: sorted out once here, not again for every flight of every window.
        queues = [scrape for scrape in self._scrapes if scrape.waiting > 0]
        for flight in flights if queues else ():
            guess_schedule(flight, queues, weights)
        if self._now is None or not self._now.waiting:
            return list(flights)
        queued = queued_rows(flights, self._now.waiting)
        return [flight for flight in flights if flight.row not in queued]

    def _place(self, flights: Sequence[Flight], weights: Weights) -> None:
        for number, one in enumerate(self.unseen):
            if not one.pieces:
                place = Placing(one, flights, weights, self.pace, self._arrival.lag)
                self.unseen[number] = replace(one, pieces=place.pieces())
