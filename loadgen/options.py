"""The load's own command line arguments, which are also the fields of Locust's web form.

Locust prints --help before it reads a locustfile, so it cannot list these; `python -m loadgen.options` does.
"""

import argparse
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, TypeVar

from loadgen import arrivals
from loadgen.bins import workload_names
from loadgen.errors import OptionError

Number = TypeVar("Number", int, float)

DEFAULT_REQUESTS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """Checked arguments; None means not given."""

    rate_per_s: float
    requests: int
    arrivals: str
    burstiness: float
    seed: int
    workload: str
    model: str | None
    max_model_len: int | None
    max_in_flight: int | None
    outcomes: str | None
    api_key: str | None
    progress_every_s: float


def add_arguments(parser: Any) -> None:
    """Add the arguments to Locust's parser (configargparse with extra keywords for the web form)."""
    add = parser.add_argument  # arguments of a group would be missing in the web form
    names = ", ".join(workload_names())
    add(
        "--rate",
        type=float,
        default=2.0,
        help="requests per second, whether or not earlier ones are answered (default 2)",
    )
    add("--requests", type=int, help=f"how many requests to send (default {DEFAULT_REQUESTS})")
    add("--duration", type=float, help="seconds to send for, instead of --requests: rate * duration requests")
    add("--arrivals", choices=arrivals.KINDS, default="poisson", help="gaps between requests (default poisson)")
    add(
        "--burstiness", type=float, default=1.0, help="for gamma arrivals: under 1 is burstier than Poisson (default 1)"
    )
    add("--seed", type=int, default=0, help="decides the order of requests and the gaps (default 0)")
    add("--workload", default="azure-conv-2023", help=f"lengths: a bin table's file or one of {names} (the default)")
    add("--model", help="model to ask for (default the first of /v1/models)")
    add(
        "--max-model-len",
        type=int,
        help="context window in tokens; lengths are scaled to fit (default what the server says)",
    )
    add(
        "--max-in-flight",
        type=int,
        help="hold requests back above this many; waiting counts as lateness (default no limit)",
    )
    add("--outcomes", help="file to write, one JSON object per request")
    add("--api-key", is_secret=True, help="bearer key for the server")
    add("--progress-every", type=float, default=5.0, help="seconds between progress lines (default 5)")


def read_options(given: Namespace) -> Options:
    """Check what was given; raises OptionError. The web form hands over text, and '' for an empty field."""
    rate_per_s = _number(given.rate, "--rate", float) or 2.0
    requests = _number(given.requests, "--requests", int)
    duration_s = _number(given.duration, "--duration", float)
    if requests and duration_s:
        raise OptionError("give --requests or --duration, not both")
    if given.arrivals not in arrivals.KINDS:
        raise OptionError(f"--arrivals is one of {', '.join(arrivals.KINDS)}, not {given.arrivals!r}")
    return Options(
        rate_per_s=rate_per_s,
        requests=requests or (max(1, round(rate_per_s * duration_s)) if duration_s else DEFAULT_REQUESTS),
        arrivals=given.arrivals,
        burstiness=_number(given.burstiness, "--burstiness", float) or 1.0,
        seed=int(given.seed or 0),
        workload=given.workload,
        model=given.model or None,
        max_model_len=_number(given.max_model_len, "--max-model-len", int),
        max_in_flight=_number(given.max_in_flight, "--max-in-flight", int),
        outcomes=given.outcomes or None,
        api_key=given.api_key or None,
        progress_every_s=_number(given.progress_every, "--progress-every", float) or 5.0,
    )


def _number(value: object, name: str, kind: type[Number]) -> Number | None:
    """A number above zero, or None for what was left empty."""
    if value is None or value == "":
        return None
    try:
        number = kind(str(value))
    except ValueError as error:
        raise OptionError(f"{name} needs a number, not {value!r}") from error
    if number <= 0:
        raise OptionError(f"{name} must be above zero, not {number}")
    return number


class _HelpParser(argparse.ArgumentParser):
    """A parser without Locust's own arguments, to show only these."""

    def add_argument(self, *names: str, is_secret: bool = False, **settings: Any) -> argparse.Action:
        return super().add_argument(*names, **settings)


if __name__ == "__main__":
    help_parser = _HelpParser(
        prog="locust -f loadgen/chat.py",
        add_help=False,
        epilog="and Locust's own: locust --help",
    )
    add_arguments(help_parser)
    help_parser.print_help()
