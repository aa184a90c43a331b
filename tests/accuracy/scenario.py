"""One cell of the bench: a workload at a concurrency on a physics, seen by a board, divided by every policy."""

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median

from proxy.accounting.samples import Sample
from proxy.accounting.weights import Weights, roofline_prior
from tests.accuracy.engine import NOISE, Config, Impossible, Run, simulate
from tests.accuracy.learning import learnt
from tests.accuracy.physics import Own, made
from tests.accuracy.policies import Outcome, closed_form, plain, weighted, whole_window
from tests.accuracy.sensor import BOARDS, Board, samples
from tests.accuracy.shapley import truth
from tests.accuracy.view import Told
from tests.accuracy.workloads import LEAD_S, WORKLOADS, Demand, Mix, jobs, rate_for

SECONDS = {1.1: 150.0, 4: 100.0, 28: 80.0}
"""How long requests arrive; some hundreds of requests each."""
FEATURES = ("unseen", "silent", "aborted", "several", "lost_steps")
KNOBS = {"lag": "lag_s", "period": "period_s", "looks": "looks_s"}
"""What a scenario may change of its board, and what the board calls it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to simulate.

    workload: a name of the bench's; or with `mix` and `arrivals` any name. Fractions of the requests: unseen (bypass
    the proxy), silent (answered in one piece), aborted (their client leaves), several (n > 1). lost_steps: fraction
    of the step log that is lost. draft: tokens drafted per step. blocks, max_seqs: the engine's memory (16 tokens
    each) and batch. learning_s: seconds of other traffic that `weighted` has learnt from; 0 leaves it out, and only
    `weighted-cold` is shown. shorter: divides the length. lag, period, looks: seconds, instead of the board's own.
    noise: relative, of each step's time and energy.
    """

    workload: str = "mixed"
    concurrency: float = 4
    physics: str = "own"
    board: str = "part-time"
    unseen: float = 0.0
    silent: float = 0.0
    aborted: float = 0.0
    several: float = 0.0
    lost_steps: float = 0.0
    draft: int = 0
    blocks: int = Config().blocks
    max_seqs: int = Config().max_sequences
    mix: Mix | None = None
    arrivals: str | None = None
    learning_s: float = 300.0
    seed: int = 1
    shorter: float = 1.0
    # Not in the repr, which names the random numbers: another sensor or noise is tried on the same draws.
    lag: float | None = field(default=None, repr=False)
    period: float | None = field(default=None, repr=False)
    looks: float | None = field(default=None, repr=False)
    noise: float = field(default=NOISE, repr=False)

    @property
    def demand(self) -> Demand:
        """What clients ask for."""
        mix, arrivals = WORKLOADS.get(self.workload, (None, "poisson"))
        mix = self.mix or mix
        if mix is None:
            raise Impossible(f"workload {self.workload}: known are {', '.join(WORKLOADS)}; others need a mix")
        return Demand(mix, self.arrivals or arrivals, self.unseen, self.silent, self.aborted, self.several)

    @property
    def config(self) -> Config:
        """The engine's flags."""
        return Config(blocks=self.blocks, max_sequences=self.max_seqs, draft=self.draft)

    @property
    def sensor(self) -> Board:
        """The board, with what is changed of it."""
        changed = {theirs: getattr(self, ours) for ours, theirs in KNOBS.items() if getattr(self, ours) is not None}
        return replace(BOARDS[self.board], **changed)

    @property
    def sensor_label(self) -> str:
        """The board's name, and what is changed of it."""
        changed = (f"{ours}-{getattr(self, ours):g}" for ours in KNOBS if getattr(self, ours) is not None)
        return "-".join([self.board, *changed])

    @property
    def label(self) -> str:
        """The workload, and what is unusual about it."""
        fractions = ((name.replace("_", "-"), getattr(self, name)) for name in FEATURES)
        parts = [self.workload, *(f"{name}-{part * 100:.0f}" for name, part in fractions if part)]
        parts += [f"draft-{self.draft}"] if self.draft else []
        parts += [f"blocks-{self.blocks}"] if self.blocks != Config().blocks else []
        parts += [f"seqs-{self.max_seqs}"] if self.max_seqs != Config().max_sequences else []
        parts += [f"noise-{self.noise * 100:g}"] if self.noise != NOISE else []
        return "-".join(parts)


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
    # What the proxy learns from does not change what happens.
    name = f"{replace(scenario, learning_s=0.0, lost_steps=0.0)}"
    physics = made(scenario.physics, scenario.seed)
    seconds = SECONDS.get(scenario.concurrency, 80.0) / scenario.shorter
    demand, config = scenario.demand, scenario.config
    rate = rate_for(demand, scenario.concurrency, seconds, scenario.seed, config, scenario.physics)
    asked = jobs(demand, rate, seconds, scenario.seed)
    draws, until = random.Random(f"engine {name}"), LEAD_S + seconds
    run = simulate(asked, physics, draws, config, until=until, noise=scenario.noise)
    readings, gain = samples(run, scenario.sensor, random.Random(f"board {name}"))
    paid = truth(run, physics, random.Random(f"truth {name}"), budget=round(4_000_000 / scenario.shorter))
    visible = {job.row: paid.get(job.row, 0.0) * gain for job in run.jobs if job.seen}
    if not sum(visible.values()):
        raise Impossible("no request came through the proxy; make the run longer or fewer requests unseen")
    return Scene(scenario, run, readings, visible, roofline_prior(physics.shape), physics)


