"""CPU packages: which domains count, wrap, reset, and files that do not answer."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from proxy.accounting.units import SECOND
from proxy.errors import MeterLost, MeterUnavailable
from proxy.meters.rapl import RaplMeter, open_rapl

RANGE_UJ = 262_143_328_850
NOBODY = 65_534


def domain(root: Path, zone: str, name: str, energy_uj: int = 1_000) -> Path:
    folder = root / zone
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder


class SteppedClock:
    def __init__(self) -> None:
        self.now = 0
        self.step = 0

    def __call__(self) -> int:
        self.now += self.step
        return self.now


def counters(folder: Path, *readings: int, wait_s: float = 1.0) -> list[int]:
    clock = SteppedClock()
    seen = []
    with closing(RaplMeter(folder, clock=clock)) as meter:
        for energy_uj in readings:
            clock.now += int(wait_s * SECOND)
            (folder / "energy_uj").write_text(f"{energy_uj}\n")
            seen.append(meter.read().counter)
    return seen


def test_a_wrap_is_made_good(tmp_path: Path) -> None:
    """
    900 µJ before the end of the range and 600 after it are 1500.
    """
    folder = domain(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 900)

    assert counters(folder, RANGE_UJ - 900, 600, 1_100) == [0, 1_500, 2_000]


def test_several_wraps_keep_the_counter_rising(tmp_path: Path) -> None:
    """
    Three times round, each 70 % of the range in half an hour (about 100 W).
    """
    folder = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    step_uj = RANGE_UJ * 7 // 10
    readings = [step_uj * turn % RANGE_UJ for turn in range(1, 5)]

    assert [step_uj * turn for turn in range(1, 5)] == counters(folder, *readings, wait_s=1_800)


def test_a_reset_is_not_mistaken_for_a_wrap(tmp_path: Path) -> None:
    """
    Read as a wrap it would be 250 kJ in one second; so the counter falls, and the timeline bridges it.
    """
    folder = domain(tmp_path, "intel-rapl:0", "package-0", 10_000_000_000)

    assert counters(folder, 10_050_000_000, 5_000, 60_005_000) == [50_000_000, 0, 60_000_000]


def test_packages_count_and_what_is_inside_them_does_not(tmp_path: Path) -> None:
    """
    Neither core nor psys, nor the same package seen through a second interface.
    """
    for zone, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        domain(tmp_path, zone, name)

    meters = open_rapl(tmp_path)
    for meter in meters:
        meter.close()

    assert [meter.gpu for meter in meters] == ["cpu-package-0", "cpu-package-1"]


def test_psys_serves_where_it_stands_alone(tmp_path: Path) -> None:
    """
    Then it is all there is.
    """
    domain(tmp_path, "intel-rapl:0", "psys")

    (meter,) = open_rapl(tmp_path)
    meter.close()

    assert (meter.name, meter.kind, meter.estimated) == ("rapl:psys", "rapl", False)


def test_a_reading_is_stamped_with_its_middle(tmp_path: Path) -> None:
    """
    Between 1010 and 1020 ns.
    """
    clock = SteppedClock()
    with closing(RaplMeter(domain(tmp_path, "intel-rapl:0", "package-0"), clock=clock)) as meter:
        clock.now, clock.step = 1_000, 10

        assert meter.read().at == 1_015


def test_each_opening_is_an_epoch(tmp_path: Path) -> None:
    """
    Wraps between two processes cannot be seen.
    """
    folder = domain(tmp_path, "intel-rapl:0", "package-0")
    with closing(RaplMeter(folder)) as first, closing(RaplMeter(folder)) as second:
        assert first.epoch != second.epoch


def test_no_domain_is_unavailable(tmp_path: Path) -> None:
    """
    Virtual machines have none.
    """
    with pytest.raises(MeterUnavailable, match="no package domain under"):
        open_rapl(tmp_path / "absent")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads everything, so root steps down for a moment."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_a_file_for_root_only_is_named_with_the_remedy() -> None:
    """
    The kernel made energy_uj root's in 2020; the other files are open to all.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        folder = domain(root, "intel-rapl:0", "package-0")
        (folder / "energy_uj").chmod(0)

        with as_nobody(), pytest.raises(MeterUnavailable, match=r"energy_uj is readable by root only: .*chmod a\+r"):
            open_rapl(root)


def test_a_file_that_stops_making_sense_is_lost(tmp_path: Path) -> None:
    """
    Nothing is not zero.
    """
    folder = domain(tmp_path, "intel-rapl:0", "package-0")
    with closing(RaplMeter(folder)) as meter:
        (folder / "energy_uj").write_text("")

        with pytest.raises(MeterLost, match="energy_uj"):
            meter.read()


def test_a_range_that_is_no_number_is_unavailable(tmp_path: Path) -> None:
    """
    Without it a wrap cannot be made good.
    """
    folder = domain(tmp_path, "intel-rapl:0", "package-0")
    (folder / "max_energy_range_uj").write_text("0\n")

    with pytest.raises(MeterUnavailable, match="max_energy_range_uj"):
        open_rapl(tmp_path)
