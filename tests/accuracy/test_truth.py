"""The truth is Shapley's value: it adds up, its closed forms agree with sampling, and each physics is what it says."""

import random
from collections.abc import Sequence

import pytest

from tests.accuracy.engine import Load, Run, Step, simulate
from tests.accuracy.physics import PHYSICS, Moe, Own, Totals, made, total
from tests.accuracy.shapley import _has_form, _sampled, exact, gauss_legendre, truth
from tests.accuracy.workloads import Demand, jobs

ENOUGH = 20_000


def run_of(physics: Own, *, seconds: float = 6.0, rate: float = 3.0) -> Run:
    return simulate(jobs(Demand(several=0.2), rate, seconds, 3), physics, random.Random(1), until=4 + seconds)


def crowded(run: Run, physics: Own, *, prompts: bool) -> Step:
    """A step of several sequences that has a form, with or without prompt work beside the decodes."""
    having = [step for step in run.steps if _has_form(step, physics) and 3 <= len(step.loads) <= 6]
    return next(step for step in having if any(load.p for load in step.loads) == prompts)


def near(said: Sequence[float], sampled: Sequence[float]) -> bool:
    whole = sum(sampled)
    return all(a / sum(said) == pytest.approx(b / whole, rel=0.05) for a, b in zip(said, sampled, strict=True))


@pytest.mark.parametrize("name", PHYSICS)
def test_the_truth_adds_up_to_the_energy_of_all_steps(name: str) -> None:
    """
    Shapley's rule is efficient: nothing is lost and nothing made, on every physics.
    """
    physics = made(name, 2)
    run = run_of(physics)
    paid = truth(run, physics, random.Random(3), budget=50_000)

    assert sum(paid.values()) == pytest.approx(sum(step.joules for step in run.steps))
    assert min(paid.values()) > 0


CURVED = {"roofline", "power-cap"}
"""Here nearly no step with prompt work has a closed form."""
FORMS = [(name, prompts) for name in PHYSICS for prompts in (False, True) if not (prompts and name in CURVED)]


@pytest.mark.parametrize(("name", "prompts"), FORMS)
def test_random_orders_agree_with_the_closed_form(name: str, prompts: bool) -> None:
    """
    Wherever a closed form is used, the mean over random orders of arrival is the same.
    """
    physics = made(name, 4)
    step = crowded(run_of(physics), physics, prompts=prompts)

    assert near(exact(step, physics), _sampled(step, physics, ENOUGH, random.Random(6)))


@pytest.mark.parametrize("name", PHYSICS)
def test_a_closed_form_is_claimed_only_where_every_subset_allows_it(name: str) -> None:
    """
    For random subsets the energy is what the form says: fixed part, own parts, and what saturates.
    """
    physics, rng = made(name, 5), random.Random(7)
    for step in rng.sample(run_of(physics).steps, 60):
        if not _has_form(step, physics) or len(step.loads) < 2:
            continue
        part = physics.saturating(step.loads, step.state)
        empty = physics.energy(Totals(), step.state)
        some = [load for load in step.loads if rng.random() < 0.5]
        own = sum(physics.energy(total([load]), step.state) - empty for load in some)
        if part is not None:
            own -= sum(part.joules * (1 - part.kept ** (load.p + load.d)) for load in some)
            own += part.joules * (1 - part.kept ** sum(load.p + load.d for load in some))

        assert physics.energy(total(some), step.state) == pytest.approx(empty + own)


def test_the_experts_of_a_mixture_have_a_form_in_nearly_every_step() -> None:
    """
    Sampling is left for steps whose arithmetic takes longer than streaming the experts.
    """
    physics = Moe(random.Random(1))
    run = run_of(physics)

    assert sum(_has_form(step, physics) for step in run.steps) > 0.95 * len(run.steps)


def test_the_nodes_integrate_a_polynomial_exactly() -> None:
    """
    Gauss and Legendre's rule with 32 nodes on [0, 1].
    """
    assert sum(weight * place**40 for place, weight in gauss_legendre(32)) == pytest.approx(1 / 41, rel=1e-12)


@pytest.mark.parametrize("name", ["roofline", "power-cap", "moe"])
def test_a_physics_that_the_rule_does_not_assume_is_not_affine(name: str) -> None:
    """
    A prompt among decodes makes a step's energy differ from the sum of its parts.
    """
    physics = made(name, 3)
    steps = [step for step in run_of(physics).steps if len(step.loads) > 1]
    loads: list[Load] = max(steps, key=lambda step: sum(load.p for load in step.loads)).loads

    assert not physics.affine(loads, physics.state)


def test_attention_makes_a_long_prompt_dearer_than_its_tokens() -> None:
    """
    In the superlinear physics the second half of a long prompt costs more than the first, by more than its context.
    """
    physics = made("superlinear", 1)
    halves = [Totals(p=8_000, pc=8_000 * mean, pl=8_000 * mean * mean) for mean in (4_000, 12_000)]
    first, second = (physics.energy(half, physics.state) - physics.energy(Totals(), physics.state) for half in halves)

    assert second > 1.5 * first


def test_the_clock_follows_the_power_late() -> None:
    """
    At high power the governor lowers the clock step by step, and a lower clock takes longer for less energy.
    """
    physics = made("dvfs", 1)
    clocks = []
    for _ in range(40):
        physics.advance(0.05, 200.0)
    for _ in range(40):
        clocks.append(physics.state.clock)
        physics.advance(0.05, 600.0)
    fast, slow = (physics.state._replace(clock=clock) for clock in (1.0, 0.6))
    work = Totals(p=1_000, d=10, c=10_000)

    assert clocks[0] == 1.0
    assert clocks[1] == 1.0
    assert clocks[-1] == 0.6
    assert physics.seconds(work, slow) > 1.3 * physics.seconds(work, fast)
    assert physics.dynamic(work) * (0.35 + 0.65 * 0.36) < physics.dynamic(work)
