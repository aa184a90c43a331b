"""From a specification to meters: what auto takes, what is refused, and what the survey says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ConfigurationError, JouleproxyError, MeterUnavailable
from proxy.meters import open_meters, survey
from proxy.ports import Meter, OpenMeters

NOT_SUPPORTED, NOT_LOADED, LOST = 3, 9, 15


def fits_the_port() -> OpenMeters:
    """For the type checker: this is what the loops are given."""
    return open_meters


def package(root: Path) -> Path:
    folder = root / "intel-rapl:0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text("1000\n")
    return root


def closed(meters: list[Meter]) -> list[Meter]:
    for meter in meters:
        meter.close()
    return meters


def chosen(spec: str, gpus: list[str], powercap: Path) -> list[str] | str:
    try:
        return [meter.name for meter in closed(open_meters(spec, gpus, powercap=powercap))]
    except JouleproxyError as error:
        return f"{type(error).__name__}: {error}"


def auto_choices(machine: Any) -> Any:
    import tempfile

    seen = {}
    with tempfile.TemporaryDirectory() as name:
        rapl, nothing = package(Path(name) / "powercap"), Path(name) / "nothing"
        machine.gpu("GPU-aa11", base_mj=1)
        seen["gpu"] = chosen("auto", [], rapl)
        seen["gpu by name"] = chosen("auto", ["GPU-aa"], rapl)
        machine.gpu("GPU-aa11", counter=NOT_SUPPORTED, power=NOT_SUPPORTED)
        seen["unsupported gpu"] = chosen("auto", [], rapl)
        seen["unsupported gpu by name"] = chosen("auto", ["GPU-aa11"], rapl)
        machine.gpu("GPU-aa11", code=LOST)
        seen["lost gpu"] = chosen("auto", [], rapl)
        machine.drive(init=NOT_LOADED)
        seen["no driver"] = chosen("auto", [], rapl)
        seen["no driver, gpu by name"] = chosen("auto", ["GPU-aa11"], rapl)
        seen["nothing"] = chosen("auto", [], nothing)
    return seen


def test_auto_takes_the_best_sensor_that_works(beside_stand_in: Any) -> None:
    """
    GPU, then CPU packages, then the estimate.
    """
    seen = beside_stand_in(auto_choices)

    assert seen["gpu"] == seen["gpu by name"] == ["nvml:GPU-aa11"]
    assert seen["unsupported gpu"] == seen["no driver"] == ["rapl:package-0"]
    assert seen["nothing"] == ["modelled"]


def test_auto_never_puts_something_else_in_the_place_of_a_named_or_lost_gpu(beside_stand_in: Any) -> None:
    """
    The CPU's energy under a GPU's name would be a wrong bill.
    """
    seen = beside_stand_in(auto_choices)

    assert seen["unsupported gpu by name"] == "MeterUnsupported: GPU-aa11: no power reading"
    assert seen["no driver, gpu by name"] == "MeterUnavailable: nvml: the NVIDIA driver is not loaded"
    assert seen["lost gpu"].startswith("MeterLost: GPU at index 0: the GPU is lost")


def surveyed(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=1)
    machine.gpu("GPU-bb22", code=LOST)
    here = survey(powercap=Path("nowhere"))
    machine.drive(init=NOT_LOADED)
    without = survey(powercap=Path("nowhere"))
    calls = machine.calls()
    rows = [[r.kind, r.gpu, r.available, r.estimated, r.description or r.reason] for r in here]
    return {"here": rows, "without": [[r.kind, r.reason] for r in without], "open": calls.count("init") - 1}


def test_the_survey_lists_every_kind_with_what_it_found_or_why_not(beside_stand_in: Any) -> None:
    """
    A lost GPU stands beside a healthy one, and the estimate is called one.
    """
    gpu, lost, rapl, modelled, recorded = beside_stand_in(surveyed)["here"]

    assert gpu[:4] == ["nvml", "GPU-aa11", True, False]
    assert lost[:4] == ["nvml", "index 1", False, False]
    assert "the GPU is lost" in lost[4]
    assert rapl[:4] == ["rapl", None, False, False]
    assert modelled[:4] == ["modelled", "modelled", True, True]
    assert recorded == ["recorded", None, False, False, "replays a file: recorded:FILE.csv"]


def test_the_survey_without_a_driver_says_so(beside_stand_in: Any) -> None:
    """
    And goes on.
    """
    rows = beside_stand_in(surveyed)["without"]

    assert rows[0] == ["nvml", "nvml: the NVIDIA driver is not loaded"]
    assert [kind for kind, _ in rows] == ["nvml", "rapl", "modelled", "recorded"]


def test_rapl_gives_every_package(tmp_path: Path) -> None:
    """
    By its label.
    """
    (meter,) = closed(open_meters("rapl", [], powercap=package(tmp_path)))

    assert (meter.kind, meter.gpu) == ("rapl", "cpu-package-0")


def test_rapl_is_not_replaced_when_it_is_asked_for(tmp_path: Path) -> None:
    """
    Only auto chooses.
    """
    with pytest.raises(MeterUnavailable, match="rapl"):
        open_meters("rapl", [], powercap=tmp_path)


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        ("modelled", "idle_w=20,core_w=12"),
        ("modelled:core_w=3.5", "idle_w=20,core_w=3.5"),
        ("modelled:idle_w=0,core_w=1", "idle_w=0,core_w=1"),
    ],
)
def test_modelled_takes_its_powers_as_options(spec: str, parameters: str) -> None:
    """
    What is not given is the documented assumption.
    """
    (meter,) = open_meters(spec, [])

    assert f"({parameters})" in meter.description


def test_a_recording_takes_the_name_of_the_gpu_it_stands_for(tmp_path: Path) -> None:
    """
    On the clock it is given.
    """
    (tmp_path / "r.csv").write_text("seconds,joules\n0,1\n")

    (meter,) = open_meters(f"recorded:{tmp_path / 'r.csv'}", ["GPU-aa11"], clock=lambda: 42)

    assert (meter.gpu, meter.read().at) == ("GPU-aa11", 42)


@pytest.mark.parametrize(
    ("spec", "gpus", "message"),
    [
        ("dcmg", [], "'dcmg' is no meter; there are: auto, nvml, rapl, modelled, recorded"),
        ("", [], "'' is no meter"),
        ("nvml:fast", [], "meter nvml takes no options"),
        ("auto:", [], "meter auto takes no options"),
        ("rapl", ["GPU-aa11"], "meter rapl does not measure GPUs: leave gpus empty"),
        ("modelled", ["GPU-aa11"], "meter modelled does not measure GPUs"),
        ("modelled:watts=3", [], "meter modelled has no option 'watts'; there are: idle_w, core_w"),
        ("modelled:idle_w=x", [], "meter modelled: idle_w is not a number: 'x'"),
        ("modelled:idle_w", [], "meter modelled: idle_w is not a number: ''"),
        ("modelled:idle_w=-1", [], "idle_w must be a power in watts"),
        ("recorded", [], "meter recorded needs a file"),
        ("recorded:x.csv", ["GPU-a", "GPU-b"], "a recording is one meter"),
        ("recorded:absent.csv", [], "absent.csv"),
    ],
)
def test_a_specification_that_cannot_work_is_refused(spec: str, gpus: list[str], message: str) -> None:
    """
    With what would.
    """
    with pytest.raises(ConfigurationError) as caught:
        open_meters(spec, gpus)

    assert message in str(caught.value)


def test_the_estimate_needs_no_nvidia_library() -> None:
    """
    Neither pynvml nor the other adapters are imported.
    """
    program = (
        "import sys; from proxy.meters import open_meters; open_meters('modelled', []); "
        "print(sorted(set(sys.modules) & {'pynvml', 'proxy.meters.nvml', 'proxy.meters.rapl'}))"
    )

    child = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )

    assert child.stdout == "[]\n", child.stderr
