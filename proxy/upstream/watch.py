"""Keeps an eye on the engines: who is up, what they serve, and what their own counters say."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping

from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.errors import RequestError
from proxy.upstream.client import EngineClient
from proxy.upstream.engine_metrics import read_counters
from proxy.upstream.pool import Pool

_log = logging.getLogger(__name__)
MODELS_EVERY = 15
"""Health checks between two looks at /v1/models, so that adapters loaded later are found."""


class Watch:
    """Periodic looks at every engine. on_counters gets None when a page could not be read.

    on_root gets the path or name an engine loaded its model from, once for each.
    """

    def __init__(
        self,
        engines: Mapping[str, EngineClient],
        pool: Pool,
        *,
        clock: Callable[[], Nanoseconds],
        on_counters: Callable[[str, EngineCounters | None, Nanoseconds], None],
        on_root: Callable[[str, str], None],
    ) -> None:
        self._engines = engines
        self._pool = pool
        self._clock = clock
        self._on_counters = on_counters
        self._on_root = on_root
        self._checks: dict[str, int] = {}
        self._roots: dict[str, str] = {}

    async def check(self, name: str) -> bool:
        """One health check; says whether the engine is up and logs a change."""
        healthy, models = False, None
        try:
            healthy = await self._engines[name].page("/health") is not None
            if healthy and self._checks.get(name, 0) % MODELS_EVERY == 0:
                models = self._models(name, await self._engines[name].page("/v1/models"))
        except RequestError:
            healthy = False
        self._checks[name] = self._checks.get(name, 0) + 1 if healthy else 0
        if self._pool.checked(name, healthy, models):
            _log.warning("backend %s is %s", name, "up again" if healthy else "down")
        return healthy

    def _models(self, name: str, page: bytes | None) -> frozenset[str] | None:
        try:
            listed = json.loads(page or b"")["data"]
            ids = frozenset(str(model["id"]) for model in listed)
        except (ValueError, KeyError, TypeError):
            return None
        for model in listed:
            root = model.get("root")
            if isinstance(root, str):
                if self._roots.get(name) != root:
                    self._roots[name] = root
                    self._on_root(name, root)
                break
        return ids

    async def scrape(self, name: str) -> None:
        """One look at the engine's counters."""
        counters: EngineCounters | None = None
        before = self._clock()
        try:
            page = await self._engines[name].page("/metrics", timeout_s=2.0)
        except RequestError:
            page = None
        took = self._clock() - before
        at = Nanoseconds(before + took // 2)
        if page is not None:
            counters = read_counters(page, at, blur=took // 2)
        self._on_counters(name, counters, at)

    async def repeat(self, look: Callable[[str], Awaitable[object]], period_s: float) -> None:
        """`look` at every engine, each on its own, until cancelled."""

        async def one(name: str) -> None:
            while True:
                await look(name)
                await asyncio.sleep(period_s)

        async with asyncio.TaskGroup() as group:
            for name in self._engines:
                group.create_task(one(name))
