"""Reads a group's meters all the time, and says what power they saw between two instants."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from proxy.accounting.activity import Span
from proxy.accounting.samples import Sample, Timeline
from proxy.accounting.units import MILLISECOND, Nanoseconds, joules, seconds
from proxy.errors import MeterError
from proxy.ports import Clock, Meter
from proxy.sampler import Sampler

FEWEST_UPDATES = 10
"""Moves of the counter that a stretch must hold; an edge is known to half a poll at each end."""
POLL = Nanoseconds(20 * MILLISECOND)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the meters say of a stretch of time: watts summed over them, and the fewest moves any of them made."""

    span: Span
    power_w: float
    updates: int

    @property
    def energy_j(self) -> float:
        """Joules."""
        return self.power_w * seconds(self.span.length)


class EnergyLog:
    """The moves of each meter's counter since it was started. It belongs to one event loop.

    failure: why no figure can be trusted any more: a meter gave no reading, or its counter was reset.
    """

    def __init__(self, meters: Sequence[Meter], clock: Clock) -> None:
        self.failure: str | None = None
        self._timelines = {meter.name: Timeline(meter.name) for meter in meters}
        self._edges: dict[str, list[tuple[Nanoseconds, int]]] = {meter.name: [] for meter in meters}
        self._sampler = Sampler(
            meters, period=POLL, clock=clock, on_sample=self._hand_on, on_failure=self._miss, on_death=self._died
        )

    def start(self) -> None:
        """Begins to read, in a thread."""
        self._loop = asyncio.get_running_loop()
        self._sampler.start()

    async def stop(self) -> None:
        """Ends the thread."""
        await asyncio.to_thread(self._sampler.sweep_and_stop)

    def _hand_on(self, meter: Meter, sample: Sample, _: Nanoseconds) -> None:
        self._loop.call_soon_threadsafe(self._take, meter, sample)

    def _miss(self, meter: Meter, error: MeterError) -> None:
        self._loop.call_soon_threadsafe(self._fail, f"the meter {meter.gpu} gave no reading: {error}")

    def _died(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._fail, f"the meters cannot be read any more: {error}")

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why

    def _take(self, meter: Meter, sample: Sample) -> None:
        timeline = self._timelines[meter.name]
        window = timeline.accept(sample)
        if window is None:
            return
        if window.bridged:
            self._fail(f"the counter of {meter.gpu} was reset or stood still")
        self._edges[meter.name].append((window.end, timeline.total_uj))

    def between(self, start: Nanoseconds, end: Nanoseconds) -> Seen | None:
        """From each counter's first to its last move within these instants; None where one moved less than twice.

        The span is what all of them cover; each one's mean power is its own.
        """
        first, last = start, end
        power_w, updates = 0.0, []
        for edges in self._edges.values():
            inside = [edge for edge in edges if start <= edge[0] <= end]
            if len(inside) < 2:
                return None
            (since, before), (until, after) = inside[0], inside[-1]
            power_w += joules(after - before) / seconds(until - since)
            first, last = max(first, since), min(last, until)
            updates.append(len(inside) - 1)
        return Seen(Span(first, last), power_w, min(updates)) if last > first else None

    def period_s(self) -> float | None:
        """The slowest counter's mean time between moves so far; None where one has moved less than twice."""
        periods = []
        for edges in self._edges.values():
            gaps = sorted(after[0] - before[0] for before, after in pairwise(edges))
            if not gaps:
                return None
            periods.append(seconds(gaps[len(gaps) // 2]))
        return max(periods)
