"""
A meter that several groups share: counted once, divided by what each was predicted to use, and never better than D.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.activity import Span, Work, union
from proxy.accounting.attribution import predicted
from proxy.accounting.board import FEWEST_ALONE, PART_DOUBT, Board
from proxy.accounting.books import Accounts
from proxy.accounting.fitting import Fit
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.samples import Sample, Timeline
from proxy.accounting.steps import Computed
from proxy.accounting.terms import TERMS
from proxy.accounting.uncertainty import doubts
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import Weights
from tests.accounting.flights import WEIGHTS, ms, silent, stream, window
from tests.accounting.scripted import PATIENCE, group, opened, step

METER = "board"
WATTS = 100.0
WINDOWS = 40
"""In the four seconds of a test on rounding."""


class Shared:
    """Some groups on one board, which is read every 100 ms."""

    def __init__(self, *groups: Group) -> None:
        self.groups = groups or (group(METER), group(METER))
        self.board = Board(METER, self.groups)

    def read(self, until_ms: int, *, since_ms: int = 0, watts: float = WATTS) -> None:
        """Readings of a constant power."""
        last = self.board.whole.timeline.last
        counter = 0 if last is None else last.counter
        for at in range(since_ms, until_ms + 1, 100):
            counter += 0 if self.board.whole.timeline.last is None else round(watts * 100_000)
            self.board.sampled(Sample(ms(at), Microjoules(counter)))

    def settle(self, at_ms: float, *, force: bool = False) -> None:
        """A pass at that time: the board, then each group, as the settlement has it."""
        self.board.settle(ms(at_ms), force=force)
        for one in self.groups:
            one.settle(ms(at_ms), force=force)

    @property
    def parts(self) -> list[Accounts]:
        """What each group has of the board."""
        return [one.meters[METER].accounts for one in self.groups]

    @property
    def actives(self) -> list[int]:
        """What each group's own work and its strangers' cost, in microjoules."""
        return [part.requests + part.unattributed for part in self.parts]

    def assert_law(self) -> None:
        """Every account of the board is the sum of the groups', and they add up to what it counted."""
        whole = self.board.whole
        for account in ("requests", "idle", "unattributed", "unmeasured", "meter"):
            assert getattr(whole.accounts, account) == sum(getattr(part, account) for part in self.parts)
        waiting = sum(window.energy for window, _ in whole.waiting)
        assert whole.accounts.booked == whole.unwatched_uj + whole.timeline.total_uj - waiting
        assert whole.imbalance == 0
        for one, part in zip(self.groups, self.parts, strict=True):
            assert one.meters[METER].imbalance == 0
            assert part.booked == part.meter
            assert sum(one.tallies.energy_by_tenant.values()) == part.requests
            assert sum(one.tallies.energy_by_model_phase.values()) == part.requests


@dataclass(frozen=True)
class Reading:
    """What the meter does until the next one: later by `ms`, more by `mj` (less than nothing: a reset)."""

    ms: int
    mj: int
    power_w: float | None
    force: bool


flights = st.builds(
    lambda kind, **drawn: silent(drawn["row"], sent=drawn["sent"]) if kind else stream(**drawn),
    kind=st.booleans(),
    row=st.uuids().map(str),
    sent=st.floats(0, 2000),
    first=st.floats(2001, 2500),
    tokens=st.integers(0, 30),
    step=st.floats(1, 50),
    over=st.booleans(),
)
readings = st.builds(
    Reading,
    ms=st.sampled_from([20, 100, 100, 100, 400, 31_000]),
    mj=st.integers(-2_000, 60_000),
    power_w=st.one_of(st.none(), st.floats(0, 700)),
    force=st.sampled_from([False, False, False, True]),
)


