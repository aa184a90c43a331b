"""
Idle power is learnt from quiet windows; unseen traffic is what the engine counts in excess.
"""

from dataclasses import replace

import pytest

from proxy.accounting.activity import Span
from proxy.accounting.engine_view import REMEMBERED_SCRAPES
from proxy.accounting.idle import IdlePower
from proxy.accounting.reconstruction import reconstruct
from proxy.accounting.samples import Sample
from proxy.accounting.strangers import UNSEEN_CONTEXT
from proxy.accounting.units import Microjoules
from proxy.accounting.unseen import EngineCounters, SeenTokens, UnseenTraffic
from proxy.accounting.unseen_watch import UnseenWatch
from tests.accounting.flights import WEIGHTS, divided, ms, stream, window
from tests.accounting.scripted import group, opened, read


def engine(at_s: float, generation: float, prompt: float = 0, running: float = 1) -> EngineCounters:
    return EngineCounters(ms(at_s * 1000), running, 0, generation, prompt)


def test_idle_power_is_the_mean_of_quiet_windows() -> None:
    """
    Unknown until a quiet window was seen; then it follows slowly.
    """
    idle = IdlePower()
    assert None is idle.watts

    idle.learn(window(0, 100, 8.0))
    idle.learn(window(100, 200, 16.0))

    assert 80.0 < (idle.watts or 0) < 81.0


def test_the_warm_second_after_work_is_not_idle_power() -> None:
    """
    Clocks and leakage need a moment: such windows teach nothing.
    """
    idle = IdlePower()
    idle.worked_until(ms(0))

    idle.learn(window(500, 600, 30.0))
    assert None is idle.watts

    idle.learn(window(1000, 1100, 9.0))
    assert 90.0 == idle.watts


def test_all_tokens_seen_means_no_stranger() -> None:
    """
    Equal counts, and small differences of arrival, are nobody's.
    """
    watch = UnseenWatch()
    watch.compare(engine(0, 0), SeenTokens(0, 0, 0))

    assert None is watch.compare(engine(1, 105), SeenTokens(0, 100, 0))
    assert None is watch.compare(engine(2, 205), SeenTokens(0, 205, 0))


def test_excess_tokens_are_a_stranger() -> None:
    """
    What the engine generated beyond ours appears as unseen traffic over the time between two scrapes.
    """
    watch = UnseenWatch()
    watch.compare(engine(0, 0), SeenTokens(0, 0, 0))

    found = watch.compare(engine(1, 300, prompt=50, running=3), SeenTokens(10, 100, 0))

    assert UnseenTraffic(Span(ms(0), ms(1000)), 40.0, 200.0, 2.0, held=(1.0, 3.0)) == found


def test_an_open_silent_answer_defers_the_judgement() -> None:
    """
    Its tokens are counted by the engine and not yet by us, so nothing is concluded until it ends.
    """
    watch = UnseenWatch()
    watch.compare(engine(0, 0), SeenTokens(0, 0, 0))

    assert None is watch.compare(engine(1, 300), SeenTokens(0, 0, 1, sequences=1))
    assert None is watch.compare(engine(2, 400), SeenTokens(0, 400, 0))


def test_more_running_sequences_than_ours_are_a_strangers_even_then() -> None:
    """
    Two of three running sequences were not sent from here, at both looks: two thirds of the tokens are not ours.
    """
    watch = UnseenWatch()
    watch.compare(engine(0, 0, running=3), SeenTokens(0, 0, 1, sequences=1))

    found = watch.compare(engine(1, 300, running=3), SeenTokens(0, 0, 1, sequences=1))

    assert UnseenTraffic(Span(ms(0), ms(1000)), 0.0, 200.0, 2) == found


def test_an_engine_that_counts_otherwise_hides_no_stranger() -> None:
    """
    Without cached-token details our prompt count is too high; what is carried of that is bounded.
    """
    watch = UnseenWatch()
    watch.compare(engine(0, 0), SeenTokens(0, 0, 0))
    watch.compare(engine(1, 10, prompt=100), SeenTokens(400_000, 10, 0))

    found = watch.compare(engine(2, 10, prompt=100_100), SeenTokens(400_000, 10, 0))

    assert found is not None
    assert found.prompt > 99_000


def test_every_stranger_of_a_long_window_pays() -> None:
    """
    A window longer than the time between two looks meets several spells of unseen traffic: all of them count.
    """
    spells = [UnseenTraffic(Span(ms(100 * n), ms(100 * n + 100)), 0, 50, 1) for n in range(10)]

    result = divided(window(0, 1000, 100.0), [], weights=WEIGHTS, unseen=spells)

    assert (100_000_000, 0) == (result.unattributed, result.idle)


def test_a_stream_without_running_counts_is_ahead_of_us_until_its_end() -> None:
    """
    Its chunks may hold many tokens each, so what the engine counts in excess meanwhile may be its own.
    """
    counted, rough = stream("counted", over=False), stream("rough", over=False)
    rough.rough = True
    assert (counted.uncounted, rough.uncounted) == (False, True)

    rough.end(ms(300), "ok")
    assert not rough.uncounted


def test_a_slow_trickle_is_found_in_the_end() -> None:
    """
    Small excesses are carried, not forgotten.
    """
    watch = UnseenWatch()
    watch.compare(engine(0, 0), SeenTokens(0, 0, 0))
    found = [watch.compare(engine(second, 5 * second), SeenTokens(0, 0, 0)) for second in range(1, 8)]

    assert any(found)


