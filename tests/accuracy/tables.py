"""The bench's figures for people."""

from collections import defaultdict

from rich.table import Table

from tests.accuracy.scenario import Scenario

Rows = list[dict[str, object]]
COVERED = "% of requests within two stated standard deviations"
CELL = ("workload", "physics", "sensor", "concurrency")


def _titled(title: str, rows: Rows, count: str) -> tuple[Table, list[tuple[object, object]]]:
    policies = list(dict.fromkeys((line["policy"], line["grade"]) for line in rows))
    # A and B are the best that a board allows; one that allows no more than C has the same columns.
    policies = list(dict.fromkeys((policy, "B" if grade == "C" else grade) for policy, grade in policies))
    shown = Table(title=title)
    for name in ("workload", "physics", "sensor", "conc.", count):
        shown.add_column(name, overflow="fold", min_width=len("summarization") if name == "workload" else None)
    for policy, grade in policies:
        shown.add_column(f"{policy}\n{grade or ''}".strip(), justify="right")
    return shown, policies


def _cells(rows: Rows) -> dict[tuple[object, ...], dict[tuple[object, object], Rows]]:
    cells: dict[tuple[object, ...], dict[tuple[object, object], Rows]] = {}
    for line in rows:
        of_cell = cells.setdefault(tuple(line[key] for key in CELL), defaultdict(list))
        of_cell[line["policy"], "B" if line["grade"] == "C" else line["grade"]].append(line)
    return cells


def _learning(rows: Rows) -> str:
    longest = max((float(str(line["learning_s"])) for line in rows), default=0.0)
    return f"weighted has seen {longest:g} s of other traffic before, weighted-cold none"


def table(rows: Rows, seed: int) -> Table:
    """One line per cell, one column per policy: WAPE, and for the rule the worst tenant's bias and what is covered."""
    title = f"WAPE in % against per-step Shapley (bias of the worst tenant) {COVERED}, seed {seed}; {_learning(rows)}"
    shown, policies = _titled(title, rows, "requests")
    for cell, lines in _cells(rows).items():
        first = next(iter(lines.values()))[0]
        figures = (_figure(lines[policy][0]) if policy in lines else "" for policy in policies)
        shown.add_row(*_named(cell), str(first["requests"]), *figures)
    return shown


def seeds_table(rows: Rows, seeds: int) -> Table:
    """One line per cell: mean and worst WAPE over the seeds, and for the rule the worst bias and coverage."""
    shown, policies = _titled(
        f"WAPE in %, mean / worst of {seeds} seeds (worst bias of a tenant) worst {COVERED}; {_learning(rows)}",
        rows,
        "seeds",
    )
    for cell, lines in _cells(rows).items():
        figures = (_over_seeds(lines[policy]) if policy in lines else "" for policy in policies)
        shown.add_row(*_named(cell), str(len(next(iter(lines.values())))), *figures)
    return shown


def ablation_table(cell: Scenario, lines: list[tuple[str, float, float]]) -> Table:
    """What the rule says when it is told more."""
    title = f"{cell.label}, {cell.physics}, {cell.sensor_label} sensor, concurrency {cell.concurrency:g}"
    shown = Table("weighted is told", "WAPE %", "bias %", title=title)
    for name, wape, bias in lines:
        shown.add_row(name, f"{wape:.2f}", f"{bias:.2f}")
    return shown


def _named(cell: tuple[object, ...]) -> list[str]:
    *names, concurrency = cell
    return [*map(str, names), f"{concurrency:g}"]


def _is_rule(line: dict[str, object]) -> bool:
    return line["policy"] in ("weighted", "weighted-cold", "closed-form")


def _figure(line: dict[str, object]) -> str:
    text = f"{line['wape_percent']:.1f}"
    text += f" ({line['tenant_bias_percent']:.1f})" if _is_rule(line) else ""
    text += _covered([line])
    return text if line["conserved"] or line["grade"] is None else text + " NOT CONSERVED"


def _over_seeds(lines: Rows) -> str:
    wapes = [float(str(line["wape_percent"])) for line in lines]
    text = f"{sum(wapes) / len(wapes):.1f} / {max(wapes):.1f}"
    if _is_rule(lines[0]):
        text += f" ({max(float(str(line['tenant_bias_percent'])) for line in lines):.1f})"
    text += _covered(lines)
    return text if all(x["conserved"] or x["grade"] is None for x in lines) else text + " NOT CONSERVED"


def _covered(lines: Rows) -> str:
    known = [float(str(line["covered_percent"])) for line in lines if line["covered_percent"] is not None]
    return f" {min(known):.0f}" if known else ""
