"""The truth: what each sequence's work in each step is worth by Shapley's rule, scaled to the step's real energy.

Where the step is affine over all subsets of its sequences the value has a closed form: what one adds, plus an equal
part of the fixed cost. Where the rest saturates with the tokens (experts of a mixture) it is an integral over the
chance that the others are there, which Gauss and Legendre's rule gives to the last digits. Elsewhere it is the mean of
what one adds over random orders of arrival, each order used forwards and backwards (which cancels most of the noise).
A request is charged for all its sequences.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import cos, pi, prod

from tests.accuracy.engine import Load, Run, State, Step
from tests.accuracy.physics import Own, Saturating, Totals, total

ORDERS = 200
FEWEST_ORDERS = 16
BUDGET = 4_000_000
"""Evaluations per run. When steps times requests times ORDERS is more, all steps get fewer orders (not fewer steps):
the estimate stays unbiased, and its noise averages over the tens to hundreds of steps of a request."""
NODES = 32
"""Exact up to 64 sequences; beyond, the error is far below a microjoule because the integrand is smooth."""


def truth(run: Run, physics: Own, rng: random.Random, budget: int = BUDGET) -> dict[str, float]:
    """Joules of every request, by row; they add up to the energy of all steps."""
    paid: dict[str, float] = defaultdict(float)
    curved = {id(step) for step in run.steps if not _has_form(step, physics)}
    evaluations = sum(len(step.loads) for step in run.steps if id(step) in curved)
    orders = max(FEWEST_ORDERS, min(ORDERS, budget // max(1, evaluations)))
    for step in run.steps:
        values = _sampled(step, physics, orders, rng) if id(step) in curved else exact(step, physics)
        scale = step.joules / sum(values)
        for load, value in zip(step.loads, values, strict=True):
            paid[load.job.row] += value * scale
    return dict(paid)


def _has_form(step: Step, physics: Own) -> bool:
    if len(step.loads) == 1 or physics.affine(step.loads, step.state):
        return True
    return physics.saturating(step.loads, step.state) is not None


def exact(step: Step, physics: Own) -> list[float]:
    """Values of the sequences of a step that has a closed form or a part that saturates."""
    loads, state = step.loads, step.state
    if len(loads) == 1:
        return [physics.energy(total(loads), state)]
    empty = physics.energy(Totals(), state)
    alone = [physics.energy(total([load]), state) - empty for load in loads]
    part = physics.saturating(loads, state)
    if part is None:
        return [own + empty / len(loads) for own in alone]
    solo = [part.joules * (1 - part.kept ** (load.p + load.d)) for load in loads]
    together = expected(loads, part)
    return [a - s + t + empty / len(loads) for a, s, t in zip(alone, solo, together, strict=True)]


def expected(loads: Sequence[Load], part: Saturating) -> list[float]:
    """What each adds to the saturating part when each other is there with chance q, integrated over q."""
    missed = [part.kept ** (load.p + load.d) for load in loads]
    values = [0.0] * len(loads)
    for place, weight in gauss_legendre(NODES):
        factors = [1 - place * (1 - one) for one in missed]
        everybody = prod(factors)
        for index, (one, factor) in enumerate(zip(missed, factors, strict=True)):
            values[index] += weight * (1 - one) * everybody / factor
    return [part.joules * value for value in values]


@lru_cache
def gauss_legendre(nodes: int) -> tuple[tuple[float, float], ...]:
    """(place, weight) on [0, 1]: the roots of Legendre's polynomial by Newton's method."""
    found = []
    for number in range(nodes):
        x = cos(pi * (number + 0.75) / (nodes + 0.5))
        slope = 1.0
        for _ in range(50):
            low, high = 1.0, x
            for degree in range(2, nodes + 1):
                low, high = high, ((2 * degree - 1) * x * high - (degree - 1) * low) / degree
            slope = nodes * (x * high - low) / (x * x - 1)
            x -= high / slope
        found.append(((x + 1) / 2, 1 / ((1 - x * x) * slope * slope)))
    return tuple(found)


def _sampled(step: Step, physics: Own, orders: int, rng: random.Random) -> list[float]:
    state: State = step.state
    game: Callable[[Totals], float] = lambda x: physics.energy(x, state)  # noqa: E731
    values = [0.0] * len(step.loads)
    order = list(range(len(step.loads)))
    for _ in range(orders // 2):
        rng.shuffle(order)
        _arrive(order, step.loads, game, values)
        _arrive(order[::-1], step.loads, game, values)
    return values


def _arrive(order: Sequence[int], loads: Sequence[Load], game: Callable[[Totals], float], values: list[float]) -> None:
    p = pc = d = c = pl = before = 0.0
    for index in order:
        load = loads[index]
        p, pc, d, c = p + load.p, pc + load.pc, d + load.d, c + load.c
        pl += load.pc * load.pc / load.p if load.p else 0.0
        after = game(Totals(p, pc, d, c, pl))
        values[index] += after - before
        before = after
