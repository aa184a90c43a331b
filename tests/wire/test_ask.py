"""
The request is read for what accounting needs; its bytes stay as they came but for the asking of usage.
"""

import json

import pytest

from proxy.errors import BadRequest
from proxy.wire.ask import read_ask

CHAT = "/v1/chat/completions"


def test_usage_is_asked_for_without_touching_the_rest() -> None:
    """
    The splice keeps every byte of the client's body, whatever its spacing.
    """
    body = b'{ "model" : "m",\n "messages":[],  "stream": true, "x": 1e400 }'

    ask = read_ask("POST", CHAT, body)

    assert ask.body.startswith(body[:-1])
    assert {"include_usage": True, "continuous_usage_stats": True} == json.loads(ask.body)["stream_options"]
    assert (False, False) == (ask.wants_usage, ask.wants_continuous)


def test_own_options_are_kept_and_extended() -> None:
    """
    What the client asked of usage is remembered and other options survive.
    """
    ask = read_ask("POST", CHAT, b'{"stream":true,"stream_options":{"include_usage":true,"other":1}}')

    assert {"include_usage": True, "other": 1, "continuous_usage_stats": True} == json.loads(ask.body)["stream_options"]
    assert (True, False) == (ask.wants_usage, ask.wants_continuous)


@pytest.mark.parametrize("flag", [b"true", b"1", b"1.0", b'"yes"', b'"TRUE"'])
def test_a_flag_is_whatever_the_engine_takes_for_one(flag: bytes) -> None:
    """
    vLLM reads booleans laxly, so a stream asked for by a word is a stream here too.
    """
    ask = read_ask("POST", CHAT, b'{"stream":' + flag + b',"stream_options":{"include_usage":' + flag + b"}}")

    assert (True, True, False) == (ask.stream, ask.wants_usage, ask.wants_continuous)
    assert json.loads(ask.body)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize("options", [b"null", b"{}", b'{"include_usage":false}'])
def test_a_refused_usage_is_still_hidden(options: bytes) -> None:
    """
    null, empty and false all mean: the client shall see none.
    """
    ask = read_ask("POST", CHAT, b'{"stream":true,"stream_options":' + options + b"}")

    assert json.loads(ask.body)["stream_options"]["include_usage"] is True
    assert not ask.wants_usage


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"model":"m"}'),
        ("/v1/responses", b'{"stream":true}'),
        (CHAT, b'{"stream":"perhaps"}'),
        (CHAT, b'{"stream":"no"}'),
        (CHAT, b'{"stream":true,"stream_options":7}'),
        (CHAT, b'{"stream":true,"stream_options":{"include_usage":"perhaps"}}'),
        (CHAT, b'{"stream":true,"stream_options":{"continuous_usage_stats":[]}}'),
        (CHAT, b'{"broken'),
        (CHAT, b""),
        (CHAT, b"[1]"),
        ("/v1/anything", b"\x00\xff"),
    ],
)
def test_other_bodies_pass_byte_for_byte(path: str, body: bytes) -> None:
    """
    Only generating streams are asked for usage; what cannot be read is the engine's to judge.
    """
    assert body == read_ask("POST", path, body).body


@pytest.mark.parametrize(
    ("body", "prompts", "sequences"),
    [
        (b'{"n":3}', 1, 3),
        (b'{"prompt":["a","b"]}', 2, 2),
        (b'{"prompt":["a","b"],"n":2}', 2, 4),
        (b'{"prompt":[1,2,3]}', 1, 1),
        (b'{"prompt":[[1,2],[3]]}', 2, 2),
        (b'{"n":0}', 1, 1),
        (b'{"n":"x"}', 1, 1),
    ],
)
def test_sequences_are_answers_times_prompts(body: bytes, prompts: int, sequences: int) -> None:
    """
    The engine holds n sequences for every prompt.
    """
    ask = read_ask("POST", "/v1/completions", body)

    assert (ask.prompts, ask.sequences) == (prompts, sequences)


def test_too_deep_nesting_is_one_clear_sentence() -> None:
    """
    A body made to exhaust the parser is refused, not a crash.
    """
    with pytest.raises(BadRequest, match="nested too deeply"):
        read_ask("POST", CHAT, b"[" * 200_000)


def test_tokenising_does_no_work_on_the_gpu() -> None:
    """
    Endpoints without GPU work are marked so; GET never works the GPU.
    """
    assert not read_ask("POST", "/tokenize", b'{"prompt":"x"}').work
    assert not read_ask("GET", "/v1/models", b"").work
    assert read_ask("POST", "/v1/embeddings", b'{"input":"x"}').work
