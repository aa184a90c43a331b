"""What clients, operators and the books see when the real vLLM dies in mid-answer, and when it is back.

One server for the whole file, killed twice: first with everything it consists of, as a machine loses power; then,
started again, only the processes that compute, so that vLLM itself reports the death before it ends.
"""

import http.client
import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.engine.real import RealEngine
from tests.live import LiveProxy, assert_law
from tests.real.exchange import ENERGY_COMMENT, Ask, Reply, connect, exchange, post

pytestmark = pytest.mark.real

LIMIT = 1900
"""Completion tokens of a request that is meant to be interrupted: some seconds' worth."""
KINDS = ("chat", "completions", "responses")


def ask_of(kind: str, **fields: Any) -> Ask:
    """A request that takes seconds."""
    exact = {"model": "tiny", "temperature": 0, "ignore_eos": True, **fields}
    if kind == "chat":
        messages = [{"role": "user", "content": uuid.uuid4().hex}]
        return post("/v1/chat/completions", {"messages": messages, "max_tokens": LIMIT, **exact})
    if kind == "responses":
        return post("/v1/responses", {"input": uuid.uuid4().hex, "max_output_tokens": LIMIT, **exact})
    return post("/v1/completions", {"prompt": uuid.uuid4().hex, "max_tokens": LIMIT, **exact})


class OpenStream:
    """A stream that has begun to answer."""

    def __init__(self, url: str, kind: str) -> None:
        ask = ask_of(kind, stream=True)
        self.name = f"{kind}-{uuid.uuid4().hex}"
        self._connection = connect(url)
        self._connection.request(ask.method, ask.path, ask.body, {**dict(ask.headers), "x-request-id": self.name})
        self._answer: http.client.HTTPResponse = self._connection.getresponse()
        self._seen = b"".join(self._answer.readline() for _ in range(20))
        assert self._seen.count(b"data: ") >= 5, self._seen

    def rest(self) -> Reply:
        """Everything up to the end of the body, which must come in order: a cut raises IncompleteRead."""
        try:
            return Reply(self._answer.status, tuple(self._answer.getheaders()), self._seen + self._answer.read())
        finally:
            self._connection.close()


@dataclass(frozen=True)
class Wreck:
    """What was seen when the engine died with requests open."""

    proxy: LiveProxy
    streams: dict[str, tuple[str, Reply]]
    whole: Reply
    raised: list[openai.APIError]


