"""What a GPU run finds on this machine: the GPU it measures, or a sentence that says what is missing for one."""

import importlib.util
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pynvml

from proxy.errors import MeterError
from proxy.meters import nvml_driver
from tests.engine.real import REPOSITORY, VENV

UUID = "JOULEPROXY_GPU_UUID"
URL = "JOULEPROXY_GPU_ENGINE_URL"
SERVE = "JOULEPROXY_GPU_SERVE"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU the engine runs on. memory_gb: None where the driver does not say."""

    uuid: str
    name: str
    driver: str
    power_limit_w: float | None
    memory_gb: float | None


class Missing(Exception):
    """A GPU run is not possible here; the message says what for, in one sentence."""


def no_gpu() -> str | None:
    """Why there is no GPU to measure; None where there is one."""
    try:
        gpus()
    except Missing as missing:
        return str(missing)
    return None


def gpus() -> list[str]:
    """UUIDs of the GPUs of this machine that have an energy counter; raises Missing when there are none."""
    try:
        nvml_driver.DRIVER.acquire()
    except MeterError as error:
        raise Missing(f"no NVIDIA GPU can be read: {error}") from None
    try:
        found = [uuid for _, uuid in nvml_driver.present() if isinstance(uuid, str)]
        counted = [uuid for uuid in found if _counts(uuid)]
    except MeterError as error:
        raise Missing(f"no NVIDIA GPU can be read: {error}") from None
    finally:
        nvml_driver.DRIVER.release()
    if not found:
        raise Missing("the NVIDIA driver works but shows no GPU")
    if not counted:
        raise Missing(f"no GPU here has an energy counter (Volta or newer has one): {', '.join(found)}")
    return counted


def _counts(uuid: str) -> bool:
    device = nvml_driver.find(uuid)
    return any(nvml_driver.energy_mj(ask(device, uuid)) is not None for ask in _WAYS)


_WAYS = (nvml_driver.ask_fields, nvml_driver.ask_calls)


def chosen() -> Gpu:
    """The GPU to measure: the one JOULEPROXY_GPU_UUID names, else the only one; raises Missing."""
    there = gpus()
    wanted = os.environ.get(UUID)
    if wanted is None and len(there) > 1:
        raise Missing(f"there are {len(there)} GPUs; {UUID} must name the one the engine runs on: {', '.join(there)}")
    uuid = wanted or there[0]
    if uuid not in there:
        raise Missing(f"{UUID} names {uuid}; there are: {', '.join(there)}")
    nvml_driver.DRIVER.acquire()
    try:
        return _described(uuid)
    finally:
        nvml_driver.DRIVER.release()


def _described(uuid: str) -> Gpu:
    device = nvml_driver.find(uuid)
    limit_w = memory_gb = None
    with suppress(pynvml.NVMLError):
        limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000
    with suppress(pynvml.NVMLError):
        memory_gb = pynvml.nvmlDeviceGetMemoryInfo(device).total / 1e9
    return Gpu(uuid, pynvml.nvmlDeviceGetName(device), pynvml.nvmlSystemGetDriverVersion(), limit_w, memory_gb)


def engine_python() -> Path:
    """The interpreter that has vLLM: that of deploy/engine, else this one; raises Missing."""
    own = VENV / "bin" / "python"
    if own.exists():
        return own
    if importlib.util.find_spec("vllm") is None:
        raise Missing(f"no vLLM: run deploy/engine install, or name a server with {URL} or a command with {SERVE}")
    return Path(sys.executable)


def facts(gpu: Gpu) -> dict[str, str | float | None]:
    """The machine, for the page of results. No host name, no user."""
    shown = {key: value for key, value in asdict(gpu).items() if key != "uuid"}
    return {
        **shown,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    asked = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def torch_version() -> str | None:
    """That of torch beside a vLLM started here; None where nobody says."""
    if os.environ.get(URL) or os.environ.get(SERVE):
        return None
    code = "from importlib.metadata import version; print(version('torch'))"
    try:
        asked = subprocess.run([engine_python(), "-c", code], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, Missing, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
