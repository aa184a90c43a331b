"""
What the plugin says of each step, read off a scheduler that behaves as vLLM's does.
"""

import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jouleproxy_steplog import hook
from jouleproxy_steplog.batch import LONGEST_NAME, SPARE, Sequences, plain, seen_with_new
from jouleproxy_steplog.parcel import Parcel
from jouleproxy_steplog.steps import FAILURES_IN_A_ROW, MOST_NOTED, MOST_PENDING, Steps

from proxy.accounting.steps import EngineStep
from proxy.upstream.step_datagrams import parse
from tests.steplog.conftest import Receiver
from tests.steplog.fake_scheduler import Cached, New, Output, SchedulerBase

Parts = list[tuple[str, int, int, int, int]]


class Engine:
    """A scheduler with the plugin on it, and all steps that were reported."""

    def __init__(self, scheduler: type[SchedulerBase], path: Path, listen: Receiver) -> None:
        hook(scheduler, str(path))
        self.scheduler = scheduler()
        self._receiver = listen()

    def step(self, rejected: dict[str, int] | None = None) -> Parts:
        """One synchronous step; what was said of it."""
        output = self.scheduler.schedule()
        self.scheduler.update_from_output(output, rejected)
        heard = self.heard()
        assert len(heard) <= 1
        return [tuple(part) for part in heard[0].sequences] if heard else []

    def heard(self) -> list[EngineStep]:
        """What was reported since the last look."""
        steps: list[EngineStep] = []
        while True:
            try:
                steps += parse(self._receiver.recv(1 << 20))
            except BlockingIOError:
                return steps


@pytest.fixture
def kind() -> type[SchedulerBase]:
    """A scheduler class of the test's own, so that wrapping it changes no other test's."""

    class Scheduler(SchedulerBase):
        pass

    return Scheduler


@pytest.fixture
def engine(kind: type[SchedulerBase], path: Path, listen: Receiver) -> Engine:
    return Engine(kind, path, listen)


@pytest.fixture
def ahead(kind: type[SchedulerBase], path: Path, listen: Receiver) -> Engine:
    """With asynchronous scheduling."""
    kind.ahead = True
    return Engine(kind, path, listen)


def test_a_prompt_is_prefill_and_each_further_token_a_decode_position(engine: Engine) -> None:
    engine.scheduler.add("a", 10)
    assert engine.step() == [("a", 0, 10, 0, 0)]
    assert engine.step() == [("a", 10, 0, 1, 0)]
    assert engine.step() == [("a", 11, 0, 1, 0)]


def test_a_cached_prefix_is_context_and_not_computed(engine: Engine) -> None:
    engine.scheduler.add("a", 100, cached=96)
    assert engine.step() == [("a", 96, 4, 0, 0)]


def test_a_long_prompt_comes_in_pieces(engine: Engine) -> None:
    engine.scheduler.budget = 4
    engine.scheduler.add("a", 10)
    assert [engine.step() for _ in range(4)] == [
        [("a", 0, 4, 0, 0)],
        [("a", 4, 4, 0, 0)],
        [("a", 8, 2, 0, 0)],
        [("a", 10, 0, 1, 0)],
    ]


def test_new_and_old_sequences_share_a_step(engine: Engine) -> None:
    engine.scheduler.add("a", 3)
    engine.step()
    engine.scheduler.add("b", 5)
    assert sorted(engine.step()) == [("a", 3, 0, 1, 0), ("b", 0, 5, 0, 0)]


def test_drafts_count_as_decode_positions_and_rejected_ones_are_not_recomputed(engine: Engine) -> None:
    """Speculative decoding: one position and three drafts, of which two are rejected and come again."""
    request = engine.scheduler.add("a", 10)
    engine.step()
    request.drafts = 3
    assert engine.step({"a": 2}) == [("a", 10, 0, 4, 0)]
    assert engine.step({"a": 3}) == [("a", 12, 0, 4, 0)]
    assert engine.step() == [("a", 13, 0, 4, 0)]


def test_a_prompt_that_ends_in_a_step_with_drafts_is_both(engine: Engine) -> None:
    """vLLM pads a prompt of which one token is left to the width of a step with drafts."""
    engine.scheduler.add("a", 10, cached=9).drafts = 2
    assert engine.step() == [("a", 9, 1, 2, 0)]


