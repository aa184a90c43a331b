"""How many sequences the engine held at each instant of a window, and what part of a step one of them was."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from proxy.accounting.activity import Span, union
from proxy.accounting.units import Nanoseconds


class Crowd:
    """The integral of 1/n over a window; n counts sequences of one step.

    engines: how many step side by side, each with its part of the sequences: as even a part as can be, for want of
    better knowledge.
    covered_ns: time in which there was anybody. edges: when n changes; rates: 1/n from each edge to the next;
    integrals: of 1/n, from the window's start to each edge.
    """

    def __init__(self, window: Span, presences: Iterable[tuple[Span, float]], engines: int = 1) -> None:
        change: dict[Nanoseconds, float] = {window.start: 0.0, window.end: 0.0}
        for span, sequences in presences:
            start, end = span.start, span.end
            change[start] = change.get(start, 0.0) + sequences
            change[end] = change.get(end, 0.0) - sequences
        self.edges = sorted(change)
        self.rates: list[float] = []
        self.integrals = [0.0]
        covered, held, integral = 0, 0.0, 0.0
        for edge, following in pairwise(self.edges):
            held += change[edge]
            rate = 0.0
            if held > 1e-9:
                covered += following - edge
                rate = min(1.0, engines / held) if engines > 1 else 1.0 / held
            integral += rate * (following - edge)
            self.rates.append(rate)
            self.integrals.append(integral)
        self.covered_ns = covered
        self._last = len(self.rates) - 1

    @property
    def covered(self) -> tuple[Span, ...]:
        """When there was anybody."""
        edges = zip(pairwise(self.edges), self.rates, strict=True)
        return union(pair for pair, rate in edges if rate > 0)

    def mean_share(self, span: Span) -> float:
        """Time mean of 1/n over a span inside the window."""
        start, end, edges, rates, integrals = span.start, span.end, self.edges, self.rates, self.integrals
        low = min(bisect_right(edges, start) - 1, self._last)
        high = min(bisect_right(edges, end, low) - 1, self._last)
        before = integrals[low] + rates[low] * (start - edges[low])
        return (integrals[high] + rates[high] * (end - edges[high]) - before) / (end - start)
