"""Learns from the meter what one unit of work costs: an online ridge regression towards the roofline prior.

Energy of a stretch of time is linear in its work: E = sum_k theta_k * x_k. Fitted are the factors m_k by which each
weight differs from its prior, all measured against a common scale g (only ratios decide who pays): minimise

    sum (E - sum_k m_k * theta0_k * x_k)^2 / (noise^2 * E_typical * E)  +  sum_k lambda_k * (m_k/g - 1)^2

with m_k/g kept between 1/3 and 3 (trust region), old stretches forgotten within an hour. Every stretch is predicted
before it is learnt from; the fit is used only while those predictions are better than the prior's. Where the step log
tells what ran while the sensor looked (`step_worth`), each reading is such a stretch, with a fraction of the noise.
Source: research on calibration of weights (6.5); constants from tests/accuracy.
"""

from collections import deque
from dataclasses import replace
from math import exp
from typing import NamedTuple

from proxy.accounting.activity import Work
from proxy.accounting.ridge import solve
from proxy.accounting.rivals import Judged, Level, Rivals, of_looks
from proxy.accounting.units import Nanoseconds, joules, seconds
from proxy.accounting.weights import Weights

TERMS = ("step", "experts", "prefill", "attention", "decode", "context")
"""Weights that are fitted, in the order of the regression's unknowns."""
STIFFNESS = (10.0, 20.0, 5.0, 20.0, 5.0, 10.0)
"""How much each is held to its prior: attention hardly shows against prefill, experts against the fixed part, decode
against context; a step and a prompt token show well in any traffic."""
NOISE = 0.3
"""Relative, of 0.1 s seen by a part-time sensor, where TOGETHER_S counts each reading three times."""
MEASURED = 25.0
"""By so much more a prior is held that a meter has told: learnt weights are about five times as near as a roofline's.
Without it a minute of a part-time sensor moves them away again: on our bench (drift, seed 1, grade B at 4) to a bias of
1.5 % with 4 times, instead of 1.0."""
TOGETHER_S = 0.25
"""Readings are learnt from together until they last so long, again with each that is added: they have a delay of
their own, so that work near the end of one is measured in the next. On our bench (six physics, seeds 1, 5, 7 and 8, at
4 and 28, grade B; this was chosen on them) five minutes of learning so leave weights that misplace 1.05 % of the worst
tenant's energy in the mean; learning from readings one by one 1.1, from whole seconds 1.3: 3.2 instead of
1.95 with a clock that follows the load. The best single weights misplace 0.7."""
LEAST_NOISE = 0.05
"""Of a reading of which it is known when the sensor looked: what the prediction gets wrong is not chance alone."""
MEMORY_S = 3600.0
"""Of readings that are learnt from one by one; of those learnt from together a third."""
SOLVED_S = 0.5
"""The weights follow what was learnt this often."""
BLOCK_S = 5.0
"""Predictions are judged over this long, so that the sensor's noise does not drown what the weights get wrong."""
SWEEPS = 12
TRUSTED_ERROR = 0.06
"""Weights whose predictions of blocks are nearer than this are right enough to even out windows."""


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


class Stretch(NamedTuple):
    """Predicted joules by term, measured joules, seconds."""

    x: tuple[float, ...]
    energy_j: float
    seconds: float


class Sliding:
    """The latest stretches in a row, as few as last TOGETHER_S."""

    def __init__(self) -> None:
        self._held: deque[Stretch] = deque()
        self._seconds = 0.0

    def add(self, stretch: Stretch) -> Stretch | None:
        """The sum of them with this one; None while they are shorter than that."""
        held = self._held
        held.append(stretch)
        self._seconds += stretch.seconds
        while self._seconds - held[0].seconds >= TOGETHER_S:
            self._seconds -= held.popleft().seconds
        if self._seconds < TOGETHER_S:
            return None
        terms, energies, lengths = zip(*held, strict=True)
        return Stretch(tuple(map(sum, zip(*terms, strict=True))), sum(energies), sum(lengths))


