"""The worker's side of a run: takes its shard, waits for the start, plays it, and reports what became of it.

Between worker and conductor (which is the master, or the same process in a local run) go these messages:

    worker to conductor                              conductor to worker
    loadgen-hello   wants work                       loadgen-shard   run_id, shard, shards
    loadgen-ready   requests, span_ns, facts          loadgen-go      start_unix_ns
    loadgen-news    outcomes, sent, in_flight, cpu
    loadgen-done    everything has been reported
    loadgen-failed  why no load can be made
"""

import gc
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.pool import Group

from loadgen.endpoint import Endpoint
from loadgen.errors import LoadError
from loadgen.options import read_options
from loadgen.outcome import Outcome, to_json
from loadgen.replay import replay
from loadgen.rows import log_outcome
from loadgen.sender import Sender
from loadgen.shard import Request, Shard, Ticket, find_target, make_shard

NEWS_EVERY_S = 0.5

Tell = Callable[[str, dict[str, Any]], None]


class Player:
    """Plays this process's part of one run at a time; all users of a process share it, and only the first plays."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._ticket: AsyncResult = AsyncResult()
        self._start: AsyncResult = AsyncResult()
        self._sending = Group()
        self._fresh: list[Outcome] = []
        self._sent = 0
        self._load = ProcessorLoad()
        self._busy = False

    def listen(self, runner: Any) -> None:
        """Register for the conductor's messages."""
        runner.register_message("loadgen-shard", lambda environment, msg: self._ticket.set(msg.data))
        runner.register_message("loadgen-go", lambda environment, msg: self._start.set(msg.data))

    def play(self, client: Any, base_url: str) -> None:
        """One run against `base_url` from hello to done; returns at once if this process plays already.

        What prevents the load is told to the conductor.
        """
        if self._busy:
            return
        self._busy = True
        self._ticket, self._start = AsyncResult(), AsyncResult()
        self._fresh, self._sent, self._load = [], 0, ProcessorLoad()
        try:
            self._play(client, base_url)
        except LoadError as error:
            self._tell("loadgen-failed", {"error": str(error)})
        finally:
            self._sending.kill()
            self._busy = False

    def _play(self, client: Any, base_url: str) -> None:
        options = read_options(self._environment.parsed_options)
        endpoint = Endpoint(base_url, options.api_key)
        self._tell("loadgen-hello", {})
        ticket = Ticket(**self._ticket.get())
        shard = make_shard(options, ticket, find_target(endpoint, options))
        _settle_memory()
        span_ns = max((request.due_ns for request in shard.requests), default=0)
        self._tell("loadgen-ready", {"requests": len(shard.requests), "span_ns": span_ns, "facts": list(shard.facts)})
        start = _on_this_clock(self._start.get()["start_unix_ns"])
        sender = Sender(
            client,
            endpoint.base_url,
            api_key=options.api_key,
            max_in_flight=options.max_in_flight,
            clock=time.monotonic_ns,
            start=start,
        )
        self._load = ProcessorLoad()  # without the making of the prompts
        self._send_all(shard, sender, start)

    def _send_all(self, shard: Shard, sender: Sender, start: int) -> None:
        news = gevent.spawn(self._report_forever, sender)
        try:
            replay(
                [request.due_ns for request in shard.requests],
                start=start,
                clock=time.monotonic_ns,
                sleep=gevent.sleep,
                begin=lambda k: self._begin(sender, shard.requests[k], start),
            )
            self._sending.join()
        finally:
            news.kill()
            self._report(sender)
        self._tell("loadgen-done", {})

    def _begin(self, sender: Sender, request: Request, start: int) -> None:
        self._sent += 1
        self._sending.spawn(self._send, sender, request, start)

    def _send(self, sender: Sender, request: Request, start: int) -> None:
        outcome = sender.send(request)
        log_outcome(self._environment, outcome, time.monotonic_ns() - start)
        self._fresh.append(outcome)

    def _report_forever(self, sender: Sender) -> None:
        while True:
            gevent.sleep(NEWS_EVERY_S)
            self._report(sender)

    def _report(self, sender: Sender) -> None:
        fresh, self._fresh = self._fresh, []
        news = {
            "outcomes": [to_json(outcome) for outcome in fresh],
            "sent": self._sent,
            "in_flight": sender.in_flight,
            "cpu_percent": self._load.percent(),
        }
        self._tell("loadgen-news", news)

    def _tell(self, kind: str, data: dict[str, Any]) -> None:
        self._environment.runner.send_message(kind, data)


class ProcessorLoad:
    """The share of one core this process has used since it was last reset."""

    def __init__(self) -> None:
        self._since = (time.monotonic(), time.process_time())

    def percent(self) -> float:
        """0 to 100; more only for what runs in other threads."""
        since_s, used_s = self._since
        return 100 * (time.process_time() - used_s) / max(1e-9, time.monotonic() - since_s)


def _settle_memory() -> None:
    """Keep the collector's full passes, 40 to 90 ms each, out of the run: the schedule and its bodies stay anyway."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)


def _on_this_clock(unix_ns: int) -> int:
    """A wall clock instant on this process's monotonic clock; hosts are as far apart as their wall clocks."""
    return time.monotonic_ns() + unix_ns - time.time_ns()
