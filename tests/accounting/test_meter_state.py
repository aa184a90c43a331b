"""Which readings of a meter are divided together, and which stand for themselves."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.accounting.attribution import Split
from proxy.accounting.group import Group
from proxy.accounting.samples import Sample
from proxy.accounting.units import Microjoules
from tests.accounting.flights import ms, stream
from tests.accounting.scripted import group, opened, read


def lengths(results: list[Split]) -> list[float]:
    """Of the divided windows, in milliseconds."""
    return [(one.window.end - one.window.start) / 1e6 for one in results]


def running(until: float = 10_000) -> Group:
    """A group with a stream that runs from the beginning to that time, in milliseconds, and is not over."""
    target = group()
    opened(target, stream("r", first=0.001, step=10, tokens=round(until / 10) + 1, over=False))
    return target


def test_readings_of_a_busy_time_are_joined() -> None:
    """A second at a time, without a gap, and their energies add up."""
    target = running()
    read(target, 4000)

    results = target.settle(ms(4001))

    assert [1000] * 4 == lengths(results)
    assert [0, 1000, 2000, 3000] == [one.window.start / 1e6 for one in results]
    assert [100_000_000] * 4 == [one.window.energy for one in results]
    assert Microjoules(400_000_000) == target.meters["m"].counter


@pytest.mark.parametrize(("streams", "lasts"), [(5, 100), (250, 500), (900, 1000)])
def test_without_trust_a_reading_stands_by_itself_unless_there_is_a_crowd(streams: int, lasts: int) -> None:
    """The larger the crowd the fewer its windows, so that a second has about as many shares; a second is the most."""
    target = group(policy="tokens")
    for number in range(streams):
        opened(target, stream(f"{number}", first=0.001, step=100, tokens=31, over=False))
    target.settle(ms(0))
    read(target, 2000)

    assert [lasts] * (2000 // lasts) == lengths(target.settle(ms(2001)))


def test_half_a_join_waits_for_the_rest() -> None:
    """300 ms of readings are kept back while the meter reads on, and no longer than the rest would take."""
    target = running()
    read(target, 300)

    assert [] == target.settle(ms(350))
    assert 0 == target.meters["m"].settled_until

    assert [300] == lengths(target.settle(ms(1301)))


def test_a_meter_that_stops_holds_no_window_for_ever() -> None:
    """Its last readings are divided although nobody will ever read on and the request goes on."""
    target = running(60_000)
    read(target, 2200)

    assert [1000, 1000] == lengths(target.settle(ms(2201)))
    assert [200] == lengths(target.settle(ms(3201)))


def test_the_last_readings_of_a_request_wait_for_no_company() -> None:
    """Nothing ran after it: its bill can be closed."""
    target = group()
    bill = opened(target, stream("r", first=20, step=10, tokens=25))
    read(target, 300)

    assert [300] == lengths(target.settle(ms(301)))
    assert [bill] == target.close_finished(ms(301))


def test_quiet_readings_stand_for_themselves() -> None:
    """They teach idle power; a busy time is not stretched into them, nor they into it."""
    target = group()
    opened(target, stream("r", sent=250, first=260, step=10, tokens=25))
    read(target, 1000)

    assert [100, 100, 300, 100, 100, 100, 100, 100] == lengths(target.settle(ms(5000)))


def test_bridged_readings_stand_for_themselves() -> None:
    """What a reset hides is nobody's, and must not be joined to what is somebody's."""
    target = running()
    for at, counter in [(0, 50), (100, 60), (200, 70), (300, 5), (400, 15), (900, 65)]:
        target.sampled("m", Sample(ms(at), Microjoules(counter * 1_000_000)))

    results = target.settle(ms(10_000))

    assert [(200, False), (100, True), (600, False)] == [
        (length, one.window.bridged) for length, one in zip(lengths(results), results, strict=True)
    ]
    assert [0, 1, 0] == [one.unmeasured // 10_000_000 for one in results]


def test_readings_too_far_apart_stand_for_themselves() -> None:
    """A gap is unmeasured as a whole; nothing before or after it is."""
    target = running(80_000)
    for at in (0, 100, 200, 60_200, 60_300, 60_800):
        target.sampled("m", Sample(ms(at), Microjoules(at * 1000)))

    results = target.settle(ms(100_000))

    assert [200, 60_000, 600] == lengths(results)
    assert [0, 60_000_000, 0] == [one.unmeasured for one in results]


@pytest.mark.parametrize("policy", ["tokens", "output-tokens", "time"])
def test_policies_that_predict_nothing_divide_each_reading(policy: str) -> None:
    """There is nothing to even out."""
    target = group(policy=policy)  # type: ignore[arg-type]
    opened(target, stream("r", first=0.001, step=10, tokens=100, over=False))
    read(target, 600)

    assert [100] * 6 == lengths(target.settle(ms(601)))


def test_at_shutdown_each_reading_is_divided_as_it_is() -> None:
    """Nothing waits."""
    target = running()
    read(target, 300)

    assert [100] * 3 == lengths(target.settle(ms(300), force=True))


readings_drawn = st.lists(
    st.tuples(st.sampled_from([10, 50, 100, 100, 100, 250, 700, 40_000]), st.integers(-3, 60), st.booleans()),
    min_size=2,
    max_size=40,
)


@settings(max_examples=150)
@given(readings_drawn, st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 2000), st.booleans()), max_size=4))
def test_divided_windows_touch_and_add_up(
    drawn: list[tuple[int, int, bool]], spans: list[tuple[int, int, bool]]
) -> None:
    """Whatever the meter does and whoever runs: no time is divided twice or left out, and no energy."""
    target = group()
    for number, (first, length, over) in enumerate(spans):
        opened(target, stream(f"r{number}", sent=first, first=first + 1, step=10, tokens=length // 10 + 1, over=over))
    state, at, counter = target.meters["m"], 0, 10**9
    raw, results = [], []
    for later, moved, settle in drawn:
        at += later
        counter = max(0, counter + moved * 1_000_000)
        target.sampled("m", Sample(ms(at), Microjoules(counter), 100.0))
        raw = [*raw, *(window for window, _ in state.waiting if window not in raw)]
        if settle:
            results += target.settle(ms(at + 5))
        assert 0 == state.imbalance
    results += target.settle(ms(at + 100_000))
    windows = [one.window for one in results]
    edges = {window.start for window in raw} | {window.end for window in raw}

    assert not state.waiting
    assert sum(window.energy for window in raw) == sum(window.energy for window in windows)
    assert {edge for window in windows for edge in (window.start, window.end)} <= edges
    assert [window for window in raw if window.bridged] == [window for window in windows if window.bridged]
    for before, after in pairwise(windows):
        assert before.end <= after.start
        if before.end < after.start:
            assert before.end not in {window.start for window in raw}
