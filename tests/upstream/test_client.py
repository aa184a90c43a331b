"""
What goes to an engine and comes back is what was given, and every failure has one of our names.
"""

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest

from proxy.errors import BackendFailed, BackendTimeout, Refused
from proxy.upstream.client import EngineClient
from proxy.wire.headers import Headers
from tests.engine.simulated import Canned, SimulatedEngine
from tests.live import free_port


def run(url: str, work: Callable[[EngineClient], object], api_key: str | None = None) -> object:
    """Runs `work` with a client of its own."""

    async def inside() -> object:
        client = EngineClient(url, "b", connect_timeout_s=2, answer_timeout_s=0.3, api_key=api_key)
        try:
            return await work(client)  # type: ignore[misc]
        finally:
            await client.close()

    return asyncio.run(inside())


def ask(
    url: str, target: str = "/v1/x", method: str = "POST", headers: Headers | None = None, api_key: str | None = None
) -> tuple[int, Headers, bytes]:
    """One request and its whole answer."""

    async def work(client: EngineClient) -> tuple[int, Headers, bytes]:
        async with client.ask(method, target, headers or [], b"body") as answer:
            pieces: list[bytes] = []
            await answer.pour(pieces.append)
            return answer.status, answer.headers, b"".join(pieces)

    found = run(url, work, api_key)
    assert isinstance(found, tuple)
    return found


class RawServer:
    """Answers every connection with fixed bytes, then closes it or falls silent; keeps what it was sent."""

    def __init__(self, answer: bytes, *, silent: bool = False) -> None:
        self.received = b""
        self._answer, self._silent = answer, silent
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "RawServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while b"body" not in self.received:
                self.received += connection.recv(65536)
            connection.sendall(self._answer)
            if self._silent:
                self._ended.wait(5)


@pytest.fixture
def engine(simulated_engine: SimulatedEngine) -> SimulatedEngine:
    simulated_engine.canned["/v1/x"] = Canned(200, b"answer")
    simulated_engine.canned["/page"] = Canned(200, b"small")
    simulated_engine.canned["/absent"] = Canned(404, b"no")
    return simulated_engine


@pytest.mark.parametrize("target", ["/v1/a//b/../c;d?x=%zz&y=a+b", "/v1/%2e%2E/x", "/v1/caf%C3%A9?q={}|^`"])
def test_the_target_is_sent_as_it_is(target: str) -> None:
    """Nothing is normalised, quoted or decoded on the way."""
    with RawServer(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as server:
        ask(server.url + "/base", target)

    assert server.received.startswith(b"POST /base" + target.encode() + b" HTTP/1.1\r\n")


def test_headers_pass_and_only_they() -> None:
    """No user agent, no accept, no encoding is added: the engine sees the client, not httpx."""
    with RawServer(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as server:
        ask(server.url, headers=[(b"x-a", b"caf\xe9"), (b"x-a", b"2")])

    lines = server.received.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    names = sorted(line.split(b":")[0].lower() for line in lines)
    assert names == [b"content-length", b"host", b"x-a", b"x-a"]
    assert b"x-a: caf\xe9" in lines


def test_the_answer_comes_undecoded() -> None:
    """A compressed body stays compressed, and hop-by-hop headers stay on their hop."""
    head = (
        b"HTTP/1.1 207 Odd\r\nX-B: 1\r\ncontent-encoding: gzip\r\nconnection: close, x-b\r\ncontent-length: 3\r\n\r\n"
    )
    with RawServer(head + b"\x1f\x8b\x00") as server:
        status, headers, body = ask(server.url)

    assert (status, body) == (207, b"\x1f\x8b\x00")
    assert dict(headers) == {b"content-encoding": b"gzip", b"content-length": b"3"}


def test_the_servers_own_key_replaces_the_clients(engine: SimulatedEngine) -> None:
    """A key in the settings is for the engine; the client's is not sent there."""
    ask(engine.url, headers=[(b"authorization", b"Bearer client")], api_key="own")
    ask(engine.url, headers=[(b"authorization", b"Bearer client")])

    assert [r.headers["authorization"] for r in engine.requests] == ["Bearer own", "Bearer client"]


def test_no_other_header_brings_the_clients_key(engine: SimulatedEngine) -> None:
    """Anthropic's clients send it as x-api-key."""
    ask(engine.url, headers=[(b"x-api-key", b"client")], api_key="own")
    ask(engine.url, headers=[(b"x-api-key", b"client")])

    assert [r.headers.get("x-api-key") for r in engine.requests] == [None, "client"]


def test_nobody_listens() -> None:
    """Refused: nothing was sent, another backend may be tried."""
    with pytest.raises(Refused, match="The backend b cannot be reached"):
        ask(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"nonsense\r\n\r\n"])
def test_broken_answers(answer: bytes) -> None:
    """Closed before the head, within the body, or no HTTP at all: the backend failed."""
    with RawServer(answer) as server, pytest.raises(BackendFailed, match="The backend b broke off"):
        ask(server.url)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"])
def test_silence(answer: bytes) -> None:
    """Before the head or within the body: a timeout."""
    with RawServer(answer, silent=True) as server, pytest.raises(BackendTimeout, match="did not answer in time"):
        ask(server.url)


def test_leaving_early_closes_the_connection(engine: SimulatedEngine) -> None:
    """Who does not read to the end must not keep the engine working."""

    async def work(client: EngineClient) -> None:
        body = b'{"model":"tiny","messages":[],"stream":true,"max_tokens":2000,"ignore_eos":true}'
        headers = [(b"content-type", b"application/json")]
        async with client.ask("POST", "/v1/chat/completions", headers, body) as answer:
            begun = asyncio.Event()
            pouring = asyncio.ensure_future(answer.pour(lambda _: begun.set()))
            await begun.wait()
            pouring.cancel()
            await asyncio.wait([pouring])
        assert await asyncio.to_thread(engine.requests[-1].disconnected.wait, 5)

    run(engine.url, work)


def test_pages(engine: SimulatedEngine) -> None:
    """A small page of the engine, None unless its status is 200."""

    async def work(client: EngineClient) -> list[bytes | None]:
        return [await client.page("/page"), await client.page("/absent")]

    assert run(engine.url, work) == [b"small", None]
