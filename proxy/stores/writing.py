"""What one writer does inside one transaction: begin its term, apply a batch, retire old rows.

Each batch carries the number after the last one committed, and the transaction moves that number on. So a
batch whose COMMIT got no answer can be sent again: if the number is already there, so is the batch. The same
row fences: a second process that takes the writer's name ends the first one's term, and two processes never
book the same meter twice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, case, func, literal, null, or_, select, text, update

from proxy.accounting.postings import RequestRow
from proxy.stores.batch import Batch
from proxy.stores.engines import inserter
from proxy.stores.schema import (
    ACCOUNTS,
    AMOUNTS,
    NS_PER_HOUR,
    SPREAD,
    TOKENS,
    VERSION,
    accounts,
    meta,
    metadata,
    meters,
    requests,
    retired,
    whole_sum,
    worst,
    writers,
)
from proxy.stores.upgrades import check_version, upgrade

_ROW_FIELDS = tuple(field.name for field in dataclasses.fields(RequestRow))
# Any fixed number: it only keeps two processes from creating the same tables at the same time.
_CREATION_LOCK = 7_064_417


class AlreadyApplied(Exception):
    """The batch is in the books: its first commit worked though its answer was lost."""


class WriterReplaced(Exception):
    """Another process has begun a term under this writer's name; this one's postings are no longer taken."""


class Term(NamedTuple):
    """One process writing under one name. instance: unique to the process."""

    writer: str
    instance: str


def begin_term(connection: Connection, term: Term) -> None:
    """Makes the tables if there are none, takes over the writer's name, settles what its last process left open.

    A ledger of an older version is upgraded. Raises ConfigurationError if its schema is one this program cannot know.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})"))
    metadata.create_all(connection)
    upsert = inserter(connection)
    connection.execute(upsert(meta).values(name="schema", value=VERSION).on_conflict_do_nothing())
    upgrade(connection)
    check_version(connection)
    new_term = {"instance": term.instance, "sequence": 0}
    connection.execute(
        upsert(writers)
        .values(writer=term.writer, **new_term)
        .on_conflict_do_update(index_elements=["writer"], set_=new_term)
    )
    connection.execute(
        update(requests)
        .where(requests.c.writer == term.writer, requests.c.state == "open")
        .values(state="settled", outcome="interrupted")
    )


def apply(connection: Connection, term: Term, sequence: int, batch: Batch) -> None:
    """Writes the batch as number `sequence` of the term.

    Raises AlreadyApplied or WriterReplaced; the transaction must then be rolled back.
    """
    _claim(connection, term, sequence)
    if batch.balances:
        _write_balances(connection, term.writer, batch)
    if batch.rows:
        _write_rows(connection, term.writer, batch)
    if batch.folded:
        _write_folded(connection, term.writer, batch)


def retire(connection: Connection, term: Term, before_unix_ns: int, limit: int) -> int:
    """Moves up to `limit` settled rows that started before then into the hourly totals; returns how many.

    Only the writer's own: nobody else changes them between the sum and the deletion.
    """
    _check_term(connection, term)
    old = (
        requests.c.writer == term.writer,
        requests.c.state == "settled",
        requests.c.started_at_unix_ns < before_unix_ns,
    )
    last = connection.execute(
        select(func.max(select(requests.c.id).where(*old).order_by(requests.c.id).limit(limit).subquery().c.id))
    ).scalar_one()
    if last is None:
        return 0
    gone = (*old, requests.c.id <= last)
    hour = requests.c.started_at_unix_ns // literal(NS_PER_HOUR, requests.c.started_at_unix_ns.type)
    keys = (hour.label("hour"), requests.c.writer, requests.c.backend, requests.c.tenant, requests.c.model)
    sums = (func.count().label("requests"), *(func.sum(requests.c[name]).label(name) for name in AMOUNTS))
    spread = (whole_sum(requests.c[name]).label(name) for name in SPREAD)
    doubts = (*spread, worst(requests.c.grade).label("grade"))
    totals = connection.execute(select(*keys, *sums, *doubts).where(*gone).group_by(*keys)).mappings().all()
    whole = ("hour", "requests", *AMOUNTS)
    plain = [dict(t) | {name: None if t[name] is None else int(t[name]) for name in whole} for t in totals]
    _add(connection, retired, plain, ("requests", *AMOUNTS, *SPREAD, "grade"))
    return connection.execute(requests.delete().where(*gone)).rowcount


