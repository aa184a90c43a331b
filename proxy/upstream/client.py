"""Talks to one engine over HTTP: connections of our own for the relay, httpx for small pages of the engine's.

Header names and bodies pass as they are; what belongs to one connection only (hop-by-hop) does not.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx

from proxy.errors import BackendFailed, BackendTimeout, Refused
from proxy.ports import Sink
from proxy.upstream.connection import Broken, Connection, Silent
from proxy.wire.headers import Headers, end_to_end

IDLE_S = 4.0
"""uvicorn, and so vLLM, closes a connection that was idle for five seconds: a request shall not meet that."""
MOST_IDLE = 512
"""Connections."""


class Answer:
    """One answer, from its head on. Reading its body raises BackendTimeout or BackendFailed."""

    def __init__(self, connection: Connection, backend: str) -> None:
        self.status, self.headers = connection.status, end_to_end(connection.headers)
        self._connection, self._backend = connection, backend

    async def whole(self) -> bytes:
        """The body."""
        with _named(self._backend):
            return await self._connection.whole()

    async def pour(self, sink: Sink) -> None:
        """Hands the body on as it comes, undecoded, until its end."""
        with _named(self._backend):
            await self._connection.pour(sink)


class Asking:
    """One request under way: the context of its answer."""

    def __init__(self, client: "EngineClient", head: bytes, body: bytes, *, bodiless: bool) -> None:
        self._client, self._head, self._body, self._bodiless = client, head, body, bodiless
        self._connection: Connection | None = None

    async def __aenter__(self) -> Answer:
        connection = self._connection = await self._client.connection()
        try:
            with _named(self._client.name):
                await connection.ask(self._head, self._body, bodiless=self._bodiless)
        except BaseException:
            connection.close()
            raise
        return Answer(connection, self._client.name)

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._client.give_back(self._connection)


@contextmanager
def named_failures(backend: str) -> Iterator[None]:
    """Turns httpx's exceptions into ours, naming the backend."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _refused(backend, error) from error
    except httpx.TimeoutException as error:
        raise BackendTimeout(f"The backend {backend} did not answer in time.") from error
    except httpx.HTTPError as error:
        raise BackendFailed(f"The backend {backend} broke off the connection ({type(error).__name__}).") from error


@contextmanager
def _named(backend: str) -> Iterator[None]:
    """The same for a connection's."""
    try:
        yield
    except Silent as error:
        raise BackendTimeout(f"The backend {backend} did not answer in time.") from error
    except Broken as error:
        raise BackendFailed(f"The backend {backend} broke off the connection ({error}).") from error


def _refused(backend: str, error: Exception) -> Refused:
    return Refused(f"The backend {backend} cannot be reached ({type(error).__name__}). Is its vLLM running?")


class EngineClient:
    """Connections to one engine, kept alive between requests; as many at once as there are requests.

    api_key: sent instead of whatever key the client sent.
    """

    def __init__(
        self, base_url: str, name: str, *, connect_timeout_s: float, answer_timeout_s: float, api_key: str | None = None
    ) -> None:
        url = urlsplit(base_url)
        self._base, self.name = base_url, name
        self._path = url.path.rstrip("/").encode()
        self._host, self._port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        self._authority = url.netloc.rpartition("@")[2].encode()
        self._tls = httpx.create_ssl_context(trust_env=False) if url.scheme == "https" else None
        self._own: Headers = [] if api_key is None else [(b"authorization", b"Bearer " + api_key.encode())]
        self._connect_s, self._answer_s = connect_timeout_s, answer_timeout_s
        self._open: set[Connection] = set()
        self._idle: dict[Connection, float] = {}
        self._pages = httpx.AsyncClient(timeout=answer_timeout_s, trust_env=False)

    def ask(self, method: str, target: str, headers: Headers, body: bytes) -> "Asking":
        """One request; leaving the context closes the connection if the answer was not read to its end.

        target: path with query, sent as it is. Raises Refused, BackendTimeout or BackendFailed.
        """
        return Asking(self, self._head(method, target, headers, len(body)), body, bodiless=method == "HEAD")

    async def connection(self) -> Connection:
        """One that is free, or a new one. Raises Refused."""
        return self._kept() or await self._connect()

    def give_back(self, connection: Connection) -> None:
        """Keeps it for the next request, if it can be used again."""
        if connection.reusable and len(self._idle) < MOST_IDLE:
            self._idle[connection] = asyncio.get_running_loop().time()
        else:
            connection.close()

    def _head(self, method: str, target: str, headers: Headers, size: int) -> bytes:
        if self._own:
            headers = [*(pair for pair in headers if pair[0] not in (b"authorization", b"x-api-key")), *self._own]
        lines = [b"%s %s%s HTTP/1.1" % (method.encode(), self._path, target.encode("latin-1"))]
        lines.append(b"host: " + self._authority)
        lines += [b"%s: %s" % pair for pair in headers]
        if size or method in ("POST", "PUT", "PATCH"):
            lines.append(b"content-length: %d" % size)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _kept(self) -> Connection | None:
        """The connection used last, if it has not been idle for too long."""
        while self._idle:
            connection, since = self._idle.popitem()
            if connection.reusable and asyncio.get_running_loop().time() - since < IDLE_S:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, self._answer_s, self._lost), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError, ssl.SSLError) as error:
            raise _refused(self.name, error) from error
        self._open.add(connection)
        return connection

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)

    async def page(self, path: str, *, timeout_s: float = 5.0) -> bytes | None:
        """A small page of the engine's own (health, models, metrics), or None if its status is not 200.

        Raises as `ask` does.
        """
        with named_failures(self.name):
            response = await self._pages.get(self._base + path, headers=self._own, timeout=timeout_s)
        return response.content if response.status_code == 200 else None

    async def close(self) -> None:
        """Closes all connections."""
        for connection in list(self._open):
            connection.close()
        await self._pages.aclose()
