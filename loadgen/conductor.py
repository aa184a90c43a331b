"""The master's side of a run: deals the shards, gives the start, gathers outcomes, and knows when all are in.

Pure state: messages come in by method, go out through `tell`, and the clock is given. player.py lists the messages.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from loadgen.outcome import Outcome, from_json

LEAD_NS = 300_000_000
"""From the message to the start: enough for every worker to have heard it."""


@dataclass(slots=True)
class Part:
    """One worker's part: what it was to send and what it has told so far."""

    planned: int | None = None
    sent: int = 0
    in_flight: int = 0
    heard: int = 0
    cpu_percent: float = 0.0
    over: bool = False


@dataclass(slots=True)
class Run:
    """Everything known of the run in progress, or of the last one."""

    run_id: str
    shards: int
    parts: dict[str, Part] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    start_unix_ns: int | None = None
    abandoned: bool = False
    span_ns: int = 0
    """When the last request is due, after the start."""

    @property
    def planned(self) -> int:
        """Requests of all parts made ready so far."""
        return sum(part.planned or 0 for part in self.parts.values())

    @property
    def sent(self) -> int:
        """Requests begun by all workers."""
        return sum(part.sent for part in self.parts.values())

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet answered to the end."""
        return sum(part.in_flight for part in self.parts.values() if not part.over)

    @property
    def cpu_percent(self) -> float:
        """The busiest worker's share of one core."""
        return max((part.cpu_percent for part in self.parts.values()), default=0.0)

    @property
    def over(self) -> bool:
        """Whether nothing more will be heard: all shards are over, or the load cannot be made."""
        dealt = len(self.parts) == self.shards
        return self.abandoned or (dealt and all(part.over for part in self.parts.values()))

    @property
    def complete(self) -> bool:
        """Whether every request was sent, answered and reported, and without an error."""
        answered = self.planned > 0 and len(self.outcomes) == self.planned
        return self.over and answered and not self.troubles and all(o.error is None for o in self.outcomes)


class Conductor:
    """Holds the run; `tell(client, kind, data)` sends to one worker."""

    def __init__(self, tell: Callable[[str, str, dict[str, Any]], None], wall_clock_ns: Callable[[], int]) -> None:
        self._tell = tell
        self._wall_clock_ns = wall_clock_ns
        self.run: Run | None = None

    def begin(self, run_id: str, shards: int) -> Run:
        """Open a run for so many workers; what was known of the one before is dropped."""
        self.run = Run(run_id, shards)
        return self.run

    def hello(self, client: str) -> None:
        """A worker wants work: it gets the next shard. One more worker than expected gets none and waits."""
        run = self.run
        if run is None or client in run.parts or len(run.parts) == run.shards:
            return
        shard = len(run.parts)
        run.parts[client] = Part()
        self._tell(client, "loadgen-shard", {"run_id": run.run_id, "shard": shard, "shards": run.shards})

    def ready(self, client: str, requests: int, span_ns: int, facts: list[str]) -> None:
        """A worker has built its requests; when all have, the start is given."""
        part = self._part(client)
        if part is None or self.run is None:
            return
        part.planned = requests
        self.run.facts = self.run.facts or facts
        self.run.span_ns = max(self.run.span_ns, span_ns)
        parts = self.run.parts
        if len(parts) == self.run.shards and all(p.planned is not None or p.over for p in parts.values()):
            self.run.start_unix_ns = self._wall_clock_ns() + LEAD_NS
            for each in parts:
                self._tell(each, "loadgen-go", {"start_unix_ns": self.run.start_unix_ns})

    def news(self, client: str, data: dict[str, Any]) -> list[Outcome]:
        """Outcomes and counts of a worker; gives back the outcomes heard for the first time."""
        part = self._part(client)
        if part is None or self.run is None:
            return []
        fresh = [from_json(values) for values in data["outcomes"]]
        part.sent, part.in_flight = data["sent"], data["in_flight"]
        part.cpu_percent = data["cpu_percent"]
        part.heard += len(fresh)
        self.run.outcomes += fresh
        return fresh

    def done(self, client: str) -> None:
        """A worker has reported everything."""
        if part := self._part(client):
            part.over = True

    def failed(self, error: str) -> None:
        """The load cannot be made in some process: the whole run ends, with this trouble in the report once."""
        if self.run is None:
            return
        if error not in self.run.troubles:
            self.run.troubles.append(error)
        self.run.abandoned = True

    def lost(self, alive: Iterable[str]) -> None:
        """Workers with a part that are not `alive` will not report any more; what they owed becomes a trouble."""
        if self.run is None:
            return
        living = set(alive)
        for client, part in self.run.parts.items():
            if not part.over and client not in living:
                part.over = True
                owed = "its whole shard" if part.planned is None else f"{part.planned - part.heard} requests"
                self.run.troubles.append(f"worker {client} was lost, and with it {owed}")
                if self.run.start_unix_ns is None:
                    # the shards are dealt and cannot be dealt anew, so the others would wait for it forever
                    self.failed("the run could not start without that worker")

    def _part(self, client: str) -> Part | None:
        return None if self.run is None else self.run.parts.get(client)
