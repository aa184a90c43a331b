"""
The demo's verdict: what it calls a problem, and a table that fits a terminal.
"""

import io
from typing import Any

from rich.console import Console

from loadgen.outcome import Outcome
from proxy.commands.demo_table import Run, summary

ACCOUNTS = {"requests": 6_000_000, "idle": 3_000_000, "unattributed": 1, "unmeasured": 0}


def balance(**changes: Any) -> dict[str, Any]:
    total = {"accounts": ACCOUNTS, "meter_microjoules": 9_000_001, "imbalance_microjoules": 0} | changes
    meter = {"kind": "modelled", "gpu": "modelled", "estimated": True, "description": "estimated, no sensor"}
    return {"total": total, "backends": [{"meters": [meter]}]}


def record(energy_j: float | None = 3.0, completion: int | None = 10) -> dict[str, Any]:
    return {"energy_joules": energy_j, "tokens": {"prompt": 100, "cached": 0, "completion": completion}}


def asked(request_id: str, bin: str, error: str | None = None) -> Outcome:
    return Outcome(request_id, bin, 100, 100, 10, 10, 0, 0, 1, 2, None, None, None, error)


ASKED = [asked("a", "in 512-724 out 128-256"), asked("b", "in 32-45 out 8-16")]


def test_a_good_run_has_no_problem() -> None:
    """
    Everything settled, balanced and finite.
    """
    assert [] == Run(ASKED, {"a": record(), "b": record()}, balance()).problems()


def test_every_fault_is_told() -> None:
    """
    A missing record, a failed request, an imbalance, an answer without tokens: each gets its sentence.
    """
    assert "no settled record" in Run(ASKED, {"a": record()}, balance()).problems()[0]
    failed = [*ASKED, asked("c", "in 1-16 out 1-2", "503 no backend")]
    assert (
        "1 of 3 requests failed, the first with: 503"
        in Run(failed, {"a": record(), "b": record()}, balance()).problems()[0]
    )
    assert "do not add up" in Run(ASKED, {"a": record(), "b": record()}, balance(meter_microjoules=1)).problems()[0]
    assert "not finite" in Run(ASKED, {"a": record(completion=0), "b": record()}, balance()).problems()[0]
    assert "no request was sent" in Run([], {}, balance()).problems()[0]


def test_the_table_fits_eighty_columns() -> None:
    """
    No figure is cut off in a plain terminal.
    """
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary(Run(ASKED, {"a": record(2_345.67, 150_000), "b": record(None, None)}, balance())))
    shown = console.export_text()

    assert "…" not in shown
    assert "512-724→128-256" in shown
    assert "imbalance 0 µJ" in shown
