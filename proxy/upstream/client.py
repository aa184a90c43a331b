"""Talks to one engine over HTTP: the only file that knows httpx on the relay's path.

Header names and bodies pass as they are; what belongs to one connection only (hop-by-hop) does not.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx

from proxy.errors import BackendFailed, BackendTimeout, Refused
from proxy.wire.headers import Headers, end_to_end


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an engine's answer; `chunks` gives its body as it comes, undecoded."""

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]


@contextmanager
def named_failures(backend: str) -> Iterator[None]:
    """Turns httpx's exceptions into ours, naming the backend."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Refused(
            f"The backend {backend} cannot be reached ({type(error).__name__}). Is its vLLM running?"
        ) from error
    except httpx.TimeoutException as error:
        raise BackendTimeout(f"The backend {backend} did not answer in time.") from error
    except httpx.HTTPError as error:
        raise BackendFailed(f"The backend {backend} broke off the connection ({type(error).__name__}).") from error


class EngineClient:
    """Connections to one engine, kept alive between requests; as many at once as there are requests.

    api_key: sent instead of whatever key the client sent.
    """

    def __init__(
        self, base_url: str, name: str, *, connect_timeout_s: float, answer_timeout_s: float, api_key: str | None = None
    ) -> None:
        self._base = base_url
        self._path = httpx.URL(base_url).raw_path.rstrip(b"/")
        self._name = name
        self._own: Headers = [] if api_key is None else [(b"authorization", b"Bearer " + api_key.encode())]
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(answer_timeout_s, connect=connect_timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=512, keepalive_expiry=4.0),
            trust_env=False,
        )

    @asynccontextmanager
    async def ask(self, method: str, target: str, headers: Headers, body: bytes) -> AsyncIterator[Answer]:
        """One request; leaving the context closes the connection if the answer was not read to its end.

        target: path with query, sent as it is. Raises Refused, BackendTimeout or BackendFailed.
        """
        if self._own:
            headers = [*(pair for pair in headers if pair[0] not in (b"authorization", b"x-api-key")), *self._own]
        # A URL would be normalised by httpx (dots resolved, characters quoted); the extension is not.
        as_it_is = {"target": self._path + target.encode("latin-1")}
        request = httpx.Request(method, self._base, headers=headers, content=body, extensions=as_it_is)
        with named_failures(self._name):
            response = await self._client.send(request, stream=True)
        try:
            yield Answer(response.status_code, end_to_end(response.headers.raw), self._chunks(response))
        finally:
            await response.aclose()

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        with named_failures(self._name):
            async for chunk in response.aiter_raw():
                yield chunk

    async def page(self, path: str, *, timeout_s: float = 5.0) -> bytes | None:
        """A small page of the engine's own (health, models, metrics), or None if its status is not 200.

        Raises as `ask` does.
        """
        with named_failures(self._name):
            response = await self._client.get(self._base + path, headers=self._own, timeout=timeout_s)
        return response.content if response.status_code == 200 else None

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()
