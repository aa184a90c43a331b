"""Ledger URLs: which are understood, which are refused, and what the refusal says."""

from pathlib import Path

import pytest

from proxy.errors import ConfigurationError
from proxy.stores import open_books, open_store
from proxy.stores.engines import database_url, shown_url


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("books.db", "sqlite"),
        ("sqlite:///books.db", "sqlite"),
        ("postgresql://joule@db/books", "postgresql+psycopg"),
        ("postgresql+psycopg://joule@db/books", "postgresql+psycopg"),
    ],
)
def test_a_file_name_or_a_url_of_either_database_is_understood(given: str, driver: str) -> None:
    assert database_url(given).drivername == driver


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("mysql://db/books", "mysql is not supported"),
        ("sqlite://", "SQLite needs a file"),
        ("sqlite:///:memory:", "SQLite needs a file"),
        ("://", "is not a database URL"),
    ],
)
def test_what_cannot_keep_books_is_refused_with_the_reason(given: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        database_url(given)


def test_reading_a_ledger_that_is_not_there_is_refused_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        open_books(str(tmp_path / "none.db"))

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none/ledger\.db cannot be used: .*unable to open database file"):
        open_store(str(tmp_path / "none" / "ledger.db"))


def test_a_password_is_not_shown_when_the_database_cannot_be_reached() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        open_store("postgresql://joule:secret@127.0.0.1:1/books")

    assert "secret" not in str(refusal.value)
    assert "127.0.0.1" in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("books.db", "sqlite:///books.db"),
        ("postgresql://joule:secret@db/books", "postgresql+psycopg://joule:***@db/books"),
        ("postgresql://db/books?user=joule&password=secret", "postgresql+psycopg://db/books?user=joule"),
    ],
)
def test_a_shown_url_has_no_password(given: str, shown: str) -> None:
    assert shown_url(database_url(given)) == shown


@pytest.mark.parametrize("given", ["postgresql://joule:secret@db:port/books", "postgresql:/://joule:secret"])
def test_a_url_that_is_none_is_not_repeated(given: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a database URL") as refusal:
        database_url(given)

    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None
