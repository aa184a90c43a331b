"""How these tests speak to a proxy: bodies, events, records, and raw bytes where httpx is too polite."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.engine.simulated import Received, SimulatedEngine
from tests.live import LiveProxy

CHAT = "/v1/chat/completions"
HTTP = httpx.Client(trust_env=False, verify=False, timeout=10, limits=httpx.Limits(max_keepalive_connections=0))
"""One client for all tests, because making one costs more than most requests; a connection per request."""
QUICK = {"sample_period_ms": "20", "scrape_period_s": "0.05", "health_period_s": "0.1", "silent_wait_s": "0.1"}
"""Settings that settle a request sooner than an operator needs it."""
ERROR_KEYS = {"message", "type", "param", "code"}


def chat(**fields: Any) -> dict[str, Any]:
    """A request body for the simulated engine's model."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "how much?"}], "max_tokens": 8} | fields


def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """The first true value of `condition`; an AssertionError when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{condition} did not come true in {timeout_s} s"
        time.sleep(0.01)


def received(engine: SimulatedEngine, request_id: str) -> Received:
    """The request of that id as the engine got it, as soon as it is there."""
    found: Received = until(
        lambda: next((r for r in reversed(engine.requests) if r.headers.get("x-request-id") == request_id), None)
    )
    return found


def events(body: bytes | str) -> list[str]:
    """The events of a stream, comments left out."""
    text = body if isinstance(body, str) else body.decode()
    lines = [line for line in text.splitlines() if line and not line.startswith(":")]
    return [line.removeprefix("data: ") for line in lines]


def energy_comment(body: bytes | str) -> dict[str, Any]:
    """The energy object of a stream; there is exactly one and it stands right before [DONE]."""
    text = body if isinstance(body, str) else body.decode()
    comments = [line for line in text.splitlines() if line.startswith(":")]
    assert len(comments) == 1, text
    assert text.endswith(f"\n\n{comments[0]}\ndata: [DONE]\n\n"), text
    found: dict[str, Any] = json.loads(comments[0].removeprefix(": energy "))
    return found


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object of an answer in OpenAI's shape."""
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == ERROR_KEYS
    assert isinstance(found["message"], str)
    assert found["message"]
    return found


def rows(proxy: LiveProxy, request_id: str) -> list[dict[str, Any]]:
    """All attempts of a request in the ledger, oldest first."""
    listed = HTTP.get(f"{proxy.admin}/energy/requests", params={"limit": 1000}).json()["requests"]
    return [row for row in reversed(listed) if row["request_id"] == request_id]


def connection(url: str, *, receive_buffer: int | None = None) -> socket.socket:
    """A connection of one's own; a small buffer makes a slow reader felt soon."""
    where = urlsplit(url)
    made = socket.socket()
    if receive_buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(5)
    try:
        made.connect((where.hostname, where.port))
    except OSError:
        made.close()
        raise
    return made


def head(method: str, target: str, *lines: str, length: int | None = None) -> bytes:
    """The head of a request in bytes, sent as it is."""
    given = [f"{method} {target} HTTP/1.1", "host: proxy", "content-type: application/json", *lines]
    if length is not None:
        given.append(f"content-length: {length}")
    return "\r\n".join([*given, "", ""]).encode("latin-1")


def until_closed(made: socket.socket) -> bytes:
    """Everything the other side still sends."""
    pieces = []
    while piece := made.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def raw_exchange(url: str, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends bytes on a connection of their own and gives status, headers and the body as it came over the wire."""
    with connection(url) as made:
        made.sendall(data)
        answer = until_closed(made)
    top, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    named = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in named.items()}, body
