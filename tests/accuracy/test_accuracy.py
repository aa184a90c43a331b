"""
The bench in short: every policy conserves, and the rule is far nearer to per-step Shapley than plain token share.

LIMITS is one table of what is held: `bar` is what the project wants, `held` what these short runs hold with margin as
the code is now; a bar is not reached where `held` is above it. Lower `held` as the code gets better, never raise it.
The whole bench (python -m tests.accuracy) runs longer, on more of everything; its figures are steadier than these.
"""

from dataclasses import dataclass, replace
from statistics import median

import pytest

from proxy.accounting.weights import LLAMA_8B, roofline_prior
from tests.accuracy.__main__ import chosen, main, parsed, standard
from tests.accuracy.ablation import true_weights
from tests.accuracy.cost import BAR, SETTLEMENT, measured
from tests.accuracy.policies import Outcome, by_group, closed_form
from tests.accuracy.scenario import Scenario, Scene, covered_percent, outcomes, play, tenant_bias_percent, wape_percent
from tests.accuracy.view import Told

AT_4 = Scenario(concurrency=4, shorter=2, learning_s=60.0)
AT_28 = replace(AT_4, concurrency=28)
COLD_4 = replace(AT_4, shorter=3, learning_s=0.0)
COLD_28 = replace(COLD_4, concurrency=28, shorter=4)


@dataclass(frozen=True, slots=True)
class Limit:
    """Percent. grade: of `weighted`, or of `weighted-cold` where the cell leaves no time to learn.

    bar: of the project, None where it names none.
    """

    cell: Scenario
    grade: str
    bar: float | None
    held: float


LIMITS = {
    "A, own physics at 4": Limit(AT_4, "A", bar=1.5, held=1.5),
    "A, own physics at 28": Limit(AT_28, "A", bar=1.5, held=1.5),
    "A, drafted tokens at 28": Limit(replace(COLD_28, draft=3), "A", bar=None, held=2.5),
    "A, an exact sensor at 28": Limit(replace(COLD_28, board="exact"), "A", bar=None, held=1.5),
    "B, own physics at 4": Limit(AT_4, "B", bar=3.0, held=2.5),
    "B, own physics at 28": Limit(AT_28, "B", bar=6.0, held=3.0),
    "B, roofline at 4": Limit(replace(COLD_4, physics="roofline"), "B", bar=6.0, held=4.0),
    "B, power cap at 28, bursty": Limit(
        replace(COLD_28, physics="power-cap", workload="bursty"), "B", bar=8.0, held=3.0
    ),
    "B, superlinear at 4": Limit(replace(COLD_4, physics="superlinear"), "B", bar=6.0, held=5.5),
    "B, 30 % unseen at 4": Limit(replace(COLD_4, unseen=0.3), "B", bar=7.0, held=5.0),
    "B, 30 % unseen at 28": Limit(replace(COLD_28, unseen=0.3), "B", bar=7.0, held=4.0),
    "B, 30 % unseen beside silent answers": Limit(replace(COLD_4, unseen=0.3, silent=0.3), "B", bar=7.0, held=6.0),
    "A, 30 % unseen at 4": Limit(replace(COLD_4, unseen=0.3), "A", bar=7.0, held=3.0),
    "A, a tenth of the log lost": Limit(replace(COLD_4, lost_steps=0.1), "A", bar=None, held=3.0),
    "B, habits of all kinds": Limit(
        replace(COLD_4, silent=0.2, aborted=0.1, several=0.1, workload="wide"), "B", bar=None, held=10.0
    ),
}
TENANT_BAR, TENANT_HELD = 2.0, 2.0
"""The worst tenant's error in percent, at 4 and at 28 on the rule's own physics."""
TOKENS_AT_4, TOKENS_AT_28 = 14.0, 22.0
"""Plain token share is at least so wrong (about 15 and 25 in the whole bench), or the bench would be too easy. At 4 it
is asked of the whole bench's own cell: shorter ones scatter about what research says."""
WHOLE_4 = Scenario(concurrency=4, learning_s=0.0)
HARD = [
    replace(COLD_4, shorter=6, draft=3, physics="moe"),
    replace(COLD_4, shorter=6, blocks=1_500, physics="drift", board="averaged"),
    replace(COLD_4, shorter=6, max_seqs=3, physics="dvfs", board="slow", aborted=0.3, unseen=0.2),
]
"""What nobody set a bar for; that everything conserves has no exception."""

