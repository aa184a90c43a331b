"""What the plugin costs an engine step: python -m tests.steplog.overhead

Prints microseconds of processor time a step, by sequences in it, of a steady decode, and their share of a decode step
of a dense 8B model on one H100, taken as STEP_S: first with every step sent at once to a process that takes it, then as
they are gathered when steps follow each other as fast as here. Caches are warm here: on a real engine (on_engine.py)
the same costs more.
"""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tests.steplog.conftest  # noqa: F401  (makes the plugin importable)
from tests.steplog.fake_scheduler import SchedulerBase

STEPS, WARM_UP = 2_000, 100
STEP_S = {1: 0.008, 32: 0.010, 256: 0.020, 1024: 0.050}
"""Seconds, by sequences."""


def step_s(path: str | None, sequences: int, hold_ns: int = 0) -> float:
    """Seconds a step, of the fake scheduler alone or with the plugin."""
    from jouleproxy_steplog import hook, steps

    class Scheduler(SchedulerBase):
        pass

    if path is not None:
        steps.HOLD_NS = hold_ns
        hook(Scheduler, path)
    scheduler = Scheduler()
    for number in range(sequences):
        scheduler.add(f"chatcmpl-3f0c9f0e-5d0a-4d2b-8f3e-{number:012x}-0badcafe", 100)
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            began = time.thread_time()  # what others do on the machine shall not count
        scheduler.update_from_output(scheduler.schedule())
        scheduler.updated.clear()
    return (time.thread_time() - began) / STEPS


@contextmanager
def receiving(path: str) -> Iterator[None]:
    """A process that takes all datagrams, as the proxy does; a thread would fight for the interpreter."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        child = os.fork()
        if child == 0:
            buffer = bytearray(1 << 20)
            while receiver.recv_into(buffer):
                pass
            os._exit(0)
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main() -> None:
    """Prints the table."""
    from jouleproxy_steplog import steps

    hold_ns = steps.HOLD_NS
    print("sequences  alone µs sent at once µs  share of a step     gathered µs  share of a step")
    for sequences, real_s in STEP_S.items():
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "steps.sock")
            with receiving(path):
                alone_s = step_s(None, sequences)
                costs_s = [step_s(path, sequences, hold) - alone_s for hold in (0, hold_ns)]
        figures = "".join(f"{cost_s * 1e6:16.1f} {cost_s / real_s:16.2%}" for cost_s in costs_s)
        print(f"{sequences:9d} {alone_s * 1e6:9.1f}{figures}")


if __name__ == "__main__":
    main()
