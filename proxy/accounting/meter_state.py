"""One meter of a group: its timeline, the windows that wait to be divided, and what has been booked."""

from collections import deque
from dataclasses import dataclass, field

from proxy.accounting.books import Accounts
from proxy.accounting.idle import IdlePower
from proxy.accounting.samples import Timeline, Window
from proxy.accounting.units import Microjoules, Nanoseconds


@dataclass(slots=True)
class MeterState:
    """`counter` is where the divided windows reach to.

    unwatched_uj: what the meter counted between two runs of the proxy.
    """

    name: str
    timeline: Timeline
    idle: IdlePower = field(default_factory=IdlePower)
    waiting: deque[tuple[Window, Microjoules]] = field(default_factory=deque)
    accounts: Accounts = field(default_factory=Accounts)
    settled_until: Nanoseconds | None = None
    counter: Microjoules | None = None
    last_power_w: float | None = None
    unwatched_uj: int = 0

    @property
    def imbalance(self) -> int:
        """What the readings say of the divided windows, minus what is booked, in microjoules; 0, or there is a bug."""
        waiting = sum(window.energy for window, _ in self.waiting)
        return self.unwatched_uj + self.timeline.total_uj - waiting - self.accounts.booked
