"""Strangers' work is placed where our own streams stall, and where it leaves our own tokens as they are."""

import pytest

from proxy.accounting.activity import Span
from proxy.accounting.flight import Flight
from proxy.accounting.placing import BIN, Placing, level_above
from proxy.accounting.step_clock import ONE_BY_ONE, Pace
from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import Piece, UnseenTraffic
from tests.accounting.flights import WEIGHTS, ms

SECOND = Span(ms(0), ms(1000))
STALL = (300, 400)
"""Milliseconds in which the stream gets nothing."""


def stalled(row: str = "ours", *, until: int = 1000) -> Flight:
    """A stream of a token every 10 ms, but for the stall."""
    flight = Flight(row, row, ms(-200), prompt_tokens=10, cached_tokens=0)
    for number, at in enumerate(at for at in range(-100, until + 10, 10) if not STALL[0] < at < STALL[1]):
        flight.tick(ms(at), number + 1)
    return flight


def pieces(
    found: UnseenTraffic, *flights: Flight, pace: Pace = ONE_BY_ONE, lag: Nanoseconds = SECOND.start
) -> tuple[Piece, ...]:
    return Placing(found, flights, WEIGHTS, pace, lag).pieces()


def inside(found: tuple[Piece, ...], start: float, end: float) -> list[Piece]:
    return [piece for piece in found if ms(start) <= piece.span.start and piece.span.end <= ms(end)]


def test_pieces_add_up_and_lie_side_by_side() -> None:
    """Nothing of what was found is lost, whoever is there to show where it was."""
    found = UnseenTraffic(SECOND, 3000, 150, 2, held=(2, 1), steps=90, arrived=1)

    for flights in ((), (stalled(),), (stalled(until=500), stalled("other", until=700))):
        made = pieces(found, *flights)

        assert sum(piece.prompt for piece in made) == pytest.approx(3000)
        assert sum(piece.decode for piece in made) == pytest.approx(150)
        assert sum(piece.steps or 0 for piece in made) == pytest.approx(90, rel=0.02)
        assert len(made) == SECOND.length // BIN
        assert [piece.span.end for piece in made[:-1]] == [piece.span.start for piece in made[1:]]
        assert (made[0].span.start, made[-1].span.end) == (SECOND.start, SECOND.end)


def test_a_prompt_lies_where_our_stream_stalls() -> None:
    """What made the step long was the stranger's chunk."""
    made = pieces(UnseenTraffic(SECOND, 3000, 0, 1, held=(0, 0), steps=91, arrived=1), stalled())

    assert sum(piece.prompt for piece in inside(made, *STALL)) == pytest.approx(3000)


@pytest.mark.parametrize(("prompt", "steps"), [(300, 1), (1500, 1), (4096, 2)])
def test_a_prompt_is_read_in_as_many_steps_as_it_has_chunks(prompt: int, steps: int) -> None:
    """One that fits into the budget of a step is in one step, however long that takes."""
    stream = Flight("ours", "ours", ms(-200), prompt_tokens=10, cached_tokens=0)
    for number, at in enumerate(at for at in range(-100, 1010, 10) if not STALL[0] < at < STALL[1] or at == 350):
        stream.tick(ms(at), number + 1)

    made = pieces(UnseenTraffic(SECOND, prompt, 0, 1, held=(0, 0), steps=92, arrived=1), stream)

    assert sum(piece.reading * (piece.steps or 0) for piece in made) == pytest.approx(steps, rel=0.02)
    assert all(piece.sequences >= piece.reading for piece in made)


def test_a_stall_that_our_own_prompt_explains_is_not_a_strangers() -> None:
    """Two stalls; in the first one a prompt of ours was read."""
    ours = Flight("new", "new", ms(300), prompt_tokens=round(0.09 / WEIGHTS.token_s), cached_tokens=0)
    ours.tick(ms(400), 1)
    ours.end(ms(400), "ok")
    stream = Flight("ours", "ours", ms(-200), prompt_tokens=10, cached_tokens=0)
    for number, at in enumerate(at for at in range(-100, 1010, 10) if not (300 < at < 400 or 700 < at < 800)):
        stream.tick(ms(at), number + 1)

    made = pieces(UnseenTraffic(SECOND, 3000, 0, 1, held=(0, 0), steps=82, arrived=1), stream, ours)

    assert sum(piece.prompt for piece in inside(made, 700, 800)) > 2700


def test_without_a_stream_a_prompt_is_spread_evenly() -> None:
    """Nobody can tell where it was."""
    made = pieces(UnseenTraffic(SECOND, 400, 0, 1, held=(0, 0), steps=10, arrived=1))

    assert [piece.prompt for piece in made] == pytest.approx([10.0] * 40)


def test_what_no_stall_explains_was_read_while_no_stream_was_there() -> None:
    """Our stream runs smoothly for 300 ms and ends: the prompt came after that."""
    made = pieces(UnseenTraffic(SECOND, 3000, 0, 1, held=(0, 0), steps=60, arrived=1), stalled(until=300))

    assert sum(piece.prompt for piece in inside(made, 0, 275)) == pytest.approx(0, abs=1)


def test_a_stranger_decodes_from_its_prompt_on() -> None:
    """It came with the stall and was still there at the end."""
    made = pieces(UnseenTraffic(SECOND, 3000, 60, 1, held=(0, 1), steps=91, arrived=1), stalled())

    assert sum(piece.decode for piece in inside(made, 0, 300)) == pytest.approx(0, abs=1)
    assert [piece.sequences for piece in inside(made, 425, 1000)] == pytest.approx([1.0] * 23, rel=0.05)


def test_the_tokens_say_when_a_stranger_left() -> None:
    """It was there at the first look and not at the second, and made half as many tokens as there were steps."""
    made = pieces(UnseenTraffic(SECOND, 0, 50, 0.5, held=(1, 0), steps=100, arrived=0))

    assert sum(piece.decode for piece in inside(made, 0, 500)) == pytest.approx(50)
    assert sum(piece.sequences for piece in made) / len(made) == pytest.approx(0.5)


def test_with_drafts_a_sequence_makes_several_tokens_in_a_step() -> None:
    """A hundred steps with two tokens each: two hundred tokens are one stranger's."""
    found = UnseenTraffic(SECOND, 0, 200, 1, held=(1, 1), steps=100, arrived=0)

    made = pieces(found, pace=Pace(tokens_per_step=2.0))

    assert [piece.sequences for piece in made] == pytest.approx([1.0] * 40)


def test_without_a_count_of_steps_our_streams_tell_them_or_nobody() -> None:
    """None is not zero: then a stranger's tokens are its steps."""
    found = UnseenTraffic(SECOND, 0, 50, 1.0)

    assert {piece.steps for piece in pieces(found)} == {None}
    assert sum(piece.steps or 0 for piece in pieces(found, stalled())) == pytest.approx(91)


def test_pieces_lie_on_the_clock_of_arrival() -> None:
    """Like the tokens of our own, which come later than they are made."""
    made = pieces(UnseenTraffic(SECOND, 10, 10, 1), lag=ms(20))

    assert (made[0].span.start, made[-1].span.end) == (ms(20), ms(1020))


def test_a_level_leaves_as_much_above_it_as_is_wanted() -> None:
    """The highest go first; where all is not enough there is no level."""
    assert level_above([5, 1, 3], 4) == pytest.approx(2)
    assert level_above([5, 1, 3], 2) == pytest.approx(3)
    assert level_above([5, 1, 3], 10) == 0
    assert level_above([], 1) == 0
