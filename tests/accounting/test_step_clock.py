"""The engine's steps, read off the tokens of the streams that are there all the while."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.activity import Span
from proxy.accounting.crowd import Crowd
from proxy.accounting.flight import Flight
from proxy.accounting.step_clock import CLOCKS, ONE_BY_ONE, Pace, shown_steps
from tests.accounting.flights import ms, silent, stream


def span(start: float, end: float) -> Span:
    return Span(ms(start), ms(end))


WINDOW = span(0, 1000)


class Clock:
    """What some streams show of the engine's steps in a window."""

    def __init__(self, *flights: Flight, pace: Pace = ONE_BY_ONE, window: Span = WINDOW) -> None:
        self._crowd = Crowd(window, [], clock=shown_steps(flights, window, pace))

    def steps(self, span: Span) -> float | None:
        steps, _, shown = self._crowd.between(span.start, span.end)
        return steps if shown else None

    @property
    def rate(self) -> float | None:
        return self._crowd.rate


def test_a_streams_tokens_are_steps() -> None:
    """One token every 10 ms: a tenth of a second holds ten steps, also between two tokens."""
    one = Clock(stream("r", first=0.001, tokens=102))

    assert one.steps(span(100, 200)) == pytest.approx(10)
    assert one.steps(span(105, 112)) == pytest.approx(0.7)
    assert one.rate == pytest.approx(1e-7)


def test_several_answers_give_a_token_each_in_one_step() -> None:
    """n = 3: three tokens are one step."""
    assert Clock(stream("r", first=0.001, tokens=102, sequences=3)).steps(span(100, 200)) == pytest.approx(10)


def test_accepted_drafts_are_tokens_of_one_step() -> None:
    """With 2.5 tokens a step 10 tokens are four steps."""
    pace = Pace(tokens_per_step=2.5, positions_per_token=1.6)

    assert Clock(stream("r", first=0.001, tokens=102), pace=pace).steps(span(100, 200)) == pytest.approx(4)


def test_where_no_stream_was_there_all_the_while_nothing_is_known() -> None:
    """Not zero: None. A stream of one token, one that ended early and one that tells no times say nothing."""
    flights = [stream("one", tokens=1), stream("short", first=0.001, tokens=15), silent("silent")]

    assert None is Clock(*flights).steps(span(100, 200))
    assert None is Clock().rate
    assert None is Clock(stream("late", first=2000, tokens=5)).rate
    assert Clock(*flights).steps(span(20, 90)) == pytest.approx(7)


def test_the_token_after_the_window_is_heeded() -> None:
    """Long steps: between two tokens 300 ms apart lies a third of a step in 100 ms."""
    one = Clock(stream("r", first=0.001, step=300, tokens=5), window=span(100, 200))

    assert one.steps(span(100, 200)) == pytest.approx(1 / 3)


def test_the_longest_streams_are_asked_and_their_mean_is_told() -> None:
    """Tokens come unevenly: a burst counts as one of several; a stream that was there for less is not asked."""
    even = [stream(f"e{n}", first=0.001, tokens=102) for n in range(CLOCKS)]
    burst = stream("burst", first=0.001, tokens=1, over=False)
    for number in range(50):
        burst.tick(ms(150 + number), 2 + number)
    burst.tick(ms(1100), 52)
    short = stream("short", first=90, step=1, tokens=120)

    mean = (10 * (CLOCKS - 1) + 50) / CLOCKS
    assert Clock(*even[1:], burst).steps(span(100, 200)) == pytest.approx(mean, rel=0.02)
    assert Clock(*even, short).steps(span(100, 200)) == pytest.approx(10)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 5)), min_size=2, max_size=40),
    st.lists(st.integers(0, 1000), min_size=2, max_size=8, unique=True).map(sorted),
)
def test_steps_add_up_and_never_run_backwards(ticks: list[tuple[int, int]], cuts: list[int]) -> None:
    """Over any cut of the window, also with several chunks at one instant and pauses before the window."""
    flight, at, made = Flight("r", "r", ms(0)), 0, 0
    for pause, tokens in ticks:
        at, made = at + pause, made + tokens
        flight.tick(ms(at), made)
    first, last = flight.ticks[0].at, min(ms(1000), flight.ticks[-1].at)
    known = [ms(cut) for cut in cuts if first <= ms(cut) <= last]
    one = Clock(flight)
    parts = [steps for start, end in pairwise(known) if (steps := one.steps(Span(start, end))) is not None]

    assert len(parts) == max(0, len(known) - 1)
    assert min(parts, default=0.0) >= 0
    if parts:
        assert sum(parts) == pytest.approx(one.steps(Span(known[0], known[-1])), abs=1e-6)
        assert sum(parts) <= made