def _claim(connection: Connection, term: Term, sequence: int) -> None:
    """Moves the term on to this batch; a gap is accepted.

    A database that was failed over may have forgotten batches, and refusing later ones would not bring them back.
    """
    mine = (writers.c.writer == term.writer, writers.c.instance == term.instance)
    moved = connection.execute(update(writers).where(*mine, writers.c.sequence < sequence).values(sequence=sequence))
    if moved.rowcount == 0:
        _check_term(connection, term)
        raise AlreadyApplied


def _check_term(connection: Connection, term: Term) -> None:
    """Raises WriterReplaced if the term has ended."""
    instance = connection.execute(select(writers.c.instance).where(writers.c.writer == term.writer)).scalar()
    if instance != term.instance:
        raise WriterReplaced(f"another process now writes as {term.writer!r}; give each its own writer name")


def _write_balances(connection: Connection, writer: str, batch: Batch) -> None:
    postings = [(hour, balance) for (hour, _, _), balance in batch.balances.items()]
    booked = [
        {"hour": hour, "writer": writer, "backend": balance.backend, "meter": balance.meter}
        | {name: getattr(balance, name) for name in ACCOUNTS}
        for hour, balance in postings
    ]
    _add(connection, accounts, booked, ACCOUNTS)
    identity = tuple(column.name for column in meters.columns if column.name != "writer")
    newest = {(balance.backend, balance.meter): balance for _, balance in postings}
    known = [{"writer": writer} | {name: getattr(b, name) for name in identity} for b in newest.values()]
    _upsert(connection, meters, known, ("writer", "backend", "meter"))


def _write_rows(connection: Connection, writer: str, batch: Batch) -> None:
    values = [
        {"writer": writer} | {name: _storable(getattr(row, name)) for name in _ROW_FIELDS}
        for row in batch.rows.values()
    ]
    _upsert(connection, requests, values, ("row",))


def _write_folded(connection: Connection, writer: str, batch: Batch) -> None:
    totals = [
        {"writer": writer}
        | {name: _storable(value) for name, value in dataclasses.asdict(key).items()}
        | total
        | {"grade": batch.folded_grades[key]}
        for key, total in batch.folded.items()
    ]
    _add(connection, retired, totals, ("requests", *AMOUNTS, *SPREAD, "grade"))


def _storable(value: object) -> object:
    """Text as both databases take it: PostgreSQL refuses NUL, and neither can encode half a surrogate pair.

    Clients choose request ids and model names; one such name must not stop the books.
    """
    if not isinstance(value, str) or (value.isascii() and "\0" not in value):
        return value
    return value.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")


def _upsert(connection: Connection, table: Table, values: Sequence[dict[str, Any]], keys: tuple[str, ...]) -> None:
    statement = inserter(connection)(table)
    changed = {name: statement.excluded[name] for name in values[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=changed), list(values))


def _add(connection: Connection, table: Table, values: Sequence[dict[str, Any]], amounts: Sequence[str]) -> None:
    """Adds the amounts to what the table has under the same primary key.

    Unknown tokens add nothing; an unknown doubt or grade makes that of the sum unknown. Of grades the worst stays.
    """
    statement = inserter(connection)(table)
    added: dict[str, ColumnElement[Any]] = {}
    for name in amounts:
        old, new = table.c[name], statement.excluded[name]
        if name == "grade":
            added[name] = case((or_(old.is_(None), new.is_(None)), null()), (old > new, old), else_=new)
        else:
            added[name] = func.coalesce(old + new, old, new) if name in TOKENS else old + new
    keys = [column.name for column in table.primary_key]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=added), list(values))
