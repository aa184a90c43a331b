"""How far a figure may be off: the relative part between requests, the absolute part common to all of a meter."""

from dataclasses import replace
from itertools import product
from math import exp, hypot, log, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.attribution import Share
from proxy.accounting.bill import Bill
from proxy.accounting.uncertainty import (
    ABSOLUTE,
    FEWEST_WINDOWS,
    GUESSED_PROMPT,
    PLACEMENT,
    PRIOR,
    Deviation,
    Doubts,
    Spread,
    WindowNoise,
    absolute_uncertainty,
    deviations,
    doubts,
    prompt_doubt,
    standard_deviation,
    widest,
)
from proxy.accounting.units import Microjoules, Nanoseconds
from tests.accounting.flights import stream

ENERGY_UJ = 40_000_000
MIXED = [(8.0, 0.0, 1.0), (0.0, 3.0, 1.0), (2.0, 4.0, 1.0), (1.0, 1.0, 1.0)]
"""Joules of a prompt, two decodes and a stranger in one window."""
phases_drawn = st.lists(st.tuples(*[st.floats(0.001, 100)] * 3), min_size=1, max_size=20)


def shares(phases: list[tuple[float, float, float]], factors: tuple[float, float, float]) -> list[float]:
    """The split with the weight of every phase multiplied, in microjoules: what `deviations` approximates."""
    scaled = [sum(part * factor for part, factor in zip(parts, factors, strict=True)) for parts in phases]
    return [ENERGY_UJ * joules / sum(scaled) for joules in scaled]


def charged(*windows: tuple[int, Deviation | None], doubts: Doubts = PRIOR, cached: int | None = 0) -> Bill:
    """A bill that got these energies and deviations, one window each."""
    flight = stream("r", tokens=len(windows))
    flight.cached_tokens = cached
    bill = Bill(flight, "t", "m", "b", "chat", True, "weighted", started_at_unix_ns=0)
    for energy_uj, deviation in windows:
        uj, zero = Microjoules(energy_uj), Microjoules(0)
        bill.charge(Share(flight, uj, zero, uj, zero, uj, deviation), doubts)
    return bill


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_a_deviation_is_what_the_share_does_when_a_phases_weight_changes(phase: int) -> None:
    """Per unit of the logarithm: the true split with a phase a little dearer moves by as much."""
    little = 1e-4
    factors = tuple(exp(little) if n == phase else 1.0 for n in range(3))
    moved = [(b - a) / little for a, b in zip(shares(MIXED, (1, 1, 1)), shares(MIXED, factors), strict=True)]  # type: ignore[arg-type]

    found = [(d[0], -d[0] - d[1], d[1])[phase] for d in deviations(ENERGY_UJ, MIXED, len(MIXED))]

    assert found == pytest.approx(moved, rel=1e-3)


@given(phases_drawn)
def test_what_one_request_has_too_much_another_has_too_little(phases: list[tuple[float, float, float]]) -> None:
    """A wrong weight moves energy between requests and makes none: each column sums to nothing."""
    found = deviations(ENERGY_UJ, phases, len(phases))

    for column in (0, 1):
        assert sum(deviation[column] for deviation in found) == pytest.approx(0, abs=1e-6 * ENERGY_UJ)


def test_a_request_alone_has_no_doubt_about_weights() -> None:
    """It pays for all that was active, whatever the weights."""
    (deviation,) = deviations(ENERGY_UJ, [(5.0, 2.0, 1.0)], 1)

    assert deviation == pytest.approx((0, 0, 0, 0, 0), abs=1e-6)


def test_twins_have_the_same_doubt_and_scaling_all_weights_makes_none() -> None:
    twin, other = (1.0, 2.0, 3.0), (4.0, 1.0, 1.0)
    first, second, _ = deviations(ENERGY_UJ, [twin, twin, other], 3)
    scaled = deviations(ENERGY_UJ, [tuple(7 * part for part in parts) for parts in (twin, twin, other)], 3)  # type: ignore[misc]

    assert first == second
    assert scaled[0] == pytest.approx(first)


def test_unseen_traffic_makes_all_seen_requests_move_together() -> None:
    """Case rule: unseen traffic: the doubt about it is shared by all requests that ran beside it."""
    found = deviations(ENERGY_UJ, MIXED, 3)
    seen = shares(MIXED, (1, 1, 1))
    whole = sum(map(sum, MIXED))

    assert [d[2] for d in found] == pytest.approx([-share * sum(MIXED[3]) / whole for share in seen[:3]])
    assert len(found) == 3
    assert [d[2] for d in deviations(ENERGY_UJ, MIXED, 4)] == [0, 0, 0, 0]


