"""The master's side of a run, without Locust."""

from dataclasses import replace
from typing import Any

import pytest

from loadgen.conductor import LEAD_NS, Conductor, Run
from loadgen.outcome import Outcome, to_json

OUTCOME = Outcome("r-0", "in 1-16 out 1-2", 5, 5, 1, 1, 0, 0, 9, 9, None, None, None, None)


class Told:
    """A conductor whose messages are kept, at 1,000 ns of wall time."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, dict[str, Any]]] = []
        self.conductor = Conductor(lambda *message: self.messages.append(message), lambda: 1_000)


@pytest.fixture
def told() -> Told:
    return Told()


def news(*outcomes: Outcome, sent: int = 1) -> dict[str, Any]:
    return {"outcomes": [to_json(o) for o in outcomes], "sent": sent, "in_flight": 0, "cpu_percent": 1.0}


def both_ready(told: Told) -> Run:
    run = told.conductor.begin("run", 2)
    for client in ("a", "b"):
        told.conductor.hello(client)
    for client in ("a", "b"):
        told.conductor.ready(client, requests=1, span_ns=5, facts=["fact"])
    return run


def test_each_worker_gets_one_shard_once(told: Told) -> None:
    """A second hello, or a worker too many, gets nothing: every request is in exactly one shard."""
    told.conductor.begin("run", 2)
    for client in ("a", "b", "a", "c"):
        told.conductor.hello(client)

    assert told.messages == [
        ("a", "loadgen-shard", {"run_id": "run", "shard": 0, "shards": 2}),
        ("b", "loadgen-shard", {"run_id": "run", "shard": 1, "shards": 2}),
    ]


def test_the_start_is_given_when_all_are_ready(told: Told) -> None:
    """The same instant to all, a little ahead."""
    run = both_ready(told)

    assert told.messages[2:] == [(c, "loadgen-go", {"start_unix_ns": 1_000 + LEAD_NS}) for c in ("a", "b")]
    assert (run.planned, run.span_ns, run.facts) == (2, 5, ["fact"])


def test_nobody_starts_while_one_is_missing(told: Told) -> None:
    """Early starters would make the load lopsided."""
    told.conductor.begin("run", 2)
    told.conductor.hello("a")
    told.conductor.ready("a", requests=1, span_ns=0, facts=[])
    told.conductor.hello("b")

    assert [kind for _, kind, _ in told.messages] == ["loadgen-shard", "loadgen-shard"]


def test_a_run_is_over_when_all_are_done_and_complete_when_all_answered(told: Told) -> None:
    """Two workers, two requests."""
    run = both_ready(told)
    told.conductor.news("a", news(OUTCOME))
    told.conductor.done("a")
    assert not run.over

    told.conductor.news("b", news(replace(OUTCOME, request_id="r-1")))
    told.conductor.done("b")
    assert run.over
    assert run.complete
    assert run.sent == 2


def test_a_failed_request_makes_the_run_incomplete(told: Told) -> None:
    """It is over all the same."""
    run = both_ready(told)
    told.conductor.news("a", news(OUTCOME, replace(OUTCOME, error="HTTP 500")))
    for client in ("a", "b"):
        told.conductor.done(client)

    assert run.over
    assert not run.complete


def test_a_worker_that_cannot_make_its_load_ends_the_run_for_all(told: Told) -> None:
    """All workers usually fail the same way: said once."""
    run = told.conductor.begin("run", 2)
    told.conductor.hello("a")
    told.conductor.failed("no server")
    told.conductor.failed("no server")

    assert run.over
    assert run.troubles == ["no server"]


def test_a_lost_worker_is_said_with_what_it_owed(told: Told) -> None:
    """The run ends when the living have answered, instead of waiting forever."""
    run = both_ready(told)
    told.conductor.news("b", news(OUTCOME))
    told.conductor.done("b")
    told.conductor.lost(alive=["b"])

    assert run.over
    assert not run.complete
    assert run.troubles == ["worker a was lost, and with it 1 requests"]


def test_a_worker_lost_before_the_start_ends_the_run(told: Told) -> None:
    """The other one would wait for a start that never comes."""
    run = told.conductor.begin("run", 2)
    for client in ("a", "b"):
        told.conductor.hello(client)
    told.conductor.lost(alive=["b"])

    assert run.over
    assert run.troubles == [
        "worker a was lost, and with it its whole shard",
        "the run could not start without that worker",
    ]


def test_messages_of_strangers_change_nothing(told: Told) -> None:
    """A worker of an earlier run may still be talking."""
    run = both_ready(told)
    told.conductor.done("ghost")
    told.conductor.ready("ghost", requests=9, span_ns=0, facts=[])

    assert told.conductor.news("ghost", news(OUTCOME)) == []
    assert run.planned == 2
