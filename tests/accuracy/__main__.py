"""`python -m tests.accuracy [--quick] [--json FILE]`: every policy against per-step Shapley.

Any other mix, physics, load or seed is one line, for instance:
    --mix chat=0.3,long=0.3,agent=0.4 --physics own,roofline --concurrency 4,28 --seed 7
    --workload mixed,code --aborted 0.1 --silent 0.3 --several 0.1 --draft 3 --seeds 1,2,3
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from tests.accuracy.ablation import ablate
from tests.accuracy.cost import main as cost
from tests.accuracy.physics import PHYSICS
from tests.accuracy.scenario import Scenario, outcomes, play, row
from tests.accuracy.sensor import BOARDS
from tests.accuracy.tables import Rows, ablation_table, seeds_table, table
from tests.accuracy.workloads import ARRIVALS, KINDS, WORKLOADS, Mix

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


def _names(known: Iterable[str]) -> object:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
        return chosen

    return parse


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _mix(text: str) -> Mix:
    parts = [part.partition("=") for part in text.split(",")]
    for kind, _, _ in parts:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind} is none of {', '.join(KINDS)}")
    return tuple((kind, float(part or 1)) for kind, _, part in parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="five cells instead of all")
    add("--ablate", action="store_true", help="where the rule loses accuracy, instead of the bench")
    add("--profile", action="store_true", help="what settlement costs of one core, instead (tests.accuracy.cost)")
    add("--json", type=Path, metavar="FILE", help="write the rows there")
    add("--seed", type=int, default=1)
    add("--seeds", type=_numbers, metavar="S,S,…", help="several seeds: their mean and their worst")
    add("--jobs", type=int, default=1, metavar="N", help="processes at a time")
    chosen = parser.add_argument_group("cells of your own: each option with commas is tried with each of the others")
    add = chosen.add_argument
    add("--workload", "--only", type=_names(WORKLOADS), metavar="W,W,…", help=", ".join(WORKLOADS))
    add("--mix", type=_mix, metavar="KIND=PART,…", help="a workload of your own, of " + ", ".join(KINDS))
    add("--arrivals", choices=ARRIVALS, help="when requests come, instead of the workload's own way")
    add("--physics", type=_names(PHYSICS), metavar="P,P,…", help=", ".join(PHYSICS))
    add("--concurrency", type=_numbers, metavar="C,C,…", help="mean number of requests under way")
    add("--sensor", type=_names(BOARDS), metavar="S,S,…", help=", ".join(BOARDS))
    add("--shorter", type=float, help="divides the length of the runs")
    add(
        "--learning-s", type=float, help="seconds of other traffic that `weighted` has seen (300; 0: prior only, quick)"
    )
    for name, what in FRACTIONS.items():
        add(f"--{name.replace('_', '-')}", type=float, metavar="PART", help=what)
    for name, what in WHOLE.items():
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", help=what)
    return parser


FRACTIONS = {
    "unseen": "requests that bypass the proxy",
    "silent": "requests answered in one piece",
    "aborted": "requests whose client leaves",
    "several": "requests that want 2 to 4 answers",
    "lost_steps": "of the step log that is lost",
}
WHOLE = {
    "draft": "tokens drafted per step, of which 70 % hold",
    "blocks": "memory of the engine, in blocks of 16 tokens (26000)",
    "max_seqs": "largest batch of the engine (256)",
}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `seeds` a list of whole numbers."""
    given = _parser().parse_args(arguments)
    given.seeds = [int(seed) for seed in given.seeds or [given.seed]]
    return given


def chosen(given: argparse.Namespace) -> list[Scenario] | None:
    """The cells asked for by option; None when nothing was."""
    single = {name: getattr(given, name) for name in (*FRACTIONS, *WHOLE, "mix", "arrivals", "shorter", "learning_s")}
    single = {name: value for name, value in single.items() if value is not None}
    many = (given.workload, given.physics, given.concurrency, given.sensor)
    if not single and not any(many):
        return None
    workloads: Sequence[str] = given.workload or (["mix"] if given.mix else ["mixed"])
    return [
        Scenario(workload, concurrency, physics, board, seed=seed, **single)
        for seed, workload, physics, concurrency, board in product(
            given.seeds,
            workloads,
            given.physics or ["own"],
            given.concurrency or CONCURRENCIES[1:],
            given.sensor or ["part-time"],
        )
    ]


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
    """0 when every policy conserved, else 1: whether the bars are reached is for the reader."""
    given = parsed(arguments)
    console = Console(width=None if sys.stdout.isatty() else 180)
    if given.profile:
        return cost(["--profile"])
    cells = chosen(given)
    if given.ablate:
        for cell in cells or [Scenario(concurrency=c, board=b) for b in ("exact", "part-time") for c in (4.0, 28.0)]:
            console.print(ablation_table(cell, ablate(cell)))
        return 0
    cells = cells or [cell for seed in given.seeds for cell in standard(seed, quick=given.quick)]
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