def test_a_guessed_prompt_is_its_own_doubt_and_a_smaller_one_of_the_others() -> None:
    """Case rule: cached prefix tokens not told yet: marked uncertain."""
    told = deviations(ENERGY_UJ, MIXED, 4, [0, 0, 0, 0])
    guessed = deviations(ENERGY_UJ, MIXED, 4, [GUESSED_PROMPT, 0, 0, 0])

    assert [d[3:] for d in told] == [(0.0, 0.0)] * 4
    whole = sum(map(sum, MIXED))
    assert guessed[0][3] == pytest.approx(GUESSED_PROMPT * 8 / whole * (1 - 9 / whole) * ENERGY_UJ)
    assert guessed[0][4] == 0
    assert guessed[1][3] == 0
    assert 0 < guessed[1][4] < guessed[0][3]


def test_a_window_in_which_nothing_was_predicted_has_no_deviation() -> None:
    assert deviations(ENERGY_UJ, [(0.0, 0.0, 0.0)] * 2, 2) == [(0.0,) * 5] * 2
    assert deviations(ENERGY_UJ, [], 0) == []


def test_prompt_and_hits_are_doubted_until_the_engine_tells_them() -> None:
    flight = stream("r", prompt=100, cached=20)
    assert prompt_doubt(flight) == 0

    flight.cached_tokens = None
    assert prompt_doubt(flight) == GUESSED_PROMPT


def test_doubts_cancel_over_windows_where_they_have_other_signs() -> None:
    """Dear in its prefill, cheap in its decode: a request that has both is known better than either."""
    sure = Doubts(weights=0.2, window=0, unseen=0.3, edges=0)
    once = charged((1_000_000, (300_000, -100_000, -50_000, 0, 0)), doubts=sure)
    back = charged(
        (1_000_000, (300_000, -100_000, -50_000, 0, 0)), (1_000_000, (-300_000, 100_000, -50_000, 0, 0)), doubts=sure
    )

    tilts = 0.2 * sqrt(0.3**2 + 0.1**2 + 0.2**2)
    assert once.relative_uncertainty() == pytest.approx(hypot(tilts, 0.3 * 0.05))
    assert back.relative_uncertainty() == pytest.approx(0.3 * 0.05)


def test_sensing_noise_falls_with_the_square_root_of_the_windows() -> None:
    """Part-time sensing is independent from window to window."""
    noisy = Doubts(weights=0, window=0.1, unseen=0, edges=0)
    of = {n: charged(*[(1_000, None)] * n, doubts=noisy).relative_uncertainty() for n in (1, 4, 100)}

    assert of == pytest.approx({1: 0.1, 4: 0.05, 100: 0.01})


def test_each_end_of_a_request_adds_a_part_of_its_window() -> None:
    """(rho * P*T*share)^2 / 12 for the first and for the last window."""
    edgy = Doubts(weights=0, window=0, unseen=0, edges=0.6)

    bill = charged((200, None), (5_000, None), (400, None), doubts=edgy)

    assert bill.relative_uncertainty() == pytest.approx(0.6 * sqrt((200**2 + 400**2) / 12) / 5_600)


@pytest.mark.parametrize("grade", ["A", "B", "C", "D"])
def test_a_request_shorter_than_ten_updates_of_the_counter_says_so(grade: str) -> None:
    """One window: an eighth and more; ten: some percent; a minute: under two percent."""
    of = {n: charged(*[(1_000, None)] * n, doubts=doubts(grade)).relative_uncertainty() or 0 for n in (1, 3, 10, 600)}

    assert of[1] > 0.12
    assert of[3] > 0.06
    assert of[10] > 0.03
    assert of[600] < 0.02
    assert sorted(of.values(), reverse=True) == list(of.values())


def test_better_facts_and_fitted_weights_leave_less_doubt() -> None:
    grades = [doubts(grade).window for grade in "ABCD"]

    assert grades == sorted(grades)
    assert len(set(grades)) == 4
    assert doubts("unmeasured") == doubts("D")
    weights = [doubts("B", trust=trust).weights for trust in (0, 0.5, 1)]
    assert weights == sorted(weights, reverse=True)
    assert doubts("A", sensor_noise=0.03).window == pytest.approx(0.03)
    assert doubts("B", sensor_noise=0.03).window == pytest.approx(hypot(0.03, PLACEMENT["B"]))


