"""
Work without a task goes as far as with one, and a client that has gone ends the work for it.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from proxy.asgi import DIRECT, AsgiClient, Gone, at_once

pytestmark = pytest.mark.unit
DISCONNECT = {"type": "http.disconnect"}


async def nothing(_: Any) -> None:
    """Takes any message."""


def client(scope: dict[str, Any] | None = None, send: Any = nothing) -> AsgiClient:
    return AsgiClient(scope or {}, send, "r")


def test_work_that_never_waits_is_done_at_once() -> None:
    """
    Without an event loop, even.
    """
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    assert at_once(work()) is None
    assert done == [1]


def test_an_error_comes_at_once() -> None:
    """
    As from a function.
    """

    async def work() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        at_once(work())


@pytest.mark.parametrize("fails", [False, True])
def test_the_rest_is_awaited(fails: bool) -> None:
    """
    From the first wait on, over further ones, to its end or its error.
    """
    done: list[str] = []

    async def work(first: asyncio.Event) -> None:
        done.append("begun")
        await first.wait()
        await asyncio.sleep(0)
        if fails:
            raise LookupError("mine")
        done.append("over")

    async def run() -> None:
        event = asyncio.Event()
        rest = at_once(work(event))
        assert rest is not None
        assert done == ["begun"]
        event.set()
        await rest

    if fails:
        with pytest.raises(LookupError, match="mine"):
            asyncio.run(run())
    else:
        asyncio.run(run())
        assert done == ["begun", "over"]


def test_who_is_cancelled_cancels_the_rest() -> None:
    """
    The work may put things in order, as in a task.
    """
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("in order")

    async def run() -> None:
        rest = at_once(work())
        assert rest is not None
        waiting = asyncio.ensure_future(_awaited(rest))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(run())
    assert done == ["in order"]


async def _awaited(work: Awaitable[None]) -> None:
    await work


def test_a_piece_goes_the_short_way_where_there_is_one() -> None:
    """
    And the usual way where the listener has none, or cannot take it now.
    """
    direct: list[bytes] = []
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message["body"])

    def write(body: bytes) -> bool:
        direct.append(body)
        return body != b"later"

    short = client({"extensions": {DIRECT: {"write": write}}}, send)
    for one, body in ((short, b"now"), (short, b"later"), (client({}, send), b"plain")):
        assert one.write(body) is None

    assert (direct, sent) == ([b"now", b"later"], [b"later", b"plain"])


def test_when_the_client_goes_its_work_is_cancelled() -> None:
    """
    And only that: the task goes on afterwards.
    """

    async def run() -> str:
        left = asyncio.Event()

        async def receive() -> Any:
            await left.wait()
            return DISCONNECT

        gone = Gone(receive, client())
        asyncio.get_running_loop().call_soon(left.set)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert gone.happened
        finally:
            gone.forget()
        await asyncio.sleep(0)
        return "went on"

    assert asyncio.run(run()) == "went on"


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_end_of_an_answer_is_no_departure(when: str) -> None:
    """
    ASGI says "disconnect" then, too, just before the exchange is forgotten or just after.
    """

    async def run() -> None:
        ended = asyncio.Event()

        async def receive() -> Any:
            await ended.wait()
            return DISCONNECT

        one = client()
        gone = Gone(receive, one)
        await one.finish()
        ended.set()
        if when == "before":
            await asyncio.sleep(0)
        gone.forget()
        await asyncio.sleep(0)
        assert not gone.happened

    asyncio.run(run())


def test_a_receive_that_only_takes_its_turn_is_waited_for() -> None:
    """
    Not every server waits on a future.
    """

    async def run() -> None:
        async def receive() -> Any:
            await asyncio.sleep(0)
            return DISCONNECT

        gone = Gone(receive, client())
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        gone.forget()
        assert gone.happened

    asyncio.run(run())
