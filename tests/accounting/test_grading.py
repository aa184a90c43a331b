"""The grade of a request says where the facts of its windows came from."""

from proxy.accounting.activity import Activity, Work
from proxy.accounting.flight import Flight
from proxy.accounting.grading import Grading
from tests.accounting.flights import ms


def activity(*rows: str, logged: bool, strangers: int = 0) -> Activity:
    return Activity([Flight(row, row, ms(0)) for row in rows], [Work() for _ in rows], [Work()] * strangers, 1, logged)


def test_all_windows_from_the_log_make_an_a() -> None:
    """And one from token times makes it what the meters allow, for good."""
    grading = Grading("B")
    for logged, grade in ((True, "A"), (True, "A"), (False, "B"), (True, "B")):
        grading.note(activity("r", logged=logged))
        assert grade == grading.of("r")


def test_a_window_without_the_request_does_not_count_for_it() -> None:
    """Only those who ran in it are noted."""
    grading = Grading("B")
    grading.note(activity("r", logged=True))
    grading.note(activity("other", logged=False))

    assert ("A", "B") == (grading.of("r"), grading.of("other"))


def test_a_request_without_windows_has_the_grade_of_the_time() -> None:
    """That of the last window in which anything ran; an idle one says nothing of it."""
    grading = Grading("B")
    assert "B" == grading.of("new")

    grading.note(activity(logged=True, strangers=1))
    assert "A" == grading.of("new")
    grading.note(activity(logged=False))
    assert "A" == grading.of("new")
    grading.note(activity("r", logged=False))
    assert "B" == grading.of("new")


def test_a_log_makes_no_meter_better() -> None:
    """Power integrals, remote meters and estimates stay C or D whatever is known of the steps."""
    for meters in "CD":
        grading = Grading(meters)
        grading.note(activity("r", logged=True))
        assert meters == grading.of("r")


def test_a_settled_request_is_forgotten() -> None:
    """Also one that was never noted."""
    grading = Grading("B")
    grading.note(activity("r", logged=False))
    grading.note(activity(logged=True, strangers=1))
    grading.forget("r")
    grading.forget("never")

    assert "A" == grading.of("r")
