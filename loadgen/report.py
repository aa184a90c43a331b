"""What the user reads: the progress line while the load runs, and the table of bins at the end. Pure text."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from loadgen.conductor import Run
from loadgen.outcome import Outcome, Summary, by_bin, percentile, summarise
from proxy.accounting.units import seconds

MOST_BINS = 24
LATE_MS = 10.0
BUSY_PERCENT = 60.0
COLUMNS = (
    "bin (tokens)",
    "requests",
    "tokens\nin",
    "tokens\nout",
    "≠\nasked",
    "TTFT ms\np50",
    "\np95",
    "TPOT ms\np50",
    "J/request\np50",
    "\np95",
    "J/out\ntoken",
    "total\nJ",
)


def progress_line(run: Run, elapsed_s: float) -> str:
    """One line on a run in progress; `t` is out of the seconds in which requests are due."""
    summary = summarise("", run.outcomes)
    unheard = summary.requests and not summary.energy_reported
    return "  ".join(
        (
            f"t {max(0.0, elapsed_s):.0f}/{seconds(run.span_ns):.0f} s",
            f"sent {run.sent}/{run.planned}",
            f"in flight {run.in_flight}",
            f"failed {summary.failed}",
            f"late p99 {_ms(summary.lateness_ns[1])} ms",
            f"TTFT p50 {_ms(summary.ttft_ns[0])} ms",
            "J/request not reported" if unheard else f"{_joules(summary.mean_energy_uj)} J/request",
        )
    )


def final_report(run: Run, *, from_due: bool, width: int, colour: bool) -> str:
    """Facts of the plan, the table of bins, and what to know before trusting it.

    `from_due` adds the TTFT counted from the due times, which is what a capped number in flight hides. Text is at
    least `width` columns wide where the table needs less, and wider where it needs more: no figure is cut off.
    """
    total = summarise("all", run.outcomes)
    table = _table(run.outcomes, total)
    console = Console(file=io.StringIO(), width=width, force_terminal=colour, legacy_windows=False)
    console.width = max(width, console.measure(table, options=console.options.update(width=400)).maximum)
    for fact in run.facts:
        console.print(fact, highlight=False, soft_wrap=True)
    if run.outcomes:
        console.print(table)
    for line in _closing(run, total, from_due):
        style = "bold red" if line.startswith("warning") else None
        console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)
    text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    return "\n".join(line.rstrip() for line in text.splitlines())


def _table(outcomes: Sequence[Outcome], total: Summary) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, show_footer=True)
    for column, footer in zip(COLUMNS, _cells(total), strict=True):
        left = column is COLUMNS[0]
        table.add_column(column, footer, justify="left" if left else "right", no_wrap=True)
    for row in _rows(outcomes):
        table.add_row(*_cells(row))
    return table


def _rows(outcomes: Sequence[Outcome]) -> list[Summary]:
    """A row per bin; the bins with the fewest requests share one row where there are many."""
    groups = by_bin(outcomes)
    if len(groups) <= MOST_BINS:
        return [summarise(label, group) for label, group in groups.items()]
    largest = set(sorted(groups, key=lambda label: -len(groups[label]))[: MOST_BINS - 1])
    rest = [outcome for label, group in groups.items() if label not in largest for outcome in group]
    rows = [summarise(label, group) for label, group in groups.items() if label in largest]
    return [*rows, summarise(f"{len(groups) - len(largest)} more bins", rest)]


def _cells(row: Summary) -> tuple[str, ...]:
    return (
        row.label,
        f"{row.requests}",
        f"{row.input_got}",
        f"{row.output_got}",
        f"{row.mismatched}",
        _ms(row.ttft_ns[0]),
        _ms(row.ttft_ns[1]),
        _ms(row.tpot_ns[0]),
        _joules(row.request_energy_uj[0]),
        _joules(row.request_energy_uj[1]),
        _digits(row.joules_per_output_token),
        _joules(row.energy_uj),
    )


def _closing(run: Run, total: Summary, from_due: bool) -> Iterator[str]:
    yield from (f"warning: {trouble}" for trouble in run.troubles)
    if not run.planned:
        yield "no load was sent"
        return
    yield f"sent {run.sent} of {run.planned}, answered {total.requests - total.failed}, failed {total.failed}"
    yield from _failures(run.outcomes)
    if not run.outcomes:
        return
    p50, p99, largest = total.lateness_ns
    yield (
        f"generator: late p50 {_ms(p50)} ms, p99 {_ms(p99)} ms, at most {_ms(largest)} ms; "
        f"busiest process {run.cpu_percent:.0f} % of a core"
    )
    if from_due:
        waits = [o.first_ns - o.due_ns for o in run.outcomes if o.first_ns is not None]
        p50, p95 = percentile(waits, 50), percentile(waits, 95)
        yield f"TTFT counted from the due time: p50 {_ms(p50)} ms, p95 {_ms(p95)} ms"
    elif p99 is not None and p99 > LATE_MS * 1e6:
        yield "warning: requests went out late; TTFT and the load itself are not what was asked for"
    if run.cpu_percent > BUSY_PERCENT:
        yield "warning: the generator is short of processor time; spread it with --processes"
    if total.mismatched:
        yield (
            f"warning: {total.mismatched} answers differ from the lengths asked for: "
            f"asked {total.input_asked} in, {total.output_asked} out of all requests; "
            f"got {total.input_got} in, {total.output_got} out"
        )
    yield from _energy_notes(run, total)


def _failures(outcomes: Sequence[Outcome]) -> Iterator[str]:
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    for error, count in errors.most_common(5):
        yield f"  {count} x {error}"
    if len(errors) > 5:
        yield f"  and {len(errors) - 5} other errors"


def _energy_notes(run: Run, total: Summary) -> Iterator[str]:
    if not total.energy_reported:
        yield "energy: not reported by the server; joules need the load to go through the proxy"
        return
    told = [o for o in run.outcomes if o.energy_uj is not None]
    grades = ", ".join(f"{grade} x {n}" for grade, n in sorted(Counter(o.grade for o in told if o.grade).items()))
    yield (
        f"energy: provisional figures of the proxy for {total.energy_reported} of {total.requests} requests"
        + (f", grades {grades}" if grades else "")
        + f"; settled ones at /energy/requests/{run.run_id}-N"
    )
    estimated = sum(bool(o.estimated) for o in told)
    if estimated:
        yield f"warning: the energy of {estimated} requests is estimated from a model, not measured by a sensor"


def _ms(value_ns: float | None) -> str:
    return "-" if value_ns is None else _digits(value_ns / 1e6)


def _joules(value_uj: float | None) -> str:
    return "-" if value_uj is None else _digits(value_uj / 1e6)


def _digits(value: float | None) -> str:
    """Three significant digits, and every digit before the point."""
    if value is None:
        return "-"
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:#.3g}" if abs(value) >= 0.001 else f"{value:.2g}"
