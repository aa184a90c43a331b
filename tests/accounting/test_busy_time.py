"""A prior is made good by the time that work really takes: what is longer than its roofline says costs energy too."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest

from proxy.accounting.activity import Work
from proxy.accounting.busy_time import BusyTime, MadeGood
from proxy.accounting.fitting import Fit
from proxy.accounting.model_shape import ModelShape
from proxy.accounting.terms import TERMS, amounts_of, cost_of
from proxy.accounting.units import Nanoseconds
from proxy.accounting.weights import Roofline, Weights, roofline_prior
from tests.accounting.flights import WEIGHTS, ms

TINY = roofline_prior(ModelShape(0.5e6, weight_bytes=1e6, kv_bytes_per_token=256, attention_flops=512))
"""Too small for its bytes and FLOPs to say anything of what its steps cost."""
HOST: Mapping[str, float] = {"step": 3e-3, "prefill": 60e-6, "attention": 1e-9, "decode": 700e-6, "context": 1e-8}
"""Seconds that such a model takes where a slow host runs it."""


def roofline_of(weights: Weights) -> Roofline:
    assert weights.roofline is not None
    return weights.roofline


def times_of(weights: Weights, **longer: float) -> dict[str, float]:
    """The roofline's times, some of them so many times as long."""
    return {name: getattr(roofline_of(weights), name) * longer.get(name, 1.0) for name in TERMS}


def mixed(random: Random) -> Work:
    """One step: a few or many decode, and in a third of them a chunk of a prompt is read."""
    prompt, running = random.choice([0, 0, random.randint(50, 2000)]), random.randint(1, 30)
    return Work(
        prefill=prompt,
        prefill_context=prompt * random.uniform(100, 6000),
        decode=running,
        decode_context=running * random.uniform(100, 3000),
        steps=1,
    )


def seconds_of(work: Work, times: Mapping[str, float]) -> float:
    return sum(times.get(name, 0.0) * amount for name, amount in zip(TERMS, amounts_of(work), strict=True))


def observed(
    times: Mapping[str, float], prior: Weights = WEIGHTS, *, steps: int = 3000, noise: float = 0.05
) -> BusyTime:
    """After so many steps that took these times, give or take."""
    random, busy = Random(3), BusyTime(prior)
    for _ in range(steps):
        work = mixed(random)
        lasted = seconds_of(work, times) * max(0.1, random.gauss(1, noise))
        busy.observe(work, Nanoseconds(round(lasted * 1e9)))
    return busy


def found(busy: BusyTime, prior: Weights) -> dict[str, float]:
    return dict(zip(TERMS, busy.seconds_of(cost_of(roofline_of(prior))), strict=True))


def relative(made: MadeGood, prior: Weights, to: str = "step") -> dict[str, float]:
    """How far the ratios of the weights to one of them have moved."""
    moved = {name: getattr(made.weights, name) / getattr(prior, name) for name in TERMS if getattr(prior, name)}
    return {name: by / moved[to] for name, by in moved.items()}


@pytest.mark.parametrize("term", ["step", "prefill", "attention", "decode", "context"])
def test_the_time_of_each_kind_of_work_is_found(term: str) -> None:
    """Three times the roofline's, out of some thousand steps in which all kinds are mixed."""
    times = times_of(WEIGHTS, **{term: 3.0})

    assert found(observed(times), WEIGHTS)[term] == pytest.approx(times[term], rel=0.1)


def test_work_that_takes_the_rooflines_time_costs_what_it_says() -> None:
    """Chance in the times of steps makes nothing dearer by more than two percent, and leaves no doubt."""
    made = observed(times_of(WEIGHTS), noise=0.1).made_good()

    assert relative(made, WEIGHTS) == pytest.approx(dict.fromkeys(relative(made, WEIGHTS), 1.0), rel=0.02)
    assert all(doubt < 0.02 for doubt in made.doubts)


def test_longer_time_costs_between_static_power_and_the_limit() -> None:
    """The middle of the two, and the standard deviation of what may be anywhere between."""
    roofline = roofline_of(WEIGHTS)
    made = observed(times_of(WEIGHTS, decode=4.0), noise=0.0).made_good()

    more_s = 3 * roofline.decode
    whole_j = WEIGHTS.decode + more_s * (roofline.static_w + roofline.limit_w) / 2
    assert relative(made, WEIGHTS)["decode"] == pytest.approx(whole_j / WEIGHTS.decode, rel=0.03)
    assert made.doubts[TERMS.index("decode")] == pytest.approx(
        more_s * (roofline.limit_w - roofline.static_w) / 12**0.5 / whole_j, rel=0.05
    )
    assert sum(made.doubts) == pytest.approx(made.doubts[TERMS.index("decode")], abs=0.02)


