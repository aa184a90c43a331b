"""Meters: one file per kind of sensor, all giving cumulative microjoules; here is where a name becomes one.

    auto                       nvml where the driver shows a usable GPU, else rapl, else modelled
    nvml                       GPUs by UUID                     nvml.py, its driver in nvml_driver.py
    rapl                       CPU packages                     rapl.py
    modelled:idle_w=,core_w=   an estimate where nothing is     modelled.py
    recorded:FILE.csv          a replay                         recorded.py

An adapter is imported only when it is asked for, so that a machine without its library can use the others.
How often a counter moves is measured by pace.py.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.errors import ConfigurationError, MeterError, MeterUnavailable, MeterUnsupported
from proxy.ports import Meter, MeterKind

PROC = Path("/proc")
POWERCAP = Path("/sys/class/powercap")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MeterReport:
    """What one kind found, or why not. gpu and description are None where nothing could be opened, and
    reason is None where something was.
    """

    kind: MeterKind
    gpu: str | None
    available: bool
    estimated: bool
    description: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class _Surroundings:
    clock: Callable[[], int]
    proc: Path
    powercap: Path


def open_meters(
    spec: str,
    gpus: Sequence[str],
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    proc: Path = PROC,
    powercap: Path = POWERCAP,
) -> list[Meter]:
    """The meters that `spec` names (see the module's table), never an empty list.

    gpus: UUIDs or unique beginnings of them; empty means all that can be metered. For `recorded` one
    name is taken as the label. Raises ConfigurationError for a specification that cannot work, and
    MeterError for what this machine does not give.
    """
    kind, colon, options = spec.partition(":")
    opener = _OPENERS.get(kind)
    if opener is None:
        raise ConfigurationError(f"{spec!r} is no meter; there are: {', '.join(_OPENERS)}")
    if colon and kind not in ("modelled", "recorded"):
        raise ConfigurationError(f"meter {kind} takes no options, but {spec!r} gives some")
    if gpus and kind in ("rapl", "modelled"):
        raise ConfigurationError(f"meter {kind} does not measure GPUs: leave gpus empty (it names {', '.join(gpus)})")
    return opener(options, gpus, _Surroundings(clock, proc, powercap))


def survey(
    *, clock: Callable[[], int] = time.monotonic_ns, proc: Path = PROC, powercap: Path = POWERCAP
) -> list[MeterReport]:
    """Every kind with what it finds on this machine, or why it finds nothing; raises nothing."""
    here = _Surroundings(clock, proc, powercap)
    return [
        *_survey_nvml(here),
        *_survey_kind("rapl", lambda: _open_rapl("", (), here)),
        *_survey_kind("modelled", lambda: _open_modelled("", (), here)),
        _absent("recorded", "replays a file: recorded:FILE.csv"),
    ]


def _open_auto(options: str, gpus: Sequence[str], here: _Surroundings) -> list[Meter]:
    if gpus:
        # Who names GPUs must not be given the energy of something else.
        return _open_nvml(options, gpus, here)
    for opener in (_open_nvml, _open_rapl):
        try:
            return opener(options, gpus, here)
        except (MeterUnavailable, MeterUnsupported) as error:
            _log.info("meter auto goes on to the next kind: %s", error)
    return _open_modelled(options, gpus, here)


def _open_nvml(_options: str, gpus: Sequence[str], here: _Surroundings) -> list[Meter]:
    from proxy.meters.nvml import open_nvml

    return [*open_nvml(gpus, clock=here.clock)]


def _open_rapl(_options: str, _gpus: Sequence[str], here: _Surroundings) -> list[Meter]:
    from proxy.meters.rapl import open_rapl

    return [*open_rapl(here.powercap, clock=here.clock)]


def _open_modelled(options: str, _gpus: Sequence[str], here: _Surroundings) -> list[Meter]:
    from proxy.meters.modelled import CORE_W, IDLE_W, ModelledMeter

    powers = {"idle_w": IDLE_W, "core_w": CORE_W} | _numbers(options, ("idle_w", "core_w"))
    return [ModelledMeter(idle_w=powers["idle_w"], core_w=powers["core_w"], proc=here.proc, clock=here.clock)]


def _open_recorded(options: str, gpus: Sequence[str], here: _Surroundings) -> list[Meter]:
    from proxy.meters.recorded import RecordedMeter

    if not options:
        raise ConfigurationError("meter recorded needs a file: recorded:FILE.csv")
    if len(gpus) > 1:
        raise ConfigurationError(f"a recording is one meter, but gpus names {', '.join(gpus)}")
    return [RecordedMeter(Path(options), gpu=gpus[0] if gpus else None, clock=here.clock)]


_OPENERS: dict[str, Callable[[str, Sequence[str], _Surroundings], list[Meter]]] = {
    "auto": _open_auto,
    "nvml": _open_nvml,
    "rapl": _open_rapl,
    "modelled": _open_modelled,
    "recorded": _open_recorded,
}


def _numbers(options: str, known: Sequence[str]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key not in known:
            raise ConfigurationError(f"meter modelled has no option {key!r}; there are: {', '.join(known)}")
        try:
            numbers[key] = float(value)
        except ValueError:
            raise ConfigurationError(f"meter modelled: {key} is not a number: {value!r}") from None
    return numbers


def _survey_nvml(here: _Surroundings) -> Iterator[MeterReport]:
    try:
        from proxy.meters.nvml import probe

        found = probe(clock=here.clock)
    except (MeterError, ImportError) as error:
        yield _absent("nvml", str(error))
        return
    if not found:
        yield _absent("nvml", "the driver works but shows no GPU")
    for gpu, result in found:
        yield _absent("nvml", str(result), gpu) if isinstance(result, MeterError) else _present(result)


def _survey_kind(kind: MeterKind, opener: Callable[[], list[Meter]]) -> list[MeterReport]:
    try:
        return [_present(meter) for meter in opener()]
    except MeterError as error:
        return [_absent(kind, str(error))]


def _present(meter: Meter) -> MeterReport:
    meter.close()
    return MeterReport(meter.kind, meter.gpu, True, meter.estimated, meter.description, None)


def _absent(kind: MeterKind, reason: str, gpu: str | None = None) -> MeterReport:
    return MeterReport(kind, gpu, False, kind == "modelled", None, reason)