@pytest.mark.parametrize("resumed_are_new", [False, True])
def test_what_a_preemption_undid_is_told_apart(engine: Engine, resumed_are_new: bool) -> None:
    """Both model runners of vLLM; the token sampled last had never been computed."""
    engine.scheduler.resumed_are_new = resumed_are_new
    engine.scheduler.add("a", 10)
    for _ in range(4):
        engine.step()
    engine.scheduler.preempt("a")
    assert engine.step() == [("a", 0, 10, 4, 13)]
    assert engine.step() == [("a", 14, 0, 1, 0)]


def test_a_preempted_prompt_has_lost_only_what_was_computed_of_it(engine: Engine) -> None:
    engine.scheduler.budget = 4
    engine.scheduler.add("a", 10)
    engine.step()
    engine.scheduler.preempt("a")
    assert [engine.step() for _ in range(3)] == [[("a", 0, 4, 0, 4)], [("a", 4, 4, 0, 0)], [("a", 8, 2, 0, 0)]]


def test_a_preempted_prompt_found_in_the_cache_again_is_not_recomputed(engine: Engine) -> None:
    engine.scheduler.add("a", 10)
    engine.step()
    engine.scheduler.preempt("a")
    engine.scheduler.requests["a"].num_computed_tokens = 8
    assert engine.step() == [("a", 8, 2, 1, 2)]


def test_a_second_preemption_before_the_first_is_made_good_loses_no_more(engine: Engine) -> None:
    engine.scheduler.add("a", 10)
    engine.step()
    engine.scheduler.budget = 4
    engine.scheduler.preempt("a")
    engine.step()
    engine.scheduler.preempt("a")
    assert [engine.step()[0][4] for _ in range(3)] == [4, 4, 2]


def test_rejected_drafts_are_not_lost_in_a_preemption(engine: Engine) -> None:
    request = engine.scheduler.add("a", 10)
    engine.step()
    request.drafts = 5
    engine.step({"a": 5})
    request.drafts = 0
    engine.scheduler.preempt("a")
    assert engine.step() == [("a", 0, 10, 2, 11)]


def test_an_engine_that_counts_no_preemptions_is_read_by_what_is_resumed(engine: Engine) -> None:
    engine.scheduler.add("a", 10)
    engine.step()
    engine.step()
    request = engine.scheduler.requests["a"]
    request.num_computed_tokens, request.waiting = 0, True
    request.num_preemptions = None
    assert engine.step() == [("a", 0, 10, 2, 11)]


def test_a_session_that_gets_more_input_has_a_longer_prompt_and_lost_nothing(engine: Engine) -> None:
    engine.scheduler.add("a", 10)
    engine.step()
    engine.step()
    request = engine.scheduler.requests["a"]
    request.num_prompt_tokens = request.num_tokens = 20
    request.seen = False
    assert engine.step() == [("a", 11, 9, 0, 0)]


def test_an_embedding_is_prefill_only(engine: Engine) -> None:
    engine.scheduler.add("embd-a-0", 12)
    assert engine.step() == [("embd-a-0", 0, 12, 0, 0)]
    engine.scheduler.finish("embd-a-0")
    assert engine.step() == []


def test_what_an_aborted_request_was_scheduled_for_is_reported(engine: Engine) -> None:
    """The abort comes while the model computes."""
    engine.scheduler.add("a", 10)
    engine.scheduler.add("b", 4)
    output = engine.scheduler.schedule()
    engine.scheduler.finish("a")
    engine.scheduler.update_from_output(output)
    (step,) = engine.heard()
    assert sum(part.prefill for part in step.sequences) == 14
    assert [part[0] for part in engine.step()] == ["b"]


def test_a_name_used_again_begins_anew(engine: Engine) -> None:
    engine.scheduler.add("a", 10)
    engine.step()
    engine.scheduler.finish("a")
    engine.scheduler.add("a", 6)
    assert engine.step() == [("a", 0, 6, 0, 0)]


