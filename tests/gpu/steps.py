"""Hears the engine's steps as the proxy would, or counts them on its metrics page: how many by when, and how full."""

import re
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import httpx

from proxy.upstream.step_datagrams import parse
from proxy.upstream.step_log import BUFFER_BYTES, LARGEST_BYTES
from tests.gpu.arithmetic import Curve

LOOK_S = 0.2
PATIENCE_S = 10.0
"""For a step after an instant."""


class Heard(NamedTuple):
    """One step. end: monotonic ns. context: tokens that its decoding sequences had behind them, summed."""

    end: int
    number: int
    prefill: int
    decode: int
    context: int


class NoSteps(Exception):
    """No step was heard of where there must have been some; the message says what to look at."""


class StepCount(Protocol):
    """Where steps are counted."""

    def curve(self) -> Curve:
        """Steps done by when."""

    def fill(self, start: int, end: int) -> tuple[float | None, float | None]:
        """Decode positions and their context tokens per step between two instants; None where nobody says."""


class StepReceiver:
    """Binds the step log's socket while no proxy does. lost: steps it never heard of, though they were numbered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard: list[Heard] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._socket.settimeout(LOOK_S)
        self._socket.bind(str(self._path))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                steps = parse(self._socket.recv(LARGEST_BYTES))
            except TimeoutError:
                continue
            for step in steps:
                prefill, decode = sum(s.prefill for s in step.sequences), sum(s.decode for s in step.sequences)
                context = sum(s.before for s in step.sequences if s.decode)
                self._heard.append(Heard(step.end, step.number, prefill, decode, context))

    def curve(self) -> Curve:
        """Steps done by when, by the engine's own numbering, so that a lost report loses no step."""
        heard = self._heard[:]
        return Curve([step.end for step in heard], [step.number for step in heard])

    @property
    def lost(self) -> int:
        """Steps that were numbered between the first and the last one heard, and not heard."""
        heard = self._heard[:]
        return heard[-1].number - heard[0].number + 1 - len(heard) if heard else 0

    def fill(self, start: int, end: int) -> tuple[float | None, float | None]:
        """Decode positions and their context tokens per step."""
        inside = [step for step in self._heard[:] if start < step.end <= end]
        if not inside:
            return None, None
        return sum(step.decode for step in inside) / len(inside), sum(step.context for step in inside) / len(inside)


class StepPage:
    """Reads vllm:iteration_tokens_total_count again and again, for a server whose step log is not to be heard.

    It counts the steps that gave a token, which in steady decoding are all.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._times: list[int] = []
        self._counts: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not self._over.wait(LOOK_S):
                before = time.monotonic_ns()
                count = series(client.get(f"{self._url}/metrics").text, "iteration_tokens_total_count")
                self._counts.append(count)
                self._times.append((before + time.monotonic_ns()) // 2)

    def curve(self) -> Curve:
        """Steps done by when."""
        times = self._times[:]
        return Curve(times, self._counts[: len(times)])

    def fill(self, start: int, end: int) -> tuple[float | None, float | None]:
        """A page does not say it."""
        return None, None


def series(page: str, name: str) -> float:
    """The sum of a metric of vLLM over its labels, from the text of its metrics page; raises LookupError."""
    found = re.findall(rf"^vllm:{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE)
    if not found:
        raise LookupError(f"the engine's metrics page has no vllm:{name}")
    return sum(map(float, found))


def until(steps: StepCount, when: int) -> Curve:
    """All steps, the last of them after an instant (monotonic ns); raises NoSteps when none comes."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        curve = steps.curve()
        if len(curve.times) > 1 and curve.times[-1] > when:
            return curve
        time.sleep(LOOK_S / 4)
    raise NoSteps("the engine tells no steps: is the plugin of deploy/steplog installed where vLLM is?")
