"""What a demo run found: the records joined with the load's own bins, checked, and shown as a table."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.outcome import Outcome, percentile
from proxy.accounting.units import joules

ACCOUNTS = ("requests", "idle", "unattributed", "unmeasured")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: what was asked, what the ledger says of it, and the balance at that moment."""

    asked: list[Outcome]
    records: dict[str, dict[str, Any]]
    balance: dict[str, Any]

    def problems(self) -> list[str]:
        """What does not hold, in sentences; empty when everything does."""
        found = []
        failed = [one for one in self.asked if one.error is not None]
        if not self.asked:
            found.append("no request was sent")
        if failed:
            found.append(f"{len(failed)} of {len(self.asked)} requests failed, the first with: {failed[0].error}")
        unsettled = [one for one in self.asked if one.error is None and one.request_id not in self.records]
        if unsettled:
            found.append(f"{len(unsettled)} answered requests have no settled record, e.g. {unsettled[0].request_id}")
        total = self.balance["total"]
        if total["imbalance_microjoules"] or sum(total["accounts"].values()) != total["meter_microjoules"]:
            found.append(f"the accounts do not add up to the meter: {json.dumps(total)}")
        if (
            not unsettled
            and not failed
            and self.asked
            and not all(map(math.isfinite, per_token(self.records.values())))
        ):
            found.append("joules per output token is not finite")
        return found


def per_token(records: Iterable[dict[str, Any]]) -> list[float]:
    """Joules per output token of each record that has both; inf where energy came without a token."""
    values = []
    for record in records:
        energy_j, tokens = record["energy_joules"], record["tokens"]["completion"]
        if energy_j is not None and tokens is not None:
            values.append(energy_j / tokens if tokens else math.inf)
    return values


def _number(value: float | None, most_digits: int = 3) -> str:
    """About four significant digits; a dash for what is not known."""
    if value is None:
        return "—"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, min(most_digits, 4 - whole))}f}"


def _bins(run: Run) -> list[tuple[str, list[dict[str, Any]]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for one in run.asked:
        if one.request_id in run.records:
            grouped.setdefault(one.bin, []).append(run.records[one.request_id])
    return sorted(grouped.items(), key=lambda item: -len(item[1]))


def _bin_row(name: str, records: Sequence[dict[str, Any]]) -> list[str]:
    energies = [record["energy_joules"] for record in records if record["energy_joules"] is not None]
    tokens = per_token(records)
    prompt = sum(record["tokens"]["prompt"] or 0 for record in records)
    completion = sum(record["tokens"]["completion"] or 0 for record in records)
    return [
        name,
        f"{len(records):,}",
        f"{prompt:,}",
        f"{completion:,}",
        _number(sum(energies), 1),
        _number(percentile(energies, 50), 2),
        _number(percentile(energies, 95), 2),
        _number(percentile(tokens, 50)),
        _number(percentile(tokens, 95)),
    ]


def bins_table(run: Run, most: int) -> Table:
    """Joules by (input, output) bin, the most frequent bins first, and all of them together."""
    table = Table(
        title="Energy by bin of the workload (J/token: joules per output token)",
        title_justify="left",
        box=None,
        pad_edge=False,
        show_footer=True,
    )
    everything = _bin_row("all bins", list(run.records.values()))
    heads = ("tokens in→out", "reqs", "prompt", "output", "joules", "J/req\np50", "\np95", "J/token\np50", "\np95")
    for head, foot in zip(heads, everything, strict=True):
        table.add_column(head, footer=foot, justify="right" if foot[0].isdigit() else "left", no_wrap=True)
    bins = _bins(run)
    for name, records in bins[:most]:
        table.add_row(*_bin_row(name.removeprefix("in ").replace(" out ", "→"), records))
    rest = [record for _, records in bins[most:] for record in records]
    if rest:
        table.add_row(*_bin_row(f"{len(bins) - most} further bins", rest))
    return table


def accounts_table(balance: dict[str, Any]) -> Table:
    """Where the meter's energy went, in joules and microjoules."""
    total = balance["total"]
    meter = total["meter_microjoules"]
    table = Table(title="Where the energy went", title_justify="left", box=None, pad_edge=False)
    for head in ("account", "joules", "share", "µJ"):
        table.add_column(head, justify="left" if head == "account" else "right")
    for account in ACCOUNTS:
        energy = total["accounts"][account]
        share = f"{100 * energy / meter:.1f} %" if meter else "—"
        table.add_row(account, f"{joules(energy):,.1f}", share, f"{energy:,}")
    table.add_section()
    table.add_row("meter", f"{joules(meter):,.1f}", "", f"{meter:,}")
    return table


def summary(run: Run, *, most_bins: int = 12) -> RenderableType:
    """The whole result."""
    meters = [meter for backend in run.balance["backends"] for meter in backend["meters"]]
    parts: list[RenderableType] = [bins_table(run, most_bins), Text(), accounts_table(run.balance), Text()]
    imbalance = run.balance["total"]["imbalance_microjoules"]
    parts.append(Text(f"imbalance {imbalance} µJ", style="bold green" if imbalance == 0 else "bold red"))
    for meter in meters:
        text = Text(f"meter: {meter['kind']} {meter['gpu']}: {meter['description']}")
        if meter["estimated"]:
            text.stylize("black on yellow")
        parts.append(text)
    answered = sum(1 for one in run.asked if one.error is None)
    parts.append(Text(f"settled records: {len(run.records)} of {answered} answered requests"))
    return Group(*parts)
