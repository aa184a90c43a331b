"""What the engine counted of our own up to an instant is told by tokens, or inferred from its steps."""

from dataclasses import replace
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.flight import Flight
from proxy.accounting.own_counts import Looking, steps_of
from proxy.accounting.step_clock import ONE_BY_ONE
from proxy.accounting.unseen import EngineCounters, SeenTokens
from tests.accounting.flights import WEIGHTS, ms, silent, stream


def look(at: float, *, lag: float = 0, steps: float | None = 100) -> Looking:
    """At milliseconds; the engine makes `steps` a second."""
    scrapes = [EngineCounters(ms(n * 1000), 1, 0, 0, 0, steps=None if steps is None else n * steps) for n in range(3)]
    return Looking(ms(at), ms(lag), steps_of(scrapes), ONE_BY_ONE, WEIGHTS)


def test_a_stream_counts_up_to_the_token_made_by_then() -> None:
    """Tokens come 12 ms late: of the one at 500 ms it is known that the engine had made it at 490."""
    flight = stream("r", prompt=100, first=100, step=10, tokens=80, over=False)

    assert look(490, lag=12).counted(flight) == SeenTokens(100, 41, 0, 1, firsts=1)


def test_a_first_token_shortly_after_leaves_it_open_whether_the_prompt_counts() -> None:
    """It may have been made before and have been slow; one much later has not."""
    flight = stream("r", prompt=100, first=100, step=10, tokens=80, over=False)

    assert look(70).counted(flight) == SeenTokens(0, 0, 0, 1, 100, pending_firsts=1)
    assert look(20).counted(flight) == SeenTokens(0, 0, 0, 1)


def test_an_open_answer_in_one_piece_gains_a_token_a_step() -> None:
    """Half a second and fifty steps after its prompt must have been read."""
    found = look(500).counted(silent("s", ended=None, prompt=100))

    assert 45 <= found.completion <= 51
    assert found == SeenTokens(100, found.completion, 1, 1, firsts=1)


def test_whether_its_prompt_has_been_read_is_open_at_first() -> None:
    """A prefill takes its time, and some more beside others."""
    assert look(10).counted(silent("s", ended=None, prompt=100)) == SeenTokens(0, 0, 1, 1, 100, pending_firsts=1)


def test_an_answer_in_one_piece_that_is_over_tells_all() -> None:
    """At its end it counts exactly, and before that never more than it came to."""
    flight = silent("s", ended=200, prompt=100, tokens=5)

    assert look(200).counted(flight) == SeenTokens(100, 5, 0, firsts=1)
    assert look(150).counted(flight) == SeenTokens(100, 5, 0, 1, firsts=1)


def test_what_ends_here_within_the_lag_may_have_been_held() -> None:
    """Its end came 20 ms after the look: made before it only if the tokens are as late as they are thought to be."""
    flight = stream("r", prompt=100, first=100, step=10, tokens=11, over=True)

    assert look(180, lag=300).counted(flight).sequences == 1
    assert look(180, lag=300).of_all([flight])[0].sequences == 1
    assert look(200, lag=300).counted(flight).sequences == 0
    assert look(200, lag=300).of_all([flight])[0].sequences == 0


def test_what_was_made_for_a_client_that_left_stays_ours() -> None:
    """It never heard of its tokens, but the engine made them until then."""
    flight = Flight("s", "s", ms(0), silent=True, prompt_tokens=100)
    flight.end(ms(1000), "aborted")

    assert look(1500).counted(flight).completion > 90


def test_embeddings_make_no_tokens() -> None:
    """Open or not."""
    flight = Flight("e", "e", ms(0), silent=True, decodes=False, prompt_estimate=50)

    assert look(900).counted(flight) == SeenTokens(50, 0, 1, 1, firsts=1)


def test_what_the_engine_refused_counts_nothing() -> None:
    """Nor does what needs no engine."""
    refused, tokenised = Flight("a", "a", ms(0)), Flight("b", "b", ms(0), metered_work=False)
    refused.end(ms(10), "error")

    assert [look(100).counted(one) for one in (refused, tokenised)] == [SeenTokens(0, 0, 0)] * 2


def test_steps_begin_anew_with_the_engine() -> None:
    """A count that fell belongs to another life; an engine that counts none tells nothing."""
    counts = [50.0, 60.0, 5.0, 15.0]
    scrapes = [EngineCounters(ms(n * 100), 1, 0, 0, 0, steps=steps) for n, steps in enumerate(counts)]
    curve = steps_of(scrapes)

    assert curve is not None
    assert [curve.up_to(ms(at)) for at in (0, 200, 250, 900)] == [5, 5, 10, 15]
    assert steps_of([EngineCounters(ms(0), 1, 0, 0, 0)]) is None


def test_of_several_prompts_those_count_whose_first_token_came() -> None:
    """The engine reads one in its first step and the others in the next."""
    flight = Flight("r", "r", ms(0), 6, 6, prompt_tokens=1200)
    for at, tokens, begun in ((100, 1, 1), (180, 7, 6), (200, 13, 6)):
        flight.tick(ms(at), tokens)
        flight.begun(ms(at), begun)

    assert look(110).counted(flight) == SeenTokens(200, 1, 0, 6, firsts=1)
    assert look(150).counted(flight) == SeenTokens(200, 1, 0, 6, 1000, firsts=1, pending_firsts=5)
    assert look(180).counted(flight) == SeenTokens(1200, 7, 0, 6, firsts=6)


def test_certain_is_what_came_well_before_whatever_the_lag() -> None:
    """A lag that is taken for too long, or a page that took its time, makes more of it uncertain."""
    flight = stream("r", prompt=100, first=100, step=10, tokens=80, over=False)
    slow = replace(look(200, lag=300), blur=ms(40))

    assert look(200, lag=300).certain(flight) == SeenTokens(100, 6, 0, firsts=1)
    assert slow.certain(flight) == SeenTokens(100, 2, 0, firsts=1)
    assert look(140, lag=300).certain(flight) == SeenTokens(0, 0, 0)


def test_of_an_open_answer_in_one_piece_nothing_is_certain() -> None:
    """All that is counted of it is inferred; at its end it is known."""
    assert look(500).certain(silent("s", ended=None)) == SeenTokens(0, 0, 0)
    assert look(500).certain(silent("s", ended=200, tokens=5)) == SeenTokens(100, 5, 0, firsts=1)


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 40), st.integers(1, 3), st.booleans(), st.booleans())),
    st.integers(0, 1000),
    st.integers(0, 60),
)
def test_all_together_are_counted_as_one_by_one(
    drawn: list[tuple[int, int, int, bool, bool]], at: int, lag: int
) -> None:
    """Streams that began well before, or not, that are over or go on, of several answers, and answers in one piece."""
    looking = look(at, lag=lag)
    flights = [
        silent(f"{number}", ended=first + tokens if over else None)
        if in_one
        else stream(f"{number}", first=first, tokens=tokens, sequences=sequences, over=over)
        for number, (first, tokens, sequences, over, in_one) in enumerate(drawn)
    ]
    nothing = SeenTokens(0, 0, 0)

    assert [looking.read_by(flight) for flight in flights] == [looking.counted(one).prompt > 0 for one in flights]
    counted, certain = looking.of_all(flights)
    assert counted == reduce(SeenTokens.plus, map(looking.counted, flights), nothing)
    assert certain == reduce(SeenTokens.plus, map(looking.certain, flights), nothing)
