"""`python -m tests.accuracy [--quick] [--ablate] [--json FILE] [--seed N]`: every policy against per-step Shapley."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.accuracy.ablation import ablate
from tests.accuracy.physics import PHYSICS
from tests.accuracy.scenario import Scenario, outcomes, play, row
from tests.accuracy.workloads import WORKLOADS

Rows = list[dict[str, object]]
CONCURRENCIES = (1.1, 4, 28)
UNSEEN = 0.3


def scenarios(seed: int, *, quick: bool) -> list[Scenario]:
    """Every workload on the rule's own physics, every physics on the mix, an exact sensor, and unseen traffic."""
    if quick:
        cells = [Scenario(concurrency=c, physics=p, seed=seed) for c in (4, 28) for p in ("own", "roofline")]
        return [replace(cell, shorter=2) for cell in (*cells, Scenario(unseen=UNSEEN, seed=seed))]
    others = [physics for physics in PHYSICS if physics != "own"]
    return [
        *(Scenario(workload, c, seed=seed) for workload in WORKLOADS for c in CONCURRENCIES),
        *(Scenario(concurrency=c, physics=physics, seed=seed) for physics in others for c in CONCURRENCIES),
        *(Scenario(concurrency=c, board="exact", seed=seed) for c in CONCURRENCIES),
        *(Scenario(concurrency=c, unseen=UNSEEN, seed=seed) for c in (4, 28)),
    ]


def measured(cells: list[Scenario], console: Console) -> Rows:
    """All rows, with a progress bar on the console."""
    rows: Rows = []
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TextColumn("{task.fields[cell]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("simulating", total=len(cells), cell="")
        for cell in cells:
            progress.update(task, cell=f"{cell.workload} {cell.physics} at {cell.concurrency:g}")
            scene = play(cell)
            rows += [row(scene, outcome) for outcome in outcomes(scene)]
            progress.advance(task)
    return rows


def table(rows: Rows, seed: int) -> Table:
    """One line per cell, one column per policy: WAPE, and the worst tenant's bias for the rule."""
    policies = list(dict.fromkeys((line["policy"], line["grade"]) for line in rows))
    shown = Table(title=f"WAPE in % against per-step Shapley (bias of the worst tenant), seed {seed}")
    for name in ("workload", "physics", "sensor", "conc.", "requests"):
        shown.add_column(name)
    for policy, grade in policies:
        shown.add_column(f"{policy} {grade or ''}".strip(), justify="right")
    keys = ("workload", "physics", "sensor", "concurrency")
    for cell in dict.fromkeys(tuple(line[key] for key in keys) for line in rows):
        same = {(x["policy"], x["grade"]): x for x in rows if tuple(x[key] for key in keys) == cell}
        first = next(iter(same.values()))
        figures = (_figure(same[policy]) if policy in same else "" for policy in policies)
        shown.add_row(*(str(part) for part in cell), str(first["requests"]), *figures)
    return shown


def _figure(line: dict[str, object]) -> str:
    text = f"{line['wape_percent']:.1f}"
    if line["policy"] == "weighted":
        text += f" ({line['tenant_bias_percent']:.1f})"
    return text if line["conserved"] or line["grade"] is None else text + " NOT CONSERVED"


def show_ablation(seed: int, console: Console) -> None:
    """Prints where the rule loses accuracy, for each sensor and concurrency."""
    for board in ("exact", "part-time"):
        for concurrency in (4, 28):
            shown = Table("weighted B is told", "WAPE %", "bias %", title=f"{board} sensor, concurrency {concurrency}")
            for name, wape, bias in ablate(concurrency, board, seed):
                shown.add_row(name, f"{wape:.2f}", f"{bias:.2f}")
            console.print(shown)


def main(arguments: Iterable[str] | None = None) -> int:
    """0 when every policy conserved, else 1: whether the bars are reached is for the reader."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five short cells instead of all")
    parser.add_argument("--ablate", action="store_true", help="where weighted B loses accuracy, instead of the bench")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(None if arguments is None else list(arguments))
    console = Console(width=None if sys.stdout.isatty() else 160)
    if given.ablate:
        show_ablation(given.seed, console)
        return 0
    rows = measured(scenarios(given.seed, quick=given.quick), console)
    console.print(table(rows, given.seed))
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "quick": given.quick, "rows": rows}, indent=1) + "\n")
    return 0 if all(line["conserved"] for line in rows if line["grade"] is not None) else 1


if __name__ == "__main__":
    sys.exit(main())
