"""Learns from the meter what one unit of work costs: an online ridge regression towards the roofline prior.

Energy of a stretch of time is linear in its work: E = sum_k theta_k * x_k. Fitted are the factors m_k by which each
weight differs from its prior, all measured against a common scale g (only ratios decide who pays): minimise

    sum (E - sum_k m_k * theta0_k * x_k)^2 / (noise^2 * E_typical * E)  +  sum_k lambda_k * (m_k/(g*f_k) - 1)^2

with m_k/(g*f_k) kept between 1/3 and 3 (trust region), old stretches forgotten within an hour. f_k: what the prior is
multiplied with where work takes longer than a roofline says (`busy_time`). Every stretch is predicted before it is
learnt from; the fit is used only while those predictions are better than the prior's. Where it is known what ran while
the sensor looked (`step_worth`), each reading is such a stretch, with a fraction of the noise.
Source: research on calibration of weights (6.5); constants from tests/accuracy.
"""

from dataclasses import replace

from proxy.accounting.activity import Work
from proxy.accounting.busy_time import BusyTime
from proxy.accounting.regression import NOISE, Regression, Sliding, Stretch
from proxy.accounting.rivals import Judged, Rivals, of_looks
from proxy.accounting.terms import TERMS, cost_of, terms_of
from proxy.accounting.units import Nanoseconds, joules, seconds
from proxy.accounting.weights import Weights

MEASURED = 25.0
"""By so much more a prior is held that a meter has told: learnt weights are about five times as near as a roofline's.
Without it a minute of a part-time sensor moves them away again: on our bench (drift, seed 1, grade B at 4) to a bias of
1.5 % with 4 times, instead of 1.0."""
LEAST_NOISE = 0.05
"""Of a reading of which it is known when the sensor looked: what the prediction gets wrong is not chance alone."""
JUDGING_NOISE = 0.1
"""Readings up to here judge weights with a whole voice, and less the noisier they are."""
SOLVED_S = 0.5
"""The weights follow what was learnt this often."""
BLOCK_S = 5.0
"""Predictions are judged over this long, so that the sensor's noise does not drown what the weights get wrong."""
TRUSTED_ERROR = 0.06
"""Weights whose predictions of blocks are nearer than this are right enough to even out windows."""


class Fit:
    """One server's weights as they are learnt.

    prior: as given. weights: what to predict with. error: relative, of predicting blocks of 5 s ahead; None before
    there were any.
    """

    def __init__(self, prior: Weights) -> None:
        self.prior = prior
        self.weights = self._plain = prior
        self._regression = Regression(MEASURED if prior.measured else 1.0)
        self._busy = BusyTime(prior)
        self._blocks = Rivals(Judged(), Judged())
        self._looks = Rivals(of_looks(), of_looks())
        self._unsolved_s = SOLVED_S
        self._recent = Sliding()
        self._block_j = self._block_fitted = self._block_plain = self._block_s = 0.0

    def ran(self, work: Work, busy_ns: Nanoseconds) -> None:
        """Takes in what was done in a stretch of time, and for how long of it anything ran."""
        self._busy.observe(work, busy_ns)

    def observe(self, work: Work, active_uj: int, span_ns: Nanoseconds) -> None:
        """Takes in a divided window: all its work and its active energy."""
        stretch = Stretch(terms_of(self.prior, work), joules(active_uj), seconds(span_ns))
        self._foresee(stretch)
        together = self._recent.add(stretch)
        if together is not None:
            self._learn(together, NOISE, stretch.seconds)

    def looked(self, work: Work, energy_uj: int, span_ns: Nanoseconds, noise: float) -> None:
        """Takes in one reading and the work that it is known to stand for. noise: relative."""
        stretch = Stretch(terms_of(self.prior, work), joules(energy_uj), seconds(span_ns))
        if stretch.energy_j > 0 and sum(stretch.x) > 0 and self._regression.known:
            # One of which it is hardly known what it saw would be decided by those that seem to have seen little.
            weight = min(1.0, JUDGING_NOISE / noise) ** 2
            self._looks.add(stretch.energy_j, *self._predicted(stretch.x), weight)
        self._foresee(stretch)
        self._learn(stretch, max(LEAST_NOISE, noise), stretch.seconds)

    def _predicted(self, x: tuple[float, ...]) -> tuple[float, float]:
        """Joules by the factors as they are, and by the scale alone."""
        return self._regression.fitted(x), self._regression.plain(x)

    def _foresee(self, stretch: Stretch) -> None:
        """Compares a stretch that has not been learnt from with what was predicted.

        The very first are not compared: the prior knows ratios, and nothing of the meter's level.
        """
        if stretch.energy_j <= 0 or sum(stretch.x) <= 0 or not self._regression.known:
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
        self._plain, doubts = self._busy.made_good()
        pairs = zip(cost_of(self._plain), cost_of(self.prior), strict=True)
        self._regression.aim([now / before if before else 1.0 for now, before in pairs], doubts)
        self._regression.solve()  # against the scale as it is
        self._blocks.add(self._block_j, self._block_fitted, self._block_plain)
        self._block_j = self._block_fitted = self._block_plain = self._block_s = 0.0
        better = self._blocks.better if self._looks.better is None else self._looks.better
        self.weights = self._current() if better else self._plain

    def _current(self) -> Weights:
        known = self._regression
        factors = dict(zip(TERMS, (m / known.scale for m in known.factors), strict=True))
        told = {name: getattr(self.prior, name) * by for name, by in factors.items()}
        return replace(self.prior, measured=True, roofline=None, **told)

    @property
    def in_use(self) -> bool:
        """Whether the learnt weights are, not the prior's."""
        return self.weights is not self._plain

    @property
    def error(self) -> float | None:
        """Of the weights in use."""
        return (self._blocks.fitted if self.in_use else self._blocks.plain).error

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the weights: so far unjudged, or near to what was measured."""
        return self.error is None or self.error <= TRUSTED_ERROR
