"""
What part of the engine's steps a request is, from the few streams that show them; here every millisecond is looked at.
"""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.activity import Span
from proxy.accounting.crowd import Crowd
from proxy.accounting.flight import Flight
from proxy.accounting.reconstruction import reconstruct
from proxy.accounting.step_clock import shown_steps
from tests.accounting.flights import WEIGHTS, ms, stream

WINDOW = Span(ms(100), ms(200))
GAPS = st.lists(st.integers(0, 60), min_size=1, max_size=12)


def streaming(row: str, gaps: list[int]) -> Flight:
    """Gets a token after each of the gaps, in milliseconds; runs on."""
    flight = Flight(row, row, ms(0), prompt_tokens=10, cached_tokens=0)
    for number, at in enumerate(accumulate(gaps), 1):
        flight.tick(ms(at), number)
    return flight


def rate(flight: Flight, at: float) -> float | None:
    """Tokens per millisecond at an instant; None before its first and after its last."""
    for before, after in pairwise(dict(flight.ticks).items()):
        if before[0] <= ms(at) < after[0]:
            return (after[1] - before[1]) / (after[0] - before[0]) * 1e6
    return None


def tokens_in(flight: Flight) -> float:
    """Tokens after the first that were made in the window, tick by tick."""
    tokens = 0.0
    for before, after in pairwise(flight.ticks):
        gained = after.tokens - before.tokens
        part = Span(before.at, after.at).within(WINDOW)
        if after.at == before.at:
            # What comes together took no step of its own; with the first of all it is the prefill's.
            tokens += gained if WINDOW.start < after.at < WINDOW.end and after.at != flight.first else 0
        elif part is not None:
            tokens += gained * part.length / (after.at - before.at)
    return tokens


def steps_of(flight: Flight, flights: list[Flight]) -> float:
    """Its tokens' sum of 1/n: their number times the mean of 1/n over the engine's steps while it got them."""
    spaces, shown = range(100, 200), {}
    for at in spaces:
        rates = [known for one in flights if (known := rate(one, at + 0.5)) is not None]
        shown[at] = sum(rates) / len(rates) if rates else None
    known = [one for one in shown.values() if one is not None]
    usual = sum(known) / len(known) if known else 1.0
    steps = shares = 0.0
    for at in spaces:
        if flight.ticks[0].at <= ms(at) < flight.ticks[-1].at:
            here = shown[at] or usual
            steps += here
            shares += here / sum(one.start <= ms(at) for one in flights)
    return tokens_in(flight) * shares / steps if steps else 0.0


@given(st.lists(GAPS, min_size=1, max_size=4), st.integers(0, 100))
def test_it_is_what_a_look_at_every_millisecond_gives(gaps: list[list[int]], forgotten: int) -> None:
    """Whatever came before and after the window, and whether the ticks before it are still there."""
    flights = [streaming(f"r{number}", one) for number, one in enumerate(gaps)]
    expected = {flight.row: (tokens_in(flight), steps_of(flight, flights)) for flight in flights}
    whole = reconstruct(WINDOW, flights, weights=WEIGHTS)
    for flight in flights:
        flight.forget_before(ms(forgotten))
    trimmed = reconstruct(WINDOW, flights, weights=WEIGHTS)

    assert [work.decode for work in trimmed.works] == [work.decode for work in whole.works]
    for flight, work in zip(whole.flights, whole.works, strict=True):
        tokens, steps = expected[flight.row]
        assert work.decode == pytest.approx(tokens)
        if flight.first is not None and flight.first <= WINDOW.start:
            assert work.steps == pytest.approx(steps)


def test_a_long_step_is_one_step() -> None:
    """Two of a batch of two for 10 ms each, and one alone for 80: a third of the steps is alone's, not four fifths."""
    held = [(ms(100), ms(200), 1.0), (ms(100), ms(120), 1.0)]
    stays = streaming("stays", [100, 10, 10, 80])
    crowd = Crowd(WINDOW, held, clock=shown_steps([stays], WINDOW))

    assert crowd.between(ms(100), ms(200)) == (pytest.approx(3), pytest.approx(2), True)
    assert crowd.mean_share(ms(100), ms(200)) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_engines_side_by_side_have_each_a_part_of_the_sequences() -> None:
    """Of six in two engines one is a third of a step; of one in two engines it is a whole one."""
    six = Crowd(WINDOW, [(ms(100), ms(150), 6.0), (ms(150), ms(200), 1.0)], engines=2)

    assert six.mean_share(ms(100), ms(150)) == pytest.approx(1 / 3)
    assert six.mean_share(ms(150), ms(200)) == pytest.approx(1)
    assert six.between(ms(100), ms(150))[2] is False
    assert six.covered_ns == ms(100)


def test_where_nobody_is_nothing_is_covered() -> None:
    """Time without anybody has no share, and is not among the covered."""
    crowd = Crowd(WINDOW, [(ms(110), ms(130), 2.0)], clock=shown_steps([stream("r", first=50, tokens=100)], WINDOW))

    assert crowd.covered == (Span(ms(110), ms(130)),)
    assert crowd.mean_share(ms(140), ms(160)) == 0
    assert crowd.mean_share(ms(100), ms(120)) == pytest.approx(1 / 4)
