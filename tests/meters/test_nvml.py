"""GPUs through the real pynvml, against a scripted driver (see conftest.py): scenario first, then what it must say.

Pure parts are tested directly; pynvml itself is installed everywhere, only the driver's library is not.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy.accounting.samples import Sample, Timeline
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.errors import ConfigurationError, MeterError, MeterLost
from proxy.meters.nvml import NvmlMeter, PowerIntegral, match, open_nvml, probe
from proxy.meters.nvml_driver import driver_errors, failure
from proxy.meters.pace import CounterPace, change_edges, counter_pace

LOST, RESET, MISMATCH, NOT_LOADED, UNKNOWN, NOT_SUPPORTED = 15, 16, 18, 9, 999, 3


def name_of(error: Exception) -> str:
    return type(error).__name__


def outcome(meter: NvmlMeter) -> int | str:
    """A reading's counter, or the name of the error."""
    try:
        return meter.read().counter
    except MeterError as error:
        return name_of(error)


def refusal(gpus: Sequence[str]) -> str:
    try:
        meters = open_nvml(gpus)
    except (MeterError, ConfigurationError) as error:
        return f"{name_of(error)}: {error}"
    for meter in meters:
        meter.close()
    return "opened " + ", ".join(meter.gpu for meter in meters)


def two_healthy(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000, power_mw=300_000)
    machine.gpu("GPU-bb22", base_mj=7_000, power_mw=100_000)
    meters = open_nvml([], clock=machine.clock)
    seen = []
    for now_ms in (0, 99, 100, 250):
        machine.drive(now_ms=now_ms)
        seen.append([meter.read().counter for meter in meters])
    facts = [(meter.name, meter.gpu, meter.kind, meter.estimated, meter.description) for meter in meters]
    for meter in meters:
        meter.close()
    return {"seen": seen, "facts": facts, "power_w": 300.0, "epochs": [meter.epoch for meter in meters]}


def test_the_counter_is_given_in_whole_microjoules_and_moves_as_the_driver_moves_it(beside_stand_in: Any) -> None:
    """
    Millijoules become microjoules; between the driver's updates nothing changes.
    """
    seen = beside_stand_in(two_healthy)["seen"]

    assert seen == [[5_000_000, 7_000_000], [5_000_000, 7_000_000], [35_000_000, 17_000_000], [65_000_000, 27_000_000]]


def test_a_meter_says_board_driver_limit_and_how_it_measures(beside_stand_in: Any) -> None:
    """
    The description is for people; name and gpu are the UUID's.
    """
    facts = beside_stand_in(two_healthy)["facts"]

    words = "Scripted GPU, driver 999.1, power limit 700 W, energy counter"
    assert ["nvml:GPU-aa11", "GPU-aa11", "nvml", False, words] == facts[0]