@given(
    st.lists(st.lists(flights, max_size=4, unique_by=lambda one: one.row), min_size=2, max_size=3),
    st.lists(readings, min_size=2, max_size=30),
    st.one_of(st.none(), st.integers(0, 10_000_000)),
)
def test_the_parts_add_up_to_the_board_after_every_step(
    drawn: list[list[Flight]], steps: list[Reading], known: int | None
) -> None:
    """
    Whatever runs, resets, gaps, restarts and ends at once: no microjoule is lost between the groups or counted twice.
    """
    shared = Shared(*(group(METER) for _ in drawn))
    bills = [
        [opened(one, flight, tenant=flight.row[:1]) for flight in own]
        for one, own in zip(shared.groups, drawn, strict=True)
    ]
    alone = Timeline(METER)
    at, counter = 0, 5_000_000
    for reading in steps:
        at, counter = at + reading.ms, max(0, counter + reading.mj * 1000)
        sample = Sample(ms(at), Microjoules(counter), reading.power_w)
        shared.board.sampled(sample, known_counter=None if known is None else Microjoules(known))
        alone.accept(sample)
        shared.settle(at, force=reading.force)
        shared.assert_law()
    shared.settle(at, force=True)

    shared.assert_law()
    assert not shared.board.whole.waiting
    first = max(0, 5_000_000 + steps[0].mj * 1000)
    unwatched = first - known if known is not None and first >= known else 0
    assert sum(part.meter for part in shared.parts) == alone.total_uj + unwatched
    for own, part in zip(bills, shared.parts, strict=True):
        assert sum(bill.energy_uj for bill in own) == part.requests


@given(st.lists(st.lists(flights, max_size=3, unique_by=lambda one: one.row), min_size=3, max_size=3))
def test_the_order_of_the_groups_does_not_matter(drawn: list[list[Flight]]) -> None:
    """
    Named the other way round each has the same, but for a microjoule of rounding per window and account.
    """

    def settled(order: Sequence[int]) -> dict[int, Accounts]:
        shared = Shared(*(group(METER) for _ in order))
        for one, number in zip(shared.groups, order, strict=True):
            for flight in drawn[number]:
                opened(one, replace(flight, ticks=flight.ticks.copy()))
        shared.read(4_000, watts=333.333)
        shared.settle(90_000, force=True)
        return dict(zip(order, shared.parts, strict=True))

    there, back = settled([0, 1, 2]), settled([2, 1, 0])

    for number in range(3):
        for account in ("requests", "idle", "unattributed", "meter"):
            assert abs(getattr(there[number], account) - getattr(back[number], account)) <= 2 * WINDOWS


def test_equal_groups_get_equal_parts() -> None:
    """
    Two servers that do the same pay the same, to the microjoule of rounding.
    """
    shared = Shared()
    for one in shared.groups:
        opened(one, stream("r", first=100, tokens=90))
    shared.read(4_000, watts=333.333)
    shared.settle(5_000)

    left, right = shared.parts
    assert abs(left.requests - right.requests) <= WINDOWS
    assert abs(left.idle - right.idle) <= WINDOWS
    assert left.requests > 0 < left.idle


def test_a_group_without_work_gets_idle_only() -> None:
    """
    What the other's requests cost is not its; what the board uses while nobody works is shared equally.
    """
    shared = Shared()
    opened(shared.groups[0], stream("r", sent=500, first=600, tokens=41))
    shared.read(2_000)
    shared.settle(3_000)

    busy, quiet = shared.parts
    assert (quiet.requests, quiet.unattributed) == (0, 0)
    assert quiet.meter == quiet.idle == busy.idle == 75_000_000
    assert busy.requests == 50_000_000


