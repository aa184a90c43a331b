"""Schedules of due times."""

from itertools import pairwise
from statistics import mean, pstdev

import pytest

from loadgen.arrivals import KINDS, constant, due_times, gamma, poisson, requests_due
from loadgen.replay import replay
from proxy.accounting.units import SECOND


def cv(due: list[int]) -> float:
    gaps = [b - a for a, b in pairwise(due)]
    return pstdev(gaps) / mean(gaps)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_what_was_asked(kind: str) -> None:
    """20,000 arrivals at 50/s take 400 s, within the chance of a sum of that many gaps."""
    due = due_times(kind, 50, 20_000, seed=1, burstiness=0.5)

    assert due == sorted(due)
    assert due[-1] / SECOND == pytest.approx(400, rel=0.05)


def test_poisson_gaps_vary_as_much_as_their_mean() -> None:
    """The coefficient of variation of an exponential is one."""
    assert cv(poisson(10, 20_000, seed=2)) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("burstiness", "expected"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float, expected: float) -> None:
    """Their coefficient of variation is its inverse root."""
    assert cv(gamma(10, 30_000, seed=3, burstiness=burstiness)) == pytest.approx(expected, rel=0.06)


def test_constant_gaps_start_at_once_and_do_not_drift() -> None:
    """Due times are multiples, not sums of rounded gaps."""
    assert constant(3, 4) == [0, 333_333_333, 666_666_667, 1_000_000_000]


def test_one_seed_gives_one_schedule() -> None:
    """Workers that know the seed agree without talking."""
    assert poisson(5, 100, seed=4) == poisson(5, 100, seed=4)
    assert poisson(5, 100, seed=4) != poisson(5, 100, seed=5)


def test_an_unknown_kind_is_refused() -> None:
    """The message lists the kinds."""
    with pytest.raises(ValueError, match="poisson, constant, gamma"):
        due_times("weekly", 1, 1, 0, 1)


@pytest.mark.parametrize(("elapsed", "sent", "owed"), [(-5, 0, 0), (0, 0, 1), (25, 1, 2), (25, 3, 0), (99, 0, 4)])
def test_an_open_loop_owes_what_is_due_and_not_sent(elapsed: int, sent: int, owed: int) -> None:
    """A request is due at its very instant; never a negative number."""
    assert requests_due([0, 10, 20, 30], elapsed, sent) == owed


class SteppedTime:
    """A clock that moves only in sleeps, each `late_ns` longer than asked."""

    def __init__(self, late_ns: int = 0) -> None:
        self.now_ns = 1_000
        self.late_ns = late_ns

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, span_s: float) -> None:
        self.now_ns += round(span_s * SECOND) + self.late_ns


def test_a_replay_begins_each_request_when_it_is_due() -> None:
    """With a punctual clock there is no lateness at all."""
    time, begun = SteppedTime(), list[tuple[int, int]]()
    due = [0, 10, 10, 4_000]

    replay(due, start=5_000, clock=time.clock, sleep=time.sleep, begin=lambda k: begun.append((k, time.now_ns)))

    assert begun == [(0, 5_000), (1, 5_010), (2, 5_010), (3, 9_000)]


def test_a_late_wake_up_makes_requests_late_but_loses_none() -> None:
    """All that are owed begin at once, and the loop does not stretch the schedule after them."""
    time, begun = SteppedTime(late_ns=100), list[tuple[int, int]]()

    replay(
        [0, 10, 20, 900],
        start=1_000,
        clock=time.clock,
        sleep=time.sleep,
        begin=lambda k: begun.append((k, time.now_ns)),
    )

    assert begun == [(0, 1_000), (1, 1_110), (2, 1_110), (3, 2_000)]
