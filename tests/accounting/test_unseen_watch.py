"""Strangers are found by what the engine holds and counts beyond ours, and nobody is invented."""

import pytest

from proxy.accounting.activity import Span
from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.patience import Patience
from proxy.accounting.unseen import Drafts, EngineCounters, SeenTokens, UnseenTraffic
from proxy.accounting.unseen_watch import UnseenWatch
from tests.accounting.flights import ms, stream
from tests.accounting.scripted import group, opened, read

START = EngineCounters(ms(0), 2, 0, 0, 0, 0, steps=0, firsts=0)
OURS = SeenTokens(0, 0, 0, sequences=2)


def after(
    running: float = 2, made: float = 200, read: float = 0, cached: float = 0, firsts: float = 0, at: float = 1000
) -> EngineCounters:
    """A second and a hundred steps later."""
    return EngineCounters(ms(at), running, 0, made, read, cached, steps=at / 10, firsts=firsts)


def compared(*looks: tuple[EngineCounters, SeenTokens]) -> list[UnseenTraffic | None]:
    watch = UnseenWatch()
    watch.compare(START, OURS)
    return [watch.compare(engine, seen) for engine, seen in looks]


def test_tokens_of_nobody_else_are_ours() -> None:
    """The engine holds what we sent and read no other prompt: what it made for those who left is no stranger's."""
    looks = [(after(at=1000 * n, made=240 * n), SeenTokens(0, 200 * n, 0, sequences=2)) for n in range(1, 20)]

    assert [None] * 19 == compared(*looks)


def test_strangers_are_as_many_as_their_tokens_in_a_step() -> None:
    """At both looks nobody, but in between one came, made fifty tokens in a hundred steps, and left."""
    (found,) = compared((after(made=251, read=300, firsts=1), SeenTokens(0, 200, 0, sequences=2)))

    assert found is not None
    assert (found.prompt, found.decode, found.sequences, found.arrived) == (300, 50, 0.5, 1)
    assert (found.held, found.steps, found.span) == ((0, 0), 100, Span(ms(0), ms(1000)))


def test_with_drafts_a_step_makes_several_tokens() -> None:
    """Two tokens a step: two hundred tokens in a hundred steps are one sequence's."""
    watch = UnseenWatch()
    watch.compare(EngineCounters(ms(0), 1, 0, 0, 0, 0, 0, Drafts(0, 0, 0), 0, 0), SeenTokens(0, 0, 0))

    found = watch.compare(
        EngineCounters(ms(1000), 1, 0, 200, 0, 0, 0, Drafts(100, 300, 100), 100, 0), SeenTokens(0, 0, 0)
    )

    assert found is not None
    assert (found.decode, found.sequences) == (200, 1.0)


def test_who_gets_no_tokens_is_nobody() -> None:
    """A sequence more than ours, but what the engine read beyond ours came to no first token, and it made nothing."""
    looks = [(after(running=11, read=300), SeenTokens(0, 200, 0, sequences=2))]

    assert compared(*looks) == [None]


def test_strangers_make_no_more_than_a_token_a_step() -> None:
    """What is beyond that was made for somebody else, as for a client that left."""
    (found,) = compared((after(running=3, made=1000), SeenTokens(0, 200, 0, sequences=2)))

    assert found is not None
    assert found.decode == 100


def test_a_prompt_of_ours_that_may_have_been_read_is_waited_for() -> None:
    """Its first token came so shortly after the look that nobody knows; the next look tells."""
    pending = SeenTokens(0, 200, 0, 2, pending=900, pending_firsts=1)
    engine = after(made=201, read=900, firsts=1)
    later = after(made=401, read=900, firsts=1, at=2000)

    assert compared((engine, pending), (later, SeenTokens(900, 401, 0, 2, firsts=1))) == [None, None]
    late = compared((engine, pending), (later, SeenTokens(0, 400, 0, 2)))[-1]
    assert late is not None
    assert (late.prompt, late.arrived) == (900, 1)


