"""The estimate without a sensor: exact arithmetic on the kernel's times, and plainly labelled."""

from pathlib import Path

import pytest

from proxy.errors import ConfigurationError, MeterLost, MeterUnavailable
from proxy.meters.modelled import ModelledMeter


class Kernel:
    """A /proc of which tests write the few files that are read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        random = root / "sys/kernel/random"
        random.mkdir(parents=True)
        (random / "boot_id").write_text("b007\n")
        self.times(100.0)

    def times(
        self, uptime_s: float, *, user: int = 0, nice: int = 0, system: int = 0, idle: int = 0, **more: int
    ) -> None:
        rest = [more.get(key, 0) for key in ("iowait", "irq", "softirq", "steal", "guest", "guest_nice")]
        first = " ".join(str(ticks) for ticks in (user, nice, system, idle, *rest))
        (self.root / "stat").write_text(f"cpu  {first}\ncpu0 {first}\nintr 1 2 3\n")
        (self.root / "uptime").write_text(f"{uptime_s:.2f} 77.00\n")

    def meter(self, idle_w: float = 20, core_w: float = 12) -> ModelledMeter:
        return ModelledMeter(idle_w=idle_w, core_w=core_w, proc=self.root, clock=lambda: 5, ticks_per_s=100)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_energy_is_idle_power_for_all_time_and_core_power_for_busy_time(kernel: Kernel) -> None:
    """
    20 W * 100 s + 12 W * 7 s.
    """
    kernel.times(100.0, user=300, nice=100, system=200, irq=60, softirq=40)

    assert kernel.meter().read().counter == 2_084_000_000


def test_idle_iowait_stolen_and_guest_time_are_not_counted(kernel: Kernel) -> None:
    """
    Guest time is in user time already, stolen time was another machine's.
    """
    kernel.times(100.0, user=100, idle=5_000, iowait=800, steal=700, guest=60, guest_nice=40)

    assert kernel.meter().read().counter == 2_012_000_000


def test_it_never_falls_when_the_kernels_times_do(kernel: Kernel) -> None:
    """
    It stands still until they have caught up.
    """
    meter = kernel.meter()
    seen = []
    for user in (500, 400, 499, 501):
        kernel.times(100.0, user=user, idle=1_000 - user)
        seen.append(meter.read().counter)

    assert seen == [2_060_000_000, 2_060_000_000, 2_060_000_000, 2_060_120_000]


def test_it_continues_over_a_restart_of_the_proxy(kernel: Kernel) -> None:
    """
    Same boot and same parameters: the same epoch and the same counter.
    """
    first, second = kernel.meter(), kernel.meter()

    assert (first.epoch, first.read()) == (second.epoch, second.read())
    assert first.epoch == "b007:idle_w=20,core_w=12"


def test_other_parameters_are_another_epoch(kernel: Kernel) -> None:
    """
    Their counters must not be subtracted.
    """
    assert kernel.meter(idle_w=20).epoch != kernel.meter(idle_w=21).epoch


def test_it_says_loudly_that_it_is_an_estimate(kernel: Kernel) -> None:
    """
    In the flag and in the words, and it claims no present power.
    """
    meter = kernel.meter()

    assert (meter.kind, meter.estimated) == ("modelled", True)
    assert meter.description.startswith("estimated, no sensor")
    assert meter.read().power_w is None


@pytest.mark.parametrize(("idle_w", "core_w"), [(-1, 5), (20, float("nan")), (float("inf"), 1), (0, 0)])
def test_powers_that_make_no_sense_are_refused(kernel: Kernel, idle_w: float, core_w: float) -> None:
    """
    Negative, not finite, or nothing at all.
    """
    with pytest.raises(ConfigurationError, match="modelled"):
        kernel.meter(idle_w=idle_w, core_w=core_w)


def test_without_proc_it_is_unavailable(tmp_path: Path) -> None:
    """
    Another operating system.
    """
    with pytest.raises(MeterUnavailable, match="boot id"):
        ModelledMeter(proc=tmp_path)


def test_a_stat_that_cannot_be_read_any_more_is_lost(kernel: Kernel) -> None:
    """
    And at the start it is unavailable.
    """
    meter = kernel.meter()
    (kernel.root / "stat").write_text("")

    with pytest.raises(MeterLost, match="stat"):
        meter.read()
    with pytest.raises(MeterUnavailable, match="stat"):
        kernel.meter()


def test_this_machine_can_be_estimated() -> None:
    """
    With its own /proc and clock.
    """
    meter = ModelledMeter()

    first, second = meter.read(), meter.read()

    assert 0 < first.counter <= second.counter
    assert first.at < second.at
