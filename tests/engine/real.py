"""The real vLLM server with the tiny model, started as a process of its own and stopped without leaving one behind."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).parents[2]
VENV = REPOSITORY / ".venv-vllm"

START_TIMEOUT_S = 240.0
"""A start takes 30 to 40 s on two idle cores."""


class EngineNotInstalled(Exception):
    """The virtual environment of vLLM is missing."""


class EngineFailed(Exception):
    """The server did not come up; the message ends with the last lines of its log."""


def interpreter() -> Path:
    """The Python of vLLM's own environment; raises EngineNotInstalled."""
    python = VENV / "bin" / "python"
    if not python.exists():
        raise EngineNotInstalled(f"no vLLM in {VENV}: run deploy/engine install (deploy/test does)")
    return python


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RealEngine:
    """One server process (which starts two more), listening on a free port of 127.0.0.1."""

    def __init__(self, log: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """Takes the file to log to, and options for `vllm serve` beyond those of `deploy/engine serve`.

        environment: variables beyond those of this process, as JOULEPROXY_STEP_LOG.
        """
        self.log = log
        self.port = free_port()
        self._options = options
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Starts the server and waits until it is healthy; raises EngineNotInstalled or EngineFailed."""
        self.begin()
        try:
            self.wait_until_healthy(timeout_s)
        except BaseException:
            self.stop()
            raise

    def begin(self) -> None:
        """Starts the server without waiting, so that a test can do something else meanwhile."""
        interpreter()
        script = str(REPOSITORY / "deploy" / "engine")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [script, "serve", "--port", str(self.port), *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # A group lets us find the children again. A session of its own would starve the tests: the scheduler
                # shares time between sessions, and this one's processes poll.
                process_group=0,
            )

    def wait_until_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits for /health to say 200; raises EngineFailed when the process ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not self._healthy():
            if self._running.poll() is not None:
                raise EngineFailed(f"vLLM ended with status {self._running.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise EngineFailed(f"vLLM was not healthy after {timeout_s:.0f} s\n{self.log_tail()}")
            time.sleep(0.2)

    def stop(self, timeout_s: float = 20.0) -> None:
        """Ends the server with SIGTERM and kills whatever of it is left after that."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.kill()

    def kill(self) -> None:
        """Kills the server and its children at once, as a machine that loses power does."""
        process, self._process = self._running, None
        with contextlib.suppress(ProcessLookupError):  # the group is empty when all have ended by themselves
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_engine_core(self) -> None:
        """Kills the processes that compute and spares the one that speaks HTTP, which then reports their death."""
        for child in children(self._running.pid):
            os.kill(child, signal.SIGKILL)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def cpu_s(self) -> float:
        """Processor time of all its processes that run."""
        return sum(map(_ticks, (self._running.pid, *_below(self._running.pid)))) / os.sysconf("SC_CLK_TCK")

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the real engine is not running")
        return self._process

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def children(pid: int) -> Iterable[int]:
    """The processes a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _below(pid: int) -> Iterable[int]:
    """Its children, theirs, and so on, whichever of a process's threads started them."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _below(int(child))


def _ticks(pid: int) -> int:
    # The name, in brackets, may hold spaces; user and system time are the 14th and 15th field.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
