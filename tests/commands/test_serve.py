"""`jouleproxy serve`: what it says when it begins."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from proxy.commands.serve import banner


def shown(ledger: str = "ledger.db", model: str = "m", description: str = "a test") -> str:
    meter = SimpleNamespace(kind="recorded", gpu="GPU-1", description=description, estimated=False)
    service: Any = SimpleNamespace(
        pool=SimpleNamespace(members={"b": SimpleNamespace(up=True, models=frozenset({model}))}),
        meters={"b": [meter]},
        settings=SimpleNamespace(policy="weighted", ledger=ledger),
        step_logs=SimpleNamespace(paths={"b": "/run/steps"}),
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(banner(service, "http://127.0.0.1:8080", "http://127.0.0.1:9464"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_banner_has_no_password() -> None:
    """It ends up in logs."""
    text = shown(ledger="postgresql://joule:secret@db/books")

    assert "secret" not in text
    assert "joule:***@db/books" in text


def test_square_brackets_in_names_are_shown() -> None:
    """An engine's or a device's words are words and no markup."""
    text = shown(model="tuned[red]", description="board [b]7[/b] [/]")

    assert "tuned[red]" in text
    assert "board [b]7[/b] [/]" in text
