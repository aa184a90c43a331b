"""When a window is ready: as soon as all that ran in it is known, and never much later."""

import pytest

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.patience import STALLED_WAIT, Patience
from proxy.accounting.steps import Computed
from proxy.accounting.unseen import EngineCounters
from tests.accounting.flights import ms, silent, stream
from tests.accounting.scripted import group, opened, read, step

SCRAPED = Patience(prefill=ms(10_000), silent=ms(500), scrape=ms(2000), gap=ms(30_000))


def known(target: Group, now: float) -> float:
    """Milliseconds up to which all is divided at `now`."""
    target.settle(ms(now))
    return (target.settled_until or 0) / 1e6


def look(at: float) -> EngineCounters:
    return EngineCounters(ms(at), 1, 0, 0, 0)


def test_with_token_times_a_window_waits_for_the_next_look_at_the_engine() -> None:
    """Who else was there is known from it; a failed look counts as one, and so does its being overdue."""
    for counters, now in ((look(1100), 1200.0), (None, 1200.0), (None, 3100.0)):
        target = group(patience=SCRAPED)
        opened(target, stream("r", first=0.001, tokens=150, over=False))
        read(target, 1000)
        assert 0 == known(target, 1150)
        if now < 2000:
            target.scraped(counters, ms(1100))
        assert 1000 == known(target, now)


def test_with_the_step_log_a_window_waits_for_no_look() -> None:
    """The log tells of strangers too: what it has passed is divided at once."""
    target = group(patience=SCRAPED)
    opened(target, stream("r", first=0.001, tokens=150, over=False))
    read(target, 1000)
    target.stepped(step(1, 0, 999, Computed("r", 0, 100, 0)))
    assert 0 == known(target, 1005)

    target.stepped(step(2, 999, 1001, Computed("r", 100, 0, 1)))
    assert 1000 == known(target, 1006)


def test_with_the_step_log_a_window_waits_for_the_step_under_way() -> None:
    """A long one may have begun in it; it will be told when it ends."""
    target = group()
    opened(target, Flight("r", "r", ms(0), prompt_tokens=100_000))
    target.stepped(step(1, 0, 10, Computed("r", 0, 2048, 0)))
    read(target, 1000)
    assert 0 == known(target, 5000)

    target.stepped(step(2, 10, 5100, Computed("r", 2048, 90_000, 0)))
    assert 1000 == known(target, 5101)


def test_a_step_longer_than_the_patience_is_not_taken_for_idle() -> None:
    """Nobody knows yet what ran in the windows that could not wait: its request pays, and is of grade B."""
    target = group()
    bill = opened(target, Flight("r", "r", ms(0), prompt_tokens=100_000))
    target.stepped(step(1, 0, 10, Computed("r", 0, 2048, 0)))
    read(target, 14_000)
    assert 3000 == known(target, 13_001)
    target.stepped(step(2, 10, 13_990, Computed("r", 2048, 97_952, 0)))
    bill.flight.tick(ms(13_995), 1)
    bill.flight.end(ms(13_996), "ok")
    assert 14_000 == known(target, 15_000)

    (state,) = target.meters.values()
    assert (state.accounts.idle, bill.energy_uj) == pytest.approx((0, 1_400_000_000), rel=0.001, abs=2_000_000)
    assert ("B", "live") == (target.grade_of(bill), target.steps.state)


def test_an_engine_at_rest_beside_a_request_that_does_no_work_is_idle() -> None:
    """Its log ends before the window, and everything is known all the same."""
    target = group()
    bill = opened(target, stream("r", first=10, step=10, tokens=5))
    opened(target, Flight("tokenise", "tokenise", ms(0), metered_work=False))
    for number in range(1, 6):
        target.stepped(step(number, number * 10 - 10, number * 10, Computed("r", 100, 0, 1)))
    read(target, 1000)

    assert 1000 == known(target, 1010)
    assert "A" == target.grade_of(bill)
    assert bill.energy_uj < 10_000_000


def test_an_engine_with_nothing_to_do_holds_no_window() -> None:
    """Its log says nothing because nothing happens."""
    target = group()
    opened(target, stream("r", first=10, step=10, tokens=5))
    for number in range(1, 6):
        target.stepped(step(number, number * 10 - 10, number * 10, Computed("r", 100, 0, 1)))
    read(target, 1000)

    assert 1000 == known(target, 1010)


def test_a_first_token_is_waited_for_longer_than_the_next() -> None:
    """A prefill may be long; a stream that gave tokens and stopped has stalled."""
    prefilling, stalled = group(), group()
    opened(prefilling, Flight("r", "r", ms(0), prompt_tokens=9000))
    opened(stalled, stream("r", first=10, step=10, tokens=3, over=False))
    wait = STALLED_WAIT / 1e6
    for target in (prefilling, stalled):
        read(target, 500)

    assert (0, 0) == (known(prefilling, 500 + wait - 1), known(stalled, 500 + wait - 1))
    assert (0, 500) == (known(prefilling, 500 + wait + 1), known(stalled, 500 + wait + 1))
    assert 500 == known(prefilling, 10_501)