def outcomes(scene: Scene, *, everything: bool = True) -> list[Outcome]:
    """What every policy says of the scene; not everything: only the rule and plain token share."""
    run, readings, weights, given = scene.run, scene.readings, scene.weights, scene.scenario
    told, meters = Told(lost=given.lost_steps), given.sensor.grade

    def known(log: bool) -> Weights:
        return learnt(given.physics, given.sensor, given.seed, log, given.learning_s, given.noise)

    rule = weighted(run, readings, known, given.seed, told, meters) if given.learning_s else []
    cold = weighted(run, readings, lambda log: weights, given.seed, told, meters)
    rule += [replace(outcome, policy="weighted-cold") for outcome in cold]
    if not everything:
        return [*rule, *plain(run, readings, weights, given.seed, told, meters, "tokens")]
    others = plain(run, readings, weights, given.seed, told, meters, "tokens", "output-tokens", "time")
    return [*rule, closed_form(run, readings, weights), *others, whole_window(run, readings)]


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
    return 100 * max((abs(got / true - 1) for got, true in sums.values() if true), default=0.0)


def covered_percent(outcome: Outcome, true: dict[str, float]) -> float | None:
    """Of the requests with a stated uncertainty, those that err by at most two of their standard deviations.

    What all figures have too much or too little is the meter's and taken out before: it is stated apart.
    """
    if not outcome.doubts:
        return None
    scale = sum(true.values()) / sum(outcome.joules[row] for row in true)
    # A standard deviation is relative to the figure it stands beside, not to the truth.
    within = [
        abs(outcome.joules[row] * scale - true[row]) <= 2 * doubt * outcome.joules[row] * scale
        for row, doubt in outcome.doubts.items()
    ]
    return 100 * sum(within) / len(within)


def row(scene: Scene, outcome: Outcome) -> dict[str, object]:
    """One line of the report."""
    given, covered = scene.scenario, covered_percent(outcome, scene.truth)
    doubts = outcome.doubts.values() if outcome.doubts else ()
    return {
        "policy": outcome.policy,
        "grade": outcome.grade,
        "concurrency": given.concurrency,
        "physics": given.physics,
        "workload": given.label,
        "wape_percent": round(wape_percent(outcome.joules, scene.truth), 3),
        "tenant_bias_percent": round(tenant_bias_percent(scene, outcome.joules), 3),
        "covered_percent": None if covered is None else round(covered, 1),
        "stated_percent": round(100 * median(doubts), 1) if doubts else None,
        "conserved": outcome.conserved,
        "slowest_settled_after_s": outcome.settled_after_s,
        "sensor": given.sensor_label,
        "learning_s": given.learning_s,
        "seed": given.seed,
        "requests": len(scene.truth),
        "measured_concurrency": round(scene.run.concurrency, 2),
    }
