"""From readings of a cumulative counter to windows of energy: edges, resets and gaps.

A meter's counter moves in jumps (about every 100 ms on data-centre GPUs), so only a reading that
differs from the last accepted one closes a window: its edge is then known to half a poll period.
A counter that falls has been reset. What was used across the reset can only be bridged, by the last
known power, and a window made so says it: it goes to the account `unmeasured`. A counter that stands still
while the power reading does not say zero is stuck: it is bridged too, and what it counts later for the same
time is not counted twice.
"""

from dataclasses import dataclass
from typing import NamedTuple

from proxy.accounting.units import SECOND, Microjoules, Nanoseconds, from_watts, watts

STUCK_AFTER = Nanoseconds(3 * SECOND)
"""Counters of data-centre boards move every 20 to 100 ms, also when idle; this is dozens of missed moves."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one meter.

    at: monotonic midpoint of the call that read it.
    counter: cumulative microjoules since an origin only the meter knows.
    power_w: what the meter says of present power in watts, where it says anything.
    """

    at: Nanoseconds
    counter: Microjoules
    power_w: float | None = None


class Move(NamedTuple):
    """A counter moved by `energy`: not yet there at `after`, seen at `at`."""

    after: Nanoseconds
    at: Nanoseconds
    energy: Microjoules


@dataclass(frozen=True, slots=True)
class Window:
    """The half-open time [start, end) between two accepted samples, and its energy.

    bridged: the energy is an estimate across a counter reset; nobody may be charged for it. moves: of the counter, in
    order; none where they are not known one by one.
    """

    meter: str
    start: Nanoseconds
    end: Nanoseconds
    energy: Microjoules
    bridged: bool = False
    moves: tuple[Move, ...] = ()

    @property
    def power_w(self) -> float | None:
        """Mean power over the window, in watts."""
        return watts(self.energy, self.end - self.start)

    def joined(self, after: "Window") -> "Window":
        """This window and the one that begins where it ends."""
        energy = Microjoules(self.energy + after.energy)
        return Window(self.meter, self.start, after.end, energy, self.bridged, self.moves + after.moves)

    def parts(self, least: Nanoseconds) -> list["Window"]:
        """This window cut where its counter moved, into parts of at least so long; what is left over goes to the last.

        Itself where not all moves are known.
        """
        if sum(move.energy for move in self.moves) != self.energy:
            return [self]
        found: list[Window] = []
        start, energy = self.start, 0
        for move in self.moves:
            energy += move.energy
            if move.at - start >= least:
                found.append(Window(self.meter, start, move.at, Microjoules(energy)))
                start, energy = move.at, 0
        if len(found) < 2:
            return [self]
        if start < self.end:
            last = found.pop()
            found.append(Window(self.meter, last.start, self.end, Microjoules(last.energy + energy)))
        return found


class Timeline:
    """Turns the samples of one meter into windows that touch and never overlap.

    power_w: mean power of the last window. resets, stuck: how often that happened. total_uj: energy of all windows.
    bridged_uj: what was bridged while the counter stood still and it has not caught up with yet.
    """

    def __init__(self, meter: str) -> None:
        self.meter = meter
        self.last: Sample | None = None
        self.power_w: float | None = None
        self.resets = 0
        self.stuck = 0
        self.total_uj = 0
        self.bridged_uj = 0
        self._still: Nanoseconds | None = None

    def accept(self, sample: Sample) -> Window | None:
        """The window this sample closes; None for the first one and while the counter stands still.

        A sample not later than the last accepted one is ignored: clocks of one thread only go forward,
        so such a sample is a repetition.
        """
        before = self.last
        if before is None:
            self.last = sample
            return None
        if sample.at <= before.at:
            return None
        window = self._close(before, sample)
        self._still = sample.at
        self.total_uj += window.energy if window is not None else 0
        return window

    def _close(self, before: Sample, sample: Sample) -> Window | None:
        if sample.counter == before.counter:
            return self._standing(before, sample)
        self.last = sample
        if sample.counter < before.counter:
            return self._reset(before, sample)
        moved = sample.counter - before.counter
        # A stuck counter either catches up at its first move or has lost that time: later moves are new energy.
        known, self.bridged_uj = min(moved, self.bridged_uj), 0
        energy, still = Microjoules(moved - known), before.at if self._still is None else self._still
        moves: tuple[Move, ...] = () if known else (Move(still, sample.at, energy),)
        window = Window(self.meter, before.at, sample.at, energy, moves=moves)
        self.power_w = window.power_w
        return window

    def _standing(self, before: Sample, sample: Sample) -> Window | None:
        if not sample.power_w or sample.at - before.at < STUCK_AFTER:
            return None
        self.stuck += 1
        self.last = sample
        window = self._bridge(before, sample, sample.power_w)
        self.bridged_uj += window.energy
        return window

    def _reset(self, before: Sample, after: Sample) -> Window | None:
        self.resets += 1
        self.bridged_uj = 0
        power_w = after.power_w if after.power_w is not None else self.power_w
        return None if power_w is None else self._bridge(before, after, power_w)

    def _bridge(self, before: Sample, after: Sample, power_w: float) -> Window:
        span = Nanoseconds(after.at - before.at)
        return Window(self.meter, before.at, after.at, from_watts(power_w, span), bridged=True)
