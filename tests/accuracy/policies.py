"""All ways to divide the same readings: the proxy's own policies and grades, a reference, and the whole window.

`weighted` A and B and the plain policies run the real Group, with and without the engine's step log. `closed-form` is
the rule written down once more, on steps that are known to the last digit: priced with the prior's weights, split
over the counter's windows by overlap, handed out by the accounting's own `apportion`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from proxy.accounting.attribution import Policy, apportion, idle_energy
from proxy.accounting.group import Group
from proxy.accounting.idle import IdlePower
from proxy.accounting.samples import Sample, Timeline, Window
from proxy.accounting.weights import Weights
from tests.accuracy.engine import Load, Run
from tests.accuracy.physics import Saturating
from tests.accuracy.shapley import expected
from tests.accuracy.view import PLAIN, Told, View, fresh_group, ns


@dataclass(frozen=True, slots=True)
class Outcome:
    """Joules by row as a policy sees them. conserved: charges and other accounts add up to the counter, as integers.

    settled_after_s: the slowest figure came so long after its request's end. doubts: relative standard deviation by
    row, of those that have one; None where none is stated, or one about another rule than the truth's.
    """

    policy: str
    grade: str | None
    joules: dict[str, float]
    conserved: bool
    settled_after_s: float | None = None
    doubts: dict[str, float] | None = None


def by_group(
    run: Run,
    readings: Sequence[Sample],
    weights: Weights,
    policy: Policy,
    seed: int,
    told: Told = PLAIN,
    meters: str = "B",
) -> tuple[Outcome, Group]:
    """The real accounting, fed as the relay, the sampler, the scraper and the step log would. meters: their grade."""
    view = View(run, list(readings), told, policy, seed)
    group = fresh_group(weights, policy, meters)
    view.play(group)
    accounts = group.meters["gpu"].accounts
    charged = sum(bill.energy_uj for bill in view.bills.values())
    moved = sum(window.energy for window in windows(readings))
    parts = charged + accounts.idle + accounts.unattributed + accounts.unmeasured
    conserved = parts == moved and charged == accounts.requests and not group.bills
    grade = "A" if told.log else meters
    joules = {row: bill.energy_uj / 1e6 for row, bill in view.bills.items()}
    slowest = max(view.settled_after_s.values(), default=None)
    stated = {row: bill.relative_uncertainty() for row, bill in view.bills.items()}
    doubts = {row: doubt for row, doubt in stated.items() if doubt is not None}
    return Outcome(policy, grade, joules, conserved, slowest, doubts if policy == "weighted" else None), group


def closed_form(run: Run, readings: Sequence[Sample], weights: Weights) -> Outcome:
    """Every step known, its parts priced by the weights, its window's energy measured."""
    found = windows(readings)
    worth = [_priced(step.loads, weights) for step in run.steps]
    paid: dict[str, int] = defaultdict(int)
    idle_power, other, first = IdlePower(), 0, 0
    for window in found:
        while first < len(run.steps) and ns(run.steps[first].end) <= window.start:
            first += 1
        shares, covered = _overlapping(run, worth, window, first)
        idle = idle_energy(window, covered, idle_power.watts)
        if covered:
            idle_power.worked_until(window.end)
        else:
            idle_power.learn(window)
        other += idle
        rows = sorted(shares)
        if rows:
            for row, energy in zip(rows, apportion(window.energy - idle, [shares[r] for r in rows]), strict=True):
                paid[row] += energy
        else:
            other += window.energy - idle
    visible = {job.row: paid[job.row] / 1e6 for job in run.jobs if job.seen}
    conserved = sum(paid.values()) + other == sum(window.energy for window in found)
    return Outcome("closed-form", "A", visible, conserved)


def _priced(loads: Sequence[Load], weights: Weights) -> list[float]:
    w, n = weights, len(loads)
    own = [w.prefill * x.p + w.attention * x.pc + w.decode * x.d + w.context * x.c + w.step / n for x in loads]
    if not w.experts:
        return own
    experts = expected(loads, Saturating(w.experts, 1 - w.touched))
    return [one + part for one, part in zip(own, experts, strict=True)]


def _overlapping(run: Run, worth: list[list[float]], window: Window, first: int) -> tuple[dict[str, float], int]:
    shares: dict[str, float] = defaultdict(float)
    covered = 0
    for index in range(first, len(run.steps)):
        step = run.steps[index]
        start, end = ns(step.start), ns(step.end)
        if start >= window.end:
            break
        inside = min(end, window.end) - max(start, window.start)
        covered += inside
        for load, joules in zip(step.loads, worth[index], strict=True):
            shares[load.job.row] += joules * inside / (end - start)
    return shares, covered


def whole_window(run: Run, readings: Sequence[Sample]) -> Outcome:
    """Each request is charged all that the counter moved between its sending and its end, as a meter around it says."""
    found = windows(readings)
    joules: dict[str, float] = {}
    for job in run.jobs:
        start, end, total = ns(job.sent), ns(job.ended), 0.0
        for window in found:
            inside = min(end, window.end) - max(start, window.start)
            if inside > 0:
                total += window.energy * inside / (window.end - window.start)
        joules[job.row] = total / 1e6
    visible = {job.row: joules[job.row] for job in run.jobs if job.seen}
    return Outcome("whole-window", None, visible, conserved=False)


def windows(readings: Sequence[Sample]) -> list[Window]:
    """What the accounting's own timeline makes of the readings."""
    timeline = Timeline("gpu")
    return [window for reading in readings if (window := timeline.accept(reading)) is not None]


def weighted(
    run: Run, readings: Sequence[Sample], weights: Callable[[bool], Weights], seed: int, told: Told, meters: str
) -> list[Outcome]:
    """The rule with the step log (which makes no difference to the grade where the meter is no counter) and without.

    weights: what the group begins with, by whether it hears the log.
    """
    logs = [True, False] if meters == "B" else [False]
    return [by_group(run, readings, weights(log), "weighted", seed, replace(told, log=log), meters)[0] for log in logs]


def plain(
    run: Run, readings: Sequence[Sample], weights: Weights, seed: int, told: Told, meters: str, *names: Policy
) -> list[Outcome]:
    """The policies to compare with, all on the real Group, without a step log."""
    return [by_group(run, readings, weights, name, seed, told, meters)[0] for name in names]
