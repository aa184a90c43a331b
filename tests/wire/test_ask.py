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
    assert not any(read_ask("POST", path, b"{}").work for path in ("/ping", "/version", "/load"))
    assert not read_ask("GET", "/v1/models", b"").work
    assert read_ask("POST", "/v1/embeddings", b'{"input":"x"}').work


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000_000}}
SOUND = {"type": "input_audio", "input_audio": {"data": "A" * 4_000_000, "format": "wav"}}
DEEP = b'{"messages":' + b"[" * 400 + b'"four"' + b"]" * 400 + b"}"


@pytest.mark.parametrize(
    ("path", "fields", "tokens"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 40}, {"role": "user", "content": "y" * 40}]}, 20),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, PICTURE, SOUND]}]}, 10),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 40}], "prompt": "y" * 40}, 10),
        (CHAT, {"messages": 7}, 0),
        (CHAT, {}, 0),
        ("/v1/completions", {"prompt": "abc"}, 1),
        ("/v1/completions", {"prompt": ["x" * 40, "y" * 42]}, 21),
        ("/v1/completions", {"prompt": list(range(9))}, 9),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 3),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x" * 40}]}]}, 10),
        ("/v1/messages", {"system": "x" * 40, "messages": [{"role": "user", "content": "y" * 40}]}, 20),
        ("/v1/embeddings", {"input": ["x" * 40, "y" * 40]}, 20),
        (
            "/v1/rerank",
            {"query": "x" * 40, "documents": ["y" * 40, {"content": [{"type": "text", "text": "z" * 40}]}]},
            30,
        ),
        ("/v1/score", {"text_1": "x" * 40, "text_2": ["y" * 40, "z" * 40]}, 30),
    ],
)
def test_the_guess_of_a_prompt_counts_its_text(path: str, fields: dict[str, object], tokens: int) -> None:
    """
    Four characters are a token and an id is one; pictures and sound in base64 are no text.
    """
    assert read_ask("POST", path, json.dumps(fields).encode()).prompt_estimate == tokens


@pytest.mark.parametrize("body", [b"--boundary\r\n" + b"x" * 1_000_000, b"", b"[1]"])
def test_what_is_no_json_object_has_no_guess(body: bytes) -> None:
    """
    An uploaded sound's bytes are no prompt.
    """
    assert read_ask("POST", "/v1/audio/transcriptions", body).prompt_estimate == 0


def test_a_deep_prompt_is_guessed_without_recursion() -> None:
    """
    What the JSON parser can read must not break the guess.
    """
    assert read_ask("POST", CHAT, DEEP).prompt_estimate == 1


@pytest.mark.parametrize(
    ("path", "fields", "prompts", "sequences"),
    [
        (CHAT, {"prompt": ["a", "b"], "n": 2}, 1, 2),
        ("/v1/responses", {"prompt": ["a", "b"], "n": 2}, 1, 1),
        ("/v1/embeddings", {"input": ["a", "b", "c"], "n": 4}, 3, 3),
        ("/v1/embeddings", {"input": [1, 2, 3]}, 1, 1),
        ("/v1/embeddings", {"input": [[1, 2], [3]]}, 2, 2),
        ("/v1/embeddings", {"input": "a", "prompt": ["a", "b"], "documents": ["a", "b"]}, 1, 1),
        ("/v1/embeddings", {"input": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, 1, 1),
        ("/pooling", {"input": ["a", "b"]}, 2, 2),
        ("/rerank", {"query": "q", "documents": ["a", "b", "c"]}, 3, 3),
        ("/v1/rerank", {"query": "q", "documents": [{"content": []}, {"content": []}]}, 2, 2),
        ("/v1/score", {"text_1": "q", "text_2": ["a", "b"]}, 2, 2),
        ("/v1/score", {"text_1": ["q", "r"], "text_2": ["a", "b"]}, 2, 2),
        ("/v1/anything", {"prompt": ["a", "b"], "input": ["a", "b"], "n": 3}, 1, 1),
    ],
)
def test_each_endpoint_has_its_own_list_of_prompts(
    path: str, fields: dict[str, object], prompts: int, sequences: int
) -> None:
    """
    A member that the endpoint does not know changes nothing, and n only where answers are made.
    """
    ask = read_ask("POST", path, json.dumps(fields).encode())

    assert (ask.prompts, ask.sequences) == (prompts, sequences)


def test_a_response_is_told_its_id() -> None:
    """
    vLLM knows it by its answer's id and not by X-Request-Id; nothing else of the body is touched.
    """
    body = b'{ "model" : "m",\n "input":"x", "stream": true }'

    ask = read_ask("POST", "/v1/responses", body, answer_id="resp_0123456789abcdef")

    assert ask.body.startswith(body[:-1])
    assert json.loads(ask.body)["request_id"] == ask.answer_id == "resp_0123456789abcdef"
    assert json.loads(read_ask("POST", "/v1/responses", b"{}", answer_id="resp_1").body) == {"request_id": "resp_1"}


@pytest.mark.parametrize(("own", "known"), [('"mine"', "mine"), ("7", None), ("null", None), ('""', None)])
def test_an_id_of_the_clients_own_stays(own: str, known: str | None) -> None:
    """
    One that is no text is the engine's to refuse.
    """
    body = b'{"input":"x","request_id":' + own.encode() + b"}"

    ask = read_ask("POST", "/v1/responses", body, answer_id="resp_1")

    assert (ask.body, ask.answer_id) == (body, known)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", CHAT, b'{"model":"m"}'),
        ("POST", "/v1/responses", b'["no object"]'),
        ("POST", "/v1/responses", b"no JSON"),
        ("GET", "/v1/responses", b'{"input":"x"}'),
        ("POST", "/v1/responses/resp_1/cancel", b"{}"),
    ],
)
def test_other_requests_are_told_no_id(method: str, path: str, body: bytes) -> None:
    """
    Everywhere else the engine takes X-Request-Id.
    """
    ask = read_ask(method, path, body, answer_id="resp_1")

    assert (ask.body, ask.answer_id) == (body, None)
