"""One HTTP exchange as raw bytes, and what two exchanges of the same request may differ in."""

import http.client
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
ENERGY_COMMENT = re.compile(rb"^: energy (\{.*\})\n", re.MULTILINE)
OWN_HEADERS = frozenset({"x-request-id", "x-energy-joules", "x-energy-status"})
"""What the proxy may add to an answer."""
PER_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding"})
"""Headers that speak of one connection and not of the message."""

_DIFFERENT_EVERY_TIME = (
    (re.compile(rb'"(created|created_at|completed_at)":\d+(\.\d+)?'), rb'"\1":0'),
    (re.compile(rb'"(modelperm|chatcmpl-tool|chatcmpl|msg|rs|fc|call|resp)([-_])[0-9a-f]{8,32}"'), rb'"\1\2*"'),
)
"""Times, and the ids vLLM makes up itself."""
_CHOICE = re.compile(rb'"choices":\[\{"index":(\d+)')


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; `body` goes out byte for byte."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def having(self, **headers: str) -> "Ask":
        """The same with further headers; an underscore in a name stands for a hyphen."""
        more = ((name.replace("_", "-"), value) for name, value in headers.items())
        return Ask(self.method, self.path, self.body, (*self.headers, *more))


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; the transfer coding is undone and nothing else."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, given in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def is_stream(self) -> bool:
        """Whether it came as server-sent events."""
        return (self.header("content-type") or "").startswith("text/event-stream")

    @property
    def energy_comments(self) -> list[dict[str, Any]]:
        """The energy objects that stand in comment lines."""
        return [json.loads(found) for found in ENERGY_COMMENT.findall(self.body)]

    def taking_energy_out_of_usage(self) -> "tuple[Reply, dict[str, Any]]":
        """The reply without the last object named energy, and that object."""
        before, name, after = self.body.rpartition(b',"energy":')
        assert name, self.body
        energy, end = json.JSONDecoder().raw_decode(after.decode("latin-1"))
        return Reply(self.status, self.headers, before + after[end:]), energy

    @property
    def end_to_end(self) -> list[tuple[str, str]]:
        """The message's own headers in their order, without those the proxy adds and with every date alike."""
        gone = OWN_HEADERS | PER_CONNECTION
        return [(name, "*" if name == "date" else value) for name, value in self.headers if name not in gone]

    @property
    def comparable(self) -> bytes:
        """The body without the energy comments, times and made-up ids.

        Where a stream holds several choices, each choice's events are put together, for vLLM sends them in the
        order in which their tokens happen to be ready.
        """
        body = ENERGY_COMMENT.sub(b"", self.body)
        for pattern, instead in _DIFFERENT_EVERY_TIME:
            body = pattern.sub(instead, body)
        return _sorted_by_choice(body) if self.is_stream else body


def _sorted_by_choice(body: bytes) -> bytes:
    *events, rest = body.split(b"\n\n")

    def choice(event: bytes) -> int:
        found = _CHOICE.search(event)
        return int(found.group(1)) if found else -1

    numbered = {choice(event) for event in events} - {-1}
    if len(numbered) < 2:
        return body
    chosen = sorted((event for event in events if choice(event) >= 0), key=choice)
    return b"\n\n".join([*chosen, *(event for event in events if choice(event) < 0), rest])


def post(path: str, fields: Mapping[str, Any] | Sequence[Any]) -> Ask:
    """A POST of JSON."""
    return Ask("POST", path, json.dumps(fields).encode(), (("content-type", "application/json"),))


def get(path: str) -> Ask:
    """A GET."""
    return Ask("GET", path)


def exchange(base_url: str, ask: Ask) -> Reply:
    """Sends the request on a connection of its own and reads the whole answer."""
    connection = connect(base_url)
    try:
        return exchange_on(connection, ask)
    finally:
        connection.close()


def connect(base_url: str) -> http.client.HTTPConnection:
    """A connection that is opened by the first request."""
    where = urlsplit(base_url)
    return http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)


def exchange_on(connection: http.client.HTTPConnection, ask: Ask) -> Reply:
    """Sends the request with the given headers and no others but host and length."""
    connection.putrequest(ask.method, ask.path, skip_accept_encoding=True)
    for name, value in ask.headers:
        connection.putheader(name, value)
    if ask.method not in ("GET", "HEAD"):
        connection.putheader("content-length", str(len(ask.body)))
    connection.endheaders(ask.body or None)
    answer = connection.getresponse()
    headers = tuple((name.lower(), value) for name, value in answer.getheaders())
    return Reply(answer.status, headers, answer.read())
