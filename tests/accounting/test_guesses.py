"""
Who queues and what was cached, as far as the engine's counters tell in time.
"""

from proxy.accounting.attribution import split
from proxy.accounting.engine_view import EngineView
from proxy.accounting.flight import Flight
from proxy.accounting.guesses import guess_cached, guess_schedule, queued_rows
from proxy.accounting.unseen import EngineCounters
from tests.accounting.flights import WEIGHTS, ms, stream, window


def look(at_ms: float, *, waiting: float = 0, running: float = 4, cached: float | None = None) -> EngineCounters:
    return EngineCounters(ms(at_ms), running, waiting, 0, 0, cached)


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

    result = split(window(400, 500, 50.0), view.taken_up(running + queued, WEIGHTS), weights=WEIGHTS)

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

    assert () == split(window(0, 1000), [flight], weights=WEIGHTS).shares


def test_without_a_first_token_a_prefill_pays_its_place_only() -> None:
    """
    Nobody knows how far it is: its tokens are not charged again in every window it waits through.
    """
    open_prefill, neighbour = unheard("open", 0, prompt=8000), stream("other", first=10, tokens=2000, over=False)
    shares = split(window(10_000, 10_100), [open_prefill, neighbour], weights=WEIGHTS).shares

    assert 0 == next(share.prefill for share in shares if share.flight.row == "open")


def test_cache_hits_between_two_looks_are_the_prompts_read_between_them() -> None:
    """
    One prompt of 8000 tokens was read and 7800 hits were counted: it was cached, long before its stream says so.
    """
    flight = stream("agent", sent=0, first=500, prompt=8000, over=False)
    flight.cached_tokens = None

    guess_cached([flight], look(0, cached=0), look(1000, cached=7800))

    assert (7800, 200) == (flight.cached, flight.uncached)


def test_known_hits_are_taken_off_before_the_rest_is_spread() -> None:
    """
    A finished request has told of its hits; what remains goes by length.
    """
    told = stream("told", first=400, prompt=1000, cached=900)
    pair = [stream(row, first=500, prompt=1000, over=False) for row in ("x", "y")]
    for flight in pair:
        flight.cached_tokens = None

    guess_cached([told, *pair], look(0, cached=0), look(1000, cached=1900))

    assert [500, 500] == [flight.cached_guess for flight in pair]
