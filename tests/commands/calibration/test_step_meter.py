"""The meter of the calibration's tests shows what the simulated engine's steps truly took, whenever it is read."""

import time
from dataclasses import dataclass, replace
from typing import cast

import pytest

from proxy.accounting.weights import LLAMA_8B, roofline_prior
from tests.commands.calibration.step_meter import StepMeter
from tests.engine.batch import Step
from tests.engine.simulated import Received, SimulatedEngine

WEIGHTS = replace(roofline_prior(LLAMA_8B), context=0.0)
STEP_J = WEIGHTS.step + WEIGHTS.decode


@dataclass
class Scripted:
    """An engine's steps by hand; times in milliseconds."""

    steps: tuple[Step, ...] = ()
    under_way: Step | None = None
    requests: tuple[Received, ...] = ()


class Bench:
    """A meter beside it, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = Scripted()
        self._now = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: self._now)
        self._meter = StepMeter(cast(SimulatedEngine, self.engine), WEIGHTS, idle_w=100.0, noise=0.0)

    def joules(self, at: float) -> float:
        self._now = round(at * 1e6)
        return self._meter.read().counter / 1e6


def step(start: float, end: float) -> Step:
    return Step(round(start * 1e6), round(end * 1e6), {}, {"cmpl-a-0": 1})


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_power_is_even_within_a_step(bench: Bench) -> None:
    """Half of it at half its time; once it should be over it takes no more, however late the engine notices."""
    bench.engine.under_way = step(0, 20)

    assert bench.joules(10) == pytest.approx(STEP_J / 2)
    assert bench.joules(20) == bench.joules(35) == pytest.approx(STEP_J)
    bench.engine.steps = (step(0, 35),)
    assert bench.joules(35) == pytest.approx(STEP_J)


def test_waiting_between_steps_of_the_same_sequences_costs_nothing(bench: Bench) -> None:
    """Only when nothing runs it is idle; what looked like that for a moment is taken back."""
    bench.engine.steps = (step(0, 20),)
    bench.joules(22)
    bench.engine.under_way = step(30, 50)
    bench.engine.steps = (step(0, 20), step(30, 50))

    assert bench.joules(50) == pytest.approx(2 * STEP_J)
    assert bench.joules(150) == pytest.approx(2 * STEP_J + 10)
