"""What the user reads."""

from dataclasses import replace

from loadgen.conductor import Part, Run
from loadgen.outcome import Outcome
from loadgen.report import MOST_BINS, final_report, progress_line

OUTCOME = Outcome(
    "run-0", "in 724-1024 out 128-256", 900, 900, 200, 200, 0, 1_000_000, 51_000_000, 2_051_000_000, 61_500_000, "B",
    False, None,
)  # fmt: skip


def run_of(*outcomes: Outcome) -> Run:
    part = Part(planned=len(outcomes), sent=len(outcomes), in_flight=3, cpu_percent=4.4)
    return Run("run", 1, {"local": part}, list(outcomes), ["model m"], start_unix_ns=0, span_ns=9_000_000_000)


def report(run: Run, from_due: bool = False, width: int = 80) -> str:
    return final_report(run, from_due=from_due, width=width, colour=False)


def test_the_progress_line_says_how_it_goes() -> None:
    """Time, sent of plan, in flight, failures, lateness, TTFT, joules."""
    assert progress_line(run_of(OUTCOME, OUTCOME), 4.2) == (
        "t 4/9 s  sent 2/2  in flight 3  failed 0  late p99 1.00 ms  TTFT p50 50.0 ms  61.5 J/request"
    )


def test_before_the_first_answer_nothing_is_claimed() -> None:
    """Dashes, not zeros, and no word yet on whether energy is reported."""
    assert progress_line(run_of(), 0.1).endswith("late p99 - ms  TTFT p50 - ms  - J/request")


def test_joules_that_nobody_reports_are_not_zero() -> None:
    """The line, the table and the closing words say so."""
    run = run_of(replace(OUTCOME, energy_uj=None))

    assert progress_line(run, 1).endswith("J/request not reported")
    assert "energy: not reported by the server" in report(run)
    assert " 0.00" not in report(run)


def test_the_table_has_a_row_per_bin_and_a_total() -> None:
    """Joules of each bin, per request and per output token."""
    other = replace(OUTCOME, bin="in 1024-1448 out 128-256", energy_uj=100_000_000)
    rows = {line.split("  ")[0].strip(): line.split()[-9:] for line in report(run_of(OUTCOME, other)).splitlines()}

    assert rows["in 724-1024 out 128-256"] == ["200", "0", "50.0", "50.0", "10.1", "61.5", "61.5", "0.307", "61.5"]
    assert rows["all"][-2:] == ["0.404", "162"]


def test_columns_line_up_and_nothing_is_cut_in_a_narrow_terminal() -> None:
    """A figure cut off is a wrong figure."""
    lines = report(run_of(OUTCOME, replace(OUTCOME, energy_uj=123_456_789_000_000)), width=40).splitlines()
    table = [line for line in lines if line.lstrip().startswith(("in 7", "all"))]

    assert len({len(line) for line in table}) == 1
    assert "…" not in "".join(lines)
    assert "123456850" in table[-1]


def test_many_bins_share_a_row() -> None:
    """A table of 90 rows is not read; the file of outcomes has them all."""
    outcomes = [replace(OUTCOME, bin=f"in {k}-{k + 1} out 1-2") for k in range(1, 61)]
    text = report(run_of(*outcomes))

    assert sum(line.lstrip().startswith("in ") for line in text.splitlines()) == MOST_BINS - 1
    assert f"{60 - MOST_BINS + 1} more bins" in text


def test_what_spoils_a_run_is_said() -> None:
    """Failures by message, other lengths than asked, a late or busy generator, estimated energy."""
    run = run_of(
        replace(OUTCOME, sent_ns=30_000_000, estimated=True),
        replace(OUTCOME, input_got=899),
        replace(OUTCOME, error="HTTP 500: no"),
    )
    run.parts["local"].cpu_percent = 91
    run.troubles.append("stopped early")
    text = report(run)

    assert "warning: stopped early" in text
    assert "sent 3 of 3, answered 2, failed 1" in text
    assert "1 x HTTP 500: no" in text
    assert "warning: 1 answers differ from the lengths asked for" in text
    assert "warning: requests went out late" in text
    assert "spread it with --processes" in text
    assert "the energy of 1 requests is estimated" in text


def test_a_cap_in_flight_shows_the_wait() -> None:
    """Counted from sending, a capped load looks fast however long its requests waited."""
    assert "TTFT counted from the due time: p50 51.0 ms" in report(run_of(OUTCOME), from_due=True)


def test_no_load_at_all_says_only_why() -> None:
    """No empty table."""
    run = Run("run", 1, troubles=["http://x: Connection refused"])

    assert report(run) == "warning: http://x: Connection refused\nno load was sent"
