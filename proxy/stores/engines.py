"""Opens the database behind a ledger URL; everything that differs between SQLite and PostgreSQL is here.

SQLite: write-ahead log, an fsync at every commit (synchronous FULL), readers never wait for the writer.
PostgreSQL: readers see one snapshot (REPEATABLE READ); a dead connection is noticed within seconds.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import ArgumentError

from proxy.errors import ConfigurationError

_POSTGRESQL = {
    "connect_timeout": "5",
    "tcp_user_timeout": "15000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "application_name": "jouleproxy",
    "options": "-c statement_timeout=60000 -c lock_timeout=20000",
}


def database_url(text: str) -> URL:
    """The URL of a ledger: sqlite:///FILE, postgresql://…, or just a file name for SQLite.

    Raises ConfigurationError for anything else, and for SQLite in memory, where nothing would be kept.
    """
    try:
        url = make_url(text if "://" in text else f"sqlite:///{text}")
    except (ArgumentError, ValueError):  # the text may hold a password, and the error holds the text
        raise ConfigurationError("ledger: this is not a database URL; use sqlite:///FILE or postgresql://…") from None
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "postgresql+psycopg"}:
        raise ConfigurationError(f"ledger: {url.drivername} is not supported; use sqlite:///FILE or postgresql://…")
    if url.drivername == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigurationError("ledger: SQLite needs a file, for instance sqlite:///jouleproxy.db")
    return url


def shown_url(url: URL) -> str:
    """A ledger's URL as people and logs may see it, without its password."""
    return url.difference_update_query(["password"]).render_as_string(hide_password=True)


def writing_engine(url: URL, *, busy_timeout_s: float = 5.0) -> Engine:
    """One connection, for the one writer. Connects only when used."""
    if url.drivername == "sqlite":
        return _sqlite(url, busy_timeout_s, begin="BEGIN IMMEDIATE", pragmas=("journal_mode=WAL", "synchronous=FULL"))
    return _postgresql(url, pool_size=1, max_overflow=0)


def reading_engine(url: URL, *, busy_timeout_s: float = 5.0) -> Engine:
    """A few connections that see one snapshot per transaction and cannot write.

    Raises ConfigurationError if there is no such SQLite file: a reader must not create one.
    """
    if url.drivername == "sqlite":
        if not Path(str(url.database)).is_file():
            raise ConfigurationError(f"ledger: there is no file {url.database}")
        return _sqlite(url, busy_timeout_s, begin="BEGIN", pragmas=("query_only=ON",))
    return _postgresql(
        url, isolation_level="REPEATABLE READ", pool_pre_ping=True, execution_options={"postgresql_readonly": True}
    )


def inserter(connection: Connection) -> Any:
    """The dialect's insert(), the one that knows ON CONFLICT; both have the same methods but no common type."""
    return sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert


def _postgresql(url: URL, **options: Any) -> Engine:
    try:
        chosen = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
        return create_engine(url, connect_args=chosen, **options)
    except ImportError as error:
        raise ConfigurationError("ledger: PostgreSQL needs `pip install jouleproxy[postgres]`") from error


def _sqlite(url: URL, busy_timeout_s: float, *, begin: str, pragmas: tuple[str, ...]) -> Engine:
    engine = create_engine(url, connect_args={"timeout": busy_timeout_s})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        # The driver would begin transactions by itself, and never for a SELECT: no snapshot over two queries.
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
