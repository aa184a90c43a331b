"""Loop 2: every period each meter is read, in a thread of its own, because a driver call may block.

The thread wakes by deadline (start + n * period), so lateness does not add up. What it reads is handed on;
what cannot be read is handed on as a failure, never as zero.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from proxy.accounting.samples import Sample
from proxy.accounting.units import Nanoseconds
from proxy.errors import MeterError
from proxy.ports import Clock, Meter

_log = logging.getLogger(__name__)
OnSample = Callable[[Meter, Sample, Nanoseconds], None]
"""Meter, reading, and how long the call took."""
OnFailure = Callable[[Meter, MeterError], None]


def next_deadline(start: int, period: int, now: int) -> int:
    """The first instant start + n * period after `now`: a late tick is skipped, not made up for."""
    return start + period * ((now - start) // period + 1)


class Sampler:
    """Reads meters until stopped. An unexpected error ends the loop and is kept in `died`, for the service to stop."""

    def __init__(
        self,
        meters: Sequence[Meter],
        *,
        period: Nanoseconds,
        clock: Clock,
        on_sample: OnSample,
        on_failure: OnFailure,
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._meters = meters
        self._period = period
        self._clock = clock
        self._on_sample = on_sample
        self._on_failure = on_failure
        self._on_death = on_death
        self._stopping = threading.Event()
        self._failing: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def sweep_and_stop(self, timeout_s: float = 5.0) -> None:
        """Ends the loop with a last reading; a driver call that hangs is left to the daemon thread."""
        self._stopping.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self.sweep()

    def sweep(self) -> None:
        """Reads every meter once."""
        for meter in self._meters:
            before = self._clock()
            try:
                sample = meter.read()
            except MeterError as error:
                if meter.name not in self._failing:
                    self._failing.add(meter.name)
                    _log.warning("meter %s gives no reading: %s", meter.name, error)
                self._on_failure(meter, error)
                continue
            if meter.name in self._failing:
                self._failing.discard(meter.name)
                _log.warning("meter %s reads again", meter.name)
            self._on_sample(meter, sample, Nanoseconds(self._clock() - before))

    def _run(self) -> None:
        start = self._clock()
        try:
            while not self._stopping.is_set():
                self.sweep()
                now = self._clock()
                self._stopping.wait((next_deadline(start, self._period, now) - now) / 1e9)
        except BaseException as error:  # a dead sampler must stop the service, not leave a silent gap
            self._on_death(error)
