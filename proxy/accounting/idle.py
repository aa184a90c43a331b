"""Power of a group with the model loaded and no request running, learnt from quiet windows only.

Never the smallest value ever seen: idle with a model loaded is well above a bare GPU's idle, and the first
second after work is still warm. Source of the rule: research on idle power of HBM boards (context +26-50 W).
"""

from proxy.accounting.samples import Window
from proxy.accounting.units import SECOND, Nanoseconds

SETTLE = SECOND
"""A window counts as quiet when it begins this long after the last work."""


MEMORY = Nanoseconds(60 * SECOND)
"""How far back the mean reaches."""
SWAY = 0.5
"""Of the mean: a quiet window counts as no further from it. What idles differently for minutes is learnt all the same,
half a minute of somebody else's work is not."""
BUSY = 2.0
"""Times idle power: what draws more is not idle, whoever it is. A board that has just stopped draws less than that."""


class IdlePower:
    """Time-weighted moving mean of quiet windows' power for one meter; None until the first one."""

    def __init__(self, memory: Nanoseconds = MEMORY) -> None:
        self.watts: float | None = None
        self._memory = memory
        self._last_work: Nanoseconds | None = None

    def worked_until(self, instant: Nanoseconds) -> None:
        """Notes that something ran up to `instant`."""
        if self._last_work is None or instant > self._last_work:
            self._last_work = instant

    def ran(self, window: Window, *, nothing: bool) -> None:
        """Takes in a divided window. nothing: all of it was idle, and the engines say so too."""
        if nothing:
            self.learn(window)
        else:
            self.worked_until(window.end)

    def learn(self, window: Window) -> None:
        """Takes in a window in which nothing ran."""
        if self._last_work is not None and window.start < self._last_work + SETTLE:
            return
        power_w = window.power_w
        if power_w is None:
            return
        if self.watts is None:
            self.watts = power_w
            return
        share = min(1.0, (window.end - window.start) / self._memory)
        known = self.watts
        self.watts += share * (min(max(power_w, (1 - SWAY) * known), (1 + SWAY) * known) - known)
