"""No sensor at all: an estimate from uptime and busy CPU time, so that everything else can be tried.

    energy = idle_w * uptime + core_w * busy seconds of all logical CPUs      both since boot

The defaults are assumptions, not measurements of any machine. idle_w = 20: a small machine at rest, with
memory and losses. core_w = 12: a desktop processor limited to 95-125 W spreads that over the eight to ten
cores that keep it busy; many-core servers use less per logical CPU, so there this errs high. Who knows
the own machine passes its figures.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from proxy.accounting.samples import Sample
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.errors import ConfigurationError, MeterLost, MeterUnavailable
from proxy.ports import MeterKind

PROC = Path("/proc")
IDLE_W = 20.0
CORE_W = 12.0

# /proc/stat, first line: user nice system idle iowait irq softirq steal guest guest_nice. Guest time is in
# user and nice already; stolen time went to other machines on the same host.
_BUSY_COLUMNS = (0, 1, 2, 5, 6)


class ModelledMeter:
    """This machine by its CPU time. Cumulative since boot, so it continues over restarts of the proxy."""

    kind: MeterKind = "modelled"
    estimated = True
    name = "modelled"
    gpu = "modelled"

    def __init__(
        self,
        *,
        idle_w: float = IDLE_W,
        core_w: float = CORE_W,
        proc: Path = PROC,
        clock: Callable[[], int] = time.monotonic_ns,
        ticks_per_s: int | None = None,
    ) -> None:
        _check(idle_w, core_w)
        self._idle_uw = round(idle_w * 1e6)
        self._core_uw = round(core_w * 1e6)
        self._ticks_per_s = os.sysconf("SC_CLK_TCK") if ticks_per_s is None else ticks_per_s
        self._uptime = proc / "uptime"
        self._stat = proc / "stat"
        self._clock = clock
        self._last_uj = 0
        parameters = f"idle_w={idle_w:g},core_w={core_w:g}"
        self.description = f"estimated, no sensor: a model of CPU time ({parameters})"
        try:
            boot_id = (proc / "sys/kernel/random/boot_id").read_text().strip()
        except OSError as error:
            raise MeterUnavailable(f"modelled: the kernel's boot id cannot be read: {error}") from error
        self.epoch = f"{boot_id}:{parameters}"
        try:
            self.read()
        except MeterLost as error:
            raise MeterUnavailable(str(error)) from error

    def read(self) -> Sample:
        """One estimate; never falls, though the kernel's own times may. Raises MeterLost."""
        before = self._clock()
        try:
            uptime_ms = round(float(self._uptime.read_text().split()[0]) * 1_000)
            ticks = busy_ticks(self._stat)
        except (OSError, ValueError, IndexError) as error:
            raise MeterLost(f"modelled: {self._uptime.parent} cannot be read: {error}") from error
        at = Nanoseconds((before + self._clock()) // 2)
        energy_uj = self._idle_uw * uptime_ms // 1_000 + self._core_uw * ticks // self._ticks_per_s
        self._last_uj = max(self._last_uj, energy_uj)
        return Sample(at, Microjoules(self._last_uj))

    def close(self) -> None:
        """Holds nothing."""


def busy_ticks(stat: Path) -> int:
    """Kernel ticks in which logical CPUs were busy since boot; raises OSError, ValueError or IndexError."""
    with stat.open() as lines:
        first = lines.readline().split()
    if not first or first[0] != "cpu":
        raise ValueError(f"{stat} does not begin with the line 'cpu'")
    return sum(int(first[1 + column]) for column in _BUSY_COLUMNS)


def _check(idle_w: float, core_w: float) -> None:
    for label, power_w in (("idle_w", idle_w), ("core_w", core_w)):
        if not math.isfinite(power_w) or power_w < 0:
            raise ConfigurationError(f"modelled: {label} must be a power in watts, not {power_w:g}")
    if idle_w == 0 and core_w == 0:
        raise ConfigurationError("modelled: idle_w and core_w are both 0, so nothing would ever cost anything")
