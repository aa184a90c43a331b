"""What a divided window teaches the fit: reading by reading where work is inferred, and nothing twice.

How long work takes is told where it is known: of every logged step, and where streams show the steps all the time.
"""

import pytest

from proxy.accounting.activity import Work
from proxy.accounting.fitting import Fit
from proxy.accounting.group import Group
from proxy.accounting.power_curve import PowerCurve
from proxy.accounting.samples import Sample
from proxy.accounting.step_work import whole_of
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.accounting.unseen import Drafts, EngineCounters
from tests.accounting.flights import WEIGHTS, ms
from tests.accounting.scripted import Engine, group, opened, read

FEATURES = ("prefill", "prefill_context", "decode", "decode_context", "steps")


class Notebook(Fit):
    """A fit that writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__(WEIGHTS)
        self.shown: list[tuple[Work, int, int]] = []
        self.times: list[tuple[Work, int]] = []
        self.looks: list[Work] = []

    def ran(self, work: Work, busy_ns: Nanoseconds) -> None:
        self.times.append((work, busy_ns))
        super().ran(work, busy_ns)

    def looked(self, work: Work, energy_uj: int, span_ns: Nanoseconds, noise: float) -> None:
        self.looks.append(work)
        super().looked(work, energy_uj, span_ns, noise)

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


def busy_for(seconds: int, *, silent: bool = False) -> Engine:
    """Four streams that decode, and prompts amid them; or one of the requests is answered in one piece."""
    engine, rows = Engine(), [f"d{number}" for number in range(4)]
    for row in rows:
        engine.send(row)
        engine.prefill(row, 100)
    if silent:
        engine.send("silent", silent=True)
    number = 0
    while engine.at < seconds * 1000:
        number += 1
        engine.send(f"p{number}", prompt=1500)
        engine.step_ms = 55.0
        engine.prefill(f"p{number}", 1500, *rows)
        engine.end(f"p{number}")
        engine.step_ms = 10.0
        engine.decode(*rows, times=10 + number % 7)
    engine.end(*rows, *(["silent"] if silent else []))
    return engine


def powered(engine: Engine, *, logged: bool = False, target: Group | None = None) -> Notebook:
    """The same with the power that the weights predict, and a sensor that looks at a quarter of it."""
    target = target or group()
    notebook = target.divider.fit = Notebook()
    for flight in engine.flights.values():
        opened(target, flight)
    for one in engine.steps if logged else ():
        target.stepped(one)
    curve = PowerCurve([[(one, whole_of(one, WEIGHTS)) for one in engine.steps]], WEIGHTS)
    joules = 0.0
    for at in range(0, int(engine.at) + 500, 50):
        if at % 100 == 0:
            joules += 4 * (curve.joules_until(ms(at)) - curve.joules_until(ms(at - 25)))
        target.sampled("m", Sample(ms(at + 3), Microjoules(round(joules * 1e6))))
    target.settle(ms(engine.at + 60_000))
    return notebook


def test_the_fit_is_shown_what_the_sensor_saw_of_steps_that_streams_show() -> None:
    """Although nobody logs them: a reading's work is then known to the step."""
    notebook = powered(busy_for(30))

    assert len(notebook.looks) > 100
    assert notebook.error is not None
    assert notebook.error < 0.02


def test_steps_that_may_hold_what_does_not_tell_its_tokens_are_no_looks() -> None:
    """The fit is then shown readings, as where nothing tells of steps."""
    notebook = powered(busy_for(30, silent=True))

    assert notebook.looks == []
    assert len(notebook.shown) > 100


def test_with_a_step_log_looks_are_at_its_steps() -> None:
    """Streams are not asked: their clock is another."""
    engine = busy_for(30)
    notebook = powered(engine, logged=True)
    prompts = {1500.0, 0.0}

    assert len(notebook.looks) > 100
    assert {round(work.prefill) for work in notebook.looks if work.steps == 1} <= prompts


def test_of_more_requests_than_are_worth_it_single_steps_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost more than it tells."""
    monkeypatch.setattr("proxy.accounting.divider.SHOWING", 3)

    assert powered(busy_for(20)).looks == []


def test_drafted_tokens_show_no_steps() -> None:
    """A stream then gains several in one."""
    target, engine = group(), busy_for(20)
    drafts = [Drafts(0.0, 0.0, 0.0), Drafts(100.0, 300.0, 150.0)]
    for number, one in enumerate(drafts):
        target.scraped(EngineCounters(ms(number), 0, 0, 0, 0, drafts=one), ms(number))

    assert powered(engine, target=target).looks == []
