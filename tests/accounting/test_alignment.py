"""How late tokens arrive, from what short prompts' first tokens took at the least."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.alignment import LEAST, MOST, REMEMBERED, SHORT_PROMPT, ArrivalLag
from proxy.accounting.flight import Flight
from tests.accounting.flights import WEIGHTS, ms, silent, stream

PREFILL_MS = WEIGHTS.token_s * 100 * 1e3


def after(first_ms: float, **given_: object) -> Flight:
    """A stream of 100 prompt tokens in steps of 10 ms whose first token came so late."""
    return stream("r", first=first_ms, **given_)  # type: ignore[arg-type]


def learnt(*flights: Flight) -> float:
    """The lag in milliseconds after these."""
    lag = ArrivalLag()
    for flight in flights:
        lag.finished(flight, WEIGHTS)
    return lag.lag / 1e6


def test_nothing_is_said_of_a_few() -> None:
    """The least of fewer requests may be nobody's."""
    assert 0 == learnt(*[after(100)] * (LEAST - 1))
    assert 0 < learnt(*[after(100)] * LEAST)


def test_the_lag_is_what_a_first_token_took_beyond_its_step_and_its_prefill() -> None:
    """First token after 100 ms, of which one step is 10 ms and the prompt's positions 3 ms."""
    assert learnt(*[after(100)] * LEAST) == pytest.approx(100 - 10 - PREFILL_MS)


def test_those_that_queued_do_not_count() -> None:
    """Half of the requests waited for a second: the others show the lag."""
    assert learnt(*[after(first) for first in [1000, 60] * LEAST]) == pytest.approx(50 - PREFILL_MS)


def test_one_early_token_is_jitter() -> None:
    """Not the very least is taken."""
    assert learnt(after(15), *[after(60)] * 20) == pytest.approx(50 - PREFILL_MS)


def test_it_follows_the_latest() -> None:
    """After as many as are remembered the old ones are gone."""
    assert learnt(*[after(200)] * 100, *[after(60)] * REMEMBERED) == pytest.approx(50 - PREFILL_MS)


@pytest.mark.parametrize(
    "flight",
    [
        after(100, prompt=SHORT_PROMPT + 1),
        after(100, outcome="aborted"),
        after(100, outcome="partial"),
        after(100, tokens=1),
        silent("r"),
    ],
    ids=["long prompt", "aborted", "partial", "one token", "silent"],
)
def test_what_tells_nothing_is_passed_over(flight: Flight) -> None:
    """Its time to the first token or its pace is not known well enough."""
    assert 0 == learnt(*[flight] * 50)


def test_a_cached_prompt_is_short_however_long_it_is() -> None:
    """Only what had to be computed takes time."""
    assert learnt(*[after(100, prompt=30_000, cached=29_900)] * LEAST) == pytest.approx(90 - PREFILL_MS)


@given(st.lists(st.floats(0, 20_000), max_size=80))
def test_it_is_never_negative_and_never_more_than_the_most(firsts: list[float]) -> None:
    """Whatever was seen."""
    assert 0 <= learnt(*(after(first) for first in firsts)) <= MOST / 1e6


def test_a_lag_puts_the_start_off_and_never_beyond_the_first_token() -> None:
    """So that a request's work lies beside its tokens; one that was faster than the lag begins just before them."""
    late, early = after(100), after(30)
    late.lag = early.lag = ms(50)

    assert ms(50) == late.start
    assert ms(29) == early.start
