"""When a counter really moved, between the polls that saw it: it moves in a period of its own, which polls give away.

A poll says that the counter moved after the poll before. Over some hundred moves a straight line through the middles of
those intervals gives the period to a microsecond, and the moves but for a constant shift within an interval: whoever
compares with something else that is known in time (`exposure`) finds that.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from proxy.accounting.samples import Move

FIRST_MOVES = 8
"""Moves in a row, none of them after a poll that was missed, before a period is believed."""
MISSED = 1.5
"""Times the usual distance of polls: one is missing."""
WIDEST = 0.75
"""Of a period: polls further apart may have missed a move, so that nobody knows which one they saw."""
LONGEST_PAUSE = 50
"""Periods after which the clock is set anew rather than carried on."""
FADE = 1 - 1 / 300
"""What a move leaves of the line: the last half minute counts, since clocks drift against each other."""


class Edge(NamedTuple):
    """The counter moved once, at `at`; it does every `period` nanoseconds."""

    at: float
    period: float


@dataclass(slots=True)
class Line:
    """Least squares through points, of which the newest lies at the origin; fading sums over number and time."""

    weight: float = 0.0
    number: float = 0.0
    time: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def add(self, numbers: int, time: float) -> None:
        """A point, so many numbers and so much time after the newest."""
        weight = self.weight
        self.products = FADE * (self.products - numbers * self.time - time * self.number + numbers * time * weight)
        self.squares = FADE * (self.squares - 2 * numbers * self.number + numbers * numbers * weight)
        self.number = FADE * (self.number - numbers * weight)
        self.time = FADE * (self.time - time * weight)
        self.weight = FADE * weight + 1

    @property
    def slope(self) -> float | None:
        """Time per number; None while all points are one."""
        spread = self.weight * self.squares - self.number**2
        return (self.weight * self.products - self.number * self.time) / spread if spread > 0 else None

    def at_newest(self, slope: float) -> float:
        """Where the line passes, against the newest point."""
        return (self.time - slope * self.number) / self.weight


class CounterClock:
    """The moves of one counter. period: nanoseconds, None until there were enough."""

    def __init__(self) -> None:
        self.period: float | None = None
        self._first: list[Move] = []
        self._polls: deque[int] = deque(maxlen=FIRST_MOVES)
        self._line = Line()
        self._middle = self._off = 0.0
        self._sure = False

    def moved(self, move: Move) -> Edge | None:
        """Places a move, given in order; None where it is not sure that it was one move, or which."""
        if self.period is None:
            self._gather(move)
            return None
        sure, self._sure = self._sure, move.at - move.after < WIDEST * self.period
        if not self._sure:
            return None
        periods = self._nearest(move, self.period)
        if periods > LONGEST_PAUSE:
            self._line = Line()
            periods = 0
        self._pass(move, periods)
        at = min(max(self._middle + self._off, float(move.after)), float(move.at))
        return Edge(at, self.period) if sure and periods == 1 else None

    def _gather(self, move: Move) -> None:
        self._polls.append(move.at - move.after)
        if self._polls[-1] > MISSED * median(self._polls):
            self._first.clear()
        self._first.append(move)
        if len(self._first) == FIRST_MOVES:
            self._middle = _middle(self._first[0])
            for number, one in enumerate(self._first):
                self._pass(one, min(1, number))

    def _pass(self, move: Move, periods: int) -> None:
        middle = _middle(move)
        self._line.add(periods, middle - self._middle)
        self._middle = middle
        slope = self._line.slope
        if slope is not None:
            self.period, self._off = slope, self._line.at_newest(slope)

    def _nearest(self, move: Move, period: float) -> int:
        """After how many periods the move is expected nearest to where it was."""
        last = self._middle + self._off
        number = max(1, round((_middle(move) - last) / period))

        def off(periods: int) -> float:
            expected = last + periods * period
            return max(0.0, move.after - expected, expected - move.at)

        return min((number, max(1, number - 1), number + 1), key=off)


def _middle(move: Move) -> float:
    return (move.after + move.at) / 2