def test_a_restarted_engine_starts_the_comparison_anew() -> None:
    """
    A counter that fell is a new life, not negative traffic.
    """
    watch = UnseenWatch()
    watch.compare(engine(0, 5000), SeenTokens(0, 0, 0))

    assert None is watch.compare(engine(1, 10), SeenTokens(0, 0, 0))


def test_strangers_pay_into_unattributed() -> None:
    """
    A stranger with the same decode as ours takes half of the window out of our bill.
    """
    ours = stream("ours", prompt=512, tokens=100, first=0.001, step=10)
    theirs = UnseenTraffic(Span(ms(100), ms(200)), prompt=0, decode=10, sequences=1)

    result = divided(window(100, 200, 10.0), [ours], weights=WEIGHTS, unseen=[theirs])

    assert 0 == result.imbalance
    assert abs(result.unattributed - 5_000_000) < 100_000


def test_cached_prompts_not_known_by_request_yet_are_no_strangers() -> None:
    """
    Our agent's 8000 prompt tokens were all hits but 200; until its stream says so, only totals can be compared.
    """
    watch = UnseenWatch()
    watch.compare(EngineCounters(ms(0), 1, 0, 0, 0, 0), SeenTokens(0, 0, 0))

    assert None is watch.compare(EngineCounters(ms(1000), 1, 0, 20, 200, 7800), SeenTokens(8000, 20, 0))


def test_a_strangers_prompt_pays_for_what_was_computed() -> None:
    """
    Of 4000 unseen prompt tokens a quarter was computed, as far as the engine tells of all of them.
    """
    watch = UnseenWatch()
    watch.compare(EngineCounters(ms(0), 1, 0, 0, 0, 0), SeenTokens(0, 0, 0))

    found = watch.compare(EngineCounters(ms(1000), 1, 0, 0, 1000, 3000), SeenTokens(0, 0, 0))

    assert UnseenTraffic(Span(ms(0), ms(1000)), 1000.0, 0.0, 1.0, held=(1.0, 1.0)) == found


def test_a_strangers_context_has_the_models_window_too() -> None:
    """
    Sliding windows cap what is guessed for a sequence that nobody knows, and for a token in the middle of its prompt.
    """
    capped = replace(WEIGHTS, window=128, windowed=1.0)
    unseen = [UnseenTraffic(Span(ms(0), ms(100)), prompt=10, decode=10, sequences=1)]
    assert capped.context_of(UNSEEN_CONTEXT) == 128

    (found,) = reconstruct(Span(ms(0), ms(100)), [], weights=capped, unseen=unseen).strangers

    assert (1280, 1280) == (found.decode_context, found.prefill_context)


def test_strangers_are_bounded_while_no_meter_gives_readings() -> None:
    """
    Never one, or none any more: a second of strangers at a time, for ever, takes no room.
    """
    for readings_ms in (None, 1000):
        target = group()
        if readings_ms is not None:
            read(target, readings_ms)
            target.settle(ms(2000))
        for second in range(500):
            target.scraped(engine(second, second * 500, running=3), ms(second * 1000))
            target.settle(ms(second * 1000))

        assert len(target.engine.unseen) == REMEMBERED_SCRAPES


def test_a_counter_that_stands_still_teaches_no_idle_power() -> None:
    """
    Three seconds without a microjoule, then all of it at once, while a request ran: nothing of that was idle.
    """
    target = group()
    opened(target, stream("r", first=20, step=10, tokens=600, over=False))
    for at, joules in ((0, 1), (3000, 1), (3100, 301)):
        target.sampled("m", Sample(ms(at), Microjoules(joules * 1_000_000), 100.0))
    target.settle(ms(20_000), force=True)

    assert None is target.meters["m"].idle_w


def test_work_that_nobody_told_of_is_not_idle() -> None:
    """Ten times idle power with nobody there, as when an engine starts: idle stays idle, the rest is unattributed."""
    target = group()
    read(target, 20_000, watts=60)
    for at in range(20_100, 40_001, 100):
        target.sampled("m", Sample(ms(at), Microjoules(round((20_000 * 60 + (at - 20_000) * 600) * 1000))))
    target.settle(ms(50_000), force=True)
    accounts = target.meters["m"].accounts

    assert accounts.idle + accounts.unattributed == accounts.meter == (20 * 60 + 20 * 600) * 1_000_000
    assert accounts.idle == pytest.approx(40 * 60 * 1e6, rel=0.1)


def test_a_board_that_idles_higher_than_before_is_idle_again_after_minutes() -> None:
    """Somebody has loaded a model: what draws three times as much all the time is the idle power from then on."""
    idle = IdlePower()
    for second in range(600):
        idle.learn(window(second * 1000, second * 1000 + 1000, 60.0 if second < 60 else 180.0))

    assert idle.watts == pytest.approx(180, rel=0.01)


def test_a_short_burst_of_somebody_else_does_not_count_as_idle_power() -> None:
    """Half a minute at ten times the power moves what is known by less than a third."""
    idle = IdlePower()
    for second in range(90):
        idle.learn(window(second * 1000, second * 1000 + 1000, 60.0 if second < 60 else 600.0))

    assert 60 < (idle.watts or 0) < 80
