"""`jouleproxy report`: whose the joules were, adding up to the meter in every form."""

import csv
import io
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from proxy.accounting.postings import Posting
from proxy.commands.report import hour_of, report
from proxy.commands.statement import draw_up
from proxy.stores import open_books, open_store
from tests.stores.examples import HOUR_NS, NOON_NS, balance, doubtful, request_row

NOON = "2025-10-09T09:00Z"
MICROJOULES = ("energy_microjoules", "active_microjoules", "loaded_microjoules")


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, list(arguments))


def lines_of(result: Result) -> list[dict[str, str]]:
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout)))


@pytest.fixture
def ledger_file(tmp_path: Path) -> str:
    """Two hours, two backends, two tenants; 10 J and 7 µJ of idle on b0, 5 J on b1, a little of everything else."""
    file, now = str(tmp_path / "ledger.db"), [NOON_NS]
    with closing(open_store(file, clock=lambda: now[0])) as ledger:
        acme, beta = request_row(30_000_000), request_row(60_000_001, tenant="beta", model="qwen")
        ledger.post(Posting((balance(90_000_001, 10_000_007, 3, 4),), (acme, beta)))
        now[0] += HOUR_NS
        later = request_row(7, backend="b1", started_at_unix_ns=NOON_NS + HOUR_NS, completion_tokens=None)
        ledger.post(Posting((balance(7, 5_000_000, backend="b1", meter="nvml:GPU-1"),), (later,)))
        assert ledger.flush(20.0)
    return file


METER_UJ = 90_000_001 + 10_000_007 + 3 + 4 + 7 + 5_000_000


@pytest.mark.parametrize("by", ["tenant", "model", "backend", "hour"])
@pytest.mark.parametrize("idle", ["separate", "proportional"])
def test_every_column_of_the_csv_sums_to_the_meter_exactly(ledger_file: str, by: str, idle: str) -> None:
    lines = lines_of(run("--ledger", ledger_file, "--by", by, "--idle", idle, "--format", "csv"))

    assert {name: sum(int(line[name]) for line in lines) for name in MICROJOULES} == dict.fromkeys(
        MICROJOULES, METER_UJ
    )


def test_idle_stays_in_its_own_line_by_default_and_the_loaded_figure_stands_beside(ledger_file: str) -> None:
    lines = {line["tenant"] or line["line"]: line for line in lines_of(run("--ledger", ledger_file, "--format", "csv"))}

    assert (lines["beta"]["energy_microjoules"], lines["beta"]["active_microjoules"]) == ("60000001", "60000001")
    assert lines["idle"]["energy_microjoules"] == "15000007"
    assert lines["idle"]["loaded_microjoules"] == "0"
    assert int(lines["acme"]["loaded_microjoules"]) - int(lines["acme"]["active_microjoules"]) == 3_333_336 + 5_000_000


def test_proportional_gives_each_backends_idle_to_its_own_requests(ledger_file: str) -> None:
    arguments = ("--ledger", ledger_file, "--by", "backend", "--idle", "proportional", "--format", "csv")
    lines = {line["backend"] or line["line"]: line["energy_microjoules"] for line in lines_of(run(*arguments))}

    assert lines == {
        "b0": str(90_000_001 + 10_000_007),
        "b1": str(7 + 5_000_000),
        "idle": "0",
        "unattributed": "3",
        "unmeasured": "4",
    }


