"""Weights are learnt from the meter: what can be learnt is, what cannot stays at the prior, and nothing goes wild."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from proxy.accounting.activity import Work
from proxy.accounting.attribution import predicted
from proxy.accounting.fitting import TRUSTED_ERROR, Fit
from proxy.accounting.regression import Sliding, Stretch
from proxy.accounting.ridge import NARROWEST, WIDEST
from proxy.accounting.rivals import Judged, Rivals, of_looks
from proxy.accounting.terms import TERMS, terms_of
from proxy.accounting.units import Nanoseconds
from proxy.accounting.weights import Weights
from tests.accounting.flights import WEIGHTS, ms

MIXED = replace(WEIGHTS, experts=2.0, touched=0.1)


def mixed(random: Random) -> Work:
    """A tenth of a second of an engine: ten steps, prompts in half of the windows, few or many decodes."""
    prompt = random.choice([0, 0, 300, 2000])
    running = random.randint(1, 40)
    return Work(
        prefill=prompt,
        prefill_context=prompt * random.uniform(100, 6000),
        decode=10 * running,
        decode_context=10 * running * random.uniform(100, 4000),
        steps=10,
        experts=random.uniform(1, 10),
    )


def constant(random: Random) -> Work:
    """Always the same batch: fixed part and decode cannot be told apart."""
    return Work(decode=80, decode_context=40_000, steps=10)


def learnt(
    truth: Weights,
    *,
    prior: Weights = WEIGHTS,
    seconds: int = 120,
    noise: float = 0.0,
    scale: float = 1.0,
    work: Callable[[Random], Work] = mixed,
) -> Fit:
    """A fit after so many seconds of windows of 0.1 s whose energies come from other weights than the prior's."""
    random, fit = Random(7), Fit(prior)
    for _ in range(seconds * 10):
        done = work(random)
        energy_j = scale * sum(predicted(done, truth)) * max(0.1, random.gauss(1, noise))
        fit.observe(done, round(energy_j * 1e6), ms(100))
    return fit


def ratio(fit: Fit, one: str, other: str) -> float:
    """How far the regression has moved two weights against each other, whether they are in use or not."""
    found = fit._current()
    return getattr(found, one) / getattr(fit.prior, one) * getattr(fit.prior, other) / getattr(found, other)


def test_the_terms_are_what_is_predicted() -> None:
    """Of a window's work under some weights, no joule more or less."""
    work = mixed(Random(1))

    assert sum(terms_of(MIXED, work)) == pytest.approx(sum(predicted(work, MIXED)))
    assert len(TERMS) == len(terms_of(MIXED, work))


@pytest.mark.parametrize("noise", [0.0, 0.25], ids=["exact meter", "part-time sensor"])
@pytest.mark.parametrize(
    ("name", "factor"), [("step", 2.0), ("step", 0.5), ("prefill", 0.5), ("prefill", 2.0), ("decode", 2.0)]
)
def test_a_weight_that_was_wrong_is_found(name: str, factor: float, noise: float) -> None:
    """Twice or half of the prior: its ratio to the others is right within a quarter after two minutes."""
    truth = replace(WEIGHTS, **{name: getattr(WEIGHTS, name) * factor})
    other = "decode" if name != "decode" else "step"

    fit = learnt(truth, noise=noise)

    assert ratio(fit, name, other) == pytest.approx(factor, rel=0.25)
    assert fit.in_use or noise


def test_all_weights_may_be_wrong_at_once() -> None:
    """What decides who pays, predictions of single windows, is right within some percent."""
    truth = replace(WEIGHTS, step=WEIGHTS.step * 1.6, prefill=WEIGHTS.prefill * 0.6, context=WEIGHTS.context * 1.8)
    fit = learnt(truth, noise=0.1, seconds=300)
    random = Random(11)
    off = [
        sum(predicted(work, fit.weights)) / sum(predicted(work, truth)) for work in (mixed(random) for _ in range(200))
    ]

    assert fit.in_use
    middle = sorted(off)[100]
    assert all(abs(one / middle - 1) < 0.12 for one in off)


def test_the_fit_stays_in_the_trust_region() -> None:
    """A prior that is off by ten is followed to three times and no further."""
    for factor in (0.1, 10.0):
        fit = learnt(replace(WEIGHTS, prefill=WEIGHTS.prefill * factor), seconds=60)
        moved = [getattr(fit.weights, name) / getattr(WEIGHTS, name) for name in TERMS if getattr(WEIGHTS, name)]
        assert all(NARROWEST * 0.999 <= by <= WIDEST * 1.001 for by in moved)


def test_a_constant_batch_keeps_the_priors_ratios() -> None:
    """Fixed part and decode are not separable there: nothing that was not shown is learnt."""
    truth = replace(WEIGHTS, step=WEIGHTS.step * 2)

    fit = learnt(truth, work=constant, noise=0.1)

    assert ratio(fit, "prefill", "attention") == pytest.approx(1)
    assert 0.5 < ratio(fit, "step", "decode") < 2.0


