"""Copies a store's tables from a SQLite file into PostgreSQL, type by type, and proves by sums that all of it arrived.

Used by the move to PostgreSQL and by the restore of a backup into it. Whoever calls owns the transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    String,
    Table,
    delete,
    func,
    select,
    text,
)

from app.db import inventory_tables  # noqa: F401 - so that the metadata below knows all tables
from app.db.jobstore_tables import nodes
from app.db.migrate import METADATA, Store
from app.services.operations.failure import OperationFailed

NOT_COPIED = frozenset({nodes.name})
"""Tables that say what lives now: the schedulers on PostgreSQL write their own rows."""

_ROWS_AT_ONCE = 2000
_TOLD_EVERY = 100_000  # rows
_SHOWN_MISFITS = 5

Tell = Callable[[str], None]
Values = tuple[Any, ...]


@dataclass(frozen=True)
class Sum:
    """How many rows a table has, and a checksum over all of them that does not depend on their order."""

    rows: int
    checksum: str


@dataclass
class SqliteSource:
    """A SQLite store that is read, through a connection whose transaction keeps writers away. `sums`: by table, as
    `take_sums` found them."""

    store: Store
    file: Path
    connection: Connection
    sums: dict[str, Sum] = field(default_factory=dict)

    def take_sums(self) -> None:
        """Reads every table that is copied; OperationFailed where a value would not fit into PostgreSQL's column."""
        self.sums = {table.name: _checked_sum(self, table) for table in tables_of(self.store)}


def tables_of(store: Store) -> list[Table]:
    """Every table of a store that is copied, in an order in which rows may refer to rows before them."""
    return [table for table in METADATA[store].sorted_tables if table.name not in NOT_COPIED]


def lift_limits(connection: Connection) -> None:
    """A copy may take longer than any statement of the app."""
    for limit in ("idle_in_transaction_session_timeout", "statement_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = 0"))


def _rows(connection: Connection, table: Table) -> Iterator[Values]:
    """The rows of a table as the driver gives them, in the table's order of columns, without holding all of them."""
    quote = connection.dialect.identifier_preparer.quote
    columns = ", ".join(quote(column.name) for column in table.columns)
    statement = f"SELECT {columns} FROM {quote(table.name)}"  # noqa: S608 - names of our own tables
    options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
    for row in connection.exec_driver_sql(statement, execution_options=options):
        yield tuple(row)


def _canonical(table: Table) -> Callable[[Values], Values]:
    """Turns a row of either database into what PostgreSQL holds.

    SQLite has no booleans, and its texts may hold a NUL, which PostgreSQL cannot store: it is written out.
    """
    flags = [index for index, column in enumerate(table.columns) if isinstance(column.type, Boolean)]
    texts = [index for index, column in enumerate(table.columns) if isinstance(column.type, String)]

    def canonical(row: Values) -> Values:
        values = list(row)
        for index in flags:
            if values[index] in (0, 1):
                values[index] = bool(values[index])
        for index in texts:
            if isinstance(values[index], str) and "\0" in values[index]:
                values[index] = values[index].replace("\0", "\\x00")
        return tuple(values)

    return canonical


class _Summing:
    """Adds rows up: the sum of their SHA-256, so that no order is needed; each row has its key, so none is twice."""

    def __init__(self) -> None:
        self.rows = 0
        self._total = 0

    def add(self, row: Values) -> None:
        digest = hashlib.sha256(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())
        self._total = (self._total + int.from_bytes(digest.digest())) % 2**256
        self.rows += 1

    def result(self) -> Sum:
        return Sum(self.rows, f"{self._total:064x}")


def sum_of(connection: Connection, table: Table) -> Sum:
    """The sum of a table, in either database, from its rows as they are read now."""
    canonical, summing = _canonical(table), _Summing()
    for row in _rows(connection, table):
        summing.add(canonical(row))
    return summing.result()


