"""`python -m tests.accuracy [--quick] [--json FILE]`: every policy against per-step Shapley.

Any other mix, physics, load or seed is one line, for instance:
    --mix chat=0.3,long=0.3,agent=0.4 --physics own,roofline --concurrency 4,28 --seed 7
    --workload mixed,code --aborted 0.1 --silent 0.3 --several 0.1 --draft 3 --seeds 1,2,3
    --sensor part-time,slow --lag 0.3 --period 0.2 --looks 0.05 --noise 0.1
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from tests.accuracy.ablation import ablate
from tests.accuracy.cost import main as cost
from tests.accuracy.engine import Impossible
from tests.accuracy.options import QUICK_SHORTER, chosen, parser
from tests.accuracy.physics import PHYSICS
from tests.accuracy.scenario import Scenario, outcomes, play, row
from tests.accuracy.sensor import BOARDS
from tests.accuracy.tables import Rows, ablation_table, seeds_table, table
from tests.accuracy.workloads import WORKLOADS

CONCURRENCIES = (1.1, 4.0, 28.0)
UNSEEN = 0.3
FEATURES: tuple[dict[str, float], ...] = (
    {"silent": 0.3},
    {"aborted": 0.15},
    {"several": 0.15},
    {"draft": 3},
    {"lost_steps": 0.05},
    {"silent": 0.2, "aborted": 0.1, "several": 0.1, "unseen": 0.15},
)
TIGHT: tuple[dict[str, float], ...] = ({"blocks": 2_000}, {"max_seqs": 12})
"""A memory that makes the engine preempt and forget, a batch that makes it queue."""


def standard(seed: int, *, quick: bool) -> list[Scenario]:
    """Every workload on the rule's own physics; on the mix every physics, every sensor, and every unusual habit."""
    if quick:
        cells = [Scenario(concurrency=c, physics=p, seed=seed) for c in (4.0, 28.0) for p in ("own", "roofline")]
        return [*cells, Scenario(unseen=UNSEEN, seed=seed)]
    both = CONCURRENCIES[1:]
    mixed = [Scenario(concurrency=c, seed=seed) for c in both]
    return [
        *(Scenario(workload, c, seed=seed) for workload in WORKLOADS for c in CONCURRENCIES),
        *(replace(cell, physics=physics) for physics in PHYSICS if physics != "own" for cell in mixed),
        *(replace(cell, board=board) for board in BOARDS if board != "part-time" for cell in mixed),
        *(replace(cell, unseen=UNSEEN) for cell in mixed),
        *(replace(cell, **feature) for feature in FEATURES for cell in mixed),
        *(replace(mixed[-1], **feature) for feature in TIGHT),
    ]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `seeds` a list; ends the program with one sentence when they make no sense."""
    options = parser(__doc__ or "")
    given = options.parse_args(arguments)
    instead = next((f"--{name}" for name in ("profile", "ablate") if getattr(given, name)), None)
    if instead and given.json:
        options.error(f"{instead} has no rows for --json")
    given.seeds = given.seeds or [given.seed]
    return given


def measured(cell: Scenario) -> Rows:
    """The rows of one cell."""
    scene = play(cell)
    return [row(scene, outcome) for outcome in outcomes(scene)]


def all_measured(cells: list[Scenario], console: Console, processes: int) -> Rows:
    """All rows in the cells' order, with a progress bar on the console."""
    rows: Rows = []
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TextColumn("{task.fields[cell]}"))
    with Progress(*columns, console=console, transient=True) as progress, ProcessPoolExecutor(processes) as pool:
        task = progress.add_task("simulating", total=len(cells), cell="")
        for cell, found in zip(cells, (pool.map if processes > 1 else map)(measured, cells), strict=True):
            rows += found
            progress.update(task, advance=1, cell=f"{cell.label} {cell.physics} at {cell.concurrency:g}")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every policy conserved, else 1: whether the bars are reached is for the reader. 2: it cannot be played."""
    given = parsed(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if given.profile:
        return cost(["--profile"])
    try:
        return _ablated(given, console) if given.ablate else _benched(given, console)
    except Impossible as error:
        print(f"python -m tests.accuracy: error: {error}", file=sys.stderr)
        return 2


def _ablated(given: argparse.Namespace, console: Console) -> int:
    shorter = QUICK_SHORTER if given.quick else 1.0
    usual = product(given.seeds, ("exact", "part-time"), (4.0, 28.0))
    own = [Scenario(concurrency=c, board=board, seed=seed, shorter=shorter) for seed, board, c in usual]
    for cell in chosen(given) or own:
        console.print(ablation_table(cell, ablate(cell)))
    return 0


def _benched(given: argparse.Namespace, console: Console) -> int:
    cells = chosen(given) or [cell for seed in given.seeds for cell in standard(seed, quick=given.quick)]
    rows = all_measured(cells, console, given.jobs)
    for seed in given.seeds:
        console.print(table([line for line in rows if line["seed"] == seed], seed))
    if len(given.seeds) > 1:
        console.print(seeds_table(rows, len(given.seeds)))
    if given.json:
        given.json.write_text(json.dumps({"seeds": given.seeds, "quick": given.quick, "rows": rows}, indent=1) + "\n")
    return 0 if all(line["conserved"] for line in rows if line["grade"] is not None) else 1


if __name__ == "__main__":
    sys.exit(main())
