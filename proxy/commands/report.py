"""`jouleproxy report`: reads a ledger, says whose the joules were, and shows that they add up to the meter."""

import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer
from rich.console import Console

from proxy.commands.idle import Idle, reservations
from proxy.commands.rendering import as_csv, as_json, as_table
from proxy.commands.statement import Statement, draw_up
from proxy.errors import ConfigurationError
from proxy.stores import open_books
from proxy.stores.books import Key
from proxy.stores.schema import NS_PER_HOUR

_HOURS = {"h": 1, "d": 24, "w": 168}
_PAPER_WIDTH = 160
"""Columns of a table that does not go to a terminal; a narrower one would cut figures off."""


def report(
    ledger: Annotated[
        str,
        typer.Option(
            envvar="JOULEPROXY_LEDGER", help="Where the books are: sqlite:///FILE or postgresql://USER@HOST/DATABASE."
        ),
    ] = "sqlite:///jouleproxy.db",
    by: Annotated[Key, typer.Option(help="Who or what the joules are counted for.")] = "tenant",
    since: Annotated[
        str | None,
        typer.Option(help="First hour: RFC 3339 date or time (UTC if it names no zone), or an age as 24h, 7d, 2w."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="First hour that is no longer counted; the same forms.")] = None,
    output_format: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="For people, spreadsheets or programs.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(help="File to write; without it, standard output.")] = None,
    idle: Annotated[
        Idle,
        typer.Option(
            help="Who pays for idle energy. separate: it keeps its own line. proportional, per-token: the requests of "
            "the same backend, by their active energy or by their prompt and output tokens. reserved: tenants, as "
            "--reserve says. The active and the fully loaded figure are always both shown."
        ),
    ] = "separate",
    reserve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TENANT=PART",
            help="For --idle reserved: the part of every backend that is held ready for a tenant, for instance "
            "search=0.5; may be given several times. Idle that nobody reserved stays in its own line.",
        ),
    ] = None,
) -> None:
    """Say whose the joules were; the lines add up to the meter exactly.

    Times are taken down to the whole hour, so that reports of adjoining ranges add up. Ends with status 1 if the
    books do not balance, which is a fault of this program.
    """
    now = time.time_ns()
    first, end = _hour("--since", since, now), _hour("--until", until, now)
    reserved = _reserved(idle, by, reserve or [])
    try:
        books = open_books(ledger)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--ledger") from error
    try:
        statement = draw_up(books, by, first, end, idle, reserved)
    finally:
        books.close()
    _write(statement, f"Energy by {by}, {_range(first, end)}", output_format, output)
    if statement.imbalance_uj:
        raise typer.Exit(1)


def _reserved(idle: Idle, by: Key, texts: list[str]) -> dict[str, int]:
    if (idle == "reserved") != bool(texts):
        raise typer.BadParameter("--idle reserved and --reserve TENANT=PART need each other", param_hint="--reserve")
    if idle == "reserved" and by == "model":
        message = "what is reserved is reserved for a tenant, not for a model; use --by tenant, backend or hour"
        raise typer.BadParameter(message, param_hint="--by")
    try:
        return reservations(texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--reserve") from error


def hour_of(text: str, now_unix_ns: int) -> int:
    """The start of the hour that `text` lies in, in nanoseconds since 1970.

    Takes a date, a time (both RFC 3339; UTC if no zone is named), or an age before now: 24h, 7d, 2w.
    Raises ValueError for anything else.
    """
    age = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if age:
        at_ns = now_unix_ns - int(age[1]) * _HOURS[age[2]] * NS_PER_HOUR
    else:
        moment = datetime.fromisoformat(text.strip())
        at_ns = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000
    return at_ns // NS_PER_HOUR * NS_PER_HOUR


def _hour(option: str, text: str | None, now_unix_ns: int) -> int | None:
    if text is None:
        return None
    try:
        return hour_of(text, now_unix_ns)
    except ValueError as error:
        message = f"{text!r} is neither a date, a time (2026-01-31T12:00Z) nor an age (24h, 7d, 2w)"
        raise typer.BadParameter(message, param_hint=option) from error


def _range(since: int | None, until: int | None) -> str:
    first, end = (
        None if at_ns is None else datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%MZ")
        for at_ns in (since, until)
    )
    if first is None and end is None:
        return "since the books began"
    return f"{first or 'the beginning'} to {end or 'now'}"


def _write(statement: Statement, title: str, output_format: str, output: Path | None) -> None:
    if output is None:
        _write_to(sys.stdout, statement, title, output_format)
        return
    try:
        with output.open("w", encoding="utf-8", newline="") as file:
            _write_to(file, statement, title, output_format)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error


def _write_to(file: TextIO, statement: Statement, title: str, output_format: str) -> None:
    if output_format == "table":
        console = Console(file=file, width=None if file.isatty() else _PAPER_WIDTH)
        as_table(statement, title, console)
        return
    file.write(as_csv(statement) if output_format == "csv" else as_json(statement))
