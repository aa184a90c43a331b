"""From readings of a cumulative counter to windows of energy: edges, resets and gaps.

A meter's counter moves in jumps (about every 100 ms on data-centre GPUs), so only a reading that
differs from the last accepted one closes a window: its edge is then known to half a poll period.
A counter that falls has been reset. What was used across the reset can only be bridged, by the last
known power, and a window made so says it: it goes to the account `unmeasured`.
"""

from dataclasses import dataclass

from proxy.accounting.units import Microjoules, Nanoseconds, from_watts, watts


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


@dataclass(frozen=True, slots=True)
class Window:
    """The half-open time [start, end) between two accepted samples, and its energy.

    bridged: the energy is an estimate across a counter reset; nobody may be charged for it.
    """

    meter: str
    start: Nanoseconds
    end: Nanoseconds
    energy: Microjoules
    bridged: bool = False

    @property
    def power_w(self) -> float | None:
        """Mean power over the window, in watts."""
        return watts(self.energy, self.end - self.start)


class Timeline:
    """Turns the samples of one meter into windows that touch and never overlap."""

    def __init__(self, meter: str) -> None:
        self.meter = meter
        self.last: Sample | None = None
        self.power_w: float | None = None
        self.resets = 0

    def accept(self, sample: Sample) -> Window | None:
        """The window this sample closes; None for the first one and while the counter stands still.

        A sample not later than the last accepted one is ignored: clocks of one thread only go forward,
        so such a sample is a repetition.
        """
        before = self.last
        if before is None:
            self.last = sample
            return None
        if sample.at <= before.at or sample.counter == before.counter:
            return None
        self.last = sample
        if sample.counter < before.counter:
            return self._bridge(before, sample)
        window = Window(self.meter, before.at, sample.at, Microjoules(sample.counter - before.counter))
        self.power_w = window.power_w
        return window

    def _bridge(self, before: Sample, after: Sample) -> Window | None:
        self.resets += 1
        power_w = after.power_w if after.power_w is not None else self.power_w
        if power_w is None:
            return None
        span = Nanoseconds(after.at - before.at)
        return Window(self.meter, before.at, after.at, from_watts(power_w, span), bridged=True)
