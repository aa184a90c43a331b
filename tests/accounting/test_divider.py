"""What a divided window teaches the fit: reading by reading where work is inferred, and nothing twice.

How long work takes is told where it is known: of every logged step, and where streams show the steps all the time.
"""

import pytest

from proxy.accounting.activity import Work
from proxy.accounting.fitting import Fit
from proxy.accounting.units import Nanoseconds
from tests.accounting.flights import WEIGHTS, ms
from tests.accounting.scripted import Engine, group, opened, read

FEATURES = ("prefill", "prefill_context", "decode", "decode_context", "steps")


class Notebook(Fit):
    """A fit that writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__(WEIGHTS)
        self.shown: list[tuple[Work, int, int]] = []
        self.times: list[tuple[Work, int]] = []

    def ran(self, work: Work, busy_ns: Nanoseconds) -> None:
        self.times.append((work, busy_ns))
        super().ran(work, busy_ns)

    def observe(self, work: Work, active_uj: int, span_ns: Nanoseconds) -> None:
        self.shown.append((work, active_uj, span_ns))
        super().observe(work, active_uj, span_ns)


def streams(count: int) -> Engine:
    """So many that decode for three seconds, and a prompt amid them."""
    engine = Engine()
    rows = [f"d{number}" for number in range(count)]
    for row in rows:
        engine.send(row)
        engine.prefill(row, 100)
    engine.decode(*rows, times=100)
    engine.send("long", prompt=1500)
    engine.prefill("long", 1500, *rows, steps=4)
    engine.decode(*rows, times=200)
    engine.end("long", *rows)
    return engine


def taught(engine: Engine, *, logged: bool = False) -> tuple[Notebook, list[tuple[Work, int]]]:
    """What the fit was shown, and the windows that were divided: their work and their active energy."""
    target = group()
    notebook = target.divider.fit = Notebook()
    for flight in engine.flights.values():
        opened(target, flight)
    for one in engine.steps if logged else ():
        target.stepped(one)
    read(target, int(engine.at // 100 + 5) * 100)
    splits = target.settle(ms(engine.at + 60_000))
    return notebook, [(one.activity.total(), one.active) for one in splits if one.activity and one.predicted_j]


@pytest.mark.parametrize("count", [1, 20, 150])
def test_without_a_step_log_the_fit_is_shown_readings(count: int) -> None:
    """Each by itself while few run, more together the more there are; they add up to what was divided."""
    notebook, divided = taught(streams(count))

    lengths = [span_ns for _, _, span_ns in notebook.shown]
    # What is left over of a window goes to the last part; a reading is 0.1 s.
    assert max(lengths) <= 2 * count * ms(2) + ms(200)
    assert len(divided) <= len(lengths)
    assert sum(energy for _, energy, _ in notebook.shown) == pytest.approx(
        sum(energy for _, energy in divided), rel=0.02
    )
    for name in FEATURES:
        shown = sum(getattr(work, name) for work, _, _ in notebook.shown)
        assert shown == pytest.approx(sum(getattr(work, name) for work, _ in divided), rel=0.02), name


def test_with_a_step_log_the_fit_is_shown_what_was_divided() -> None:
    """Where the work is known to the step nothing is made up between readings."""
    notebook, divided = taught(streams(5), logged=True)

    assert [(work, energy) for work, energy, _ in notebook.shown] == divided


def test_with_a_step_log_the_fit_is_shown_how_long_each_step_took() -> None:
    """Once, with all the work in it, however the windows cut it."""
    engine = streams(5)
    notebook, _ = taught(engine, logged=True)

    assert [busy_ns for _, busy_ns in notebook.times] == [step.end - step.start for step in engine.steps]
    assert {work.steps for work, _ in notebook.times} == {1.0}
    assert [work.prefill for work, _ in notebook.times] == [
        sum(one.prefill for one in step.sequences) for step in engine.steps
    ]


def test_without_one_it_is_shown_so_where_streams_tell_of_the_steps() -> None:
    """Not of a time in which a prompt is read alone: how much of that was the network nobody knows."""
    engine = Engine()
    engine.rest(300)
    engine.send("alone", prompt=2000)
    engine.prefill("alone", 2000, steps=40)
    engine.decode("alone", times=300)
    engine.end("alone")
    notebook, _ = taught(engine)

    assert sum(work.prefill for work, _, _ in notebook.shown) == pytest.approx(2000)
    assert sum(work.prefill for work, _ in notebook.times) < 500
    assert sum(work.decode for work, _ in notebook.times) > 250
    assert all(work.steps == pytest.approx(busy_ns / ms(10), rel=0.05) for work, busy_ns in notebook.times)
