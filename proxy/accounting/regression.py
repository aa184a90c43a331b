"""The normal equations of what the meter says of the weights, and their solution.

See `fitting` for what is minimised.
"""

from collections import deque
from collections.abc import Sequence
from math import exp
from typing import NamedTuple

from proxy.accounting.ridge import dot, solve_near
from proxy.accounting.terms import TERMS

STIFFNESS = (10.0, 20.0, 5.0, 20.0, 5.0, 10.0)
"""How much each is held to its prior: attention hardly shows against prefill, experts against the fixed part, decode
against context; a step and a prompt token show well in any traffic."""
NOISE = 0.3
"""Relative, of 0.1 s seen by a part-time sensor, where TOGETHER_S counts each reading three times."""
TOGETHER_S = 0.25
"""Readings are learnt from together until they last so long, again with each that is added: they have a delay of
their own, so that work near the end of one is measured in the next. On our bench (six physics, seeds 1, 5, 7 and 8, at
4 and 28, grade B; this was chosen on them) five minutes of learning so leave weights that misplace 1.05 % of the worst
tenant's energy in the mean; learning from readings one by one 1.1, from whole seconds 1.3: 3.2 instead of
1.95 with a clock that follows the load. The best single weights misplace 0.7."""
MEMORY_S = 3600.0
"""Of readings that are learnt from one by one; of those learnt from together a third."""
SWEEPS = 12


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

    firmness: multiplies what holds the factors to their aims. aims: what the prior's joules of each term are to be
    multiplied with, before a meter has said anything (see `busy_time`).
    """

    def __init__(self, firmness: float = 1.0) -> None:
        self._firmness = firmness
        size = len(TERMS)
        self._square = [[0.0] * size for _ in range(size)]
        self._cross = [0.0] * size
        self._predicted = [0.0] * size
        self._energy = self._stretches = 0.0
        self._aims = [1.0] * size
        self._held = [*STIFFNESS]
        self.factors = [1.0] * size
        self.scale = 1.0

    def aim(self, factors: Sequence[float], doubts: Sequence[float]) -> None:
        """Other aims from now on; what was learnt stays. doubts: of each, relative, beside what it is held by."""
        self._aims = [*factors]
        self._held = [1 / (1 / firmly + doubt**2) for firmly, doubt in zip(STIFFNESS, doubts, strict=True)]
        self._rescale()

    def expected(self, x: Sequence[float]) -> float:
        """Joules by the aims alone."""
        return dot(self._aims, x)

    def plain(self, x: Sequence[float]) -> float:
        """The same at the scale that fits best."""
        return self.scale * self.expected(x)

    def fitted(self, x: Sequence[float]) -> float:
        """Joules by the factors as they are."""
        return dot(self.factors, x)

    @property
    def known(self) -> bool:
        """Whether anything was learnt, so that the scale is the meter's."""
        return self._energy > 0

    def _rescale(self) -> None:
        if self.known:
            self.scale = self._energy / self.expected(self._predicted)

    def add(self, x: tuple[float, ...], energy_j: float, stretch_s: float, noise: float) -> None:
        """One stretch: predicted joules by term under the prior, and what the meter said, with noise as in 0.1 s."""
        fade = exp(-stretch_s / MEMORY_S)
        self._energy = fade * self._energy + energy_j
        self._predicted = [fade * known + new for known, new in zip(self._predicted, x, strict=True)]
        self._stretches = fade * self._stretches + stretch_s
        self._rescale()
        typical = self._energy / self._stretches * 0.1
        certainty = 1 / (noise**2 * typical * max(self.plain(x), 1e-9))
        for i, left in enumerate(x):
            row = self._square[i]
            self._cross[i] = fade * self._cross[i] + certainty * left * energy_j
            for j, right in enumerate(x):
                row[j] = fade * row[j] + certainty * left * right

    def solve(self) -> None:
        """Moves the factors to the minimum; a few sweeps from where they were are enough."""
        held = [self._firmness * one for one in self._held]
        aims = [self.scale * aim for aim in self._aims]
        self.factors = solve_near(self._square, self._cross, held, aims, start=self.factors, sweeps=SWEEPS)
