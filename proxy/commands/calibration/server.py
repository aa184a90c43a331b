"""The engine that is calibrated: who it is, whether anything runs on it, and what its own counters say."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.errors import ConfigurationError, JouleproxyError
from proxy.ports import Clock
from proxy.upstream.client import EngineClient
from proxy.upstream.engine_metrics import read_counters
from proxy.upstream.engine_steps import read_steps

LOOKS = 5
"""At a server that must be quiet."""


class CalibrationFailed(JouleproxyError):
    """The load ran and gave nothing that may be written; the message says why."""


class OtherTraffic(ConfigurationError):
    """Somebody else uses the server."""


@dataclass(frozen=True, slots=True)
class Card:
    """A model as the server lists it. root: where it was loaded from. max_model_len: tokens of prompt and answer."""

    model: str
    root: str | None
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Look:
    """The server's counters at one instant. steps: see engine_steps; None where it does not tell."""

    at: Nanoseconds
    counters: EngineCounters
    steps: float | None

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return self.counters.running + self.counters.waiting > 0


class Server:
    """One engine by its pages."""

    def __init__(self, engine: EngineClient, url: str, clock: Clock) -> None:
        self.engine = engine
        self.url = url
        self._clock = clock

    async def card(self, wanted: str | None) -> Card:
        """The model to calibrate: the one that is wanted, else the first. Raises ConfigurationError or RequestError."""
        page = await self.engine.page("/v1/models")
        try:
            listed: list[dict[str, Any]] = json.loads(page or b"")["data"]
            names = [str(one["id"]) for one in listed]
        except (ValueError, KeyError, TypeError):
            listed, names = [], []
        if not listed:
            raise ConfigurationError(
                f"{self.url} lists no model at /v1/models: is it a vLLM server, and the key right?"
            )
        if wanted is not None and wanted not in names:
            raise ConfigurationError(f"{self.url} does not serve {wanted!r}; it serves: {', '.join(names)}")
        found = listed[names.index(wanted)] if wanted is not None else listed[0]
        length, root = found.get("max_model_len"), found.get("root")
        if not isinstance(length, int):
            raise ConfigurationError(
                f"{self.url} does not tell the max_model_len of {found['id']}: is it a vLLM server?"
            )
        return Card(str(found["id"]), root if isinstance(root, str) else None, length)

    async def look(self) -> Look:
        """The counters now. Raises ConfigurationError where the server does not tell them, or RequestError."""
        before = self._clock()
        page = await self.engine.page("/metrics", timeout_s=10.0)
        at = Nanoseconds((before + self._clock()) // 2)
        counters = None if page is None else read_counters(page, at)
        if page is None or counters is None:
            raise ConfigurationError(
                f"{self.url}/metrics does not tell vLLM's counters, so other traffic could not be seen: "
                "start vLLM without --disable-log-stats"
            )
        return Look(at, counters, read_steps(page))

    async def quiet(self, watched_s: float) -> Look:
        """Makes sure that nothing else runs for so long. Raises OtherTraffic."""
        first = await self.look()
        now = first
        for _ in range(LOOKS - 1):
            if now.busy:
                break
            await asyncio.sleep(watched_s / (LOOKS - 1))
            now = await self.look()
        tokens = (now.counters.generation_tokens - first.counters.generation_tokens) + (
            now.counters.prompt_tokens - first.counters.prompt_tokens
        )
        if now.busy or tokens:
            raise OtherTraffic(
                f"{self.url} is in use ({now.counters.running:.0f} requests run, {now.counters.waiting:.0f} wait, "
                f"{tokens:.0f} tokens in {watched_s:g} s): calibrate while nothing else runs there"
            )
        return now

    async def drained(self, timeout_s: float, pause_s: float = 0.05) -> Look:
        """Waits until nothing runs any more. Raises CalibrationFailed where it does not come to rest."""
        deadline = self._clock() + round(timeout_s * 1e9)
        while (now := await self.look()).busy:
            if self._clock() > deadline:
                raise CalibrationFailed(
                    f"other traffic: {now.counters.running:.0f} requests still run and {now.counters.waiting:.0f} wait "
                    f"{timeout_s:.0f} s after the load's own have ended"
                )
            await asyncio.sleep(pause_s)
        return now


class Strangers:
    """Finds requests on the server that are not the load's own.

    own: how many sequences of the load may be there now, those that have just ended too.
    """

    def __init__(self, server: Server, own: Callable[[], int]) -> None:
        self._server = server
        self._own = own
        self._excess = 0

    async def look(self) -> Look:
        """A look during the load. Raises CalibrationFailed when twice in a row more runs than was sent."""
        before = self._own()
        now = await self._server.look()
        there = now.counters.running + now.counters.waiting
        self._excess = self._excess + 1 if there > max(before, self._own()) else 0
        if self._excess >= 2:
            raise CalibrationFailed(
                f"other traffic: {there:.0f} requests on the server, {self._own()} of them sent here"
            )
        return now

    @staticmethod
    def compare(before: Look, after: Look, prompt_tokens: int) -> None:
        """Raises CalibrationFailed where the server has read more than was sent between two quiet instants."""
        read = after.counters.prompt_tokens - before.counters.prompt_tokens
        made = after.counters.generation_tokens - before.counters.generation_tokens
        if read < 0 or made < 0:
            raise CalibrationFailed("the server was restarted during the load: its counters fell")
        if read > prompt_tokens:
            raise CalibrationFailed(
                f"other traffic: the server read {read:.0f} prompt tokens, and {prompt_tokens} were sent from here"
            )
