"""
Datagrams of the plugin become steps, and garbage has a name.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.steps import Computed
from proxy.accounting.units import Nanoseconds
from proxy.upstream.step_datagrams import NotAStep, parse
from tests.upstream.datagrams import HEAD, ONE, SAME, SINGLE, STEP, datagram, single, words

LATER = STEP._replace(number=6, start=Nanoseconds(2_000), end=Nanoseconds(3_000), sequences=(Computed("b", 9, 0, 1),))
NEXT = LATER._replace(number=7, start=Nanoseconds(3_000), end=Nanoseconds(3_500))


def one(*, n: int, read: int = 0, names: int, start: int = 1, end: int = 2, steps: int = 1) -> bytes:
    """The head of a datagram and of its first step."""
    return HEAD.pack(b"jps2", 0, 0, 0, steps) + ONE.pack(1, start, end, n, read, names)


def test_a_datagram_of_the_older_plugin_is_a_step() -> None:
    assert parse(single(STEP)) == [STEP]


def test_a_datagram_holds_several_steps() -> None:
    """Names that are those of the step before are not repeated."""
    assert parse(datagram(STEP)) == [STEP]
    assert parse(datagram(STEP, LATER, NEXT)) == [STEP, LATER, NEXT]
    assert len(datagram(LATER, NEXT)) == len(datagram(LATER)) + ONE.size + 8


def test_what_is_read_has_the_types_of_a_step() -> None:
    (step,) = parse(datagram(STEP))
    assert {type(part) for part in step.sequences} == {Computed}
    assert step.sequences[1].name == "b"


@pytest.mark.parametrize("how", [single, datagram])
def test_a_step_may_be_empty_and_may_be_large(how: object) -> None:
    write = single if how is single else datagram
    empty = STEP._replace(sequences=())
    large = STEP._replace(sequences=tuple(Computed(f"s{i}", i, 2**32 - 2, 1, 0) for i in range(5_000)))
    assert parse(write(empty)) == [empty]
    assert parse(memoryview(write(large))) == [large]


@pytest.mark.parametrize("cut", range(len(single(STEP)) - 1))
def test_an_older_datagram_cut_off_is_refused_or_cut_within_the_last_name(cut: int) -> None:
    names = len(single(STEP)) - len("chatcmpl-é-1\nb".encode())
    piece = single(STEP)[:cut]
    if cut > names and piece.endswith(b"\n"):
        assert parse(piece)[0].sequences[-1].name == ""
    else:
        with pytest.raises(NotAStep):
            parse(piece)


@pytest.mark.parametrize("cut", range(len(datagram(STEP, LATER, NEXT))))
def test_a_datagram_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(NotAStep):
        parse(datagram(STEP, LATER, NEXT)[:cut])


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"hello",
        single(STEP).replace(b"jps1", b"jps3"),
        SINGLE.pack(b"jps1", 0, 0, 0, 0, 0, 0, 2**32 - 1),
        SINGLE.pack(b"jps1", 0, 0, 0, 2, 1, 0, 0),
        SINGLE.pack(b"jps1", 0, 0, 0, 1, 2, 0, 0) + b"a name",
        SINGLE.pack(b"jps1", 0, 0, 0, 1, 2, 0, 1) + bytes(16) + b"\xff",
        SINGLE.pack(b"jps1", 0, 0, 0, 1, 2, 0, 1) + bytes(16) + b"a\nb",
        one(n=2**32 - 1, names=0),
        one(n=0, names=0, start=2, end=1),
        one(n=0, names=6) + b"a name",
        one(n=1, names=1) + bytes(8) + b"\xff",
        one(n=1, names=3) + bytes(8) + b"a\nb",
        one(n=1, names=SAME) + bytes(8),
        one(n=1, names=9) + bytes(8) + b"short",
        one(n=1, names=1) + bytes(8) + b"a and more",
        one(n=1, names=1, steps=2**32 - 1) + bytes(8) + b"a",
        one(n=1, read=2, names=1) + bytes(8 + 24) + b"a",
        one(n=1, read=1, names=1) + words(0, 5, 1, 5, 0) + b"a",
        one(n=1, read=1, names=1) + words(0, 5, 0, 6, 0) + b"a",
        one(n=1, read=1, names=1) + words(0, 5, 0, 5, 6) + b"a",
    ],
    ids=[
        *("nothing", "text", "magic", "older: count", "older: backwards", "older: name too many"),
        *("older: no UTF-8", "older: two names for one", "count", "backwards", "name too many", "no UTF-8"),
        *("two names for one", "no names before", "names cut off", "more than it says", "fewer steps"),
        *("more prompts than sequences", "no such sequence", "more prompt than computed", "more undone than computed"),
    ],
)
def test_garbage_has_a_name(garbage: bytes) -> None:
    with pytest.raises(NotAStep):
        parse(garbage)


@given(st.binary(max_size=300), st.sampled_from([b"", b"jps1", b"jps2", HEAD.pack(b"jps2", 0, 0, 0, 2)]))
def test_no_bytes_can_crash_the_parser(tail: bytes, head: bytes) -> None:
    try:
        parse(head + tail)
    except NotAStep:
        return
