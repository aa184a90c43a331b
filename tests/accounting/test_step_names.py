"""Whose a sequence is: by its name, among the requests of that id that can have it."""

import pytest

from proxy.accounting import step_names
from proxy.accounting.flight import Flight
from proxy.accounting.step_names import SequenceNames
from proxy.accounting.steps import Computed
from tests.accounting.flights import ms, stream
from tests.accounting.scripted import group, opened, read, request_id_of, step


def names(*flights: Flight) -> SequenceNames:
    """The names of an engine to which these were sent."""
    found = SequenceNames(request_id_of)
    for flight in flights:
        found.opened(flight)
    return found


def request(row: str, sequences: int = 1, *, work: bool = True) -> Flight:
    """All of them have the same id."""
    return Flight(row, "R", ms(0), sequences, metered_work=work)


def rows(found: SequenceNames, *seen: str, at: float = 10) -> list[str | None]:
    """Whose the names are, seen in this order."""
    for name in seen:
        assert found.is_new(name)
        found.join(name, ms(at))
        assert not found.is_new(name)
    return [found.row_of(name) for name in seen]


def test_the_older_request_of_an_id_takes_the_first_name() -> None:
    """And the next one the next."""
    assert ["old", "new"] == rows(names(request("old"), request("new")), "R/a", "R/b")


def test_each_takes_as_many_names_as_it_has_sequences() -> None:
    """Evenly, as long as both have room."""
    assert ["pair", "one", "pair"] == rows(names(request("pair", 2), request("one")), "R/a", "R/b", "R/c")


def test_more_names_than_sequences_go_to_the_one_with_the_fewest() -> None:
    """Beam search makes new sequences at every step: all of them are the request's."""
    assert ["beam"] * 5 == rows(names(request("beam")), *(f"R/{n}" for n in range(5)))
    assert ["x", "y", "x", "y"] == rows(names(request("x"), request("y")), *(f"R/{n}" for n in range(4)))


def test_only_the_first_name_of_a_request_is_told_to_be() -> None:
    """A stranger's is always the first."""
    found = names(request("n", 2))

    assert [True, False, True, True] == [found.join(name, ms(0)) for name in ("R/0", "R/1", "x/0", "x/1")]


def test_a_request_that_does_no_work_has_no_sequence() -> None:
    """Tokenising under the same id takes nothing from the one that is computed."""
    assert ["works"] == rows(names(request("tokenises", work=False), request("works")), "R/a")


def test_a_refused_attempt_has_no_sequence() -> None:
    """Not even one that seems to be there before the refusal is known."""
    refused, again = request("refused"), request("again")
    refused.end(ms(20), "error")

    assert ["again"] == rows(names(refused, again), "R/a")


def test_an_attempt_that_is_over_takes_no_later_name() -> None:
    """A step that began after its end is the next attempt's; one that began before is its own."""
    over, again = request("over"), request("again")
    over.end(ms(50), "partial")
    found = names(over, again)

    assert ["over"] == rows(found, "R/a", at=49)
    assert ["again", "again"] == rows(found, "R/b", "R/c", at=50)


def test_what_is_computed_for_a_settled_request_is_a_strangers() -> None:
    """The name is not new, and not its namesake's either."""
    gone, stays = request("gone"), request("stays")
    found = names(gone, stays)
    rows(found, "R/a", "R/b")

    found.closed(gone)

    assert not found.is_new("R/a")
    assert (None, "stays") == (found.row_of("R/a"), found.row_of("R/b"))


def test_an_engine_may_know_a_request_by_another_id() -> None:
    """Then the one that the client sees is nobody's there."""
    response = Flight("row", "R", ms(0), engine_id="resp")
    found = names(response)

    assert [None, "row"] == rows(found, "R/a", "resp/a")
    found.closed(response)
    assert {} == found._flights


def test_settled_requests_leave_nothing_behind() -> None:
    """Neither by id nor by row; of their names no more is kept than of a stranger's."""
    found = SequenceNames(request_id_of)
    for number in range(100):
        one = Flight(f"r{number}", f"id{number % 3}", ms(0))
        found.opened(one)
        found.join(f"id{number % 3}/{number}", ms(0))
        found.closed(one)

    assert ({}, {}, {}) == (found._flights, found._names_of, found._row_of)


def test_strangers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without end they take no more room than so many names."""
    monkeypatch.setattr(step_names, "REMEMBERED_STRANGERS", 100)
    found = names()
    rows(found, *(f"s{number}" for number in range(1000)))

    assert len(found._strangers) == 100
    assert found.is_new("s899")
    assert not found.is_new("s900")


def test_no_crowd_of_strangers_makes_a_request_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new stranger in every step beside it: it pays for its half to the end."""
    monkeypatch.setattr(step_names, "REMEMBERED_STRANGERS", 8)
    target = group()
    bill = opened(target, stream("r", first=5, step=10, tokens=100))
    for number in range(1, 101):
        held = Computed("r", 100, 0, 1), Computed(f"s{number}", 100, 0, 1)
        target.stepped(step(number, number * 10 - 10, number * 10, *held))
    read(target, 1000)
    target.settle(ms(5000), force=True)

    assert bill.energy_uj == pytest.approx(50_000_000, rel=0.02)