class Regression:
    """The normal equations, and their solution inside the trust region by coordinate descent.

    firmness: multiplies what holds the factors to the prior.
    """

    def __init__(self, firmness: float = 1.0) -> None:
        self._firmness = firmness
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
        held = [self._firmness * one for one in STIFFNESS]
        self.factors = solve(self._square, self._cross, held, scale=self.scale, start=self.factors, sweeps=SWEEPS)


class Fit:
    """One server's weights as they are learnt.

    weights: what to predict with. error: relative, of predicting blocks of 5 s ahead; None before there were any.
    """

    def __init__(self, prior: Weights) -> None:
        self.prior = prior
        self.weights = prior
        self._regression = Regression(MEASURED if prior.measured else 1.0)
        self._blocks = Rivals(Judged(), Judged())
        self._looks = Rivals(of_looks(), of_looks())
        self._unsolved_s = SOLVED_S
        self._recent = Sliding()
        self._level = Level()
        self._block_j = self._block_fitted = self._block_plain = self._block_s = 0.0

    def observe(self, work: Work, active_uj: int, span_ns: Nanoseconds) -> None:
        """Takes in a divided window: all its work and its active energy."""
        stretch = Stretch(terms_of(self.prior, work), joules(active_uj), seconds(span_ns))
        self._foresee(stretch)
        together = self._recent.add(stretch)
        if together is not None:
            self._learn(together, NOISE, stretch.seconds)

    def looked(self, work: Work, energy_uj: int, span_ns: Nanoseconds, noise: float) -> None:
        """Takes in one reading and the work that it is known to stand for. noise: relative."""
        x, energy_j = terms_of(self.prior, work), joules(energy_uj)
        if energy_j > 0 and sum(x) > 0:
            # Against the level of late: it drifts with temperature and clocks, and what grows as slowly, such as
            # contexts, would be taken for the cause.
            energy_j /= self._level.add(energy_j, sum(x))
            self._looks.add(energy_j, *self._predicted(x))
        stretch = Stretch(x, energy_j, seconds(span_ns))
        self._foresee(stretch)
        self._learn(stretch, max(LEAST_NOISE, noise), stretch.seconds)

    def _predicted(self, x: tuple[float, ...]) -> tuple[float, float]:
        """Joules by the factors as they are, and by the scale alone."""
        known = self._regression
        return sum(m * term for m, term in zip(known.factors, x, strict=True)), known.scale * sum(x)

    def _foresee(self, stretch: Stretch) -> None:
        """Compares a stretch that has not been learnt from with what was predicted."""
        if stretch.energy_j <= 0 or sum(stretch.x) <= 0:
            return
        fitted, plain = self._predicted(stretch.x)
        self._block_j += stretch.energy_j
        self._block_s += stretch.seconds
        self._block_fitted += fitted
        self._block_plain += plain
        if self._block_s >= BLOCK_S:
            self._judge()

    def _learn(self, stretch: Stretch, noise: float, new_s: float) -> None:
        """new_s: so much of it had not been learnt from."""
        if stretch.energy_j <= 0 or sum(stretch.x) <= 0:
            return
        self._regression.add(*stretch, noise)
        self._unsolved_s += new_s
        if self._unsolved_s >= SOLVED_S:
            self._unsolved_s = 0.0
            self._regression.solve()

    def _judge(self) -> None:
        self._regression.solve()  # against the scale as it is
        self._blocks.add(self._block_j, self._block_fitted, self._block_plain)
        self._block_j = self._block_fitted = self._block_plain = self._block_s = 0.0
        better = self._blocks.better if self._looks.better is None else self._looks.better
        self.weights = self._current() if better else self.prior

    def _current(self) -> Weights:
        known = self._regression
        factors = dict(zip(TERMS, (m / known.scale for m in known.factors), strict=True))
        told = {name: getattr(self.prior, name) * by for name, by in factors.items()}
        return replace(self.prior, measured=True, **told)

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
