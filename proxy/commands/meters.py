"""`jouleproxy meters`: what can be read on this machine, what it reads now, and why the rest cannot."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from proxy.accounting.samples import Sample, Timeline
from proxy.accounting.units import watts
from proxy.errors import JouleproxyError
from proxy.meters import MeterReport, open_meters, survey
from proxy.ports import Meter

Pause = Callable[[float], None]


def meters(seconds: float, console: Console, pause: Pause = time.sleep) -> int:
    """Prints the survey and, for `seconds`, watches the meters that `auto` would take; the exit status."""
    console.print(_survey_table(survey()))
    try:
        chosen = open_meters("auto", ())
    except JouleproxyError as error:
        console.print(f"No meter can be used: {error}")
        return 1
    with console.status(f"watching for {seconds:g} s"):
        powers = _watch(list(chosen), seconds, pause)
    table = Table("meter", "device", "power", "counter edges", title="serve would use", title_justify="left", box=None)
    for meter, (power_w, edges) in zip(chosen, powers, strict=True):
        shown = "not seen" if power_w is None else f"{power_w:.1f} W"
        table.add_row(meter.kind, meter.gpu, shown + (" estimated" if meter.estimated else ""), str(edges))
        meter.close()
    console.print(table)
    return 0


def _survey_table(reports: list[MeterReport]) -> Table:
    table = Table("meter", "here", "device", "what it is, or why not", title="Meters", title_justify="left", box=None)
    for report in reports:
        state = "no" if not report.available else "[yellow]estimated[/]" if report.estimated else "[green]yes[/]"
        table.add_row(report.kind, state, report.gpu or "", report.description or report.reason or "")
    return table


def _watch(chosen: list[Meter], seconds: float, pause: Pause) -> list[tuple[float | None, int]]:
    """Per meter: mean power in watts over the time watched, and how often the counter moved."""
    lines = [Timeline(meter.name) for meter in chosen]
    first: list[Sample | None] = [None] * len(chosen)
    edges = [0] * len(chosen)
    for _ in range(max(2, round(seconds / 0.02))):
        for index, (meter, line) in enumerate(zip(chosen, lines, strict=True)):
            try:
                edges[index] += line.accept(meter.read()) is not None
            except JouleproxyError:
                continue
            first[index] = first[index] or line.last
        pause(0.02)
    found = []
    for start, line, count in zip(first, lines, edges, strict=True):
        end = line.last
        power_w = watts(end.counter - start.counter, end.at - start.at) if start and end else None
        found.append((power_w, count))
    return found
