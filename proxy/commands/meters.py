"""`jouleproxy meters`: what can be read on this machine, what it reads now, and why the rest cannot."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from proxy.accounting.samples import Sample
from proxy.accounting.units import SECOND, Nanoseconds, watts
from proxy.errors import JouleproxyError
from proxy.meters import MeterReport, open_meters, survey
from proxy.meters.pace import CounterPace, change_edges
from proxy.ports import Meter

Pause = Callable[[float], None]
ENDLESS = 1_000_000
"""More counter changes than any meter makes in the time: only the clock ends the watch."""


def meters(seconds: float, console: Console, pause: Pause = time.sleep) -> int:
    """Prints the survey and, for `seconds` each, watches the meters that `auto` would take; the exit status."""
    console.print(_survey_table(survey()))
    try:
        chosen = open_meters("auto", ())
    except JouleproxyError as error:
        console.print(f"No meter can be used: {error}", markup=False)
        return 1
    table = Table("meter", "device", "power", "counter moves every", "a reading takes", title="\nserve would use")
    table.title_justify, table.box = "left", None
    with console.status(f"watching {len(chosen)} meter(s) for {seconds:g} s each"):
        for meter in chosen:
            table.add_row(meter.kind, *map(escape, (meter.gpu, *_watched(meter, seconds, pause))))
            meter.close()
    console.print(table)
    return 0


def _survey_table(reports: list[MeterReport]) -> Table:
    table = Table("meter", "here", "device", "what it is, or why not", title="Meters", title_justify="left", box=None)
    for report in reports:
        state = "no" if not report.available else "[yellow]estimated[/]" if report.estimated else "[green]yes[/]"
        what = report.description or report.reason or ""
        table.add_row(report.kind, state, escape(report.gpu or ""), escape(what))
    return table


def _watched(meter: Meter, seconds: float, pause: Pause) -> tuple[str, str, str]:
    """Mean power, period of the counter and cost of a reading over that time, in words."""
    seen: list[Sample] = []

    def read() -> Sample:
        seen.append(meter.read())
        return seen[-1]

    try:
        limit = Nanoseconds(round(seconds * SECOND))
        pace = change_edges(read, time.monotonic_ns, pause, changes=ENDLESS, limit=limit)
    except JouleproxyError as error:
        return str(error), "", ""
    return _power(meter, seen), _period(pace), f"{pace.read_s * 1000:.2f} ms"


def _power(meter: Meter, seen: list[Sample]) -> str:
    power_w = watts(seen[-1].counter - seen[0].counter, seen[-1].at - seen[0].at)
    if power_w is None:
        return "not seen"
    return f"{power_w:.1f} W" + (" estimated" if meter.estimated else "")


def _period(pace: CounterPace) -> str:
    return "did not move twice" if pace.period_s is None else f"{pace.period_s * 1000:.0f} ms"
