"""CPU packages through RAPL: the powercap files of the kernel, with their wrap made good.

Counted are package domains only: core and uncore are inside them, and psys, the whole platform, contains
them all, so it serves only where it stands alone. DRAM, which server parts have beside the package, is not
counted.
"""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from proxy.accounting.samples import Sample
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.errors import MeterError, MeterLost, MeterUnavailable
from proxy.ports import MeterKind

POWERCAP = Path("/sys/class/powercap")

IMPLAUSIBLE_W = 5_000
"""More than any CPU package draws. A counter that fell, read as a wrap, and needs more than this was reset."""


class RaplMeter:
    """One RAPL domain. Wraps across restarts cannot be seen, so every opening is an epoch and starts at zero."""

    kind: MeterKind = "rapl"
    estimated = False

    def __init__(self, domain: Path, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        label = _text(domain / "name")
        self.gpu = f"cpu-{label}"
        self.name = f"rapl:{label}"
        self.epoch = f"rapl:{uuid.uuid4()}"
        self._clock = clock
        self._path = domain / "energy_uj"
        self._range_uj = _number(domain / "max_energy_range_uj")
        self._total_uj = 0
        self._file = _opened(self._path)
        try:
            self._raw_uj, self._at = self._reading()
        except MeterError:
            self.close()
            raise
        self.description = f"RAPL domain {label}, energy counter of the CPU package (no DRAM), wraps handled"

    def read(self) -> Sample:
        """One reading; raises MeterLost if the file stops answering."""
        raw_uj, at = self._reading()
        used_uj = raw_uj - self._raw_uj
        if used_uj < 0:
            used_uj += self._range_uj
            if used_uj * 1_000 > IMPLAUSIBLE_W * (at - self._at):
                # A reset shows as a counter that falls, and is bridged by whoever subtracts.
                self._total_uj = used_uj = 0
        self._total_uj += used_uj
        self._raw_uj, self._at = raw_uj, at
        return Sample(at, Microjoules(self._total_uj))

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _reading(self) -> tuple[int, Nanoseconds]:
        before = self._clock()
        try:
            raw_uj = int(os.pread(self._file, 32, 0))
        except (OSError, ValueError) as error:
            raise MeterLost(f"{self._path}: {error}") from error
        return raw_uj, Nanoseconds((before + self._clock()) // 2)


def open_rapl(root: Path = POWERCAP, *, clock: Callable[[], int] = time.monotonic_ns) -> list[RaplMeter]:
    """A meter for every CPU package; raises MeterUnavailable with the file and the remedy."""
    zones = sorted(root.glob("intel-rapl*:*"))
    domains = domains_to_count([(zone, _text(zone / "name")) for zone in zones])
    if not domains:
        raise MeterUnavailable(f"rapl: no package domain under {root} (virtual machine, or module intel_rapl_msr)")
    meters: list[RaplMeter] = []
    try:
        for domain in domains:
            meters.append(RaplMeter(domain, clock=clock))
    except MeterError:
        for meter in meters:
            meter.close()
        raise
    return meters


def domains_to_count(zones: Sequence[tuple[Path, str]]) -> list[Path]:
    """The domains that together cover everything once: each package by name, else psys alone.

    The same package may be offered by two interfaces (intel-rapl and intel-rapl-mmio); the first counts.
    """
    packages: dict[str, Path] = {}
    for zone, label in zones:
        if label.startswith("package"):
            packages.setdefault(label, zone)
    return list(packages.values()) or [zone for zone, label in zones if label == "psys"][:1]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise MeterUnavailable(f"{path}: {error.strerror}") from error


def _number(path: Path) -> int:
    text = _text(path)
    if not text.isdecimal() or int(text) == 0:
        raise MeterUnavailable(f"{path}: {text!r} is not a counter's range")
    return int(text)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except PermissionError as error:
        remedy = f"run as root or let this user read it (chmod a+r {path}, again after each boot)"
        raise MeterUnavailable(f"{path} is readable by root only: {remedy}") from error
    except OSError as error:
        raise MeterUnavailable(f"{path}: {error.strerror}") from error