def test_what_the_engine_tells_at_the_end_says_how_wrong_a_guess_was() -> None:
    """80 of 100 prompt tokens were taken to be computed, of which 0.4 J hang; 20 were: that is 0.3 J too much."""
    sure = Doubts(weights=0, window=0, unseen=0, edges=0)
    guess = GUESSED_PROMPT * 400_000
    flight = stream("r", prompt=100, cached=20)
    flight.cached_tokens, flight.cached_part = None, 0.2
    bill = Bill(flight, "t", "m", "b", "chat", True, "weighted", started_at_unix_ns=0)
    uj, zero = Microjoules(1_000_000), Microjoules(0)
    bill.charge(Share(flight, uj, uj, zero, zero, uj, (0, 0, 0, guess, 0)), sure)
    assert bill.relative_uncertainty() == pytest.approx(GUESSED_PROMPT * 0.4)

    flight.cached_tokens = 80
    assert bill.guess_error_uj == pytest.approx(300_000)
    assert bill.relative_uncertainty() == pytest.approx(0.3)

    flight.cached_tokens = 20
    assert bill.relative_uncertainty() == pytest.approx(0, abs=1e-9)


def test_nothing_charged_has_no_uncertainty() -> None:
    """A refused request costs 0, and of nothing there is no part."""
    assert charged().relative_uncertainty() is None


def test_a_provisional_figure_is_less_sure_by_what_was_only_predicted() -> None:
    bill = charged(*[(1_000, None)] * 50)
    settled = bill.relative_uncertainty() or 0

    assert (bill.relative_uncertainty(60_000) or 0) > settled
    assert (bill.relative_uncertainty(100_000) or 0) > (bill.relative_uncertainty(60_000) or 0)
    assert bill.relative_uncertainty(50_000) == settled
    assert (charged().relative_uncertainty(1_000) or 0) >= 0.3


def test_the_row_keeps_the_doubts_as_they_add_up() -> None:
    """Its relative figure is what its parts make, so that sums of rows are computed by the same rule."""
    bill = charged((2_000_000, (100_000, -40_000, -10_000, 5_000, 2_000)), (3_000_000, None), cached=None)

    row = bill.row("settled", grade="B", estimated=False, now=Nanoseconds(10**9), absolute_uncertainty=0.05)

    parts = (row.prefill_tilt_j, row.shared_tilt_j, row.unseen_tilt_j, row.guess_tilt_j, row.noise_j2)
    assert None not in parts
    assert standard_deviation(*parts) / 5 == pytest.approx(row.relative_uncertainty)  # type: ignore[arg-type]
    assert row.guess_tilt_j == pytest.approx(0.005)
    assert row.absolute_uncertainty == 0.05


def test_a_snapshot_does_not_move_when_the_bill_goes_on() -> None:
    bill = charged((1_000, None))
    still = bill.snapshot()
    before = replace(still.spread)

    bill.spread.add(500, None, PRIOR, 0)

    assert still.spread == before != bill.spread


@given(st.lists(st.tuples(st.integers(0, 10**9), st.booleans(), *[st.floats(-1e9, 1e9)] * 3), max_size=20))
def test_any_sequence_of_shares_has_a_finite_doubt(windows: list[tuple[int, bool, float, float, float]]) -> None:
    bill = charged(*((uj, (a, b, c, abs(a), abs(b)) if known else None) for uj, known, a, b, c in windows))

    found = bill.relative_uncertainty()

    assert (found is None) == (bill.energy_uj == 0)
    assert found is None or 0 <= found < float("inf")


def test_window_noise_is_learnt_from_what_the_prediction_leaves() -> None:
    """Readings that are ten percent off to either side are a noise of ten percent; too few say nothing."""
    noise = WindowNoise()
    for number in range(400):
        assert (noise.relative is None) == (number < FEWEST_WINDOWS)
        noise.learn(round(2_000_000 * (1.1 if number % 2 else 1 / 1.1)), 4.0, 0.5)

    assert noise.relative == pytest.approx(log(1.1), rel=0.01)
    for measured, predicted, kappa in product((0, 5), (0.0, 1.0), (None, 0.0)):
        noise.learn(measured, predicted, kappa)
    assert noise.relative == pytest.approx(log(1.1), rel=0.01)


def test_the_absolute_part_is_known_by_kind_of_meter() -> None:
    """About 5 % on data-centre boards, half for a model without a sensor, nothing for a recording of who knows what."""
    assert absolute_uncertainty("nvml") == 0.05
    assert absolute_uncertainty("nvml", integrated=True) == ABSOLUTE["nvml integral"] > 0.05
    assert absolute_uncertainty("modelled") == 0.5
    assert absolute_uncertainty("rapl") is not None
    assert absolute_uncertainty("recorded") is None


def test_of_several_meters_the_worst_counts_and_an_unknown_one_makes_all_unknown() -> None:
    assert widest([0.05, 0.5, 0.06]) == 0.5
    assert widest([0.05, None]) is None
    assert widest([]) is None


def test_a_new_spread_is_empty() -> None:
    assert (Spread().noise_uj2, Spread().guess_error(None), Spread().guess_error(5)) == (0, 0, 0)
