"""Processes that a command starts, waits for and always ends again, newest first."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from proxy.errors import JouleproxyError

STOP_S = 15.0


class ChildFailed(JouleproxyError):
    """A started process ended by itself or never became ready; the message shows the end of its log."""


class Child:
    """One process with its log. It gets a process group of its own, so that its own children end with it.

    A process group, not a session: busy engines starve clients of other sessions under autogroup scheduling.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )

    @property
    def ended(self) -> int | None:
        """Exit status, or None while it runs."""
        return self._process.poll()

    def wait_for(self, url: str, *, timeout_s: float, waiting: Callable[[float], None]) -> None:
        """Returns when `url` answers 200; `waiting` is told the seconds so far. Raises ChildFailed."""
        start = time.monotonic()
        while (elapsed := time.monotonic() - start) < timeout_s:
            if self.ended is not None:
                raise self.failure(f"ended with status {self.ended}")
            try:
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            waiting(elapsed)
            time.sleep(0.2)
        raise self.failure(f"was not ready after {timeout_s:.0f} s")

    def failure(self, what: str) -> ChildFailed:
        """An error that shows the last lines of the log."""
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
        return ChildFailed(f"{self.name} {what}. The end of {self.log}:\n{tail}")

    def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL to the whole group."""
        if self.ended is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # what the process left behind in its own group
            os.killpg(self._process.pid, signal.SIGKILL)


class Children:
    """Ends everything it started, whatever happens."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    def start(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Starts a process that ends with this object."""
        child = Child(name, command, log, environment)
        self._started.append(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._started:
            self._started.pop().stop()


def port_near(wanted: int) -> int:
    """`wanted` if nobody listens there on 127.0.0.1, else a free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise ChildFailed("no port of 127.0.0.1 is free")
