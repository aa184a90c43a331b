"""
Power is taken between moves of the counter, and a counter that cannot be trusted says so.
"""

import asyncio
from collections.abc import Iterator

import pytest

from proxy.accounting.samples import Sample
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.commands.calibration.energy import EnergyLog
from proxy.errors import MeterLost
from proxy.ports import MeterKind


class Scripted:
    """A meter that is read by hand."""

    kind: MeterKind = "nvml"
    epoch = description = ""
    estimated = False

    def __init__(self, gpu: str) -> None:
        self.name = self.gpu = gpu

    def read(self) -> Sample:
        raise MeterLost("by hand")

    def close(self) -> None:
        """Holds nothing."""


def at(milliseconds: float) -> Nanoseconds:
    return Nanoseconds(round(milliseconds * MILLISECOND))


def counter(power_w: float, step_ms: int, until_ms: int = 3_000, poll_ms: int = 20) -> Iterator[Sample]:
    """Readings of a counter that moves every step_ms."""
    for now in range(0, until_ms, poll_ms):
        moved_ms = now // step_ms * step_ms
        yield Sample(at(now), Microjoules(round(power_w * moved_ms * 1_000)))


def log(*powers: float) -> EnergyLog:
    meters = [Scripted(f"GPU-{number}") for number, _ in enumerate(powers)]
    made = EnergyLog(meters, lambda: Nanoseconds(0))
    for meter, power_w in zip(meters, powers, strict=True):
        for sample in counter(power_w, 100):
            made._take(meter, sample)
    return made


def test_power_is_exact_between_moves() -> None:
    """Whatever the instants asked for; the span is what the moves cover."""
    seen = log(300.0).between(at(510), at(2_550))

    assert seen is not None
    assert seen.power_w == pytest.approx(300.0)
    assert (seen.span.start, seen.span.end) == (at(600), at(2_500))
    assert seen.updates == 19
    assert seen.energy_j == pytest.approx(300.0 * 1.9)


def test_several_meters_are_summed() -> None:
    """The GPUs of one server."""
    seen = log(300.0, 200.0).between(at(0), 3 * SECOND)  # type: ignore[arg-type]

    assert seen is not None
    assert seen.power_w == pytest.approx(500.0)


def test_too_few_moves_give_nothing() -> None:
    """Absent, not zero."""
    assert log(300.0).between(at(510), at(690)) is None


def test_the_pace_of_the_slowest_counter() -> None:
    """None before it moved twice."""
    assert log(300.0).period_s() == pytest.approx(0.1)
    assert EnergyLog([Scripted("a")], lambda: Nanoseconds(0)).period_s() is None


def test_a_counter_that_falls_is_a_failure() -> None:
    """What was used across a reset is not known."""
    made = log(300.0)
    made._take(Scripted("GPU-0"), Sample(at(3_100), Microjoules(5), 300.0))

    assert made.failure == "the counter of GPU-0 was reset or stood still"


def test_a_meter_that_cannot_be_read_is_a_failure() -> None:
    """The first reason stays."""

    async def run() -> EnergyLog:
        made = EnergyLog([Scripted("GPU-0")], lambda: Nanoseconds(0))
        made.start()
        await made.stop()
        await asyncio.sleep(0)
        return made

    assert asyncio.run(run()).failure == "the meter GPU-0 gave no reading: by hand"
