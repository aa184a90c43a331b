"""
Each meter is read on its deadline; what cannot be read is told as a failure, never as zero.
"""

import threading
from collections.abc import Sequence

import pytest

from proxy.accounting.samples import Sample
from proxy.accounting.units import MILLISECOND, Microjoules, Nanoseconds
from proxy.errors import MeterError, MeterLost
from proxy.ports import Meter, MeterKind
from proxy.sampler import Sampler, next_deadline


class ScriptedMeter:
    """Gives its answers in order; an exception is raised."""

    kind: MeterKind = "recorded"
    epoch = "e"
    estimated = False
    description = "scripted"

    def __init__(self, name: str, *answers: int | BaseException) -> None:
        self.name = self.gpu = name
        self._answers = list(answers)

    def read(self) -> Sample:
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return Sample(Nanoseconds(0), Microjoules(answer))

    def close(self) -> None:
        pass


class Notes:
    """What the sampler said, and the clock it was given: every look at it is a millisecond later."""

    def __init__(self) -> None:
        self.samples: list[tuple[str, int, int]] = []
        self.failures: list[tuple[str, str]] = []
        self.deaths: list[BaseException] = []
        self.dead = threading.Event()
        self._now = 0

    def clock(self) -> Nanoseconds:
        self._now += MILLISECOND
        return Nanoseconds(self._now)

    def on_sample(self, meter: Meter, sample: Sample, call: Nanoseconds) -> None:
        self.samples.append((meter.name, sample.counter, call))

    def on_failure(self, meter: Meter, error: MeterError) -> None:
        self.failures.append((meter.name, str(error)))

    def on_death(self, error: BaseException) -> None:
        self.deaths.append(error)
        self.dead.set()


def sampler(meters: Sequence[Meter], notes: Notes) -> Sampler:
    return Sampler(
        meters,
        period=Nanoseconds(MILLISECOND),
        clock=notes.clock,
        on_sample=notes.on_sample,
        on_failure=notes.on_failure,
        on_death=notes.on_death,
    )


@pytest.mark.parametrize(
    ("now", "expected"), [(100, 150), (149, 150), (150, 200), (199, 200), (420, 450)], ids=lambda value: str(value)
)
def test_late_ticks_are_skipped(now: int, expected: int) -> None:
    """Deadlines lie at start + n * period whatever was missed, so lateness does not add up."""
    assert next_deadline(100, 50, now) == expected


def test_a_sweep_reads_every_meter_once() -> None:
    """Samples carry how long their call took."""
    notes = Notes()

    sampler([ScriptedMeter("a", 1), ScriptedMeter("b", 2)], notes).sweep()

    assert notes.samples == [("a", 1, MILLISECOND), ("b", 2, MILLISECOND)]


def test_a_lost_meter_is_a_failure_and_the_others_are_read() -> None:
    """Nothing is made up for it, and it is read again when it answers again."""
    notes = Notes()
    reading = sampler([ScriptedMeter("a", MeterLost("fell off the bus"), 5), ScriptedMeter("b", 1, 2)], notes)

    reading.sweep()
    reading.sweep()

    assert [(name, counter) for name, counter, _ in notes.samples] == [("b", 1), ("a", 5), ("b", 2)]
    assert notes.failures == [("a", "fell off the bus")]


def test_change_of_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A meter that stays lost does not fill the log."""
    lost = MeterLost("gone")
    reading = sampler([ScriptedMeter("a", lost, lost, lost, 1, 2)], Notes())

    for _ in range(5):
        reading.sweep()

    assert [record.message for record in caplog.records] == [
        "meter a gives no reading: gone",
        "meter a reads again",
    ]


def test_an_unexpected_error_is_told() -> None:
    """A dead sampler must stop the service instead of leaving a silent gap."""
    notes = Notes()
    broken = sampler([ScriptedMeter("a", 1, RuntimeError("a bug"))], notes)

    broken.start()

    assert notes.dead.wait(5)
    assert [str(error) for error in notes.deaths] == ["a bug"]
    assert [counter for _, counter, _ in notes.samples] == [1]


def test_stopping_takes_a_last_reading() -> None:
    """What was used up to the end is still counted."""
    notes = Notes()
    ending = sampler([ScriptedMeter("a", *range(1, 100_000))], notes)
    ending.start()

    ending.sweep_and_stop()

    counters = [counter for _, counter, _ in notes.samples]
    assert counters == list(range(1, len(counters) + 1))
    assert not notes.deaths


def test_a_hanging_driver_does_not_hold_up_the_end() -> None:
    """A call that never returns is left behind."""
    notes = Notes()
    hanging = threading.Event()

    class Hangs(ScriptedMeter):
        def read(self) -> Sample:
            hanging.wait(10)
            return super().read()

    stuck = sampler([Hangs("a", 1, 2)], notes)
    stuck.start()

    stuck.sweep_and_stop(timeout_s=0.01)

    assert notes.samples == []
    hanging.set()