def test_a_step_lasts_from_its_scheduling_to_its_output(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = ticking(monkeypatch)
    engine.scheduler.add("a", 10)
    engine.step()
    now(1_000)
    output = engine.scheduler.schedule()
    now(1_500)
    engine.scheduler.update_from_output(scheduler_output=output, model_runner_output=None)
    (step,) = engine.heard()
    assert (step.start, step.end, step.number) == (1_000, 1_500, 2)


def test_a_step_scheduled_ahead_begins_when_the_one_before_it_ends(
    ahead: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asynchronous scheduling: step 2 is scheduled at 110 while step 1 computes until 200."""
    now = ticking(monkeypatch)
    ahead.scheduler.add("a", 10)
    now(100)
    first = ahead.scheduler.schedule()
    now(110)
    second = ahead.scheduler.schedule()
    now(200)
    ahead.scheduler.update_from_output(first)
    now(210)
    third = ahead.scheduler.schedule()
    for at, output in ((300, second), (400, third)):
        now(at)
        ahead.scheduler.update_from_output(output)
    steps = ahead.heard()
    assert [(step.start, step.end) for step in steps] == [(100, 200), (200, 300), (300, 400)]
    assert [tuple(step.sequences[0][1:4]) for step in steps] == [(0, 10, 0), (10, 0, 1), (11, 0, 1)]
    assert [step.number for step in steps] == [1, 2, 3]


def test_a_preemption_with_a_step_under_way_loses_that_step_too(ahead: Engine) -> None:
    ahead.scheduler.add("a", 10)
    first = ahead.scheduler.schedule()
    second = ahead.scheduler.schedule()
    ahead.scheduler.update_from_output(first)
    ahead.scheduler.preempt("a")
    ahead.scheduler.requests["a"].num_tokens += 1  # the stale output of the second step is delivered
    ahead.scheduler.update_from_output(second)
    ahead.heard()
    assert ahead.step() == [("a", 0, 10, 2, 11)]


def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A monotonic clock that stands where it is set."""
    time = SimpleNamespace(now=0, monotonic_ns=lambda: time.now)
    monkeypatch.setattr("jouleproxy_steplog.time", time)
    return lambda at: setattr(time, "now", at)


@pytest.fixture
def holding(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
    """Steps of so many milliseconds each, gathered for 20 ms; gives the numbers heard of after one."""
    monkeypatch.setattr("jouleproxy_steplog.steps.HOLD_NS", 20_000_000)
    now, at = ticking(monkeypatch), 1_000_000_000

    def step(lasts_ms: float) -> list[int]:
        nonlocal at
        now(at)
        output = engine.scheduler.schedule()
        at += round(lasts_ms * 1e6)
        now(at)
        engine.scheduler.update_from_output(output)
        return [one.number for one in engine.heard()]

    return step


def test_short_steps_are_sent_together(engine: Engine, holding: Callable[[float], list[int]]) -> None:
    """The first at once, the others after 20 ms."""
    engine.scheduler.add("a", 10)
    assert [holding(6) for _ in range(9)] == [[1], [], [], [], [2, 3, 4, 5], [], [], [], [6, 7, 8, 9]]
    assert [holding(25), holding(25)] == [[10], [11]]


def test_when_nothing_is_left_to_run_all_goes_at_once(engine: Engine, holding: Callable[[float], list[int]]) -> None:
    engine.scheduler.add("a", 10)
    assert [holding(2) for _ in range(4)] == [[1], [], [], []]
    engine.scheduler.finish("a")
    engine.scheduler.schedule()
    assert [step.number for step in engine.heard()] == [2, 3, 4]


def test_the_last_step_scheduled_ahead_goes_at_once(ahead: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output comes after the step without tokens was scheduled, and that one's comes last."""
    monkeypatch.setattr("jouleproxy_steplog.steps.HOLD_NS", 1_000_000_000_000)
    ahead.scheduler.add("a", 10)
    outputs = [ahead.scheduler.schedule(), ahead.scheduler.schedule()]
    ahead.scheduler.update_from_output(outputs[0])
    ahead.heard()
    ahead.scheduler.finish("a")
    empty = ahead.scheduler.schedule()
    ahead.scheduler.update_from_output(outputs[1])
    ahead.heard()
    ahead.scheduler.update_from_output(empty)
    steps = ahead.scheduler._jouleproxy_steps
    assert (steps._noted, steps._parcel.steps, steps._number) == ([], 0, 2)


def test_a_step_that_may_last_is_not_waited_for(engine: Engine, holding: Callable[[float], list[int]]) -> None:
    """A prompt of 1,000 tokens comes in; the steps before took 2 ms for one."""
    engine.scheduler.add("a", 10)
    assert [holding(2) for _ in range(4)] == [[1], [], [], []]
    engine.scheduler.add("b", 1_000)
    engine.scheduler.schedule()
    assert [step.number for step in engine.heard()] == [2, 3, 4]


def test_many_very_short_steps_do_not_wait_for_the_time(engine: Engine, holding: Callable[[float], list[int]]) -> None:
    """A parcel is bounded, whatever the clock says."""
    engine.scheduler.add("a", 10)
    for _ in range(2 * MOST_NOTED):
        holding(0)
        assert len(engine.scheduler._jouleproxy_steps._noted) <= MOST_NOTED + 1


def test_a_fault_in_one_step_of_several_costs_only_that_one(
    engine: Engine, holding: Callable[[float], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.scheduler.add("a", 10)
    add, bad = Parcel.add, iter([False, True, False, False])

    def fail(*arguments: Any) -> None:
        if next(bad):
            raise MemoryError
        add(*arguments)

    holding(6)
    monkeypatch.setattr("jouleproxy_steplog.steps.Parcel.add", fail)
    assert [holding(6) for _ in range(4)] == [[], [], [], [2, 4, 5]]


def test_a_step_without_tokens_is_not_reported_and_has_no_number(engine: Engine) -> None:
    engine.scheduler.add("a", 3)
    engine.step()
    engine.scheduler.finish("a")
    engine.step()
    engine.step()
    engine.scheduler.add("b", 3)
    output = engine.scheduler.schedule()
    engine.scheduler.update_from_output(output)
    (step,) = engine.heard()
    assert (step.number, step.dropped) == (2, 0)


@pytest.mark.parametrize(
    ("parallel", "rank"),
    [
        (SimpleNamespace(data_parallel_index=3, data_parallel_rank=0), 3),
        (SimpleNamespace(data_parallel_rank=2), 2),
        (SimpleNamespace(data_parallel_index=None, data_parallel_rank=1), 1),
        (SimpleNamespace(), 0),
    ],
)
def test_replicas_are_told_apart(engine: Engine, parallel: SimpleNamespace, rank: int) -> None:
    engine.scheduler.vllm_config.parallel_config = parallel
    engine.scheduler.add("a", 3)
    engine.scheduler.update_from_output(engine.scheduler.schedule())
    assert engine.heard()[0].engine == rank


def test_each_scheduler_has_a_boot_of_its_own(kind: type[SchedulerBase], path: Path, listen: Receiver) -> None:
    engine = Engine(kind, path, listen)
    boots = set()
    for _ in range(3):
        engine.scheduler = kind()
        engine.scheduler.add("a", 3)
        engine.scheduler.update_from_output(engine.scheduler.schedule())
        boots.add(engine.heard()[0].boot)
    assert len(boots) == 3


def test_a_subclass_that_calls_super_is_reported_once(kind: type[SchedulerBase], path: Path, listen: Receiver) -> None:
    """As AsyncScheduler and those of --scheduler-cls."""

    class Special(kind):  # type: ignore[misc, valid-type]
        def schedule(self, throttle_prefills: bool = False) -> Output:
            return super().schedule(throttle_prefills)

    engine = Engine(kind, path, listen)
    engine.scheduler = Special()
    engine.scheduler.add("a", 3)
    assert engine.step() == [("a", 0, 3, 0, 0)]


def test_hooking_twice_reports_once(engine: Engine, kind: type[SchedulerBase], path: Path) -> None:
    hook(kind, str(path))
    engine.scheduler.add("a", 3)
    assert engine.step() == [("a", 0, 3, 0, 0)]


def test_finished_requests_are_forgotten(engine: Engine) -> None:
    for number in range(300):
        engine.scheduler.add(f"r{number}", 3)
        engine.step()
        engine.scheduler.finish(f"r{number}")
    engine.step()
    assert len(engine.scheduler._jouleproxy_steps._sequences) == 0


def test_requests_that_vanish_unannounced_are_forgotten_too() -> None:
    sequences = Sequences()
    for number in range(3 * SPARE):
        name = f"r{number}"
        requests = {name: SimpleNamespace(num_prompt_tokens=3, num_tokens=3, num_preemptions=0)}
        output = Output([New(name, 0)], Cached(), {name: 3}, set())
        assert sequences.read(seen_with_new(output, requests), requests) is not None
        assert len(sequences) <= SPARE + 2


def test_steps_that_never_come_out_are_given_up(engine: Engine) -> None:
    engine.scheduler.add("a", 3)
    outputs = []
    for _ in range(3 * MOST_NOTED):
        outputs.append(engine.scheduler.schedule())
        engine.scheduler.requests["a"].num_tokens += 1
    steps = engine.scheduler._jouleproxy_steps
    assert len(steps._noted) <= MOST_NOTED + 1
    engine.scheduler.update_from_output(outputs[-1])
    assert (len(steps._noted), len(steps._pending)) == (0, MOST_PENDING - 1)
    (step,) = engine.heard()
    given_up = 3 * MOST_NOTED - MOST_PENDING
    assert (step.number, step.dropped) == (given_up + 1, given_up)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("chatcmpl-x-1", "chatcmpl-x-1"),
        ("two\nlines", "two lines"),
        ("é" * 3, "ééé"),
        ("half \ud800", "half ?"),
        ("x" * 10_000, "x" * LONGEST_NAME),
    ],
)
def test_a_name_can_break_no_datagram(engine: Engine, name: str, sent: str) -> None:
    """Clients choose part of it: body member request_id."""
    assert plain(name) == sent
    engine.scheduler.add(name, 3)
    assert engine.step() == [(sent, 0, 3, 0, 0)]


class Broken(Exception):
    """What the tests break things with."""


@pytest.fixture(params=[Broken, MemoryError, GeneratorExit, RecursionError])
def fault(request: pytest.FixtureRequest) -> type[BaseException]:
    return request.param


@pytest.mark.parametrize(
    "place",
    [
        "jouleproxy_steplog.Steps.__init__",
        "jouleproxy_steplog.steps.Sequences.read",
        "jouleproxy_steplog.steps.Parcel.add",
        "jouleproxy_steplog.steps.Sender.send",
    ],
)
def test_a_fault_of_ours_never_reaches_the_engine(
    engine: Engine,
    place: str,
    fault: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And after some in a row the plugin goes silent, with two lines in the log in all."""
    calls = []

    def fail(*arguments: object, **named: object) -> None:
        calls.append(arguments)
        raise fault

    monkeypatch.setattr(place, fail)
    engine.scheduler.add("a", 3)
    for number in range(FAILURES_IN_A_ROW + 5):
        output = engine.scheduler.schedule()
        assert engine.scheduler.update_from_output(output) == "taken in"
        assert engine.scheduler.updated[-1] is output
        assert engine.scheduler.requests["a"].num_tokens == 4 + number
    assert len(calls) == FAILURES_IN_A_ROW
    assert len(caplog.records) == 2
    assert engine.heard() == []


@pytest.fixture
def broken_log() -> Iterator[None]:
    """vLLM's log goes to a pipe whose reader has gone, by a handler that says so."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    log, handler = logging.getLogger("vllm.jouleproxy_steplog"), Broken()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("broken_log")
def test_a_log_that_cannot_be_written_to_never_reaches_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a fault of ours that would be told there, nor the last of many."""

    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(Steps, "scheduled", fail)
    engine.scheduler.add("a", 3)
    for number in range(FAILURES_IN_A_ROW + 5):
        assert engine.scheduler.update_from_output(engine.scheduler.schedule()) == "taken in"
        assert engine.scheduler.requests["a"].num_tokens == 4 + number


@pytest.mark.usefixtures("broken_log")
def test_a_log_that_cannot_be_written_to_loses_no_step(engine: Engine) -> None:
    """The line that says that steps are reported fails, and its EPIPE is not the socket's."""
    engine.scheduler.add("a", 3)
    assert [len(engine.step()) for _ in range(5)] == [1] * 5


def test_a_passing_fault_loses_its_step_and_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.scheduler.add("a", 3)
    engine.step()
    for place in ("jouleproxy_steplog.steps.Sequences.read", "jouleproxy_steplog.steps.Parcel.add"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_: 1 / 0)
            engine.step()
    engine.scheduler.update_from_output(engine.scheduler.schedule())
    (step,) = engine.heard()
    assert (step.number, step.dropped, step.sequences[0].before) == (4, 2, 5)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_is_let_through(
    engine: Engine, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's signal handlers raise wherever they find the process."""

    def interrupted(*_: object) -> None:
        raise stop

    monkeypatch.setattr("jouleproxy_steplog.steps.Sequences.read", interrupted)
    with pytest.raises(stop):
        engine.scheduler.schedule()


def test_the_engines_own_faults_pass_untouched(kind: type[SchedulerBase], path: Path, listen: Receiver) -> None:
    fault = Broken("the engine's")

    def fail(self: SchedulerBase, *arguments: object) -> Output:
        raise fault

    kind.schedule = kind.update_from_output = fail  # type: ignore[assignment]
    engine = Engine(kind, path, listen)
    with pytest.raises(Broken) as raised:
        engine.scheduler.schedule()
    assert raised.value is fault
    with pytest.raises(Broken) as raised:
        engine.scheduler.update_from_output(Output([], Cached(), {}, set()))
    assert raised.value is fault


def test_a_scheduler_unlike_those_known_is_left_alone(kind: type[SchedulerBase], path: Path, listen: Receiver) -> None:
    """Without the attributes that are read, and without room for ours."""

    class Foreign:
        __slots__ = ()

        def schedule(self) -> str:
            return "scheduled"

        def update_from_output(self, output: object) -> str:
            return "taken in"

    hook(Foreign, str(path))
    for _ in range(FAILURES_IN_A_ROW):
        assert (Foreign().schedule(), Foreign().update_from_output(object())) == ("scheduled", "taken in")
