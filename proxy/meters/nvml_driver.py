"""The only home of pynvml: one shared driver connection, its answers, and its errors by our names."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pynvml

from proxy.errors import MeterError, MeterLost, MeterUnavailable, MeterUnsupported

COUNTER: int = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
INSTANT: int = pynvml.NVML_FI_DEV_POWER_INSTANT
AVERAGE: int = pynvml.NVML_FI_DEV_POWER_AVERAGE

Device = Any
"""NVML's handle, valid until the driver connection is restarted."""

Replies = dict[int, int | MeterError]
"""What each field answered: whole millijoules or milliwatts, or why there is no value."""

_MEANINGS: dict[int, tuple[type[MeterError], str]] = {
    pynvml.NVML_ERROR_GPU_IS_LOST: (MeterLost, "the GPU is lost (fell off the bus); it needs a reset or a reboot"),
    pynvml.NVML_ERROR_RESET_REQUIRED: (MeterLost, "the GPU needs a reset"),
    pynvml.NVML_ERROR_UNKNOWN: (
        MeterLost,
        "the driver answers 'unknown error'; a container that lost its devices must be restarted",
    ),
    pynvml.NVML_ERROR_UNINITIALIZED: (MeterLost, "the driver connection is down"),
    pynvml.NVML_ERROR_NOT_FOUND: (MeterLost, "the driver no longer knows this GPU"),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (MeterUnavailable, "the NVIDIA driver is not loaded"),
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (MeterUnavailable, "there is no libnvidia-ml.so.1 (no NVIDIA driver)"),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        MeterUnavailable,
        "the driver was upgraded under a running process: restart the proxy (and the machine, if that does not help)",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (MeterUnavailable, "this user may not read the GPU; see /dev/nvidia*"),
    pynvml.NVML_ERROR_NOT_SUPPORTED: (MeterUnsupported, "the GPU does not support this reading"),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (MeterUnsupported, "the driver is too old for this reading"),
    # Per-value answer of drivers that do not know a field yet.
    pynvml.NVML_ERROR_INVALID_ARGUMENT: (MeterUnsupported, "the driver does not know this reading"),
}

# Which member of the value's union is filled; NVML says so for each value.
_MEMBERS: dict[int, str] = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}

_log = logging.getLogger(__name__)


def failure(code: int, who: str) -> MeterError:
    """The named error for an NVML return code; an unlisted one counts as lost, so it is tried again."""
    kind, meaning = _MEANINGS.get(code, (MeterLost, f"NVML error {code}"))
    return kind(f"{who}: {meaning}")


@contextmanager
def driver_errors(who: str) -> Iterator[None]:
    """The only place where NVML's exceptions become ours."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise failure(error.value, who) from error


class Driver:
    """The connection of this process to NVML, which all its meters share and any of them may restart.

    NVML counts its users: while one stays, the shutdown of another does nothing. A meter that must start
    afresh therefore restarts it for all; the others see `generation` move and look their handles up again.
    `lock` keeps a restart out of the readings of other threads.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self._up = False
        self._users = 0

    def acquire(self) -> None:
        """One more user; raises MeterUnavailable or MeterLost when the driver does not start."""
        with self.lock:
            if not self._up:
                self._start()
            self._users += 1

    def release(self) -> None:
        """One user less; the last one shuts the connection down."""
        with self.lock:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def restart(self, generation: int) -> None:
        """Shuts down and starts again, unless somebody has done so since `generation`."""
        with self.lock:
            if self._up and generation != self.generation:
                return
            self._stop()
            self._start()

    def _start(self) -> None:
        with driver_errors("nvml"):
            pynvml.nvmlInit()
        self._up = True
        self.generation += 1

    def _stop(self) -> None:
        if not self._up:
            return
        self._up = False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            _log.debug("nvml: shutdown: %s", error)


DRIVER = Driver()
"""The library keeps one state for the whole process, so there is one of these; it starts at first use."""


def present() -> list[tuple[int, str | MeterError]]:
    """Every GPU's index with its UUID, or with the reason why it does not say; raises MeterError."""
    with driver_errors("nvml"):
        count = pynvml.nvmlDeviceGetCount()
    return [(index, _uuid(index)) for index in range(count)]


def _uuid(index: int) -> str | MeterError:
    try:
        with driver_errors(f"GPU at index {index}"):
            return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except MeterError as error:
        return error


def find(gpu: str) -> Device:
    """The handle of a GPU by its full UUID; raises MeterError."""
    with driver_errors(gpu):
        return pynvml.nvmlDeviceGetHandleByUUID(gpu)


def describe(device: Device, gpu: str) -> str:
    """Board name, driver version and the power limit (a cap changes joules per token), for people."""
    with driver_errors(gpu):
        words = f"{pynvml.nvmlDeviceGetName(device)}, driver {pynvml.nvmlSystemGetDriverVersion()}"
    with suppress(pynvml.NVMLError):
        words += f", power limit {pynvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1_000:g} W"
    return words


def ask_fields(device: Device, gpu: str) -> Replies:
    """Counter and both powers in one call; empty where the driver has no such call. Raises MeterError."""
    try:
        with driver_errors(gpu):
            values = pynvml.nvmlDeviceGetFieldValues(device, [COUNTER, INSTANT, AVERAGE])
    except MeterUnsupported:
        return {}
    return {value.fieldId: _field(value, gpu) for value in values}


def _field(value: Any, gpu: str) -> int | MeterError:
    # The outer call succeeds even where a value does not: each carries its own return code and type.
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        return failure(value.nvmlReturn, gpu)
    member = _MEMBERS.get(value.valueType)
    if member is None:
        return MeterUnsupported(f"{gpu}: field {value.fieldId} has the unknown value type {value.valueType}")
    return int(getattr(value.value, member))


def ask_calls(device: Device, gpu: str) -> Replies:
    """The same facts from the older single calls, for drivers without field values."""
    asks = {COUNTER: pynvml.nvmlDeviceGetTotalEnergyConsumption, AVERAGE: pynvml.nvmlDeviceGetPowerUsage}
    return {field: _call(ask, device, gpu) for field, ask in asks.items()}


def _call(ask: Callable[[Device], int], device: Device, gpu: str) -> int | MeterError:
    try:
        with driver_errors(gpu):
            return int(ask(device))
    except MeterError as error:
        return error


def energy_mj(replies: Replies) -> int | None:
    """The counter in millijoules; None where it is not supported. Raises what else the device answered."""
    reply = replies.get(COUNTER)
    if reply is None or isinstance(reply, MeterUnsupported):
        return None
    if isinstance(reply, MeterError):
        raise reply
    return reply


def power_mw(replies: Replies) -> int | None:
    """Present power in milliwatts, the instantaneous one if there is a choice; None where there is none.

    Boards are known to answer 0 when asked too often, and none runs on 0 W: that is no reading either.
    """
    for field in (INSTANT, AVERAGE):
        reply = replies.get(field)
        if isinstance(reply, int) and reply > 0:
            return reply
    return None


def no_power(replies: Replies, gpu: str) -> MeterError:
    """Why there is no power: what the device failed with if it failed, else that it has none."""
    powers = (replies.get(field) for field in (INSTANT, AVERAGE))
    lost = [reply for reply in powers if isinstance(reply, MeterLost)]
    return lost[0] if lost else MeterUnsupported(f"{gpu}: no power reading")