COVERED_BAR = 90.0
"""Percent of the requests that err by at most two of their stated standard deviations; 95 is what is claimed."""
COVERED_HELD = {HARD[0]: 65.0, HARD[1]: 80.0, HARD[2]: 80.0}
"""Where the bar is not reached: what B (or C) of these holds. Raise it as the code gets better, never lower it."""
STATED_HELD = 12.0
"""Percent, the median of the stated standard deviations at 4 and 28: who states much is always right."""

_SAID: dict[Scenario, list[Outcome]] = {}


def said(scene: Scene) -> list[Outcome]:
    """Every cell is divided once for all tests."""
    if scene.scenario not in _SAID:
        _SAID[scene.scenario] = outcomes(scene, everything=scene.scenario == AT_4)
    return _SAID[scene.scenario]


def of(scene: Scene, policy: str, grade: str = "B") -> Outcome:
    return next(one for one in said(scene) if (one.policy, one.grade) == (policy, grade))


def wape(scene: Scene, policy: str, grade: str = "B") -> float:
    return wape_percent(of(scene, policy, grade).joules, scene.truth)


CELLS = [*dict.fromkeys(limit.cell for limit in LIMITS.values()), *HARD]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.label}-{cell.physics}-{cell.concurrency}")
def test_every_policy_conserves_to_the_microjoule(cell: Scenario) -> None:
    """
    What requests, idle, unattributed and unmeasured got is what the counter moved, as whole numbers.
    """
    assert [] == [(o.policy, o.grade) for o in said(play(cell)) if o.grade is not None and not o.conserved]


@pytest.mark.parametrize("name", LIMITS)
def test_the_rule_stays_within_its_limit(name: str) -> None:
    """
    Weighted absolute error against per-step Shapley, and far below plain token share's.
    """
    limit = LIMITS[name]
    scene = play(limit.cell)

    policy = "weighted" if limit.cell.learning_s else "weighted-cold"

    assert wape(scene, policy, limit.grade) < limit.held
    assert wape(scene, policy, limit.grade) < wape(scene, "tokens")


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.label}-{cell.physics}-{cell.concurrency}")
def test_two_stated_standard_deviations_hold_what_they_promise(cell: Scenario) -> None:
    """
    Short or long, cold or learnt, with the step log (which is held to the bar everywhere) and without.
    """
    scene = play(cell)
    found = {(o.policy, o.grade): covered_percent(o, scene.truth) for o in said(scene)}
    covered = {rule: share for rule, share in found.items() if share is not None}

    assert {"weighted-cold"} <= {policy for policy, _ in covered} <= {"weighted", "weighted-cold"}
    for (policy, grade), share in covered.items():
        held = COVERED_BAR if grade == "A" else COVERED_HELD.get(cell, COVERED_BAR)
        assert share >= held, (policy, grade)


@pytest.mark.parametrize("cell", [AT_4, AT_28], ids=lambda cell: str(cell.concurrency))
def test_what_is_stated_says_something(cell: Scenario) -> None:
    """
    An uncertainty that holds every request because it is huge would be worth nothing.
    """
    for grade in ("A", "B"):
        doubts = of(play(cell), "weighted", grade).doubts
        assert doubts is not None
        assert len(doubts) == len(play(cell).truth)
        assert 100 * median(doubts.values()) < STATED_HELD


@pytest.mark.unit
def test_coverage_leaves_out_what_is_common_and_counts_what_is_not() -> None:
    """
    All say twice the truth: that is the meter's. One of four beyond two standard deviations: three quarters.
    """
    true = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0}
    doubled = {row: 2 * joules for row, joules in true.items()}
    doubts = dict.fromkeys(true, 0.001)
    moved = doubled | {"a": 21.0, "d": 79.0}

    assert covered_percent(Outcome("weighted", "B", doubled, True, doubts=doubts), true) == 100
    assert covered_percent(Outcome("weighted", "B", moved, True, doubts=doubts | {"d": 0.01}), true) == 75
    assert covered_percent(Outcome("tokens", "B", doubled, True), true) is None


