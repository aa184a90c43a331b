"""One meter that several groups share, such as a GPU with two servers or with MIG slices: counted once, then divided.

    active_g = E_active * s_g * W_g / sum_h s_h * W_h      W_g: predicted joules of all that group g ran, strangers too
    idle_g   = E_idle / groups                             E_idle: the time in which none of them ran, at idle power

s_g is what group g's predicted joules were worth while it alone worked: without it a wrong prior of one model would
be paid by the other server. What a group gets it divides among its requests by its own rule. Only the sum of the parts
is measured; each part is a model's, so every figure of such a group is of grade D.
Source of the rule: research on energy attribution, two servers on one GPU (6.6).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from proxy.accounting.activity import Work, union
from proxy.accounting.attribution import apportion, idle_energy, predicted
from proxy.accounting.divider import Given
from proxy.accounting.group import WORK_A_PASS, Group
from proxy.accounting.meter_state import MeterState, Ripe
from proxy.accounting.samples import Sample, Timeline, Window
from proxy.accounting.uncertainty import PLACEMENT
from proxy.accounting.units import Microjoules, Nanoseconds, joules
from proxy.accounting.weights import Weights

PART_DOUBT = PLACEMENT["D"]
"""Relative standard deviation of a group's part, common to all its figures: assumed, as for all of grade D."""
FADE = 0.98
"""What a window leaves of the sums that make a group's worth: about the last fifty in which it was alone."""
FEWEST_ALONE = 10
"""Windows in which a group alone worked before its worth is believed."""


@dataclass(slots=True, kw_only=True)
class Part(MeterState):
    """What one group has of a shared meter; timeline and idle power are the whole's. last_w: of the last window."""

    whole: MeterState
    sharers: int
    last_w: float | None = None

    @property
    def imbalance(self) -> int:
        """What this group was given minus what it booked, and what is off in the whole; 0, or there is a bug."""
        return self.accounts.imbalance + self.whole.imbalance

    @property
    def power_w(self) -> float | None:
        """Mean over the last divided window; the parts add up to the meter's."""
        return self.last_w

    @property
    def idle_w(self) -> float | None:
        """This group's equal part of the power with nothing running; None until that was seen."""
        return None if self.idle.watts is None else self.idle.watts / self.sharers


class Worth:
    """Measured over predicted joules of each group while it alone worked, as ratios of fading sums.

    Kept is the work, not what was predicted of it then: weights are learnt, and the ratio must fit those in use.
    """

    def __init__(self, groups: int) -> None:
        self._measured = [0.0] * groups
        self._done = [Work() for _ in range(groups)]
        self._windows = [0] * groups

    def learn(self, group: int, measured_j: float, work: Work) -> None:
        """Takes in a window in which only this group worked."""
        known = Work()
        known.add_part(self._done[group], FADE)
        known.add_part(work, 1.0)
        self._measured[group] = FADE * self._measured[group] + measured_j
        self._done[group] = known
        self._windows[group] += 1

    def of(self, works: Sequence[Work], weights: Sequence[Weights]) -> list[float]:
        """Predicted joules at their worth; a group that is not known yet counts like the mean of those that are."""
        forecast = [_predicted_j(work, own) for work, own in zip(works, weights, strict=True)]
        known = [i for i, windows in enumerate(self._windows) if windows >= FEWEST_ALONE and self._measured[i] > 0]
        if not known:
            return forecast
        told = {i: _predicted_j(self._done[i], weights[i]) for i in known}
        mean = sum(self._measured[i] for i in known) / sum(told.values())
        worth = [self._measured[i] / told[i] if i in known else mean for i in range(len(works))]
        return [one * own for one, own in zip(worth, forecast, strict=True)]


def _predicted_j(work: Work, weights: Weights) -> float:
    return sum(predicted(work, weights))


class Board:
    """The shared meter. It puts a Part in the place of each group's own state of it; the groups' thread runs it.

    whole: the readings, the idle power, and the sum of all groups' accounts.
    """

    def __init__(self, meter: str, groups: Sequence[Group]) -> None:
        self.whole = whole = MeterState(meter, Timeline(meter))
        self._groups = list(groups)
        self._parts = [
            Part(meter, whole.timeline, whole.idle, part_doubt=PART_DOUBT, whole=whole, sharers=len(groups))
            for _ in groups
        ]
        self._worth = Worth(len(groups))
        for group, part in zip(self._groups, self._parts, strict=True):
            group.share(part)

    def sampled(self, sample: Sample, *, known_counter: Microjoules | None = None) -> None:
        """A reading came in; see MeterState. What nobody watched is unattributed once, in equal parts."""
        first = self.whole.timeline.last is None
        self.whole.sampled(sample, known_counter)
        unwatched = self._evenly(self.whole.unwatched_uj)
        for part, energy in zip(self._parts, unwatched, strict=True):
            part.last_power_w = sample.power_w
            if first:
                part.settled_until = part.worked_until = self.whole.settled_until
                part.counter = self.whole.counter
                part.accounts.unattributed += energy
                part.accounts.meter += energy

    def settle(self, now: Nanoseconds, *, force: bool = False) -> None:
        """Divides every window that all groups have heard enough of. force: at shutdown."""
        done = 0
        while done <= WORK_A_PASS or force:
            ripe = self.whole.take_ripe(now, self._groups, force=force)
            if ripe is None:
                break
            self._divide(ripe)
            done += sum(1 + len(group.bills) for group in self._groups)

    def _divide(self, ripe: Ripe) -> None:
        window = ripe.window
        parts: list[tuple[Microjoules, Given | None]]
        if window.bridged or window.end - window.start > min(group.gap for group in self._groups):
            window = replace(window, bridged=True)
            parts = [(energy, None) for energy in self._evenly(window.energy)]
        else:
            parts = [*self._by_work(window)]
        for group, part, (energy, given) in zip(self._groups, self._parts, parts, strict=True):
            split = group.divide(replace(window, energy=energy), part, ripe.counter, given)
            part.last_w = split.window.power_w
            self.whole.booked(split, ripe.counter)

    def _by_work(self, window: Window) -> Iterator[tuple[Microjoules, Given]]:
        """Each group's part of a measured window, with what is known of it."""
        activities = [group.activity(window) for group in self._groups]
        covered = union((span.start, span.end) for activity in activities for span in activity.covered)
        idle = idle_energy(window, sum(span.length for span in covered), self.whole.idle.watts)
        asleep = not any(group.engine.busy for group in self._groups)
        self.whole.idle.ran(window, nothing=not covered and asleep)
        active = Microjoules(window.energy - idle)
        works = [activity.total() for activity in activities]
        forecast = self._worth.of(works, [group.divider.weights for group in self._groups])
        claims = [forecast, [float(a.covered_ns) for a in activities], [1.0] * len(activities)]
        actives = apportion(active, next(claim for claim in claims if sum(claim) > 0))
        alone = sum(activity.covered_ns > 0 for activity in activities) == 1
        if alone and sum(forecast) > 0:
            only = forecast.index(max(forecast))
            self._worth.learn(only, joules(active), works[only])
        for activity, own, even in zip(activities, actives, self._evenly(idle), strict=True):
            yield Microjoules(own + even), Given(activity, even, alone)

    def _evenly(self, energy: int) -> list[Microjoules]:
        return apportion(energy, [1.0] * len(self._groups))
