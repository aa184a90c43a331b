"""What is said of a request before its last windows are divided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.provisional import Provisional, forecast
from proxy.accounting.step_clock import ONE_BY_ONE
from proxy.accounting.units import Nanoseconds
from tests.accounting.flights import WEIGHTS, ms, silent, stream
from tests.accounting.scripted import group, opened, read


def bill_of(flight: Flight, **uj: int) -> Bill:
    return Bill(flight, "t", "m", "b", "chat", True, "weighted", 0, **uj)


def said(
    flight: Flight,
    now: float = 1000,
    *,
    reached: Nanoseconds | None = None,
    held: int = 1,
    kappa: float | None = 1.0,
    power_w: float | None = 1000.0,
    **uj: int,
) -> Provisional | None:
    """The forecast for a bill of which so much has been charged; 1 kW unless said otherwise."""
    return forecast(
        bill_of(flight, **uj),
        ms(now),
        reached=reached,
        held=held,
        weights=WEIGHTS,
        kappa=kappa,
        power_w=power_w,
        pace=ONE_BY_ONE,
    )


def test_before_the_first_reading_nothing_is_said() -> None:
    """Not a zero."""
    assert None is said(stream("r"))


def test_a_request_without_work_has_cost_nothing() -> None:
    """It needs no reading for that."""
    flight = Flight("r", "r", ms(0), metered_work=False)

    assert Provisional(0, 0, 0, 0) == said(flight)


def test_what_is_divided_already_stands() -> None:
    """If all of the request's time is, nothing is added."""
    charged = {"prefill_uj": 5, "decode_uj": 3, "shared_uj": 2, "metered_uj": 40}

    assert Provisional(5, 3, 2, 40) == said(stream("r"), reached=ms(240), **charged)


def test_the_rest_is_predicted_joules_times_kappa() -> None:
    """100 tokens of a stream alone in the engine: as many steps, positions and contexts."""
    flight = stream("r", first=0.001, step=10, tokens=101, prompt=0)
    context = sum(range(1, 101)) * WEIGHTS.context

    found = said(flight, reached=ms(0.001), kappa=0.5)

    assert found is not None
    assert found.decode == pytest.approx(0.5e6 * (100 * WEIGHTS.decode + context), rel=0.02)
    assert found.shared == pytest.approx(0.5e6 * 100 * WEIGHTS.step, rel=0.01)


def test_steps_are_shared_with_those_that_are_held_too() -> None:
    """Nine others in the engine leave a tenth of each step."""
    flight = stream("r", first=0.001, step=10, tokens=101, prompt=0)
    alone, among = (said(flight, reached=ms(0.001), kappa=0.1, held=held) for held in (1, 10))

    assert alone is not None
    assert among is not None
    assert among.shared == pytest.approx(alone.shared / 10, rel=0.01)
    assert among.decode == pytest.approx(alone.decode, rel=0.01)


def test_no_more_is_forecast_than_the_meters_read() -> None:
    """However large the prediction."""
    found = said(stream("r", first=990, prompt=100_000, tokens=2), reached=ms(0), power_w=100.0)

    assert found is not None
    assert found.energy == pytest.approx(100_000_000, rel=1e-6)
    assert found.energy <= found.metered


def test_before_kappa_is_known_it_is_the_power_over_those_present() -> None:
    """Half of the reading with one other beside."""
    found = said(stream("r", first=0.001, step=10, tokens=101), reached=ms(0), held=2, kappa=None, power_w=100.0)

    assert found is not None
    assert found.energy == pytest.approx(50_000_000, rel=1e-3)


def test_a_refused_request_is_forecast_nothing() -> None:
    """It was never taken up."""
    flight = Flight("r", "r", ms(0), prompt_tokens=5000)
    flight.end(ms(5), "error")

    assert Provisional(0, 0, 0, 0) == said(flight, reached=ms(0))


def steady(*meters: str) -> tuple[Group, Bill]:
    """A group in which one stream has run for three seconds, of which all but the last half are divided."""
    target = group(*meters)
    bill = opened(target, stream("r", first=0.001, step=10, tokens=400, over=False))
    read(target, 3000)
    target.settle(ms(3001))
    return target, bill


def test_a_steady_stream_is_forecast_what_it_will_be_charged() -> None:
    """The figure in the answer and the one in the ledger are near each other."""
    target, bill = steady()
    bill.flight.end(ms(3990), "ok")
    said_now = target.provisional(bill, ms(3990))
    read(target, 4500, since_ms=3100)
    target.settle(ms(9000))

    assert said_now is not None
    assert said_now.energy == pytest.approx(bill.energy_uj, rel=0.05)


@given(st.integers(0, 4000), st.integers(0, 4000))
def test_time_only_adds(one: int, other: int) -> None:
    """While a request runs its provisional figure never falls."""
    first, second = sorted((one, other))
    target, bill = steady()
    before, after = target.provisional(bill, ms(first)), target.provisional(bill, ms(second))

    assert before is not None
    assert after is not None
    assert bill.energy_uj <= before.energy <= after.energy + 2
    assert before.energy <= before.metered


def test_a_silent_answer_is_forecast_while_it_runs_and_when_it_is_over() -> None:
    """By the steps that the weights predict, then by its tokens."""
    flight = silent("s", ended=None)
    running = said(flight, reached=ms(0), kappa=0.3)
    flight.completion_tokens = 30
    flight.end(ms(900), "ok")
    over = said(flight, reached=ms(0), kappa=0.3)

    assert running is not None
    assert over is not None
    assert running.energy > over.energy > 0
    assert over.decode > over.prefill / 10 > 0


def test_several_meters_are_forecast_together() -> None:
    """Two boards of 100 W: five seconds more are a kilojoule, whatever ratio each has to its prediction."""
    target = group("g0", "g1")
    flight = stream("r", first=20, step=10, tokens=1000, over=False)
    bill = opened(target, flight)
    read(target, 5000)
    target.settle(ms(5100))
    flight.end(ms(9000), "ok")

    said_now = target.provisional(bill, ms(9000))

    assert said_now is not None
    rest_s = 9.0 - (target.settled_until or 0) / 1e9
    assert said_now.energy - bill.energy_uj == pytest.approx(200e6 * rest_s, rel=0.05)
