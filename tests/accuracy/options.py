"""The bench's options, and the cells of one's own that they ask for; what makes no sense is refused in a sentence."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import TypeVar

from tests.accuracy.physics import PHYSICS
from tests.accuracy.scenario import Scenario
from tests.accuracy.sensor import BOARDS
from tests.accuracy.workloads import ARRIVALS, KINDS, WORKLOADS, Mix

T = TypeVar("T")
CONCURRENCIES = (4.0, 28.0)
QUICK_SHORTER, QUICK_LEARNING_S = 4.0, 60.0
"""What --quick makes of cells of one's own."""

FRACTIONS = {
    "unseen": "requests that bypass the proxy; below 1",
    "silent": "requests answered in one piece",
    "aborted": "requests whose client leaves",
    "several": "requests that want 2 to 4 answers",
    "lost_steps": "of the step log that is lost",
}
WHOLE = {
    "draft": (0, "tokens drafted per step, of which 70 % hold"),
    "blocks": (1, "memory of the engine, in blocks of 16 tokens (26000)"),
    "max_seqs": (1, "largest batch of the engine (256)"),
}
"""The least, and what it is."""
SENSOR = {
    "lag": "how late the counter shows what it saw, instead of the sensor's own",
    "period": "how often the counter moves, instead of the sensor's own (0.1)",
    "looks": "how long before it moves the counter looks, instead of the sensor's own",
}


def _number(what: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and fits(number)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return number

    return parse


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return number

    return parse


def _several(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    return lambda text: [one(part) for part in text.split(",")]


POSITIVE = _number("a number above 0", lambda number: number > 0)
NOT_NEGATIVE = _number("a number from 0", lambda number: number >= 0)
SHORTER = _number("a number from 0.01 to 100", lambda number: 0.01 <= number <= 100)
PART = _number("a part from 0 to 1", lambda number: 0 <= number <= 1)
PART_BELOW_1 = _number("a part from 0 to below 1", lambda number: 0 <= number < 1)


def _name(known: Iterable[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
        return text

    return parse


def _mix(text: str) -> Mix:
    parts = [part.partition("=") for part in text.split(",")]
    return tuple((_name(KINDS)(kind), POSITIVE(part) if sign else 1.0) for kind, sign, part in parts)


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that exists")
    return path


def parser(about: str) -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m tests.accuracy", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--quick", action="store_true", help="five cells instead of all; cells of your own: a quarter as long")
    add("--ablate", action="store_true", help="where the rule loses accuracy, instead of the bench")
    add("--profile", action="store_true", help="what settlement costs of one core, instead (tests.accuracy.cost)")
    add("--json", type=_file, metavar="FILE", help="write the rows there")
    add("--seed", type=_whole(0), default=1)
    add("--seeds", type=_several(_whole(0)), metavar="S,S,…", help="several seeds: their mean and their worst")
    add("--jobs", type=_whole(1), default=1, metavar="N", help="processes at a time")
    _add_cells(made)
    return made


def _add_cells(made: argparse.ArgumentParser) -> None:
    cells = made.add_argument_group("cells of your own: each option with commas is tried with each of the others")
    add = cells.add_mutually_exclusive_group().add_argument
    add("--workload", "--only", type=_several(_name(WORKLOADS)), metavar="W,W,…", help=", ".join(WORKLOADS))
    add("--mix", type=_mix, metavar="KIND=PART,…", help="a workload of your own, of " + ", ".join(KINDS))
    add = cells.add_argument
    add("--arrivals", choices=ARRIVALS, help="when requests come, instead of the workload's own way")
    add("--physics", type=_several(_name(PHYSICS)), metavar="P,P,…", help=", ".join(PHYSICS))
    add("--concurrency", type=_several(POSITIVE), metavar="C,C,…", help="mean number of requests under way")
    add("--sensor", type=_several(_name(BOARDS)), metavar="S,S,…", help=", ".join(BOARDS))
    add("--shorter", type=SHORTER, help="divides the length of the runs")
    learning = "seconds of other traffic that `weighted` has seen (300; 0: prior only, quick)"
    add("--learning-s", type=NOT_NEGATIVE, help=learning)
    for name, what in SENSOR.items():
        add(f"--{name}", type=NOT_NEGATIVE if name == "lag" else POSITIVE, metavar="SECONDS", help=what)
    add("--noise", type=PART, metavar="PART", help="relative, of each step's time and energy (0.04)")
    for name, what in FRACTIONS.items():
        part = PART_BELOW_1 if name == "unseen" else PART
        add(f"--{name.replace('_', '-')}", type=part, metavar="PART", help=_literal(what))
    for name, (least, what) in WHOLE.items():
        add(f"--{name.replace('_', '-')}", type=_whole(least), metavar="N", help=_literal(what))


def _literal(text: str) -> str:
    """As argparse wants it: to it a percent sign is the beginning of a name."""
    return text.replace("%", "%%")


def chosen(given: argparse.Namespace) -> list[Scenario] | None:
    """The cells asked for by option; None when nothing was. --quick alone asks for none."""
    names = (*FRACTIONS, *WHOLE, *SENSOR, "noise", "mix", "arrivals", "shorter", "learning_s")
    single = {name: value for name in names if (value := getattr(given, name)) is not None}
    many = (given.workload, given.physics, given.concurrency, given.sensor)
    if not single and not any(many):
        return None
    if given.quick:
        single["shorter"] = QUICK_SHORTER * single.get("shorter", 1.0)
        single.setdefault("learning_s", QUICK_LEARNING_S)
    workloads: Sequence[str] = given.workload or (["mix"] if given.mix else ["mixed"])
    return [
        Scenario(workload, concurrency, physics, board, seed=seed, **single)
        for seed, workload, physics, concurrency, board in product(
            given.seeds,
            workloads,
            given.physics or ["own"],
            given.concurrency or CONCURRENCIES,
            given.sensor or ["part-time"],
        )
    ]