def test_the_part_follows_the_predicted_joules() -> None:
    """
    Energy of a window in the ratio of what each group's work was predicted to cost: long contexts, not heads, count.
    """
    shared = Shared()
    opened(shared.groups[0], stream("short", sent=-100, first=0, step=10, tokens=101, prompt=10))
    opened(shared.groups[1], stream("long", sent=-100, first=0, step=10, tokens=101, prompt=50_000))
    shared.read(1_000)
    shared.settle(1_100)

    (end,) = {one.settled_until for one in shared.groups}
    assert end == ms(1_000)
    works = [one.activity(window(0, 1_000)).total() for one in shared.groups]
    low, high = (sum(predicted(work, WEIGHTS)) for work in works)
    left, right = shared.actives
    assert high > 1.2 * low
    assert left + right == 100_000_000
    assert left / (left + right) == pytest.approx(low / (low + high), abs=1e-6)


def times(weights: Weights, factor: float) -> Weights:
    """Weights that predict so many times as much of everything."""
    line = weights.roofline
    assert line is not None
    watts = replace(line, static_w=factor * line.static_w, limit_w=factor * line.limit_w)
    return replace(weights, roofline=watts, **{name: factor * getattr(weights, name) for name in TERMS})


def test_a_prior_that_is_ten_times_too_high_is_found_out_while_each_works_alone() -> None:
    """
    Equal work costs equal energy: at first the wrong prior pays ten times as much, later what was seen decides.
    """
    shared = Shared(group(METER, weights=times(WEIGHTS, 10)), group(METER))
    left, right = shared.groups
    stretch = 1_000 * (FEWEST_ALONE + 1)
    for target, sent in ((left, 0), (right, 0), (left, 1_000), (right, 1_000 + stretch)):
        tokens = 51 if sent == 0 else stretch // 20 + 1
        opened(target, stream(f"{sent}", sent=sent, first=sent + 0.001, step=20, tokens=tokens))
    after = 1_000 + 2 * stretch
    for target in shared.groups:
        opened(target, stream("again", sent=after, first=after + 0.001, step=20, tokens=51))
    shared.read(1_000)
    shared.settle(2_000)
    first = shared.actives
    shared.read(after, since_ms=1_100)
    shared.settle(after)
    before = shared.actives
    shared.read(after + 1_000, since_ms=after + 100)
    shared.settle(after + 2_000)

    assert first[0] == pytest.approx(10 * first[1], rel=0.02)
    last = [now - then for now, then in zip(shared.actives, before, strict=True)]
    assert last == pytest.approx([50_000_000, 50_000_000], rel=0.02)


def test_traffic_of_a_server_that_nobody_here_saw_counts() -> None:
    """
    A server that works for others takes its part of the board, unattributed, and the other server does not pay for it.
    """
    shared = Shared()
    left, right = shared.groups
    opened(right, stream("r", first=0.001, step=10, tokens=101))
    for at, made in ((0, 0), (1_000, 500)):
        left.scraped(EngineCounters(ms(at), 1, 0, made, 0), ms(at))
    shared.read(1_000)
    shared.settle(2_000)

    strange, seen = shared.parts
    assert (strange.requests, strange.idle, seen.unattributed, seen.idle) == (0, 0, 0, 0)
    assert strange.unattributed > seen.requests > 0
    shared.assert_law()


def test_the_time_in_which_none_ran_is_known_exactly() -> None:
    """
    One worked 30 ms, the other 20 ms at another time: the other 50 ms are idle, at the board's own idle power.
    """
    shared = Shared()
    left, right = shared.groups
    shared.read(3_000)
    shared.settle(3_000, force=True)
    left.stepped(step(1, 3_000, 3_030, Computed("a", 0, 0, 1, 0)))
    right.stepped(step(1, 3_060, 3_080, Computed("b", 0, 0, 1, 0)))
    shared.read(3_100, since_ms=3_100, watts=500)
    shared.settle(3_100, force=True)

    quiet = 3_000 * 100 * 1000
    assert [part.idle for part in shared.parts] == [(quiet + 5_000_000) // 2] * 2
    assert shared.actives == [22_500_000, 22_500_000]


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 100)).map(lambda pair: (ms(min(pair)), ms(max(pair)))), max_size=8
    )
)
def test_a_union_of_times_is_ordered_and_holds_each_instant_once(times: list[tuple[Nanoseconds, Nanoseconds]]) -> None:
    """
    By counting milliseconds.
    """
    found = union(times)

    held = {at for start, end in times for at in range(start, end, 1_000_000)}
    assert {at for span in found for at in range(span.start, span.end, 1_000_000)} == held
    assert sum(span.length for span in found) == len(held) * 1_000_000
    assert all(before.end < after.start for before, after in pairwise(found))