def test_of_a_strangers_prompt_what_was_computed_is_guessed_from_what_ours_leave() -> None:
    """Of 4000 tokens read 3000 were hits; ours were computed to the last of 500, so 500 of theirs at most were."""
    (found,) = compared(
        (
            after(made=200, read=1000, cached=3000, firsts=2),
            SeenTokens(500, 200, 0, 2, firsts=1, computed=500),
        )
    )

    assert found is not None
    assert found.prompt == pytest.approx((500 + 3500 / 4) / 2)


def test_what_of_ours_was_computed_may_be_known_a_look_late() -> None:
    """Strangers read 400 tokens a look, ours are 1800 every other look, half of them hits that are told late."""
    looks, read, ours, known = [], 0, 0, 0
    for number in range(1, 41):
        read += 400
        known = ours // 2
        ours += 1800 if number % 2 else 0
        counters = after(made=200 * number, read=read + ours // 2, cached=ours // 2, firsts=number, at=1000 * number)
        looks.append((counters, SeenTokens(ours, 200 * number, 0, 2, computed=known)))

    found = compared(*looks)

    assert sum(one.prompt for one in found if one) == pytest.approx(read, rel=0.05)


def test_queued_requests_are_in_nobodys_steps() -> None:
    """Four run and four wait, of which six are ours: one of the two strangers runs, as far as anybody knows."""
    watch = UnseenWatch()
    engine = EngineCounters(ms(0), 4, 4, 0, 0, 0, steps=0, firsts=0)
    watch.compare(engine, SeenTokens(0, 0, 0, sequences=6))

    found = watch.compare(
        EngineCounters(ms(1000), 4, 4, 400, 0, 0, steps=100, firsts=0), SeenTokens(0, 300, 0, sequences=6)
    )

    assert found is not None
    assert (found.held, found.sequences) == ((1.0, 1.0), 1.0)


def test_two_looks_at_one_instant_tell_nothing() -> None:
    """There is no time in which anybody could have been there."""
    assert [None] == compared((EngineCounters(ms(0), 3, 0, 500, 0, 0, steps=0, firsts=0), OURS))


def test_a_look_is_compared_when_the_tokens_made_by_then_have_come() -> None:
    """Ten tokens were under way; a moment later they are here, and nobody is a stranger."""
    target = group(patience=Patience(ms(10_000), ms(500), scrape=ms(2000), gap=ms(30_000)))
    flight = stream("ours", first=10, step=10, tokens=90, prompt=1, over=False)
    opened(target, flight)
    target.scraped(EngineCounters(ms(5), 0, 0, 0, 0, 0, steps=0, firsts=0), ms(5))
    target.scraped(EngineCounters(ms(1000), 1, 0, 100, 1, 0, steps=100, firsts=1), ms(1000))
    assert not target.engine.seen_after(ms(1000))
    for number in range(91, 120):
        flight.tick(ms(number * 10), number)

    read(target, 1000)
    target.settle(ms(1050))
    assert not target.engine.seen_after(ms(1000))
    target.settle(ms(1100))

    assert target.engine.seen_after(ms(1000))
    assert target.engine.unseen == []


def test_a_look_at_an_engine_without_our_requests_need_not_wait() -> None:
    """Nothing is under way."""
    target = group()
    for at in (0, 1000):
        target.scraped(EngineCounters(ms(at), 1, 0, at, 0, 0, steps=at / 10, firsts=0), ms(at))

    assert target.engine.seen_after(ms(1000))
    assert len(target.engine.unseen) == 1


def test_what_has_left_stays_counted() -> None:
    """A request that is over and settled is no stranger afterwards."""
    target = group()
    opened(target, stream("ours", first=10, step=10, tokens=50, prompt=40))
    target.scraped(EngineCounters(ms(0), 0, 0, 0, 0, 0, steps=0, firsts=0), ms(0))
    read(target, 1500)
    target.settle(ms(1500))
    assert ["ours"] == [bill.flight.row for bill in target.close_finished(ms(1500))]

    target.scraped(EngineCounters(ms(2000), 0, 0, 50, 40, 0, steps=50, firsts=1), ms(2000))

    assert target.engine.unseen == []


def test_a_silent_answer_hides_no_stranger() -> None:
    """Its own tokens are about one a step; what is beyond is somebody else's, while it is still open."""
    target = group()
    mine = Flight("mine", "mine", ms(0), silent=True, prompt_estimate=10)
    target.open(Bill(mine, "t", "m", "b", "chat", False, "weighted", 0))
    for at in (1, 1001, 2001):
        counters = EngineCounters(ms(at), 2, 0, at / 5, 10, 0, steps=at / 10, firsts=1)
        target.scraped(counters, ms(at))
    read(target, 2000)
    target.settle(ms(2200))

    found = target.engine.unseen[-1]
    assert (found.sequences, found.decode) == (pytest.approx(1, rel=0.1), pytest.approx(100, rel=0.1))


def alone(flight: Flight, *looks: EngineCounters, lag_ms: float = 0) -> list[UnseenTraffic]:
    """What is found beside one request that nobody shares the engine with."""
    target = group(patience=Patience(ms(10_000), ms(500), scrape=ms(2000), gap=ms(30_000)))
    target.scraped(EngineCounters(ms(1), 0, 0, 0, 0, 0, steps=0, firsts=0), ms(1))
    opened(target, flight)
    target.engine._arrival.lag = ms(lag_ms)
    for one in looks:
        target.scraped(one, one.at)
        read(target, 3000)
        target.settle(ms(one.at / 1e6 + 500))
    return target.engine.unseen


@pytest.mark.parametrize("apart", [True, False])
def test_a_look_between_the_prompts_of_one_request_shows_no_stranger(apart: bool) -> None:
    """The engine has read one of six prompts; the others follow in its next step, which takes long."""
    flight = Flight("ours", "ours", ms(100), 6, 6, prompt_tokens=1200)
    for number in range(100):
        at = ms(220 + 10 * number) if number else ms(140)
        flight.tick(at, 1 + 6 * number)
        if apart:
            flight.begun(at, 6 if number else 1)

    looks = [
        EngineCounters(ms(at), running, 0, made, read, 0, steps=steps, firsts=firsts)
        for at, running, made, read, steps, firsts in (
            (150, 1, 1, 200, 1, 1),
            (350, 6, 85, 1200, 15, 6),
            (550, 6, 205, 1200, 35, 6),
        )
    ]
    assert alone(flight, *looks) == []


@pytest.mark.parametrize("tells_firsts", [True, False])
def test_a_lag_that_is_taken_for_too_long_makes_no_stranger(tells_firsts: bool) -> None:
    """Tokens that came after a look are taken for made before it, and an answer for ended that the engine still holds.

    So it is after many requests came at once and all of them waited.
    """
    flight = stream("ours", sent=100, first=150, step=5, tokens=140, prompt=200)
    looks = []
    for at, made in ((110, 0), (310, 32), (510, 72), (710, 112), (910, 140), (1110, 140)):
        begun = float(made > 0)
        firsts = begun if tells_firsts else None
        looks.append(EngineCounters(ms(at), made < 140, 0, made, 200 * begun, 0, steps=made, firsts=firsts))

    assert alone(flight, *looks, lag_ms=300) == []


def test_a_stranger_among_tokens_under_way_is_found_all_the_same() -> None:
    """One who came while ours are uncertain by thirty tokens: by the next look all that is beyond them is found."""
    engine, early = after(made=200, firsts=1, read=300), SeenTokens(0, 230, 0, 2)
    later = after(made=500, firsts=1, read=300, running=3, at=2000)

    found = [one for one in compared((engine, early), (later, SeenTokens(0, 400, 0, 2))) if one is not None]

    assert sum(one.prompt for one in found) == 300
    assert sum(one.decode for one in found) == pytest.approx(100, abs=20)


def test_a_first_look_amid_own_requests_makes_no_stranger() -> None:
    """Three of ours are taken as read when the engine has read none of them yet: it counts them by the next look."""
    watch = UnseenWatch()
    watch.compare(START, SeenTokens(900, 3, 3, sequences=3, firsts=3), SeenTokens(0, 0, 0))

    assert watch.compare(after(3, made=300, read=900, firsts=3), SeenTokens(900, 300, 3, sequences=3, firsts=3)) is None
