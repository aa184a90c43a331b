"""Load for a vLLM or for the proxy in front of one: requests of exact lengths, held, offered at a rate, or mixed."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from tests.gpu.engine import Served

LOOK_S = 0.1
FILL_PATIENCE_S = 60.0
LEAVE_AFTER = 20
"""Pieces of an answer after which a client that leaves has seen enough."""


class LoadFailed(Exception):
    """The server refused a request, or the batch never filled."""


@dataclass
class Load:
    """Clients of one URL. sent: ids of all requests that were answered to their end."""

    served: Served
    url: str
    seed: int = 1
    sent: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.random = random.Random(self.seed)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(600, pool=None), limits=httpx.Limits(max_connections=None), trust_env=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    def fresh(self, tokens: int) -> list[int]:
        """A prompt that nobody has sent before, as token numbers."""
        return [self.random.randrange(300, 2000) for _ in range(tokens)]

    async def ask(
        self, prompt: list[int], tokens: int, *, stream: bool = True, leave: bool = False, **fields: Any
    ) -> None:
        """One answer of exactly so many tokens. leave: hang up early; such a request is not in `sent`."""
        name = uuid.uuid4().hex
        body: dict[str, Any] = {
            "model": self.served.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": stream,
        }
        headers = {"x-request-id": name}
        async with self._client.stream(
            "POST", f"{self.url}/v1/completions", json=body | fields, headers=headers
        ) as answer:
            if answer.status_code != 200:
                raise LoadFailed(f"{answer.status_code}: {(await answer.aread()).decode(errors='replace')[:500]}")
            seen = 0
            async for _ in answer.aiter_raw():
                seen += 1
                if leave and seen >= LEAVE_AFTER:
                    return
        self.sent.append(name)

    @asynccontextmanager
    async def held(
        self, streams: int, prompt: int, shortest: int, longest: int, *, stream: bool
    ) -> AsyncIterator[None]:
        """Keeps so many answers running, one after another of random length; open once all of them run."""

        async def client() -> None:
            while True:
                await self.ask(self.fresh(prompt), self.random.randint(shortest, longest), stream=stream)

        tasks = [asyncio.create_task(client()) for _ in range(streams)]
        try:
            await self._filled(tasks)
            yield
            raise_failed(tasks)
        finally:
            await dropped(tasks)
            await self._emptied()

    async def _filled(self, tasks: list[asyncio.Task[None]]) -> None:
        deadline = asyncio.get_running_loop().time() + FILL_PATIENCE_S
        while True:
            running, waiting = await asyncio.to_thread(self.served.running)
            if running >= len(tasks) and not waiting:
                return
            raise_failed(tasks)
            if asyncio.get_running_loop().time() > deadline:
                raise LoadFailed(f"{len(tasks)} answers never ran together: {running} ran and {waiting} waited")
            await asyncio.sleep(LOOK_S)

    async def _emptied(self) -> None:
        for _ in range(round(FILL_PATIENCE_S / LOOK_S)):
            if await asyncio.to_thread(self.served.running) == (0, 0):
                return
            await asyncio.sleep(LOOK_S)
        raise LoadFailed("the engine still runs what its clients have left")

    @asynccontextmanager
    async def offered(self, rate_per_s: float, ask: Callable[[], Awaitable[None]]) -> AsyncIterator[list[int]]:
        """Sends one request every 1 / rate seconds, answered or not; gives the list of what was sent when (loop ns).

        What runs at the end is waited for, so that the next stretch begins without it.
        """
        sent: list[int] = []
        tasks: list[asyncio.Task[None]] = []

        async def offer() -> None:
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                tasks.append(asyncio.create_task(_awaited(ask())))
                sent.append(round(loop.time() * 1e9))
                due += 1 / rate_per_s
                await asyncio.sleep(max(0.0, due - loop.time()))

        offering = asyncio.create_task(offer())
        try:
            yield sent
            raise_failed([offering])
        finally:
            await dropped([offering])
            await asyncio.gather(*tasks)


async def _awaited(what: Awaitable[None]) -> None:
    await what


def raise_failed(tasks: list[asyncio.Task[None]]) -> None:
    """Raises what one of them has died of; none of them ends by itself."""
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


async def dropped(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels them, which hangs up on the server."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def mixed(load: Load, clients: int, seconds: float, pause_s: float) -> int:
    """Requests of all kinds for so long, with two pauses in which nothing runs; how many were sent."""
    loop = asyncio.get_running_loop()
    agent = load.fresh(load.served.fits(3000, 0.4))
    sent = 0
    for _ in range(3):
        until = loop.time() + (seconds - 2 * pause_s) / 3

        async def client(until: float = until) -> int:
            asked = 0
            while loop.time() < until:
                await one_of_many(load, agent)
                asked += 1
            return asked

        sent += sum(await asyncio.gather(*(client() for _ in range(clients))))
        await asyncio.sleep(pause_s)
    return sent


async def one_of_many(load: Load, agent: list[int]) -> None:
    """One request of a random kind."""
    number, fits = load.random, load.served.fits
    kind = number.choice(("chat", "chat", "chat", "long", "agent", "agent", "several", "silent", "leaves"))
    prompt = load.fresh(number.randint(30, fits(600, 0.3)))
    answer = number.randint(50, fits(300, 0.2))
    if kind == "long":
        await load.ask(load.fresh(number.randint(fits(2000, 0.3), fits(6000, 0.7))), number.randint(10, 60))
    elif kind == "agent":
        await load.ask(agent + load.fresh(number.randint(20, 100)), number.randint(40, 120))
    elif kind == "several":
        await load.ask(prompt, answer, n=2, temperature=1.0)
    else:
        await load.ask(prompt, answer, stream=kind != "silent", leave=kind == "leaves")
