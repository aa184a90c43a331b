"""
Whatever goes wrong on either side, the client gets a clear answer, the proxy serves on, and the books balance.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.answers import Script
from tests.engine.asks import BUSY, DEAD
from tests.engine.simulated import Canned, SimulatedEngine
from tests.live import LiveProxy, assert_law
from tests.relay.speaking import (
    CHAT,
    HTTP,
    QUICK,
    chat,
    connection,
    energy_comment,
    error_of,
    events,
    head,
    raw_exchange,
    received,
    rows,
    until,
    until_closed,
)

ANSWER_TIMEOUT_S = 0.8
BACKEND_BROKE = {"type": "server_error", "param": None, "code": "backend_failed"}


@pytest.fixture(scope="module")
def engine() -> Iterator[SimulatedEngine]:
    with SimulatedEngine(step_s=0.002, send_buffer_bytes=16_384, max_model_len=200_000) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(engine: SimulatedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    ledger = tmp_path_factory.mktemp("faults") / "ledger.db"
    settings = QUICK | {"answer_timeout_s": str(ANSWER_TIMEOUT_S)}
    with LiveProxy(backends=[engine.url], ledger=ledger, settings=settings) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test on the shared proxy: it serves and its ledger balances."""
    yield
    if "proxy" in request.fixturenames:
        running: LiveProxy = request.getfixturevalue("proxy")
        assert HTTP.post(running.url + CHAT, json=chat(max_tokens=1)).status_code == 200
        assert_law(running.balance())


