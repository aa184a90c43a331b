"""The bench's tables, for a terminal and for the README."""

from collections.abc import Sequence

from rich.table import Table

from tests.performance.figures import CPU, FIGURES, JUDGED, Runs, Spread
from tests.performance.workloads import Workload


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _spread(found: Spread | None) -> str:
    if found is None:
        return "–"
    if found.least == found.most:
        return _number(found.middle)
    return f"{_number(found.middle)} [dim]{_number(found.least)}–{_number(found.most)}[/]"


def load_table(runs: Runs, load: Workload, systems: Sequence[str]) -> Table:
    """Every system under one load: the median over the rounds, and from where to where they went."""
    shown = [name for name in FIGURES if any(runs.spread(system, load.name, name) is not None for system in systems)]
    table = Table(title=load.about, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in shown:
        table.add_column(name, justify="right")
    for system in systems:
        table.add_row(system, *(_spread(runs.spread(system, load.name, name)) for name in shown))
    return table


def judged_table(runs: Runs) -> Table:
    """What is judged."""
    table = Table(title="ratios", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("median  least–most", justify="right")
    for name, judge in JUDGED.items():
        table.add_row(name, _spread(judge(runs)))
    return table


COLUMNS = (
    ("CPU s per 100,000 chunks, 200 streams", "streams", CPU),
    ("TTFT p50 / p99 ms", "streams", ("TTFT p50 ms", "TTFT p99 ms")),
    ("chunks/s of 50,000, 500 streams", "many", "chunks/s"),
    ("small JSON, requests/s", "json", "requests/s"),
    ("memory MB, 200 streams", "streams", "memory MB"),
)


def readme_table(runs: Runs, systems: Sequence[str]) -> str:
    """The README's table, as Markdown: medians."""
    rows = ["| | " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for system in systems:
        cells = []
        for _, load, figures in COLUMNS:
            names = (figures,) if isinstance(figures, str) else figures
            found = [runs.spread(system, load, name) for name in names]
            cells.append(" / ".join("–" if one is None else _number(one.middle) for one in found))
        rows.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(rows)
