"""Outcomes of requests and their sums."""

from dataclasses import replace

import pytest

from loadgen.outcome import Outcome, by_bin, json_lines, percentile, read_outcomes, summarise, three_digits

GOOD = Outcome(
    request_id="r-1",
    bin="in 16-23 out 4-8",
    input_asked=20,
    input_got=20,
    output_asked=5,
    output_got=5,
    due_ns=1_000,
    sent_ns=1_200,
    first_ns=3_200,
    last_ns=11_200,
    energy_uj=2_000_000,
    grade="B",
    estimated=False,
    error=None,
)
FAILED = replace(
    GOOD,
    request_id="r-2",
    input_got=None,
    output_got=None,
    first_ns=None,
    last_ns=None,
    energy_uj=None,
    error="HTTP 500",
)


def test_times_are_told_apart() -> None:
    """Lateness is the generator's, TTFT counts from sending, TPOT leaves out the first token."""
    assert GOOD.lateness_ns == 200
    assert GOOD.ttft_ns == 2_000
    assert GOOD.tpot_ns == 2_000


@pytest.mark.parametrize("output_got", [None, 1])
def test_fewer_than_two_tokens_have_no_tpot(output_got: int | None) -> None:
    """There is no gap to measure."""
    assert replace(GOOD, output_got=output_got).tpot_ns is None


def test_other_lengths_than_asked_are_a_mismatch() -> None:
    """Also where the server told no usage; a failed request is not counted twice."""
    assert not GOOD.mismatched
    assert replace(GOOD, input_got=21).mismatched
    assert replace(GOOD, output_got=None).mismatched
    assert not FAILED.mismatched


def test_outcomes_come_back_from_their_lines() -> None:
    """Every field, None included."""
    assert read_outcomes(json_lines([GOOD, FAILED])) == [GOOD, FAILED]


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2), (75, 3), (95, 4), (100, 4)])
def test_a_percentile_is_a_value_that_was_there(percent: float, value: int) -> None:
    """Nearest rank, of values in any order."""
    assert percentile([4, 1, 3, 2], percent) == value


def test_nothing_has_no_percentile() -> None:
    """None, not zero."""
    assert percentile([], 50) is None


def test_a_summary_adds_up() -> None:
    """Failed requests count as asked and give neither times nor tokens."""
    dear = replace(GOOD, output_got=4, energy_uj=7_000_000)
    summary = summarise("all", [GOOD, dear, FAILED])

    assert (summary.requests, summary.failed, summary.mismatched) == (3, 1, 1)
    assert (summary.input_asked, summary.input_got) == (60, 40)
    assert (summary.output_asked, summary.output_got) == (15, 9)
    assert summary.energy_uj == 9_000_000
    assert summary.energy_reported == 2
    assert summary.request_energy_uj == (2_000_000, 7_000_000)
    assert summary.joules_per_output_token == 1.0
    assert summary.mean_energy_uj == 4_500_000
    assert summary.lateness_ns == (200, 200, 200)


def test_a_summary_of_nothing_knows_nothing() -> None:
    """Counts are zero, everything measured is None."""
    summary = summarise("all", [])

    assert summary.requests == 0
    assert summary.ttft_ns == (None, None)
    assert summary.lateness_ns == (None, None, None)
    assert summary.energy_uj is None
    assert summary.joules_per_output_token is None
    assert summary.mean_energy_uj is None


def test_energy_per_token_leaves_out_requests_without_energy() -> None:
    """Their tokens would make the others look cheap."""
    silent = replace(GOOD, energy_uj=None, output_got=500)

    assert summarise("all", [GOOD, silent]).joules_per_output_token == 0.4


def test_bins_are_in_order_of_their_lengths() -> None:
    """By number, not by letter."""
    outcomes = [replace(GOOD, bin=label) for label in ("in 128-181 out 4-8", "in 16-23 out 16-32", "in 16-23 out 4-8")]

    assert list(by_bin(outcomes)) == ["in 16-23 out 4-8", "in 16-23 out 16-32", "in 128-181 out 4-8"]


@pytest.mark.parametrize(
    ("value", "kept"), [(7.3456, 7.35), (147.2, 147), (3432, 3430), (0.012345, 0.0123), (0, 0), (-1, 0)]
)
def test_locusts_percentiles_keep_three_digits(value: float, kept: float) -> None:
    """Its own bucketing turns 7.3 ms into 7 and 147 into 150."""
    assert three_digits(value) == kept
