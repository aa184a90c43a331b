"""
An answer is the same wherever the network cuts its bytes, however its end is told, and however slow its taker is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.connection import MOST_HEAD, Broken, Connection, Silent

pytestmark = pytest.mark.unit
HEAD = b"HTTP/1.1 200 OK\r\nX-Kind: caf\xe9\r\n"


class Wire(asyncio.Transport):
    """What the connection writes, and whether it wants to read."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = self.paused = False

    def write(self, data: Any) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def connected(silence_s: float = 60.0) -> tuple[Connection, Wire, list[Connection]]:
    lost: list[Connection] = []
    wire, connection = Wire(), Connection(asyncio.get_running_loop(), silence_s, lost.append)
    connection.connection_made(wire)
    return connection, wire, lost


def chunked(pieces: list[bytes]) -> bytes:
    parts = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"".join(parts) + b"0\r\n\r\n"


def measured(body: bytes) -> bytes:
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, number = [], 0
    while data:
        size = sizes[number % len(sizes)]
        pieces, data, number = [*pieces, data[:size]], data[size:], number + 1
    return pieces


async def answered(connection: Connection, pieces: list[bytes], *, close: bool = False) -> bytes:
    """Asks, and pours out the body while the pieces come one by one."""
    taken: list[bytes] = []

    async def listen() -> None:
        await connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"")
        await connection.pour(taken.append)

    listening = asyncio.ensure_future(listen())
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
        await asyncio.sleep(0)
    if close:
        connection.connection_lost(None)
    await listening
    return b"".join(taken)


BODIES = st.lists(st.binary(max_size=60), min_size=1, max_size=6)
SIZES = st.lists(st.integers(1, 80), min_size=1, max_size=8)


@given(BODIES, SIZES, st.sampled_from(["chunks", "length", "close"]), st.booleans())
def test_any_cut_gives_the_same_answer(pieces: list[bytes], sizes: list[int], end: str, early: bool) -> None:
    """
    With a length, in chunks or until the connection closes; a note like 100 Continue before it is no answer.
    """
    body = b"".join(pieces)
    whole = {"chunks": chunked(pieces), "length": measured(body), "close": HEAD + b"\r\n" + body}[end]
    whole = b"HTTP/1.1 100 Continue\r\nx-note: 1\r\n\r\n" * early + whole

    async def run() -> None:
        connection, _, _ = connected()
        assert body == await answered(connection, cut(whole, sizes), close=end == "close")
        assert (connection.status, connection.headers[0]) == (200, (b"x-kind", b"caf\xe9"))
        assert connection.reusable == (end != "close")

    asyncio.run(run())


def test_requests_follow_each_other() -> None:
    """
    Over one connection, and what is written is what was given.
    """

    async def run() -> None:
        connection, wire, _ = connected()
        for body in (b"one", b"two"):
            assert body == await answered(connection, [measured(body)])
        assert wire.sent == 2 * b"GET / HTTP/1.1\r\n\r\n"

    asyncio.run(run())


def test_a_slow_taker_stops_the_reading() -> None:
    """
    Nothing is handed on while it is busy; then all that came goes in one piece, in order.
    """

    async def run() -> None:
        connection, wire, _ = connected()
        taken: list[bytes] = []
        free = asyncio.Event()

        def take(piece: bytes) -> Awaitable[None] | None:
            taken.append(piece)
            return None if free.is_set() else _until(free)

        asking = asyncio.ensure_future(connection.ask(b"", b""))
        await asyncio.sleep(0)
        connection.data_received(HEAD + b"content-length: 6\r\n\r\nab")
        await asking
        pouring = asyncio.ensure_future(connection.pour(take))
        for piece in (b"cd", b"ef"):
            await asyncio.sleep(0)
            connection.data_received(piece)
        await asyncio.sleep(0)
        assert (taken, wire.paused, pouring.done()) == ([b"ab"], True, False)

        free.set()
        await pouring
        assert (taken, wire.paused) == ([b"ab", b"cdef"], False)

    asyncio.run(run())