def wreck(engine: RealEngine, proxy: LiveProxy, kill: Any) -> Wreck:
    """Opens a stream of each kind, two of the official client and an answer in one piece; kills; collects."""
    with (
        ThreadPoolExecutor(1) as pool,
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole: Future[Reply] = pool.submit(exchange, proxy.url, ask_of("chat").having(x_request_id="whole"))
        streams = {kind: OpenStream(proxy.url, kind) for kind in KINDS}
        messages: Any = [{"role": "user", "content": uuid.uuid4().hex}]
        of_client: list[Any] = [
            client.chat.completions.create(model="tiny", messages=messages, max_tokens=LIMIT, stream=True),
            client.responses.create(model="tiny", input=uuid.uuid4().hex, max_output_tokens=LIMIT, stream=True),
        ]
        for stream in of_client:
            next(stream)
        kill()
        raised = [error_of(stream) for stream in of_client]
        return Wreck(proxy, {kind: (one.name, one.rest()) for kind, one in streams.items()}, whole.result(), raised)


def error_of(stream: Any) -> openai.APIError:
    """Reads a stream of the official client to its end, which must be an exception."""
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    return caught.value


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """A vLLM of this file's own."""
    with RealEngine(tmp_path_factory.mktemp("vllm-private") / "server.log") as found:
        yield found


@pytest.fixture(scope="module")
def proxy(engine: RealEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    """The proxy in front of it."""
    with LiveProxy(backends=[engine.url], ledger=tmp_path_factory.mktemp("kill") / "ledger.db") as found:
        yield found


@pytest.fixture(scope="module")
def killed(engine: RealEngine, proxy: LiveProxy) -> Wreck:
    """The whole server is gone."""
    return wreck(engine, proxy, engine.kill)


@pytest.fixture(scope="module")
def back(killed: Wreck, engine: RealEngine) -> RealEngine:
    """It runs again, on the same port."""
    engine.start()
    wait_for_readiness(killed.proxy, 200)
    return engine


@pytest.fixture(scope="module")
def crashed(back: RealEngine, proxy: LiveProxy) -> Wreck:
    """The processes that compute are gone; the one that speaks HTTP says so and ends."""
    return wreck(back, proxy, back.kill_engine_core)


def wait_for_readiness(proxy: LiveProxy, status: int, timeout_s: float = 10.0) -> httpx.Response:
    """Waits until /readyz has that status."""
    deadline = time.monotonic() + timeout_s
    while (answer := httpx.get(f"{proxy.admin}/readyz")).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


def payloads(reply: Reply) -> list[bytes]:
    """The data of each event."""
    return [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: ")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_ends_with_an_error_in_openais_words(killed: Wreck, kind: str) -> None:
    """What had come is kept; then an error event, the energy so far, and the stream's end: nobody waits for ever."""
    _, reply = killed.streams[kind]

    *_, error, done = payloads(reply)
    assert done == b"[DONE]"
    told = json.loads(error)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert "broke off" in told["message"]
    assert told["type"] == "server_error"
    assert len(reply.energy_comments) == 1
    assert ENERGY_COMMENT.sub(b"", reply.body).endswith(b"\n\ndata: [DONE]\n\n")
    for payload in payloads(reply)[:-2]:
        json.loads(payload)


def test_an_answer_in_one_piece_becomes_an_error(killed: Wreck) -> None:
    """Nothing was sent yet, so the client gets a status of its own and OpenAI's error object."""
    assert killed.whole.status == 502
    assert json.loads(killed.whole.body)["error"]["code"] == "backend_failed"


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_of_a_broken_stream_is_partial(killed: Wreck, kind: str) -> None:
    """It was worked on and has to be paid for."""
    name, _ = killed.streams[kind]
    record = killed.proxy.settled(name)

    assert record["outcome"] == "partial"
    assert record["energy_joules"] > 0
    assert 0 < record["tokens"]["completion"] < LIMIT


def test_the_proxy_says_that_it_is_not_ready(killed: Wreck) -> None:
    """An orchestrator sends no traffic here meanwhile; the process itself is healthy."""
    assert "backend" in wait_for_readiness(killed.proxy, 503).text
    assert httpx.get(f"{killed.proxy.admin}/healthz").status_code == 200


def test_a_new_request_is_refused_in_a_clear_sentence(killed: Wreck) -> None:
    """503 at once, in OpenAI's shape and with an id, and the official client makes its own error of it."""
    wait_for_readiness(killed.proxy, 503)
    began = time.monotonic()
    reply = exchange(killed.proxy.url, ask_of("chat"))

    assert time.monotonic() < began + 2
    assert reply.status == 503
    assert reply.header("x-request-id")
    told = json.loads(reply.body)["error"]
    assert told["code"] == "no_backend"
    assert "Start vLLM" in told["message"]
    with (
        openai.OpenAI(base_url=f"{killed.proxy.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="Start vLLM"),
    ):
        client.models.list()


def test_energy_and_metrics_are_served_without_an_engine(killed: Wreck) -> None:
    """The books are open and balance; the backend is marked as down."""
    wait_for_readiness(killed.proxy, 503)

    assert_law(killed.proxy.balance())
    page = killed.proxy.metrics()
    assert 'jouleproxy_backend_up{backend="' in page
    assert next(line for line in page.splitlines() if line.startswith("jouleproxy_backend_up{")).endswith(" 0.0")
    assert httpx.get(f"{killed.proxy.admin}/energy/summary").status_code == 200


def test_requests_work_when_the_engine_is_back(back: RealEngine, killed: Wreck) -> None:
    """Nothing has to be told to the proxy; a new engine's counters, which begin at 0, confuse nobody."""
    reply = exchange(killed.proxy.url, ask_of("chat", max_tokens=50))
    record = killed.proxy.settled(reply.header("x-request-id") or "")

    assert reply.status == 200
    assert record["tokens"]["completion"] == 50
    assert record["outcome"] == "ok"
    assert record["attribution_ratio"] > 0.9
    assert_law(killed.proxy.balance())


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_own_words_are_passed_when_its_core_dies(crashed: Wreck, kind: str) -> None:
    """vLLM reports the death inside the stream; the client gets that and no second error, and the record is partial."""
    name, reply = crashed.streams[kind]

    errors = [payload for payload in payloads(reply) if b'"error"' in payload and b'"error":null' not in payload]
    assert len(errors) == 1, errors
    assert len(reply.energy_comments) == 1
    record = crashed.proxy.settled(name)
    assert record["outcome"] == "partial"
    assert record["energy_joules"] > 0


def test_an_answer_in_one_piece_gets_the_engines_own_error(crashed: Wreck) -> None:
    """A status of 5xx with OpenAI's error object, be it vLLM's or the proxy's."""
    assert crashed.whole.status in (500, 502, 503)
    assert json.loads(crashed.whole.body)["error"]["message"]


def test_the_books_balance_after_all_that(crashed: Wreck) -> None:
    """The records add up to what requests were charged, to the microjoule."""
    for name, _ in crashed.streams.values():
        crashed.proxy.settled(name)
    crashed.proxy.settled("whole")
    balance = crashed.proxy.balance()
    rows = httpx.get(f"{crashed.proxy.admin}/energy/requests", params={"limit": 1000}, timeout=10).json()["requests"]

    assert_law(balance)
    assert sum(row["energy_microjoules"] for row in rows) == balance["total"]["accounts"]["requests"]
    assert {row["status"] for row in rows} == {"settled"}


def test_the_official_client_raises_its_own_error(killed: Wreck, crashed: Wreck) -> None:
    """A program that iterates over a stream learns that it broke, from the chat and from the responses API."""
    assert ["broke off" in error.message for error in killed.raised] == [True, True]
    assert all(error.message for error in crashed.raised)
