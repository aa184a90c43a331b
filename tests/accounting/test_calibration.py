"""
A designed load with a known truth: what is told is right, what is not told is left alone.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.accounting.activity import Work
from proxy.accounting.calibration import Calibrated, Stretch, calibrated
from proxy.accounting.terms import TERMS, terms_of
from proxy.accounting.weights import LLAMA_8B, Weights, roofline_prior

PRIOR = roofline_prior(LLAMA_8B)


def work(steps: int, *, prompts: int = 0, length: int = 0, batch: int = 0, context: int = 0) -> Work:
    """prompts and batch: of each step."""
    return Work(
        steps=steps,
        prefill=steps * prompts * length,
        prefill_context=steps * prompts * length * length / 2,
        decode=steps * batch,
        decode_context=steps * batch * context,
    )


LOAD = {
    "prefill, short": work(300, prompts=4, length=128),
    "prefill, long": work(60, prompts=1, length=1024),
    "decode x 1": work(400, batch=1, context=230),
    "decode x 8": work(380, batch=8, context=230),
    "decode x 32": work(320, batch=32, context=200),
    "decode, long context": work(330, batch=8, context=6200),
    "mixed": work(100, prompts=1, length=1024, batch=7, context=200),
}
TOLD = ("step", "prefill", "decode", "context")


def truth(**factors: float) -> Weights:
    return replace(PRIOR, **{name: getattr(PRIOR, name) * factor for name, factor in factors.items()})


def ran(
    true: Weights, *, noise: float = 0.03, repeats: int = 4, seed: int = 1, load: dict[str, Work] = LOAD
) -> list[Stretch]:
    """The load as a meter with some noise would have seen it."""
    chance = random.Random(seed)
    return [
        Stretch(
            name,
            repeat,
            one,
            sum(terms_of(true, one)) * chance.gauss(1, noise),
            one.steps * true.step_s + (one.prefill + one.decode) * true.token_s,
        )
        for repeat in range(repeats)
        for name, one in load.items()
    ]


def off(found: Calibrated, true: Weights) -> dict[str, float]:
    """Fitted over true, less one, of what was told."""
    return {name: getattr(found.weights, name) / getattr(true, name) - 1 for name in found.told}


@settings(max_examples=30)
@given(
    st.lists(st.floats(0.6, 1.7), min_size=5, max_size=5),
    st.floats(0.01, 100.0),
    st.integers(0, 10**6),
)
def test_any_ratios_within_the_region_are_found(factors: list[float], scale: float, seed: int) -> None:
    """With a meter that scatters by 3 % the large weights are right within 6 %, the small ones within 25 %."""
    names = ("step", "prefill", "decode", "context", "attention")
    true = truth(**{name: scale * factor for name, factor in zip(names, factors, strict=True)})

    found = calibrated(ran(true, seed=seed), PRIOR)
    wrong = off(found, true)

    assert abs(wrong["step"]) < 0.06
    assert abs(wrong["prefill"]) < 0.06
    assert abs(wrong["decode"]) < 0.25
    assert abs(wrong.get("context", 0)) < 0.35
    assert 0.01 < found.noise < 0.05
    assert found.held_out < 0.05


def test_ratios_are_told_with_honest_errors() -> None:
    """Within three standard deviations each, and what the load does not tell is the prior's times the scale."""
    true = truth(step=0.6, prefill=1.3, decode=2.0, context=0.5)
    found = calibrated(ran(true), PRIOR)
    by_name = {one.name: one for one in found.findings}

    assert found.told == TOLD
    assert found.helps
    for name in TOLD:
        one = by_name[name]
        assert one.error is not None
        right = getattr(true, name) / getattr(PRIOR, name) / found.scale
        assert abs(one.ratio - right) < 3 * one.error + 0.03
        assert one.fitted == getattr(found.weights, name)
        assert not one.at_limit
    assert by_name["attention"].error is None
    assert by_name["attention"].ratio == 1.0
    assert found.weights.attention == pytest.approx(PRIOR.attention * found.scale)
    assert found.r2 > 0.99
    assert len(found.predicted_j) == 28


