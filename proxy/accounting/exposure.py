"""When in each period of its counter a sensor looks, found out from what it says of the engine's steps.

Many boards measure power only a part of the time and let it stand for the whole period: 25 of 100 ms on A100 and H100,
10 of 20 ms on V100, at a phase fixed at boot (Yang, Adamek, Armour, "Part-time Power Measurements", SC24,
arXiv 2312.02741). With the step log we know the predicted power of every moment, so for each place and length that the
look may have we can say what the reading should have been. The one whose forecasts err least is believed, once it is
clearly better than the whole time between two polls.

On our bench (tests/accuracy) a reading is forecast to 7 % from the whole period and to 3 % from the look itself, of
which most is what single steps differ by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy.accounting.counter_edges import Edge

GRID = 20
"""Parts of a period: places that a look may end at."""
EARLY, LATEST = 6, 30
"""A look may end so many parts after the place of an edge, which is known to half a poll only, or before it."""
LENGTHS = (20, 10, 5, 3)
"""Lengths that it may have, in steps of the grid: all of the period, a half, a quarter, 15 of 100."""
POINTS = range(-EARLY, LATEST + max(LENGTHS) + 1)
"""Places that a look may end or begin at, in parts of a period before its edge."""
FADE = 0.995
"""What a reading leaves of the sums: about the last two hundred count."""
LEAST = 40
"""Readings before anything is believed."""
FOUND, LOST = 0.75, 0.9
"""Mean square error against that of the whole time between polls: believed below, given up above."""

CLEAR, UNCLEAR = 0.05, 0.065
"""Relative error of a forecast that is no more than single steps differ by: believed, whatever the polls say, until it
is above the second."""


class Exposure(NamedTuple):
    """A sensor looks for `length` and ends `late` before its counter's edge, both in parts of a period."""

    late: int
    length: int

    def span(self, edge: Edge) -> tuple[float, float]:
        """Start and end of the look before an edge, in nanoseconds."""
        end = edge.at - edge.period * self.late / GRID
        return end - edge.period * self.length / GRID, end


@dataclass(slots=True)
class Forecast:
    """How one guess of the look has done: fading sums, of measured and predicted joules and of squared errors.

    The level, measured over predicted, is taken before each reading is learnt from.
    """

    measured: float = 0.0
    predicted: float = 0.0
    square: float = 0.0
    weight: float = 0.0

    def add(self, measured: float, predicted: float) -> None:
        """A reading, and the joules predicted for it."""
        if self.predicted > 0:
            off = min(1.0, abs(measured / (self.level * predicted) - 1)) if predicted > 0 else 1.0
            self.square = FADE * self.square + off * off
            self.weight = FADE * self.weight + 1
        self.measured = FADE * self.measured + measured
        self.predicted = FADE * self.predicted + predicted

    @property
    def level(self) -> float:
        """Measured over predicted joules; only after the first reading."""
        return self.measured / self.predicted

    @property
    def error(self) -> float:
        """Mean square of the relative error."""
        return self.square / self.weight if self.weight else 1.0


class ExposureFinder:
    """Finds the look of one sensor. exposure: None until it is known, and when it is not any more."""

    def __init__(self) -> None:
        self.exposure: Exposure | None = None
        self._guesses = {Exposure(late, length): Forecast() for length in LENGTHS for late in range(-EARLY, LATEST + 1)}
        self._polled = Forecast()
        self._seen = 0

    @property
    def level(self) -> float:
        """Measured over predicted joules of late, as the look has it."""
        return self._forecast.level

    @property
    def noise(self) -> float:
        """Relative error of forecasting a reading, root mean square."""
        return float(self._forecast.error**0.5)

    @property
    def _forecast(self) -> Forecast:
        return self._polled if self.exposure is None else self._guesses[self.exposure]

    def learn(self, measured: float, polled: float, until: Sequence[float]) -> None:
        """Takes in a reading of one period.

        polled: joules predicted for the time between the polls. until: joules predicted up to each of POINTS.
        """
        self._polled.add(measured, polled)
        for (late, length), guess in self._guesses.items():
            first = late + EARLY
            guess.add(measured, (until[first] - until[first + length]) * (GRID / length))
        self._seen += 1
        if self._seen >= LEAST:
            self._choose()

    def _choose(self) -> None:
        best = min(self._guesses, key=lambda guess: self._guesses[guess].error)
        against = self._guesses[best].error / self._polled.error if self._polled.error else 1.0
        enough = CLEAR if self.exposure is None else UNCLEAR
        clear = against <= 1 and self._guesses[best].error < enough * enough
        if clear or against < FOUND or (self.exposure is not None and against < LOST):
            self.exposure = best
        else:
            self.exposure = None
