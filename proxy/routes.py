"""The traffic listener's edge: who may ask, how large, and errors in OpenAI's words; the rest is the relay's."""

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.asgi import AsgiClient, Gone
from proxy.errors import BodyTooLarge, NotFound, RequestError, Unauthorized
from proxy.ports import Clock
from proxy.relay import Incoming, Relay
from proxy.wire.headers import Headers, end_to_end, value_of

_log = logging.getLogger(__name__)
PASSED = (
    "/v1/",
    "/v2/rerank",
    "/tokenize",
    "/detokenize",
    "/version",
    "/ping",
    "/load",
    "/score",
    "/rerank",
    "/pooling",
)
"""Paths of vLLM that pass; /v1/ with all below it."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_OWN = frozenset((b"host", b"content-length", b"accept-encoding", b"expect", b"x-energy", b"x-request-id"))
_KEYS = (b"authorization", b"x-api-key")
DRAINED = 256 * 1024 * 1024
"""Bytes of a refused body that are read and thrown away, so that the client gets to read the refusal."""


class ClientGone(Exception):
    """The client left before its request was complete."""


class Tenants:
    """Keys to names. Without any tenant everybody is `default` and keys pass on to the engine.

    configured: keys are asked for, even if there is none that anybody could give.
    """

    def __init__(self, by_digest: Mapping[str, str], digest: Callable[[str], str], *, configured: bool = False) -> None:
        self.configured = configured or bool(by_digest)
        self._by_digest = by_digest
        self._digest = digest

    def name_of(self, headers: Headers) -> str:
        """The tenant whose key a request brings, as OpenAI's or as Anthropic's clients send it.

        Raises Unauthorized.
        """
        if not self.configured:
            return "default"
        given = [value_of(headers, name) or b"" for name in _KEYS]
        scheme, _, token = given[0].decode("latin-1").partition(" ")
        keys = [token.strip() if scheme.lower() == "bearer" else "", given[1].decode("latin-1").strip()]
        known = [self._by_digest.get(self._digest(key)) for key in keys if key]
        tenant = next((name for name in known if name is not None), None)
        if tenant is None and not any(given):
            raise Unauthorized("No API key was given. Send the header 'Authorization: Bearer YOUR_KEY' or 'x-api-key'.")
        if tenant is None:
            raise Unauthorized("The API key is not known here. Check it, or ask this proxy's operator for one.")
        return tenant

    def of(self, request: Request) -> str | None:
        """For routes: the tenant whose requests the caller may see; None where there are no tenants."""
        return self.name_of(request.headers.raw) if self.configured else None


async def _drain(receive: Receive) -> None:
    left = DRAINED
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge above `limit` bytes, and ClientGone if it never came to an end."""
    told = value_of(headers, b"content-length")
    too_large = BodyTooLarge(
        f"The request body is larger than {limit // 2**20} MiB. Send less, or raise max_body_mb on the proxy."
    )
    if told is not None and told.isdigit() and int(told) > limit:
        if value_of(headers, b"expect") is None:
            await _drain(receive)
        raise too_large
    pieces: list[bytes] = []
    size = 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            await _drain(receive)
            raise too_large
        if not message.get("more_body"):
            return b"".join(pieces)


class RelayEndpoint:
    """Raw ASGI under FastAPI: what reaches a vLLM path is relayed, the rest is not found."""

    def __init__(self, relay: Relay, *, tenants: Tenants, max_body: int, clock: Clock) -> None:
        self._relay = relay
        self._tenants = tenants
        self._max_body = max_body
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers: Headers = scope["headers"]
        given = value_of(headers, b"x-request-id")
        request_id = given.decode() if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        client = AsgiClient(scope, send, request_id)
        # A body that waits for "100 Continue" may never come: the connection cannot be used again after a refusal.
        close = value_of(headers, b"expect") is not None
        try:
            incoming = await self._incoming(scope, receive, headers, request_id)
            await self._until_client_goes(incoming, client, receive)
        except ClientGone:
            return
        except RequestError as error:
            await self._refuse(client, error, close)
        except Exception:
            _log.exception("request %s failed", request_id)
            await self._refuse(client, RequestError("The proxy failed on this request; its log says more."), close)

    async def _refuse(self, client: AsgiClient, error: RequestError, close: bool) -> None:
        if client.started:
            _log.error("after the answer had begun: %s", error.message)
            raise error
        await client.refuse(error, close=close)

    async def _incoming(self, scope: Scope, receive: Receive, headers: Headers, request_id: str) -> Incoming:
        path: str = scope["path"]
        if not path.startswith(PASSED) or ".." in path.split("/"):
            raise NotFound(f"There is nothing at {path}. OpenAI's endpoints are below /v1/, e.g. /v1/chat/completions.")
        tenant = self._tenants.name_of(headers)
        body = await read_body(receive, headers, self._max_body)
        query: bytes = scope["query_string"]
        target = (scope.get("raw_path") or path.encode()).split(b"?")[0] + (b"?" + query if query else b"")
        return Incoming(
            method=scope["method"],
            path=path,
            target=target.decode("latin-1"),
            headers=self._for_engine(headers, request_id),
            body=body,
            request_id=request_id,
            tenant=tenant,
            received=self._clock(),
            energy_in_usage=(value_of(headers, b"x-energy") or b"").strip().lower() == b"usage",
        )

    def _for_engine(self, headers: Headers, request_id: str) -> Headers:
        """A tenant's key is ours to check and not the engine's to see."""
        drop = _OWN.union(_KEYS) if self._tenants.configured else _OWN
        kept = end_to_end(headers, drop=drop)
        return [*kept, (b"accept-encoding", b"identity"), (b"x-request-id", request_id.encode())]

    async def _until_client_goes(self, incoming: Incoming, client: AsgiClient, receive: Receive) -> None:
        """Relays; when the client hangs up first, the relay is cancelled, which closes the engine's connection."""
        gone = Gone(receive, client)
        try:
            await self._relay.relay(incoming, client)
        except asyncio.CancelledError:
            if not gone.happened:
                raise
        finally:
            gone.forget()


class InFront:
    """What is relayed goes to the relay at once: FastAPI's layers cost more than it does. All else is FastAPI's."""

    def __init__(self, relay: RelayEndpoint, rest: ASGIApp) -> None:
        self._relay, self._rest = relay, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PASSED):
            await self._relay(scope, receive, send)
        else:
            await self._rest(scope, receive, send)