class TestBackendFails:
    def test_killed_in_mid_stream(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """The client gets the chunks, an error event in OpenAI's shape, energy and [DONE]; the record is partial."""
        engine.script(Script(drop_after=3))

        answer = HTTP.post(proxy.url + CHAT, json=chat(stream=True))

        *chunks, error, done = events(answer.text)
        assert answer.status_code == 200
        assert [json.loads(chunk)["choices"][0]["index"] for chunk in chunks] == [0, 0, 0]
        assert json.loads(error)["error"].items() >= BACKEND_BROKE.items()
        assert done == "[DONE]"
        assert energy_comment(answer.text)["tokens"]["completion"] == 2
        record = proxy.settled(answer.headers["x-request-id"])
        assert (record["outcome"], record["tokens"]["completion"]) == ("partial", 2)

    def test_killed_before_the_first_token(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """A stream that begins and breaks off at once is an error event too, and its work is not idle."""
        engine.script(Script(drop_after=0))

        answer = HTTP.post(proxy.url + CHAT, json=chat(stream=True))

        error, done = events(answer.text)
        assert (json.loads(error)["error"]["code"], done) == ("backend_failed", "[DONE]")
        assert proxy.settled(answer.headers["x-request-id"])["outcome"] == "partial"

    def test_own_error_event_of_the_engine(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """What the engine says of its death reaches the client as it said it; nothing is added but the energy."""
        engine.script(Script(die_after=2))

        answer = HTTP.post(proxy.url + CHAT, json=chat(stream=True))

        *_, error, done = events(answer.text)
        assert (json.loads(error)["error"]["message"], done) == (DEAD, "[DONE]")
        assert answer.text.count('"error"') == 1
        assert energy_comment(answer.text)["status"] == "provisional"
        assert proxy.settled(answer.headers["x-request-id"])["outcome"] == "partial"

    @pytest.mark.parametrize("drop_after", [0, 1], ids=["before the first byte", "in the middle of the body"])
    def test_whole_answer_breaks_off(self, proxy: LiveProxy, engine: SimulatedEngine, drop_after: int) -> None:
        """Half a body is never passed on: the client gets 502."""
        engine.script(Script(drop_after=drop_after))

        answer = HTTP.post(proxy.url + CHAT, json=chat())

        assert answer.status_code == 502
        assert error_of(answer).items() >= BACKEND_BROKE.items()
        assert proxy.settled(answer.headers["x-request-id"])["outcome"] == "partial"

    def test_stalled_stream_ends_at_the_timeout(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """A backend that falls silent is given up; the client is told inside the stream."""
        engine.script(Script(stall_after=3))

        answer = HTTP.post(proxy.url + CHAT, json=chat(stream=True))

        *chunks, error, _ = events(answer.text)
        assert len(chunks) == 3
        assert "did not answer in time" in json.loads(error)["error"]["message"]
        assert received(engine, answer.headers["x-request-id"]).disconnected.wait(5)
        assert proxy.settled(answer.headers["x-request-id"])["outcome"] == "partial"

    def test_no_answer_at_all_is_504(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """A backend that takes a request and says nothing is a timeout, and its work is charged to the request."""
        engine.script(Script(first_byte_after_s=20))

        answer = HTTP.post(proxy.url + CHAT, json=chat())

        assert answer.status_code == 504
        assert error_of(answer)["code"] == "backend_timeout"
        assert proxy.settled(answer.headers["x-request-id"])["energy_microjoules"] > 0

    def test_garbage_passes_and_harms_nothing(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """An event that is no JSON is the engine's own business."""
        engine.script(Script(garbage_after=2))

        answer = HTTP.post(proxy.url + CHAT, json=chat(stream=True))

        assert '"chat.comp\n' in answer.text
        assert energy_comment(answer.text)["tokens"]["completion"] == 8

    def test_refused_connection_and_return(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """While the backend is away every answer is 503 in OpenAI's shape; when it returns, so does the service."""
        engine.down()
        try:
            first = HTTP.post(proxy.url + CHAT, json=chat())
            second = HTTP.post(proxy.url + CHAT, json=chat(stream=True))
            ready = HTTP.get(proxy.admin + "/readyz")
        finally:
            engine.up()

        assert [first.status_code, second.status_code, ready.status_code] == [503, 503, 503]
        assert [error_of(first)["code"], error_of(second)["code"]] == ["no_backend", "no_backend"]
        assert "x-request-id" in first.headers
        until(lambda: HTTP.post(proxy.url + CHAT, json=chat()).status_code == 200)

    def test_status_and_body_pass_byte_for_byte(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """The engine's refusals are its own, odd spaces and all; they cost nothing."""
        statuses = (400, 401, 404, 422, 429, 500, 503)
        bodies = [b'{ "error" : {"message": "no \xc3\xa9nergie", "code":%d} }\n' % status for status in statuses]
        engine.script(*(Script(status=status, body=body) for status, body in zip(statuses, bodies, strict=True)))

        answers = [HTTP.post(proxy.url + CHAT, json=chat(stream=status % 2 == 0)) for status in statuses]

        assert [(a.status_code, a.content) for a in answers] == list(zip(statuses, bodies, strict=True))
        assert not any("x-energy-joules" in answer.headers for answer in answers)
        records = [proxy.settled(answer.headers["x-request-id"]) for answer in answers]
        assert [(r["outcome"], r["energy_microjoules"]) for r in records] == [("error", 0)] * len(statuses)
        assert [r["http_status"] for r in records] == list(statuses)

    def test_busy_engine(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """vLLM's own 503 is passed on and does not eject the backend."""
        engine.script(Script(status=503))

        answer = HTTP.post(proxy.url + CHAT, json=chat())

        assert answer.json()["error"]["message"] == BUSY


class TestClientErrs:
    @pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b'{"model":"tiny","messages":1e999}{'])
    def test_malformed_bodies_are_the_engines_to_judge(self, proxy: LiveProxy, body: bytes) -> None:
        """No body makes the proxy stumble; the engine's 400 passes."""
        answer = HTTP.post(proxy.url + CHAT, content=body, headers={"content-type": "application/json"})

        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == 400

    def test_nesting_bomb(self, proxy: LiveProxy) -> None:
        """A body made to exhaust a parser is 400 in our words."""
        answer = HTTP.post(proxy.url + CHAT, content=b"[" * 200_000, headers={"content-type": "application/json"})

        assert answer.status_code == 400
        assert "nested too deeply" in error_of(answer)["message"]

    def test_unknown_model(self, proxy: LiveProxy) -> None:
        """The engine's own 404 passes, and the name does not become a label of the metrics."""
        answer = HTTP.post(proxy.url + CHAT, json=chat(model="gpt-none"))

        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "The model `gpt-none` does not exist. Valid aliases: tiny."
        assert proxy.settled(answer.headers["x-request-id"])["model"] == "unknown"
        assert "gpt-none" not in proxy.metrics()

    def test_slow_refusal_of_a_model_leaves_no_label(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """Windows are divided while the answer is awaited; a name nobody serves is no label even then."""
        engine.script(Script(first_byte_after_s=0.8, status=404))

        answer = HTTP.post(proxy.url + CHAT, json=chat(model="gpt-slow"))

        proxy.settled(answer.headers["x-request-id"])
        assert "gpt-slow" not in proxy.metrics()

    def test_body_of_50_mb(self, proxy: LiveProxy) -> None:
        """A client that sends it all without asking gets to read the 413."""
        answer = HTTP.post(proxy.url + CHAT, content=b"x" * 50_000_000)

        assert answer.status_code == 413
        assert error_of(answer)["code"] == "body_too_large"

    def test_body_of_50_mb_in_chunks(self, proxy: LiveProxy) -> None:
        """The same without a content-length."""
        answer = HTTP.post(proxy.url + CHAT, content=(b"x" * 1_000_000 for _ in range(50)))

        assert answer.status_code == 413

    def test_body_of_50_mb_that_asks_first(self, proxy: LiveProxy) -> None:
        """A client that sends Expect: 100-continue is refused before it sends, and the connection is closed."""
        with connection(proxy.url) as client:
            client.sendall(head("POST", CHAT, "expect: 100-continue", length=50_000_000))
            answer = until_closed(client)

        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()

    def test_expecting_client_is_told_to_go_on(self, proxy: LiveProxy) -> None:
        """A body that is small enough is asked for, as vLLM's server would."""
        body = json.dumps(chat(max_tokens=1)).encode()
        with connection(proxy.url) as client:
            client.sendall(head("POST", CHAT, "expect: 100-continue", "connection: close", length=len(body)))
            interim = client.recv(100)
            client.sendall(body)
            answer = until_closed(client)

        assert interim.startswith(b"HTTP/1.1 100 ")
        assert answer.startswith(b"HTTP/1.1 200 ")

    def test_client_gone_in_the_middle_of_its_body(self, proxy: LiveProxy) -> None:
        """Half a request is no request."""
        whole = HTTP.post(proxy.url + CHAT, json=chat())
        proxy.settled(whole.headers["x-request-id"])  # the newest record, and it changes no more
        before = HTTP.get(f"{proxy.admin}/energy/requests", params={"limit": 1}).json()
        with connection(proxy.url) as client:
            client.sendall(head("POST", CHAT, length=1000) + b'{"model":')

        assert HTTP.get(f"{proxy.admin}/energy/requests", params={"limit": 1}).json() == before


class TestClientLeaves:
    def test_in_mid_stream(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """The engine's connection is closed at once; the record is aborted and has the energy up to then."""
        body = chat(stream=True, max_tokens=100_000, ignore_eos=True)
        with HTTP.stream("POST", proxy.url + CHAT, json=body) as answer:
            request_id = answer.headers["x-request-id"]
            pieces = answer.iter_raw()
            for _ in range(20):
                next(pieces)

        assert received(engine, request_id).disconnected.wait(2)
        record = proxy.settled(request_id)
        assert record["outcome"] == "aborted"
        assert record["energy_microjoules"] > 0
        assert record["tokens"]["completion"] >= 10

    def test_while_a_whole_answer_is_made(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """The engine must not go on for nobody."""
        request_id = "left-early"
        body = json.dumps(chat(max_tokens=100_000, ignore_eos=True)).encode()
        with connection(proxy.url) as client:
            client.sendall(head("POST", CHAT, f"x-request-id: {request_id}", length=len(body)) + body)
            arrived = received(engine, request_id)
            time.sleep(0.1)  # real time in which the engine works and a meter counts

        assert arrived.disconnected.wait(2)
        record = proxy.settled(request_id)
        assert record["outcome"] == "aborted"
        assert record["energy_microjoules"] > 0

    def test_while_the_stream_stalls(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """A client that leaves is noticed though nothing flows."""
        engine.script(Script(stall_after=2))
        with HTTP.stream("POST", proxy.url + CHAT, json=chat(stream=True)) as answer:
            request_id = answer.headers["x-request-id"]
            next(answer.iter_raw())

        assert received(engine, request_id).disconnected.wait(1)
        assert proxy.settled(request_id)["outcome"] == "aborted"

    def test_slow_reader_is_waited_for(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """What a client does not read stays in the engine, not in the proxy's memory."""
        request_id = "slow-reader"
        fast = json.dumps(chat(stream=True, max_tokens=60_000, ignore_eos=True, return_token_ids=True)).encode()
        with connection(proxy.url, receive_buffer=4096) as client:
            engine.script(Script(tokens_per_chunk=1))
            client.sendall(head("POST", CHAT, f"x-request-id: {request_id}", length=len(fast)) + fast)
            before = resident_bytes(proxy.pid)
            received(engine, request_id)
            time.sleep(0.7)  # real time in which an unheld stream would pile up
            assert resident_bytes(proxy.pid) - before < 20_000_000
            assert client.recv(12) == b"HTTP/1.1 200"

        assert received(engine, request_id).disconnected.wait(5)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


class TestWhatPasses:
    def test_unknown_path_passes_both_ways(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """Method, target, headers and body arrive as sent, and so does the answer."""
        engine.canned["/v1/what ever"] = Canned(207, b"\x00\xff raw \r\n\r\n", "application/x-odd")
        target = "/v1/what%20ever?a=1&a=%2F&b=%zz;c"
        sent = b"\x00\x01not json"
        request = head(
            "PUT", target, "X-Strange: caf\xe9", "x-request-id: odd-1", "connection: close", length=len(sent)
        )

        status, headers, body = raw_exchange(proxy.url, request + sent)

        arrived = received(engine, "odd-1")
        assert (arrived.method, arrived.path, arrived.query) == ("PUT", "/v1/what ever", "a=1&a=%2F&b=%zz;c")
        assert (arrived.headers["x-strange"], arrived.body) == ("caf\xe9", sent)
        assert (status, body) == (207, b"\x00\xff raw \r\n\r\n")
        assert (headers["content-type"], headers["x-request-id"]) == ("application/x-odd", "odd-1")

    @pytest.mark.parametrize("target", ["/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/x/../../metrics", "/v1/.."])
    def test_no_way_around_the_paths_that_pass(self, proxy: LiveProxy, engine: SimulatedEngine, target: str) -> None:
        """Dots in a path lead nowhere: what is not served here cannot be reached on the engine."""
        status, _, body = raw_exchange(proxy.url, head("GET", target, "x-request-id: dots", "connection: close"))

        assert status == 404
        assert json.loads(body)["error"]["code"] == "not_found"
        assert not any(r.headers.get("x-request-id") == "dots" for r in engine.requests)

    def test_hop_by_hop_headers_stay_on_their_hop(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """What belongs to the client's connection does not reach the engine, nor what Connection names."""
        lines = (
            "connection: close, x-secret",
            "x-secret: 1",
            "keep-alive: timeout=5",
            "te: trailers",
            "proxy-authorization: Basic x",
            "accept-encoding: gzip",
            "x-request-id: hops",
            "authorization: Bearer passes-on",
        )

        raw_exchange(proxy.url, head("GET", "/v1/models", *lines))

        headers = received(engine, "hops").headers
        assert not {"x-secret", "keep-alive", "te", "proxy-authorization"} & set(headers)
        assert headers["authorization"] == "Bearer passes-on"
        assert headers["accept-encoding"] == "identity"
        assert headers["host"] == engine.url.removeprefix("http://")

    def test_nothing_at_other_paths(self, proxy: LiveProxy) -> None:
        """A 404 says where to look instead."""
        answers = [HTTP.get(proxy.url + path) for path in ("/nope", "/", "/v1", "/metrics", "/health", "/sleep")]

        assert {answer.status_code for answer in answers} == {404}
        assert "/v1/chat/completions" in error_of(answers[0])["message"]

    def test_head_and_options(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """They are the engine's to answer, and a HEAD has no body."""
        headed = HTTP.head(proxy.url + "/v1/models", headers={"x-request-id": "head"})
        asked = HTTP.request("OPTIONS", proxy.url + "/v1/models", headers={"x-request-id": "options"})

        assert (received(engine, "head").method, received(engine, "options").method) == ("HEAD", "OPTIONS")
        assert (headed.content, headed.status_code, asked.status_code) == (b"", 404, 404)

    def test_own_request_id_is_kept_and_may_repeat(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """The client's id names the request everywhere; two requests of one id are two rows."""
        for _ in range(2):
            answer = HTTP.post(proxy.url + CHAT, json=chat(), headers={"x-request-id": "twice"})
            assert (answer.headers["x-request-id"], answer.json()["id"]) == ("twice", "chatcmpl-twice")
            record = proxy.settled("twice")

        assert record["records"] == 2
        assert len(rows(proxy, "twice")) == 2

    @pytest.mark.parametrize(
        "given", ["a\tb", "x" * 10_000, "caf\xe9", "", "two words"], ids=["tab", "10 kB", "not ASCII", "empty", "blank"]
    )
    def test_malicious_request_ids_are_replaced(self, proxy: LiveProxy, given: str) -> None:
        """What could break a log, a header or a URL is not echoed."""
        request = head("GET", "/v1/models", f"x-request-id: {given}", "connection: close")

        status, headers, _ = raw_exchange(proxy.url, request)

        assert status == 200
        assert len(headers["x-request-id"]) == 32
        assert headers["x-request-id"].isalnum()

    @pytest.mark.parametrize("end", ["\r\n", "\n"])
    def test_newline_in_a_request_id_injects_nothing(self, proxy: LiveProxy, end: str) -> None:
        """A header cannot be smuggled into the answer."""
        request = head("GET", "/v1/models", f"x-request-id: a{end} set-cookie: b", "connection: close")

        status, headers, _ = raw_exchange(proxy.url, request)

        assert status in (200, 400)
        assert "set-cookie" not in headers
        assert "\n" not in headers.get("x-request-id", "")


class TestEnergyShown:
    def test_whole_answer(self, proxy: LiveProxy) -> None:
        """Headers carry the energy; the body is the engine's own."""
        answer = HTTP.post(proxy.url + CHAT, json=chat())

        assert float(answer.headers["x-energy-joules"]) >= 0
        assert answer.headers["x-energy-status"] == "provisional"
        assert "energy" not in answer.json()["usage"]

    def test_whole_answer_with_energy_in_usage(self, proxy: LiveProxy) -> None:
        """The object stands in usage and content-length counts it."""
        answer = HTTP.post(proxy.url + CHAT, json=chat(), headers={"x-energy": "usage"})

        energy = answer.json()["usage"]["energy"]
        assert energy["tokens"]["completion"] == 8
        assert f"{energy['energy_joules']:.6f}" == answer.headers["x-energy-joules"]
        assert int(answer.headers["content-length"]) == len(answer.content)

    def test_stream_with_energy_in_usage(self, proxy: LiveProxy) -> None:
        """The usage chunk is shown with the energy in it, instead of the comment."""
        answer = HTTP.post(proxy.url + CHAT, json=chat(stream=True), headers={"x-energy": "usage"})

        *chunks, last, done = events(answer.text)
        usage = json.loads(last)["usage"]
        assert (usage["energy"]["tokens"]["completion"], usage["completion_tokens"], done) == (8, 8, "[DONE]")
        assert not any("usage" in json.loads(chunk) for chunk in chunks)
        assert "\n:" not in answer.text

    def test_error_answer_has_no_energy_in_usage(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """A refusal passes as it is, whatever was asked about energy."""
        engine.script(Script(status=400, body=b'{"a":1,"usage":{}}'))

        answer = HTTP.post(proxy.url + CHAT, json=chat(), headers={"x-energy": "usage"})

        assert answer.content == b'{"a":1,"usage":{}}'

    @pytest.mark.parametrize(
        ("options", "usages"),
        [
            (None, 0),
            ({}, 0),
            ({"include_usage": False}, 0),
            ({"include_usage": True}, 1),
            ({"include_usage": True, "continuous_usage_stats": False}, 1),
            ({"include_usage": True, "continuous_usage_stats": True}, 10),
            ({"include_usage": False, "continuous_usage_stats": True}, 0),
        ],
    )
    def test_usage_is_shown_as_asked(self, proxy: LiveProxy, options: dict[str, Any] | None, usages: int) -> None:
        """Eight tokens are a role, eight chunks and a usage chunk; which of them have usage is the client's choice."""
        answer = HTTP.post(proxy.url + CHAT, json=chat(stream=True, stream_options=options))

        chunks = [json.loads(event) for event in events(answer.text)[:-1]]
        assert sum("usage" in chunk for chunk in chunks) == usages
        assert energy_comment(answer.text)["tokens"]["completion"] == 8

    @pytest.mark.parametrize("stream", [False, True])
    def test_several_choices(self, proxy: LiveProxy, stream: bool) -> None:
        """Tokens of all choices are counted."""
        answer = HTTP.post(proxy.url + CHAT, json=chat(n=2, stream=stream))

        record = proxy.settled(answer.headers["x-request-id"])
        assert (record["tokens"]["completion"], record["outcome"]) == (16, "ok")

    @pytest.mark.parametrize("stream", [False, True])
    def test_several_prompts(self, proxy: LiveProxy, stream: bool) -> None:
        """A list of prompts is one request with the tokens of them all."""
        body = {"model": "tiny", "prompt": ["one two", "three four five"], "max_tokens": 4, "stream": stream}

        answer = HTTP.post(proxy.url + "/v1/completions", json=body)

        record = proxy.settled(answer.headers["x-request-id"])
        assert (record["tokens"]["completion"], record["endpoint"]) == (8, "completions")
        assert record["tokens"]["prompt"] == 5

    def test_stream_of_responses(self, proxy: LiveProxy) -> None:
        """The other API has no [DONE]: its comment stands before its last event, whose usage is counted."""
        body = {"model": "tiny", "input": "hello there", "max_output_tokens": 5, "stream": True}

        answer = HTTP.post(proxy.url + "/v1/responses", json=body)

        comment = next(line for line in answer.text.splitlines() if line.startswith(":"))
        assert json.loads(comment.removeprefix(": energy "))["tokens"]["completion"] == 5
        assert f"\n\n{comment}\nevent: response.completed\n" in answer.text
        record = proxy.settled(answer.headers["x-request-id"])
        assert (record["outcome"], record["endpoint"], record["tokens"]["completion"]) == ("ok", "responses", 5)

    def test_tokenizing_costs_nothing(self, proxy: LiveProxy) -> None:
        """It does no work on the GPU: a record with energy 0."""
        answer = HTTP.post(proxy.url + "/tokenize", json={"model": "tiny", "prompt": "one two"})

        assert answer.json()["count"] == 2
        record = proxy.settled(answer.headers["x-request-id"])
        assert (record["energy_microjoules"], record["endpoint"]) == (0, "tokenize")

    def test_record_on_the_traffic_port(self, proxy: LiveProxy) -> None:
        """Without tenants everybody may ask; what is not known is 404 in OpenAI's shape."""
        answer = HTTP.post(proxy.url + CHAT, json=chat())
        known = HTTP.get(f"{proxy.url}/energy/requests/{answer.headers['x-request-id']}", params={"wait": 5})
        unknown = HTTP.get(f"{proxy.url}/energy/requests/none")

        assert known.json()["status"] == "settled"
        assert (unknown.status_code, error_of(unknown)["code"]) == (404, "not_found")

    def test_open_request_has_a_provisional_record(self, proxy: LiveProxy, engine: SimulatedEngine) -> None:
        """A running stream can be asked for, from another thread, while its tokens come."""
        with HTTP.stream("POST", proxy.url + CHAT, json=chat(stream=True, max_tokens=2000, ignore_eos=True)) as answer:
            where = f"{proxy.admin}/energy/requests/{answer.headers['x-request-id']}"
            asked = [HTTP.get(where) for _ in range(20)]

        assert {a.status_code for a in asked} == {200}
        assert {a.json()["status"] for a in asked} == {"provisional"}
