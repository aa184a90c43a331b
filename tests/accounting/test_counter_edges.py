"""When a counter moved, from polls that saw it late: its period and its phase come out of many wide intervals."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.counter_edges import FIRST_MOVES, LONGEST_PAUSE, CounterClock, Edge
from proxy.accounting.samples import Move
from proxy.accounting.units import Microjoules
from tests.accounting.flights import ms


def polled(edges: list[float], polls: list[float]) -> list[tuple[Move, list[float]]]:
    """What polls at these milliseconds see of a counter that moves at those, and the true edges in each."""
    found, before = [], polls[0]
    for poll in polls[1:]:
        inside = [edge for edge in edges if before < edge <= poll]
        if inside:
            found.append((Move(ms(before), ms(poll), Microjoules(1)), inside))
        before = poll
    return found


def placed(moves: list[tuple[Move, list[float]]]) -> tuple[CounterClock, list[tuple[Edge, list[float]]]]:
    clock = CounterClock()
    found = [(clock.moved(move), inside) for move, inside in moves]
    return clock, [(edge, inside) for edge, inside in found if edge is not None]


def errors_ms(found: list[tuple[Edge, list[float]]]) -> list[float]:
    return [edge.at / 1e6 - inside[0] for edge, inside in found]


def regular(period: float, phase: float, seconds: float) -> list[float]:
    return [phase + period * number for number in range(int(seconds * 1000 / period))]


@pytest.mark.parametrize("period", [100.0, 101.3, 104.0])
@pytest.mark.parametrize("lost", [0.0, 0.02, 0.1])
def test_the_place_of_every_move_comes_out_up_to_one_shift(period: float, lost: float) -> None:
    """Polls 50 ms apart, late by up to 4 ms, some missing: the distance to the true edges varies by less than 8 ms."""
    random = Random(f"{period} {lost}")
    edges = regular(period, 37.0, 60)
    polls = [number * 50 + random.uniform(0, 4) for number in range(1200) if random.random() >= lost]

    clock, found = placed(polled(edges, polls))
    late = errors_ms([one for one in found if one[0].at > 20e9])

    assert clock.period == pytest.approx(period * 1e6, rel=2e-3)
    assert len(late) > 200
    assert max(late) - min(late) < 8
    assert all(len(inside) == 1 for _, inside in found)


def test_nothing_is_said_before_the_period_is_known() -> None:
    """It takes some moves."""
    moves = polled(regular(100, 30, 10), [number * 50.0 for number in range(200)])
    clock = CounterClock()

    assert {None} == {clock.moved(move) for move, _ in moves[:FIRST_MOVES]}
    clock.moved(moves[FIRST_MOVES][0])
    assert clock.moved(moves[FIRST_MOVES + 1][0]) is not None


def test_polls_as_rare_as_the_moves_place_none() -> None:
    """Once a second: between two polls the counter moved about ten times, and nobody knows when last."""
    _, found = placed(polled(regular(100, 30, 120), [number * 1000.0 for number in range(120)]))

    assert [] == found


def test_a_move_after_a_poll_that_failed_is_not_placed() -> None:
    """It may be the second of two; nor is the next one, because it is not sure what came before."""
    edges = regular(100, 30, 10)
    polls = [number * 50.0 for number in range(200) if number not in (101, 102)]
    _, found = placed(polled(edges, polls))

    assert [] == [edge for edge, _ in found if 5_000e6 < edge.at <= 5_200e6]
    assert max(errors_ms(found)) - min(errors_ms(found)) < 4


def test_after_a_long_pause_it_begins_where_the_counter_moves_again() -> None:
    """A meter that was gone for a minute has lost its phase: the clock is set anew."""
    first, second = regular(100, 30, 10), [70_061 + at for at in regular(100, 30, 10)]
    polls = [number * 50.0 for number in range(200)] + [70_000 + number * 50.0 for number in range(200)]
    assert 60_000 > LONGEST_PAUSE * 100

    _, found = placed(polled([*first, *second], polls))
    late = errors_ms([one for one in found if one[0].at > 70_500e6])

    assert len(late) > 80
    assert max(map(abs, late)) <= 50


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=200))
def test_an_edge_lies_between_the_polls_that_saw_it(gaps: list[tuple[int, int]]) -> None:
    """Whatever comes, in whatever rhythm."""
    clock, at = CounterClock(), 0
    for still, wide in gaps:
        after, at = at + still, at + still + wide
        edge = clock.moved(Move(ms(after), ms(at), Microjoules(1)))
        if edge is not None:
            assert ms(after) - 1 <= edge.at <= ms(at) + 1
            assert edge.period > 0
