"""
A usage object is found, read, cut out and extended by its bytes; nothing else of the answer moves.
"""

import json

import pytest

from proxy.wire import usage
from proxy.wire.usage import Usage

CHAT = b'{"id":"a","choices":[{"text":"hi ,\\"usage\\":{\\"prompt_tokens\\":99}"}],"usage":%s,"metrics":null}'
COUNTS = b'{"prompt_tokens":10,"total_tokens":14,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}'


def place_in(data: bytes) -> usage.Place:
    found = usage.locate(data)
    assert found is not None
    return found


def test_the_object_is_found_and_not_its_likeness_in_a_text() -> None:
    """Inside a string every quote is escaped."""
    data = CHAT % COUNTS

    place = place_in(data)

    assert data[place.body : place.end] == COUNTS
    assert usage.read(data, place) == Usage(10, 4, 8)


@pytest.mark.parametrize(
    "data", [b"", b"{}", CHAT % b"null", b'{"usage":{}}', b'{"a":1,"usage":{"prompt_tokens":1', b"\xff"]
)
def test_no_usage(data: bytes) -> None:
    """None, null, the only member, cut off: there is nothing to read."""
    assert usage.locate(data) is None


def test_the_last_one_counts() -> None:
    """An object of the same name deeper in the answer comes before the outermost one."""
    data = b'{"x":{"y":1,"usage":{"prompt_tokens":1}},"usage":{"prompt_tokens":2}}'

    assert usage.read(data, place_in(data)).prompt == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"input_tokens":8,"input_tokens_details":{"cached_tokens":2},"output_tokens":5}', Usage(8, 5, 2)),
        (b'{ "prompt_tokens" : 3 }', Usage(3, None, None)),
        (
            b'{"input_tokens":5,"cache_read_input_tokens":7,"cache_creation_input_tokens":2,"output_tokens":1}',
            Usage(14, 1, 7),
        ),
        (b"{}", Usage(None, None, None)),
        (b'{"prompt_tokens":null,"completion_tokens":0}', Usage(None, 0, None)),
    ],
)
def test_the_names_of_each_api(body: bytes, expected: Usage) -> None:
    """Chat, /v1/responses and /v1/messages; what is not said is not 0."""
    data = b'{"a":1,"usage":' + body + b"}"

    assert usage.read(data, place_in(data)) == expected


def test_cut_out_with_its_comma() -> None:
    """What remains is the answer without the member, and still JSON."""
    data = CHAT % COUNTS

    without = usage.without(data, place_in(data))

    assert without == data.replace(b',"usage":' + COUNTS, b"")
    assert "usage" not in json.loads(without)
    assert usage.without(data, place_in(data), b',"x":1') == data.replace(b'"usage":' + COUNTS, b'"x":1')


@pytest.mark.parametrize("body", [COUNTS, b"{}", b"{ }"])
def test_energy_becomes_its_last_member(body: bytes) -> None:
    """Every byte before it stays, and the whole is JSON."""
    data = CHAT % body

    extended = usage.with_energy(data, place_in(data), b'{"energy_joules":1.5}')

    assert json.loads(extended)["usage"] == json.loads(body) | {"energy": {"energy_joules": 1.5}}
    assert extended.startswith(data[: data.index(body) + len(body) - 1])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"queue_time_ms": 1.25e1}', 12.5),
        (b'{"queue_time_ms":null}', None),
        (b"{}", None),
        (b'{"queue_time_ms":-1}', None),
        (b'{"queue_time_ms":1e999}', None),
        (b'{"queue_time_ms":1.2.3}', None),
        (b'{"queue_time_ms":+-}', None),
        (b'{"x":{"queue_time_ms":9},"metrics":{"queue_time_ms":2}}', 2.0),
    ],
)
def test_queue_time(data: bytes, expected: float | None) -> None:
    """vLLM's own figure, where it gives one; what is no such time is none, and never an exception."""
    assert usage.queue_time_ms(data) == expected
