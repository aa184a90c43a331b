"""The client sees what vLLM sent: each request is asked of vLLM and of the proxy, and the bytes are compared.

Everything is greedy or seeded, so that vLLM repeats itself. One thing it does not repeat: two tokens that are ready
at once leave in one chunk. So a request is asked again until vLLM has chunked it alike on both ways.
"""

import json
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.engine.real import RealEngine
from tests.live import LiveProxy
from tests.real.exchange import Ask, Reply, connect, exchange, exchange_on, get, post

pytestmark = pytest.mark.real

TRIALS = 8
MESSAGES = [{"role": "system", "content": "hale"}, {"role": "user", "content": "bada dofu gimi"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "strict": True, "parameters": CITY}}]
ANSWER = {
    "type": "object",
    "properties": {"a": {"type": "integer", "enum": [1, 2]}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
STRUCTURED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
JSON = (("content-type", "application/json"),)
GREEDY = {"model": "tiny", "temperature": 0, "seed": 1}


def chat(**fields: Any) -> Ask:
    """A chat completion that repeats itself."""
    return post("/v1/chat/completions", {**GREEDY, "messages": MESSAGES, "max_tokens": 8, "ignore_eos": True, **fields})


def completion(**fields: Any) -> Ask:
    """A completion that repeats itself."""
    return post("/v1/completions", {**GREEDY, "prompt": "bada dofu", "max_tokens": 8, "ignore_eos": True, **fields})


def response(**fields: Any) -> Ask:
    """A response that repeats itself."""
    fixed = {"input": "bada dofu", "max_output_tokens": 8, "request_id": "resp_mine"}
    return post("/v1/responses", {**GREEDY, **fixed, **fields})


def message(**fields: Any) -> Ask:
    """Anthropic's form, which vLLM speaks too."""
    return post(
        "/v1/messages", {"model": "tiny", "messages": MESSAGES[1:], "max_tokens": 8, "temperature": 0, **fields}
    )


BOTH = {
    "plain": {},
    "one_token": {"max_tokens": 1},
    "two_choices": {"n": 2, "temperature": 1, "max_tokens": 4},
    "stop": {"stop": ["a", "e"]},
    "token_ids": {"return_token_ids": True},
    "echo": {"echo": True},
    "structured": {"response_format": STRUCTURED, "ignore_eos": False, "max_tokens": 40},
}
CHAT_ONLY = {
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "unicode": {
        "messages": [{"role": "user", "content": 'h\u00e9 \u2603 \U0001f600 \x00 "usage":{} data: [DONE]\n\n'}]
    },
    "auto_tool": {"tools": TOOLS, "max_tokens": 20},
    "required_tool": {"tools": TOOLS, "tool_choice": "required", "ignore_eos": False, "max_tokens": 120},
    "named_tool": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "ignore_eos": False,
        "max_tokens": 120,
    },
}
COMPLETIONS_ONLY = {
    "logprobs": {"logprobs": 2},
    "echo_with_logprobs": {"logprobs": 2, "echo": True},
    "prompts": {"prompt": ["bada", "dofu gimi"], "max_tokens": 4},
    "token_id_prompt": {"prompt": [5, 60, 700]},
    "token_id_prompts": {"prompt": [[5, 60, 700], [8, 9]], "max_tokens": 4},
    "prompts_with_choices": {"prompt": ["bada", "dofu gimi"], "n": 2, "temperature": 1, "max_tokens": 3},
}
STREAM_OPTIONS: dict[str, Any] = {
    "null": None,
    "empty": {},
    "usage": {"include_usage": True},
    "no_usage": {"include_usage": False},
    "usage_null": {"include_usage": None},
    "usage_in_words": {"include_usage": "yes"},
    "continuous": {"include_usage": True, "continuous_usage_stats": True},
    "usage_not_continuous": {"include_usage": True, "continuous_usage_stats": False},
    "continuous_without_usage": {"include_usage": False, "continuous_usage_stats": True},
    "only_continuous": {"continuous_usage_stats": True},
    "unknown_member": {"include_usage": True, "other": 1},
}
REFUSED = {
    "unknown_model": {"model": "nobody"},
    "temperature": {"temperature": -3},
    "no_choice": {"n": 0},
    "no_token": {"max_tokens": 0},
    "greedy_choices": {"n": 2},
    "stream_options_of_no_kind": {"stream": True, "stream_options": "x"},
    "stream_options_no_flag": {"stream": True, "stream_options": {"include_usage": "perhaps"}},
    "stream_options_without_stream": {"stream_options": {"include_usage": True}},
}


def _answered() -> dict[str, Ask]:
    found: dict[str, Ask] = {}
    for kind, make, own in (("chat", chat, CHAT_ONLY), ("completions", completion, COMPLETIONS_ONLY)):
        for name, fields in (BOTH | own).items():
            found[f"{kind}-{name}"] = make(**fields)
            found[f"{kind}-{name}-stream"] = make(**fields, stream=True)
        for name, options in STREAM_OPTIONS.items():
            found[f"{kind}-options_{name}"] = make(stream=True, stream_options=options)
        usage = STREAM_OPTIONS["continuous"]
        found[f"{kind}-two_choices-continuous"] = make(**BOTH["two_choices"], stream=True, stream_options=usage)
        found[f"{kind}-stream_in_words"] = make(stream="true")
    found["completions-prompts-continuous"] = completion(
        **COMPLETIONS_ONLY["prompts"], stream=True, stream_options=STREAM_OPTIONS["continuous"]
    )
    found["chat-key_twice"] = Ask("POST", chat().path, chat(stream=True).body[:-1] + b',"stream_options":null}', JSON)
    for stream in (False, True):
        suffix = "-stream" if stream else ""
        found |= {f"responses{suffix}": response(stream=stream), f"messages{suffix}": message(stream=stream)}
    batch = {**GREEDY, "messages": [MESSAGES, MESSAGES[1:]], "max_tokens": 4}
    return found | {
        "models": get("/v1/models"),
        "models-query": get("/v1/models?a=b%20c&d"),
        "tokenize": post("/tokenize", {"model": "tiny", "prompt": "bada dofu"}),
        "detokenize": post("/detokenize", {"model": "tiny", "tokens": [5, 60, 700]}),
        "chat-batch": post("/v1/chat/completions/batch", batch),
        "messages-count": post("/v1/messages/count_tokens", {"model": "tiny", "messages": MESSAGES[1:]}),
    }


def _refused() -> dict[str, Ask]:
    found: dict[str, Ask] = {}
    for kind, make in (("chat", chat), ("completions", completion)):
        found |= {f"{kind}-{name}": make(**fields) for name, fields in REFUSED.items()}
    long = [{"role": "user", "content": "bada " * 4000}]
    where = chat().path
    return found | {
        "too_long": chat(messages=long),
        "too_long-stream": chat(messages=long, stream=True),
        "malformed": Ask("POST", where, b'{"model":', JSON),
        "empty": Ask("POST", where, b"", JSON),
        "no_object": post(where, [1]),
        "not_utf8": Ask("POST", where, b'{"model":"\xff"}', JSON),
        "other_content_type": Ask("POST", where, chat().body, (("content-type", "text/plain"),)),
        "no_content_type": Ask("POST", where, chat().body),
        "unknown_path": post("/v1/nothing", {}),
        "other_method": get(where),
        "head": Ask("HEAD", "/v1/models"),
        "options": Ask("OPTIONS", where),
        "embeddings": post("/v1/embeddings", {"model": "tiny", "input": "bada"}),
        "response-unknown_model": response(model="nobody", stream=True),
    }


ANSWERED, REFUSALS = _answered(), _refused()


def both_ways(engine: RealEngine, live: LiveProxy, ask: Ask) -> tuple[Reply, Reply]:
    """vLLM's answer and the proxy's, chunked alike if that can be had in a few trials."""
    exchange(engine.url, ask)  # from now on the prompt is in the prefix cache
    for _ in range(TRIALS):
        named = ask.having(x_request_id=uuid.uuid4().hex)
        before, through, after = (exchange(url, named) for url in (engine.url, live.url, engine.url))
        assert before.status == after.status
        assert before.end_to_end == after.end_to_end
        straight = before if through.comparable == before.comparable else after
        if through.comparable == straight.comparable:
            break
    return straight, through


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_comes_as_vllm_sent_it(name: str, real_engine: RealEngine, live: LiveProxy) -> None:
    """Status, headers and body are vLLM's own, with the energy beside the body or in one comment."""
    straight, through = both_ways(real_engine, live, ANSWERED[name])

    assert straight.status == through.status == 200, straight.body
    assert through.comparable == straight.comparable
    assert through.end_to_end == straight.end_to_end
    assert len(through.energy_comments) == (1 if straight.is_stream else 0)
    assert (through.header("x-energy-status") == "provisional") is not straight.is_stream


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_comes_as_vllm_worded_it(name: str, real_engine: RealEngine, live: LiveProxy) -> None:
    """An error is vLLM's own, byte for byte, and no energy is claimed for it."""
    straight, through = both_ways(real_engine, live, REFUSALS[name])

    assert straight.status == through.status
    assert straight.status >= 400
    assert through.comparable == straight.comparable
    assert through.end_to_end == straight.end_to_end
    assert through.header("x-energy-joules") is None
    assert through.energy_comments == []


@pytest.mark.parametrize("ask", [chat(stream=True), completion(stream=True)], ids=["chat", "completions"])
def test_the_comment_stands_directly_before_the_end(ask: Ask, live: LiveProxy) -> None:
    """The last two lines of a stream are the comment and [DONE]; the comment names the request."""
    reply = exchange(live.url, ask.having(x_request_id="mine-1"))

    *_, comment, done, nothing, rest = reply.body.split(b"\n")
    assert (done, nothing, rest) == (b"data: [DONE]", b"", b"")
    assert json.loads(comment.removeprefix(b": energy ")) == reply.energy_comments[0]
    assert reply.energy_comments[0]["request_id"] == reply.header("x-request-id") == "mine-1"


@pytest.mark.parametrize(
    ("ask", "last"),
    [(response(stream=True), b"event: response.completed"), (message(stream=True), b"event: message_stop")],
    ids=["responses", "messages"],
)
def test_the_comment_stands_before_the_last_event_where_there_is_no_done(
    ask: Ask, last: bytes, live: LiveProxy
) -> None:
    """Streams with typed events have no [DONE]: their last event follows the comment."""
    reply = exchange(live.url, ask)

    before, after = reply.body.split(b": energy ")
    assert before.endswith(b"\n\n")
    assert after.split(b"\n")[1] == last
    assert reply.body.endswith(b"\n\n")


@pytest.mark.parametrize("make", [chat, completion], ids=["chat", "completions"])
def test_energy_in_usage_is_the_only_difference(make: Any, real_engine: RealEngine, live: LiveProxy) -> None:
    """With `x-energy: usage` an answer is vLLM's but for one more member of usage."""
    asked = make().having(x_request_id="mine-2")
    straight, through = exchange(real_engine.url, asked), exchange(live.url, asked.having(x_energy="usage"))

    said, expected = json.loads(through.body), json.loads(straight.body)
    energy = said["usage"].pop("energy")
    assert said | {"created": 0} == expected | {"created": 0}
    assert energy["status"] == "provisional"
    assert f"{energy['energy_joules']:.6f}" == through.header("x-energy-joules")
    assert through.header("content-length") == str(len(through.body))


@pytest.mark.parametrize("make", [chat, completion], ids=["chat", "completions"])
def test_energy_in_the_usage_of_a_stream(make: Any, real_engine: RealEngine, live: LiveProxy) -> None:
    """With `x-energy: usage` a stream is that of include_usage, whose last chunk holds the energy; no comment."""
    plain, asked = make(stream=True), make(stream=True, stream_options={"include_usage": True})
    exchange(real_engine.url, asked)
    for _ in range(TRIALS):
        straight = exchange(real_engine.url, asked.having(x_request_id="mine-3"))
        through = exchange(live.url, plain.having(x_request_id="mine-3", x_energy="usage"))
        bare, energy = through.taking_energy_out_of_usage()
        if bare.comparable == straight.comparable:
            break

    assert bare.comparable == straight.comparable
    assert energy["tokens"]["completion"] == 8
    assert through.energy_comments == []


def test_the_first_stream_of_a_proxy_is_no_exception(real_engine: RealEngine, tmp_path: Path) -> None:
    """What the proxy learns of an engine from its first stream, it does not need for that stream."""
    ask = chat(stream=True)
    for trial in range(TRIALS):
        with LiveProxy(backends=[real_engine.url], ledger=tmp_path / f"{trial}.db") as fresh:
            straight, through = (exchange(url, ask.having(x_request_id="a")) for url in (real_engine.url, fresh.url))
        if through.comparable == straight.comparable:
            break

    assert through.comparable == straight.comparable


def test_an_answer_without_an_id_of_the_clients_gets_one(live: LiveProxy) -> None:
    """x-request-id is on every answer and is the id vLLM knows the request by."""
    reply = exchange(live.url, chat())

    assert json.loads(reply.body)["id"] == f"chatcmpl-{reply.header('x-request-id')}"


def test_a_connection_serves_many_requests(real_engine: RealEngine, live: LiveProxy) -> None:
    """A client's connection is kept alive over answers, streams and errors alike."""
    connection = connect(live.url)
    connection.connect()
    connected = connection.sock
    for ask in (chat(), chat(stream=True), chat(model="nobody"), get("/v1/models"), completion(stream=True)):
        reply = exchange_on(connection, ask)
        assert reply.status == exchange(real_engine.url, ask).status
        assert connection.sock is connected
    connection.close()


def test_a_body_in_pieces_is_one_body(real_engine: RealEngine, live: LiveProxy) -> None:
    """A chunked request body, sent after `100 Continue`, is answered as the same body sent at once."""
    ask = chat().having(x_request_id="mine-4")
    where = urlsplit(live.url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as raw:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw.sendall((head + "X-Request-Id: mine-4\r\nExpect: 100-continue\r\n").encode())
        raw.sendall(b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert raw.recv(1024).startswith(b"HTTP/1.1 100 ")
        for start in range(0, len(ask.body), 50):
            piece = ask.body[start : start + 50]
            raw.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        raw.sendall(b"0\r\n\r\n")
        received = b"".join(iter(lambda: raw.recv(65536), b""))

    body = received.partition(b"\r\n\r\n")[2]
    assert Reply(200, (), body).comparable == exchange(real_engine.url, ask).comparable


def test_compression_is_not_made_up(real_engine: RealEngine, live: LiveProxy) -> None:
    """A client that accepts gzip gets what vLLM gives, which is plain."""
    ask = chat().having(x_request_id="mine-5", accept_encoding="gzip, br")

    straight, through = exchange(real_engine.url, ask), exchange(live.url, ask)

    assert through.comparable == straight.comparable
    assert through.end_to_end == straight.end_to_end
