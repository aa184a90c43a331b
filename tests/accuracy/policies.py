"""All ways to divide the same readings: the proxy's own policies, its rule on a step log, and the whole window.

`weighted` B and the plain policies run the real Group. `weighted` A is the rule applied step by step with the
prior's weights, split over the counter's windows by overlap and handed out by the accounting's own `apportion`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.accounting.attribution import Policy, apportion, idle_energy
from proxy.accounting.group import Group
from proxy.accounting.idle import IdlePower
from proxy.accounting.samples import Sample, Timeline, Window
from proxy.accounting.weights import Weights
from tests.accuracy.engine import Load, Run
from tests.accuracy.view import PLAIN, Told, View, fresh_group, ns


@dataclass(frozen=True, slots=True)
class Outcome:
    """Joules by row as a policy sees them. conserved: charges and other accounts add up to the counter, as integers."""

    policy: str
    grade: str | None
    joules: dict[str, float]
    conserved: bool


def by_group(
    run: Run, readings: Sequence[Sample], weights: Weights, policy: Policy, seed: int, told: Told = PLAIN
) -> tuple[Outcome, Group]:
    """The real accounting, fed as the relay, the sampler and the scraper would."""
    view = View(run, list(readings), told, policy, seed)
    group = fresh_group(weights, policy)
    view.play(group)
    accounts = group.meters["gpu"].accounts
    charged = sum(bill.energy_uj for bill in view.bills.values())
    moved = sum(window.energy for window in windows(readings))
    parts = charged + accounts.idle + accounts.unattributed + accounts.unmeasured
    conserved = parts == moved and charged == accounts.requests and not group.bills
    return Outcome(policy, "B", {row: b.energy_uj / 1e6 for row, b in view.bills.items()}, conserved), group


def by_step_log(run: Run, readings: Sequence[Sample], weights: Weights) -> Outcome:
    """Grade A: every step known, its parts priced by the prior, its window's energy measured."""
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
    visible = {job.row: paid[job.row] / 1e6 for job in run.jobs if job.seen}
    conserved = sum(paid.values()) + other == sum(window.energy for window in found)
    return Outcome("weighted", "A", visible, conserved)


def _priced(loads: Sequence[Load], weights: Weights) -> list[float]:
    w, n = weights, len(loads)
    return [w.prefill * x.p + w.attention * x.pc + w.decode * x.d + w.context * x.c + w.step / n for x in loads]


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


def plain(run: Run, readings: Sequence[Sample], weights: Weights, seed: int) -> list[Outcome]:
    """The policies to compare with, all on the real Group."""
    names: tuple[Policy, ...] = ("tokens", "output-tokens", "time")
    return [by_group(run, readings, weights, name, seed)[0] for name in names]
