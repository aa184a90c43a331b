"""The simulated engine: its bodies are vLLM 0.32's to the byte, and its faults are those that were asked for."""

import itertools
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.engine.answers import Script
from tests.engine.simulated import Canned, SimulatedEngine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "bada kopi zulo"}], "ignore_eos": True}
COMPLETION = {"model": "tiny", "prompt": "bada kopi zulo", "ignore_eos": True}
USAGE = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}

# Recorded from a real server; ids, times, texts and the fingerprint are replaced by the letters `plain` puts there.
CHAT_HEAD = '{"id":"chatcmpl-R","object":"chat.completion.chunk","created":T,"model":"tiny",'
ROLE = (
    CHAT_HEAD
    + '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
    '"prompt_token_ids":null,"prompt_text":null}'
)
DELTA = (
    CHAT_HEAD + '"choices":[{"index":0,"delta":{"content":"W"},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
)
LAST_CHOICE = (
    '"choices":[{"index":0,"delta":{"content":"W"},"logprobs":null,"finish_reason":"length","stop_reason":null,'
    '"token_ids":null}]'
)
CHAT_USAGE = (
    CHAT_HEAD
    + '"choices":[],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,"prompt_tokens_details":'
    '{"cached_tokens":0,"created_cache_tokens":0}},"system_fingerprint":"F"}'
)
DEATH = (
    '{"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
    '"type": "InternalServerError", "param": null, "code": 500}}'
)


def plain(body: str) -> str:
    """The body with all that differs between two runs replaced: times, the fingerprint, and the words."""
    for pattern, letter in (
        (r'("created(?:_at)?":)\d+', r"\1T"),
        (r'("system_fingerprint":)"[^"]+"', r'\1"F"'),
        (r'("(?:content|text|delta)":)"[ a-z]+"', r'\1"W"'),
        (r'"(msg|modelperm)-?_?[0-9a-f]+"', r'"\1"'),
    ):
        body = re.sub(pattern, letter, body)
    return body


def get(engine: SimulatedEngine, path: str, **headers: str) -> httpx.Response:
    """Asks without a body."""
    # without verify=False every client would load all certificate authorities, for 20 ms
    return httpx.get(engine.url + path, headers=headers, verify=False)


@contextmanager
def streamed(engine: SimulatedEngine, **fields: object) -> Iterator[Iterator[bytes]]:
    """The pieces of a chat stream as they arrive."""
    body = {**CHAT, "stream": True, **fields}
    url = engine.url + "/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=5, verify=False) as answer:
        yield answer.iter_raw()


def post(engine: SimulatedEngine, path: str, body: object, **headers: str) -> httpx.Response:
    """Sends a JSON body under the request id R."""
    return httpx.post(engine.url + path, json=body, headers={"x-request-id": "R", **headers}, verify=False)


def chat(engine: SimulatedEngine, **fields: object) -> httpx.Response:
    """Asks for a chat answer of 2 tokens unless told otherwise."""
    return post(engine, "/v1/chat/completions", {**CHAT, "max_tokens": 2, **fields})


def data_of(stream: str) -> list[str]:
    """The data of each event, after checking that every event is one line and an empty one."""
    assert stream.endswith("\n\n")
    events = stream[:-2].split("\n\n")
    assert all(re.fullmatch(r"data: [^\n]+", event) for event in events)
    return [plain(event.removeprefix("data: ")) for event in events]


def metrics(engine: SimulatedEngine) -> dict[str, float]:
    """The engine's series by name and distinguishing label."""
    page = get(engine, "/metrics").text
    samples = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
    return {re.sub(r'(engine|model_name)="[^"]*",?', "", name): float(value) for name, value in samples}


def test_a_chat_answer_has_vllms_fields_in_vllms_order(simulated_engine: SimulatedEngine) -> None:
    answer = chat(simulated_engine)
    assert [name for name, _ in answer.headers.multi_items()] == [
        "date",
        "server",
        "content-length",
        "content-type",
        "vary",
    ]
    assert plain(answer.text) == (
        '{"id":"chatcmpl-R","object":"chat.completion","created":T,"model":"tiny","choices":[{"index":0,"message":'
        '{"role":"assistant","content":"W","refusal":null,"annotations":null,"audio":null,"function_call":null,'
        '"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,'
        '"routed_experts":null}],"service_tier":null,"system_fingerprint":"F","usage":{"prompt_tokens":7,'
        '"total_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":0,'
        '"multimodal_tokens":null},"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,'
        '"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
    )


