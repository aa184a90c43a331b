"""Charges are evened out between windows, and no window's sum is touched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.activity import Activity, Work
from proxy.accounting.attribution import apportion, split
from proxy.accounting.flight import Flight
from proxy.accounting.steps import Computed
from proxy.accounting.true_up import MEMORY_S, TrueUp
from tests.accounting.flights import WEIGHTS, ms, window
from tests.accounting.scripted import Engine, paid

rows = ["a", "b", "c", "d"]
windows_drawn = st.lists(
    st.tuples(
        st.lists(st.floats(0, 50) | st.just(0.0), min_size=4, max_size=5),
        st.integers(1, 10**8),
        st.integers(1, 3000),
        st.lists(st.booleans(), min_size=4, max_size=4),
    ),
    min_size=1,
    max_size=20,
)
Drawn = list[tuple[list[float], int, int, list[bool]]]
"""Windows: joules predicted of four rows and perhaps a stranger, microjoules, milliseconds, and who runs on."""


def play(true_up: TrueUp, *windows: tuple[dict[str, float], int], every_ms: float = 100) -> dict[str, int]:
    """Windows one after the other: who was predicted what, and the reading in microjoules. What each paid."""
    paid_uj: dict[str, int] = {}
    for number, (predicted, active) in enumerate(windows, 1):
        at = ms(number * every_ms)
        names, joules = list(predicted), list(predicted.values())
        for row, weight, energy in zip(
            names, joules, apportion(active, true_up.claims(names, joules, active, at)), strict=True
        ):
            true_up.charged(row, weight, energy, at)
            paid_uj[row] = paid_uj.get(row, 0) + energy
    return paid_uj


@given(windows_drawn)
def test_claims_are_sound(drawn: Drawn) -> None:
    """Never negative; nothing for who did nothing; something for somebody while anybody did something."""
    true_up, at = TrueUp(), 0
    for predicted, active, later, staying in drawn:
        at += later
        claims = true_up.claims(rows, predicted, active, ms(at), staying=staying)

        assert len(claims) == len(predicted)
        assert min(claims) >= 0
        assert all(claim == 0 for claim, joules in zip(claims, predicted, strict=True) if joules == 0)
        assert (sum(claims) > 0) == (sum(predicted) > 0)
        if sum(predicted) > 0:
            for row, joules, energy in zip(rows, predicted, apportion(active, claims), strict=False):
                true_up.charged(row, joules, energy, ms(at))


@given(windows_drawn)
def test_a_window_still_adds_up_to_its_reading(drawn: Drawn) -> None:
    """Whatever came before it, exactly."""
    true_up, at = TrueUp(), 0
    flights = [Flight(row, row, ms(0)) for row in rows]
    for predicted, active, later, staying in drawn:
        at += later
        for flight, stays in zip(flights, staying, strict=True):
            flight.ended = None if stays else ms(at)
        works = [Work(decode=joules) for joules in predicted]
        activity = Activity(flights, works[:4], works[4:], covered_ns=ms(later))
        one = window(at - later, at, active / 1e6)

        result = split(one, activity, weights=WEIGHTS, idle_w=10.0, true_up=true_up)

        assert (0, one.energy) == (result.imbalance, result.requests + result.idle + result.unattributed)


def test_without_a_past_claims_are_in_proportion_to_the_prediction() -> None:
    """The first window of all, and strangers always."""
    claims = TrueUp().claims(["a", "b"], [1.0, 3.0, 4.0], 80, ms(100))

    assert claims == pytest.approx([10, 30, 40])


def test_requests_that_run_together_end_up_at_one_price() -> None:
    """One window read 6 J too high and the next 6 J too low; who came in between pays no other price."""
    steady = {"a": 5.0, "b": 5.0}
    paid_uj = play(TrueUp(), (steady, 16_000_000), ({**steady, "new": 5.0}, 9_000_000), *[(steady, 10_000_000)] * 2)
    plain = 9_000_000 / 3

    assert paid_uj["a"] == pytest.approx(paid_uj["b"], abs=2)
    assert paid_uj["new"] > 1.4 * plain
    assert paid_uj["new"] / 5 == pytest.approx(paid_uj["a"] / 20, rel=0.25)


@given(st.lists(st.integers(10**6, 10**8), min_size=2, max_size=30))
def test_alike_all_along_they_pay_alike_however_the_readings_jump(readings: list[int]) -> None:
    """Up to the rounding of one microjoule a window."""
    paid_uj = play(TrueUp(), *[({"a": 2.0, "b": 2.0, "c": 7.0}, uj) for uj in readings])

    assert abs(paid_uj["a"] - paid_uj["b"]) <= 2 * len(readings)
    assert paid_uj["c"] == pytest.approx(3.5 * paid_uj["a"], rel=1e-3)


def test_who_paid_too_much_waits_until_the_others_have_caught_up() -> None:
    """Its claim is nothing, not a refund: what was charged is never taken back."""
    true_up = TrueUp()
    play(true_up, ({"dear": 1.0}, 50_000_000), ({"cheap": 10.0}, 1_000_000))

    assert true_up.claims(["dear", "cheap"], [1.0, 1.0], 1_000_000, ms(300))[0] == 0


def test_if_all_paid_too_much_they_share_by_the_prediction() -> None:
    """A window without energy for anybody's debt is divided as if there were no past."""
    true_up = TrueUp()
    play(true_up, ({"a": 1.0, "b": 1.0}, 50_000_000))

    assert sum(true_up.claims(["a", "b"], [1.0, 1.0], 0, ms(200))) > 0


