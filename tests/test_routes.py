"""
Who may ask, how large a request may be, and what the relay gets to see of it.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request

from proxy.accounting.units import Nanoseconds
from proxy.errors import BodyTooLarge, NoBackend, Unauthorized
from proxy.relay import Incoming
from proxy.routes import DRAINED, ClientGone, RelayEndpoint, Tenants, read_body
from proxy.wire.headers import Headers

MIB = 2**20


class Sender:
    """A client's body in pieces, as ASGI gives it; counts how many were taken."""

    def __init__(self, *pieces: bytes, gone: bool = False) -> None:
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": gone or number < len(pieces) - 1}
            for number, piece in enumerate(pieces)
        ]
        if gone:
            self._messages.append({"type": "http.disconnect"})
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        if self.taken == len(self._messages):
            await asyncio.Event().wait()
        self.taken += 1
        return self._messages[self.taken - 1]


def read(sender: Sender, limit: int, headers: Headers | None = None) -> bytes:
    return asyncio.run(read_body(sender, headers or [], limit))


class TestReadBody:
    def test_pieces_are_put_together(self) -> None:
        """The body is what was sent, in order."""
        assert read(Sender(b"a", b"", b"bc"), 10) == b"abc"

    def test_a_body_of_the_limit_passes(self) -> None:
        """The limit itself is allowed."""
        assert read(Sender(b"x" * MIB), MIB, [(b"content-length", b"%d" % MIB)]) == b"x" * MIB

    def test_a_longer_one_is_read_and_refused(self) -> None:
        """The rest is thrown away piece by piece, so that the client gets to read the refusal."""
        sender = Sender(*[b"x" * MIB] * 8)

        with pytest.raises(BodyTooLarge, match="larger than 2 MiB"):
            read(sender, 2 * MIB)

        assert sender.taken == 8

    def test_an_announced_one_is_not_kept(self) -> None:
        """A content-length over the limit decides before anything is stored."""
        sender = Sender(b"x", b"y")

        with pytest.raises(BodyTooLarge):
            read(sender, MIB, [(b"content-length", b"9999999999")])

        assert sender.taken == 2

    def test_a_client_that_asks_first_sends_nothing(self) -> None:
        """With Expect: 100-continue the body is never asked for."""
        sender = Sender(b"x")

        with pytest.raises(BodyTooLarge):
            read(sender, MIB, [(b"content-length", b"9999999999"), (b"expect", b"100-continue")])

        assert sender.taken == 0

    def test_draining_has_an_end(self) -> None:
        """Nobody can make the proxy read for ever."""
        piece = b"x" * (DRAINED // 4)
        sender = Sender(*[piece] * 20)

        with pytest.raises(BodyTooLarge):
            read(sender, MIB)

        assert sender.taken < 8

    @pytest.mark.parametrize("pieces", [(b"half",), ()])
    def test_a_client_that_leaves(self, pieces: tuple[bytes, ...]) -> None:
        """Half a body is no body."""
        with pytest.raises(ClientGone):
            read(Sender(*pieces, gone=True), MIB)

    def test_a_client_that_leaves_while_its_body_is_thrown_away(self) -> None:
        """It is still only too large."""
        with pytest.raises(BodyTooLarge):
            read(Sender(b"xx", b"xx", gone=True), 1)


class TestTenants:
    def test_without_tenants_everybody_is_default(self) -> None:
        """Keys are the engine's matter then."""
        tenants = Tenants({}, str)

        assert not tenants.configured
        assert [tenants.name_of(headers) for headers in ([], [(b"authorization", b"Bearer x")])] == ["default"] * 2

    def test_tenants_without_keys_let_nobody_in(self) -> None:
        """Configured is configured: a list of keys that came out empty must not open the door."""
        tenants = Tenants({}, str, configured=True)

        assert tenants.configured
        with pytest.raises(Unauthorized):
            tenants.name_of([(b"authorization", b"Bearer x")])

    @pytest.mark.parametrize("header", [b"Bearer key", b"bearer key", b"BEARER  key "])
    def test_a_key_has_a_name(self, header: bytes) -> None:
        """The scheme's case and spaces do not matter."""
        assert Tenants({"<key>": "acme"}, lambda key: f"<{key}>").name_of([(b"authorization", header)]) == "acme"

    @pytest.mark.parametrize(
        "headers",
        [
            [(b"x-api-key", b"key")],
            [(b"X-API-Key", b" key ")],
            [(b"authorization", b"Bearer of something else"), (b"x-api-key", b"key")],
        ],
    )
    def test_a_key_as_anthropics_clients_send_it(self, headers: Headers) -> None:
        """x-api-key holds the key alone."""
        assert Tenants({"<key>": "acme"}, lambda key: f"<{key}>").name_of(headers) == "acme"

    @pytest.mark.parametrize("headers", [[(b"authorization", b"Bearer ")], [(b"x-api-key", b"")], []])
    def test_an_empty_key_is_no_key(self, headers: Headers) -> None:
        """Not even where the digest of nothing was configured."""
        with pytest.raises(Unauthorized):
            Tenants({"<>": "acme"}, lambda key: f"<{key}>").name_of(headers)

    def test_routes_take_either_header(self) -> None:
        """Whose requests a caller may see is decided by the same key."""
        tenants = Tenants({"<key>": "acme"}, lambda key: f"<{key}>")

        for header in ((b"authorization", b"Bearer key"), (b"x-api-key", b"key")):
            assert tenants.of(Request({"type": "http", "headers": [header]})) == "acme"

    @pytest.mark.parametrize("header", [None, b"", b"key", b"Basic key", b"Bearer", b"Bearer other", b"Bearer k\xe9y"])
    def test_anything_else_is_refused(self, header: bytes | None) -> None:
        """With a sentence that does not repeat the key."""
        with pytest.raises(Unauthorized) as caught:
            Tenants({"<key>": "acme"}, lambda key: f"<{key}>").name_of(
                [] if header is None else [(b"authorization", header)]
            )

        assert "other" not in caught.value.message.split()


class FakeRelay:
    """Takes requests and does with the client what the test says."""

    def __init__(self, act: Callable[[Any], Awaitable[None]]) -> None:
        self.seen: list[Incoming] = []
        self.cancelled = False
        self._act = act

    async def relay(self, incoming: Incoming, client: Any) -> None:
        self.seen.append(incoming)
        try:
            await self._act(client)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def _answer(client: Any) -> None:
    await client.start(200, [(b"content-type", b"x"), (b"x-request-id", b"the engine's")])
    await client.send(b"body")
    await client.finish()


class Edge:
    """The endpoint with a relay of the test's own; `ask` gives status, headers and body."""

    def __init__(self, act: Callable[[Any], Awaitable[None]] = _answer, tenants: dict[str, str] | None = None) -> None:
        self.relay = FakeRelay(act)
        self._endpoint = RelayEndpoint(
            self.relay,  # type: ignore[arg-type]
            tenants=Tenants(tenants or {}, lambda key: key),
            max_body=MIB,
            clock=lambda: Nanoseconds(42),
        )

    def ask(
        self, path: str = "/v1/x", headers: Headers | None = None, sender: Sender | None = None, query: bytes = b""
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": headers or [],
        }
        asyncio.run(self._endpoint(scope, sender or Sender(b"{}"), send))  # type: ignore[arg-type]
        if not sent:
            return 0, {}, b""
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent)


