"""A count that grows, known at some instants and straight in between: tokens of a stream, steps of an engine."""

from bisect import bisect_right
from collections.abc import Sequence

from proxy.accounting.activity import Span
from proxy.accounting.units import Nanoseconds


class Curve:
    """The count at any instant; before the first and after the last known one it stands still."""

    def __init__(self, at: Sequence[Nanoseconds], values: Sequence[float]) -> None:
        self._at = at
        self._values = values

    def up_to(self, instant: Nanoseconds) -> float:
        """The count at an instant."""
        index = bisect_right(self._at, instant) - 1
        if index < 0:
            return self._values[0]
        if index + 1 == len(self._at):
            return self._values[-1]
        part = (instant - self._at[index]) / (self._at[index + 1] - self._at[index])
        return self._values[index] + part * (self._values[index + 1] - self._values[index])

    def within(self, span: Span) -> float:
        """By how much it grew in a span."""
        return self.up_to(span.end) - self.up_to(span.start)

    def covers(self, span: Span) -> bool:
        """Whether it is known from before the span until after it."""
        return self._at[0] <= span.start and span.end <= self._at[-1]
