"""Where the books are kept.

schema.py    the tables; the law as a constraint
engines.py   what differs between SQLite and PostgreSQL
batch.py     postings merged until they are committed
upgrades.py  from older versions of the tables to this one
writing.py   what happens inside one writing transaction
books.py     reading
ledger.py    the writer thread
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from proxy.errors import ConfigurationError
from proxy.stores.books import Books
from proxy.stores.engines import database_url, reading_engine, shown_url, writing_engine
from proxy.stores.ledger import Ledger
from proxy.stores.upgrades import check_version


def open_store(
    url: str, *, writer: str = "main", keep_ns: int | None = None, clock: Callable[[], int] = time.time_ns
) -> Ledger:
    """Opens a ledger for writing; makes it if there is none, upgrades an older one. The arguments are those of Ledger.

    Raises ConfigurationError if the URL is wrong, the database cannot be reached, or its schema is another's.
    """
    where = database_url(url)
    writing = writing_engine(where)
    with _usable(where, writing):
        with writing.connect():  # makes a new SQLite file, which readers would not
            reading = reading_engine(where)
        return Ledger(writing=writing, reading=reading, writer=writer, keep_ns=keep_ns, clock=clock)


def open_books(url: str) -> Books:
    """Opens an existing ledger for reading, also while a proxy writes it.

    Raises ConfigurationError if there is none, it cannot be reached, or its schema is another's.
    """
    where = database_url(url)
    reading = reading_engine(where)
    with _usable(where, reading), reading.begin() as connection:
        check_version(connection)
    return Books(reading)


@contextmanager
def _usable(where: URL, engine: Engine) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        engine.dispose()
        if not isinstance(error, SQLAlchemyError | ConfigurationError):
            raise
        reason = str(error).splitlines()[0]
        shown = shown_url(where)
        raise ConfigurationError(f"the ledger {shown} cannot be used: {reason}") from error
