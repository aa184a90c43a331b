"""Learns from the meter what one unit of work costs: an online ridge regression towards the roofline prior.

Energy of a stretch of time is linear in its work: E = sum_k theta_k * x_k. Fitted are the factors m_k by which each
weight differs from its prior, all measured against a common scale g (only ratios decide who pays): minimise

    sum (E - sum_k m_k * theta0_k * x_k)^2 / (noise^2 * E_typical * E)  +  sum_k lambda_k * (m_k/g - 1)^2

with m_k/g kept between 1/3 and 3 (trust region), old stretches forgotten within an hour. Every stretch is predicted
before it is learnt from; the fit is used only while those predictions are better than the prior's. Where the step log
tells what ran while the sensor looked (`step_worth`), each reading is such a stretch, with a fraction of the noise.
Source: research on calibration of weights (6.5); constants from tests/accuracy.
"""

from dataclasses import dataclass, replace
from math import exp, sqrt

from proxy.accounting.activity import Work
from proxy.accounting.ridge import solve
from proxy.accounting.units import Nanoseconds, joules, seconds
from proxy.accounting.weights import Weights

TERMS = ("step", "experts", "prefill", "attention", "decode", "context")
"""Weights that are fitted, in the order of the regression's unknowns."""
STIFFNESS = (10.0, 20.0, 5.0, 40.0, 5.0, 20.0)
"""How much each is held to its prior: attention hardly shows against prefill, experts against the fixed part, decode
against context; a step and a prompt token show well in any traffic."""
NOISE = 0.25
"""Relative, of a stretch of 0.1 s seen by a part-time sensor."""
LEAST_NOISE = 0.05
"""Of a reading of which it is known when the sensor looked: what the prediction gets wrong is not chance alone."""
SLOW = 1 - 1 / 1500
"""What such a reading leaves of the level: some minutes count, for as long as a board takes to get warm."""
MEMORY_S = 3600.0
STRETCH_S = 0.5
"""Work is gathered so long before it counts as one observation."""
BLOCK_S = 5.0
"""Predictions are judged over this long, so that the sensor's noise does not drown what the weights get wrong."""
BLOCKS_REMEMBERED = 24.0
FEWEST_BLOCKS = 2
LOOKS_REMEMBERED = 1200.0
FEWEST_LOOKS = 50
"""The same for single readings of which it is known when the sensor looked: those are judged one by one."""
SWEEPS = 12
TRUSTED_ERROR = 0.06
"""Weights whose predictions of blocks are nearer than this are right enough to even out windows."""


@dataclass(slots=True)
class Judged:
    """Fading mean square of relative errors of one set of weights, over blocks or looks.

    remembered: how many count. fewest: before anything is said.
    """

    remembered: float = BLOCKS_REMEMBERED
    fewest: int = FEWEST_BLOCKS
    square: float = 0.0
    weight: float = 0.0

    def add(self, measured: float, predicted: float) -> None:
        """Joules as measured and as predicted."""
        fade = exp(-1 / self.remembered)
        self.square = fade * self.square + (predicted / measured - 1) ** 2
        self.weight = fade * self.weight + 1

    @property
    def error(self) -> float | None:
        """Root mean square, relative; None until there were enough."""
        return sqrt(self.square / self.weight) if self.weight >= self.fewest * 0.9 else None


@dataclass(slots=True)
class Level:
    """Measured over predicted joules, as a ratio of fading sums."""

    measured: float = 0.0
    predicted: float = 0.0

    def add(self, measured: float, predicted: float) -> float:
        """Takes in a reading; the level with it."""
        self.measured = SLOW * self.measured + measured
        self.predicted = SLOW * self.predicted + predicted
        return self.measured / self.predicted


def _looks() -> Judged:
    return Judged(LOOKS_REMEMBERED, FEWEST_LOOKS)


@dataclass(slots=True)
class Rivals:
    """The fitted weights and the prior at its best scale, judged on the same."""

    fitted: Judged
    plain: Judged

    def add(self, measured: float, fitted: float, plain: float) -> None:
        """Joules as measured, and as each predicted them before."""
        self.fitted.add(measured, fitted)
        self.plain.add(measured, plain)

    @property
    def better(self) -> bool | None:
        """Whether the fitted weights are; None while there is too little to say so."""
        fitted, plain = self.fitted.error, self.plain.error
        return None if fitted is None or plain is None else fitted <= plain


def terms_of(weights: Weights, work: Work) -> tuple[float, ...]:
    """Predicted joules of each of TERMS."""
    return (
        weights.step * work.steps,
        weights.experts * work.experts,
        weights.prefill * work.prefill,
        weights.attention * work.prefill_context,
        weights.decode * work.decode,
        weights.context * work.decode_context,
    )


