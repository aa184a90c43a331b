"""Sends the requests of a calibration straight to the engine and notes when their tokens came."""

import asyncio
import json
import random
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from proxy.accounting.flight import Flight
from proxy.accounting.units import MILLISECOND, Nanoseconds
from proxy.commands.calibration.server import CalibrationFailed
from proxy.commands.calibration.timetable import Part
from proxy.ports import Clock, Engine
from proxy.wire import usage
from proxy.wire.sse import DONE, EventSplitter, data_of

TOKEN_IDS = range(300, 1_000)
"""Every vocabulary has these, and none of them is special in those we know."""
ENDED = Nanoseconds(150 * MILLISECOND)
"""The engine may count a request for so long after its end was heard here."""


@dataclass(eq=False, slots=True)
class Slot:
    """A place in the engine's batch that one request after another takes. begun: the first token of it has come."""

    part: Part
    prompt: list[int] | None
    begun: asyncio.Event


class Load:
    """All that has been sent. requests: how many. flights: those since the last `forget`.

    on_sent: hears of each request before it is sent.
    """

    def __init__(
        self, engine: Engine, model: str, clock: Clock, source: random.Random, on_sent: Callable[[Flight], None]
    ) -> None:
        self.requests = 0
        self.flights: list[Flight] = []
        self._engine = engine
        self._model = model
        self._clock = clock
        self._source = source
        self._on_sent = on_sent
        self._open = 0
        self._ended: deque[Nanoseconds] = deque()
        self._kept: dict[int, list[int]] = {}

    def prompt(self, tokens: int) -> list[int]:
        """Of that length, and so random that no cache has its beginning."""
        return self._source.choices(TOKEN_IDS, k=tokens)

    def own(self) -> int:
        """Requests that the engine may hold: the open ones, and those that ended a moment ago."""
        recent = self._clock() - ENDED
        while self._ended and self._ended[0] < recent:
            self._ended.popleft()
        return self._open + len(self._ended)

    def forget(self) -> None:
        """Drops what was noted of requests that are over."""
        self.flights = [flight for flight in self.flights if flight.ended is None]

    def slots(self, part: Part) -> list[Slot]:
        """The places that a part takes. A kept prompt is the same each time, so that the cache has it."""
        return [Slot(part, self._kept_prompt(number, part), asyncio.Event()) for number in range(part.slots)]

    def _kept_prompt(self, number: int, part: Part) -> list[int] | None:
        if not part.kept:
            return None
        if number not in self._kept or len(self._kept[number]) != part.prompt:
            self._kept[number] = self.prompt(part.prompt)
        return self._kept[number]

    async def fill(self, slot: Slot, stopping: asyncio.Event) -> None:
        """Asks again and again until told to stop; an answer of one token is waited for, a longer one is broken off."""
        part, times = slot.part, 0
        while not stopping.is_set():
            prompt = slot.prompt or self.prompt(part.prompt)
            asking = asyncio.ensure_future(self.ask(prompt, part.tokens, slot.begun, again=times > 0 and part.kept))
            try:
                await _until(asking, None if part.tokens == 1 else stopping)
            finally:
                asking.cancel()
                await asyncio.wait([asking])
            times += 1

    async def ask(self, prompt: list[int], tokens: int, begun: asyncio.Event, *, again: bool = False) -> Flight:
        """One request, to its end. again: the cache has the prompt, should the engine not say so.

        Raises CalibrationFailed when the server refuses it or breaks it off, and RequestError.
        """
        name = f"calibrate-{secrets.token_hex(8)}"
        flight = Flight(name, name, self._clock(), prompt_estimate=len(prompt), cached_part=float(again))
        self.requests += 1
        self._open += 1
        self.flights.append(flight)
        self._on_sent(flight)
        headers = [(b"content-type", b"application/json"), (b"x-request-id", name.encode())]
        try:
            async with self._engine.ask("POST", "/v1/completions", headers, self._body(prompt, tokens)) as answer:
                if answer.status != 200:
                    said = (await answer.whole())[:300].decode(errors="replace")
                    raise CalibrationFailed(f"the server refused a request of the load with {answer.status}: {said}")
                await answer.pour(self._listener(flight, begun))
            if flight.ended is None:
                raise CalibrationFailed("the server ended an answer before it was complete")
        finally:
            flight.end(self._clock(), "aborted")
            self._open -= 1
            self._ended.append(self._clock())
        return flight

    def _body(self, prompt: list[int], tokens: int) -> bytes:
        fields = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        return json.dumps(fields).encode()

    def _listener(self, flight: Flight, begun: asyncio.Event) -> Callable[[bytes], None]:
        """What takes the answer's pieces."""
        splitter = EventSplitter()

        def take(chunk: bytes) -> None:
            at = self._clock()
            for event in splitter.feed(chunk):
                data = data_of(event)
                if data == DONE:
                    flight.end(at, "ok")
                    return
                self._count(flight, begun, data, at)

        return take

    def _count(self, flight: Flight, begun: asyncio.Event, data: bytes, at: Nanoseconds) -> None:
        place = usage.locate(data)
        if place is None:
            if data.startswith(b'{"error"'):
                raise CalibrationFailed(f"the server broke off: {data[:300].decode(errors='replace')}")
            return
        counts = usage.read(data, place)
        flight.prompt_tokens = counts.prompt if counts.prompt is not None else flight.prompt_tokens
        flight.cached_tokens = counts.cached if counts.cached is not None else flight.cached_tokens
        if counts.completion:
            flight.tick(at, counts.completion)
            begun.set()


async def _until(asking: "asyncio.Future[Flight]", stopping: asyncio.Event | None) -> None:
    """Waits for the answer, or until told to stop; raises what the asking raised."""
    if stopping is None:
        await asking
        return
    told = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((asking, told), return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
    if asking.done():
        asking.result()
