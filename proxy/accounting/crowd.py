"""How many sequences the engine held at each instant of a window, and what part of its steps one of them was."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType

from proxy.accounting.activity import Span, union
from proxy.accounting.step_clock import Changes
from proxy.accounting.units import Nanoseconds

Presence = tuple[Nanoseconds, Nanoseconds, float]
"""(start, end, sequences held in between)."""
NOBODY: Changes = MappingProxyType({})
NOTHING = (0.0, 0)


class Crowd:
    """The sum of 1/n over the engine's steps in a window; n counts sequences of one step.

    engines: how many step side by side, each with its part of the sequences: as even a part as can be, for want of
    better knowledge. clock: see shown_steps. Where no stream shows the steps they are taken to come evenly.
    covered_ns: time in which there was anybody. rate: steps per nanosecond where some stream shows them, else None.
    """

    def __init__(self, window: Span, presences: Iterable[Presence], engines: int = 1, clock: Changes = NOBODY) -> None:
        change = comings((window.start, window.end, *clock), presences)
        self.engines = engines
        self.rate = _mean_rate(clock)
        self.covered_ns = 0
        # At each edge something changes. From each to the next: steps per nanosecond, and the same times
        # 1/n. From the first to each: steps, sum of 1/n over them, time in which none are shown.
        self.edges = sorted(change)
        self._paces: list[float] = []
        self._parts: list[float] = []
        self._steps, self._shares, self._hidden = [0.0], [0.0], [0]
        self._walk(change, clock)

    def _walk(self, change: Mapping[Nanoseconds, float], clock: Changes) -> None:
        even, asked, engines = self.rate or 1.0, clock.get, self.engines
        held, rate, streams, steps, shares, hidden = 0.0, 0.0, 0, 0.0, 0.0, 0
        for edge, following in pairwise(self.edges):
            length = following - edge
            held += change[edge]
            more, others = asked(edge, NOTHING)
            streams += others
            rate = rate + more if streams else 0.0
            pace = rate / streams if streams else even
            part = 0.0
            if held > 1e-9:
                self.covered_ns += length
                part = pace * min(1.0, engines / held) if engines > 1 else pace / held
            steps, shares, hidden = steps + pace * length, shares + part * length, hidden + (0 if streams else length)
            self._paces.append(pace)
            self._parts.append(part)
            self._steps.append(steps)
            self._shares.append(shares)
            self._hidden.append(hidden)

    @property
    def shown(self) -> bool:
        """Whether streams show the engine's steps all the time."""
        return not self._hidden[-1]

    @property
    def covered(self) -> tuple[Span, ...]:
        """When there was anybody."""
        return union(pair for pair, part in zip(pairwise(self.edges), self._parts, strict=True) if part > 0)

    def between(self, start: Nanoseconds, end: Nanoseconds) -> tuple[float, float, bool]:
        """Of a span inside the window the steps, the sum of 1/n over them, and whether streams show all of them."""
        edges, paces, parts, hidden = self.edges, self._paces, self._parts, self._hidden
        last = len(paces)
        low = bisect_right(edges, start, 0, last) - 1
        high = bisect_right(edges, end, low, last) - 1
        into, beyond = start - edges[low], end - edges[high]
        steps = self._steps[high] - self._steps[low] + paces[high] * beyond - paces[low] * into
        shares = self._shares[high] - self._shares[low] + parts[high] * beyond - parts[low] * into
        return steps, shares, hidden[high + 1 if beyond else high] == hidden[low]

    def mean_share(self, start: Nanoseconds, end: Nanoseconds) -> float:
        """Mean of 1/n over the steps in a span inside the window."""
        steps, shares, _ = self.between(start, end)
        return shares / steps if steps > 0 else 0.0


def comings(instants: Iterable[Nanoseconds], presences: Iterable[Presence]) -> dict[Nanoseconds, float]:
    """By how many sequences there are more from an instant on; it may be none at those that are given."""
    change = dict.fromkeys(instants, 0.0)
    for start, end, sequences in presences:
        change[start] = change.get(start, 0.0) + sequences
        change[end] = change.get(end, 0.0) - sequences
    return change


def _mean_rate(clock: Changes) -> float | None:
    """Steps per nanosecond where some stream shows them; None where none does."""
    rate, streams, steps, shown = 0.0, 0, 0.0, 0
    for edge, following in pairwise(sorted(clock)):
        more, others = clock[edge]
        rate, streams = rate + more, streams + others
        if streams:
            steps += rate / streams * (following - edge)
            shown += following - edge
    return steps / shown if steps > 0 else None
