"""Fits factors on predicted joules to a batch of measured stretches: ridge in a trust region, and what it can tell.

A row holds x_k / E: predicted joules of each term over measured ones, so that the sought factors make it sum to 1 and
all stretches weigh alike. Minimised are the squares of what is missed over the noise, plus lambda_k * (m_k/g - 1)^2
with g the one factor on everything that fits best; only m_k/g decides who pays. A term that the rows do not tell apart
from the others stays at g: half or more of its prior's variance is then left. Stiffness and trust region are the
online fit's (`regression`, `ridge`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from proxy.accounting.ridge import NARROWEST, WIDEST, dot, inverse, solve_near
from proxy.accounting.terms import TERMS

STIFFNESS = (10.0, 20.0, 5.0, 40.0, 5.0, 5.0)
"""As in `regression`, but a designed load tells decode and context apart."""
FIRST_NOISE, LEAST_NOISE, MOST_NOISE = 0.03, 0.005, 0.3
"""Relative, of a stretch: before it is known, and within which the residuals may say it."""
TOLD = 0.5
"""Of the prior's variance; what the load leaves of it must be less for a weight to count as told."""
HELD = 1e12
"""Stiffness of a weight that stays at the scale."""
SWEEPS = 2000
MISSED = 9.0
"""Squares over the noise that a term must explain to stand in for the prior: three standard deviations."""
FREE, ANYWHERE = 1e-6, (1e-3, 1e6)
"""Stiffness and region of a fit that the prior does not hold."""
Rows = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Factors on the prior's terms.

    errors: standard deviations of those that were told. limited: which are at the edge of the region. noise: relative,
    of one stretch. held: terms that were not told. free: without the prior.
    """

    factors: list[float]
    errors: dict[int, float]
    limited: frozenset[int]
    noise: float
    held: frozenset[int]
    free: bool


class Design:
    """Rows of x_k / E, one for each stretch; the sought factors make each row sum to 1."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.used = [i for i in range(len(TERMS)) if any(row[i] > 0 for row in rows)]
        whole = [sum(row) for row in rows]
        self.scale = sum(whole) / sum(value**2 for value in whole)
        self._square = [[sum(row[i] * row[j] for row in rows) for j in self.used] for i in self.used]
        self._cross = [sum(row[i] for row in rows) for i in self.used]

    def factors(self, held: frozenset[int], noise: float, *, free: bool = False) -> list[float]:
        """Of all terms; those held, and those that never ran, are the scale. free: the prior holds nothing else."""
        found = solve_near(
            [[value / noise**2 for value in row] for row in self._square],
            [value / noise**2 for value in self._cross],
            [HELD if i in held else FREE if free else STIFFNESS[i] for i in self.used],
            [self.scale] * len(self.used),
            start=[self.scale] * len(self.used),
            sweeps=SWEEPS,
            region=ANYWHERE if free else (NARROWEST, WIDEST),
        )
        by_term = dict(zip(self.used, found, strict=True))
        return [self.scale if i in held else by_term.get(i, self.scale) for i in range(len(TERMS))]

    def noise(self, factors: Sequence[float]) -> float:
        """Relative, of one stretch, by what these factors leave."""
        free = max(1, len(self.rows) - len(self.used))
        return min(MOST_NOISE, max(LEAST_NOISE, sqrt(self.missed(factors) / free)))

    def missed(self, factors: Sequence[float]) -> float:
        """Sum of squared relative errors."""
        return sum((dot(factors, row) - 1) ** 2 for row in self.rows)

    def errors(
        self, held: frozenset[int], noise: float, *, stiffness: float | None = None
    ) -> dict[int, tuple[float, float]]:
        """Of each term that is not held: standard deviation of its ratio, after and before the load was seen.

        stiffness: of all the others; None: each its own.
        A ratio is to the mean of all, each by its part in the energy: the scale as such tells nothing of who pays, so
        it is left free, and the ratios' common part is taken out.
        """
        free = [i for i in self.used if i not in held]
        columns = [[self.scale * row[i] for row in self.rows] for i in free]
        columns.append([self.scale * sum(row) for row in self.rows])
        matrix = [[dot(left, right) / noise**2 for right in columns] for left in columns]
        for place, i in enumerate(free):
            matrix[place][place] += STIFFNESS[i] if stiffness is None else stiffness
        spread = inverse(matrix)
        parts = [sum(column) / len(self.rows) for column in columns[:-1]]
        errors = {}
        for place, i in enumerate(free):
            contrast = [float(other == place) - part for other, part in enumerate(parts)]
            after = dot(contrast, [dot(row[:-1], contrast) for row in spread[:-1]])
            before = sum(c**2 / STIFFNESS[j] for c, j in zip(contrast, free, strict=True))
            errors[i] = sqrt(max(0.0, after)), sqrt(before)
        return errors

    def untold(self, noise: float) -> frozenset[int]:
        """The terms that the load does not tell apart, the least known first: without it another may be known."""
        held: frozenset[int] = frozenset()
        while len(held) < len(self.used):
            left = {i: (after / before) ** 2 for i, (after, before) in self.errors(held, noise).items()}
            least = max(left, key=lambda i: left[i])
            if left[least] < TOLD:
                break
            held |= {least}
        return held


def fitted(rows: Rows) -> Fitted:
    """The fit inside the trust region around the prior."""
    design = Design(rows)
    noise = design.noise(design.factors(frozenset(), FIRST_NOISE))
    held = design.untold(noise)
    found = design.factors(held, noise)
    errors = {} if len(held) == len(design.used) else design.errors(held, noise)
    edges = {i for i in errors if not NARROWEST * 1.001 < found[i] / design.scale < WIDEST * 0.999}
    told = {i: after * design.scale for i, (after, _) in errors.items()}
    return Fitted(found, told, frozenset(edges), noise, held, free=False)


def fitted_freely(rows: Rows) -> Fitted:
    """What the rows say by themselves; a term that they can do without is the scale, as the prior has it."""
    design = Design(rows)
    held: frozenset[int] = frozenset()
    found = design.factors(held, FIRST_NOISE, free=True)
    noise = design.noise(found)
    while len(held) < len(design.used):
        without = {i: design.factors(held | {i}, FIRST_NOISE, free=True) for i in design.used if i not in held}
        least = min(without, key=lambda i: design.missed(without[i]))
        if design.missed(without[least]) - design.missed(found) > MISSED * noise**2:
            break
        held, found = held | {least}, without[least]
    around = Design([[x * m for x, m in zip(row, found, strict=True)] for row in rows])
    errors = {i: after * found[i] for i, (after, _) in around.errors(held, noise, stiffness=FREE).items()}
    edges = frozenset(i for i in errors if found[i] < 2 * ANYWHERE[0] * design.scale)
    return Fitted(found, errors, edges, noise, held, free=True)


def held_out(rows: Rows, repeats: Sequence[int], fit: Fitted) -> tuple[float, float]:
    """Mean absolute relative error on each repeat by factors from the others; and by the prior, scaled on the others.

    Which terms are told is not asked again: half of a short load might not tell what all of it does.
    """
    missed, plain = [], []
    for repeat in sorted(set(repeats)):
        known = Design([row for row, one in zip(rows, repeats, strict=True) if one != repeat])
        factors = known.factors(fit.held, fit.noise, free=fit.free)
        for row, one in zip(rows, repeats, strict=True):
            if one == repeat:
                missed.append(abs(dot(factors, row) - 1))
                plain.append(abs(known.scale * sum(row) - 1))
    return sum(missed) / len(missed), sum(plain) / len(plain)