def test_the_epoch_of_a_counter_is_boot_and_uuid(beside_stand_in: Any) -> None:
    """
    So it goes on when the proxy restarts, and ends with the kernel that kept it.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    assert [f"{boot_id}:GPU-aa11", f"{boot_id}:GPU-bb22"] == beside_stand_in(two_healthy)["epochs"]


def one_read(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000, power_mw=300_000)
    with closing(NvmlMeter("GPU-aa11", clock=machine.clock)) as meter:
        machine.calls()
        machine.now, machine.step = 1_000, 400
        sample = meter.read()
        return {"at": sample.at, "power_w": sample.power_w, "calls": machine.calls()}


def test_a_reading_is_stamped_with_the_middle_of_its_only_call(beside_stand_in: Any) -> None:
    """
    One library call per reading, asked between 1400 and 1800 ns.
    """
    seen = beside_stand_in(one_read)

    assert (seen["at"], seen["calls"]) == (1_600, ["field_values"])


def test_present_power_is_the_instantaneous_one(beside_stand_in: Any) -> None:
    """
    The stand-in's one-second average says 301 W.
    """
    assert beside_stand_in(one_read)["power_w"] == 300.0


def without_counter(machine: Any) -> Any:
    machine.gpu("GPU-cc33", power_mw=250_000, counter=NOT_SUPPORTED)
    with (
        closing(NvmlMeter("GPU-cc33", clock=machine.clock)) as meter,
        closing(NvmlMeter("GPU-cc33", clock=machine.clock)) as other,
    ):
        seen = [meter.read().counter]
        for power_mw in (250_000, 350_000):
            machine.now += 100 * MILLISECOND
            machine.gpu("GPU-cc33", power_mw=power_mw)
            seen.append(meter.read().counter)
        return {"seen": seen, "description": meter.description, "epochs": [meter.epoch, other.epoch]}


def test_a_value_that_is_not_supported_inside_a_call_that_worked_is_not_a_number(beside_stand_in: Any) -> None:
    """
    The outer call succeeds, the counter's own code does not: power is integrated, 25 J and then 30 J.
    """
    seen = beside_stand_in(without_counter)

    assert seen["seen"] == [0, 25_000_000, 55_000_000]
    assert "power integral" in seen["description"]


def test_integrals_never_share_an_epoch(beside_stand_in: Any) -> None:
    """
    Each begins at its own zero.
    """
    first, second = beside_stand_in(without_counter)["epochs"]

    assert first != second


def old_driver(machine: Any) -> Any:
    machine.gpu("GPU-dd44", base_mj=9_000, power_mw=50_000, fields=NOT_SUPPORTED)
    with closing(NvmlMeter("GPU-dd44", clock=machine.clock)) as meter:
        sample = meter.read()
        return [sample.counter, sample.power_w]


def test_a_driver_without_field_values_is_asked_by_the_older_calls(beside_stand_in: Any) -> None:
    """
    Counter and power are the same facts.
    """
    assert beside_stand_in(old_driver) == [9_000_000, 50.0]


def without_power(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=9_000, power_mw=50_000, power=NOT_SUPPORTED)
    machine.gpu("GPU-bb22", base_mj=9_000, power_mw=0)
    machine.gpu("GPU-cc33", counter=NOT_SUPPORTED, power=NOT_SUPPORTED)
    found = dict(probe())
    seen = [found[gpu].read().power_w for gpu in ("GPU-aa11",)]
    for meter in found.values():
        if isinstance(meter, NvmlMeter):
            meter.close()
    return {"power_w": seen, "third": name_of(found["GPU-cc33"]), "named": refusal(["GPU-cc33"]), "all": refusal([])}


def test_unknown_power_is_none(beside_stand_in: Any) -> None:
    """
    The counter is read all the same.
    """
    assert beside_stand_in(without_power)["power_w"] == [None]


def test_a_gpu_with_neither_counter_nor_power_is_refused_by_name_and_left_out_of_all(beside_stand_in: Any) -> None:
    """
    A display adapter must not keep the others from being metered.
    """
    seen = beside_stand_in(without_power)

    assert seen["third"] == "MeterUnsupported"
    assert seen["named"] == "MeterUnsupported: GPU-cc33: no power reading"
    assert seen["all"] == "opened GPU-aa11, GPU-bb22"


def zero_power(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=9_000, power_mw=50_000)
    with closing(NvmlMeter("GPU-aa11", clock=machine.clock)) as meter:
        machine.gpu("GPU-aa11", power_mw=0)
        # The stand-in's average says 1 W more than the instantaneous value, so that one is taken.
        return meter.read().power_w


def test_zero_watts_is_no_reading(beside_stand_in: Any) -> None:
    """
    The next source of power is asked instead.
    """
    assert beside_stand_in(zero_power) == 1.0


def lost_and_back(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000)
    machine.gpu("GPU-bb22", base_mj=7_000)
    first, second = open_nvml([], clock=machine.clock)
    with closing(first), closing(second):
        machine.gpu("GPU-aa11", code=LOST)
        machine.calls()
        log = [[0, outcome(first), outcome(second), "init" in machine.calls()]]
        for wait_s in (0, 0.9, 0.2, 1.0, 1.0, 3.9, 0.2):
            machine.now += int(wait_s * SECOND)
            log.append([wait_s, outcome(first), outcome(second), "init" in machine.calls()])
        machine.gpu("GPU-aa11", code=0, base_mj=6_000)
        log.append([0, outcome(first), outcome(second), "init" in machine.calls()])
        machine.now += 9 * SECOND
        log.append([9, outcome(first), outcome(second), "init" in machine.calls()])
        log.append([0, outcome(first), outcome(second), "init" in machine.calls()])
    return log


def test_a_lost_gpu_is_sought_afresh_at_once_and_then_with_growing_pauses_while_others_read_on(
    beside_stand_in: Any,
) -> None:
    """
    Columns: seconds waited, lost GPU, healthy GPU, driver started afresh. Back-off 0, 1, 2, 4, 8 s.
    """
    assert beside_stand_in(lost_and_back) == [
        [0, "MeterLost", 7_000_000, False],
        [0, "MeterLost", 7_000_000, True],
        [0.9, "MeterLost", 7_000_000, False],
        [0.2, "MeterLost", 7_000_000, True],
        [1.0, "MeterLost", 7_000_000, False],
        [1.0, "MeterLost", 7_000_000, True],
        [3.9, "MeterLost", 7_000_000, False],
        [0.2, "MeterLost", 7_000_000, True],
        [0, "MeterLost", 7_000_000, False],
        [9, 6_000_000, 7_000_000, True],
        [0, 6_000_000, 7_000_000, False],
    ]


def back_off_limit(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000)
    with closing(NvmlMeter("GPU-aa11", clock=machine.clock)) as meter:
        machine.gpu("GPU-aa11", code=RESET)
        for _ in range(20):
            outcome(meter)
            machine.now += 61 * SECOND
        outcome(meter)
        machine.calls()
        tries = []
        for _ in range(2):
            machine.now += 59 * SECOND
            outcome(meter)
            tries.append(machine.calls().count("init"))
            machine.now += 1 * SECOND
            outcome(meter)
            tries.append(machine.calls().count("init"))
        return tries


def test_the_pause_never_grows_over_a_minute(beside_stand_in: Any) -> None:
    """
    After hours of absence a GPU that returns is found within a minute.
    """
    assert beside_stand_in(back_off_limit) == [0, 1, 0, 1]


def unknown_error(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000)
    machine.gpu("GPU-bb22", base_mj=7_000)
    first, second = open_nvml([], clock=machine.clock)
    with closing(first), closing(second):
        machine.gpu("GPU-aa11", code=UNKNOWN)
        machine.drive(init=UNKNOWN)
        log = []
        for _ in range(3):
            log.append([outcome(first), outcome(second)])
            machine.now += 2 * SECOND
        machine.gpu("GPU-aa11", code=0)
        machine.drive(init=0)
        machine.now += 60 * SECOND
        machine.calls()
        log.append([outcome(first), outcome(second)])
        return {"log": log, "starts": machine.calls().count("init")}


def test_a_container_that_lost_its_devices_loses_all_meters_and_gets_them_back_with_one_start(
    beside_stand_in: Any,
) -> None:
    """
    Unknown error, first from one device, then from the driver's start: the connection is everybody's.
    """
    seen = beside_stand_in(unknown_error)

    assert seen["log"] == [
        ["MeterLost", 7_000_000],
        ["MeterLost", "MeterLost"],
        ["MeterLost", "MeterLost"],
        [5_000_000, 7_000_000],
    ]
    assert seen["starts"] == 1


def counter_fell(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000_000, power_mw=300_000)
    with closing(NvmlMeter("GPU-aa11", clock=machine.clock)) as meter:
        timeline = Timeline(meter.name)
        timeline.accept(meter.read())
        machine.now += SECOND
        machine.gpu("GPU-aa11", base_mj=40)
        window = timeline.accept(meter.read())
        assert window is not None
        return {"bridged": window.bridged, "energy": window.energy, "resets": timeline.resets}


def test_a_counter_that_was_reset_reaches_the_timeline_as_it_is(beside_stand_in: Any) -> None:
    """
    The timeline bridges it with the power read beside the counter: 300 W for 1 s.
    """
    assert beside_stand_in(counter_fell) == {"bridged": True, "energy": 300_000_000, "resets": 1}


def integral_over_outage(machine: Any) -> Any:
    machine.gpu("GPU-cc33", power_mw=200_000, counter=NOT_SUPPORTED)
    with closing(NvmlMeter("GPU-cc33", clock=machine.clock)) as meter:
        timeline = Timeline(meter.name)
        log = []
        for code, wait_s in ((0, 0), (0, 1), (LOST, 1), (0, 1)):
            machine.now += wait_s * SECOND
            machine.gpu("GPU-cc33", code=code)
            try:
                window = timeline.accept(meter.read())
                log.append(window and [window.energy, window.bridged])
            except MeterLost:
                log.append("lost")
        return log


def test_an_integral_claims_nothing_about_an_outage(beside_stand_in: Any) -> None:
    """
    It begins again at zero, so the gap becomes a bridged window that nobody is charged for.
    """
    assert beside_stand_in(integral_over_outage) == [None, [200_000_000, False], "lost", [400_000_000, True]]


def counter_gone(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000, power_mw=300_000)
    with closing(NvmlMeter("GPU-aa11", clock=machine.clock)) as meter:
        answers = []
        for code in (NOT_SUPPORTED, LOST):
            machine.gpu("GPU-aa11", counter=code)
            machine.now += 100 * SECOND
            answers.append(outcome(meter))
        return answers


def test_a_counter_that_stops_answering_is_never_zero(beside_stand_in: Any) -> None:
    """
    The outer call and the power still work; each value's own code decides.
    """
    assert beside_stand_in(counter_gone) == ["MeterUnsupported", "MeterLost"]


def refused_starts(machine: Any) -> Any:
    seen = {}
    for code in (NOT_LOADED, MISMATCH, UNKNOWN):
        machine.drive(init=code)
        seen[str(code)] = refusal([])
    machine.drive(init=0)
    return seen | {"empty": refusal([])}


def test_a_driver_that_does_not_start_says_why_and_what_to_do(beside_stand_in: Any) -> None:
    """
    Not loaded, upgraded under the process, devices taken away, no GPU.
    """
    seen = beside_stand_in(refused_starts)

    assert seen["9"] == "MeterUnavailable: nvml: the NVIDIA driver is not loaded"
    assert seen["18"].startswith("MeterUnavailable: nvml: the driver was upgraded under a running process: restart")
    assert seen["999"].startswith("MeterLost: nvml: the driver answers 'unknown error'")
    assert seen["empty"] == "MeterUnavailable: nvml: the driver works but shows no GPU"


def upgraded_under_us(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=5_000)
    with closing(NvmlMeter("GPU-aa11", clock=machine.clock)) as meter:
        machine.gpu("GPU-aa11", code=MISMATCH)
        machine.drive(init=MISMATCH)
        answers = []
        for _ in range(3):
            try:
                meter.read()
            except MeterError as error:
                answers.append([name_of(error), "restart the proxy" in str(error)])
        return answers


def test_a_driver_upgraded_under_a_running_proxy_asks_for_its_restart_at_every_read(beside_stand_in: Any) -> None:
    """
    While it waits for the next try it is simply lost, with the same advice.
    """
    assert beside_stand_in(upgraded_under_us) == [
        ["MeterUnavailable", True],
        ["MeterUnavailable", True],
        ["MeterLost", True],
    ]


def names(machine: Any) -> Any:
    for gpu in ("GPU-aa11", "GPU-aa22", "GPU-bb33"):
        machine.gpu(gpu, base_mj=1)
    asked = (["GPU-bb33"], ["GPU-b"], ["GPU-aa"], ["GPU-zz"], ["0"], ["MIG-1"], ["GPU-bb33", "GPU-b"])
    seen = {",".join(gpus): refusal(gpus) for gpus in asked}
    machine.gpu("GPU-aa22", code=LOST)
    return seen | {"lost": refusal(["GPU-aa22"]), "rest": refusal([])}


def test_gpus_are_named_by_uuid_or_a_unique_beginning_of_one(beside_stand_in: Any) -> None:
    """
    An index is no name, and whatever is wrong is answered with the UUIDs there are.
    """
    seen = beside_stand_in(names)

    there_are = "is not a GPU of this machine; there are: GPU-aa11, GPU-aa22, GPU-bb33"
    assert seen["GPU-bb33"] == seen["GPU-b"] == "opened GPU-bb33"
    assert seen["GPU-aa"] == "ConfigurationError: GPU-aa is the beginning of several GPUs: GPU-aa11, GPU-aa22"
    assert seen["GPU-zz"] == f"ConfigurationError: GPU-zz {there_are}"
    assert seen["0"] == f"ConfigurationError: 0 {there_are}"
    assert seen["MIG-1"] == (
        "ConfigurationError: MIG-1 is a MIG instance, and NVML measures energy of whole boards only: name the board's "
        "GPU-... UUID, and set share_gpus = true where several backends run on it"
    )
    assert seen["GPU-bb33,GPU-b"].startswith("ConfigurationError: gpus names GPU-bb33 more than once")


def test_a_gpu_that_is_lost_at_start_may_be_the_one_that_is_asked_for(beside_stand_in: Any) -> None:
    """
    It cannot say its UUID, so this is not the operator's mistake; asking for all leaves it out.
    """
    seen = beside_stand_in(names)

    assert seen["lost"].startswith("MeterLost: GPU-aa22 is not a GPU of this machine; there are: GPU-aa11, GPU-bb33;")
    assert seen["rest"] == "opened GPU-aa11, GPU-bb33"


def balance_of_starts(machine: Any) -> Any:
    machine.gpu("GPU-aa11", base_mj=1)
    machine.gpu("GPU-bb22", counter=NOT_SUPPORTED, power=NOT_SUPPORTED)
    machine.calls()
    refusal([])
    refusal(["GPU-bb22"])
    meter = NvmlMeter("GPU-aa11")
    meter.close()
    meter.close()
    calls = machine.calls()
    return [calls.count("init"), calls.count("shutdown")]


def test_what_is_opened_is_closed_once(beside_stand_in: Any) -> None:
    """
    Also after a GPU that could not be opened, and when close is called twice.
    """
    assert beside_stand_in(balance_of_starts) == [3, 3]


def measured_pace(machine: Any) -> Any:
    machine.gpu("GPU-aa11", power_mw=300_000)
    machine.drive(now_ms=machine.now // MILLISECOND)

    def pause(span_s: float) -> None:
        machine.now += round(span_s * SECOND)
        machine.drive(now_ms=machine.now // MILLISECOND)

    with closing(NvmlMeter("GPU-aa11", clock=machine.clock)) as meter:
        pace = change_edges(meter.read, machine.clock, pause, changes=3)
    return [pace.period_s, pace.changes, pace.poll_s]


def test_the_pace_of_a_counter_is_found_by_watching_it(beside_stand_in: Any) -> None:
    """
    The stand-in moves every 100 ms, so half of that is the period to poll with.
    """
    assert beside_stand_in(measured_pace) == [0.1, 3, 0.05]


def samples(*pairs: tuple[int, int]) -> list[Sample]:
    return [Sample(Nanoseconds(at_ms * MILLISECOND), Microjoules(counter)) for at_ms, counter in pairs]


def test_one_stall_does_not_change_the_median_period() -> None:
    """
    Gaps of 20, 20 and 500 ms are a period of 20 ms.
    """
    polled = samples((0, 1), (10, 1), (20, 2), (40, 3), (60, 4), (560, 5))

    pace = counter_pace(polled, [200_000, 300_000, 9_000_000])

    assert CounterPace(period_s=0.02, read_s=0.0003, changes=4) == pace


@pytest.mark.parametrize("counters", [(1, 1, 1), (1, 1, 2)])
def test_a_counter_that_moves_less_than_twice_has_no_known_period(counters: tuple[int, ...]) -> None:
    """
    Unknown is None, not zero.
    """
    pace = counter_pace(samples(*enumerate(counters)), [1_000])

    assert (pace.period_s, pace.poll_s) == (None, None)


@pytest.mark.parametrize(("period_s", "poll_s"), [(0.01, 0.02), (0.1, 0.05), (3.0, 0.1)])
def test_polling_is_half_the_period_within_limits(period_s: float, poll_s: float) -> None:
    """
    Not under 20 ms, not over 100 ms.
    """
    assert poll_s == CounterPace(period_s, 0.001, 5).poll_s


def test_watching_a_counter_that_stands_still_ends_at_the_limit() -> None:
    """
    A second of 10 ms polls.
    """
    now = 0

    def pause(span_s: float) -> None:
        nonlocal now
        now += round(span_s * SECOND)

    still = Sample(Nanoseconds(0), Microjoules(5))

    pace = change_edges(lambda: still, lambda: now, pause, limit=SECOND)

    assert (CounterPace(None, 0.0, 0), SECOND) == (pace, now)


def test_an_integral_carries_every_fraction_of_a_microjoule() -> None:
    """
    A hundred thousand steps of 1 ns to 3 ns at odd powers sum to the exact trapezoids, rounded down once.
    """
    integral = PowerIntegral()
    at, doubled_pj, before_mw, counter = 0, 0, 0, 0

    for step in range(100_000):
        span, power_mw = 1 + step % 3, 100_001 + 7 * (step % 11)
        at += span
        counter = integral.add(at, power_mw)
        doubled_pj += (before_mw + power_mw) * span if step else 0
        before_mw = power_mw

    assert doubled_pj // 2 // 1_000_000 == counter


def test_an_unlisted_driver_error_is_tried_again() -> None:
    """
    It is lost, with its number, rather than passed on as something nobody catches.
    """
    error = failure(4711, "GPU-aa11")

    assert (name_of(error), str(error)) == ("MeterLost", "GPU-aa11: NVML error 4711")


def test_only_the_drivers_errors_are_renamed() -> None:
    """
    A mistake of ours stays what it is.
    """
    with pytest.raises(ZeroDivisionError), driver_errors("GPU-aa11"):
        raise ZeroDivisionError


def test_an_exact_uuid_wins_over_those_it_begins() -> None:
    """
    GPU-aa is a whole name here.
    """
    assert match(["GPU-aa"], ["GPU-aa", "GPU-aab"]) == ["GPU-aa"]


def test_without_the_drivers_library_the_meter_is_unavailable(tmp_path: Path) -> None:
    """
    The stand-in is not on this child's path, and an empty file in its place cannot be loaded.
    """
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    program = (
        "from proxy.meters import open_meters\ntry:\n    open_meters('nvml', [])\n"
        "except Exception as error:\n    print(repr(error))"
    )

    child = subprocess.run(
        [sys.executable, "-c", program],
        env={"LD_LIBRARY_PATH": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert child.stdout == "MeterUnavailable('nvml: there is no libnvidia-ml.so.1 (no NVIDIA driver)')\n", child.stderr
