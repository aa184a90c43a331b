"""
What the client sees of a stream is what the engine would have sent it, wherever the network cuts the bytes.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.answer import Fingerprint, StreamTap
from proxy.wire.ask import read_ask

HEAD = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
ROLE = b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
TAIL = b',"prompt_token_ids":null,"prompt_text":null}\n\n'
PRINT = b',"system_fingerprint":"vllm-x"'


def word(index: int, text: bytes, finish: bytes = b"null") -> bytes:
    return b'[{"index":%d,"delta":{"content":"%s"},"logprobs":null,"finish_reason":%s,"token_ids":null}]' % (
        index,
        text,
        finish,
    )


def counted(completion: int) -> bytes:
    return (
        b',"usage":{"prompt_tokens":10,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}'
        % (
            10 + completion,
            completion,
        )
    )


ENGINE = b"".join(
    [
        HEAD + ROLE + counted(0) + TAIL,
        HEAD + word(0, b' a,\\"usage\\":{') + counted(1) + b"}\n\n",
        HEAD + word(1, b" b") + counted(1) + b"}\n\n",
        HEAD + word(0, b" c", b'"length"') + counted(2) + b"}\n\n",
        HEAD + word(1, b"\xef\xbf\xbd") + counted(2) + b"}\n\n",
        HEAD + word(1, b" d", b'"length"') + counted(3) + b"}\n\n",
        HEAD + b'[],"usage":{"prompt_tokens":10,"total_tokens":15,"completion_tokens":5,'
        b'"prompt_tokens_details":{"cached_tokens":4}}' + PRINT + b"}\n\n",
        b"data: [DONE]\n\n",
    ]
)
PLAIN = b"".join(
    [
        HEAD + ROLE + TAIL,
        HEAD + word(0, b' a,\\"usage\\":{') + b"}\n\n",
        HEAD + word(1, b" b") + b"}\n\n",
        HEAD + word(0, b" c", b'"length"') + PRINT + b"}\n\n",
        HEAD + word(1, b"\xef\xbf\xbd") + b"}\n\n",
        HEAD + word(1, b" d", b'"length"') + PRINT + b"}\n\n",
    ]
)


def relayed(options: bytes, pieces: list[bytes], fingerprint: Fingerprint) -> tuple[bytes, StreamTap]:
    body = b'{"model":"m","stream":true,"messages":[],"n":2' + options + b"}"
    tap = StreamTap(read_ask("POST", "/v1/chat/completions", body), fingerprint)
    seen = b"".join(tap.feed(piece) for piece in pieces)
    return seen + tap.finish(b'{"energy_joules":1.0}', comment=b": energy {}", in_usage=False), tap


@pytest.mark.parametrize("known", [None, PRINT], ids=["fingerprint unknown", "fingerprint known"])
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64, 300, 10_000])
def test_hidden_usage_leaves_the_plain_stream(cut: int, known: bytes | None) -> None:
    """
    Without stream_options the client gets the plain stream and one comment line.
    """
    pieces = [ENGINE[start : start + cut] for start in range(0, len(ENGINE), cut)]

    seen, tap = relayed(b"", pieces, Fingerprint(known))

    assert PLAIN + b": energy {}\ndata: [DONE]\n\n" == seen
    assert (10, 4, 5) == (tap.counts.prompt, tap.counts.cached, tap.counts.completion)


@pytest.mark.parametrize("cut", range(0, len(ENGINE), 5))
def test_any_cut_in_two_gives_the_same_bytes(cut: int) -> None:
    """
    Where the network splits the stream does not matter.
    """
    seen, _ = relayed(b"", [ENGINE[:cut], ENGINE[cut:]], Fingerprint())

    assert PLAIN + b": energy {}\ndata: [DONE]\n\n" == seen


def test_include_usage_alone_shows_only_the_last_usage() -> None:
    """
    Running usage is taken out, the final chunk stays, and fingerprints stay where the engine put them.
    """
    seen, _ = relayed(b',"stream_options":{"include_usage":true}', [ENGINE], Fingerprint())

    final = ENGINE[ENGINE.index(HEAD + b"[]") : ENGINE.index(b"data: [DONE]")]
    assert PLAIN.replace(PRINT, b"") + final + b": energy {}\ndata: [DONE]\n\n" == seen


def test_continuous_usage_is_passed_as_it_came() -> None:
    """
    Who asked for everything gets every byte.
    """
    options = b',"stream_options":{"include_usage":true,"continuous_usage_stats":true}'

    seen, _ = relayed(options, [ENGINE], Fingerprint())

    assert ENGINE.replace(b"data: [DONE]", b": energy {}\ndata: [DONE]") == seen


def test_energy_in_usage_on_request() -> None:
    """
    With x-energy: usage the object stands in the usage chunk, which is shown then.
    """
    body = b'{"model":"m","stream":true,"messages":[]}'
    tap = StreamTap(read_ask("POST", "/v1/chat/completions", body, usage_wanted=True), Fingerprint())
    tap.feed(ENGINE)

    closing = tap.finish(b'{"energy_joules":1.0}', comment=b": energy {}", in_usage=True)

    assert b'"cached_tokens":4},"energy":{"energy_joules":1.0}}' + PRINT + b"}\n\ndata: [DONE]\n\n" in closing


def test_an_error_event_is_passed_and_noted() -> None:
    """
    The engine's own words reach the client; the stream counts as failed.
    """
    broken = b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\ndata: [DONE]\n\n'

    seen, tap = relayed(b"", [broken], Fingerprint())

    assert broken.replace(b"data: [DONE]", b": energy {}\ndata: [DONE]") == seen
    assert tap.failed


def test_responses_stream_ends_with_its_own_event() -> None:
    """
    /v1/responses has no [DONE]: the comment stands before the completed event, whose usage is counted.
    """
    delta = b'event: response.output_text.delta\ndata: {"delta":" a","type":"response.output_text.delta"}\n\n'
    end = (
        b'event: response.completed\ndata: {"response":{"id":"r","usage":{"input_tokens":8,"input_tokens_details":'
        b'{"cached_tokens":2},"output_tokens":4},"user":null},"type":"response.completed"}\n\n'
    )
    ask = read_ask("POST", "/v1/responses", b'{"model":"m","input":"x","stream":true}')
    tap = StreamTap(ask, Fingerprint())

    seen = tap.feed(delta + delta) + tap.feed(end)
    closing = tap.finish(b"{}", comment=b": energy {}", in_usage=False)

    assert (delta + delta, b": energy {}\n" + end) == (seen, closing)
    assert (8, 2, 4) == (tap.counts.prompt, tap.counts.cached, tap.counts.completion)


def test_a_messages_stream_ends_with_its_own_event() -> None:
    """
    /v1/messages counts cached prompt tokens apart; here they are a part of the prompt, as everywhere.
    """
    start = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":59}}}\n\n'
    delta = (
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{'
        b'"input_tokens":7,"output_tokens":3,"cache_creation_input_tokens":20,"cache_read_input_tokens":32}}\n\n'
    )
    end = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    tap = StreamTap(read_ask("POST", "/v1/messages", b'{"model":"m","stream":true}'), Fingerprint())

    seen = tap.feed(start + delta + end)

    assert seen == start + delta
    assert tap.complete
    assert tap.finish(b"{}", comment=b": energy {}", in_usage=False) == b": energy {}\n" + end
    assert (tap.counts.prompt, tap.counts.cached, tap.counts.completion) == (59, 32, 3)


def test_a_running_prompt_count_is_that_of_all_prompts() -> None:
    """
    vLLM counts in each chunk the prompt its choice belongs to; two answers to one prompt count it once.
    """
    ask = read_ask("POST", "/v1/completions", b'{"model":"m","prompt":["a","b"],"n":2,"stream":true}')
    tap = StreamTap(ask, Fingerprint())
    for index, prompt in enumerate((5, 5, 7, 7)):
        usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":1}' % prompt
        tap.feed(b'data: {"choices":[{"index":%d,"text":"x"}],%s}\n\n' % (index, usage))

    assert (tap.counts.prompt, tap.counts.completion) == (12, 4)


def test_a_cut_stream_is_not_complete_and_keeps_its_rest() -> None:
    """
    What the backend left unfinished is not thrown away.
    """
    ask = read_ask("POST", "/v1/chat/completions", b'{"model":"m","stream":true}')
    tap = StreamTap(ask, Fingerprint())
    tap.feed(ENGINE[:100])

    assert (False, ENGINE[:100]) == (tap.complete, tap.rest)


def test_a_restarted_engines_fingerprint_replaces_the_old_one() -> None:
    """
    Every final usage event tells it anew; an engine that has none any more has none.
    """
    fingerprint = Fingerprint(PRINT)
    newer = ENGINE.replace(PRINT, b',"system_fingerprint":"vllm-y"')

    relayed(b"", [newer], fingerprint)
    assert fingerprint.member == b',"system_fingerprint":"vllm-y"'
    seen, _ = relayed(b"", [newer], fingerprint)
    assert PLAIN.replace(b"vllm-x", b"vllm-y") + b": energy {}\ndata: [DONE]\n\n" == seen

    relayed(b"", [ENGINE.replace(PRINT, b"")], fingerprint)
    assert fingerprint.member == b""


TRICKY = [
    '"usage":{',
    ',"usage":{"prompt_tokens":1,"completion_tokens":9}',
    '"finish_reason":"stop"',
    "}\n\n",
    "[DONE]",
    "é",
]
WORDS = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(TRICKY)), min_size=1, max_size=12)
OPTIONS = st.sampled_from(
    [
        b"",
        b',"stream_options":{"include_usage":true}',
        b',"stream_options":{"include_usage":true,"continuous_usage_stats":true}',
    ]
)


class Slowly(StreamTap):
    """Looks at every chunk closely."""

    def _pass_quickly(self, event: bytes) -> None:
        return None


@given(WORDS, OPTIONS, st.sampled_from(["length", "stop"]), st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_what_is_passed_quickly_is_passed_alike(words: list[str], options: bytes, why: str, cuts: list[int]) -> None:
    """
    A stream of one choice, whatever its words and wherever it is cut.
    """
    texts = [json.dumps(word)[1:-1].encode() for word in words]
    events = [HEAD + ROLE + counted(0) + TAIL]
    events += [HEAD + word(0, text) + counted(number) + b"}\n\n" for number, text in enumerate(texts, 1)]
    events.append(HEAD + word(0, b"", b'"%s"' % why.encode()) + counted(len(texts) + 1) + b"}\n\n")
    events += [HEAD + b"[]" + counted(len(texts) + 1) + PRINT + b"}\n\n", b"data: [DONE]\n\n"]
    stream, pieces = b"".join(events), []
    for number in range(len(stream)):
        cut = cuts[number % len(cuts)]
        pieces, stream = [*pieces, stream[:cut]], stream[cut:]
    ask = read_ask("POST", "/v1/chat/completions", b'{"model":"m","stream":true,"messages":[]' + options + b"}")

    quick, slow = StreamTap(ask, Fingerprint()), Slowly(ask, Fingerprint())

    for piece in (*events[:-1], *pieces):
        assert quick.feed(piece) == slow.feed(piece)
        assert quick.counts == slow.counts
