"""One HTTP/1.1 connection to an engine: requests one after the other, bodies handed on as their bytes come.

The relay spends most of its time here, so there is no task, no queue and no future per piece: what a read brings is
given to the taker at once, in one piece. Parsing is httptools'.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import httptools

from proxy.ports import Sink
from proxy.wire.headers import Headers

MOST_HEAD = 1 << 18
"""Bytes of an answer's head."""


class Broken(Exception):
    """The connection or what came over it ended before the answer did; the message is the reason."""


class Silent(Exception):
    """Nothing came for too long."""


class Connection(asyncio.Protocol):
    """silence_s: seconds without a byte of an awaited answer. on_lost: called when it is closed, by either side.

    status, headers: of the latest answer. reusable: whether that has ended and another may be asked for.
    """

    status: int
    headers: Headers

    def __init__(
        self, loop: asyncio.AbstractEventLoop, silence_s: float, on_lost: Callable[["Connection"], None]
    ) -> None:
        self._loop, self._silence_s, self._on_lost = loop, silence_s, on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._failure: Exception | None = None
        self._begin(bodiless=False)
        self._complete, self.reusable = True, False

    def _begin(self, *, bodiless: bool) -> None:
        self.status, self.headers = 0, []
        self._head_bytes = 0
        self._bodiless, self._to_the_end = bodiless, True
        self._complete = self._slow = self.reusable = False
        self._pieces: list[bytes] = []
        self._sink: Sink | None = None
        self._waits: Awaitable[None] | None = None
        self._turn: asyncio.Future[None] | None = None

    async def ask(self, head: bytes, body: bytes, *, bodiless: bool = False) -> None:
        """Sends a request and waits for the head of its answer. Raises Broken or Silent.

        head: with the empty line. bodiless: the answer has no body whatever its headers say, as to HEAD.
        """
        self._begin(bodiless=bodiless)
        if self._transport is None or self._failure is not None:
            raise self._failure or Broken("it was closed")
        self._transport.write(head)
        if body:
            self._transport.write(body)
        self._heard = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_later(self._silence_s, self._look)
        while not self.status:
            await self._next()

    async def pour(self, sink: Sink) -> None:
        """Hands the body on, until its end. Raises Broken or Silent, after all that came has been handed on."""
        self._sink = sink
        self._hand_on()
        while True:
            if self._waits is not None:
                await self._catch_up()
            elif self._complete:
                return
            else:
                await self._next()

    async def whole(self) -> bytes:
        """The body. Raises as `pour` does."""
        while not self._complete:
            await self._next()
        return b"".join(self._pieces)

    def close(self) -> None:
        """Ends it at once, whatever is under way."""
        self._fail(Broken("it was closed"))

    async def _next(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._turn = self._loop.create_future()
        try:
            await self._turn
        finally:
            self._turn = None

    def _wake(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    async def _catch_up(self) -> None:
        """Waits for a slow taker; meanwhile nothing is read."""
        assert self._waits is not None
        self._slow = True
        if self._transport is not None:
            self._transport.pause_reading()
        try:
            while (waits := self._waits) is not None:
                await waits
                self._waits = None
                self._hand_on(always=True)
        finally:
            self._slow = False
        self._heard = self._loop.time()
        if self._transport is not None:
            self._transport.resume_reading()

    def _hand_on(self, *, always: bool = False) -> None:
        if self._pieces and (always or not self._slow) and self._waits is None and self._sink is not None:
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            try:
                self._waits = self._sink(piece)
            except Exception as error:  # the taker's own; whoever pours shall get it
                self._fail(error)
            if self._waits is not None:
                self._wake()

    def _look(self) -> None:
        """Whether it has been silent for too long."""
        self._watch = None
        if self._complete or self._failure is not None:
            return
        left = self._silence_s - (self._loop.time() - self._heard)
        if left <= 0 and not self._slow:
            self._fail(Silent())
        else:
            self._watch = self._loop.call_later(self._silence_s if self._slow else left, self._look)

    def _fail(self, reason: Exception) -> None:
        if self._failure is None:
            self._failure = reason
            self.reusable = False
            if self._transport is not None:
                self._transport.abort()
            self._wake()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        if self._complete:
            self._fail(Broken("it sent what nobody had asked for"))
            return
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._hand_on()
            self._fail(Broken(type(error).__name__))
            return
        self._hand_on()
        if self._complete:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        if not self._complete and self.status and self._to_the_end and exc is None and self._failure is None:
            self._complete = True
        self._transport = None
        self._fail(Broken(type(exc).__name__ if exc else "it was closed"))
        if self._watch is not None:
            self._watch.cancel()
        self._on_lost(self)

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the head."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MOST_HEAD:
            raise Broken("its head is too long")
        name = name.lower()
        self._to_the_end &= name not in (b"content-length", b"transfer-encoding")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there; one of the kind `100 Continue` is not the answer."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        if self._bodiless or status in (204, 304):
            self._to_the_end = False
        if self._bodiless:
            self._complete = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is over."""
        if self.status and not self._bodiless:
            self._complete = True
            self.reusable = self._parser.should_keep_alive()
