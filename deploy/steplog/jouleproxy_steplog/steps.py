"""The steps of one scheduler: noted while the engine waits, read and sent together a few dozen times a second."""

import logging
import os
from typing import Any

from jouleproxy_steplog.batch import NOTHING, Batch, Seen, Sequences, seen_with_new
from jouleproxy_steplog.parcel import Parcel
from jouleproxy_steplog.sending import Sender
from jouleproxy_steplog.telling import tell

FAILURES_IN_A_ROW = 20
"""After so many the reports end: whatever is wrong will not get better."""
MOST_NOTED = 200
"""Steps begun or ended that are kept unread."""
MOST_PENDING = 64
"""Steps scheduled and not out yet; the engine's own queue is a few deep, so more are steps that were given up."""
HOLD_NS = 20_000_000
"""Steps that end so soon after the latest datagram are gathered for the next one."""
LATEST_NS = 40_000_000
"""What is gathered goes before a step that will probably not end within so long after the latest datagram."""


class Guard:
    """Stands between our faults and the engine: counts them, and ends the reports when they do not cease."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row: those since something was sent."""
        self._told = False

    def failed(self) -> None:
        """To be called where an exception is handled."""
        self.failures += 1
        if not self._told:
            self._told = True
            tell(logging.WARNING, "a step could not be read; the engine is not affected", exc_info=True)
        if self.failures == FAILURES_IN_A_ROW:
            tell(logging.WARNING, "steps are no longer reported: %d in a row could not be read", FAILURES_IN_A_ROW)


class Steps:
    """The steps of one scheduler, from scheduled to reported.

    While the engine waits a step is only noted. All that were noted are read together, a few dozen times a second: what
    takes 3 microseconds in a loop takes 15 between two runs of a model, which leaves nothing of ours in the caches.
    """

    def __init__(self, scheduler: Any, path: str, guard: Guard) -> None:
        self._noted: list[tuple[int, int, Seen | None]] = []
        """Of a step the identity of the scheduler's output, when its scheduling began, and what is in it; and again its
        identity and when its output was there, with None."""
        self._sent = -LATEST_NS
        self._guard = guard
        self._engine = rank(scheduler)
        # a random number and not a time: two processes may start at the same instant
        self._boot = int.from_bytes(os.urandom(8), "little")
        self._requests = scheduler.requests
        self._sequences = Sequences()
        self._sender = Sender(path)
        self._pending: dict[int, tuple[int, Batch]] = {}
        """Steps that are not out, by the identity of their output, which the engine keeps as long."""
        self._parcel = Parcel()
        self._lasted = 0
        self._pace = 0.0
        """Nanoseconds a token of the latest step; a later step may last so long for each of its own."""
        self._number = 0
        self._end = 0
        self._unread = 0

    def scheduled(self, scheduler: Any, output: Any, called: int) -> None:
        """Notes what a step will compute; `called`: when its scheduling began, monotonic ns."""
        cached, tokens = output.scheduled_cached_reqs, output.num_scheduled_tokens
        if output.scheduled_new_reqs or cached.resumed_req_ids:
            self._noted.append((id(output), called, seen_with_new(output, scheduler.requests)))
            if called - self._sent + max(self._pace * sum(tokens.values()), self._lasted) > LATEST_NS:
                self._report(called)
            return
        seen = (output.finished_req_ids, cached.req_ids, cached.num_computed_tokens, tokens, NOTHING)
        self._noted.append((id(output), called, seen))
        if not tokens:
            self._rest(called)
        elif len(self._noted) > MOST_NOTED:
            self._report(called)

    def came_out(self, output: Any, end: int) -> None:
        """Notes that a step's output is about to be taken in; `end`: now, monotonic ns."""
        if output.num_scheduled_tokens:
            self._noted.append((id(output), end, None))
            if end - self._sent >= HOLD_NS:
                self._report(end)
        else:
            self._rest(end)

    def _rest(self, now: int) -> None:
        """No step may follow for long."""
        self._report(now)
        self._sender.rest()

    def _report(self, now: int) -> None:
        """Reads and sends all that was noted."""
        noted, self._noted = self._noted, []
        for output, at, seen in noted:
            try:
                if seen is None:
                    self._end_step(output, at)
                else:
                    self._begin_step(output, at, seen)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                self._guard.failed()
        if self._parcel.steps:
            self._send(now)

    def _begin_step(self, output: int, called: int, seen: Seen) -> None:
        batch = self._sequences.read(seen, self._requests)
        if batch is None:
            return
        if self._pending.pop(output, None) is not None:
            self._lose()
        self._pending[output] = (called, batch)
        if len(self._pending) > MOST_PENDING:
            del self._pending[next(iter(self._pending))]
            self._lose()

    def _end_step(self, output: int, end: int) -> None:
        begun = self._pending.pop(output, None)
        if begun is None:
            self._lose()
            return
        called, batch = begun
        # scheduled ahead, a step waits for the one before it
        start, self._end = max(called, self._end), end
        self._number += 1
        try:
            self._parcel.add(self._number, start, end, batch)
        except BaseException:
            self._unread += 1
            raise
        self._lasted = end - start
        self._pace = self._lasted / batch.tokens
        if self._parcel.full:
            self._send(end)

    def _send(self, now: int) -> None:
        parcel, self._parcel, self._sent = self._parcel, Parcel(), now
        try:
            dropped = self._unread + self._sender.dropped
            self._sender.send(parcel.datagram(self._engine, self._boot, dropped), parcel.steps)
        except BaseException:
            self._unread += parcel.steps
            raise
        self._guard.failures = 0

    def _lose(self) -> None:
        """A step that nobody will hear of; its number is used up, so that the gap tells of it."""
        self._number += 1
        self._unread += 1


def rank(scheduler: Any) -> int:
    """The number of this engine among the data-parallel ones, else 0.

    data_parallel_rank is 0 in all replicas of a dense model; only data_parallel_index tells them apart.
    """
    parallel = scheduler.vllm_config.parallel_config
    for name in ("data_parallel_index", "data_parallel_rank"):
        value = getattr(parallel, name, None)
        if isinstance(value, int):
            return value
    return 0