def test_without_noise_the_truth_is_found() -> None:
    """Attention too, when prompts are long enough to show it."""
    load = {**LOAD, "prefill, very long": work(20, prompts=1, length=16384)}
    true = truth(step=1.5, prefill=0.7, decode=1.4, context=2.0, attention=1.6)
    found = calibrated(ran(true, noise=0.0, load=load), PRIOR)

    assert set(found.told) == set(TERMS) - {"experts"}
    assert all(abs(wrong) < 0.05 for wrong in off(found, true).values())


def test_the_times_of_a_step_are_learnt_as_well() -> None:
    """Seconds of a step and of a position, exactly where they are told apart."""
    found = calibrated(ran(replace(truth(decode=2.0), step_s=0.02, token_s=1e-4)), PRIOR)

    assert (found.weights.step_s, found.weights.token_s) == pytest.approx((0.02, 1e-4))


def test_times_that_cannot_be_told_apart_keep_the_prior_s_ratio() -> None:
    """Of one batch size only."""
    found = calibrated(ran(replace(PRIOR, step_s=0.02), load={"decode x 8": LOAD["decode x 8"]}), PRIOR)

    assert found.weights.step_s / PRIOR.step_s == pytest.approx(found.weights.token_s / PRIOR.token_s)


def test_a_load_of_one_kind_tells_nothing() -> None:
    """An ill-conditioned load: only the scale is known, so every weight stays at the prior and nothing helps."""
    found = calibrated(ran(truth(decode=2.0), load={"decode x 8": LOAD["decode x 8"]}, repeats=8), PRIOR)

    assert found.told == ()
    assert not found.helps
    assert {one.ratio for one in found.findings} == {1.0}


def test_two_batch_sizes_tell_the_step_from_the_decode() -> None:
    """And nothing that did not run."""
    load = {name: LOAD[name] for name in ("decode x 1", "decode x 32")}
    found = calibrated(ran(truth(decode=2.0), load=load), PRIOR)

    assert {"step", "decode"} <= set(found.told)
    assert "prefill" not in {one.name for one in found.findings}
    assert found.weights.prefill == pytest.approx(PRIOR.prefill * found.scale)


def test_a_prior_that_is_right_is_not_replaced() -> None:
    """Nothing can be better than the truth."""
    worse = [calibrated(ran(truth(), seed=seed), PRIOR) for seed in range(20)]

    assert sum(found.helps for found in worse) < 10


def test_a_prior_that_is_wrong_by_hundreds_gives_way_to_the_load() -> None:
    """A tiny model's tokens cost mostly overhead: the trust region would keep what is plainly wrong."""
    true = truth(decode=150, prefill=60, context=3)
    found = calibrated(ran(true, noise=0.05), PRIOR)

    assert found.beyond
    assert found.helps
    assert found.held_out < 0.08 < 0.3 < found.held_out_prior
    assert all(abs(off(found, true)[name]) < 0.1 for name in ("step", "prefill", "decode"))
    assert "attention" not in found.told


def test_weights_are_above_zero_whatever_the_meter_says() -> None:
    """A term that costs nothing is kept small, not zero: the file would refuse it."""
    found = calibrated(ran(truth(context=0.0, decode=0.0)), PRIOR)

    assert min(getattr(found.weights, name) for name in TOLD) > 0


def test_one_weight_that_is_far_off_ends_at_the_edge_and_says_so() -> None:
    """Where the whole error stays small the prior keeps its place."""
    found = calibrated(ran(truth(context=3.5), noise=0.01), PRIOR)

    assert not found.beyond
    assert [one.name for one in found.findings if one.at_limit] == ["context"]


@pytest.mark.parametrize("load", [[], ran(truth(), repeats=1), [Stretch("idle", r, Work(), 1.0, 1.0) for r in (0, 1)]])
def test_too_little_is_refused(load: list[Stretch]) -> None:
    """Nothing, a single repeat, or stretches without work."""
    with pytest.raises(ValueError, match="two repeats"):
        calibrated(load, PRIOR)
