"""What a designed load says of the weights: factors on the roofline prior, how sure they are, and whether they help.

Each stretch of the load measures E = sum_k m_k * x_k with x_k the joules that the prior predicts of term k; `batch_fit`
finds the factors. Where the prior is wrong by more than the trust region allows (a tiny model's steps are mostly
overhead, which no roofline knows), the load's own least squares, non-negative and without a prior, take its place, if
that takes away a quarter of the error on repeats that were not fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxy.accounting.activity import Work
from proxy.accounting.batch_fit import Design, Fitted, fitted, fitted_freely, held_out
from proxy.accounting.ridge import dot
from proxy.accounting.terms import TERMS, terms_of
from proxy.accounting.weights import Weights

WRONG = 0.08
"""Held-out error from which the prior's region is doubted."""
BETTER = 0.75
"""Part of that error that the load's own figures must come below to take the prior's place."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A measured part of the load in which one kind of work ran steadily.

    work: of everybody. energy_j: without what idle time in it took. busy_s: time in which something ran.
    """

    phase: str
    repeat: int
    work: Work
    energy_j: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One weight. prior, fitted: joules per unit. ratio: of the two, over the common scale.

    error: standard deviation of the ratio; None where the load did not tell the weight, which then is the prior's,
    scaled.
    at_limit: the ratio is at the edge of the trust region, so the truth may lie beyond.
    """

    name: str
    prior: float
    fitted: float
    ratio: float
    error: float | None
    at_limit: bool


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The outcome. scale: the meter's joules over the prior's, as a whole. noise: relative, of one stretch.

    beyond: the prior was wrong by more than the trust region, and the load's own figures took its place.
    predicted_j: of each stretch, in their order. r2: of joules per engine step. held_out, held_out_prior: mean absolute
    relative error over repeats that were not fitted, by the fitted weights and by the prior with a scale of its own.
    """

    weights: Weights
    findings: tuple[Finding, ...]
    scale: float
    beyond: bool
    noise: float
    predicted_j: tuple[float, ...]
    r2: float
    held_out: float
    held_out_prior: float

    @property
    def told(self) -> tuple[str, ...]:
        """Names of the weights that the load told."""
        return tuple(one.name for one in self.findings if one.error is not None)

    @property
    def helps(self) -> bool:
        """Whether something was told that predicts better than the prior."""
        return bool(self.told) and self.held_out < self.held_out_prior


def calibrated(stretches: Sequence[Stretch], prior: Weights) -> Calibrated:
    """The outcome of a load of at least two repeats. Raises ValueError for fewer, or where nothing ran."""
    repeats = [one.repeat for one in stretches]
    terms = [terms_of(prior, one.work) for one in stretches]
    if len(set(repeats)) < 2 or min(map(sum, terms)) <= 0 or min(one.energy_j for one in stretches) <= 0:
        raise ValueError("a calibration needs two repeats, and energy and work in every stretch")
    rows = [[x / one.energy_j for x in row] for row, one in zip(terms, stretches, strict=True)]
    fit = fitted(rows)
    error, of_prior = held_out(rows, repeats, fit)
    if error > WRONG:
        own = fitted_freely(rows)
        own_error, _ = held_out(rows, repeats, own)
        if own_error < BETTER * error:
            fit, error = own, own_error
    design = Design(rows)
    predicted = tuple(dot(fit.factors, row) for row in terms)
    return Calibrated(
        weights=_timed(_scaled(prior, fit.factors), stretches),
        findings=tuple(_finding(prior, i, fit, design.scale) for i in design.used),
        scale=design.scale,
        beyond=fit.free,
        noise=fit.noise,
        predicted_j=predicted,
        r2=_r2(stretches, predicted),
        held_out=error,
        held_out_prior=of_prior,
    )


def _finding(prior: Weights, index: int, fit: Fitted, scale: float) -> Finding:
    before: float = getattr(prior, TERMS[index])
    factor = fit.factors[index]
    error = fit.errors.get(index)
    of_ratio = None if error is None else error / scale
    return Finding(TERMS[index], before, before * factor, factor / scale, of_ratio, index in fit.limited)


def _scaled(prior: Weights, factors: Sequence[float]) -> Weights:
    return replace(prior, **{name: getattr(prior, name) * m for name, m in zip(TERMS, factors, strict=True)})


def _timed(weights: Weights, stretches: Sequence[Stretch]) -> Weights:
    """The weights with the times of a step and of a position as measured: least squares of relative errors.

    Where these cannot be told apart both are the prior's times one factor.
    """
    rows = [(one.work.steps / one.busy_s, (one.work.prefill + one.work.decode) / one.busy_s) for one in stretches]
    ss, st, tt = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    s, t = (sum(row[i] for row in rows) for i in (0, 1))
    spread = ss * tt - st * st
    step_s, token_s = ((s * tt - t * st) / spread, (t * ss - s * st) / spread) if spread > 0 else (0.0, 0.0)
    if step_s <= 0 or token_s <= 0:
        whole = [step * weights.step_s + token * weights.token_s for step, token in rows]
        slower = sum(whole) / sum(value**2 for value in whole)
        step_s, token_s = weights.step_s * slower, weights.token_s * slower
    return replace(weights, step_s=step_s, token_s=token_s)


def _r2(stretches: Sequence[Stretch], predicted_j: Sequence[float]) -> float:
    """Of joules per engine step: stretches differ little in power, and steps by what they hold."""
    measured = [one.energy_j / one.work.steps for one in stretches]
    missed = sum(
        (joules / one.work.steps - seen) ** 2
        for joules, one, seen in zip(predicted_j, stretches, measured, strict=True)
    )
    mean = sum(measured) / len(measured)
    varied = sum((seen - mean) ** 2 for seen in measured)
    return 1 - missed / varied if varied > 0 else 0.0