@given(st.permutations(rows), st.lists(st.lists(st.floats(0, 9), min_size=4, max_size=4), min_size=1, max_size=6))
def test_order_does_not_matter(order: list[str], windows: list[list[float]]) -> None:
    """The same requests in another order get the same claims."""
    straight, shuffled = TrueUp(), TrueUp()
    for number, predicted in enumerate(windows):
        by_row = dict(zip(rows, predicted, strict=True))
        joules = [by_row[row] for row in order]
        first = dict(zip(rows, straight.claims(rows, predicted, 10**7, ms(number)), strict=True))
        second = dict(zip(order, shuffled.claims(order, joules, 10**7, ms(number)), strict=True))
        assert second == pytest.approx(first, rel=1e-6, abs=1e-3)
        for row in rows:
            straight.charged(row, by_row[row], first[row], ms(number))
            shuffled.charged(row, by_row[row], second[row], ms(number))


def test_the_past_fades() -> None:
    """After ten times its memory a debt is no more than dust."""
    true_up = TrueUp()
    play(true_up, ({"a": 1.0}, 50_000_000), ({"b": 1.0}, 1_000_000))

    soon = true_up.claims(["a", "b"], [1.0, 1.0], 10_000_000, ms(300))
    late = true_up.claims(["a", "b"], [1.0, 1.0], 10_000_000, ms(10 * MEMORY_S * 1000))

    assert soon[0] == 0
    assert late[0] == pytest.approx(late[1], rel=0.001)


def test_what_a_reading_has_too_much_is_borne_by_those_that_run_on() -> None:
    """Within the band: later windows even it out for them, and for the one that ends there are none."""
    true_up = TrueUp()
    play(true_up, *[({"ends": 5.0, "stays": 5.0}, 10_000_000)] * 20)

    ends, stays = true_up.claims(["ends", "stays"], [5.0, 5.0], 10_500_000, ms(2100), staying=[False, True])

    assert ends < 5_250_000 < stays
    assert ends + stays == pytest.approx(10_500_000, rel=0.001)


def test_nobody_bears_more_than_the_band_before_all_must() -> None:
    """A reading of double what is usual is shared by all, whoever runs on."""
    true_up = TrueUp()
    play(true_up, *[({"ends": 5.0, "stays": 5.0}, 10_000_000)] * 20)

    parts = apportion(
        20_000_000,
        true_up.claims(["ends", "stays"], [5.0, 5.0], 20_000_000, ms(2100), staying=[False, True]),
    )

    assert parts[0] > 6_000_000
    assert parts[1] > parts[0]


def test_a_request_that_is_over_is_forgotten() -> None:
    """Its row leaves no trace."""
    true_up = TrueUp()
    play(true_up, ({"a": 1.0}, 50_000_000), ({"b": 1.0}, 1_000_000))
    true_up.forget("a")
    true_up.forget("b")
    true_up.forget("never-there")

    assert true_up._known == {}
    first, second = true_up.claims(["a", "b"], [1.0, 1.0], 10, ms(300))
    assert first == pytest.approx(second)


def test_strangers_are_evened_out_like_requests() -> None:
    """Half of every step was one's: it has a past too, and pays what the request beside it pays."""
    engine = Engine()
    engine.send("ours")
    engine.run(Computed("ours", 0, 100, 0), Computed("stranger", 0, 100, 0))
    engine.token("ours")
    for _ in range(19):
        engine.run(Computed("ours", 0, 0, 1), Computed("stranger", 100, 0, 1))
        engine.token("ours")
    engine.end("ours")

    outcome = paid(engine, logged=True)

    strangers_uj = outcome.group.meters["m"].accounts.unattributed
    assert strangers_uj == pytest.approx(outcome.uj("ours"), rel=0.005)


def test_a_newcomer_bears_no_other_requests_past() -> None:
    """The board draws 40 % more than in the half minute before; who joins with 2 % of the work pays about 2 %."""
    true_up = TrueUp()
    steady, dearer = {"old": 50.0}, {"runs": 50.0}
    play(true_up, *[(steady, 50_000_000)] * 60, every_ms=500)
    true_up.forget("old")
    joules = {**dearer, "joins": 1.0}
    for number in range(61, 72):
        active = 70_000_000 if number < 71 else 71_400_000
        now = dearer if number < 71 else joules
        claims = true_up.claims([*now], [*now.values()], active, ms(500 * number), staying=[True] * len(now))
        paid_uj = apportion(active, claims)
        for (row, weight), energy in zip(now.items(), paid_uj, strict=True):
            true_up.charged(row, weight, energy, ms(500 * number))

    assert sum(paid_uj) == 71_400_000
    assert 0.5 * 1_400_000 < paid_uj[1] < 2 * 1_400_000
