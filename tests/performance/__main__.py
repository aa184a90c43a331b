"""`python -m tests.performance [--quick] [--json FILE]`: what the proxy costs beside others, on one core.

Needs two cores: one for the system under test, one for the mock engine and the load client, which are written in C.
Debian's nginx must be there; vllm-router and LiteLLM are installed from PyPI into folders that git does not see.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from tests.performance.course import Run, engine, enough_cores, in_turn, run_once
from tests.performance.figures import Runs, as_json
from tests.performance.pinned import DidNotStart
from tests.performance.systems import DIRECT, SYSTEMS, System
from tests.performance.tables import judged_table, load_table, readme_table
from tests.performance.workloads import WORKLOADS, Workload

ROUNDS, SECONDS, WARM = 3, 10, 2
QUICK_ROUNDS, QUICK_SECONDS = 1, 4
QUICK = ("json", "streams")


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.performance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--quick", action="store_true", help="two loads, once, without LiteLLM")
    add("--json", type=Path, metavar="FILE", help="write ratios and figures there")
    add("--markdown", action="store_true", help="print the README's table, too")
    add("--systems", metavar="S,S,…", help=f"of {', '.join(SYSTEMS)}; the engine alone is always there")
    add("--loads", metavar="L,L,…", help="of " + ", ".join(WORKLOADS))
    add("--rounds", type=int, help=f"of each load ({ROUNDS})")
    add("--seconds", type=int, help=f"of each run ({SECONDS})")
    return made


def _chosen(given: str | None, known: Sequence[str], usual: Sequence[str]) -> list[str]:
    names = list(usual) if given is None else given.split(",")
    strange = [name for name in names if name not in known]
    if strange:
        raise SystemExit(f"{strange[0]!r} is none of {', '.join(known)}")
    return names


def _runs(
    systems: Sequence[System], loads: Sequence[Workload], rounds: int, seconds: int, console: Console
) -> list[Run]:
    runs: list[Run] = []
    everybody: list[System | None] = [None, *systems]
    text = TextColumn("{task.description}")
    with Progress(text, *Progress.get_default_columns()[1:], TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(everybody) * len(loads) * rounds)
        with engine() as port:
            for load in loads:
                for system in in_turn(everybody, rounds):
                    progress.update(bar, description=f"{load.about}: {system.name if system else DIRECT}")
                    try:
                        runs.append(run_once(system, load, port, seconds=seconds, warm=WARM))
                    except DidNotStart as error:
                        progress.console.print(f"[red]left out: {system.name if system else DIRECT}: {error}")
                    progress.advance(bar)
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    given = _parser().parse_args(arguments)
    console = Console(stderr=True)
    if not enough_cores():
        raise SystemExit("two cores are needed: one for what is measured, one for engine and client")
    usual = [name for name in SYSTEMS if not (given.quick and name == "LiteLLM")]
    names = _chosen(given.systems, list(SYSTEMS), usual)
    loads = _chosen(given.loads, list(WORKLOADS), QUICK if given.quick else list(WORKLOADS))
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    seconds = given.seconds or (QUICK_SECONDS if given.quick else SECONDS)
    systems = [SYSTEMS[name] for name in names]
    for system in systems:
        with console.status(f"installing {system.name}"):
            system.install()
    runs = Runs(_runs(systems, [WORKLOADS[name] for name in loads], rounds, seconds, console))
    shown = [DIRECT, *names]
    out = Console(width=None if sys.stdout.isatty() else 140)
    for name in loads:
        out.print(load_table(runs, WORKLOADS[name], shown))
    out.print(judged_table(runs))
    if given.markdown:
        print(readme_table(runs, shown))
    if given.json:
        given.json.write_text(json.dumps(as_json(runs, shown, loads), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