def test_a_right_prior_stays() -> None:
    """Whatever the board's gain: only ratios matter, and they were right."""
    for scale in (0.5, 1.0, 2.0):
        fit = learnt(WEIGHTS, scale=scale, noise=0.25)
        for name in ("prefill", "decode", "context"):
            assert ratio(fit, name, "step") == pytest.approx(1, rel=0.2)


def test_weights_that_a_meter_has_told_are_held_firmer() -> None:
    """A minute of a part-time sensor moves them less than a prior from data sheets, but they are not fixed."""
    truth = replace(WEIGHTS, prefill=WEIGHTS.prefill * 2)
    told = replace(WEIGHTS, measured=True)

    loose, firm = (learnt(truth, prior=prior, seconds=60, noise=0.25) for prior in (WEIGHTS, told))
    later = learnt(truth, prior=told, seconds=1800, noise=0.25)

    assert 1 < ratio(firm, "prefill", "step") < ratio(loose, "prefill", "step") < 2.5
    assert ratio(later, "prefill", "step") > ratio(firm, "prefill", "step")


def test_what_is_learnt_counts_as_told_by_a_meter() -> None:
    """So that it is held as such where it is the next one's prior."""
    fit = learnt(replace(WEIGHTS, prefill=WEIGHTS.prefill * 2))

    assert fit.in_use
    assert fit.weights.measured
    assert not fit.prior.measured


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_energies_does_not_matter(scale: float) -> None:
    """A meter that reads a thousand times more learns the same ratios."""
    truth = replace(WEIGHTS, step=WEIGHTS.step * 2)
    plain, scaled = learnt(truth, noise=0.1), learnt(truth, noise=0.1, scale=scale)

    assert plain.in_use
    assert scaled.in_use
    for name in TERMS:
        if getattr(WEIGHTS, name):
            assert getattr(scaled.weights, name) == pytest.approx(getattr(plain.weights, name), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_right_prior_is_trusted_whatever_the_level_of_the_meter(scale: float) -> None:
    """Its first predictions know nothing of that level, and must not be held against it for minutes."""
    fit = learnt(WEIGHTS, scale=scale, seconds=11)

    assert fit.trusted
    assert fit.error == pytest.approx(0.0, abs=1e-3)


def test_predictions_that_are_worse_than_the_priors_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held out: factors that predict the next blocks worse than the prior does are dropped until they are better."""
    random, fit = Random(3), Fit(WEIGHTS)

    def run(seconds: int) -> None:
        for _ in range(seconds * 10):
            work = mixed(random)
            fit.observe(work, round(sum(predicted(work, WEIGHTS)) * 1e6), ms(100))

    with monkeypatch.context() as patch:
        patch.setattr(fit._regression, "solve", lambda: None)
        fit._regression.factors = [3.0, 1.0, 1 / 3, 1.0, 1.0, 1.0]
        run(60)
        assert (fit.weights, fit.in_use, fit.trusted) == (WEIGHTS, False, True)
        assert (fit._blocks.fitted.error or 0) > 0.1 > (fit.error or 9)

    run(600)
    assert fit.trusted
    assert (fit.error or 9) < 0.01


def test_the_prior_is_used_until_two_blocks_were_predicted() -> None:
    """Ten seconds of work; before that nothing is said of the error, and nothing speaks against the prior."""
    truth = replace(WEIGHTS, step=WEIGHTS.step * 2)

    assert (learnt(truth, seconds=9).error, learnt(truth, seconds=9).in_use) == (None, False)
    assert learnt(truth, seconds=9).trusted
    assert learnt(truth, seconds=11).error is not None


def test_good_predictions_are_trusted_and_bad_ones_are_not() -> None:
    """The bound is on blocks of five seconds, where a sensor's noise has averaged out."""
    good = learnt(WEIGHTS, noise=0.1)
    assert good.trusted
    assert (good.error or 1) < TRUSTED_ERROR

    wild = learnt(WEIGHTS, noise=3.0)
    assert not wild.trusted


def test_old_stretches_are_forgotten() -> None:
    """When the truth changes the fit follows, the faster the longer it has changed for."""
    random, fit = Random(5), Fit(WEIGHTS)
    cheap, dear = (replace(WEIGHTS, step=WEIGHTS.step * by) for by in (0.6, 1.8))
    seen = []
    for truth, seconds in ((cheap, 60), (dear, 60), (dear, 7200)):
        for _ in range(seconds * 2):
            work = mixed(random)
            fit.observe(work, round(sum(predicted(work, truth)) * 1e6), ms(500))
        seen.append(fit._regression.factors[0] / fit._regression.factors[4])

    assert seen[0] < 0.8
    assert seen[0] < seen[1] < seen[2]
    assert seen[2] == pytest.approx(1.8, rel=0.15)


def test_experts_are_learnt_apart_from_the_fixed_part_only_as_far_as_they_show() -> None:
    """They move together in most loads; both stay within the trust region, and the sum is right."""
    truth = replace(MIXED, experts=MIXED.experts * 2, step=MIXED.step * 2)

    fit = learnt(truth, prior=MIXED)

    assert fit.in_use
    assert ratio(fit, "step", "decode") == pytest.approx(2, rel=0.3)


def test_a_prior_that_forgot_time_is_made_good_before_the_meter_says_so() -> None:
    """From the first block on, whether the meter's own factors are in use or not; those are around it."""
    random, fit = Random(7), Fit(WEIGHTS)
    assert WEIGHTS.roofline is not None
    for _ in range(100):
        work = mixed(random)
        fit.ran(work, Nanoseconds(ms(work.steps * 5 * 6.9) + ms(work.decode * 0.03)))
        fit.observe(work, round(sum(predicted(work, WEIGHTS)) * 1e6), ms(100))

    assert not fit.in_use
    assert fit.weights.step / fit.weights.decode > 2 * WEIGHTS.step / WEIGHTS.decode
    assert fit.prior is WEIGHTS
    assert not fit.weights.measured


def test_windows_without_work_or_energy_teach_nothing() -> None:
    """Nor do they break anything."""
    fit = Fit(WEIGHTS)
    for work, energy_uj in ((Work(), 5_000_000), (constant(Random(0)), 0), (Work(), 0)):
        for _ in range(200):
            fit.observe(work, energy_uj, ms(100))

    assert (None, WEIGHTS, True) == (fit.error, fit.weights, fit.trusted)


@pytest.mark.parametrize("late", [0.0, 0.1, 0.2])
def test_readings_that_come_late_are_learnt_from_together(late: float) -> None:
    """A part of what a reading should have said is in the next one: bursts must not look cheap, nor all else dear."""
    truth, random, fit, before_j = replace(WEIGHTS, prefill=WEIGHTS.prefill * 1.5), Random(7), Fit(WEIGHTS), 0.0
    for _ in range(3000):
        work = mixed(random)
        energy_j = sum(predicted(work, truth))
        fit.observe(work, round(((1 - late) * energy_j + late * before_j) * 1e6), ms(100))
        before_j = energy_j

    assert ratio(fit, "prefill", "step") == pytest.approx(1.5, rel=0.15)


def test_a_long_window_stands_by_itself() -> None:
    """It is learnt from once; windows of a tenth of a second wait for company."""
    sliding = Sliding()
    short, long = Stretch((1.0,) * 6, 10.0, 0.1), Stretch((3.0,) * 6, 40.0, 1.0)

    assert [sliding.add(short), sliding.add(short)] == [None, None]
    for _ in range(2):
        assert sliding.add(short) == (pytest.approx((3.0,) * 6), pytest.approx(30.0), pytest.approx(0.3))
    assert sliding.add(long) == long
    assert sliding.add(long) == long


def test_an_error_needs_two_blocks_and_fades() -> None:
    """A bad start is forgotten after some minutes."""
    judged = Judged()
    judged.add(10.0, 15.0)
    assert None is judged.error
    judged.add(10.0, 15.0)
    assert judged.error == pytest.approx(0.5)
    for _ in range(100):
        judged.add(10.0, 10.0)
    assert (judged.error or 1) < 0.1


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_windows_and_looks_are_learnt_from_together(scale: float) -> None:
    """Whether a sensor's look is known may change at any time: ratios learnt from both are those learnt from one."""
    random, fit = Random(3), Fit(WEIGHTS)
    truth = replace(WEIGHTS, prefill=1.5 * WEIGHTS.prefill)
    for number in range(3000):
        done = mixed(random)
        energy_uj = round(scale * sum(predicted(done, truth)) * random.gauss(1, 0.05) * 1e6)
        if number // 300 % 2:
            fit.looked(done, energy_uj, ms(100), 0.05)
        else:
            fit.observe(done, energy_uj, ms(100))

    assert ratio(fit, "prefill", "step") == pytest.approx(1.5, rel=0.05)
    assert fit.error is not None
    assert fit.error < 0.03


def test_readings_of_which_it_is_hardly_known_what_they_saw_decide_nothing() -> None:
    """
    A hundred of them are worth less than fifty clear ones; with those the nearer weights are told.
    """
    rivals = Rivals(of_looks(), of_looks())
    for _ in range(100):
        rivals.add(10.0, 10.0, 14.0, weight=0.04)
    assert rivals.better is None

    for _ in range(50):
        rivals.add(10.0, 13.0, 11.0)
    assert rivals.better is False