class TestEndpoint:
    def test_the_relay_gets_the_request_as_it_came(self) -> None:
        """Path, query and body; of the headers, what the engine shall see."""
        edge = Edge()
        headers = [(b"X-Own", b"1"), (b"host", b"h"), (b"connection", b"close"), (b"authorization", b"Bearer k")]

        edge.ask("/v1/x", headers, query=b"a=%20")

        (incoming,) = edge.relay.seen
        assert (incoming.method, incoming.target, incoming.body) == ("POST", "/v1/x?a=%20", b"{}")
        assert (incoming.tenant, incoming.received) == ("default", 42)
        assert dict(incoming.headers) == {
            b"x-own": b"1",
            b"authorization": b"Bearer k",
            b"accept-encoding": b"identity",
            b"x-request-id": incoming.request_id.encode(),
        }

    def test_a_tenants_key_is_not_for_the_engine(self) -> None:
        """It is checked here and dropped here."""
        edge = Edge(tenants={"k": "acme"})

        for key in ((b"authorization", b"Bearer k"), (b"X-Api-Key", b"k")):
            edge.ask(headers=[key, (b"x-api-key", b"k")])

        assert [seen.tenant for seen in edge.relay.seen] == ["acme"] * 2
        assert not any({b"authorization", b"x-api-key"} & dict(seen.headers).keys() for seen in edge.relay.seen)

    def test_every_answer_has_our_request_id(self) -> None:
        """The engine's own is replaced; refusals have one too."""
        given = [(b"x-request-id", b"mine")]

        assert Edge().ask(headers=given)[1][b"x-request-id"] == b"mine"
        assert Edge().ask("/nope", headers=given)[1][b"x-request-id"] == b"mine"
        assert len(Edge().ask()[1][b"x-request-id"]) == 32

    @pytest.mark.parametrize(("value", "expected"), [(b"usage", True), (b" Usage ", True), (b"header", False)])
    def test_energy_in_usage_is_asked_for_by_header(self, value: bytes, expected: bool) -> None:
        """x-energy: usage, and it is not the engine's to see."""
        edge = Edge()

        edge.ask(headers=[(b"x-energy", value)])

        assert edge.relay.seen[0].energy_in_usage is expected
        assert b"x-energy" not in dict(edge.relay.seen[0].headers)

    def test_an_unknown_path(self) -> None:
        """404 before the body is read."""
        edge, sender = Edge(), Sender(b"x")

        status, headers, body = edge.ask("/nope", sender=sender)

        assert (status, sender.taken, edge.relay.seen) == (404, 0, [])
        assert json.loads(body)["error"]["code"] == "not_found"
        assert headers[b"content-length"] == str(len(body)).encode()

    def test_an_error_before_the_answer_is_put_in_words(self) -> None:
        """What the relay cannot do is an OpenAI error object."""

        async def fail(_: Any) -> None:
            raise NoBackend("nobody is there")

        status, _, body = Edge(fail).ask()

        expected = {"message": "nobody is there", "type": "server_error", "param": None, "code": "no_backend"}
        assert (status, json.loads(body)) == (503, {"error": expected})

    def test_a_bug_is_500_and_its_text_stays_here(self, caplog: pytest.LogCaptureFixture) -> None:
        """The client learns that it was the proxy; the log says more."""

        async def fail(_: Any) -> None:
            raise KeyError("a secret of the code")

        status, _, body = Edge(fail).ask()

        assert status == 500
        assert b"secret" not in body
        assert "a secret of the code" in caplog.text

    def test_an_error_after_the_answer_began_breaks_the_connection(self) -> None:
        """A second status cannot be sent; the server must cut the answer."""

        async def fail(client: Any) -> None:
            await client.start(200, [])
            raise NoBackend("too late")

        with pytest.raises(NoBackend):
            Edge(fail).ask()

    def test_a_client_that_goes_cancels_the_relay(self) -> None:
        """The relay is told at once and nothing more is sent."""

        async def work_for_ever(_: Any) -> None:
            await asyncio.Event().wait()

        edge = Edge(work_for_ever)
        body_then_gone = Sender(b"{}")
        body_then_gone._messages.append({"type": "http.disconnect"})

        assert edge.ask(sender=body_then_gone) == (0, {}, b"")
        assert edge.relay.cancelled

    def test_a_client_that_goes_in_its_body(self) -> None:
        """The relay never hears of it."""
        edge = Edge()

        assert edge.ask(sender=Sender(b"{", gone=True)) == (0, {}, b"")
        assert edge.relay.seen == []