@given(st.lists(flights, max_size=4, unique_by=lambda one: one.row))
def test_an_activity_says_when_something_ran(drawn: list[Flight]) -> None:
    """
    Its spans are as long together as the time it says was covered.
    """
    target = group(METER)
    for flight in drawn:
        opened(target, flight)

    found = target.activity(window(500, 2_300))

    assert sum(span.length for span in found.covered) == found.covered_ns
    assert all(Span(ms(500), ms(2_300)).within(span) == span for span in found.covered)


def test_idle_power_is_the_boards() -> None:
    """
    It is learnt while no server works, also not for somebody else, and each shows an equal part of it.
    """
    shared = Shared()
    left, right = shared.groups
    right.scraped(EngineCounters(ms(0), running=1, waiting=0, generation_tokens=0, computed_prompt_tokens=0), ms(0))
    shared.read(2_000, watts=300)
    shared.settle(2_000)
    assert [one.meters[METER].idle_w for one in shared.groups] == [None, None]

    right.scraped(EngineCounters(ms(2_001), 0, 0, 0, 0), ms(2_001))
    shared.read(6_000, since_ms=2_100, watts=80)
    shared.settle(7_000)

    assert shared.board.whole.idle_w == pytest.approx(80)
    assert [one.meters[METER].idle_w for one in shared.groups] == pytest.approx([40, 40])
    assert left.meters[METER].idle is right.meters[METER].idle


def test_powers_shown_add_up_to_the_boards() -> None:
    """
    No GPU draws its power twice on the dashboard.
    """
    shared = Shared()
    opened(shared.groups[0], stream("r", first=0.001, step=10, tokens=201))
    assert [one.power_w() for one in shared.groups] == [None, None]
    shared.read(2_000)
    shared.settle(3_000)

    powers = [one.power_w() for one in shared.groups]
    assert None not in powers
    assert sum(power for power in powers if power is not None) == pytest.approx(WATTS)


def test_a_group_that_is_not_ready_holds_the_board() -> None:
    """
    While one server's long prefill runs nobody knows what part the other has.
    """
    shared = Shared()
    left, right = shared.groups
    opened(left, stream("done", first=20, tokens=20))
    slow = Flight("slow", "slow", ms(10), prompt_tokens=4000)
    opened(right, slow)
    shared.read(300)
    shared.settle(5_000)
    assert [one.settled_until for one in shared.groups] == [0, 0]

    slow.tick(ms(310), 1)
    shared.settle(5_000)
    assert [one.settled_until for one in shared.groups] == [ms(300), ms(300)]
    assert ["done"] == [bill.flight.row for bill in left.close_finished(ms(5_000))]


def test_a_reset_is_unmeasured_in_equal_parts() -> None:
    """
    Nobody knows who used what was lost: every request that ran meanwhile is marked, in both groups.
    """
    shared = Shared()
    bills = [opened(one, stream("r", first=0.001, step=10, tokens=31)) for one in shared.groups]
    for at, counter in ((0, 900_000_000), (100, 910_000_000), (200, 1_000_000), (300, 11_000_000)):
        shared.board.sampled(Sample(ms(at), Microjoules(counter), 80.0))
    shared.settle(1_000)

    assert [part.unmeasured for part in shared.parts] == [4_000_000, 4_000_000]
    assert [bill.unmeasured for bill in bills] == [True, True]
    shared.assert_law()


