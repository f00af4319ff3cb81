"""Rows for every table that the app knows, with what is hard to carry from one database to another."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, String, Table, insert, select
from sqlalchemy.engine import Engine

from app.db import account_tables, inventory_tables, jobstore_tables  # noqa: F401 - they fill METADATA
from app.db.engines import write_transaction
from app.db.migrate import METADATA, Store

ROWS = 40
#: Other scripts, quotes, separators of COPY, a NUL, an astral character.
AWKWARD = ("数据", "tab\there", "new\nline", "back\\slash \\N", "quote'\"", "nul\0inside", "😀", "")

Contents = dict[str, list[dict[str, Any]]]


def fill(engine: Engine, store: Store, rows: int = ROWS, *, with_nul: bool = True) -> None:
    """Rows in every table that the metadata knows, so that a table of tomorrow is tested too."""
    with write_transaction(engine) as connection:
        for table in METADATA[store].sorted_tables:
            filled = [row_of(table, number) for number in range(1, rows + 1)]
            connection.execute(insert(table), filled if with_nul else [without_nul(row) for row in filled])


def row_of(table: Table, number: int) -> dict[str, Any]:
    return {column.name: value_of(column, number) for column in table.columns}


def value_of(column: Column[Any], number: int) -> Any:  # noqa: PLR0911 - one for each type
    if column.name in {"change", "period"}:  # of a fixed set
        return {"change": "added", "period": "day"}[column.name]
    if column.nullable and number % 3 == 0:
        return None
    if isinstance(column.type, Boolean):
        return number % 2 == 0
    if isinstance(column.type, BigInteger):
        return 2**62 - number
    if isinstance(column.type, Integer):
        return number if column.primary_key or column.foreign_keys else 2**31 - 1 - number
    if isinstance(column.type, Float):
        return number / 7
    assert isinstance(column.type, String), column
    text = f"{number}{AWKWARD[number % len(AWKWARD)]}"
    return text if column.type.length is None else text.replace("\0", "")[: column.type.length]


def without_nul(row: dict[str, Any]) -> dict[str, Any]:
    """What PostgreSQL should hold: it cannot hold a NUL."""
    return {name: value.replace("\0", "\\x00") if isinstance(value, str) else value for name, value in row.items()}


def contents(engine: Engine, store: Store) -> Contents:
    """Every row of every table, read plainly."""
    found = {}
    with engine.connect() as connection:
        for table in METADATA[store].sorted_tables:
            rows = [dict(row) for row in connection.execute(select(table)).mappings()]
            found[table.name] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))
    return found
