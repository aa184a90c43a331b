"""When a window is ready to be divided: once all that ran in it has been heard of, or was waited for long enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.accounting.activity import Span
from proxy.accounting.engine_view import EngineView
from proxy.accounting.flight import Flight
from proxy.accounting.step_book import StepBook
from proxy.accounting.units import SECOND, Nanoseconds

STALLED_WAIT = Nanoseconds(2 * SECOND)
"""A stream that gave tokens and then none for this long holds no window open any more."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long windows wait: for a first token, for a silent answer, for the next scrape; and the longest gap."""

    prefill: Nanoseconds
    silent: Nanoseconds
    scrape: Nanoseconds
    gap: Nanoseconds

    def ended(
        self, window: Span, now: Nanoseconds, flights: Sequence[Flight], engine: EngineView, steps: StepBook
    ) -> bool:
        """Whether enough is known at `now` of a window."""
        if steps.knows(window, flights):
            return True
        at = window.end
        age = now - at
        engine.look_back(now, flights)
        if age < self.scrape and not engine.seen_after(at):
            return False
        steps.notice(flights)
        logged = steps.tells(window)
        for flight in flights:
            if not flight.metered_work:
                continue
            if logged and age < self.prefill and self._may_be_in_a_step(flight, at, now):
                return False  # the step that is under way will be told when it ends
            if not flight.heard_after(at) and age < self._wait(flight):
                return False
        return True

    def _may_be_in_a_step(self, flight: Flight, at: Nanoseconds, now: Nanoseconds) -> bool:
        """Whether a step that held the flight at `at` may still be told; soon after its end there is none any more."""
        return flight.sent < at and (flight.ended is None or at < flight.ended > now - self.silent)

    def _wait(self, flight: Flight) -> Nanoseconds:
        if flight.silent:
            return self.silent
        return self.prefill if flight.first is None else STALLED_WAIT
