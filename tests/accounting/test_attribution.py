"""
The law and the rule: who pays for a window.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.attribution import POLICIES, Split, apportion
from proxy.accounting.flight import Flight
from proxy.accounting.samples import Window
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.accounting.weights import Weights
from tests.accounting.flights import WEIGHTS, divided, ms, silent, stream, window

flights_drawn = st.lists(
    st.builds(
        stream,
        row=st.uuids().map(str),
        sent=st.floats(0, 300),
        first=st.floats(301, 600),
        step=st.floats(0.5, 60),
        tokens=st.integers(0, 40),
        prompt=st.integers(0, 30_000),
        cached=st.integers(0, 5_000),
        sequences=st.integers(1, 4),
        over=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda flight: flight.row,
)
windows_drawn = st.builds(
    lambda start, length, energy: Window("meter", ms(start), ms(start + length), Microjoules(energy)),
    st.floats(0, 900),
    st.floats(0.01, 500),
    st.integers(0, 10**12),
)


def energies(result: Split) -> dict[str, int]:
    return {share.flight.row: share.energy for share in result.shares}


@given(st.integers(0, 10**15), st.lists(st.floats(0, 1e12), min_size=1, max_size=50))
def test_parts_add_up_to_the_whole_exactly(total: int, weights: list[float]) -> None:
    """
    No microjoule is lost or invented, whatever the weights.
    """
    if not sum(weights) > 0:
        with pytest.raises(ValueError, match="positive weight"):
            apportion(Microjoules(total), weights)
        return
    parts = apportion(Microjoules(total), weights)

    assert total == sum(parts)
    assert min(parts) >= 0


@given(windows_drawn, flights_drawn, st.sampled_from(POLICIES), st.none() | st.floats(0, 800))
def test_accounts_add_up_to_the_window(drawn: Window, flights: list[Flight], policy: str, idle_w: float | None) -> None:
    """
    requests + idle + unattributed + unmeasured == energy of the window, under every policy, to the microjoule.
    """
    result = divided(drawn, flights, weights=WEIGHTS, policy=policy, idle_w=idle_w)  # type: ignore[arg-type]

    assert result.imbalance == 0
    assert min([result.idle, result.unattributed, result.unmeasured, *energies(result).values()]) >= 0
    for share in result.shares:
        assert share.energy == share.prefill + share.decode + share.shared
        assert min(share.prefill, share.decode, share.shared, share.token_share) >= 0


@given(windows_drawn, flights_drawn, st.randoms(use_true_random=False))
def test_order_does_not_matter(drawn: Window, flights: list[Flight], random) -> None:  # type: ignore[no-untyped-def]
    """
    The same flights in another order get the same energies.
    """
    shuffled = flights[:]
    random.shuffle(shuffled)

    assert divided(drawn, flights, weights=WEIGHTS) == divided(drawn, shuffled, weights=WEIGHTS)


@given(windows_drawn, flights_drawn)
def test_twins_pay_alike(drawn: Window, flights: list[Flight]) -> None:
    """
    Two requests with the same trace get the same energy, up to one microjoule of rounding.
    """
    pair = [stream("twin-a", tokens=30, first=310), stream("twin-b", tokens=30, first=310)]
    paid = energies(divided(drawn, flights + pair, weights=WEIGHTS))

    assert abs(paid.get("twin-a", 0) - paid.get("twin-b", 0)) <= 1


@given(windows_drawn, flights_drawn)
def test_who_was_not_there_pays_nothing(drawn: Window, flights: list[Flight]) -> None:
    """
    A flight outside the window, and one refused without a token, changes nobody's energy.
    """
    late = stream("late", sent=10_000, first=10_050)
    refused = Flight("refused", "refused", ms(0))
    refused.end(ms(900), "error")

    assert energies(divided(drawn, flights, weights=WEIGHTS)) == energies(
        divided(drawn, [*flights, late, refused], weights=WEIGHTS)
    )


@given(windows_drawn, flights_drawn, st.floats(0.001, 1000))
def test_only_ratios_of_weights_matter(drawn: Window, flights: list[Flight], factor: float) -> None:
    """
    Weights times a constant give the same split: the scale is the meter's.
    """
    scaled = Weights(
        *(getattr(WEIGHTS, name) * factor for name in ("prefill", "attention", "decode", "context", "step")),
        step_s=WEIGHTS.step_s,
        token_s=WEIGHTS.token_s,
    )
    plain = energies(divided(drawn, flights, weights=WEIGHTS))

    for row, energy in energies(divided(drawn, flights, weights=scaled)).items():
        assert abs(energy - plain.get(row, 0)) <= 2 + drawn.energy * 1e-12


@given(flights_drawn, st.integers(0, 10**9))
def test_sensor_scale_carries_over(flights: list[Flight], energy: int) -> None:
    """
    A meter that reads double doubles every energy.
    """
    once = Window("meter", ms(320), ms(420), Microjoules(energy))
    single = energies(divided(once, flights, weights=WEIGHTS))
    double = energies(divided(replace(once, energy=Microjoules(2 * energy)), flights, weights=WEIGHTS))

    for row, paid in double.items():
        assert abs(paid - 2 * single.get(row, 0)) <= 3


@given(st.integers(0, 20_000), st.integers(0, 20_000))
def test_more_work_never_costs_less(prompt: int, more: int) -> None:
    """
    For the same window, a longer prompt beside the same neighbour never gets less energy.
    """

    def paid(length: int) -> int:
        pair = [stream("mine", prompt=length), stream("other")]
        return energies(divided(window(0, 100), pair, weights=WEIGHTS)).get("mine", 0)

    assert paid(prompt) <= paid(prompt + more)


@given(flights_drawn, st.integers(1, 199))
def test_splitting_a_window_changes_no_total_by_much(flights: list[Flight], cut: int) -> None:
    """
    Cutting an interval of constant power in two keeps the sum over all flights.
    """
    whole = divided(window(320, 520, 20.0), flights, weights=WEIGHTS)
    left = divided(window(320, 320 + cut, cut / 10), flights, weights=WEIGHTS)
    right = divided(window(320 + cut, 520, (200 - cut) / 10), flights, weights=WEIGHTS)

    assert whole.requests + whole.idle + whole.unattributed == 20_000_000
    assert sum(part.requests + part.idle + part.unattributed for part in (left, right)) == 20_000_000


def test_alone_on_the_gpu_pays_all_active_energy() -> None:
    """
    A single request gets the whole window when it fills it.
    """
    result = divided(window(60, 160, 7.0), [stream("only")], weights=WEIGHTS)

    assert {"only": 7_000_000} == energies(result)
    assert 0 == result.idle


def test_idle_takes_its_power_times_the_quiet_time() -> None:
    """
    Half a window without a request at 40 W is 2 J of idle; the rest is the request's.
    """
    late = stream("late", sent=50, first=60)

    result = divided(window(0, 100, 10.0), [late], weights=WEIGHTS, idle_w=40.0)

    assert 2_000_000 == result.idle
    assert {"late": 8_000_000} == energies(result)


def test_a_window_nobody_used_is_idle() -> None:
    """
    Without a request all energy is idle, not somebody's.
    """
    assert 10_000_000 == divided(window(0, 100), [], weights=WEIGHTS).idle


def test_a_bridged_window_is_nobodys() -> None:
    """
    What was estimated across a reset goes to unmeasured as a whole.
    """
    result = divided(window(0, 100, bridged=True), [stream("there")], weights=WEIGHTS)

    assert (10_000_000, ()) == (result.unmeasured, result.shares)


def test_cached_prompt_tokens_cost_no_prefill() -> None:
    """
    Of two equal prompts the one served from the cache pays clearly less.
    """
    pair = [stream("fresh", prompt=4000), stream("hit", prompt=4000, cached=3900)]
    result = divided(window(0, 50), pair, weights=WEIGHTS)
    prefill = {share.flight.row: share.prefill for share in result.shares}

    assert prefill["hit"] * 20 < prefill["fresh"]


def test_n_sequences_share_the_step_as_n() -> None:
    """
    A request for two answers holds two places in each step: it pays twice the decode of a single one.
    """
    pair = [stream("one", prompt=10), stream("two", prompt=10, sequences=2)]
    result = divided(window(60, 160), pair, weights=WEIGHTS)
    paid = {share.flight.row: share.decode + share.shared for share in result.shares}

    assert paid["two"] == pytest.approx(2 * paid["one"], rel=0.01)


def test_a_silent_answer_pays_like_its_streamed_twin() -> None:
    """
    Without token times the same tokens over the same time cost about the same.
    """
    streamed = stream("streamed", first=10, step=10, tokens=20)
    whole = silent("silent", ended=200)
    paid = energies(divided(window(50, 150), [streamed, whole], weights=WEIGHTS))

    assert paid["silent"] == pytest.approx(paid["streamed"], rel=0.1)


def test_output_tokens_policy_does_not_lose_a_prefill() -> None:
    """
    A policy that is blind to prompts still conserves when nothing but a prefill runs.
    """
    result = divided(window(0, 50), [stream("long", prompt=9000)], weights=WEIGHTS, policy="output-tokens")

    assert {"long": 10_000_000} == energies(result) or 10_000_000 == result.requests


def test_worked_example_of_the_readme() -> None:
    """
    One step shared by two: own work plus half of the fixed part each.

    Weights 2 J per decode position and 10 J per step. Request A decodes one position per step, B two (n=2):
    W_A = 2 + 10/3, W_B = 4 + 20/3, so A pays a third of 48 J.
    """
    weights = Weights(0.0, 0.0, 2.0, 0.0, 10.0, step_s=0.01, token_s=0.0)
    pair = [stream("A", prompt=1), stream("B", prompt=1, sequences=2)]

    assert {"A": 16_000_000, "B": 32_000_000} == energies(divided(window(60, 70, 48.0), pair, weights=weights))


def test_nanosecond_windows_do_not_divide_by_zero() -> None:
    """
    The shortest window there is splits like any other.
    """
    tiny = Window("meter", Nanoseconds(ms(60)), Nanoseconds(ms(60) + 1), Microjoules(5))

    assert 0 == divided(tiny, [stream("only")], weights=WEIGHTS).imbalance


@pytest.mark.parametrize(("prompts", "prompt"), [(2, 600), (1, 300)], ids=["two prompts", "two answers to one"])
def test_a_request_of_two_sequences_costs_what_two_requests_cost(prompts: int, prompt: int) -> None:
    """
    Several prompts in one request, or several answers to one prompt, are charged as requests of their own would be.
    """
    beside = stream("other", prompt=500, tokens=30)
    together = [stream("both", prompt=prompt, sequences=2, prompts=prompts), beside]
    apart = [stream("one", prompt=300), stream("two", prompt=300), beside]

    whole = energies(divided(window(0, 300), together, weights=WEIGHTS))
    parts = energies(divided(window(0, 300), apart, weights=WEIGHTS))

    assert whole["both"] == pytest.approx(parts["one"] + parts["two"], rel=1e-3)