def test_a_silent_answer_is_waited_for_only_a_moment() -> None:
    """It will not say anything before its end."""
    target = group()
    opened(target, silent("s", ended=None))
    read(target, 1000)

    assert 0 == known(target, 1490)
    assert 1000 == known(target, 1510)


def test_a_request_sent_later_holds_nothing() -> None:
    """It cannot have run in the window."""
    target = group()
    opened(target, stream("r", first=10, step=10, tokens=40))
    opened(target, Flight("later", "later", ms(700), prompt_tokens=9000))
    read(target, 500)

    assert 500 == known(target, 1001)


def decoding(target: Group, row: str, *numbers: int, engine: int = 0) -> None:
    """Steps of 10 ms, the n-th of which ends after n times 10 ms."""
    for number in numbers:
        held = Computed(row, number, 0, 1)
        target.stepped(step(number, number * 10 - 10, number * 10, held, engine=engine, boot=engine))


def test_a_request_sent_later_holds_nothing_beside_a_step_log_either() -> None:
    """The step that holds it began after the window."""
    target = group()
    opened(target, stream("r", first=10, step=10, tokens=40))
    decoding(target, "r", *range(1, 41))
    opened(target, Flight("later", "later", ms(700), prompt_tokens=9000))
    read(target, 600)

    assert 600 == known(target, 1201)


def test_the_end_of_a_request_waits_only_a_moment_for_another_step() -> None:
    """Its last token arrives a little after its last step, in the next window: no step comes that would say so."""
    target = group()
    flight = stream("r", first=10, step=10, tokens=100, over=False)
    opened(target, flight)
    decoding(target, "r", *range(1, 100))
    flight.end(ms(1001), "ok")
    read(target, 1400)

    assert 0 == known(target, 1402)
    assert 1400 == known(target, 1502)


@pytest.mark.parametrize("logged", [True, False])
def test_a_request_that_does_no_work_holds_no_window(logged: bool) -> None:
    """Tokenising is in no step and gives no token, however long its client holds it open."""
    target = group()
    opened(target, stream("r", first=10, step=10, tokens=10))
    opened(target, Flight("tokenise", "tokenise", ms(50), metered_work=False))
    opened(target, Flight("count", "count", ms(50), metered_work=False, silent=True))
    if logged:
        decoding(target, "r", *range(1, 11))
    read(target, 600)

    assert 600 == known(target, 601)


def test_an_engine_of_two_that_idles_holds_no_window() -> None:
    """It told of its last step long ago; the other one tells of all that runs."""
    target = group()
    opened(target, stream("r", first=20, step=10, tokens=400, over=False))
    target.stepped(step(1, 0, 5, Computed("z", 0, 1, 0), engine=1, boot=2))
    decoding(target, "r", *range(1, 400))
    read(target, 3000)

    assert 3000 == known(target, 4000)


def test_a_log_that_dies_does_not_hold_windows_as_long_as_a_prefill() -> None:
    """Tokens that go on coming show that it is gone; from then on they are what is waited for."""
    target = group()
    opened(target, stream("r", first=20, step=10, tokens=400, over=False))
    decoding(target, "r", *range(1, 100))
    read(target, 3900)

    assert 3000 == known(target, 4000)


def test_with_a_hole_in_the_log_a_window_waits_for_the_first_token() -> None:
    """A prefill of a second beside a decode: told whole or with a step lost, it comes to the same share."""

    def played(lost: int | None) -> tuple[Group, Bill, Bill]:
        target = group()
        reader = opened(target, Flight("long", "long", ms(0), prompt_tokens=20_000, cached_tokens=0))
        other = opened(target, stream("other", first=0.001, step=20, tokens=200, over=False))
        for number in range(1, 51):
            if number != lost:
                held = Computed("long", number * 400 - 400, 400, 0), Computed("other", number, 0, 1)
                target.stepped(step(number, number * 20 - 20, number * 20, *held))
        read(target, 1000)
        return target, reader, other

    def share(lost: int | None) -> float:
        target, reader, other = played(lost)
        reader.flight.tick(ms(1000), 1)
        assert 1000 == known(target, 2001)
        return reader.energy_uj / (reader.energy_uj + other.energy_uj)

    # In the window with the hole the reader is not known to have read anything before its first token came.
    target, _, _ = played(lost=20)
    assert 0 == known(target, 1001)
    target, _, _ = played(lost=None)
    assert 1000 == known(target, 1001)

    assert share(lost=20) == pytest.approx(share(lost=None), rel=0.02)
