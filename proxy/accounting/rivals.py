"""Which of two sets of weights predicts the meter better: each is judged by what it said before it was told."""

from dataclasses import dataclass
from math import exp, sqrt

BLOCKS_REMEMBERED = 24.0
FEWEST_BLOCKS = 2
"""Blocks of some seconds."""
LOOKS_REMEMBERED = 1200.0
FEWEST_LOOKS = 50
"""The same for single readings of which it is known when the sensor looked: those are judged one by one."""


@dataclass(slots=True)
class Judged:
    """Fading mean square of relative errors of one set of weights, over blocks or looks.

    remembered: how many count. fewest: before anything is said.
    """

    remembered: float = BLOCKS_REMEMBERED
    fewest: int = FEWEST_BLOCKS
    square: float = 0.0
    weight: float = 0.0

    def add(self, measured: float, predicted: float, weight: float = 1.0) -> None:
        """Joules as measured and as predicted; weight: how much of a whole block or look it is worth."""
        fade = exp(-weight / self.remembered)
        self.square = fade * self.square + weight * (predicted / measured - 1) ** 2
        self.weight = fade * self.weight + weight

    @property
    def error(self) -> float | None:
        """Root mean square, relative; None until there were enough."""
        return sqrt(self.square / self.weight) if self.weight >= self.fewest * 0.9 else None


def of_looks() -> Judged:
    """Of one set of weights, over single readings."""
    return Judged(LOOKS_REMEMBERED, FEWEST_LOOKS)


@dataclass(slots=True)
class Rivals:
    """The fitted weights and the prior at its best scale, judged on the same."""

    fitted: Judged
    plain: Judged

    def add(self, measured: float, fitted: float, plain: float, weight: float = 1.0) -> None:
        """Joules as measured, and as each predicted them before."""
        self.fitted.add(measured, fitted, weight)
        self.plain.add(measured, plain, weight)

    @property
    def better(self) -> bool | None:
        """Whether the fitted weights are; None while there is too little to say so."""
        fitted, plain = self.fitted.error, self.plain.error
        return None if fitted is None or plain is None else fitted <= plain
