"""What a calibration found, for people: each weight, each kind of work as measured and as predicted, and a verdict."""

from collections.abc import Sequence
from math import floor, log10

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.accounting.calibration import Calibrated, Finding, Stretch

UNITS = {
    "step": "engine step",
    "experts": "step, all experts",
    "prefill": "prompt token",
    "attention": "prompt token × context",
    "decode": "token made",
    "context": "token made × context",
}
NARROWEST_BAR, WIDEST_BAR = 10, 40
GOOD, FAIR = 0.03, 0.08
"""Held-out errors up to which weights are good (windows may be evened out), and fair."""


def show(found: Calibrated, stretches: Sequence[Stretch], console: Console) -> None:
    """Prints both tables and the fit's quality."""
    console.print()
    console.print(_weights(found))
    console.print(
        f"Ratio: fitted over prior, after the one factor {found.scale:.3g} on all. Only ratios decide who pays.",
        style="dim",
    )
    if len(found.told) < len(found.findings):
        console.print("Stays at the prior: the load does not tell it apart from the others.", style="dim")
    console.print()
    console.print(_kinds(found, stretches, max(NARROWEST_BAR, min(WIDEST_BAR, console.width - 66))))
    console.print(
        f"\nR² {found.r2:.4f} of joules per step; one stretch scatters by {_percent(found.noise)}\n"
        f"held out, round by round: fitted weights off by {_percent(found.held_out)}, "
        f"the prior by {_percent(found.held_out_prior)}\n"
    )


def verdict(found: Calibrated, *, short: bool) -> str:
    """The outcome in words."""
    if not found.told:
        return "The load told no weight apart from the others: nothing was learnt."
    if not found.helps:
        return (
            f"The fitted weights predict what they have not seen no better than the prior does "
            f"({_percent(found.held_out)} against {_percent(found.held_out_prior)})."
        )
    quality = (
        "good" if found.held_out <= GOOD else "fair" if found.held_out <= FAIR else "poor, yet better than the prior"
    )
    words = f"{quality[0].upper()}{quality[1:]}: the weights predict what they have not seen within "
    words += f"{_percent(found.held_out)}, the prior within {_percent(found.held_out_prior)}."
    if found.beyond:
        words += " The prior is wrong by more than a factor of three here, so the load's own figures took its place."
    limited = [one.name for one in found.findings if one.at_limit]
    if limited:
        words += f" At the edge of what is believed, so the truth may lie beyond: {', '.join(limited)}."
    if short:
        words += " The stretches were short; a calibration worth its name takes --minutes 2.5."
    return words


def _weights(found: Calibrated) -> Table:
    table = Table("weight", "joules per", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("prior", "fitted"):
        table.add_column(heading, justify="right")
    table.add_column("ratio")
    for one in found.findings:
        table.add_row(one.name, UNITS[one.name], _joules(one.prior), _joules(one.fitted), _ratio(one))
    return table


def _ratio(one: Finding) -> Text:
    text = Text(f"{one.ratio:.3g} ")
    if one.error is None:
        return text.append("stays at the prior", style="yellow")
    if one.at_limit:
        return text.append("edge of trust", style="yellow")
    return text.append(f"± {one.error:.2g}")


def _kinds(found: Calibrated, stretches: Sequence[Stretch], width: int) -> Table:
    """By mean power while busy: kinds of work differ in it by less than in joules per step, so bars can be compared."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("kind of work", no_wrap=True)
    for heading in ("J/step", "measured", "predicted", "off by"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(Text.assemble(("█", "cyan"), " and ", ("┃", "bold magenta")), no_wrap=True)
    names = sorted({one.phase for one in stretches})
    rows = [_mean(name, found, stretches) for name in names]
    most_w = max(max(measured, predicted) for _, measured, predicted in rows)
    for name, (per_step, measured, predicted) in zip(names, rows, strict=True):
        off = predicted / measured - 1
        bar = _bar(measured / most_w, predicted / most_w, width)
        table.add_row(name, _joules(per_step), f"{measured:.1f} W", f"{predicted:.1f} W", f"{100 * off:+.1f} %", bar)
    return table


def _mean(name: str, found: Calibrated, stretches: Sequence[Stretch]) -> tuple[float, float, float]:
    """Joules per step, and watts as measured and as predicted."""
    mine = [(one, joules) for one, joules in zip(stretches, found.predicted_j, strict=True) if one.phase == name]
    energy_j = sum(one.energy_j for one, _ in mine)
    busy_s = sum(one.busy_s for one, _ in mine)
    steps = sum(one.work.steps for one, _ in mine)
    return energy_j / steps, energy_j / busy_s, sum(joules for _, joules in mine) / busy_s


def _bar(measured: float, predicted: float, width: int) -> Text:
    cells = [("█", "cyan") if place < round(measured * width) else (" ", "") for place in range(width + 1)]
    cells[round(predicted * width)] = ("┃", "bold magenta")
    return Text.assemble(*cells)


def _joules(amount: float) -> str:
    """Three digits and a prefix."""
    if amount <= 0:
        return "0 J"
    steps = max(-5, min(0, floor(log10(amount) / 3)))
    return f"{amount / 1000.0**steps:.3g} {('J', 'mJ', 'µJ', 'nJ', 'pJ', 'fJ')[-steps]}"


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
