"""What the plugin costs an engine step: python -m tests.steplog.overhead

Prints microseconds a step, by sequences in it, of a steady decode whose every step is sent at once to a process that
takes it, and their share of a decode step of a dense 8B model on one H100, taken as STEP_S. The figures wander by a
third on a busy machine.
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


def step_s(path: str | None, sequences: int) -> float:
    """Seconds a step, of the fake scheduler alone or with the plugin."""
    from jouleproxy_steplog import hook, sending

    class Scheduler(SchedulerBase):
        pass

    if path is not None:
        sending.HOLD_S = 0.0
        hook(Scheduler, path)
    scheduler = Scheduler()
    for number in range(sequences):
        scheduler.add(f"chatcmpl-3f0c9f0e-5d0a-4d2b-8f3e-{number:012x}-0badcafe", 100)
    spent = 0.0
    for step in range(STEPS):
        began = time.perf_counter()
        scheduler.update_from_output(scheduler.schedule())
        if step >= WARM_UP:
            spent += time.perf_counter() - began
        scheduler.updated.clear()
    return spent / (STEPS - WARM_UP)


@contextmanager
def receiving(path: str) -> Iterator[None]:
    """A process that takes all datagrams, as the proxy does; a thread would fight for the interpreter."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        child = os.fork()
        if child == 0:
            while receiver.recv(1 << 20):
                pass
            os._exit(0)
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main() -> None:
    """Prints the table."""
    print("sequences  alone µs  with µs  plugin µs  share of a step")
    for sequences, real_s in STEP_S.items():
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "steps.sock")
            with receiving(path):
                alone_s, plugged_s = step_s(None, sequences), step_s(path, sequences)
        cost_s = plugged_s - alone_s
        figures = f"{alone_s * 1e6:9.1f} {plugged_s * 1e6:8.1f} {cost_s * 1e6:10.1f} {cost_s / real_s:16.2%}"
        print(f"{sequences:9d} {figures}")


if __name__ == "__main__":
    main()