def test_a_completion_with_two_prompts_has_one_usage_for_both(simulated_engine: SimulatedEngine) -> None:
    answer = post(simulated_engine, "/v1/completions", {**COMPLETION, "prompt": ["bada", [5, 6]], "max_tokens": 1})
    choice = (
        '"text":"W","logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,'
        '"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}'
    )
    assert plain(answer.text) == (
        '{"id":"cmpl-R","object":"text_completion","created":T,"model":"tiny","choices":[{"index":0,'
        + choice
        + ',{"index":1,'
        + choice
        + '],"service_tier":null,"system_fingerprint":"F","usage":{"prompt_tokens":3,"total_tokens":5,'
        '"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":null,'
        '"multimodal_tokens":null},"completion_tokens_details":null},"kv_transfer_params":null,'
        '"ec_transfer_params":null,"metrics":null}'
    )


def test_a_plain_chat_stream_has_no_usage_and_the_fingerprint_on_its_last_chunk(
    simulated_engine: SimulatedEngine,
) -> None:
    answer = chat(simulated_engine, stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert data_of(answer.text) == [ROLE, DELTA, CHAT_HEAD + LAST_CHOICE + ',"system_fingerprint":"F"}', "[DONE]"]


def test_include_usage_moves_the_fingerprint_to_a_last_chunk_without_choices(simulated_engine: SimulatedEngine) -> None:
    stream = chat(simulated_engine, stream=True, stream_options=USAGE).text
    assert data_of(stream) == [ROLE, DELTA, CHAT_HEAD + LAST_CHOICE + "}", CHAT_USAGE, "[DONE]"]


def test_continuous_usage_counts_in_every_chunk_from_zero(simulated_engine: SimulatedEngine) -> None:
    counts = '"usage":{"prompt_tokens":7,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}'
    stream = chat(simulated_engine, stream=True, stream_options=CONTINUOUS).text
    assert data_of(stream) == [
        ROLE.replace('"prompt_token_ids"', counts % (7, 0) + ',"prompt_token_ids"'),
        DELTA[:-1] + "," + counts % (8, 1) + "}",
        CHAT_HEAD + LAST_CHOICE + "," + counts % (9, 2) + "}",
        CHAT_USAGE,
        "[DONE]",
    ]


def test_continuous_usage_without_include_usage_is_nothing(simulated_engine: SimulatedEngine) -> None:
    with_it = chat(simulated_engine, stream=True, stream_options={"continuous_usage_stats": True}).text
    assert data_of(with_it) == data_of(chat(simulated_engine, stream=True).text)


def test_forced_usage_gives_both_kinds_of_usage_to_every_stream() -> None:
    with SimulatedEngine(enable_force_include_usage=True) as engine:
        forced = chat(engine, stream=True, stream_options={"include_usage": False}).text
    assert forced.count('"usage"') == 4


def test_two_choices_are_counted_each_for_itself_and_together_at_the_end(simulated_engine: SimulatedEngine) -> None:
    stream = chat(simulated_engine, n=2, stream=True, stream_options=CONTINUOUS).text
    chunks = [json.loads(data) for data in stream.replace("data: ", "").split("\n\n") if data.startswith("{")]
    seen = [(c["choices"][0]["index"], c["usage"]["completion_tokens"]) for c in chunks[:-1]]
    assert seen == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert chunks[-1]["usage"]["prompt_tokens"] == 7, "the prompt is counted once, though it is computed twice"
    assert metrics(simulated_engine)["vllm:prompt_tokens_total{}"] == 14


def test_a_completion_stream_counts_each_prompt_by_itself(simulated_engine: SimulatedEngine) -> None:
    body = {
        **COMPLETION,
        "prompt": ["bada", "kopi zulo"],
        "max_tokens": 1,
        "stream": True,
        "stream_options": CONTINUOUS,
    }
    head = '{"id":"cmpl-R","object":"text_completion","created":T,"model":"tiny",'
    choice = (
        '"choices":[{"index":%d,"text":"W","logprobs":null,"finish_reason":"length","stop_reason":null,'
        '"prompt_token_ids":null,"token_ids":null}],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":1}}'
    )
    assert data_of(post(simulated_engine, "/v1/completions", body).text) == [
        head + choice % (0, 1, 2),
        head + choice % (1, 2, 3),
        head + '"choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,"prompt_tokens_details":'
        '{"cached_tokens":0}},"system_fingerprint":"F"}',
        "[DONE]",
    ]


def test_a_response_stream_names_its_events_and_ends_without_done(simulated_engine: SimulatedEngine) -> None:
    body = {"model": "tiny", "input": "bada", "max_output_tokens": 2, "stream": True, "request_id": "resp_R"}
    stream = post(simulated_engine, "/v1/responses", body).text
    events = [re.fullmatch(r"event: (\S+)\ndata: (.+)", event) for event in stream[:-2].split("\n\n")]
    names = [event[1] for event in events if event]
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    bodies = [json.loads(event[2]) for event in events if event]
    assert [body["sequence_number"] for body in bodies] == list(range(10))
    assert [body["type"] for body in bodies] == names
    assert bodies[-1]["response"]["status"] == "incomplete"
    assert bodies[-1]["response"]["usage"]["output_tokens"] == 2
    assert plain(events[4][2] if events[4] else "") == (
        '{"content_index":0,"delta":"W","item_id":"msg","logprobs":[],"output_index":0,"sequence_number":4,'
        '"type":"response.output_text.delta"}'
    )


def test_models_and_tokenize_and_health_answer_as_vllm_does(simulated_engine: SimulatedEngine) -> None:
    assert plain(get(simulated_engine, "/v1/models").text) == (
        '{"object":"list","data":[{"id":"tiny","object":"model","created":T,"owned_by":"vllm","root":"tiny",'
        '"parent":null,"max_model_len":2048,"permission":[{"id":"modelperm","object":"model_permission","created":T,'
        '"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,'
        '"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}]}'
    )
    tokenized = post(simulated_engine, "/tokenize", {"model": "tiny", "prompt": "bada kopi"})
    assert re.fullmatch(r'\{"count":2,"max_model_len":2048,"tokens":\[\d+,\d+],"token_strs":null}', tokenized.text)
    health = get(simulated_engine, "/health")
    assert (health.status_code, health.content) == (200, b"")
    assert "content-type" not in health.headers


@pytest.mark.parametrize(
    ("fields", "status", "message", "kind", "param"),
    [
        ({"model": "no"}, 404, "The model `no` does not exist. Valid aliases: tiny.", "NotFoundError", "model"),
        ({"n": 0}, 400, "n must be at least 1, got 0.", "BadRequestError", None),
        (
            {"n": 2, "temperature": 0},
            400,
            "n must be 1 when using greedy sampling, got 2.",
            "BadRequestError",
            None,
        ),
        (
            {"stream_options": USAGE},
            400,
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            "BadRequestError",
            "stream_options",
        ),
        (
            {"max_tokens": 0},
            400,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
            "BadRequestError",
            "max_tokens",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_vllms_words(
    simulated_engine: SimulatedEngine,
    fields: dict[str, object],
    status: int,
    message: str,
    kind: str,
    param: str | None,
) -> None:
    answer = chat(simulated_engine, **fields)
    assert answer.status_code == status
    assert answer.json() == {"error": {"message": message, "type": kind, "param": param, "code": status}}


def test_malformed_json_is_refused_with_the_place_of_the_mistake(simulated_engine: SimulatedEngine) -> None:
    url = simulated_engine.url + "/v1/chat/completions"
    content = b'{"model": "tiny", "messages": ['
    answer = httpx.post(url, content=content, headers={"content-type": "application/json"}, verify=False)
    assert answer.status_code == 400
    assert answer.text == (
        "{\"error\":{\"message\":\"1 validation error:\\n  {'type': 'json_invalid', 'loc': 'body.31', 'msg': "
        "'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}\","
        '"type":"Bad Request","param":"body.31","code":400}}'
    )


def test_embeddings_are_found_only_on_a_pooling_server(simulated_engine: SimulatedEngine) -> None:
    body = {"model": "tiny", "input": ["bada", "kopi zulo"]}
    answer = post(simulated_engine, "/v1/embeddings", body)
    assert (answer.status_code, answer.text) == (404, '{"detail":"Not Found"}')
    with SimulatedEngine(pooling=True) as pooling:
        answer = post(pooling, "/v1/embeddings", body)
        assert chat(pooling).status_code == 404
    assert [item["index"] for item in answer.json()["data"]] == [0, 1]
    assert answer.json()["usage"]["prompt_tokens"] == 3


def test_a_key_guards_the_paths_under_v1_and_no_others() -> None:
    with SimulatedEngine(api_key="secret") as engine:
        refused = get(engine, "/v1/models")
        assert (refused.status_code, refused.text) == (401, '{"error":"Unauthorized"}')
        assert get(engine, "/v1/models", authorization="Bearer secret").status_code == 200
        assert get(engine, "/metrics").status_code == 200


def test_the_same_question_has_the_same_answer_streamed_or_not(simulated_engine: SimulatedEngine) -> None:
    whole = chat(simulated_engine, max_tokens=9).json()["choices"][0]["message"]["content"]
    stream = chat(simulated_engine, max_tokens=9, stream=True).text
    assert "".join(re.findall(r'"delta":\{"content":"([^"]+)"', stream)) == whole
    other = chat(simulated_engine, max_tokens=9, messages=[{"role": "user", "content": "else"}])
    assert other.json()["choices"][0]["message"]["content"] != whole


def test_an_answer_ends_by_itself_unless_it_must_be_long(simulated_engine: SimulatedEngine) -> None:
    short = chat(simulated_engine, ignore_eos=False, max_tokens=100).json()
    assert (short["choices"][0]["finish_reason"], short["usage"]["completion_tokens"]) == ("stop", 16)
    long = chat(simulated_engine, max_tokens=100).json()
    assert (long["choices"][0]["finish_reason"], long["usage"]["completion_tokens"]) == ("length", 100)


def test_a_prompt_seen_before_is_read_from_the_cache_in_whole_blocks(simulated_engine: SimulatedEngine) -> None:
    body = {**COMPLETION, "prompt": list(range(100)), "max_tokens": 1}
    cached = [
        post(simulated_engine, "/v1/completions", {**body, **salt}).json()["usage"]["prompt_tokens_details"]
        for salt in ({}, {}, {"cache_salt": "another tenant"})
    ]
    assert [details["cached_tokens"] for details in cached] == [0, 96, 0]
    series = metrics(simulated_engine)
    assert series['vllm:prompt_tokens_by_source_total{source="local_compute"}'] == 204
    assert series['vllm:prompt_tokens_by_source_total{source="local_cache_hit"}'] == 96


def test_metrics_count_steps_and_the_tokens_computed_in_them(simulated_engine: SimulatedEngine) -> None:
    chat(simulated_engine, max_tokens=5)
    series = metrics(simulated_engine)
    assert series["vllm:num_requests_running{}"] == 0
    assert series["vllm:num_requests_waiting{}"] == 0
    assert series["vllm:num_preemptions_total{}"] == 0
    assert series["vllm:generation_tokens_total{}"] == 5
    assert series["vllm:iteration_tokens_total_count{}"] == 5
    assert series["vllm:iteration_tokens_total_sum{}"] == 7 + 5
    assert series['vllm:request_success_total{finished_reason="length",}'] == 1


def test_requests_share_steps_and_each_step_says_whose_tokens_it_made() -> None:
    with SimulatedEngine(step_s=0.005) as engine:
        body = {**COMPLETION, "prompt": [[1, 2, 3], [4, 5]], "max_tokens": 3}
        post(engine, "/v1/completions", body)
        steps = engine.steps
    assert [step.prefill for step in steps] == [{"cmpl-R-0": 3, "cmpl-R-1": 2}, {}, {}]
    assert [step.decode for step in steps] == [{}, *[{"cmpl-R-0": 1, "cmpl-R-1": 1}] * 2]
    assert all(step.ended_ns - step.started_ns >= 5_000_000 for step in steps)


def test_prefill_takes_its_time_for_every_token_that_is_not_cached() -> None:
    with SimulatedEngine(prefill_s_per_token=0.001) as engine:
        post(engine, "/v1/completions", {**COMPLETION, "prompt": [7] * 40, "max_tokens": 2})
        post(engine, "/v1/completions", {**COMPLETION, "prompt": [7] * 40, "max_tokens": 1})
        first, second, third = engine.steps
    assert first.ended_ns - first.started_ns >= 40_000_000
    assert second.prefill == {}
    assert third.prefill == {"cmpl-R-0": 8}


def test_more_sequences_than_places_wait_their_turn() -> None:
    with SimulatedEngine(max_num_seqs=2) as engine:
        post(engine, "/v1/completions", {**COMPLETION, "prompt": [[1]] * 5, "max_tokens": 2})
        widths = [len(step.prefill) + len(step.decode) for step in engine.steps]
    assert widths == [2, 2, 2, 2, 1, 1]


def test_request_metrics_are_given_for_one_sequence_only() -> None:
    with SimulatedEngine(enable_per_request_metrics=True) as engine:
        one = chat(engine).json()["metrics"]
        assert list(one) == [
            "time_to_first_token_ms",
            "generation_time_ms",
            "queue_time_ms",
            "mean_itl_ms",
            "tokens_per_second",
            "speculative_decoding",
        ]
        assert chat(engine, n=2).json()["metrics"] is None
        streamed = json.loads(data_of(chat(engine, stream=True, stream_options=USAGE).text)[-2].replace(":T,", ":0,"))
    assert list(streamed["metrics"]) == list(one)[:-1]


def test_requests_are_kept_as_they_came(simulated_engine: SimulatedEngine) -> None:
    httpx.post(
        simulated_engine.url + "/v1/chat/completions?a=b", content=b" {", headers={"X-Tenant": "t"}, verify=False
    )
    received = simulated_engine.wait_for_request()
    assert (received.method, received.path, received.query) == ("POST", "/v1/chat/completions", "a=b")
    assert received.body == b" {"
    assert received.headers["x-tenant"] == "t"


def test_tokens_can_leave_several_to_a_chunk(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(tokens_per_chunk=4))
    stream = chat(simulated_engine, max_tokens=7, stream=True, stream_options=CONTINUOUS).text
    assert re.findall(r'"completion_tokens":(\d+)', stream) == ["0", "1", "5", "7", "7"]


def test_a_silent_token_has_no_chunk_in_a_chat_and_an_empty_one_in_a_completion(
    simulated_engine: SimulatedEngine,
) -> None:
    simulated_engine.always = Script(silent_every=3)
    stream = chat(simulated_engine, max_tokens=5, stream=True, stream_options=CONTINUOUS).text
    assert re.findall(r'"completion_tokens":(\d+)', stream) == ["0", "1", "2", "4", "5", "5"]
    body = {**COMPLETION, "max_tokens": 3, "stream": True}
    assert re.findall(r'"text":"( ?)', post(simulated_engine, "/v1/completions", body).text) == [" ", " ", ""]


def test_token_ids_come_with_every_chunk_when_asked_for(simulated_engine: SimulatedEngine) -> None:
    stream = chat(simulated_engine, stream=True, return_token_ids=True).text
    ids = [int(i) for i in re.findall(r'"token_ids":\[(\d+)]', stream)]
    whole = chat(simulated_engine, return_token_ids=True).json()
    assert ids == whole["choices"][0]["token_ids"]
    assert len(whole["prompt_token_ids"]) == 7
    words = post(simulated_engine, "/detokenize", {"model": "tiny", "tokens": ids}).json()["prompt"]
    assert words == whole["choices"][0]["message"]["content"]


def test_a_stream_cut_into_pieces_is_the_same_stream(simulated_engine: SimulatedEngine) -> None:
    whole = chat(simulated_engine, stream=True).text
    simulated_engine.script(Script(piece_bytes=7))
    assert plain(chat(simulated_engine, stream=True).text) == plain(whole)


def test_a_scripted_status_is_answered_once_and_then_all_is_well(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(status=503), Script(status=429, body=b"slow down"))
    busy = chat(simulated_engine)
    assert (busy.status_code, busy.json()["error"]["type"]) == (503, "Service Unavailable")
    limited = chat(simulated_engine)
    assert (limited.status_code, limited.text) == (429, "slow down")
    assert chat(simulated_engine).status_code == 200


def test_a_dropped_stream_ends_after_the_events_asked_for(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(drop_after=2))
    seen: list[bytes] = []
    with streamed(simulated_engine, max_tokens=9) as pieces, pytest.raises(httpx.RemoteProtocolError):
        seen.extend(pieces)
    assert b"".join(seen).count(b"data: ") == 2
    assert not simulated_engine.wait_for_request().disconnected.is_set(), "the server left, not the client"
    assert chat(simulated_engine).status_code == 200


@pytest.mark.parametrize("after", [0, 1])
def test_a_dropped_answer_that_is_not_streamed_is_none_or_half(simulated_engine: SimulatedEngine, after: int) -> None:
    simulated_engine.script(Script(drop_after=after))
    with pytest.raises(httpx.RemoteProtocolError):
        chat(simulated_engine)


def test_a_stalled_stream_goes_on_when_it_is_released(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(stall_after=2))
    with streamed(simulated_engine, max_tokens=6, stream_options=CONTINUOUS) as pieces:
        seen = next(pieces)
        while seen.count(b"data: ") < 2:
            seen += next(pieces)
        deadline = time.monotonic() + 10
        while simulated_engine.counters.generated < 6 and time.monotonic() < deadline:
            time.sleep(0.005)
        simulated_engine.release()
        seen += b"".join(pieces)
    assert seen.endswith(b"data: [DONE]\n\n")
    assert re.findall(rb'"completion_tokens":(\d+)', seen) == [b"0", b"1", b"2", b"6", b"6"], "the engine computed on"


def test_an_engine_that_dies_in_a_stream_says_so_in_an_event(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(die_after=2))
    answer = chat(simulated_engine, stream=True)
    assert answer.status_code == 200
    assert data_of(answer.text) == [ROLE, DELTA, DEATH, "[DONE]"]


def test_a_response_stream_breaks_off_when_the_engine_dies(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(die_after=4))
    with pytest.raises(httpx.RemoteProtocolError):
        post(simulated_engine, "/v1/responses", {"model": "tiny", "input": "bada", "stream": True})


def test_an_engine_that_dies_ends_what_is_in_progress_and_is_unhealthy() -> None:
    with SimulatedEngine(step_s=0.001) as engine:
        with streamed(engine, max_tokens=2000) as pieces:
            seen = next(pieces)
            engine.die()
            seen += b"".join(pieces)
        assert data_of(seen.decode())[-2:] == [DEATH, "[DONE]"]
        assert get(engine, "/health").status_code == 503
        assert (chat(engine).status_code, chat(engine, stream=True).status_code) == (500, 500)


def test_garbage_is_one_event_and_the_stream_goes_on(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(garbage_after=1))
    data = data_of(chat(simulated_engine, stream=True).text)
    assert len(data) == 5
    with pytest.raises(json.JSONDecodeError):
        json.loads(data[1])


def test_the_first_byte_can_be_late(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.script(Script(first_byte_after_s=0.05))
    started = time.monotonic()
    assert chat(simulated_engine).status_code == 200
    assert time.monotonic() - started >= 0.05


def test_an_engine_that_is_down_refuses_connections_and_comes_back_empty_on_its_port() -> None:
    with SimulatedEngine() as engine:
        chat(engine)
        port = engine.port
        engine.down()
        with pytest.raises(httpx.ConnectError):
            chat(engine)
        engine.up()
        assert engine.port == port
        assert metrics(engine)["vllm:generation_tokens_total{}"] == 0
        assert chat(engine).status_code == 200


def test_going_down_breaks_off_what_is_in_progress() -> None:
    with SimulatedEngine(step_s=0.001) as engine, streamed(engine, max_tokens=2000) as pieces:
        next(pieces)
        engine.down()
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            list(pieces)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_noted_and_its_sequence_stops(stream: bool) -> None:
    with SimulatedEngine(step_s=0.001) as engine:
        body = json.dumps({**CHAT, "max_tokens": 2000, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", engine.port)) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            request = engine.wait_for_request()
            if stream:
                client.recv(1)
        assert request.disconnected.wait(5)
        assert request.over.wait(5)
        assert metrics(engine)["vllm:num_requests_running{}"] == 0
        assert engine.counters.generated < 2000
        assert engine.counters.finished["length"] == 0


def test_a_slow_reader_gets_many_tokens_in_one_chunk() -> None:
    with SimulatedEngine(send_buffer_bytes=4096) as engine:
        body = json.dumps({**CHAT, "max_tokens": 2000, "stream": True, "stream_options": CONTINUOUS}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", engine.port))
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            deadline = time.monotonic() + 5
            while engine.wait_for_request() and engine.counters.generated < 2000:
                assert time.monotonic() < deadline, "the engine waits for its reader"
                time.sleep(0.01)
            seen = b"".join(iter(lambda: client.recv(65536), b""))
    counts = [int(count) for count in re.findall(rb'"completion_tokens":(\d+)', seen)]
    assert counts[-1] == 2000
    assert max(after - before for before, after in itertools.pairwise(counts)) > 100


def test_a_canned_answer_takes_the_place_of_any_path(simulated_engine: SimulatedEngine) -> None:
    simulated_engine.canned["/metrics"] = Canned(500, b"broken", "text/plain")
    answer = get(simulated_engine, "/metrics")
    assert (answer.status_code, answer.text) == (500, "broken")
    assert get(simulated_engine, "/version").json() == {"version": "0.32.0"}
