"""Who pays for the experts of a mixture that a step streams, against the Shapley value over all orders."""

from dataclasses import replace
from itertools import permutations
from math import factorial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.accounting.activity import Span
from proxy.accounting.crowd import Crowd
from proxy.accounting.experts import CHUNK, Streamed, shares
from proxy.accounting.reconstruction import reconstruct
from proxy.accounting.step_clock import ONE_BY_ONE
from proxy.accounting.taking_up import TakingUp
from proxy.accounting.unseen import Piece, UnseenTraffic
from proxy.accounting.weights import Weights
from tests.accounting.flights import WEIGHTS, ms, stream
from tests.accounting.scripted import Engine, book_of, decoding

touched_drawn = st.floats(0.005, 1.0)


def by_all_orders(tokens: list[int], touched: float) -> list[float]:
    """Each in turn pays what it touches first, as a mean over all orders of arrival."""
    owed = [0.0] * len(tokens)
    for order in permutations(range(len(tokens))):
        spared = 1.0
        for index in order:
            left = spared * (1 - touched) ** tokens[index]
            owed[index] += (spared - left) / factorial(len(tokens))
            spared = left
    return owed


@settings(max_examples=60)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), touched_drawn)
def test_it_is_the_shapley_value(tokens: list[int], touched: float) -> None:
    """Exactly, for up to six sequences of any lengths."""
    found = shares(tokens, touched)

    assert [found[count] for count in tokens] == pytest.approx(by_all_orders(tokens, touched), abs=1e-9)


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=300), touched_drawn)
def test_the_parts_add_up_to_what_was_touched(tokens: list[int], touched: float) -> None:
    """Also for batches in which four points are not exact."""
    found = shares(tokens, touched)

    assert sum(found[count] for count in tokens) == pytest.approx(1 - (1 - touched) ** sum(tokens))


@given(st.lists(st.integers(1, 4000), min_size=2, max_size=300), touched_drawn)
def test_more_tokens_never_pay_less(tokens: list[int], touched: float) -> None:
    """And nobody pays less than nothing, or more than what it touches by itself and the correction of the sum."""
    found = shares(tokens, touched)
    ordered = [found[count] for count in sorted(set(tokens))]

    assert ordered == sorted(ordered)
    assert 0 <= ordered[0] <= ordered[-1] <= 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), touched_drawn, st.randoms(use_true_random=False))
def test_order_does_not_matter(tokens: list[int], touched: float, random) -> None:  # type: ignore[no-untyped-def]
    """Alike in the step, alike in price."""
    shuffled = tokens[:]
    random.shuffle(shuffled)

    assert shares(tokens, touched) == shares(shuffled, touched)


def test_alone_a_sequence_pays_for_all_it_touched() -> None:
    """Nobody to share with."""
    assert shares([3], 0.5) == {3: pytest.approx(0.875)}


def test_a_sequence_without_tokens_pays_nothing() -> None:
    """Alone or beside others."""
    assert shares([0, 0], 0.5) == {0: 0}
    assert shares([0, 7], 0.5)[0] == 0


def test_a_dense_model_shares_evenly() -> None:
    """Where every token touches every expert it is the fixed part of a step, whoever has how many tokens."""
    assert shares([1, 5, 5, 900], 1.0) == pytest.approx({1: 0.25, 5: 0.25, 900: 0.25})


def mixture(touched: float) -> Weights:
    """A model whose experts cost thirty times what the rest of a step costs."""
    return replace(WEIGHTS, step=1.0, experts=30.0, touched=touched)


def crowd(decoders: int, *, chunks: int = 0, waits: float = 0.0) -> Engine:
    """So many decode from 0.1 s on; from 0.21 s on one reads its prompt beside them in chunks, and then decodes too."""
    engine = decoding(decoders)
    rows = [*engine.flights]
    if chunks:
        engine.send("reader", prompt=512 * chunks).sent = ms(engine.at - waits)
        engine.prefill("reader", 512 * chunks, *rows, steps=chunks)
        rows.append("reader")
    engine.decode(*rows, times=30)
    engine.end(*rows)
    return engine


