"""
The bench in short: every policy conserves, and the rule is far nearer to per-step Shapley than plain token share.

Bars of the project, WAPE against per-step Shapley on the mix: A 1.5; B 3 at concurrency 4 and 6 at 28 (own physics),
6 and 8 (other physics); worst tenant 2; 30 % unseen traffic 7. The limits below are those that hold with margin as
the code is now; a bar is "not reached" where its limit is above it. Lower them as the code gets better.
"""

import random

import pytest

from proxy.accounting.weights import LLAMA_8B, roofline_prior
from tests.accuracy.ablation import true_weights
from tests.accuracy.engine import Load, Run, Step, simulate
from tests.accuracy.physics import PHYSICS, Own, Roofline
from tests.accuracy.policies import Outcome, by_group, by_step_log
from tests.accuracy.scenario import Scenario, Scene, outcomes, play, tenant_bias_percent, wape_percent
from tests.accuracy.shapley import _sampled, truth
from tests.accuracy.view import Told
from tests.accuracy.workloads import jobs

SHORT = 3.0
A_LIMIT = 3.0  # bar 1.5: not reached, the part-time sensor's own noise is 2 at the settlement window of 100 ms
B_LIMIT_AT_4 = 10.0  # bar 3: not reached, cached tokens are known too late
B_LIMIT_AT_28 = 30.0  # bar 6: not reached, same reason
UNSEEN_LIMIT = 18.0  # bar 7: not reached


def wape(scene: Scene, policy: str, grade: str | None = "B") -> float:
    chosen = next(o for o in said(scene) if (o.policy, o.grade) == (policy, grade))
    return wape_percent(chosen.joules, scene.truth)


_SAID: dict[Scenario, list[Outcome]] = {}


def said(scene: Scene) -> list[Outcome]:
    """Every cell is divided once for all tests."""
    if scene.scenario not in _SAID:
        _SAID[scene.scenario] = outcomes(scene, everything=scene.scenario.concurrency == 4)
    return _SAID[scene.scenario]


CELLS = [
    Scenario(shorter=SHORT),
    Scenario(concurrency=28, shorter=SHORT),
    Scenario(concurrency=1.1, shorter=SHORT),
    Scenario(physics="roofline", shorter=SHORT),
    Scenario(workload="bursty", physics="power-cap", shorter=SHORT),
    Scenario(physics="drift", unseen=0.3, shorter=SHORT),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.workload}-{cell.physics}-{cell.concurrency}")
def test_every_policy_conserves_to_the_microjoule(cell: Scenario) -> None:
    """
    What requests, idle, unattributed and unmeasured got is what the counter moved, as whole numbers.
    """
    assert [] == [o.policy for o in said(play(cell)) if o.grade is not None and not o.conserved]


def test_the_rule_beats_plain_token_share_by_far_at_concurrency_4() -> None:
    """
    Plain token share is wrong by more than 14 %, the rule by a fraction of that.
    """
    scene = play(CELLS[0])

    assert wape(scene, "tokens") > 14
    assert wape(scene, "weighted") < B_LIMIT_AT_4
    assert wape(scene, "weighted") < wape(scene, "tokens") / 2


def test_the_rule_beats_plain_token_share_in_a_full_batch() -> None:
    """
    At concurrency 28 as well, where plain token share is wrong by about 28 %.
    """
    scene = play(CELLS[1])

    assert wape(scene, "tokens") > 20
    assert wape(scene, "weighted") < min(B_LIMIT_AT_28, wape(scene, "tokens"))


@pytest.mark.parametrize("cell", CELLS[:2], ids=lambda cell: str(cell.concurrency))
def test_a_step_log_leaves_little_error(cell: Scenario) -> None:
    """
    Where every step is known only the sensor and the prior's weights are wrong.
    """
    assert wape(play(cell), "weighted", "A") < A_LIMIT


def test_unseen_traffic_does_not_fall_on_the_visible() -> None:
    """
    With 30 % of the requests bypassing the proxy the visible ones are charged about their own.
    """
    scene = play(Scenario(unseen=0.3, shorter=SHORT))

    assert wape(scene, "weighted") < UNSEEN_LIMIT


def test_told_the_facts_in_time_the_rule_is_within_its_bar() -> None:
    """
    The rule itself is not the limit: with cached tokens and queue time known, B is under its bar of 3 %.
    """
    scene = play(CELLS[0])
    told = Told(cached_at_first=True, queue_at_first=True)
    outcome, _ = by_group(scene.run, scene.readings, scene.weights, "weighted", 1, told)

    assert wape_percent(outcome.joules, scene.truth) < 3.5
    assert tenant_bias_percent(scene, outcome.joules) < 3.5


def run_of(physics: Own, *, seconds: float = 4.0, rate: float = 3.0) -> Run:
    return simulate(jobs("mixed", rate, seconds, 3), physics, random.Random(1))


@pytest.mark.parametrize("name", PHYSICS)
def test_the_truth_adds_up_to_the_energy_of_all_steps(name: str) -> None:
    """
    Shapley's rule is efficient: nothing is lost and nothing made, on every physics.
    """
    physics = PHYSICS[name](random.Random(2))
    run = run_of(physics)

    assert sum(truth(run, physics, random.Random(3), budget=50_000).values()) == pytest.approx(
        sum(step.joules for step in run.steps)
    )


def test_random_orders_agree_with_the_closed_form() -> None:
    """
    On affine physics the sampled value and the closed form are the same.
    """
    physics = Own(random.Random(4))
    step = next(step for step in run_of(physics).steps if len(step.loads) >= 3)
    exact = truth(Run([], [step]), physics, random.Random(5))
    values = _sampled(step, physics, 2_000, random.Random(6))

    for load, value in zip(step.loads, values, strict=True):
        assert value * step.joules / sum(values) == pytest.approx(exact[load.job.row], rel=0.05)


def test_a_request_that_fits_under_the_memory_time_makes_a_step_affine() -> None:
    """
    Where arithmetic never exceeds the time of streaming the weights, the closed form is the truth.
    """
    physics = Roofline(random.Random(7))
    run = run_of(physics)
    affine = [s for s in run.steps if len(s.loads) > 1 and physics.affine(s.loads, s.static_w)]
    step: Step = affine[0]
    loads: list[Load] = step.loads
    exact = truth(Run([], [step]), physics, random.Random(8))
    values = _sampled(step, physics, 2_000, random.Random(9))

    assert len(loads) == len(exact)
    for load, value in zip(loads, values, strict=True):
        assert value * step.joules / sum(values) == pytest.approx(exact[load.job.row], rel=0.05)


def test_the_engine_computes_every_prompt_and_makes_every_token_once() -> None:
    """
    The simulator itself loses no work: prompts less what was cached, and one output token per emission.
    """
    run = run_of(Own(random.Random(1)))
    computed = sum(load.p for step in run.steps for load in step.loads)
    made = sum(len(step.emitted) for step in run.steps)

    assert computed == sum(job.prompt - job.cached for job in run.jobs)
    assert made == sum(job.output for job in run.jobs)
    assert run.counters()[-1][1:] == (made, computed, sum(job.cached for job in run.jobs))


def test_the_step_log_and_an_exact_sensor_leave_only_the_weights() -> None:
    """
    With the physics' own weights, an exact counter and every step known, what is left is below 1 %.
    """
    scene = play(Scenario(board="exact", shorter=SHORT))
    assert scene.weights == roofline_prior(LLAMA_8B)

    outcome = by_step_log(scene.run, scene.readings, true_weights(scene))

    assert wape_percent(outcome.joules, scene.truth) < 1.0
