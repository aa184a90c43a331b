"""The independent reader of a GPU's energy counter: a process of its own, with its own connection to the driver.

    python -m tests.gpu.edges GPU-UUID FILE [--poll 0.02]

It knows nothing of the proxy. FILE gets one line for each change of the counter: monotonic nanoseconds (the clock is
one for all processes of a machine) and millijoules. It ends with SIGTERM, or with the process that started it.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.engine.real import REPOSITORY
from tests.gpu.arithmetic import Curve

POLL_S = 0.02
PATIENCE_S = 10.0
"""For the first edges, and for one after an instant: boards move their counter every 20 to 100 ms."""


class ReaderFailed(Exception):
    """The other process gave no edges; the message ends with what it said."""


class CounterFell(Exception):
    """The counter went back within a run: the driver was reloaded, and the run is worth nothing."""


def parsed(text: str) -> Curve:
    """The edges in a file as joules; raises CounterFell. A last line without its end is still being written.

    The first line is the first look and no change, so it is left out.
    """
    lines = text[: text.rfind("\n") + 1].splitlines()
    times: list[int] = []
    values: list[float] = []
    last_mj: int | None = None
    for at, counter_mj in (map(int, line.split()) for line in lines):
        if last_mj is not None:
            if counter_mj < last_mj:
                raise CounterFell(f"from {last_mj} to {counter_mj} mJ")
            times.append(at)
            values.append(counter_mj / 1000)
        last_mj = counter_mj
    return Curve(times, values)


class Reader:
    """The process and what it has written so far."""

    def __init__(self, gpu: str, file: Path) -> None:
        self._file = file
        self._command = [sys.executable, "-m", "tests.gpu.edges", gpu, str(file)]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._file.write_text("")
        self._process = subprocess.Popen(self._command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        try:
            self.until(time.monotonic_ns())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            with self._process:
                self._process.terminate()

    def until(self, when: int) -> Curve:
        """All edges, the last of them after an instant (monotonic ns); raises ReaderFailed when none comes."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            curve = parsed(self._file.read_text())
            if len(curve.times) > 1 and curve.times[-1] > when:
                return curve
            if self._process.poll() is not None:
                raise ReaderFailed(f"the reader ended: {self._process.stderr and self._process.stderr.read()}")
            time.sleep(POLL_S)
        raise ReaderFailed(f"the energy counter has not moved for {PATIENCE_S:g} s")


def write_edges(gpu: str, file: Path, poll_s: float) -> None:
    """Reads the counter until the starter is gone."""
    import pynvml  # the starter needs only what was written

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByUUID(gpu)
    starter = os.getppid()
    last_mj = None
    with file.open("a", buffering=1) as out:
        while os.getppid() == starter:
            before = time.monotonic_ns()
            counter_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
            if counter_mj != last_mj:
                out.write(f"{(before + time.monotonic_ns()) // 2} {counter_mj}\n")
                last_mj = counter_mj
            time.sleep(poll_s)


def main() -> None:
    """Reads the arguments and then the counter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpu", metavar="GPU-UUID")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--poll", type=float, default=POLL_S, metavar="SECONDS")
    given = parser.parse_args()
    write_edges(given.gpu, given.file, given.poll)


if __name__ == "__main__":
    main()
