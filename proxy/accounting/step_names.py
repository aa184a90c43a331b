"""Whose sequence is it: joins the engine's names of sequences to the requests that went through here."""

from collections.abc import Callable, Iterable, Iterator

from proxy.accounting.flight import Flight
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import Nanoseconds

REMEMBERED_STRANGERS = 65_536
"""Names that belong to nobody here are looked up once only, while they are remembered."""


class SequenceNames:
    """request_ids: from an engine's name of a sequence, the request ids it may stand for, likeliest first."""

    def __init__(self, request_ids: Callable[[str], Iterable[str]]) -> None:
        self._request_ids = request_ids
        self._row_of: dict[str, str] = {}
        self._names_of: dict[str, list[str]] = {}
        self._strangers: dict[str, None] = {}
        self._flights: dict[str, list[Flight]] = {}

    def opened(self, flight: Flight) -> None:
        """A request was sent: its sequences will be looked for."""
        self._flights.setdefault(flight.engine_id or flight.request_id, []).append(flight)

    def closed(self, flight: Flight) -> None:
        """The request is settled; what the engine still computes for it is a stranger's."""
        for name in self._names_of.pop(flight.row, ()):
            del self._row_of[name]
            self._is_strange(name)
        known_as = flight.engine_id or flight.request_id
        namesakes = self._flights.pop(known_as, ())
        if len(namesakes) > 1:
            self._flights[known_as] = [one for one in namesakes if one is not flight]

    def row_of(self, name: str) -> str | None:
        """The row of the request a sequence belongs to; None for a stranger's."""
        return self._row_of.get(name)

    def is_new(self, name: str) -> bool:
        """Whether a step with this name was never seen."""
        return name not in self._row_of and name not in self._strangers

    def new_in(self, step: EngineStep) -> Iterator[tuple[str, int]]:
        """Names in a step that were never seen, and the context that was there before. To be joined one by one."""
        known = self._row_of
        for name, before, *_ in [one for one in step.sequences if one[0] not in known]:
            if self.is_new(name):
                yield name, before

    def join(self, name: str, start: Nanoseconds) -> bool:
        """Finds whose a new name is. start: of the step that holds it. True: it is the first of its request."""
        for request_id in self._request_ids(name):
            flight = self._owner(request_id, start)
            if flight is not None:
                self._row_of[name] = flight.row
                names = self._names_of.setdefault(flight.row, [])
                names.append(name)
                return len(names) == 1
        self._is_strange(name)
        return True

    def _owner(self, request_id: str, start: Nanoseconds) -> Flight | None:
        """Of several requests with that id the one with the fewest sequences so far, then the oldest.

        An engine may make more sequences of a request than were asked for (beam search, long prompts in pieces).
        """
        known = self._flights.get(request_id)
        if known is None:
            return None
        alive = [
            flight
            for flight in known
            if flight.metered_work and not flight.refused and (flight.ended is None or flight.ended > start)
        ]
        if len(alive) == 1:
            return alive[0]
        able = [flight for flight in alive if self._sequences(flight) < flight.sequences]
        return min(able or alive, key=self._sequences, default=None)

    def _sequences(self, flight: Flight) -> int:
        return len(self._names_of.get(flight.row, ()))

    def _is_strange(self, name: str) -> None:
        if len(self._strangers) >= REMEMBERED_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[name] = None
