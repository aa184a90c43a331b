"""Who did what in a window, by the engine's own step log (grade A).

Each step is spread over the windows it overlaps, by time; a pause over which some request went on running belongs to
the step after it. Whoever cannot be joined to a request did not come through here.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Literal

from proxy.accounting.activity import Activity, Span, Work, union
from proxy.accounting.engine_log import EngineLog, Process, met
from proxy.accounting.flight import Flight
from proxy.accounting.power_curve import PowerCurve, StepName
from proxy.accounting.step_names import SequenceNames
from proxy.accounting.step_work import add_step
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import SECOND, Nanoseconds
from proxy.accounting.weights import Weights

SILENCE = Nanoseconds(SECOND // 2)
"""Tokens that arrive so long after the last step heard of mean that the log has broken off."""
LOOKS_BACK = Nanoseconds(5 * SECOND // 2)
"""So long steps are kept after they have been paid for: a sensor may look at them late."""
REMEMBERED_STEPS = 8_000
"""A minute or two of steps: what is kept while no meter gives readings to divide."""
State = Literal["unheard", "live", "silent"]


class StepBook:
    """All that one backend's engines have logged and that is still of use.

    lost: steps that were not told, as the gaps in their numbers say. untold: windows divided before a step that may
    have been in them was told. request_ids: see SequenceNames.
    """

    def __init__(self, request_ids: Callable[[str], Iterable[str]]) -> None:
        self.names = SequenceNames(request_ids)
        self.lost = self.untold = 0
        self._since: Nanoseconds | None = None
        self._logs: dict[Process, EngineLog] = {}
        self._holes: list[Span] = []
        self._processes_of: dict[str, set[Process]] = {}
        self._begun: deque[tuple[Nanoseconds, str, int]] = deque()

    def listens(self, since: Nanoseconds) -> None:
        """From then on all that an engine tells is heard; not told so, knowledge begins with the first step heard."""
        self._since = since

    def take(self, step: EngineStep) -> None:
        """A step was logged."""
        process = step.engine, step.boot
        log = self._logs.get(process)
        if log is None:
            log, untold, lost = met(step, self._logs, self._since)
            self._logs[process] = log
            self._missed(Nanoseconds(0), untold)
            self.lost += lost
        elif step.number != log.number + 1:
            self.lost += max(0, step.number - log.number - 1)
            self._missed(log.reached, step.start)
        log.took(step)
        if len(log.steps) > REMEMBERED_STEPS:
            forgotten = log.steps[REMEMBERED_STEPS // 8].end
            self.forget_before(forgotten, looks_back=0)
            self._missed(Nanoseconds(0), forgotten)
        for name, before in self.names.new_in(step):
            first = self.names.join(name, step.start)
            # A prompt is read once for each answer to it, but its tokens count once.
            self._begun.append((step.end, name, before if first else 0))
            row = self.names.row_of(name)
            if row is not None:
                self._processes_of.setdefault(row, set()).add(process)

    def _missed(self, start: Nanoseconds, end: Nanoseconds) -> None:
        if end > start:
            self._holes.append(Span(start, end))

    def opened(self, flight: Flight) -> None:
        """A request was sent."""
        self.names.opened(flight)

    def closed(self, flight: Flight) -> None:
        """The request is settled."""
        self.names.closed(flight)
        self._processes_of.pop(flight.row, None)

    @property
    def heard(self) -> bool:
        """Whether the log is there, as far as anybody knows."""
        return self.state == "live"

    @property
    def state(self) -> State:
        """unheard: no step was ever told; silent: none is told any more, although tokens arrive; else live."""
        if not self._logs:
            return "unheard"
        return "silent" if any(log.broken for log in self._logs.values()) else "live"

    def knows(self, window: Span, flights: Iterable[Flight]) -> bool:
        """Whether all of a window has been told: every engine that any of the flights may be in has told of later."""
        if self._holed(window) or not self._logs:
            return False
        open_to_all = self._open_to_all(window.end)
        behind = {process for process, log in self._logs.items() if log.reached < window.end}
        if not behind:
            return True
        if behind.issuperset(open_to_all):
            return False
        running = [
            f for f in flights if f.metered_work and f.sent < window.end and (f.ended or window.end) >= window.end
        ]
        return not any(behind & self._processes_of.get(flight.row, open_to_all) for flight in running)

    def _open_to_all(self, at: Nanoseconds) -> set[Process]:
        """The processes that may hold a request of which no step was told yet."""
        return {process for process, log in self._logs.items() if log.takes_new(at)}

    def tells(self, window: Span) -> bool:
        """Whether the log is there and nothing is missing of the window so far."""
        return self.heard and not self._holed(window)

    def _holed(self, window: Span) -> bool:
        holes = [*self._holes, *(log.hole for log in self._logs.values())]
        return any(hole is not None and hole.within(window) is not None for hole in holes)

    def covers(self, window: Span, flights: Iterable[Flight]) -> bool:
        """Whether the log holds all that happened in the window; asked once the window is ready to be divided."""
        if not self._logs or self._holed(window):
            return False
        self.notice(flights)
        behind = [log for log in self._logs.values() if log.reached < window.end]
        if not behind or any(log.broken for log in behind):
            return not behind
        untold = any(self._untold(flight, window) for flight in flights)
        self.untold += untold
        return not untold

    def _untold(self, flight: Flight, window: Span) -> bool:
        """Whether a step may have held the flight in the window that was not told, or goes on still.

        A complete answer's last token came from a step that was told, or else the log is broken. One that was broken
        off may have been in a step whose end it did not wait for.
        """
        until = window.end
        if not flight.metered_work or flight.refused or flight.outcome == "ok" or flight.sent >= until:
            return False
        if flight.ended is not None:
            if flight.ended <= window.start:
                return False
            until = min(until, Nanoseconds(flight.ended - SILENCE))
        held = self._processes_of.get(flight.row)
        if held:
            # Children of one may be in several engines, of which some have finished theirs.
            return max(self._logs[process].reached for process in held) < until
        return min(self._logs[process].reached for process in self._open_to_all(until)) < until

    def notice(self, flights: Iterable[Flight]) -> None:
        """Looks whether tokens of some flight have gone on arriving after its engine's last step."""
        if not self._logs:
            return
        told = min(log.reached for log in self._logs.values()) + SILENCE
        for flight in flights:
            heard = flight.ended if flight.silent and flight.outcome == "ok" else flight.last
            if heard is None or heard <= told or not flight.metered_work:
                continue
            # One that no step has held may be in any engine that takes new ones; children of one may be in several.
            processes = self._processes_of.get(flight.row) or self._open_to_all(heard)
            logs = [self._logs[process] for process in processes]
            if heard > max(log.reached for log in logs) + SILENCE:
                for log in logs:
                    log.broken = True

    def forget_before(self, instant: Nanoseconds, *, looks_back: int = LOOKS_BACK) -> None:
        """Drops what no window that begins then or later needs any more."""
        looked_at = Nanoseconds(instant - looks_back)
        for log in self._logs.values():
            log.forget_before(looked_at)
        self._forget_ended(looked_at)
        while self._begun and self._begun[0][0] <= looked_at:
            self._begun.popleft()
        if self._holes:
            self._holes = [hole for hole in self._holes if hole.end > looked_at]

    def _forget_ended(self, instant: Nanoseconds) -> None:
        """Drops processes that another one came for, and that have told nothing since then and hold no request."""
        for process, log in list(self._logs.items()):
            ended = log.replaced is not None and max(log.replaced, log.reached) <= instant
            if ended and not any(process in held for held in self._processes_of.values()):
                del self._logs[process]

    def curve(self, window: Span, weights: Weights) -> PowerCurve | None:
        """Predicted power up to a window's end; None where something is missing of what a sensor may have looked at."""
        if self._holed(Span(Nanoseconds(window.start - LOOKS_BACK), window.end)):
            return None
        return PowerCurve((log.works(weights) for log in self._logs.values()), weights)

    def ended(self, window: Span, weights: Weights) -> Iterator[tuple[Work, Nanoseconds]]:
        """The steps that ended in a window: all their work, and how long they lasted."""
        for log in self._logs.values():
            for step, work in log.works(weights):
                if window.start < step.end <= window.end:
                    yield work, Nanoseconds(step.end - step.start)

    def activity(
        self, window: Span, flights: Iterable[Flight], weights: Weights, worth: Mapping[StepName, float] = {}
    ) -> Activity:
        """The activity of a window, ordered by row; flights without a step in it are left out.

        worth: of the steps that were not worth just what was predicted.
        """
        found: dict[str, Work] = {}
        occupied: list[tuple[Nanoseconds, Nanoseconds]] = []
        begins, ends = window.start, window.end
        for log in self._logs.values():
            for step in log.steps:
                if step.end > begins and step.start < ends:
                    known = worth.get((step.engine, step.boot, step.number), 1.0) if worth else 1.0
                    add_step(found, step, window, weights, known)
                    occupied.append((max(step.start, begins), min(step.end, ends)))
        for at, name, cached in self._begun:
            if begins < at <= ends and name in found:
                # Cached tokens and the first of the answer take no position of their own, but are tokens all the same.
                found[name].tokens += cached + 1
                found[name].output_tokens += 1
        by_row, stranger = self._by_row(found)
        present = sorted((flight for flight in flights if flight.row in by_row), key=attrgetter("row"))
        works = [by_row.pop(flight.row) for flight in present]
        for work in by_row.values():
            stranger.add(work)
        covered = union(occupied)
        lasted = sum(span.length for span in covered)
        strangers = [stranger] if stranger.steps else []
        return Activity(present, works, strangers, lasted, logged=True, covered=covered)

    def _by_row(self, found: Mapping[str, Work]) -> tuple[dict[str, Work], Work]:
        """The work of each request's sequences together, and of those that are nobody's here."""
        by_row: dict[str, Work] = {}
        stranger = Work()
        for name, work in found.items():
            row = self.names.row_of(name)
            if row is None:
                stranger.add(work)
            elif row in by_row:
                by_row[row].add(work)
            else:
                by_row[row] = work
        return by_row, stranger
