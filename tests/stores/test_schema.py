"""The tables: they refuse what breaks the law; an older ledger is upgraded, an unknown one left alone."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, inspect, text, update
from sqlalchemy.exc import IntegrityError

from proxy.errors import ConfigurationError
from proxy.stores import open_books, open_store
from proxy.stores.engines import database_url
from proxy.stores.schema import ACCOUNTS, SPREAD, accounts, metadata, requests
from tests.stores.examples import HOUR_NS, NOON_NS, doubtful, imbalances, paid, request_row

WAIT_S = 20.0


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
    values |= {"id": 1, "stream": True, "estimated": False}
    values |= {column.name: None for column in requests.columns if column.nullable}

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

    with pytest.raises(ConfigurationError, match="schema version 0, this program knows 3"):
        open_store(url)
    with pytest.raises(ConfigurationError, match="schema version 0, this program knows 3"):
        open_books(url)


ADDED = {
    2: {"meters": ("absolute_uncertainty",), "requests": ("absolute_uncertainty", *SPREAD), "retired": SPREAD},
    3: {"retired": ("grade",)},
}


def as_version(wanted: int, url: str) -> None:
    """Takes away what later versions added, so that the ledger is as that version made it."""
    engine = create_engine(database_url(url))
    with engine.begin() as connection:
        for added in (tables for later, tables in ADDED.items() if later > wanted):
            for table, columns in added.items():
                for column in columns:
                    connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(update(metadata.tables["meta"]).values(value=str(wanted)))
    engine.dispose()


def test_a_ledger_of_version_1_is_upgraded_in_place_and_loses_nothing(url: str) -> None:
    """Its rows, totals, meters and counters are there; what it never knew is unknown, and new rows know it."""
    old = request_row(30)
    with closing(open_store(url)) as ledger:
        ledger.post(paid(old, request_row(4, started_at_unix_ns=NOON_NS - 2 * HOUR_NS), last_counter_uj=77))
        assert ledger.flush(WAIT_S)
        assert ledger.retire(NOON_NS - HOUR_NS, WAIT_S)
    as_version(1, url)

    for _ in range(2):
        with closing(open_store(url)) as ledger:
            assert ledger.request("req-1") == (old, 1)
            assert ledger.last_counter("nvml:GPU-0", "boot-1") == 77
            assert [(t.energy_uj, t.requests, t.relative_uncertainty) for t in ledger.summary("tenant")] == [
                (34, 2, None)
            ]
            assert [meter.absolute_uncertainty for meter in ledger.meters()["b0"]] == [None]
            assert imbalances(ledger) == [(0, 0)]

    new = doubtful(request_row(1_000_000, tenant="new", request_id="new"), noise_j2=0.01)
    with closing(open_store(url)) as ledger:
        ledger.post(paid(new))
        assert ledger.flush(WAIT_S)
        assert ledger.request("new") == (new, 1)
        assert [t.relative_uncertainty for t in ledger.summary("tenant")] == [pytest.approx(0.1), None]


def test_totals_of_version_2_keep_their_doubts_and_have_no_grade(url: str) -> None:
    """Nobody wrote down what grade their requests had; a total made anew knows it, together they do not."""
    old = doubtful(request_row(1_000_000, started_at_unix_ns=NOON_NS - 2 * HOUR_NS), noise_j2=0.01)
    with closing(open_store(url)) as ledger:
        ledger.post(paid(old))
        assert ledger.flush(WAIT_S)
        assert ledger.retire(NOON_NS - HOUR_NS, WAIT_S)
    as_version(2, url)

    new = doubtful(request_row(1_000_000, started_at_unix_ns=NOON_NS), noise_j2=0.01)
    with closing(open_store(url)) as ledger:
        ledger.post(paid(new))
        assert ledger.flush(WAIT_S)
        grades = {total.keys[0]: total.grade for total in ledger.summary("hour")}
        assert [None, "B"] == [grades[hour] for hour in sorted(grades)]
        (total,) = ledger.summary("tenant")
        assert (total.grade, total.relative_uncertainty) == (None, pytest.approx(0.02**0.5 / 2))
        assert ledger.retire(NOON_NS + HOUR_NS, WAIT_S)
        assert grades == {total.keys[0]: total.grade for total in ledger.summary("hour")}
        assert imbalances(ledger) == [(0, 0)]


@pytest.mark.parametrize("version", [1, 2])
def test_an_upgraded_ledger_has_the_columns_of_a_new_one(version: int, url: str) -> None:
    """Same names and kinds in every table; their order does not matter."""
    open_store(url).close()
    engine = create_engine(database_url(url))

    def columns() -> dict[str, set[tuple[str, str, bool]]]:
        found = inspect(engine)
        return {
            table: {(c["name"], str(c["type"]), bool(c["nullable"])) for c in found.get_columns(table)}
            for table in metadata.tables
        }

    made = columns()
    as_version(version, url)
    assert columns() != made
    open_store(url).close()

    assert columns() == made
    engine.dispose()


def test_a_reader_does_not_upgrade_a_ledger_but_says_what_does(url: str) -> None:
    open_store(url).close()
    as_version(1, url)

    with pytest.raises(ConfigurationError, match="schema version 1; `jouleproxy serve` upgrades it to 3"):
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