def test_what_nobody_watched_is_booked_once() -> None:
    """
    The ledger knew the board at 4 J and the first reading says 10 J: 6 J in all, not for each server.
    """
    shared = Shared()
    shared.board.sampled(Sample(ms(0), Microjoules(10_000_000)), known_counter=Microjoules(4_000_000))

    assert [(part.unattributed, part.meter) for part in shared.parts] == [(3_000_000, 3_000_000)] * 2
    assert [one.meters[METER].counter for one in shared.groups] == [10_000_000, 10_000_000]
    shared.assert_law()


def test_a_part_is_never_better_than_d() -> None:
    """
    Not with a counter and a step log for every step: what each server used nobody measured.
    """
    shared = Shared()
    left = shared.groups[0]
    bill = opened(left, stream("r", first=10, step=10, tokens=10))
    for number in range(1, 11):
        left.stepped(step(number, 10 * number - 10, 10 * number, Computed("r", number, 0, 1, 0)))
    shared.read(100)
    shared.settle(1_000)

    assert bill.energy_uj == 10_000_000
    assert left.grading.logging
    assert left.grade_of(bill) == "D"
    assert left.divider.doubts == doubts("D", sensor_noise=None)
    assert group(METER).divider.doubts == doubts("B")


def test_figures_are_widened_once_however_many_boards_are_shared() -> None:
    """
    Two servers, both over the same two GPUs: their parts err alike on each.
    """
    servers = [
        Group("b", ["m1", "m2"], weights=WEIGHTS, patience=PATIENCE, absolute_uncertainty=known)
        for known in (0.05, None)
    ]

    boards = [Board(name, servers) for name in ("m1", "m2")]

    assert servers[0].absolute_uncertainty == hypot(0.05, PART_DOUBT)
    assert servers[1].absolute_uncertainty is None
    assert {state.part_doubt for server in servers for state in server.meters.values()} == {PART_DOUBT}
    assert [board.whole.part_doubt for board in boards] == [0, 0]


def test_a_server_over_two_gpus_of_which_one_is_shared() -> None:
    """
    It pays all of its own and its part of the other, and its requests are settled once both are.
    """
    large, small = group("own", METER), group(METER)
    board = Board(METER, [large, small])
    bill = opened(large, stream("r", sent=-100, first=0, step=10, tokens=11))
    opened(small, stream("r", sent=-100, first=0, step=10, tokens=11))
    for at in (0, 100):
        board.sampled(Sample(ms(at), Microjoules(at * 100_000)))
    large.sampled("own", Sample(ms(0), Microjoules(0)))
    board.settle(ms(1_000))
    large.settle(ms(1_000))
    assert [] == large.close_finished(ms(1_000))

    large.sampled("own", Sample(ms(100), Microjoules(7_000_000)))
    large.settle(ms(1_000))

    assert [bill] == large.close_finished(ms(1_300))
    assert bill.energy_uj == 7_000_000 + 5_000_000
    assert (large.meters["own"].imbalance, large.meters[METER].imbalance, board.whole.imbalance) == (0, 0, 0)


class Noting(Fit):
    """Weights that keep what they were taught, in microjoules."""

    def __init__(self) -> None:
        super().__init__(WEIGHTS)
        self.taught = 0

    def observe(self, work: Work, active_uj: int, span_ns: Nanoseconds) -> None:
        self.taught += active_uj
        super().observe(work, active_uj, span_ns)


def test_weights_learn_only_from_what_was_measured() -> None:
    """
    A part follows from the weights; to learn from it would be to believe oneself. Alone on the board it is a reading.
    """
    shared = Shared()
    left, right = shared.groups
    left.divider.fit = fit = Noting()
    opened(left, stream("l", first=0.001, step=10, tokens=201))
    opened(right, stream("r", sent=1_000, first=1_010, step=10, tokens=100))
    shared.read(2_000)
    shared.settle(3_000)

    assert fit.taught == 100_000_000
    assert left.divider.kappa is not None
    assert 0 < right.meters[METER].accounts.requests < 100_000_000
