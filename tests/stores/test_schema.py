"""The tables: they refuse what breaks the law, and a ledger of another version is left alone."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, inspect, text, update
from sqlalchemy.exc import IntegrityError

from proxy.errors import ConfigurationError
from proxy.stores import open_books, open_store
from proxy.stores.engines import database_url
from proxy.stores.schema import ACCOUNTS, accounts, metadata, requests


def test_the_database_itself_refuses_accounts_that_miss_the_meter(url: str) -> None:
    open_store(url).close()
    engine = create_engine(database_url(url))
    values: dict[str, Any] = {"hour": 1, "writer": "w", "backend": "b", "meter": "m"} | dict.fromkeys(ACCOUNTS, 5)

    with pytest.raises(IntegrityError, match="the_law"), engine.begin() as connection:
        connection.execute(insert(accounts).values(values))
    engine.dispose()


def test_the_database_itself_refuses_phases_that_miss_the_energy(url: str) -> None:
    open_store(url).close()
    engine = create_engine(database_url(url))
    values: dict[str, Any] = {
        column.name: 5 if column.name.endswith(("_uj", "_ns")) else "x" for column in requests.columns
    }
    values |= {"id": 1, "stream": True, "estimated": False, "relative_uncertainty": None, "http_status": None}
    values |= dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"))

    with pytest.raises(IntegrityError, match="phases_add_up"), engine.begin() as connection:
        connection.execute(insert(requests).values(values))
    engine.dispose()


def test_energy_and_time_are_whole_numbers_of_64_bits(url: str) -> None:
    """Nine terajoules in microjoules fit; a float would lose the last digit from nine gigajoules on."""
    open_store(url).close()
    engine = create_engine(database_url(url))
    columns = inspect(engine)
    kinds = {
        str(column["type"])
        for table in metadata.tables
        for column in columns.get_columns(table)
        if column["name"].endswith(("_uj", "_ns", "_tokens"))
    }
    engine.dispose()

    assert kinds == {"BIGINT"}


def test_opening_twice_keeps_what_is_there(url: str) -> None:
    open_store(url).close()
    open_store(url).close()

    with closing(open_books(url)) as books:
        assert books.balance() == []


def test_a_ledger_of_another_schema_version_is_refused_by_writer_and_reader(url: str) -> None:
    open_store(url).close()
    engine = create_engine(database_url(url))
    with engine.begin() as connection:
        connection.execute(update(metadata.tables["meta"]).values(value="0"))
    engine.dispose()

    with pytest.raises(ConfigurationError, match="schema version 0, this program knows 1"):
        open_store(url)
    with pytest.raises(ConfigurationError, match="schema version 0, this program knows 1"):
        open_books(url)


def test_a_database_that_is_no_ledger_is_refused_by_the_reader(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE something (x INTEGER)"))
    engine.dispose()

    with pytest.raises(ConfigurationError, match=r"other\.db cannot be used: .*no such table: meta"):
        open_books(str(tmp_path / "other.db"))


def test_sqlite_keeps_every_commit_on_disk_and_lets_readers_read_meanwhile(tmp_path: Path) -> None:
    with closing(open_store(str(tmp_path / "ledger.db"))) as ledger, ledger._writing.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

    assert pragmas == ["wal", 2]
