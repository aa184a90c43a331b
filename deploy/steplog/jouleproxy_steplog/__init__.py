"""Hooks vLLM's scheduler, so that each step of the engine is reported to jouleproxy.

    __init__.py   the hook: wraps two methods, and never lets a fault of ours reach the engine
    batch.py      what a step holds: tokens per sequence, read off the scheduler's own output
    sending.py    the wire: one datagram per step to a Unix socket, never waiting

Install it where vLLM is: `pip install ./deploy/steplog`. vLLM loads it in every process of its own (entry point group
`vllm.general_plugins`; where VLLM_PLUGINS is set it must name `jouleproxy_steplog`). It does nothing unless the
environment variable JOULEPROXY_STEP_LOG names the socket that a jouleproxy binds. Where engines are started by Ray,
that variable must reach them too.

Why the methods `Scheduler.schedule` and `Scheduler.update_from_output`: they bound a step in all engine loops, the
synchronous one and the one with a queue of batches (asynchronous scheduling, pipeline parallelism), and are the same in
vLLM 0.26 to 0.33. Wrapped on the class they also cover AsyncScheduler, the diffusion schedulers and every subclass that
calls super(), and leave `--scheduler-cls` and `--kv-transfer-config` to others. A class given by `--scheduler-cls`
that replaces both without calling super() is not seen. Hooks in the workers know no sequences' past, the one for
statistics knows no sequences at all, and a KV connector cannot see when a step's output comes.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from jouleproxy_steplog.batch import Batch, Sequences
from jouleproxy_steplog.sending import Sender, encode

VARIABLE = "JOULEPROXY_STEP_LOG"
FAILURES_IN_A_ROW = 20
"""After so many the reports end: whatever is wrong will not get better."""
MOST_PENDING = 64
"""Steps scheduled and not out yet; the engine's own queue is a few deep, so more are steps that were given up."""
_STEPS = "_jouleproxy_steps"
_WRAPPED = "_jouleproxy_wrapped"
# below vLLM's own logger, whose handler then shows it
_log = logging.getLogger("vllm.jouleproxy_steplog")


class Steps:
    """The steps of one scheduler, from scheduled to reported."""

    def __init__(self, scheduler: Any, path: str) -> None:
        self._engine = rank(scheduler)
        # a random number and not a time: two processes may start at the same instant
        self._boot = int.from_bytes(os.urandom(8), "little")
        self._sequences = Sequences()
        self._sender = Sender(path)
        self._pending: dict[int, tuple[Any, int, Batch]] = {}
        """By the identity of the scheduler's output, which is kept so that no other object takes its place."""
        self._number = 0
        self._end = 0
        self._unread = 0

    def scheduled(self, scheduler: Any, output: Any, called: int) -> bool:
        """Notes what a step will compute; `called`: when its scheduling began, monotonic ns. Always False."""
        batch = self._sequences.read(output, scheduler.requests)
        if batch is None:
            self._sender.rest()
            return False
        self._pending[id(output)] = (output, called, batch)
        if len(self._pending) > MOST_PENDING:
            del self._pending[next(iter(self._pending))]
            self._lose()
        return False

    def came_out(self, arguments: tuple[Any, ...], named: Mapping[str, Any], end: int) -> bool:
        """Reports the step whose output is about to be taken in; `end`: now, monotonic ns. False if there is none."""
        output = arguments[0] if arguments else named["scheduler_output"]
        noted = self._pending.pop(id(output), None)
        if noted is None:
            if output.num_scheduled_tokens:
                self._lose()
            return False
        _, called, batch = noted
        # scheduled ahead, a step waits for the one before it
        start, self._end = max(called, self._end), end
        self._number += 1
        try:
            dropped = self._unread + self._sender.dropped
            self._sender.send(encode(self._engine, self._boot, self._number, start, end, dropped, batch))
        except BaseException:
            self._unread += 1
            raise
        return True

    def _lose(self) -> None:
        """A step that nobody will hear of; its number is used up, so that the gap tells of it."""
        self._number += 1
        self._unread += 1


class Guard:
    """Stands between our faults and the engine: counts them, and ends the reports when they do not cease."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._failures = 0
        self._told = False

    def run(self, scheduler: Any, work: Callable[[Steps], bool]) -> None:
        """Does the work with the scheduler's steps; lets out nothing but a wish to stop."""
        if self._failures >= FAILURES_IN_A_ROW:
            return
        try:
            if work(steps_of(scheduler, self._path)):
                self._failures = 0
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            self._failed()

    def _failed(self) -> None:
        self._failures += 1
        if not self._told:
            self._told = True
            _log.warning("a step could not be read; the engine is not affected", exc_info=True)
        if self._failures == FAILURES_IN_A_ROW:
            _log.warning("steps are no longer reported: %d in a row could not be read", FAILURES_IN_A_ROW)


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


def steps_of(scheduler: Any, path: str) -> Steps:
    """The steps of this scheduler; made on first use, which is in the process that runs it, after all forks."""
    steps: Steps | None = getattr(scheduler, _STEPS, None)
    if steps is None:
        steps = Steps(scheduler, path)
        setattr(scheduler, _STEPS, steps)
    return steps


def hook(scheduler_class: Any, path: str) -> None:
    """Wraps the class's two methods; what they return or raise is untouched. A second call does nothing."""
    schedule, update_from_output = scheduler_class.schedule, scheduler_class.update_from_output
    if hasattr(schedule, _WRAPPED):
        return
    guard = Guard(path)

    @functools.wraps(schedule)
    def schedule_and_note(self: Any, *arguments: Any, **named: Any) -> Any:
        called = time.monotonic_ns()
        output = schedule(self, *arguments, **named)
        guard.run(self, lambda steps: steps.scheduled(self, output, called))
        return output

    @functools.wraps(update_from_output)
    def report_and_update(self: Any, *arguments: Any, **named: Any) -> Any:
        end = time.monotonic_ns()
        guard.run(self, lambda steps: steps.came_out(arguments, named, end))
        return update_from_output(self, *arguments, **named)

    setattr(schedule_and_note, _WRAPPED, True)
    scheduler_class.schedule, scheduler_class.update_from_output = schedule_and_note, report_and_update


def register() -> None:
    """The entry point; vLLM calls it in each of its processes, and an exception would end that process."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        # here and not above: this module must load where there is no vLLM, or another one
        from vllm.v1.core.sched.scheduler import Scheduler

        hook(Scheduler, path)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        _log.warning("steps are not reported: vLLM has no scheduler of a known kind", exc_info=True)
