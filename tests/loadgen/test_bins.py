"""Bin tables and plans."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest

from loadgen.bins import COLUMNS, Bin, Workload, load_workload, read_table, shares, spread
from loadgen.errors import WorkloadError

HEADER = ",".join(COLUMNS)
SMALL = Workload(
    "small",
    (
        Bin(16, 23, 4, 8, 6, 120, 33, 2_402, 185, 661),
        Bin(724, 1024, 128, 256, 3, 2_500, 500, 2_090_000, 84_000, 417_000),
        Bin(2896, 4096, 32, 64, 1, 3_001, 47, 9_006_001, 2_209, 141_047),
    ),
)


def test_a_plan_as_long_as_the_trace_has_its_total_tokens() -> None:
    """Every bin's sum comes out exactly, although single lengths are rounded."""
    plan = SMALL.plan(10, seed=3)

    assert sum(p.input_tokens for p in plan) == 120 + 2_500 + 3_001
    assert sum(p.output_tokens for p in plan) == 33 + 500 + 47
    assert Counter(p.bin for p in plan) == {cell: cell.count for cell in SMALL.bins}


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    """Two seeds plan the same requests; one seed always plans the same order."""
    one, same, other = SMALL.plan(50, seed=1), SMALL.plan(50, seed=1), SMALL.plan(50, seed=2)

    assert one == same
    assert one != other
    assert Counter(one) == Counter(other)


@pytest.mark.parametrize("requests", [1, 2, 7, 13, 1000])
def test_a_plan_has_as_many_requests_as_asked(requests: int) -> None:
    """Largest remainder deals out all of them, and each length lies in its bin."""
    plan = SMALL.plan(requests, seed=0)

    assert len(plan) == requests
    assert all(p.bin.input_from <= p.input_tokens <= p.bin.input_to for p in plan)


def test_shares_follow_the_largest_remainders() -> None:
    """10 dealt over 5:3:3 is 4.5, 2.7, 2.7: the two largest remainders round up."""
    assert shares([5, 3, 3], 10) == [4, 3, 3]
    assert shares([1, 1, 1], 2) == [1, 1, 0]


def test_spread_keeps_the_sum() -> None:
    """A mean of 8/3 is 3, 2, 3: the sum of any number of them is the rounded multiple."""
    assert spread(Fraction(8, 3), 3) == [3, 2, 3]
    assert [sum(spread(Fraction(100, 7), n)) for n in range(15)] == [round(n * Fraction(100, 7)) for n in range(15)]


def test_lengths_are_scaled_by_one_factor_to_fit_a_small_context() -> None:
    """The largest bin fits, shorter bins shrink by the same factor, no length falls to zero."""
    fitted = SMALL.fit(512)
    plan = fitted.plan(10, seed=0)

    assert fitted.scale == Fraction(510, 3_048)
    assert max(p.input_tokens + p.output_tokens for p in plan) <= 512
    assert min(p.output_tokens for p in plan) >= 1
    assert fitted.mean_input == pytest.approx(SMALL.mean_input * 510 / 3_048)


def test_a_large_enough_context_scales_nothing() -> None:
    """The factor never exceeds one."""
    assert SMALL.fit(4_096) == SMALL


def test_a_context_too_small_for_anything_is_refused() -> None:
    """There is no factor that fits."""
    with pytest.raises(WorkloadError, match="3 tokens is too small"):
        SMALL.fit(3)


def test_a_bin_is_named_by_its_edges() -> None:
    """The label is what tables and files show."""
    assert SMALL.bins[1].label == "in 724-1024 out 128-256"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["# only a comment"], "t: no bins"),
        (["input_from,count"], "t, line 1: the header lacks input_to"),
        (["# source", HEADER, "1,16,32,64,2,24,112,290,6322,x"], "t, line 3: not a whole number.*'x'"),
        ([HEADER, "1,16,32,64,2"], "t, line 2: 5 values under 10 columns"),
        ([HEADER, "1,16,32,64,0,24,112,290,6322,1"], "t, line 2: a bin holds at least one request"),
        ([HEADER, "1,16,32,64,2,240,112,290,6322,1"], r"t, line 2: mean input of 120.0 tokens lies outside \[1, 16\)"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(lines: list[str], said: str) -> None:
    """The message says where to look and what is wrong."""
    with pytest.raises(WorkloadError, match=said):
        read_table(lines, "t")


def test_an_unknown_workload_is_refused_with_the_known_ones() -> None:
    """The message lists what could have been given."""
    with pytest.raises(WorkloadError, match=r"no workload 'nope'.*azure-conv-2023"):
        load_workload("nope")


def test_nothing_can_be_planned_from_nothing() -> None:
    """No requests, or an empty table, is an error and not an empty plan."""
    with pytest.raises(WorkloadError, match="cannot plan 0 requests"):
        SMALL.plan(0, seed=0)
    with pytest.raises(WorkloadError, match="from a table of 0"):
        replace(SMALL, bins=()).plan(3, seed=0)
