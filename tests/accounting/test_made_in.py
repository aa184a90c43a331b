"""
A stream's tokens of a window are found by bisection; here they are counted from its very first token.
"""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.activity import Span
from proxy.accounting.crowd import Crowd
from proxy.accounting.flight import Flight
from proxy.accounting.reconstruction import reconstruct
from tests.accounting.flights import WEIGHTS, ms

WINDOW = Span(ms(100), ms(200))
GAPS = st.lists(st.integers(0, 60), min_size=1, max_size=12)


def streaming(row: str, gaps: list[int]) -> Flight:
    """Gets a token after each of the gaps, in milliseconds; runs on."""
    flight = Flight(row, row, ms(0), prompt_tokens=10, cached_tokens=0)
    for number, at in enumerate(accumulate(gaps), 1):
        flight.tick(ms(at), number)
    return flight


def plain(flight: Flight, crowd: Crowd) -> tuple[float, float]:
    """Tokens after the first that were made in the window, and the sum of 1/n over them, tick by tick."""
    tokens = steps = 0.0
    for before, after in pairwise(flight.ticks):
        gained = after.tokens - before.tokens
        part = Span(before.at, after.at).within(WINDOW)
        if after.at == before.at:
            # What comes together took no step of its own; with the first of all it is the prefill's.
            tokens += gained if WINDOW.start < after.at < WINDOW.end and after.at != flight.first else 0
        elif part is not None:
            inside = gained * part.length / (after.at - before.at)
            tokens += inside
            steps += inside * crowd.mean_share(part)
    return tokens, steps


@given(st.lists(GAPS, min_size=1, max_size=4), st.integers(0, 100))
def test_it_is_what_a_look_at_every_token_gives(gaps: list[list[int]], forgotten: int) -> None:
    """Whatever came before and after the window, and whether the ticks before it are still there."""
    flights = [streaming(f"r{number}", one) for number, one in enumerate(gaps)]
    spans = [(Span(max(f.start, WINDOW.start), WINDOW.end), 1.0) for f in flights if f.start < WINDOW.end]
    crowd = Crowd(WINDOW, spans)
    expected = {flight.row: plain(flight, crowd) for flight in flights}
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
