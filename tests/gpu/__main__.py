"""`python -m tests.gpu --out RESULTS.md [--minutes 30]`: all GPU tests in order, and the page of their figures.

The page and its JSON are written after every part, so an interrupted run leaves what it has measured. With fewer than
25 minutes it is the short run: smaller samples, and what there is no time left for is `not run`.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import machine
from tests.gpu.dummy_model import SHAPES
from tests.gpu.engine import SIZE
from tests.gpu.page import NO_GPU, NOT_RUN, PARTS, Outcome, write
from tests.gpu.plan import MINUTES, plan

HERE = Path(__file__).parent
FILES = ("test_conservation", "test_step_energy", "test_marginal", "test_log_against_relay_gpu")
END_S = 15.0
"""What is left for stopping the servers."""


class Recorder:
    """Takes what the tests note, leaves out what there is no time for, and writes the page as it goes."""

    def __init__(self, out: Path, minutes: float) -> None:
        self._out = out
        self._minutes = minutes
        self._plan = plan(minutes)
        self._began = time.monotonic()
        self._date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._machine: Any = None
        self.outcomes: dict[str, Outcome] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skips a test that would not end in time; one that began is not stopped."""
        left_s = self._minutes * 60 - END_S - (time.monotonic() - self._began)
        needs_s = self._plan.needs_s(item.name)
        if needs_s > left_s:
            pytest.skip(
                f"{NOT_RUN}: of {self._minutes:g} minutes {max(0.0, left_s):.0f} s were left, {needs_s:.0f} needed"
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Every phase of every test."""
        name = report.nodeid.rpartition("::")[2]
        found = self.outcomes.setdefault(name, Outcome(NOT_RUN))
        for key, value in report.user_properties:
            if key == "machine":
                self._machine = value
            elif key in ("figures", "raw"):
                setattr(found, key, value)
        if not found.status.startswith("failed") and (status := status_of(report)):
            found.status = status
        if report.when == "teardown":
            self.write()

    def write(self) -> None:
        """The page as it stands."""
        why = NOT_RUN if machine.no_gpu() is None else NO_GPU
        write(self._out, self.outcomes, self._machine, self._date, why)


def status_of(report: pytest.TestReport) -> str | None:
    """What a report says of its test; None when it says nothing new."""
    if report.skipped:
        return str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else NOT_RUN
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = str(report.longrepr if crash is None else crash.message).strip().splitlines()
        return f"failed: {lines[0][:300]}" if lines else "failed"
    return "passed" if report.when == "call" else None


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=HERE / "RESULTS.md", help="the page; its data goes beside it as .json")
    add("--minutes", type=float, default=30.0, help="time for all, the engine's start included (30)")
    add("--size", choices=sorted(SHAPES), help="of the model with random weights (8b from 60 GB of memory, else 1b)")
    add("-k", metavar="WORDS", help="only the tests whose names match, as pytest has it")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """0 when all that was run has passed; 2 without a GPU, and then nothing is written."""
    options = arguments(given)
    try:
        machine.chosen()
    except machine.Missing as missing:
        print(f"tests.gpu: {missing}", file=sys.stderr)
        return 2
    os.environ[MINUTES] = str(options.minutes)
    if options.size:
        os.environ[SIZE] = options.size
    recorder = Recorder(options.out.absolute(), options.minutes)
    chosen = ["-k", options.k] if options.k else []
    paths = [str(HERE / f"{name}.py") for name in FILES]
    # a warning must not cost a measurement; what this program has imported is not rewritten, and need not be
    warned = ["-W", "default", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    quiet = ["--capture=sys", "-q", "-rfE", "--rootdir", str(HERE.parents[1]), *warned]
    status = pytest.main([*quiet, "-m", "gpu", *chosen, *paths], [recorder])
    recorder.write()
    done = sum(recorder.outcomes.get(part.test, Outcome("")).status == "passed" for part in PARTS)
    print(f"tests.gpu: {done} of {len(PARTS)} parts passed; {options.out}", file=sys.stderr)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
