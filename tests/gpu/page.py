"""RESULTS.md and the JSON beside it: every figure a GPU run can give, measured or `not run`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Say = Callable[[str], None]
"""Prints a line of progress."""
Note = Callable[[dict[str, Any], Any], None]
"""Takes a test's figures and its raw data."""
NOT_RUN = "not run"
NO_GPU = "not run: no GPU was at hand"


@dataclass(frozen=True, slots=True)
class Part:
    """One test. test: its name, with its parameter. figures: what it notes, by key, in words with the unit."""

    test: str
    title: str
    bar: str
    figures: Mapping[str, str]


@dataclass(slots=True)
class Outcome:
    """What became of a part. status: `passed`, or what else in words. figures, raw: as the test noted them."""

    status: str
    figures: dict[str, Any] = field(default_factory=dict)
    raw: Any = None


_MARGINAL = {
    "measured_j": "added at the meter by one request, J (95 %)",
    "paid_j": "paid by one for prefill and decode, J",
    "ratio": "paid / added",
    "fresh_paid_j": "paid by one of the same prompt, uncached, J",
    "requests": "requests added",
}
_KINDS = {
    "prefill": "a long prompt, a short answer",
    "decode": "a short prompt, a long answer",
    "context": "a long answer behind a very long cached prompt",
    "cached": "a long prompt that is cached, a short answer",
}
PARTS = (
    Part(
        "test_every_joule_is_in_an_account",
        "Conservation under mixed load, against an independent reader",
        "accounts = the proxy's meter exactly; that within 1 % of the reader; all of grade A",
        {
            "seconds": "compared, s",
            "records": "requests settled",
            "independent_j": "independent reader, J",
            "meter_j": "the proxy's meter, J",
            "difference": "difference, relative",
            "imbalance_uj": "meter less accounts, µJ",
            "requests_j": "account requests, J",
            "idle_j": "account idle, J",
            "unattributed_j": "account unattributed, J",
            "unmeasured_j": "account unmeasured, J",
            "grade_a": "part of the requests graded A",
            "counter_period_ms": "the counter moves every, ms",
            "read_ms": "a reading takes, ms",
            "proxy_read_ms": "a reading takes in the running proxy, ms",
            "counter_power_ratio": "counter over power reading",
        },
    ),
    Part(
        "test_a_step_is_a_straight_line_in_its_batch",
        "Energy of an engine step against its batch (1, 2, 4, ... 128 sequences)",
        "R2 at least 0.98 for batches up to 64",
        {
            "fixed_j": "fixed part, J a step",
            "slope_j": "slope, J a sequence and step",
            "r2": "R2, batches up to 64",
            "worst": "largest error of the line, relative, up to 64",
            "r2_to_128": "R2, up to 128",
            "worst_to_128": "largest error, up to 128",
            "step_ms_fixed": "duration of a step, fixed part, ms",
            "step_ms_slope": "duration of a step, slope, ms a sequence",
            "step_ms_r2": "duration of a step, R2",
            "rounds": "rounds of all batches",
        },
    ),
    *(
        Part(
            f"test_an_added_request_costs_what_it_pays[{name}]",
            f"Marginal energy: {words}",
            "both below a quarter of the uncached"
            if name == "cached"
            else "told from 0, same sign, within a factor of 2",
            _MARGINAL,
        )
        for name, words in _KINDS.items()
    ),
    Part(
        "test_the_relay_alone_comes_near_to_the_step_log",
        "Token times alone (B) against the step log (A), same requests",
        "token counts equal; weighted error at most 5 %",
        {
            "requests": "requests",
            "joules": "their energy, J",
            "weighted_error": "weighted error of B against A",
            "median_share": "median of B over A, less 1",
            "wrong_counts": "requests whose token counts differ",
        },
    ),
    Part(
        "test_the_step_log_costs_nothing",
        "Cost of the step log",
        "not provably more than 1 % of the tokens per second, told to within 2 %",
        {
            "with_tokens_per_s": "with it, tokens/s",
            "without_tokens_per_s": "without it, tokens/s",
            "loss_percent": "loss, % (95 %)",
            "steps_heard": "steps heard",
            "steps_lost": "steps lost",
        },
    ),
)

MACHINE = {
    "name": "GPU",
    "driver": "driver",
    "power_limit_w": "power limit, W",
    "memory_gb": "GPU memory, GB",
    "processor": "processor",
    "cores": "cores",
    "kernel": "kernel",
    "python": "Python",
    "vllm": "vLLM",
    "torch": "torch",
    "model": "model",
    "commit": "commit",
}
HEAD = """\
# What a GPU says

Written by `python -m tests.gpu`; README.md beside this file says how to run it and what it needs: an NVIDIA GPU with an
energy counter (Volta or newer), otherwise idle, and vLLM 0.26 or newer for CUDA with the plugin of deploy/steplog.
What was not run says so. A board's own gain is about ±5 % wrong, which no test here can see.
"""


def shown(value: Any) -> str:
    """A figure in a table: four digits; whole numbers whole; `not known` for None."""
    if value is None:
        return "not known"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def page(outcomes: Mapping[str, Outcome], machine: Mapping[str, Any] | None, date: str | None, why: str) -> str:
    """The whole page. outcomes: by the test's name. why: what is said of a part without an outcome."""
    told = {} if machine is None else machine
    about = [("date", date or NOT_RUN), *((words, _known(told, key)) for key, words in MACHINE.items())]
    texts = [HEAD, table(("machine", ""), about)]
    for part in PARTS:
        outcome = outcomes.get(part.test, Outcome(why))
        texts.append(f"## {part.title}\n\nBar: {part.bar}. **{outcome.status}**\n")
        rows = [(words, _figure(outcome, key, why)) for key, words in part.figures.items()]
        texts.append(table(("figure", ""), rows))
        if part.test.startswith("test_a_step_is") and outcome.raw:
            texts.append(_points(outcome.raw))
    return "\n".join(texts)


def _known(told: Mapping[str, Any], key: str) -> str:
    return shown(told[key]) if key in told else NOT_RUN


def _figure(outcome: Outcome, key: str, why: str) -> str:
    if key in outcome.figures:
        return shown(outcome.figures[key])
    return why if outcome.status == why else NOT_RUN


def _points(points: Sequence[Mapping[str, Any]]) -> str:
    keys = ("batch", "joules_per_step", "ms_per_step", "watts", "context", "seconds")
    heads = ("batch", "J a step", "ms a step", "W", "context tokens a step", "s")
    return table(heads, [[shown(point[key]) for key in keys] for point in points])


def write(out: Path, outcomes: Mapping[str, Outcome], machine: Mapping[str, Any] | None, date: str, why: str) -> None:
    """The page, and its data beside it as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(outcomes, machine, date, why))
    parts = {
        part.test: {"status": found.status, "figures": found.figures, "raw": found.raw}
        for part in PARTS
        for found in [outcomes.get(part.test, Outcome(why))]
    }
    data = {"date": date, "machine": machine, "parts": parts}
    out.with_suffix(".json").write_text(json.dumps(data, separators=(",", ":")) + "\n")
