"""Hooks vLLM's scheduler, so that each step of the engine is reported to jouleproxy.

    __init__.py   the hook: wraps two methods, and never lets a fault of ours reach the engine
    steps.py      notes steps, and reads what was noted a few dozen times a second
    batch.py      what a step holds: tokens per sequence, read off the scheduler's own output
    parcel.py     several steps in one datagram
    sending.py    the wire: datagrams to a Unix socket, never waiting
    telling.py    what is said in vLLM's log

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
from typing import Any

from jouleproxy_steplog.steps import FAILURES_IN_A_ROW, Guard, Steps
from jouleproxy_steplog.telling import tell

VARIABLE = "JOULEPROXY_STEP_LOG"
_STEPS = "_jouleproxy_steps"
_WRAPPED = "_jouleproxy_wrapped"


def hook(scheduler_class: Any, path: str) -> None:
    """Wraps the class's two methods; what they return or raise is untouched. A second call does nothing."""
    if hasattr(scheduler_class.schedule, _WRAPPED):
        return
    guard = Guard()
    scheduler_class.schedule = _noting_begin(scheduler_class.schedule, path, guard)
    scheduler_class.update_from_output = _noting_end(scheduler_class.update_from_output, path, guard)


def _noting_begin(schedule: Any, path: str, guard: Guard) -> Any:
    @functools.wraps(schedule)
    def schedule_and_note(self: Any, *arguments: Any, **named: Any) -> Any:
        called = time.monotonic_ns()
        output = schedule(self, *arguments, **named)
        if guard.failures < FAILURES_IN_A_ROW:
            try:
                steps = getattr(self, _STEPS, None) or _steps_of(self, path, guard)
                steps.scheduled(self, output, called)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                guard.failed()
        return output

    setattr(schedule_and_note, _WRAPPED, True)
    return schedule_and_note


def _noting_end(update_from_output: Any, path: str, guard: Guard) -> Any:
    @functools.wraps(update_from_output)
    def note_and_update(self: Any, *arguments: Any, **named: Any) -> Any:
        end = time.monotonic_ns()
        if guard.failures < FAILURES_IN_A_ROW:
            try:
                steps = getattr(self, _STEPS, None) or _steps_of(self, path, guard)
                steps.came_out(arguments[0] if arguments else named["scheduler_output"], end)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                guard.failed()
        return update_from_output(self, *arguments, **named)

    return note_and_update


def _steps_of(scheduler: Any, path: str, guard: Guard) -> Steps:
    """The steps of this scheduler; made on first use, which is in the process that runs it, after all forks."""
    steps = Steps(scheduler, path, guard)
    setattr(scheduler, _STEPS, steps)
    return steps


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
        tell(logging.WARNING, "steps are not reported: vLLM has no scheduler of a known kind", exc_info=True)
