"""
Who queues and what was cached, as far as the engine's counters tell in time.
"""

from proxy.accounting.engine_view import EngineView
from proxy.accounting.flight import Flight
from proxy.accounting.guesses import guess_cached, guess_schedule, queued_rows
from proxy.accounting.unseen import EngineCounters
from tests.accounting.flights import WEIGHTS, divided, ms, stream, window


def look(
    at_ms: float, *, waiting: float = 0, running: float = 4, computed: float = 0, cached: float | None = None
) -> EngineCounters:
    return EngineCounters(ms(at_ms), running, waiting, 0, computed, cached)


def unheard(row: str, sent: float, prompt: int = 1000) -> Flight:
    return Flight(row, row, ms(sent), prompt_estimate=prompt)


def test_the_newest_unheard_requests_are_the_queue() -> None:
    """
    First come, first served: of three without a token the two sent last are the two that wait.
    """
    flights = [unheard("c", 30), unheard("a", 10), unheard("b", 20), stream("runs", over=False)]

    assert {"b", "c"} == queued_rows(flights, 2)


def test_a_queued_request_pays_nothing_while_it_waits() -> None:
    """
    Four run, twenty-eight queue: the running ones pay for the whole window.
    """
    running = [stream(f"r{n}", tokens=200, over=False) for n in range(4)]
    queued = [unheard(f"q{n}", 60 + n) for n in range(28)]
    view = EngineView()
    view.scraped(look(500, waiting=28), ms(500), running + queued, reached=None)

    result = divided(window(400, 500, 50.0), view.taken_up(running + queued, WEIGHTS), weights=WEIGHTS)

    assert {f"r{n}" for n in range(4)} == {share.flight.row for share in result.shares}
    assert 50_000_000 == result.requests


def test_one_that_met_a_queue_began_shortly_before_its_first_token() -> None:
    """
    Sent at 0, first token at 10 s, others queued meanwhile: it was taken up about a prefill before 10 s.
    """
    flight = stream("late", sent=0, first=10_000, prompt=1000)

    guess_schedule(flight, [look(5_000, waiting=3)], WEIGHTS)

    assert ms(9_800) < flight.start < ms(10_000)


def test_one_that_met_no_queue_began_when_it_was_sent() -> None:
    """
    A long time to the first token without a queue is a long prefill, and it pays for it.
    """
    flight = stream("long", sent=0, first=10_000, prompt=1000)

    guess_schedule(flight, [look(5_000)], WEIGHTS)

    assert ms(0) == flight.start


def test_one_that_left_the_queue_never_began() -> None:
    """
    Aborted after ten seconds in the queue: nothing was computed for it.
    """
    flight = unheard("gone", 0)
    flight.end(ms(10_000), "aborted")

    guess_schedule(flight, [look(5_000, waiting=1)], WEIGHTS)

    assert () == divided(window(0, 1000), [flight], weights=WEIGHTS).shares


def test_without_a_first_token_a_prefill_pays_its_place_only() -> None:
    """
    Nobody knows how far it is: its tokens are not charged again in every window it waits through.
    """
    open_prefill, neighbour = unheard("open", 0, prompt=8000), stream("other", first=10, tokens=2000, over=False)
    shares = divided(window(10_000, 10_100), [open_prefill, neighbour], weights=WEIGHTS).shares

    assert 0 == next(share.prefill for share in shares if share.flight.row == "open")


def test_cache_hits_between_two_looks_are_the_prompts_read_between_them() -> None:
    """
    One prompt of 8000 tokens was read and 7800 hits were counted: it was cached, long before its stream says so.
    """
    flight = stream("agent", sent=0, first=500, prompt=8000, over=False)
    flight.cached_tokens = None

    guess_cached([flight], look(0, cached=0), look(1000, computed=200, cached=7800))

    assert (7800, 200) == (flight.cached, flight.uncached)


def untold(row: str, part: float = 0.0, first: float = 500, prompt: int = 1000, **given: int) -> Flight:
    """A stream under way, whose hits only its end will tell; `part` of its prompt is guessed to be cached."""
    flight = stream(row, first=first, prompt=prompt, over=False, **given)
    flight.cached_tokens, flight.cached_part = None, part
    return flight