def _checked_sum(source: SqliteSource, table: Table) -> Sum:
    """The same of a SQLite table; OperationFailed where a value would not fit into PostgreSQL's column."""
    canonical, summing, misfits = _canonical(table), _Summing(), []
    checks = [(index, column, _fits(column)) for index, column in enumerate(table.columns)]
    keys = [index for index, column in enumerate(table.columns) if column.primary_key]
    for raw in _rows(source.connection, table):
        row = canonical(raw)
        for index, column, fits in checks:
            value = row[index]
            if not (column.nullable if value is None else fits(value)):
                key = ", ".join(str(row[index]) for index in keys)
                misfits.append(f"{table.name}.{column.name} of {key!r} ({_described(value)})")
        if misfits:
            continue
        summing.add(row)
    if misfits:
        shown = "; ".join(misfits[:_SHOWN_MISFITS])
        more = f"; and {len(misfits) - _SHOWN_MISFITS} more" if len(misfits) > _SHOWN_MISFITS else ""
        raise OperationFailed(
            f"{source.file} holds values that do not fit into PostgreSQL's columns: {shown}{more}. Nothing was changed;"
            " correct them, or delete these rows, and try again"
        )
    return summing.result()


def _fits(column: Column[Any]) -> Callable[[Any], bool]:
    kind = column.type
    if isinstance(kind, Boolean):
        return lambda value: isinstance(value, bool)
    if isinstance(kind, Integer):
        bits = 63 if isinstance(kind, BigInteger) else 31
        return lambda value: isinstance(value, int) and -(2**bits) <= value < 2**bits
    if isinstance(kind, Float):
        return lambda value: isinstance(value, float | int)
    if isinstance(kind, String):
        limit = kind.length
        return lambda value: isinstance(value, str) and (limit is None or len(value) <= limit)
    raise TypeError(f"{column}: how {kind!r} is moved is not known; tell it here")


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"{len(value)} characters"
    return f"{type(value).__name__} {value!r}"[:80]


def copy_store(connection: Connection, source: SqliteSource, tell: Tell) -> None:
    """Replaces the store's tables by the source's rows; OperationFailed when PostgreSQL does not take one."""
    tables = tables_of(source.store)
    for table in reversed(tables):
        connection.execute(delete(table))
    for table in tables:
        _copy_table(connection, source, table, tell)


def _copy_table(connection: Connection, source: SqliteSource, table: Table, tell: Tell) -> None:
    canonical = _canonical(table)
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    columns = SQL(", ").join(Identifier(column.name) for column in table.columns)
    rows = 0
    try:
        with driver.cursor() as cursor:
            with cursor.copy(SQL("COPY {} ({}) FROM STDIN").format(Identifier(table.name), columns)) as copy:
                for row in _rows(source.connection, table):
                    copy.write_row(canonical(row))
                    rows += 1
                    if rows % _TOLD_EVERY == 0:
                        tell(f"{table.name}: {rows} of {source.sums[table.name].rows} rows")
            # Or the first queries on a large table would be planned as if it were empty.
            cursor.execute(SQL("ANALYZE {}").format(Identifier(table.name)))
    except psycopg.Error as error:
        raise OperationFailed(
            f"{table.name}: PostgreSQL did not take the rows: {error}; nothing was committed"
        ) from error
    _set_sequence(connection, table)
    tell(f"{table.name}: {rows} rows copied")


def _set_sequence(connection: Connection, table: Table) -> None:
    """What PostgreSQL numbers by itself goes on behind the rows that brought their numbers along."""
    column = table.autoincrement_column
    if column is None:
        return
    highest = connection.execute(select(func.max(column))).scalar_one()
    connection.execute(
        text("SELECT setval(pg_get_serial_sequence(:table, :column), :value, :used)"),
        {"table": table.name, "column": column.name, "value": highest or 1, "used": highest is not None},
    )


def verify_store(connection: Connection, source: SqliteSource, tell: Tell) -> None:
    """Reads the copied tables back; OperationFailed unless row counts and checksums are those of `take_sums`."""
    for table in tables_of(source.store):
        found, wanted = sum_of(connection, table), source.sums[table.name]
        if found != wanted:
            raise OperationFailed(
                f"{table.name}: {found.rows} rows with checksum {found.checksum[:16]} are in PostgreSQL,"
                f" {wanted.rows} with {wanted.checksum[:16]} in {source.file}; nothing was committed"
            )
    tell(f"{source.store}: row counts and checksums of {len(source.sums)} tables agree")
