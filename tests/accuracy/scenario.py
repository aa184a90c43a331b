"""One cell of the bench: a workload at a concurrency on a physics, seen by a board, divided by every policy."""

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from proxy.accounting.samples import Sample
from proxy.accounting.weights import Weights, roofline_prior
from tests.accuracy.engine import Run, simulate
from tests.accuracy.physics import PHYSICS, Own
from tests.accuracy.policies import Outcome, by_group, by_step_log, plain, whole_window
from tests.accuracy.sensor import BOARDS, samples
from tests.accuracy.shapley import truth
from tests.accuracy.workloads import jobs, rate_for

SECONDS = {1.1: 150.0, 4: 100.0, 28: 60.0}
"""How long requests arrive; some hundreds of requests each."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to simulate. unseen: fraction of requests that bypass the proxy. shorter: divides the length."""

    workload: str = "mixed"
    concurrency: float = 4
    physics: str = "own"
    board: str = "part-time"
    unseen: float = 0.0
    seed: int = 1
    shorter: float = 1.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A scenario that has been run. truth: joules by row, as the board counts them (its gain is in both)."""

    scenario: Scenario
    run: Run
    readings: list[Sample]
    truth: dict[str, float]
    weights: Weights
    physics: Own


@lru_cache(maxsize=4)
def play(scenario: Scenario) -> Scene:
    """Simulates engine, board and truth."""
    name = f"{scenario}"
    physics = PHYSICS[scenario.physics](random.Random(f"physics {scenario.physics} {scenario.seed}"))
    seconds = SECONDS.get(scenario.concurrency, 80.0) / scenario.shorter
    rate = rate_for(scenario.workload, scenario.concurrency, seconds, scenario.seed)
    asked = jobs(scenario.workload, rate, seconds, scenario.seed, unseen=scenario.unseen)
    run = simulate(asked, physics, random.Random(f"engine {name}"))
    readings, gain = samples(run, BOARDS[scenario.board], random.Random(f"board {name}"))
    paid = truth(run, physics, random.Random(f"truth {name}"), budget=round(4_000_000 / scenario.shorter))
    visible = {job.row: paid[job.row] * gain for job in run.jobs if job.seen}
    return Scene(scenario, run, readings, visible, roofline_prior(physics.shape), physics)


def outcomes(scene: Scene, *, everything: bool = True) -> list[Outcome]:
    """What every policy says of the scene; not everything: only the rule and plain token share."""
    run, readings, weights, seed = scene.run, scene.readings, scene.weights, scene.scenario.seed
    rule = [by_step_log(run, readings, weights), by_group(run, readings, weights, "weighted", seed)[0]]
    if not everything:
        return [*rule, by_group(run, readings, weights, "tokens", seed)[0]]
    return [*rule, *plain(run, readings, weights, seed), whole_window(run, readings)]


def wape_percent(said: dict[str, float], true: dict[str, float]) -> float:
    """Sum of absolute errors over the sum of truths."""
    return 100 * sum(abs(said[row] - joules) for row, joules in true.items()) / sum(true.values())


def tenant_bias_percent(scene: Scene, said: dict[str, float]) -> float:
    """The largest relative error of a tenant's sum."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for job in scene.run.jobs:
        if job.seen:
            sums[job.tenant][0] += said[job.row]
            sums[job.tenant][1] += scene.truth[job.row]
    return 100 * max(abs(got / true - 1) for got, true in sums.values())


def row(scene: Scene, outcome: Outcome) -> dict[str, object]:
    """One line of the report."""
    given = scene.scenario
    return {
        "policy": outcome.policy,
        "grade": outcome.grade,
        "concurrency": given.concurrency,
        "physics": given.physics,
        "workload": given.workload + (f"-unseen-{given.unseen * 100:.0f}" if given.unseen else ""),
        "wape_percent": round(wape_percent(outcome.joules, scene.truth), 3),
        "tenant_bias_percent": round(tenant_bias_percent(scene, outcome.joules), 3),
        "conserved": outcome.conserved,
        "sensor": given.board,
        "seed": given.seed,
        "requests": len(scene.truth),
        "measured_concurrency": round(scene.run.concurrency, 2),
    }