def test_known_hits_are_taken_off_before_the_rest_is_spread() -> None:
    """
    A finished request has told of its hits; what remains goes by length.
    """
    told = stream("told", first=400, prompt=1000, cached=900)
    pair = [untold(row) for row in ("x", "y")]

    guess_cached([told, *pair], look(0, cached=0), look(1000, computed=1100, cached=1900))

    assert [500, 500] == [flight.cached for flight in pair]


def test_guesses_that_agree_with_the_hits_stay() -> None:
    """
    One was guessed to be cached and one to be new, and so many hits were counted: nobody's guess moves.
    """
    old, new = untold("old", 0.9), untold("new")

    guess_cached([old, new], look(0, cached=0), look(1000, computed=1100, cached=900))

    assert (900, 0) == (old.cached, new.cached)


def test_fewer_hits_than_guessed_take_from_every_guess_alike() -> None:
    """
    The cache had lost half of it: both matches are halved.
    """
    pair = [untold("x", 0.8), untold("y", 0.4)]

    guess_cached(pair, look(0, cached=0), look(1000, computed=1400, cached=600))

    assert [400, 200] == [flight.cached for flight in pair]


def test_more_hits_than_guessed_go_to_matches_first_and_then_by_length() -> None:
    """
    A match may be a little short; what is beyond that belongs to what nobody here has sent before.
    """
    match, other = untold("match", 0.5), untold("other")

    guess_cached([match, other], look(0, cached=0), look(1000, computed=1450, cached=550))
    assert (550, 0) == (match.cached, other.cached)

    guess_cached([match, other], look(0, cached=0), look(1000, computed=660, cached=1340))
    assert 1338 <= match.cached + other.cached <= 1340
    assert other.cached > 500


def test_prompts_that_others_read_leave_the_guesses_alone() -> None:
    """
    A stranger read 5000 tokens, 4000 of them hits: they may be all the hits there were beyond the guess.
    """
    old, new = untold("old", 0.9), untold("new")

    guess_cached([old, new], look(0, cached=0), look(1000, computed=2100, cached=4900))

    assert (900, 0) == (old.cached, new.cached)


def test_a_prompt_counted_in_the_look_before_leaves_the_guesses_alone() -> None:
    """
    The engine had counted the cached one already when its first token was still on its way here.
    """
    late, new = untold("late", 0.9, first=1), untold("new")

    guess_cached([late, new], look(0, cached=900, computed=100), look(1000, computed=1100, cached=900))

    assert (900, 0) == (late.cached, new.cached)


def test_a_strangers_prompt_does_not_stand_in_for_one_counted_before() -> None:
    """
    As many tokens as ours were counted, and they are a stranger's: that none of them was a hit says nothing of ours.
    """
    late = untold("late", 0.9, first=60)

    guess_cached([late], look(0, cached=900, computed=100), look(1000, computed=1100, cached=900))

    assert 900 == late.cached


def test_an_embedding_is_read_at_its_end() -> None:
    """
    It has no first token, and its answer tells of no hits.
    """
    flight = Flight("e", "e", ms(0), prompt_tokens=1000, silent=True, decodes=False)
    flight.end(ms(500), "ok")

    guess_cached([flight], look(0, cached=0), look(1000, computed=200, cached=800))

    assert 800 == flight.cached


def test_hits_of_several_answers_are_counted_as_often() -> None:
    """
    Three answers to one prompt: the engine counts the hits of all three, and the first answer's are what is left.
    """
    flight = untold("n", 0.5, sequences=3, prompt=1000)
    flight.reread_part = 0.98

    guess_cached([flight], look(0, cached=0), look(1000, computed=1040, cached=1960))

    assert 1960 >= flight.read - flight.computed >= 1950


def test_more_hits_told_than_counted_are_no_guess() -> None:
    """
    Those of our prompt were counted in the look before, a stranger's prompt in this one: nothing is left to guess.
    """
    told, under_way = stream("told", first=500, prompt=600, cached=500), untold("open", part=0.5)

    for flights in ([told], [told, under_way], [under_way]):
        guess_cached(flights, look(0, cached=500), look(1000, computed=5000, cached=500))
        assert (500, 100) == (told.cached, told.uncached)
        assert 0 <= under_way.cached <= 500
