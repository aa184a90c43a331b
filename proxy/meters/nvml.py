"""NVIDIA GPUs as meters: the cumulative energy counter, or integrated power where there is none.

The counter covers one whole board, counts millijoules since the driver was loaded, and moves in jumps
(about every 100 ms on data-centre boards). GPUs are named by UUID only: NVML's indices are not CUDA's.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from proxy.accounting.samples import Sample
from proxy.accounting.units import SECOND, Microjoules, Nanoseconds, from_millijoules
from proxy.errors import ConfigurationError, MeterError, MeterLost, MeterUnavailable, MeterUnsupported
from proxy.meters import nvml_driver
from proxy.meters.nvml_driver import DRIVER, Device, Driver, Replies, energy_mj, no_power, power_mw
from proxy.ports import MeterKind

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FIRST_RETRY = SECOND
LAST_RETRY = Nanoseconds(60 * SECOND)

_log = logging.getLogger(__name__)


class PowerIntegral:
    """Energy from power readings by trapezoids: whole microjoules go out, the rest is carried exactly."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._half_picojoules = 0

    def add(self, at: int, reading_mw: int) -> Microjoules:
        """Energy so far, after a power in milliwatts seen at `at` (monotonic nanoseconds); mW * ns = pJ."""
        if self._last is not None:
            before, before_mw = self._last
            self._half_picojoules += (before_mw + reading_mw) * (at - before)
        self._last = (at, reading_mw)
        return Microjoules(self._half_picojoules // 2_000_000)


class NvmlMeter:
    """One GPU by its full UUID; opening it raises MeterError.

    With a counter the epoch is kernel boot and UUID, so it continues over restarts of the proxy; a driver
    reload shows as a counter that fell. Without one the epoch is this object's own, and the integral
    starts at zero again after an outage, so that nobody is charged for power that nobody saw.
    """

    kind: MeterKind = "nvml"
    estimated = False

    def __init__(
        self,
        gpu: str,
        *,
        driver: Driver = DRIVER,
        clock: Callable[[], int] = time.monotonic_ns,
        boot_id: Path = BOOT_ID,
    ) -> None:
        self.name = f"nvml:{gpu}"
        self.gpu = gpu
        self._driver = driver
        self._clock = clock
        self._open = True
        self._failed: MeterError | None = None
        self._failed_in = 0
        self._retry_at = 0
        self._delay = 0
        driver.acquire()
        try:
            with driver.lock:
                self._find()
                self._ask, self._integral = self._source()
                self.description = f"{nvml_driver.describe(self._device, gpu)}, {self._precision()}"
            self.epoch = self._origin(boot_id)
        except BaseException:
            self.close()
            raise

    def read(self) -> Sample:
        """One reading; after a failure the next read starts the driver afresh, later ones after 1, 2, ... 60 s.

        Until then MeterLost is raised at once, with the last reason.
        """
        if self._failed is not None and self._clock() < self._retry_at:
            raise MeterLost(str(self._failed))
        with self._driver.lock:
            try:
                if self._failed is not None:
                    self._recover()
                sample = self._sample()
            except MeterError as error:
                self._note(error)
                raise
        self._failed = None
        return sample

    def close(self) -> None:
        """Gives the driver back; a second call does nothing."""
        if self._open:
            self._open = False
            self._driver.release()

    def _sample(self) -> Sample:
        if self._generation != self._driver.generation:
            self._find()
        before = self._clock()
        replies = self._ask(self._device, self.gpu)
        at = Nanoseconds((before + self._clock()) // 2)
        reading_mw = power_mw(replies)
        if self._integral is None:
            counter = self._counted(replies)
        elif reading_mw is None:
            raise no_power(replies, self.gpu)
        else:
            counter = self._integral.add(at, reading_mw)
        return Sample(at, counter, None if reading_mw is None else reading_mw / 1_000)

    def _counted(self, replies: Replies) -> Microjoules:
        counter_mj = energy_mj(replies)
        if counter_mj is None:
            raise MeterUnsupported(f"{self.gpu}: the energy counter it had is not supported any more")
        return from_millijoules(counter_mj)

    def _recover(self) -> None:
        self._driver.restart(self._failed_in)
        self._find()
        if self._integral is not None:
            self._integral = PowerIntegral()

    def _note(self, error: MeterError) -> None:
        again = self._failed is not None
        self._failed = error
        self._failed_in = self._driver.generation
        self._delay = min(LAST_RETRY, max(FIRST_RETRY, 2 * self._delay)) if again else 0
        self._retry_at = self._clock() + self._delay

    def _find(self) -> None:
        self._device = nvml_driver.find(self.gpu)
        self._generation = self._driver.generation

    def _source(self) -> tuple[Callable[[Device, str], Replies], PowerIntegral | None]:
        ways = (nvml_driver.ask_fields, nvml_driver.ask_calls)
        answers = [(ask, ask(self._device, self.gpu)) for ask in ways]
        for ask, replies in answers:
            if energy_mj(replies) is not None:
                return ask, None
        for ask, replies in answers:
            if power_mw(replies) is not None:
                return ask, PowerIntegral()
        raise no_power(answers[-1][1], self.gpu)

    def _precision(self) -> str:
        return "energy counter" if self._integral is None else "power integral (it has no energy counter)"

    def _origin(self, boot_id: Path) -> str:
        if self._integral is not None:
            return f"integral:{uuid.uuid4()}"
        try:
            return f"{boot_id.read_text().strip()}:{self.gpu}"
        except OSError as error:
            raise MeterUnavailable(f"{self.gpu}: the kernel's boot id cannot be read: {error}") from error


def open_nvml(gpus: Sequence[str], *, clock: Callable[[], int] = time.monotonic_ns) -> list[NvmlMeter]:
    """Meters for the named GPUs, or for all that can be metered; raises ConfigurationError or MeterError."""
    DRIVER.acquire()
    try:
        return _named(gpus, clock) if gpus else _all(clock)
    finally:
        DRIVER.release()


def probe(*, clock: Callable[[], int] = time.monotonic_ns) -> list[tuple[str, NvmlMeter | MeterError]]:
    """Every GPU there is, as an open meter or with the reason why not; raises MeterError without a driver."""
    DRIVER.acquire()
    try:
        return [_probe_one(index, gpu, clock) for index, gpu in nvml_driver.present()]
    finally:
        DRIVER.release()


def _probe_one(index: int, gpu: str | MeterError, clock: Callable[[], int]) -> tuple[str, NvmlMeter | MeterError]:
    if isinstance(gpu, MeterError):
        return f"index {index}", gpu
    try:
        return gpu, NvmlMeter(gpu, clock=clock)
    except MeterError as error:
        return gpu, error


def _all(clock: Callable[[], int]) -> list[NvmlMeter]:
    found = probe(clock=clock)
    meters = [meter for _, meter in found if isinstance(meter, NvmlMeter)]
    failures = [error for _, error in found if isinstance(error, MeterError)]
    if not meters:
        failures.sort(key=lambda error: not isinstance(error, MeterLost))
        raise failures[0] if failures else MeterUnavailable("nvml: the driver works but shows no GPU")
    for error in failures:
        _log.warning("not metered: %s", error)
    return meters


def _named(gpus: Sequence[str], clock: Callable[[], int]) -> list[NvmlMeter]:
    present = nvml_driver.present()
    known = [gpu for _, gpu in present if isinstance(gpu, str)]
    silent = [error for _, error in present if isinstance(error, MeterError)]
    meters: list[NvmlMeter] = []
    try:
        for gpu in match(gpus, known, silent):
            meters.append(NvmlMeter(gpu, clock=clock))
    except BaseException:
        for meter in meters:
            meter.close()
        raise
    return meters


def match(wanted: Sequence[str], known: Sequence[str], silent: Sequence[MeterError] = ()) -> list[str]:
    """Full UUIDs for UUIDs or unique beginnings of them.

    Raises ConfigurationError, or MeterLost if the GPU may be one of those that do not answer.
    """
    matched = [_match_one(name, known, silent) for name in wanted]
    twice = sorted({gpu for gpu in matched if matched.count(gpu) > 1})
    if twice:
        raise ConfigurationError(f"gpus names {', '.join(twice)} more than once; its energy would count twice")
    return matched


def _match_one(name: str, known: Sequence[str], silent: Sequence[MeterError]) -> str:
    if name.startswith("MIG-"):
        raise ConfigurationError(
            f"{name} is a MIG instance, and NVML measures energy of whole boards only: name the board's GPU-... UUID, "
            "and set share_gpus = true where several backends run on it"
        )
    if name in known:
        return name
    hits = [gpu for gpu in known if name.startswith("GPU-") and gpu.startswith(name)]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise ConfigurationError(f"{name} is the beginning of several GPUs: {', '.join(hits)}")
    there_are = f"{name} is not a GPU of this machine; there are: {', '.join(known) or 'none'}"
    if silent:
        raise MeterLost(f"{there_are}; and {', '.join(map(str, silent))}")
    raise ConfigurationError(there_are)