def test_work_behind_other_work_is_no_cheaper() -> None:
    """Attention and contexts that take no time of their own still cost their FLOPs and bytes."""
    made = observed(times_of(WEIGHTS, attention=0.0, context=0.0)).made_good()

    assert min(relative(made, WEIGHTS).values()) > 0.99


def test_the_level_stays_the_priors() -> None:
    """For all that ran as many joules are predicted as before: what was measured over predicted goes on to hold."""
    busy = observed(times_of(WEIGHTS, step=5.0, prefill=2.0))
    made = busy.made_good().weights

    before, after = (
        sum(getattr(weights, name) * units for name, units in zip(TERMS, busy._units, strict=True))
        for weights in (WEIGHTS, made)
    )
    assert after == pytest.approx(before)
    assert made.step > WEIGHTS.step
    assert made.attention < WEIGHTS.attention


def test_made_good_weights_are_not_made_good_again() -> None:
    """They know the times that were found, so that they may be the next one's prior."""
    times = times_of(WEIGHTS, step=3.0, decode=2.0)
    made = observed(times).made_good().weights

    again = observed(times, made).made_good().weights

    for name in TERMS:
        assert getattr(again, name) == pytest.approx(getattr(made, name), rel=0.03)


def test_a_batch_that_never_changes_shares_what_is_missing() -> None:
    """Fixed part and decode cannot be told apart there; neither is made to answer for all."""
    busy = BusyTime(WEIGHTS)
    for _ in range(1000):
        busy.observe(Work(decode=8, decode_context=8000, steps=1), ms(28))
    times = found(busy, WEIGHTS)

    assert times["step"] + 8 * times["decode"] + 8000 * times["context"] == pytest.approx(28e-3, rel=0.05)
    assert 0.1 < times["step"] / 28e-3 < 0.8
    assert times["prefill"] == roofline_of(WEIGHTS).prefill


@pytest.mark.parametrize(
    ("prior", "work", "lasted"),
    [
        (replace(WEIGHTS, roofline=None, measured=True), Work(decode=1, steps=1), ms(50)),
        (WEIGHTS, Work(), ms(50)),
        (WEIGHTS, Work(decode=1, steps=1), Nanoseconds(0)),
    ],
    ids=["measured weights", "no work", "no time"],
)
def test_where_nothing_tells_the_prior_stays(prior: Weights, work: Work, lasted: Nanoseconds) -> None:
    """The same object, with no doubt of it."""
    busy = BusyTime(prior)
    for _ in range(100):
        busy.observe(work, lasted)

    assert busy.made_good() == (prior, [0.0] * len(TERMS))
    assert busy.made_good().weights is prior


def test_what_a_slow_host_takes_is_forgotten_when_it_is_gone() -> None:
    """An engine that was started anew with graphs takes the roofline's time; after some minutes only that counts."""
    random, busy, now = Random(3), BusyTime(WEIGHTS), times_of(WEIGHTS)
    for times, lasting_s in ((times_of(WEIGHTS, step=5.0), 60.0), (now, 1500.0)):
        while lasting_s > 0:
            work = mixed(random)
            lasted = seconds_of(work, times)
            busy.observe(work, Nanoseconds(round(lasted * 1e9)))
            lasting_s -= lasted

    assert relative(busy.made_good(), WEIGHTS)["step"] == 1.0
    assert max(relative(busy.made_good(), WEIGHTS, "prefill").values()) < 1.05


def learnt(works: Sequence[Work], *, told: bool) -> Fit:
    """A fit whose meter draws constant power, ten steps to a reading. told: how long each step took, too."""
    fit = Fit(TINY)
    for at in range(0, len(works), 10):
        steps, whole = works[at : at + 10], Work()
        for step in steps:
            whole.add(step)
            if told:
                fit.ran(step, Nanoseconds(round(seconds_of(step, HOST) * 1e9)))
        lasted = sum(seconds_of(step, HOST) for step in steps)
        fit.observe(whole, round(20 * lasted * 1e6), Nanoseconds(round(lasted * 1e9)))
    return fit


def test_a_model_too_small_for_its_roofline_is_priced_by_its_time() -> None:
    """
    Its decode positions cost hundreds of times what their FLOPs do against a step: the trust region lets no meter say
    so, but half a minute of times does.
    """
    random = Random(5)
    works = [mixed(random) for _ in range(2000)]
    wanted = HOST["decode"] / HOST["step"]

    with_times, without = (learnt(works, told=told).weights for told in (True, False))

    assert without.decode / without.step < wanted / 50
    assert with_times.decode / with_times.step == pytest.approx(wanted, rel=0.25)
    assert with_times.prefill / with_times.step == pytest.approx(HOST["prefill"] / HOST["step"], rel=0.25)
