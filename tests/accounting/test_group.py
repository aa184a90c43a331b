"""
Windows meet requests: when they are divided, what is booked, and what a reader may rely on.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting import group as group_module
from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group, Patience
from proxy.accounting.samples import Sample
from proxy.accounting.units import Microjoules
from proxy.accounting.unseen import EngineCounters
from tests.accounting.flights import WEIGHTS, ms, silent, stream

PATIENCE = Patience(prefill=ms(30_000), silent=ms(500), scrape=ms(0), gap=ms(30_000))


def group(*meters: str, patience: Patience = PATIENCE) -> Group:
    return Group("b", meters or ("m",), weights=WEIGHTS, patience=patience)


def opened(target: Group, flight: Flight, *, tenant: str = "t", model: str = "m") -> Bill:
    bill = Bill(flight, tenant, model, "b", "chat", not flight.silent, "weighted", 0)
    target.open(bill)
    return bill


def readings(target: Group, *counters_mj: int, every_ms: int = 100, meter: str = "m") -> None:
    for number, counter in enumerate(counters_mj):
        target.sampled(meter, Sample(ms(number * every_ms), Microjoules(counter * 1000)))


def test_a_long_prefill_holds_its_windows_open() -> None:
    """
    While a request waits for its first token nobody knows its work: no window of its time is divided.
    """
    target = group()
    flight = Flight("r", "r", ms(10), prompt_tokens=4000)
    opened(target, flight)
    readings(target, 0, 10_000, 20_000)

    assert [] == target.settle(ms(5_000))

    flight.tick(ms(260), 1)
    assert [20_000_000] == [split.window.energy for split in target.settle(ms(5_000))]


def held(streams: int, windows: int, *meters: str) -> Group:
    """A prefill that has held many streams' windows of a second open, and has just got its first token."""
    target = group(*meters)
    opened(target, stream("held", first=1000 * windows + 1, tokens=1, prompt=4000, over=False))
    for number in range(streams):
        opened(target, stream(f"s{number}", first=20 + number, step=20, tokens=51 * windows, over=False))
    for meter in target.meters:
        readings(target, *range(0, 10_000 * (10 * windows + 1), 10_000), meter=meter)
    return target


def test_a_pass_after_a_held_window_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whatever has piled up: a pass divides so many windows as its requests allow, the next ones the rest, and nobody
    pays more or less for it.
    """
    at_once, little_by_little = held(49, 8), held(49, 8)
    assert 8 == len(at_once.settle(ms(9_000)))

    monkeypatch.setattr(group_module, "WORK_A_PASS", 100)
    passes = [len(little_by_little.settle(ms(9_000))) for _ in range(5)]

    assert [2, 2, 2, 2, 0] == passes
    assert little_by_little.bills == at_once.bills


def test_every_meter_gets_on_in_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Also when one window is more than a pass is meant to do; and at shutdown all is done.
    """
    monkeypatch.setattr(group_module, "WORK_A_PASS", 1)
    target = held(9, 2, "m", "n")

    assert ["m", "n"] == [split.window.meter for split in target.settle(ms(5_000))]
    assert 20 == len(target.settle(ms(5_000), force=True))


def test_patience_has_an_end() -> None:
    """
    After the limit a silent backend holds up nobody else's figures.
    """
    target = group()
    opened(target, Flight("r", "r", ms(10), prompt_tokens=4000))
    readings(target, 0, 10_000)

    assert 1 == len(target.settle(ms(40_000)))


def test_a_silent_answer_is_waited_for_only_shortly() -> None:
    """
    A non-streaming answer says nothing until it is there: its windows are divided by prediction meanwhile.
    """
    target = group()
    bill = opened(target, silent("s", ended=None))
    readings(target, 0, 10_000)

    assert [] == target.settle(ms(400))
    assert 1 == len(target.settle(ms(1_200)))
    assert bill.energy_uj == 10_000_000


def test_windows_wait_for_the_engines_counters() -> None:
    """
    Whether strangers were there is known from the next scrape only.
    """
    target = group(patience=Patience(ms(1000), ms(500), scrape=ms(2000), gap=ms(30_000)))
    readings(target, 0, 10_000)
    assert [] == target.settle(ms(300))

    target.scraped(EngineCounters(ms(400), 0, 0, 0, 0), ms(400))
    assert 1 == len(target.settle(ms(450)))


def test_a_request_is_closed_when_every_meter_has_passed_its_end() -> None:
    """
    With two GPUs the slower meter decides, and both energies are summed.
    """
    target = group("g0", "g1")
    bill = opened(target, stream("r", tokens=6, first=20))
    readings(target, 0, 7_000, meter="g0")
    target.settle(ms(1000))
    assert [] == target.close_finished(ms(1000))

    readings(target, 0, 5_000, meter="g1")
    target.settle(ms(1000))
    assert [bill] == target.close_finished(ms(1000))
    assert 12_000_000 == bill.energy_uj + sum(state.accounts.idle for state in target.meters.values())


def test_a_dead_meter_leaves_the_figure_unknown_not_zero() -> None:
    """
    When no reading comes any more the request is closed in the end and marked.
    """
    target = group()
    bill = opened(target, stream("r"))
    readings(target, 0)

    assert [] == target.close_finished(ms(10_000))
    assert [bill] == target.close_finished(ms(60_000))
    assert bill.unmeasured


