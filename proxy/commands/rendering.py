"""Writes a statement as a table for people, as CSV for spreadsheets, or as JSON for programs.

CSV and JSON hold whole microjoules; the joules beside them are the same number with the point moved.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.commands.idle import MILLIONTHS
from proxy.commands.statement import Line, Statement

_FIGURES = (
    "requests",
    "energy_microjoules",
    "active_microjoules",
    "loaded_microjoules",
    "energy_joules",
    "energy_kwh",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "joules_per_output_token",
    "grade",
    "relative_uncertainty",
    "absolute_uncertainty",
)
_UNDEFINED = "—"


def as_csv(statement: Statement) -> str:
    """One line per key, then one per account; each microjoule column sums to the meter exactly.

    The column `line` tells the two apart: `requests`, or the account's name.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["line", statement.by, *_FIGURES])
    for line in statement.lines:
        writer.writerow(["requests", _name(statement, line), *_figures(line).values()])
    for account in statement.accounts:
        writer.writerow([account.name, "", *_figures(account).values()])
    return text.getvalue()


def as_json(statement: Statement) -> str:
    """One object; absent figures are null."""
    whole: dict[str, Any] = {
        "by": statement.by,
        "idle": statement.idle,
        "reserved": {tenant: part / MILLIONTHS for tenant, part in statement.reserved.items()},
        "rows": [{statement.by: _name(statement, line)} | _plain(line) for line in statement.lines],
        "accounts": {
            account.name: {name: value for name, value in _plain(account).items() if name.endswith("_microjoules")}
            for account in statement.accounts
        },
        "meter_microjoules": statement.meter_uj,
        "imbalance_microjoules": statement.imbalance_uj,
        "estimated": bool(statement.estimated),
        "absolute_uncertainty": statement.absolute_uncertainty,
        "meters": [asdict(meter) for meter in statement.meters],
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def as_table(statement: Statement, title: str, console: Console) -> None:
    """Prints aligned figures, the accounts below the requests, and the imbalance."""
    console.print(_table(statement, title))
    console.print(f"imbalance {statement.imbalance_uj} µJ", markup=False, highlight=False)
    console.print(_about_uncertainty(statement), markup=False, highlight=False)
    for meter in statement.estimated:
        console.print(Text(f"estimated, not measured: {_printable(meter.description)}"), style="yellow")


def _about_uncertainty(statement: Statement) -> str:
    absolute = statement.absolute_uncertainty
    common = "unknown" if absolute is None else f"±{_percent(absolute)}"
    return (
        "grade: of the worst request in the line. ± of active J: standard deviation against the other lines; what "
        "requests have too much and too little cancels within a backend. "
        f"On top of it, common to all figures: {common} (the meters' gain)."
    )


def _table(statement: Statement, title: str) -> Table:
    chosen = "active" if statement.idle == "separate" else "loaded"
    loaded = "proportional" if statement.idle == "separate" else statement.idle
    table = Table(title=title, title_justify="left")
    table.add_column(statement.by)
    figures = ("requests", "grade", "active J", "±", f"loaded J ({loaded})", f"kWh ({chosen})")
    headings = (*figures, "prompt", "cached", "output tokens")
    for heading in (*headings, f"J/output token ({chosen})"):
        table.add_column(heading, justify="right")
    for line in statement.lines:
        table.add_row(Text(_printable(_name(statement, line))), *_cells(line))
    table.add_section()
    for account in statement.accounts:
        table.add_row(Text(account.name, style="italic"), *_cells(account))
    table.add_section()
    meter_uj = statement.meter_uj
    meter = Line(name="meter", active_uj=meter_uj, loaded_uj=meter_uj, energy_uj=meter_uj)
    table.add_row(Text(meter.name), *_cells(meter), style="bold")
    return table


def _cells(line: Line) -> Sequence[str]:
    is_account = line.requests is None
    tokens = (line.prompt_tokens, line.cached_tokens, line.completion_tokens)
    per_token, relative = line.joules_per_output_token, line.relative_uncertainty
    return (
        "" if line.requests is None else f"{line.requests:,}",
        "" if is_account else line.grade or _UNDEFINED,
        f"{_joules(line.active_uj):,.3f}",
        "" if is_account else _UNDEFINED if relative is None else _percent(relative),
        f"{_joules(line.loaded_uj):,.3f}",
        f"{_kwh(line.energy_uj):,.6f}",
        *("" if is_account else _UNDEFINED if count is None else f"{count:,}" for count in tokens),
        "" if is_account else _UNDEFINED if per_token is None else f"{per_token:,.4f}",
    )


def _percent(relative: float) -> str:
    return f"{100 * relative:.2g} %" if relative < 0.1 else f"{100 * relative:.0f} %"


def _figures(line: Line) -> dict[str, object]:
    per_token = line.joules_per_output_token
    values = (
        line.requests,
        line.energy_uj,
        line.active_uj,
        line.loaded_uj,
        format(_joules(line.energy_uj), "f"),
        format(_kwh(line.energy_uj), ".12f"),
        line.prompt_tokens,
        line.cached_tokens,
        line.completion_tokens,
        None if per_token is None else f"{per_token:.6f}",
        line.grade,
        *(
            None if doubt is None else f"{doubt:.6f}"
            for doubt in (line.relative_uncertainty, line.absolute_uncertainty)
        ),
    )
    return dict(zip(_FIGURES, values, strict=True))


def _plain(line: Line) -> dict[str, object]:
    numbers = {
        "energy_joules": line.energy_uj / 1e6,
        "energy_kwh": line.energy_uj / 3.6e12,
        "joules_per_output_token": line.joules_per_output_token,
        "relative_uncertainty": line.relative_uncertainty,
        "absolute_uncertainty": line.absolute_uncertainty,
    }
    return _figures(line) | numbers


def _joules(energy_uj: int) -> Decimal:
    return Decimal(energy_uj).scaleb(-6)


def _kwh(energy_uj: int) -> Decimal:
    """1 kWh is 3.6e6 J by definition."""
    return Decimal(energy_uj) / 3_600_000_000_000


def _name(statement: Statement, line: Line) -> str:
    if statement.by != "hour":
        return line.name
    return datetime.fromtimestamp(int(line.name) * 3600, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _printable(name: str) -> str:
    """Without control characters: model names come from outside, and a terminal obeys what it is sent."""
    return "".join(letter if letter.isprintable() else "�" for letter in name)