def test_idle_of_a_backend_without_requests_stays_idle(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    with closing(open_store(file)) as ledger:
        ledger.post(Posting((balance(0, 9),)))

    (line, *_) = lines_of(run("--ledger", file, "--idle", "proportional", "--format", "csv"))
    assert (line["line"], line["energy_microjoules"]) == ("idle", "9")


def test_a_range_counts_whole_hours_and_adjoining_ranges_add_up(ledger_file: str) -> None:
    first = lines_of(run("--ledger", ledger_file, "--format", "csv", "--until", "2025-10-09T10:20:00Z"))
    second = lines_of(run("--ledger", ledger_file, "--format", "csv", "--since", "2025-10-09T10:40:00Z"))

    sums = [sum(int(line["energy_microjoules"]) for line in part) for part in (first, second)]
    assert sums == [METER_UJ - 5_000_007, 5_000_007]


def test_a_request_that_crosses_the_edge_of_a_range_is_settled_in_a_line_of_its_own(tmp_path: Path) -> None:
    """It began in the hour before, and used 4 of its 10 µJ there."""
    file, now = str(tmp_path / "ledger.db"), [NOON_NS]
    with closing(open_store(file, clock=lambda: now[0])) as ledger:
        long = request_row(4, row="aa", state="open")
        ledger.post(Posting((balance(4),), (long,)))
        now[0] += HOUR_NS
        ledger.post(Posting((balance(6),), (request_row(10, row="aa"),)))

    first = lines_of(run("--ledger", file, "--format", "csv", "--until", "2025-10-09T10:00Z"))
    second = lines_of(run("--ledger", file, "--format", "csv", "--since", "2025-10-09T10:00Z"))

    edges = [[line["energy_microjoules"] for line in part if "edges" in line["line"]] for part in (first, second)]
    assert edges == [["-6"], ["6"]]
    assert [sum(int(line["active_microjoules"]) for line in part) for part in (first, second)] == [4, 6]


def test_the_json_holds_rows_accounts_and_the_imbalance(ledger_file: str) -> None:
    found = json.loads(run("--ledger", ledger_file, "--by", "model", "--format", "json").stdout)

    assert [(row["model"], row["energy_microjoules"], row["requests"]) for row in found["rows"]] == [
        ("qwen", 60_000_001, 1),
        ("llama", 30_000_007, 2),
    ]
    assert found["accounts"]["unmeasured"]["energy_microjoules"] == 4
    assert (found["meter_microjoules"], found["imbalance_microjoules"], found["estimated"]) == (METER_UJ, 0, False)


def test_the_table_shows_figures_accounts_and_that_the_books_balance(ledger_file: str) -> None:
    result = run("--ledger", ledger_file)

    assert result.exit_code == 0
    rows = {line.split("│")[1].strip(): line.split("│") for line in result.stdout.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["beta"][2:-1]] == [
        "1",
        "B",
        "60.000",
        "—",
        "66.667",
        "0.000017",
        "100",
        "—",
        "10",
        "6.0000",
    ]
    assert [rows[name][3].strip() for name in ("idle", "meter")] == ["", ""]
    assert rows["idle"][4].strip() == "15.000"
    assert rows["meter"][4].strip() == "105.000"
    assert "imbalance 0 µJ" in result.stdout
    assert "estimated" not in result.stdout


@pytest.fixture
def doubtful_ledger(tmp_path: Path) -> str:
    """acme's two requests err apart, beta's alike; one measured meter."""
    file = str(tmp_path / "ledger.db")
    with closing(open_store(file)) as ledger:
        apart = [doubtful(request_row(1_000_000), tilt_j=tilt_j, noise_j2=0.0002) for tilt_j in (0.1, -0.1)]
        alike = [doubtful(request_row(1_000_000, tenant="beta"), tilt_j=0.1) for _ in range(2)]
        gauged = replace(balance(4_000_000, 9), absolute_uncertainty=0.05)
        ledger.post(Posting((gauged,), (*apart, *alike)))
    return file


def test_a_sum_is_known_better_than_its_requests_where_their_errors_cancel(doubtful_ledger: str) -> None:
    lines = {
        line["tenant"] or line["line"]: line for line in lines_of(run("--ledger", doubtful_ledger, "--format", "csv"))
    }

    assert float(lines["acme"]["relative_uncertainty"]) == pytest.approx(0.0004**0.5 / 2)
    assert float(lines["beta"]["relative_uncertainty"]) == pytest.approx(0.1 * 3**0.5, abs=1e-5)
    assert lines["idle"]["relative_uncertainty"] == ""


def test_the_relative_part_stands_in_each_line_and_the_absolute_part_once(doubtful_ledger: str) -> None:
    shown = run("--ledger", doubtful_ledger).stdout
    cells = {line.split("│")[1].strip(): line.split("│")[5].strip() for line in shown.splitlines() if "│" in line}
    found = json.loads(run("--ledger", doubtful_ledger, "--format", "json").stdout)

    assert (cells["acme"], cells["beta"], cells["idle"]) == ("1 %", "17 %", "")
    assert " ".join(shown.split()).count("common to all figures: ±5 % (the meters' gain).") == 1
    assert [row["relative_uncertainty"] for row in found["rows"]] == pytest.approx([0.01, 0.1 * 3**0.5])
    assert (found["absolute_uncertainty"], found["meters"][0]["absolute_uncertainty"]) == (0.05, 0.05)


def test_every_figure_has_its_grade_and_both_uncertainties_in_every_form(tmp_path: Path) -> None:
    """The grade is that of the worst request of the line; accounts have none."""
    file = str(tmp_path / "ledger.db")
    with closing(open_store(file)) as ledger:
        mixed = [replace(doubtful(request_row(1_000_000), noise_j2=0.01), grade=grade) for grade in ("A", "C")]
        alone = replace(doubtful(request_row(1_000_000, tenant="beta"), noise_j2=0.01), grade="A")
        gauged = replace(balance(3_000_000, 9), absolute_uncertainty=0.05)
        ledger.post(Posting((gauged,), (*mixed, alone)))

    lines = {line["tenant"] or line["line"]: line for line in lines_of(run("--ledger", file, "--format", "csv"))}
    found = {row["tenant"]: row for row in json.loads(run("--ledger", file, "--format", "json").stdout)["rows"]}
    table = run("--ledger", file).stdout
    cells = {line.split("│")[1].strip(): line.split("│")[3].strip() for line in table.splitlines() if "│" in line}

    for name, grade in (("acme", "C"), ("beta", "A")):
        assert {grade} == {lines[name]["grade"], found[name]["grade"], cells[name]}
        assert [0.05, 0.05] == [float(lines[name]["absolute_uncertainty"]), found[name]["absolute_uncertainty"]]
        assert lines[name]["relative_uncertainty"]
    assert [lines["idle"][name] for name in ("grade", "absolute_uncertainty")] == ["", ""]


def test_an_unknown_uncertainty_is_said_to_be_unknown(ledger_file: str) -> None:
    found = json.loads(run("--ledger", ledger_file, "--format", "json").stdout)

    assert [row["relative_uncertainty"] for row in found["rows"]] == [None, None]
    assert found["absolute_uncertainty"] is None
    assert "common to all figures: unknown" in " ".join(run("--ledger", ledger_file).stdout.split())


def test_joules_per_output_token_are_undefined_without_output_tokens(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    with closing(open_store(file)) as ledger:
        ledger.post(Posting((balance(5),), (request_row(5, completion_tokens=None),)))

    (line, *_) = lines_of(run("--ledger", file, "--format", "csv"))
    assert (line["completion_tokens"], line["joules_per_output_token"]) == ("", "")
    assert run("--ledger", file).stdout.count("—") == 4


def test_an_estimated_meter_is_named_below_the_table(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    with closing(open_store(file)) as ledger:
        ledger.post(Posting((balance(0, 5, meter="modelled:cpu", estimated=True),)))

    assert "estimated, not measured: modelled:cpu, a test" in run("--ledger", file).stdout


def test_books_that_do_not_balance_end_with_status_1(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    with closing(open_store(file)) as ledger:
        ledger.post(Posting((balance(5),), (request_row(6),)))

    result = run("--ledger", file)
    assert (result.exit_code, "imbalance 1 µJ" in result.stdout) == (1, True)


def test_names_cannot_command_the_terminal_or_the_table(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    with closing(open_store(file)) as ledger:
        ledger.post(Posting((balance(5),), (request_row(5, model="\x1b[2J[red]x[/red]"),)))

    shown = run("--ledger", file, "--by", "model").stdout
    assert "\x1b" not in shown
    assert "�[2J[red]x[/red]" in shown


def test_the_report_can_go_to_a_file(ledger_file: str, tmp_path: Path) -> None:
    target = tmp_path / "report.csv"

    result = run("--ledger", ledger_file, "--format", "csv", "--output", str(target))

    assert (result.exit_code, result.stdout) == (0, "")
    assert target.read_text() == run("--ledger", ledger_file, "--format", "csv").stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--ledger", "nowhere.db"), "there is no file nowhere.db"),
        (("--since", "yesterday"), "neither a date, a time"),
        (("--output", "no/such/folder/x"), "No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_option_and_the_reason(
    ledger_file: str, arguments: tuple[str, ...], reason: str
) -> None:
    result = run("--ledger", ledger_file, *arguments)

    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", " ").split())
    assert arguments[0] in words
    assert reason in words


@pytest.mark.parametrize(
    ("given_time", "hour"),
    [
        ("2025-10-09", NOON_NS - 9 * HOUR_NS),
        ("2025-10-09T09:59:59", NOON_NS),
        ("2025-10-09T11:30:00+02:00", NOON_NS),
        ("2h", NOON_NS - 2 * HOUR_NS),
        ("1d", NOON_NS - 24 * HOUR_NS),
        ("1w", NOON_NS - 168 * HOUR_NS),
    ],
)
def test_a_time_is_a_date_a_time_or_an_age_and_taken_down_to_the_hour(given_time: str, hour: int) -> None:
    assert hour_of(given_time, NOON_NS + HOUR_NS // 2) == hour


def test_a_report_by_hour_gives_idle_to_the_requests_of_the_same_hour(ledger_file: str) -> None:
    with closing(open_books(ledger_file)) as books:
        statement = draw_up(books, "hour", None, None, "proportional")

    assert {line.name: line.loaded_uj - line.active_uj for line in statement.lines} == {
        str(NOON_NS // HOUR_NS): 10_000_007,
        str(NOON_NS // HOUR_NS + 1): 5_000_000,
    }