@pytest.mark.parametrize("grade", ["A", "B"])
@pytest.mark.parametrize("cell", [AT_4, AT_28], ids=lambda cell: str(cell.concurrency))
def test_no_tenant_pays_much_more_or_less_than_its_own(cell: Scenario, grade: str) -> None:
    """
    The kinds of requests are tenants of their own, so a bias against a kind of work would show.
    """
    scene = play(cell)

    assert tenant_bias_percent(scene, of(scene, "weighted", grade).joules) < TENANT_HELD


def test_plain_token_share_is_wrong_by_what_research_says() -> None:
    """
    About 14 % at concurrency 4 and 28 % in a full batch, or the bench would be too easy.
    """
    assert wape(play(WHOLE_4), "tokens") > TOKENS_AT_4
    assert wape(play(AT_28), "tokens") > TOKENS_AT_28


def test_told_the_facts_in_time_the_rule_needs_no_log() -> None:
    """
    With cached tokens and queue time known at the first token, B is nearly as good as A.
    """
    scene = play(AT_4)
    told = Told(cached_at_first=True, queue_at_first=True)
    outcome, _ = by_group(scene.run, scene.readings, scene.weights, "weighted", 1, told)

    assert wape_percent(outcome.joules, scene.truth) < 3.5


def test_the_step_log_and_an_exact_sensor_leave_only_the_weights() -> None:
    """
    With the physics' own weights, an exact counter and every step known, what is left is below 1 %.
    """
    scene = play(replace(AT_4, board="exact"))
    assert scene.weights == roofline_prior(LLAMA_8B)

    outcome = closed_form(scene.run, scene.readings, true_weights(scene))

    assert wape_percent(outcome.joules, scene.truth) < 1.0


def test_another_mix_physics_and_seed_is_one_line() -> None:
    """
    A reviewer's own cells: every option with commas is combined with the others.
    """
    line = "--mix chat=0.3,long=0.3,agent=0.4 --physics own,roofline --concurrency 4,28 --seed 7 --draft 2"
    cells = chosen(parsed(line.split()))

    assert cells is not None
    assert [(cell.physics, cell.concurrency) for cell in cells] == [
        *(("own", 4.0), ("own", 28.0)),
        *(("roofline", 4.0), ("roofline", 28.0)),
    ]
    assert {(cell.demand.mix, cell.draft, cell.seed) for cell in cells} == {
        ((("chat", 0.3), ("long", 0.3), ("agent", 0.4)), 2, 7)
    }


def test_the_report_has_a_row_for_each_policy_and_seed(tmp_path, capsys) -> None:
    """
    The JSON has the keys that others read.
    """
    path = tmp_path / "rows.json"

    assert main(f"--only chat --concurrency 2 --shorter 16 --learning-s 5 --seeds 5,6 --json {path}".split()) == 0
    assert '"policy": "weighted"' in path.read_text()
    for key in ("policy", "grade", "concurrency", "physics", "wape_percent", "covered_percent"):
        assert path.read_text().count(f'"{key}"') == 2 * 9
    assert "mean / worst of 2 seeds" in capsys.readouterr().out


def test_the_whole_bench_covers_what_is_named() -> None:
    """
    Every workload, physics and sensor is in it, and every cell once.
    """
    cells = standard(1, quick=False)

    assert len(set(cells)) == len(cells)
    assert {cell.label for cell in cells} >= {"mixed-unseen-30", "mixed-draft-3", "mixed-blocks-2000", "mooncake"}
    assert {cell.board for cell in cells} == {"exact", "part-time", "slow", "late", "averaged"}
    assert standard(1, quick=True)


@pytest.mark.parametrize("log", [False, True], ids=["B", "A"])
def test_settlement_is_cheap_and_grows_with_the_requests_only(log: bool) -> None:
    """
    CPU time of the group's and the settlement's own calls, as a fraction of one core.
    """
    few, many = (measured(rate, log=log, seconds=1.0).core(SETTLEMENT) for rate in (150, 600))

    assert many < 0.6 * COST_HELD
    assert many / few < 4 * 1.7


COST_HELD = 2.5 * BAR
"""At 1,000 requests per second. The bar is BAR on a core of its own; this allows for a machine that others use, too."""
