"""Reads the ledger: requests, sums, and the balance computed from the tables. Never writes.

Every method is one read transaction and sees one state of the books. Times are wall-clock nanoseconds since
1970; ranges are half open. Deleted rows and the accounts are known by whole hours, and belong to a range if
their hour starts in it, so the sums of adjoining ranges add up.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, literal, select, union_all
from sqlalchemy.exc import OperationalError

from proxy.accounting.postings import RequestRow
from proxy.accounting.uncertainty import standard_deviation, widest
from proxy.errors import LedgerUnavailable
from proxy.stores.schema import (
    ACCOUNTS,
    AMOUNTS,
    NS_PER_HOUR,
    SPREAD,
    accounts,
    meters,
    requests,
    retired,
    whole_sum,
    worst,
)
from proxy.stores.sums import Accounts, BackendBalance, MeterIdentity, Total, known_sum, whole_doubt, worst_grade

Key = Literal["hour", "backend", "tenant", "model"]
_ROW_COLUMNS = tuple(column for column in requests.columns if column.name not in {"id", "writer"})


class Books:
    """The ledger as its readers see it; usable from any thread."""

    def __init__(self, reading: Engine) -> None:
        self._reading = reading

    def request(self, request_id: str, tenant: str | None = None) -> tuple[RequestRow | None, int]:
        """The newest request of that id (and tenant), and how many bear it."""
        mine = [requests.c.request_id == request_id]
        if tenant is not None:
            mine.append(requests.c.tenant == tenant)
        with self._read() as connection:
            count = connection.execute(select(func.count()).select_from(requests).where(*mine)).scalar_one()
            newest = connection.execute(_newest(mine, 1)).one_or_none()
        return (_row(newest) if newest is not None else None), count

    def requests(self, since_unix_ns: int | None, limit: int, tenant: str | None = None) -> list[RequestRow]:
        """Up to `limit` requests that started at or after then, newest first."""
        wanted = []
        if since_unix_ns is not None:
            wanted.append(requests.c.started_at_unix_ns >= since_unix_ns)
        if tenant is not None:
            wanted.append(requests.c.tenant == tenant)
        with self._read() as connection:
            return [_row(found) for found in connection.execute(_newest(wanted, limit))]

    def summary(
        self, by: Key, since: int | None = None, until: int | None = None, tenant: str | None = None
    ) -> list[Total]:
        """Sums by one key, most energy first; an hour is its number since 1970, as text."""
        return self.totals((by,), since, until, tenant)

    def totals(
        self, by: Sequence[Key], since: int | None = None, until: int | None = None, tenant: str | None = None
    ) -> list[Total]:
        """Sums by several keys at once, most energy first."""
        both = union_all(_kept(since, until, tenant), _retired(since, until, tenant)).subquery()
        keys = [both.c[key] for key in by]
        sums: list[ColumnElement[Any]] = [func.sum(both.c[name]) for name in ("requests", *AMOUNTS)]
        sums += [*(whole_sum(both.c[name]) for name in SPREAD), worst(both.c.grade), both.c.backend]
        groups = dict.fromkeys((*by, "backend"))
        with self._read() as connection:
            found = connection.execute(select(*keys, *sums).group_by(*(both.c[name] for name in groups))).all()
            known = _meters(connection)
        gains = {name: widest(meter.absolute_uncertainty for meter in of_it) for name, of_it in known.items()}
        of_backends = defaultdict(list)
        for row in found:
            of_backends[tuple(str(part) for part in row[: len(keys)])].append(row[len(keys) :])
        totals = [_total(same_keys, backends, gains) for same_keys, backends in of_backends.items()]
        return sorted(totals, key=lambda total: (-total.energy_uj, total.keys))

    def accounts(
        self, by: Sequence[Literal["hour", "backend"]], since: int | None = None, until: int | None = None
    ) -> dict[tuple[str, ...], Accounts]:
        """Where the meters' energy went, by backend, by hour or by both."""
        keys = [accounts.c[key] for key in by]
        hours = _in_range(accounts.c.hour * literal(NS_PER_HOUR, accounts.c.hour.type), since, until)
        with self._read() as connection:
            return _accounts(connection, keys, hours)

    def meters(self) -> dict[str, tuple[MeterIdentity, ...]]:
        """The meters of each backend."""
        with self._read() as connection:
            return _meters(connection)

    def balance(self) -> list[BackendBalance]:
        """Every backend's books since they began, by name; each imbalance is computed, not assumed."""
        kept = select(requests.c.backend, requests.c.energy_uj)
        both = union_all(kept, select(retired.c.backend, retired.c.energy_uj)).subquery()
        rows = select(both.c.backend, func.sum(both.c.energy_uj)).group_by(both.c.backend)
        with self._read() as connection:
            rows_uj = {str(backend): int(energy) for backend, energy in connection.execute(rows)}
            booked = _accounts(connection, [accounts.c.backend], [])
            known = _meters(connection)
        return [
            BackendBalance(
                backend=backend,
                meters=known.get(backend, ()),
                accounts=booked.get((backend,), Accounts()),
                rows_uj=rows_uj.get(backend, 0),
            )
            for backend in sorted({backend for (backend,) in booked} | set(rows_uj))
        ]

    @contextmanager
    def snapshot(self) -> Iterator["Books"]:
        """The books as they are now, for several questions that must agree."""
        with self._read() as connection:
            yield _Snapshot(self._reading, connection)

    def close(self) -> None:
        """Gives the connections back; reading afterwards opens new ones."""
        self._reading.dispose()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._reading.begin() as connection:
                yield connection
        except OperationalError as error:
            raise LedgerUnavailable(
                f"The ledger's database does not answer ({error.orig}); try again later."
            ) from error


