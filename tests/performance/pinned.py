"""A program on a core of its own, with its children, and what it uses."""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
UP_S = 60.0
STOP_S = 10.0


class DidNotStart(Exception):
    """The program ended or said nothing in time; the message ends with what it wrote."""


class Pinned:
    """Runs until the context is left; all of its processes stay on one core. log: where its output goes."""

    def __init__(self, command: Sequence[str | Path], core: int, log: Path, environment: Mapping[str, str]) -> None:
        self._command, self._core, self.log = [str(part) for part in command], core, log
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        core = self._core
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(core), *self._command],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                process_group=0,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._pids():
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    continue
            try:
                process.wait(STOP_S)
                return
            except subprocess.TimeoutExpired:
                continue

    def check(self) -> None:
        """Raises DidNotStart if it is gone."""
        if self._process is None or self._process.poll() is not None:
            raise DidNotStart(f"{self._command[0]} ended: {self.said()}")

    def said(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-2000:]

    def cpu_s(self) -> float:
        """Processor seconds used so far, user and system, by it and its children."""
        return sum(_cpu_s(pid) for pid in self._pids())

    def memory_bytes(self) -> int:
        """Resident memory of all its processes; pages that they share count for each."""
        return sum(_memory_bytes(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        """It and all below it."""
        assert self._process is not None
        found = [self._process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += [int(child) for child in children.read_text().split()]
                except OSError:
                    continue
        return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_S


def _memory_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Ready:
    """Whether a chat request is answered at a port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self) -> bool:
        asked = {"model": "mock", "messages": [{"role": "user", "content": "up?"}], "max_tokens": 1, "seed": 0}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            headers = {"content-type": "application/json", "authorization": "Bearer none"}
            connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def wait_until(ready: Ready, program: Pinned) -> None:
    """Raises DidNotStart."""
    deadline = time.monotonic() + UP_S
    while not ready():
        program.check()
        if time.monotonic() > deadline:
            raise DidNotStart(f"nothing answered within {UP_S:.0f} s: {program.said()}")
        time.sleep(0.05)