def test_a_gap_too_long_to_divide_is_unmeasured() -> None:
    """
    Energy over minutes without a reading belongs to nobody in particular, and is not lost.
    """
    target = group()
    opened(target, stream("r"))
    readings(target, 0, 900_000, every_ms=60_000)

    (split,) = target.settle(ms(61_000))

    assert (900_000_000, 0) == (split.unmeasured, split.requests)


def test_what_was_counted_while_no_proxy_ran_is_unattributed() -> None:
    """
    The ledger knew the counter at 4 J; the first reading says 10 J: 6 J are real and nobody's.
    """
    target = group()
    target.sampled("m", Sample(ms(0), Microjoules(10_000_000)), known_counter=Microjoules(4_000_000))

    accounts = target.meters["m"].accounts
    assert (6_000_000, 6_000_000, 0) == (accounts.unattributed, accounts.meter, accounts.imbalance)


def test_a_counter_that_fell_while_no_proxy_ran_starts_anew() -> None:
    """
    A smaller counter has been reset: nothing can be said of the time between.
    """
    target = group()
    target.sampled("m", Sample(ms(0), Microjoules(10)), known_counter=Microjoules(4_000_000))

    assert 0 == target.meters["m"].accounts.meter


def test_tokenising_is_closed_at_once_and_costs_nothing() -> None:
    """
    A request without work on the GPU waits for no window.
    """
    target = group()
    bill = opened(target, Flight("r", "r", ms(0), metered_work=False))
    bill.flight.end(ms(5), "ok")

    assert [bill] == target.close_finished(ms(6))
    assert (0, False) == (bill.energy_uj, bill.unmeasured)


def test_a_provisional_figure_needs_a_reading() -> None:
    """
    Before anything was measured there is no figure, not a zero.
    """
    target = group()
    bill = opened(target, stream("r"))
    assert None is target.provisional(bill, ms(300))

    readings(target, 0, 10_000, 20_000)
    known = target.provisional(bill, ms(300))
    assert known is not None
    assert 0 < known.energy <= known.metered


@given(
    st.lists(
        st.builds(
            stream,
            row=st.uuids().map(str),
            sent=st.floats(0, 2000),
            first=st.floats(2001, 2500),
            tokens=st.integers(0, 30),
            step=st.floats(1, 50),
            over=st.booleans(),
        ),
        max_size=6,
        unique_by=lambda flight: flight.row,
    ),
    st.lists(st.integers(0, 60_000), min_size=2, max_size=40),
)
def test_every_book_says_the_same_sum(flights: list[Flight], steps_mj: list[int]) -> None:
    """
    Accounts == meter; bills == account requests == sum by phase == sum by tenant; after every pass, exactly.
    """
    target = group("g0", "g1")
    bills = [opened(target, flight, tenant=flight.row[:1], model=flight.row[1:2]) for flight in flights]
    counter = 0
    for number, step in enumerate(steps_mj):
        counter += step
        for meter in ("g0", "g1"):
            target.sampled(meter, Sample(ms(number * 100), Microjoules(counter * 1000)))
        target.settle(ms(number * 100), force=number % 7 == 0)
    target.settle(ms(10_000), force=True)

    requests = sum(state.accounts.requests for state in target.meters.values())
    assert all(state.accounts.imbalance == 0 for state in target.meters.values())
    assert requests == sum(bill.energy_uj for bill in bills)
    assert requests == sum(target.tallies.energy_by_model_phase.values())
    assert requests == sum(target.tallies.energy_by_tenant.values())
    assert 2 * sum(steps_mj[1:]) * 1000 == sum(state.accounts.meter for state in target.meters.values())


def test_a_request_inside_an_unmeasured_window_is_marked() -> None:
    """
    Its energy is not known: a settled zero of good grade would be a lie.
    """
    target = group()
    bill = opened(target, stream("r", first=20, tokens=3))
    readings(target, 0, 900_000, every_ms=60_000)
    target.settle(ms(61_000))

    assert [bill] == target.close_finished(ms(61_000))
    assert (True, 0, 0) == (bill.unmeasured, bill.energy_uj, bill.metered_uj)


def test_one_slow_prefill_makes_nobody_else_unmeasured() -> None:
    """
    While the meter reads on, a request waits for its windows however long another one holds them open.
    """
    target = group()
    done = opened(target, stream("done", first=20, tokens=10))
    opened(target, Flight("stuck", "stuck", ms(10), prompt_tokens=4000))
    readings(target, *range(0, 400_000, 1000))

    assert [] == target.settle(ms(30_050))
    assert [] == target.close_finished(ms(35_000))

    target.settle(ms(40_500))
    assert [done] == target.close_finished(ms(40_500))
    assert not done.unmeasured


def test_a_bridged_stuck_counter_is_not_booked_again_after_a_restart() -> None:
    """
    The position handed to the ledger includes what was bridged: a new process takes only the rest for new.
    """
    target = group()
    for second in range(5):
        target.sampled("m", Sample(ms(second * 1000), Microjoules(1_000_000), 300.0))
    target.settle(ms(10_000), force=True)

    state = target.meters["m"]
    assert Microjoules(1_000_000 + 900_000_000) == state.counter
    assert (900_000_000, 0) == (state.accounts.unmeasured, state.imbalance)
