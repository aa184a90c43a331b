"""One meter of a group: its timeline, the windows that wait to be divided, and what has been booked."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proxy.accounting.attribution import Split
from proxy.accounting.books import Accounts
from proxy.accounting.idle import IdlePower
from proxy.accounting.samples import Sample, Timeline, Window
from proxy.accounting.step_worth import StepWorth
from proxy.accounting.true_up import TrueUp
from proxy.accounting.units import Microjoules, Nanoseconds


class User(Protocol):
    """A group whose work the meter sees. wanted: how long windows it likes best; gap: the longest window it divides."""

    @property
    def wanted(self) -> Nanoseconds: ...

    @property
    def gap(self) -> Nanoseconds: ...

    def quiet(self, window: Window) -> bool:
        """Whether nothing of it ran in the window."""
        ...

    def over(self, window: Window) -> bool:
        """Whether nothing of it runs beyond the window."""
        ...

    def has_heard(self, window: Window, now: Nanoseconds) -> bool:
        """Whether it knows all that ran up to `at`, or need not wait for it any longer."""
        ...


class Ripe(NamedTuple):
    """A window to divide, the counter it reaches to, and how many readings it is made of."""

    window: Window
    counter: Microjoules
    readings: int


@dataclass(slots=True)
class MeterState:
    """`counter` is where the divided windows reach to; all work up to `worked_until` is paid for, which is a little
    before `settled_until` where the counter is known to be late.

    unwatched_uj: what the meter counted between two runs of the proxy. part_doubt: relative standard deviation of its
    joules because they are a modelled part of another meter's.
    """

    name: str
    timeline: Timeline
    idle: IdlePower = field(default_factory=IdlePower)
    waiting: deque[tuple[Window, Microjoules]] = field(default_factory=deque)
    true_up: TrueUp = field(default_factory=TrueUp)
    worth: StepWorth = field(default_factory=StepWorth)
    accounts: Accounts = field(default_factory=Accounts)
    settled_until: Nanoseconds | None = None
    worked_until: Nanoseconds | None = None
    counter: Microjoules | None = None
    last_power_w: float | None = None
    unwatched_uj: int = 0
    part_doubt: float = 0.0
    _busy: set[Nanoseconds] = field(default_factory=set)

    @property
    def imbalance(self) -> int:
        """What the readings say of the divided windows, minus what is booked, in microjoules; 0, or there is a bug."""
        waiting = sum(window.energy for window, _ in self.waiting)
        return self.unwatched_uj + self.timeline.total_uj - waiting - self.accounts.booked

    @property
    def power_w(self) -> float | None:
        """Mean over the last window; None before there was one."""
        return self.timeline.power_w

    @property
    def idle_w(self) -> float | None:
        """With the model loaded and nothing running; None until that was seen."""
        return self.idle.watts

    def said_nothing(self, since: Nanoseconds) -> bool:
        """Whether no reading has come since then."""
        return self.timeline.last is None or self.timeline.last.at < since

    def sampled(self, sample: Sample, known_counter: Microjoules | None) -> None:
        """Takes in a reading. known_counter: where the ledger left this same counter, for the first reading.

        What the meter counted while no proxy watched is real, and nobody can be charged for it: unattributed.
        """
        if self.timeline.last is None:
            self.settled_until = self.worked_until = sample.at
            self.counter = sample.counter
            if known_counter is not None and sample.counter >= known_counter:
                self.unwatched_uj = sample.counter - known_counter
                self.accounts.unattributed += self.unwatched_uj
                self.accounts.meter += self.unwatched_uj
        self.last_power_w = sample.power_w
        window = self.timeline.accept(sample)
        if window is not None:
            # What was bridged is booked: a restart must not take it for new when the counter catches up.
            self.waiting.append((window, Microjoules(sample.counter + self.timeline.bridged_uj)))

    def take_ripe(self, now: Nanoseconds, users: Sequence[User], *, force: bool = False) -> Ripe | None:
        """The next window to divide, which waits no more; None while more must be known. force: at shutdown."""
        wanted = Nanoseconds(0) if force else min(user.wanted for user in users)
        found = self._joined(now, wanted, users) if self.waiting else None
        if found is None or not (force or all(user.has_heard(found.window, now) for user in users)):
            return None
        for _ in range(found.readings):
            self.waiting.popleft()
        return found

    def booked(self, split: Split, counter: Microjoules) -> None:
        """Takes in a divided window, up to where its counter reaches."""
        self.accounts.add(split)
        self.settled_until, self.counter = split.window.end, counter

    def _joined(self, now: Nanoseconds, wanted: Nanoseconds, users: Sequence[User]) -> Ripe | None:
        """Waiting windows joined until they are `wanted` long; None when more readings must come.

        A window that is bridged, too long or quiet stands for itself. One after which nothing ran need not wait for
        company; nor does one whose meter has said nothing since for as long as is wanted.
        """

        def quiet(window: Window) -> bool:
            return all(user.quiet(window) for user in users)

        longest = min(user.gap for user in users)
        window, counter = self.waiting[0]
        if not _joins(window, longest) or self._is_quiet(window, quiet):
            return Ripe(window, counter, 1)
        joined = 1
        for following, reached in list(self.waiting)[1:]:
            if window.end - window.start >= wanted:
                break
            if following.start != window.end or not _joins(following, longest) or self._is_quiet(following, quiet):
                return Ripe(window, counter, joined)
            window, counter, joined = window.joined(following), reached, joined + 1
        enough = window.end - window.start >= wanted or now - window.end >= wanted
        return Ripe(window, counter, joined) if enough or all(user.over(window) for user in users) else None

    def _is_quiet(self, window: Window, quiet: Callable[[Window], bool]) -> bool:
        """Asked again and again while the window waits; what was once seen to be busy stays so."""
        if window.start in self._busy:
            return False
        if quiet(window):
            return True
        if len(self._busy) > 2 * len(self.waiting):
            self._busy &= {waiting.start for waiting, _ in self.waiting}
        self._busy.add(window.start)
        return False


def _joins(window: Window, longest: Nanoseconds) -> bool:
    return not window.bridged and window.end - window.start <= longest


def earliest(times: Iterable[Nanoseconds | None]) -> Nanoseconds | None:
    """The least of some instants; None where one is unknown, or there is none."""
    known = list(times)
    return None if None in known or not known else min(at for at in known if at is not None)