async def _until(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.parametrize("given", [b"", HEAD, measured(b"abc")[:-1], chunked([b"abc"])[:-5], b"nonsense\r\n\r\n"])
def test_what_ends_too_early_is_broken_and_closed(given: bytes) -> None:
    """
    Before the head, within the body, or no HTTP at all; nobody may ask again.
    """

    async def run() -> None:
        connection, _, lost = connected()
        with pytest.raises(Broken):
            await answered(connection, [given] if given else [], close=True)
        assert (connection.reusable, lost) == (False, [connection])
        with pytest.raises(Broken):
            await connection.ask(b"", b"")

    asyncio.run(run())


def test_what_came_before_the_break_is_handed_on() -> None:
    """
    A client shall get every token that the engine has sent.
    """

    async def run() -> None:
        connection, _, _ = connected()
        taken: list[bytes] = []
        asking = asyncio.ensure_future(connection.ask(b"", b""))
        await asyncio.sleep(0)
        connection.data_received(chunked([b"abc"])[:-5])
        connection.connection_lost(ConnectionResetError())
        await asking
        with pytest.raises(Broken, match="ConnectionResetError"):
            await connection.pour(taken.append)
        assert taken == [b"abc"]

    asyncio.run(run())


def test_the_takers_own_error_reaches_who_pours() -> None:
    """
    It is not lost in the event loop, and the engine is left at once.
    """

    async def run() -> None:
        connection, wire, _ = connected()

        def take(_: bytes) -> None:
            raise LookupError("mine")

        asking = asyncio.ensure_future(connection.ask(b"", b""))
        await asyncio.sleep(0)
        connection.data_received(HEAD + b"content-length: 9\r\n\r\nab")
        await asking
        with pytest.raises(LookupError, match="mine"):
            await connection.pour(take)
        assert wire.aborted

    asyncio.run(run())


def test_a_head_without_end_is_refused() -> None:
    """
    An engine gone mad must not fill the memory.
    """

    async def run() -> None:
        connection, wire, _ = connected()
        asking = asyncio.ensure_future(connection.ask(b"", b""))
        await asyncio.sleep(0)
        line = b"x-more: " + b"y" * 1000 + b"\r\n"
        connection.data_received(HEAD + line * (MOST_HEAD // 1000 + 1))
        with pytest.raises(Broken):
            await asking
        assert wire.aborted

    asyncio.run(run())


def test_bytes_nobody_asked_for_end_a_connection() -> None:
    """
    They would be taken for the next request's answer.
    """

    async def run() -> None:
        connection, wire, _ = connected()
        await answered(connection, [measured(b"abc")])
        assert connection.reusable
        connection.data_received(measured(b"more"))
        assert (connection.reusable, wire.aborted) == (False, True)

    asyncio.run(run())


def test_an_answer_to_head_has_no_body() -> None:
    """
    Whatever length it tells.
    """

    async def run() -> None:
        connection, _, _ = connected()
        asking = asyncio.ensure_future(connection.ask(b"", b"", bodiless=True))
        await asyncio.sleep(0)
        connection.data_received(HEAD + b"content-length: 500\r\n\r\n")
        await asking
        assert (await connection.whole(), connection.reusable) == (b"", False)

    asyncio.run(run())


class Loop:
    """An event loop's clock and timers, moved by hand."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, list[tuple[float, Callable[[], None]]]()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + delay, call))

    def create_future(self) -> "asyncio.Future[None]":
        return asyncio.get_running_loop().create_future()

    def pass_by(self, seconds: float) -> None:
        """Time passes; what is due is called."""
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, call in due:
            call()


@pytest.mark.parametrize("steps", [[3.1], [2.0, 3.1]])
def test_silence_is_told_from_slowness(steps: list[float]) -> None:
    """
    Three seconds without a byte are too many; bytes now and then are not.
    """

    async def run() -> None:
        loop = Loop()
        connection = Connection(loop, 3.0, lambda _: None)  # type: ignore[arg-type]
        connection.connection_made(Wire())
        asking = asyncio.ensure_future(connection.ask(b"", b""))
        await asyncio.sleep(0)
        for step in steps[:-1]:
            loop.pass_by(step)
            connection.data_received(b"HTTP/1.1 ")
        loop.pass_by(2.0)
        await asyncio.sleep(0)
        assert not asking.done()
        loop.pass_by(steps[-1])
        with pytest.raises(Silent):
            await asking

    asyncio.run(run())
