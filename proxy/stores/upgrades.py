"""Brings a ledger of an older version up to this program's, in place and without losing a row.

Every version so far only added columns that may be absent, so an upgrade is one ALTER TABLE for each that is not
there yet. It happens in the transaction in which a writer begins its term: done wholly or not at all.
"""

from sqlalchemy import Column, Connection, Table, inspect, select, update
from sqlalchemy.schema import CreateColumn

from proxy.errors import ConfigurationError
from proxy.stores.schema import VERSION, meta, metadata

OLDER = frozenset({"1", "2"})
"""Versions that can be upgraded."""


def version(connection: Connection) -> str | None:
    """What the ledger says of itself."""
    return connection.execute(select(meta.c.value).where(meta.c.name == "schema")).scalar_one_or_none()


def check_version(connection: Connection) -> None:
    """Raises ConfigurationError unless the ledger has the schema this program knows."""
    found = version(connection)
    if found in OLDER:
        raise ConfigurationError(f"schema version {found}; `jouleproxy serve` upgrades it to {VERSION} when it starts")
    if found != VERSION:
        raise ConfigurationError(f"schema version {found}, this program knows {VERSION}")


def upgrade(connection: Connection) -> None:
    """Adds the columns an older ledger lacks; one of this version or of an unknown one is left as it is."""
    if version(connection) not in OLDER:
        return
    tables = inspect(connection)
    for table in metadata.sorted_tables:
        there = {column["name"] for column in tables.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                _add_column(connection, table, column)
    connection.execute(update(meta).where(meta.c.name == "schema").values(value=VERSION))


def _add_column(connection: Connection, table: Table, column: Column[object]) -> None:
    name = connection.dialect.identifier_preparer.format_table(table)
    connection.exec_driver_sql(
        f"ALTER TABLE {name} ADD COLUMN {CreateColumn(column).compile(dialect=connection.dialect)}"
    )
