"""The truth: what each request's work in each step is worth by Shapley's rule, scaled to the step's real energy.

Where the step is affine over all subsets of its requests the value has a closed form: what one adds, plus an equal
part of the fixed cost. Elsewhere it is the mean of what one adds over random orders of arrival, each order used
forwards and backwards (which cancels most of the noise).
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from tests.accuracy.engine import Load, Run, Step
from tests.accuracy.physics import Own, Totals, total

ORDERS = 200
FEWEST_ORDERS = 16
BUDGET = 4_000_000
"""Evaluations per run. When steps times requests times ORDERS is more, all steps get fewer orders (not fewer steps):
the estimate stays unbiased, and its noise averages over the tens to hundreds of steps of a request."""


def truth(run: Run, physics: Own, rng: random.Random, budget: int = BUDGET) -> dict[str, float]:
    """Joules of every request, by row; they add up to the energy of all steps."""
    paid: dict[str, float] = defaultdict(float)
    curved = [step for step in run.steps if len(step.loads) > 1 and not physics.affine(step.loads, step.static_w)]
    marked = {id(step) for step in curved}
    evaluations = sum(len(step.loads) for step in curved)
    orders = max(FEWEST_ORDERS, min(ORDERS, budget // max(1, evaluations)))
    for step in run.steps:
        values = _sampled(step, physics, orders, rng) if id(step) in marked else _closed(step, physics)
        scale = step.joules / sum(values)
        for load, value in zip(step.loads, values, strict=True):
            paid[load.job.row] += value * scale
    return dict(paid)


def _closed(step: Step, physics: Own) -> list[float]:
    loads = step.loads
    empty = physics.energy(Totals(0, 0, 0, 0), step.static_w)
    alone = [physics.energy(total([load]), step.static_w) - empty for load in loads]
    if len(loads) == 1:
        return [alone[0] + empty]
    return [own + empty / len(loads) for own in alone]


def _sampled(step: Step, physics: Own, orders: int, rng: random.Random) -> list[float]:
    game: Callable[[Totals], float] = lambda x: physics.energy(x, step.static_w)  # noqa: E731
    values = [0.0] * len(step.loads)
    order = list(range(len(step.loads)))
    for _ in range(orders // 2):
        rng.shuffle(order)
        _arrive(order, step.loads, game, values)
        _arrive(order[::-1], step.loads, game, values)
    return values


def _arrive(order: Sequence[int], loads: Sequence[Load], game: Callable[[Totals], float], values: list[float]) -> None:
    p = pc = d = c = before = 0.0
    for index in order:
        load = loads[index]
        p, pc, d, c = p + load.p, pc + load.pc, d + load.d, c + load.c
        after = game(Totals(p, pc, d, c))
        values[index] += after - before
        before = after
