"""Facts of a streamed answer, from lines in vLLM's shape."""

import pytest

from loadgen.answer import Answer, error_message

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":" rawa"},"finish_reason":null}]}\n'
EMPTY = b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}\n'
END = b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"length"}]}\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":10,"total_tokens":16,"completion_tokens":6}}\n'
ENERGY = b': energy {"energy_joules": 1.2345678, "grade": "B", "estimated": false}\n'
DONE = b"data: [DONE]\n"


def heard(*lines: bytes) -> Answer:
    """The answer after these lines, the k-th at 10 * k ns."""
    answer = Answer()
    for k, line in enumerate(lines):
        answer.read(line, 10 * k)
    return answer


def test_a_whole_answer_is_read() -> None:
    """Times of first and last content, usage, energy in whole microjoules, and the end."""
    answer = heard(ROLE, b"\n", WORD, b"\n", WORD, b"\n", USAGE, ENERGY, DONE)

    assert (answer.first_ns, answer.last_ns) == (20, 40)
    assert (answer.prompt_tokens, answer.completion_tokens) == (10, 6)
    assert answer.energy_uj == 1_234_568
    assert answer.energy["grade"] == "B"
    assert answer.done
    assert answer.error is None


def test_the_first_token_is_the_first_content() -> None:
    """Neither the role nor an empty chunk has a token to show."""
    assert heard(ROLE, EMPTY).first_ns is None


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thinking_is_content(key: str) -> None:
    """A reasoning model's first token is one the user waits for."""
    assert heard(ROLE, b'data: {"choices":[{"delta":{"%s":"hm"}}]}' % key.encode()).first_ns == 10


def test_the_end_without_text_is_the_last_token() -> None:
    """The last token may be half a character."""
    assert heard(WORD, END, USAGE).last_ns == 10


@pytest.mark.parametrize(
    "comment", [b": keep-alive\n", b": energy unknown\n", b': energy {"energy_joules": null}\n', b": energy [1]\n"]
)
def test_energy_that_is_not_told_is_none(comment: bytes) -> None:
    """Absent is not zero."""
    assert heard(WORD, comment, DONE).energy_uj is None


def test_energy_in_the_usage_object_is_read_too() -> None:
    """A proxy may be asked to put it there."""
    assert heard(b'data: {"choices":[],"usage":{"energy":{"energy_joules":2}}}').energy_uj == 2_000_000


def test_an_error_event_is_the_answers_error() -> None:
    """An engine that dies in the middle still says 200 at the start."""
    assert heard(WORD, b'data: {"error":{"message":"EngineDead","code":500}}', DONE).error == "EngineDead"


def test_a_line_that_is_no_json_is_an_error() -> None:
    """It is shown, not skipped."""
    assert "not a JSON object" in str(heard(b"data: {oops").error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"too long"}}', "too long"),
        (b'{"error":"Unauthorized"}', "Unauthorized"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"<html>busy</html>", "<html>busy</html>"),
    ],
)
def test_a_refusal_says_why(body: bytes, said: str) -> None:
    """In OpenAI's shape, FastAPI's, or none."""
    assert error_message(body) == said