class Regression:
    """The normal equations, and their solution inside the trust region by coordinate descent."""

    def __init__(self) -> None:
        size = len(TERMS)
        self._square = [[0.0] * size for _ in range(size)]
        self._cross = [0.0] * size
        self._energy = self._predicted = self._stretches = 0.0
        self.factors = [1.0] * size
        self.scale = 1.0

    def add(self, x: tuple[float, ...], energy_j: float, stretch_s: float, noise: float) -> None:
        """One stretch: predicted joules by term under the prior, and what the meter said, with noise as in 0.1 s."""
        fade = exp(-stretch_s / MEMORY_S)
        self._energy = fade * self._energy + energy_j
        self._predicted = fade * self._predicted + sum(x)
        self._stretches = fade * self._stretches + stretch_s
        self.scale = self._energy / self._predicted
        typical = self._energy / self._stretches * 0.1
        certainty = 1 / (noise**2 * typical * self.scale * max(sum(x), 1e-9))
        for i, left in enumerate(x):
            row = self._square[i]
            self._cross[i] = fade * self._cross[i] + certainty * left * energy_j
            for j, right in enumerate(x):
                row[j] = fade * row[j] + certainty * left * right

    def solve(self) -> None:
        """Moves the factors to the minimum; a few sweeps from where they were are enough."""
        self.factors = solve(self._square, self._cross, STIFFNESS, scale=self.scale, start=self.factors, sweeps=SWEEPS)


class Fit:
    """One server's weights as they are learnt.

    weights: what to predict with. error: relative, of predicting blocks of 5 s ahead; None before there were any.
    """

    def __init__(self, prior: Weights) -> None:
        self.prior = prior
        self.weights = prior
        self._regression = Regression()
        self._blocks = Rivals(Judged(), Judged())
        self._looks = Rivals(_looks(), _looks())
        self._pending = [0.0] * len(TERMS)
        self._pending_j = self._pending_s = self._unsolved_s = 0.0
        self._level = Level()
        self._block_j = self._block_fitted = self._block_plain = self._block_s = 0.0

    def observe(self, work: Work, active_uj: int, span_ns: Nanoseconds) -> None:
        """Takes in a divided window: all its work and its active energy."""
        for index, term in enumerate(terms_of(self.prior, work)):
            self._pending[index] += term
        self._pending_j += joules(active_uj)
        self._pending_s += seconds(span_ns)
        if self._pending_s >= STRETCH_S:
            self._learn(tuple(self._pending), self._pending_j, self._pending_s, NOISE)
            self._pending = [0.0] * len(TERMS)
            self._pending_j = self._pending_s = 0.0

    def looked(self, work: Work, energy_uj: int, span_ns: Nanoseconds, noise: float) -> None:
        """Takes in one reading and the work that it is known to stand for. noise: relative."""
        x, energy_j = terms_of(self.prior, work), joules(energy_uj)
        if energy_j > 0 and sum(x) > 0:
            # Against the level of late: it drifts with temperature and clocks, and what grows as slowly, such as
            # contexts, would be taken for the cause.
            energy_j /= self._level.add(energy_j, sum(x))
            self._looks.add(energy_j, *self._predicted(x))
        self._learn(x, energy_j, seconds(span_ns), max(LEAST_NOISE, noise))

    def _predicted(self, x: tuple[float, ...]) -> tuple[float, float]:
        """Joules by the factors as they are, and by the scale alone."""
        known = self._regression
        return sum(m * term for m, term in zip(known.factors, x, strict=True)), known.scale * sum(x)

    def _learn(self, x: tuple[float, ...], energy_j: float, stretch_s: float, noise: float) -> None:
        if energy_j <= 0 or sum(x) <= 0:
            return
        known, (fitted, plain) = self._regression, self._predicted(x)
        self._block_j += energy_j
        self._block_s += stretch_s
        self._block_fitted += fitted
        self._block_plain += plain
        known.add(x, energy_j, stretch_s, noise)
        self._unsolved_s += stretch_s
        if self._unsolved_s >= STRETCH_S:
            self._unsolved_s = 0.0
            known.solve()
        if self._block_s >= BLOCK_S:
            self._judge()

    def _judge(self) -> None:
        self._blocks.add(self._block_j, self._block_fitted, self._block_plain)
        self._block_j = self._block_fitted = self._block_plain = self._block_s = 0.0
        better = self._blocks.better if self._looks.better is None else self._looks.better
        self.weights = self._current() if better else self.prior

    def _current(self) -> Weights:
        known = self._regression
        factors = dict(zip(TERMS, (m / known.scale for m in known.factors), strict=True))
        return replace(self.prior, **{name: getattr(self.prior, name) * by for name, by in factors.items()})

    @property
    def in_use(self) -> bool:
        """Whether the learnt weights are, not the prior's."""
        return self.weights is not self.prior

    @property
    def error(self) -> float | None:
        """Of the weights in use."""
        return (self._blocks.fitted if self.in_use else self._blocks.plain).error

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the weights: so far unjudged, or near to what was measured."""
        return self.error is None or self.error <= TRUSTED_ERROR