class _Snapshot(Books):
    def __init__(self, reading: Engine, connection: Connection) -> None:
        super().__init__(reading)
        self._connection = connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        yield self._connection


def _newest(wanted: Sequence[ColumnElement[bool]], limit: int) -> Select[Any]:
    newest_first = (requests.c.started_at_unix_ns.desc(), requests.c.id.desc())
    return select(*_ROW_COLUMNS).where(*wanted).order_by(*newest_first).limit(limit)


def _row(found: Any) -> RequestRow:
    return RequestRow(**found._mapping)


def _total(keys: tuple[str, ...], backends: Sequence[Sequence[Any]], gains: Mapping[str, float | None]) -> Total:
    # PostgreSQL sums whole numbers into decimals.
    amounts = {
        name: known_sum(None if row[n] is None else int(row[n]) for row in backends)
        for n, name in enumerate(("requests", *AMOUNTS))
    }
    doubts = [row[len(amounts) : -2] for row in backends]
    sigmas = [None if None in parts else 1e6 * standard_deviation(*parts) for parts in doubts]
    return Total(
        keys=keys,
        uncertainty_uj=whole_doubt(sigmas),
        absolute_uncertainty=widest(gains.get(str(row[-1])) for row in backends),
        grade=worst_grade(row[-2] for row in backends),
        **amounts,  # type: ignore[arg-type]  # only tokens
    )


def _in_range(when: ColumnElement[int], since: int | None, until: int | None) -> list[ColumnElement[bool]]:
    wanted = []
    if since is not None:
        wanted.append(when >= since)
    if until is not None:
        wanted.append(when < until)
    return wanted


def _kept(since: int | None, until: int | None, tenant: str | None) -> Select[Any]:
    start = requests.c.started_at_unix_ns
    wanted = _in_range(start, since, until)
    if tenant is not None:
        wanted.append(requests.c.tenant == tenant)
    hour = (start // literal(NS_PER_HOUR, start.type)).label("hour")
    one = literal(1, start.type).label("requests")
    amounts = (requests.c[name] for name in (*AMOUNTS, *SPREAD, "grade"))
    return select(hour, requests.c.backend, requests.c.tenant, requests.c.model, one, *amounts).where(*wanted)


def _retired(since: int | None, until: int | None, tenant: str | None) -> Select[Any]:
    wanted = _in_range(retired.c.hour * literal(NS_PER_HOUR, retired.c.hour.type), since, until)
    if tenant is not None:
        wanted.append(retired.c.tenant == tenant)
    keys = (retired.c.hour, retired.c.backend, retired.c.tenant, retired.c.model, retired.c.requests)
    return select(*keys, *(retired.c[name] for name in (*AMOUNTS, *SPREAD, "grade"))).where(*wanted)


def _accounts(
    connection: Connection, keys: Sequence[ColumnElement[Any]], wanted: Sequence[ColumnElement[bool]]
) -> dict[tuple[str, ...], Accounts]:
    sums = [func.sum(accounts.c[name]) for name in ACCOUNTS]
    found = connection.execute(select(*keys, *sums).where(*wanted).group_by(*keys)).all()
    return {
        tuple(str(part) for part in row[: len(keys)]): Accounts(
            **{name: int(amount) for name, amount in zip(ACCOUNTS, row[len(keys) :], strict=True)}
        )
        for row in found
    }


def _meters(connection: Connection) -> dict[str, tuple[MeterIdentity, ...]]:
    c = meters.c
    names = ("meter", "gpu", "kind", "estimated", "description", "absolute_uncertainty")
    known = connection.execute(select(c.backend, *(c[name] for name in names)).order_by(c.backend, c.meter))
    by_backend = defaultdict(list)
    for backend, *identity in known:
        by_backend[backend].append(MeterIdentity(**dict(zip(names, identity, strict=True))))
    return {backend: tuple(found) for backend, found in by_backend.items()}