def both_ways(engine: Engine, weights: Weights) -> dict[str, tuple[float, float]]:
    """Each request's experts from 0.1 s on, added up over windows of 0.1 s: by the step log, by token times."""
    flights, found = list(engine.flights.values()), dict[str, tuple[float, float]]()
    TakingUp().guess(flights, ONE_BY_ONE)
    book = book_of(engine.steps, flights)
    for start in range(100, int(engine.at), 100):
        span = Span(ms(start), ms(min(start + 100, engine.at)))
        told, inferred = book.activity(span, flights, weights), reconstruct(span, flights, weights=weights)
        assert [one.row for one in told.flights] == [one.row for one in inferred.flights]
        for flight, one, other in zip(told.flights, told.works, inferred.works, strict=True):
            logged, guessed = found.get(flight.row, (0.0, 0.0))
            found[flight.row] = logged + one.experts, guessed + other.experts
    return found


@pytest.mark.parametrize("touched", [0.02, 0.0625, 0.25, 1.0])
@pytest.mark.parametrize("decoders", [1, 2, 8, 32])
def test_without_a_step_log_a_crowd_that_decodes_pays_the_same(decoders: int, touched: float) -> None:
    """As many tokens in every step, one each: nothing is left to guess."""
    found = both_ways(crowd(decoders), mixture(touched))

    assert len(found) == decoders
    for logged, guessed in found.values():
        assert guessed == pytest.approx(logged, rel=1e-6)


@pytest.mark.parametrize("touched", [0.02, 0.0625, 0.25, 1.0])
@pytest.mark.parametrize("decoders", [4, 8, 32])
@pytest.mark.parametrize("chunks", [1, 4, 20])
def test_without_a_step_log_a_reader_among_decoders_pays_for_what_it_touches(
    chunks: int, decoders: int, touched: float
) -> None:
    """Each within a tenth of what the log says."""
    found = both_ways(crowd(decoders, chunks=chunks), mixture(touched))

    assert len(found) == decoders + 1
    for row, (logged, guessed) in found.items():
        assert guessed == pytest.approx(logged, rel=0.1), row


@pytest.mark.parametrize("touched", [0.02, 0.0625, 0.25])
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("waits", [2, 5, 7])
def test_a_reader_pays_for_no_step_whose_end_it_has_awaited(waits: float, chunks: int, touched: float) -> None:
    """It was sent amid a step of ten milliseconds: a prompt is read in whole ones."""
    for row, (logged, guessed) in both_ways(crowd(8, chunks=chunks, waits=waits), mixture(touched)).items():
        assert guessed == pytest.approx(logged, rel=0.1), row


def test_a_crowd_that_grows_pays_by_the_step() -> None:
    """Experts level off with the crowd: what half a window of one and half of sixteen pay is no mean crowd's price."""
    half, whole = ms(50), ms(100)
    crowd = Crowd(Span(ms(0), whole), [(ms(0), whole, 1.0), (half, whole, 15.0)])
    streamed = Streamed(crowd, [], 0.0625)

    alone, among = shares([1], 0.0625)[1], shares([1] * 16, 0.0625)[1]
    assert streamed.decoding(ms(0), half) == pytest.approx(alone)
    assert streamed.decoding(half, whole) == pytest.approx(among)
    assert streamed.decoding(ms(25), ms(75)) == pytest.approx((alone + among) / 2)
    assert streamed.reading(ms(0), whole) == 0


def test_where_nobody_is_nobody_pays() -> None:
    """No steps, no experts."""
    assert Streamed(Crowd(Span(ms(0), ms(9)), []), [], 0.1).decoding(ms(4), ms(4)) == 0


@pytest.mark.parametrize("reading", [0.0, 1.0])
def test_strangers_pay_for_what_their_prompts_touch(reading: float) -> None:
    """
    One of ours decodes beside two strangers, of which one reads a prompt in every step, or neither does.
    """
    second = Span(ms(0), ms(1000))
    piece = Piece(second, 100 * CHUNK * reading, 200 - 100 * reading, 2.0, 100.0, reading)
    unseen = UnseenTraffic(second, piece.prompt, piece.decode, 2.0, pieces=(piece,))
    ours = stream("ours", sent=-200, first=-100, tokens=120, over=False)

    found = reconstruct(second, [ours], weights=mixture(0.0625), unseen=[unseen])

    decoders = 3 - round(reading)
    parts = shares([1] * decoders + [CHUNK] * round(reading), 0.0625)
    assert found.works[0].experts == pytest.approx(100 * parts[1], rel=0.01)
    theirs = (2 - reading) * parts[1] + (reading and parts[CHUNK])
    assert found.strangers[0].experts == pytest.approx(100 * theirs, rel=0.01)
