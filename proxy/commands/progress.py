"""One live line for what a command does now; what it has done stays above it with the time it took."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_EVERY_S = 10.0


class Stage:
    """One live line with a word about how far it is; without a terminal a plain line now and then."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[word]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console

    def run(self, what: str, total_s: float | None = None) -> "Stage":
        """Names the next step, for a `with`. total_s: how long it takes where that is known."""
        self._what = what
        self._said_s = 0.0
        self._task = self._progress.add_task(what, total=total_s, word="")
        return self

    def __enter__(self) -> "Stage":
        self._began = time.monotonic()
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._progress.stop()
        self._progress.remove_task(self._task)
        if kind is None:
            self._console.print(f"[green]✓[/] {self._what} [dim]{time.monotonic() - self._began:.0f} s[/]")

    def tell(self, elapsed_s: float, word: str = "") -> None:
        """Says how far it is."""
        self._progress.update(self._task, completed=elapsed_s, word=word)
        if not self._console.is_terminal and elapsed_s - self._said_s >= PLAIN_EVERY_S:
            self._said_s = elapsed_s
            self._console.print(f"… {self._what}, {elapsed_s:.0f} s  {word}", soft_wrap=True)
