"""The real vLLM: its answers have the shape of the simulated engine's, which keeps that one honest."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.engine.answers import Script
from tests.engine.real import RealEngine
from tests.engine.simulated import SimulatedEngine

pytestmark = pytest.mark.real

GREEDY = {"model": "tiny", "temperature": 0, "seed": 1, "ignore_eos": True, "max_tokens": 5}
CHAT = {**GREEDY, "messages": [{"role": "user", "content": "bada kopi zulo"}]}
COMPLETION = {**GREEDY, "prompt": "bada kopi zulo"}
RESPONSE = {"model": "tiny", "temperature": 0, "input": "bada kopi", "max_output_tokens": 4}
# vLLM gives several answers only when it samples
SAMPLED = {"temperature": 1, "n": 2}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
LONG = list(range(300, 400))

REQUESTS: dict[str, tuple[str, object]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat of no given model": ("/v1/chat/completions", {k: v for k, v in CHAT.items() if k != "model"}),
    "chat stream": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "chat stream with usage": ("/v1/chat/completions", {**CHAT, **USAGE}),
    "chat stream with continuous usage": ("/v1/chat/completions", {**CHAT, **CONTINUOUS}),
    "chat stream with token ids": ("/v1/chat/completions", {**CHAT, **USAGE, "return_token_ids": True}),
    "two chats": ("/v1/chat/completions", {**CHAT, **SAMPLED}),
    "two chats in a stream": ("/v1/chat/completions", {**CHAT, **SAMPLED, **CONTINUOUS}),
    "two greedy chats": ("/v1/chat/completions", {**CHAT, "n": 2}),
    "completion": ("/v1/completions", COMPLETION),
    "completion stream": ("/v1/completions", {**COMPLETION, "stream": True}),
    "completion stream with continuous usage": ("/v1/completions", {**COMPLETION, **CONTINUOUS}),
    "completion stream with token ids": ("/v1/completions", {**COMPLETION, "stream": True, "return_token_ids": True}),
    "list of prompts": ("/v1/completions", {**COMPLETION, "prompt": ["bada", "kopi zulo"]}),
    "list of token lists": ("/v1/completions", {**COMPLETION, "prompt": [[300, 301], [302]], "return_token_ids": True}),
    "list of prompts in a stream": ("/v1/completions", {**COMPLETION, **CONTINUOUS, "prompt": ["bada", "kopi zulo"]}),
    "response": ("/v1/responses", RESPONSE),
    "response stream": ("/v1/responses", {**RESPONSE, "stream": True}),
    "tokenize a prompt": ("/tokenize", {"model": "tiny", "prompt": "bada kopi"}),
    "tokenize a chat": ("/tokenize", {"model": "tiny", "messages": CHAT["messages"], "return_token_strs": True}),
    "detokenize": ("/detokenize", {"model": "tiny", "tokens": [300, 301]}),
    "models": ("/v1/models", None),
    "health": ("/health", None),
    "version": ("/version", None),
    "unknown model": ("/v1/chat/completions", {**CHAT, "model": "no"}),
    "unknown model in a stream": ("/v1/completions", {**COMPLETION, "model": "no", "stream": True}),
    "malformed JSON": ("/v1/chat/completions", b'{"model": "tiny", "messages": ['),
    "no body": ("/v1/chat/completions", b""),
    "no messages": ("/v1/chat/completions", {"model": "tiny"}),
    "no prompt": ("/v1/completions", {"model": "tiny"}),
    "no input": ("/v1/responses", {"model": "tiny"}),
    "no tokens to make": ("/v1/completions", {**COMPLETION, "max_tokens": 0}),
    "more tokens than fit": ("/v1/completions", {**COMPLETION, "max_tokens": 5000}),
    "a longer prompt than fits": ("/v1/completions", {**COMPLETION, "prompt": [300] * 3000, "stream": True}),
    "no choices": ("/v1/chat/completions", {**CHAT, "n": 0}),
    "stream options without a stream": ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}),
    "embeddings of a generative model": ("/v1/embeddings", {"model": "tiny", "input": "bada"}),
    "unknown path": ("/v1/nothing", {}),
    "wrong method": ("/v1/chat/completions", None),
}

EXACT = {"object", "finish_reason", "role", "type", "status", "index", "code", "param", "message", "reason", "detail"}
"""Keys whose values are part of the shape: words and numbers a client decides by."""


def shape(value: Any, key: str = "") -> Any:
    """A JSON value with its keys in order and the values reduced to their kinds."""
    if isinstance(value, dict):
        return tuple((name, shape(item, name)) for name, item in value.items())
    if isinstance(value, list):
        return ("list", *dict.fromkeys(shape(item) for item in value))
    if value is None or isinstance(value, bool) or key in EXACT:
        return value
    return type(value).__name__


def body_shape(body: bytes, content_type: str) -> Any:
    """The shape of an answer: of its JSON, or of each event of its stream."""
    if content_type.startswith("text/event-stream"):
        return stream_shape(body.decode())
    if not body:
        return None
    value = json.loads(body)
    assert json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() == body, "written as compact JSON"
    return shape(value)


def stream_shape(stream: str) -> Any:
    """Shapes of the events by choice, equal neighbours as one, for how many tokens are in a chunk is chance."""
    assert stream.endswith("\n\n")
    by_choice: dict[object, list[object]] = {}
    for event in stream[:-2].split("\n\n"):
        fields = [line.partition(": ") for line in event.split("\n")]
        data = fields[-1][2]
        value = data if data == "[DONE]" else json.loads(data)
        choices = value.get("choices") if isinstance(value, dict) else None
        seen = by_choice.setdefault(choices[0]["index"] if choices else None, [])
        entry = (tuple((name, separator) for name, separator, _ in fields), shape(value, "event"))
        if not seen or seen[-1] != entry:
            seen.append(entry)
    return {choice: tuple(entries) for choice, entries in sorted(by_choice.items(), key=str)}


def ask(url: str, path: str, body: object) -> httpx.Response:
    """Sends a request; no body means GET, bytes go as they are."""
    headers = {"content-type": "application/json", "x-request-id": "R"}
    if body is None:
        return httpx.get(url + path, headers=headers, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + path, content=content, headers=headers, timeout=60)


def completion_tokens(body: bytes) -> list[bytes]:
    """The last count of made tokens."""
    return re.findall(rb'"(?:completion|output)_tokens":(\d+)', body)[-1:]


def series(page: str) -> dict[str, set[str]]:
    """The series of a metrics page by name, with the names of their labels."""
    names: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(vllm:\w+)\{([^}]*)\}", page, re.MULTILINE):
        names.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    return names


@pytest.mark.parametrize("name", REQUESTS)
def test_the_simulated_engine_answers_like_the_real_one(
    real_engine: RealEngine, simulated_engine: SimulatedEngine, name: str
) -> None:
    path, body = REQUESTS[name]
    real, simulated = (ask(engine.url, path, body) for engine in (real_engine, simulated_engine))
    assert simulated.status_code == real.status_code
    assert list(simulated.headers) == list(real.headers)
    content_type = real.headers.get("content-type", "")
    assert simulated.headers.get("content-type", "") == content_type
    assert body_shape(simulated.content, content_type) == body_shape(real.content, content_type)
    assert completion_tokens(simulated.content) == completion_tokens(real.content)
    identified = re.compile(rb'"id":"((?:chatcmpl|cmpl)-[^"]*)"')
    assert set(identified.findall(simulated.content)) == set(identified.findall(real.content))


def test_both_engines_find_the_same_part_of_a_prompt_in_their_caches(
    real_engine: RealEngine, simulated_engine: SimulatedEngine
) -> None:
    def cached(url: str) -> Iterator[object]:
        for tail in ([], [], [7], [8, 9]):
            answer = ask(url, "/v1/completions", {**COMPLETION, "prompt": LONG + tail, "cache_salt": "this test"})
            yield answer.json()["usage"]["prompt_tokens_details"]

    assert list(cached(simulated_engine.url)) == list(cached(real_engine.url))


def test_the_simulated_metrics_are_a_part_of_the_real_ones(
    real_engine: RealEngine, simulated_engine: SimulatedEngine
) -> None:
    ask(real_engine.url, "/v1/chat/completions", CHAT)
    simulated, real = (ask(engine.url, "/metrics", None) for engine in (simulated_engine, real_engine))
    assert simulated.headers["content-type"] == real.headers["content-type"]
    known = series(real.text)
    assert {name: known.get(name) for name in series(simulated.text)} == series(simulated.text)
    types = set(re.findall(r"^# TYPE .*", simulated.text, re.MULTILINE))
    assert types <= set(re.findall(r"^# TYPE .*", real.text, re.MULTILINE))


def test_both_engines_count_the_same_for_the_same_work(
    real_engine: RealEngine, simulated_engine: SimulatedEngine
) -> None:
    def counted(url: str) -> dict[str, float]:
        page = ask(url, "/metrics", None).text
        names = "prompt_tokens_total|generation_tokens_total|iteration_tokens_total_(?:sum|count)|num_requests_running"
        found = re.findall(rf"^vllm:({names}|prompt_tokens_by_source_total){{(.*)}} (.*)$", page, re.MULTILINE)
        return {name + "".join(re.findall(r'source="\w+"', labels)): float(value) for name, labels, value in found}

    def growth(url: str) -> dict[str, float]:
        before = counted(url)
        for _ in range(2):
            body = {**COMPLETION, "prompt": [500, *LONG], "n": 1, "cache_salt": "growth"}
            assert ask(url, "/v1/completions", body).status_code == 200
        return wait_for_growth(url, before)

    def wait_for_growth(url: str, before: dict[str, float]) -> dict[str, float]:
        # vLLM books a step shortly after its tokens have left
        deadline = time.monotonic() + 5
        while True:
            now = {name: value - before[name] for name, value in counted(url).items()}
            if now["generation_tokens_total"] >= 10 or time.monotonic() > deadline:
                return now
            time.sleep(0.05)

    simulated, real = growth(simulated_engine.url), growth(real_engine.url)
    assert simulated == real


def test_the_real_engine_stops_computing_when_the_client_leaves(real_engine: RealEngine) -> None:
    body = {**CHAT, "max_tokens": 2000, "stream": True}
    with httpx.stream("POST", real_engine.url + "/v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_raw())
    deadline = time.monotonic() + 5
    while (
        'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' not in ask(real_engine.url, "/metrics", None).text
    ):
        assert time.monotonic() < deadline, "the request still runs 5 s after its client has left"
        time.sleep(0.05)


def test_both_engines_say_the_same_when_they_die_in_mid_stream(
    private_real_engine: RealEngine, simulated_engine: SimulatedEngine
) -> None:
    body = {**CHAT, "max_tokens": 2000, "stream": True}
    with httpx.stream("POST", private_real_engine.url + "/v1/chat/completions", json=body, timeout=60) as answer:
        pieces = answer.iter_raw()
        real = next(pieces)
        private_real_engine.kill_engine_core()
        real += b"".join(pieces)
    simulated_engine.script(Script(die_after=9))
    simulated = ask(simulated_engine.url, "/v1/chat/completions", body).content
    assert simulated.split(b"\n\n")[-3:] == real.split(b"\n\n")[-3:]
    assert stream_shape(simulated.decode()) == stream_shape(real.decode())
