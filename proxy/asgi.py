"""The client's end of one exchange, as ASGI shows it: what is sent to it, and whether it is still there."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, cast

from starlette.types import Receive, Scope, Send

from proxy.errors import RequestError
from proxy.wire.energy import error_body
from proxy.wire.headers import Headers

DIRECT = "jouleproxy.direct"
"""The ASGI extension by which the proxy's own listener lets pieces of a body be written at once."""
Direct = Callable[[bytes], bool]
"""Writes a piece of the body, of unknown length; False where that must wait or go another way."""


class AsgiClient:
    """The client's end of one ASGI exchange. Adds x-request-id to whatever is answered."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._send = send
        self._direct: Direct | None = (scope.get("extensions") or {}).get(DIRECT, {}).get("write")
        self._request_id = request_id
        self.started = self.finished = False

    async def start(self, status: int, headers: Headers) -> None:
        """Sends the head."""
        self.started = True
        kept = [pair for pair in headers if pair[0] != b"x-request-id"]
        kept.append((b"x-request-id", self._request_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": kept})

    async def send(self, body: bytes) -> None:
        """Sends a piece of the body; waits while the client reads more slowly than it comes."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def write(self, body: bytes) -> Awaitable[None] | None:
        """The same at once; where the client reads more slowly than it comes, gives the rest, to be awaited."""
        if self._direct is not None and self._direct(body):
            return None
        return at_once(self.send(body))

    async def finish(self, body: bytes = b"") -> None:
        """Ends the body, with a last piece."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, error: RequestError, *, close: bool) -> None:
        """Answers with OpenAI's error object. close: and ends the connection."""
        body = error_body(error.message, type=error.type, code=error.code, param=error.param)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.start(error.status, [*headers, (b"connection", b"close")] if close else headers)
        await self.finish(body)


class Gone:
    """Cancels the task that makes it when the client has gone; happened: it has. The request was read to its end."""

    def __init__(self, receive: Receive, client: AsgiClient) -> None:
        self.happened = False
        self._client = client
        self._task = asyncio.current_task()
        self._forgotten = False
        self._steps = receive().__await__()
        self._go_on()

    def forget(self) -> None:
        """The exchange is over."""
        self._forgotten = True
        self._steps.close()
        if self.happened and self._task is not None:
            self._task.uncancel()

    def _go_on(self) -> None:
        """Waits without a task: one more for every request costs more than all that is done here."""
        try:
            waits = cast("asyncio.Future[object] | None", next(self._steps))
        except StopIteration:
            # After the answer's end ASGI says the same.
            self.happened = not self._client.finished
            if self.happened and self._task is not None:
                self._task.cancel()
            return
        loop = asyncio.get_running_loop()
        if waits is None:
            loop.call_soon(self._resume)
        else:
            waits.add_done_callback(self._resume)

    def _resume(self, *_: object) -> None:
        if not self._forgotten:
            self._go_on()


def at_once(work: Awaitable[object]) -> Awaitable[None] | None:
    """Does work without a task as far as it goes. None if it has ended, else the rest, to be awaited.

    Raises what it raises.
    """
    steps = work.__await__()
    try:
        waits = next(steps)
    except StopIteration:
        return None
    return _Rest(steps, waits)


class _Rest:
    """Work that has begun, from its first wait on."""

    def __init__(self, steps: Generator[Any, Any, object], waits: Any) -> None:
        self._steps, self._waits = steps, waits

    def __await__(self) -> Generator[Any, Any, None]:
        steps, waits = self._steps, self._waits
        try:
            while True:
                try:
                    got = yield waits
                except BaseException as error:
                    waits = steps.throw(error)
                else:
                    waits = steps.send(got)
        except StopIteration:
            return
