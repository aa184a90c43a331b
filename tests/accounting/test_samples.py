"""
Samples become windows that touch, never overlap, and lose nothing.
"""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.samples import Sample, Timeline, Window
from proxy.accounting.units import Microjoules, Nanoseconds


def sample(at_ms: int, counter: int, power_w: float | None = None) -> Sample:
    return Sample(Nanoseconds(at_ms * 1_000_000), Microjoules(counter), power_w)


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 10**9)), max_size=60))
def test_windows_cover_the_counter_exactly(steps: list[tuple[int, int]]) -> None:
    """
    However late the sampler wakes, the windows add up to last minus first counter, and each begins where one ended.
    """
    timeline = Timeline("m")
    at, counter = 0, 5_000
    timeline.accept(sample(at, counter))
    windows = []
    for wait, energy in steps:
        at, counter = at + wait, counter + energy
        closed = timeline.accept(sample(at, counter))
        windows += [closed] if closed else []

    assert counter - 5_000 == sum(window.energy for window in windows)
    assert all(left.end == right.start for left, right in pairwise(windows))


def test_a_standing_counter_closes_no_window() -> None:
    """
    Only a change is an edge: the time of standing still belongs to the next window.
    """
    timeline = Timeline("m")
    timeline.accept(sample(0, 100))

    assert None is timeline.accept(sample(50, 100))
    window = timeline.accept(sample(100, 107))

    assert window is not None
    assert (0, 100_000_000, 7) == (window.start, window.end, window.energy)


def test_a_window_tells_between_which_polls_its_counter_moved() -> None:
    """
    After the last poll that saw it stand still; joined windows keep the moves of each.
    """
    timeline = Timeline("m")
    windows = [timeline.accept(sample(at, counter)) for at, counter in ((0, 100), (50, 100), (100, 107), (150, 109))]
    first, second = windows[2], windows[3]

    assert first is not None
    assert second is not None
    assert [(50_000_000, 100_000_000, 7)] == [*first.moves]
    assert [(100_000_000, 150_000_000, 2)] == [*second.moves]
    assert (0, 150_000_000, 9) == ((both := first.joined(second)).start, both.end, both.energy)
    assert first.moves + second.moves == both.moves


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 10**6)), min_size=1, max_size=30), st.integers(0, 1000))
def test_a_window_is_cut_where_its_counter_moved(steps: list[tuple[int, int]], least_ms: int) -> None:
    """
    The parts touch, add up to it, and none is shorter than asked for, unless the whole is.
    """
    timeline, windows, at, counter = Timeline("m"), [], 0, 0
    timeline.accept(sample(0, 0))
    for wait, energy in steps:
        at, counter = at + wait, counter + energy
        closed = timeline.accept(sample(at, counter))
        windows += [closed] if closed else []
    whole = windows[0]
    for following in windows[1:]:
        whole = whole.joined(following)
    least = Nanoseconds(least_ms * 1_000_000)
    parts = whole.parts(least)

    assert (parts[0].start, parts[-1].end) == (whole.start, whole.end)
    assert all(one.end == other.start for one, other in pairwise(parts))
    assert sum(part.energy for part in parts) == whole.energy
    assert parts == [whole] or all(part.end - part.start >= least for part in parts)


def test_a_window_whose_moves_are_not_all_known_is_not_cut() -> None:
    """
    What a counter caught up with has no time of its own.
    """
    whole = Window("m", Nanoseconds(0), Nanoseconds(9), Microjoules(5))

    assert whole.parts(Nanoseconds(1)) == [whole]


def test_what_is_bridged_is_no_move() -> None:
    """
    Neither over a reset, nor while the counter is stuck, nor when it catches up.
    """
    timeline = Timeline("m")
    readings = ((0, 1_000, 5.0), (100, 1_500, 5.0), (200, 10, 5.0), (4_000, 10, 5.0), (4_100, 900, 5.0))
    windows = [timeline.accept(sample(at, counter, power)) for at, counter, power in readings]

    assert [True, False, False, False] == [bool(window and window.moves) for window in windows[1:]]


def test_a_reset_is_bridged_by_the_last_power_and_flagged() -> None:
    """
    A counter that falls gives a bridged window of power times time, never a negative or silent zero.
    """
    timeline = Timeline("m")
    timeline.accept(sample(0, 1_000_000))
    timeline.accept(sample(100, 6_000_000))  # 50 W

    window = timeline.accept(sample(200, 10))

    assert Window("m", Nanoseconds(100_000_000), Nanoseconds(200_000_000), Microjoules(5_000_000), True) == window
    assert 1 == timeline.resets


def test_a_reset_before_any_power_is_known_makes_no_figure() -> None:
    """
    Without a power there is nothing to bridge with: no window rather than a made-up one.
    """
    timeline = Timeline("m")
    timeline.accept(sample(0, 1_000_000))

    assert None is timeline.accept(sample(100, 10))
    assert Microjoules(5) == timeline.accept(sample(200, 15)).energy  # type: ignore[union-attr]


def test_the_meters_own_power_is_preferred_for_the_bridge() -> None:
    """
    A power reading taken after the reset says more than the mean before it.
    """
    timeline = Timeline("m")
    timeline.accept(sample(0, 1_000_000))
    timeline.accept(sample(100, 6_000_000))

    assert 20_000_000 == timeline.accept(sample(200, 10, power_w=200.0)).energy  # type: ignore[union-attr]


def test_a_repeated_sample_is_ignored() -> None:
    """
    A sample not later than the last one cannot close a window.
    """
    timeline = Timeline("m")
    timeline.accept(sample(100, 10))

    assert None is timeline.accept(sample(100, 20))


def test_a_stuck_counter_is_bridged_and_never_counted_twice() -> None:
    """
    Standing still at 200 W for seconds is not idle: the time is bridged, and a later jump counts only the rest.
    """
    timeline = Timeline("m")
    timeline.accept(sample(0, 1_000_000, 200.0))
    assert None is timeline.accept(sample(2_900, 1_000_000, 200.0))

    bridged = timeline.accept(sample(3_000, 1_000_000, 200.0))
    caught_up = timeline.accept(sample(4_000, 801_000_000, 200.0))

    assert bridged == Window("m", Nanoseconds(0), Nanoseconds(3_000_000_000), Microjoules(600_000_000), True)
    assert caught_up is not None
    assert (Microjoules(200_000_000), False, 1) == (caught_up.energy, caught_up.bridged, timeline.stuck)


def test_standing_still_without_a_power_reading_says_nothing() -> None:
    """
    A meter that tells no power may simply have nothing to count.
    """
    timeline = Timeline("m")
    timeline.accept(sample(0, 5))

    assert None is timeline.accept(sample(60_000, 5))


def test_a_counter_that_resumes_without_catching_up_charges_at_once() -> None:
    """
    Only the first move after standing still may hold bridged energy; later ones are new, or requests would run free.
    """
    timeline = Timeline("m")
    timeline.accept(sample(0, 1_000_000, 300.0))
    timeline.accept(sample(30_000, 1_000_000, 300.0))

    first = timeline.accept(sample(30_100, 31_000_000, 300.0))
    second = timeline.accept(sample(30_200, 61_000_000, 300.0))

    assert first is not None
    assert second is not None
    assert (0, 30_000_000) == (first.energy, second.energy)
