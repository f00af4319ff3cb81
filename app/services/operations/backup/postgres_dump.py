"""Dumps of PostgreSQL stores: made with pg_dump in one snapshot, read back with pg_restore and no server at all.

A dump is pg_dump's custom format, so that any pg_restore of the same release can use it too.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from sqlalchemy import Connection, Engine, inspect, make_url, text
from sqlalchemy.engine import URL

from app.db import inventory_tables  # noqa: F401 - so that the metadata below knows all tables
from app.db.migrate import COMPATIBILITY_TABLES, METADATA, VERSION_TABLES, Store, current_revision
from app.db.reach import public_url
from app.services.operations.failure import OperationFailed

SUFFIX = ".dump"

Row = list[str | None]

_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
"""What COPY's text format writes behind a backslash; any other byte there stands for itself."""

_PROGRAMS = f"/usr/local/bin:{os.defpath}"
"""Where pg_dump is looked for: its environment holds nothing of this process's but what it needs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableRows:
    """The rows of one table of a dump, as text, NULL as None; to be read once, before the next table."""

    name: str
    columns: tuple[str, ...]
    rows: Iterator[Row]


@contextmanager
def exported_snapshot(engine: Engine) -> Iterator[tuple[Connection, str]]:
    """A read-only transaction, and the name of its snapshot: others that import it see the very same moment."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        for limit in ("idle_in_transaction_session_timeout", "statement_timeout"):
            connection.execute(text(f"SET LOCAL {limit} = 0"))  # it stays open for as long as the dump takes
        connection.execute(text("SET TRANSACTION READ ONLY"))
        yield connection, connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()


def tables_there(connection: Connection, store: Store) -> list[str]:
    """The tables of a store that the database has, with those that tell its schema; OperationFailed without any."""
    ours = {*METADATA[store].tables, VERSION_TABLES[store], COMPATIBILITY_TABLES[store]}
    found = sorted(ours & set(inspect(connection).get_table_names()))
    if current_revision(connection, store) is None:
        raise OperationFailed(f"there is no {store} database at {public_url(connection.engine.url)}")
    return found


def row_counts(connection: Connection, tables: Sequence[str]) -> dict[str, int]:
    """How many rows each table has in the connection's snapshot."""
    return {
        table: connection.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one()  # noqa: S608 - our own names
        for table in tables
    }


def bytes_of(connection: Connection, tables: Sequence[str]) -> int:
    """How much the tables take on the server's disk, without their indexes: more than a dump of them does."""
    sizes = [
        connection.execute(text("SELECT pg_table_size(CAST(:name AS regclass))"), {"name": table}).scalar_one()
        for table in tables
    ]
    return sum(sizes)


def dump(url: str, snapshot: str, tables: Sequence[str], target: Path) -> None:
    """Writes the tables as that snapshot shows them to the file `target`; OperationFailed with pg_dump's own words."""
    address, environment = _as_libpq(url)
    command = ["pg_dump", f"--dbname={address}", "--format=custom", f"--snapshot={snapshot}", "--no-password"]
    command += ["--no-owner", "--no-privileges", "--strict-names", f"--file={target}"]
    command += [f'--table="{table}"' for table in tables]
    done = _run(command, environment)
    if done.returncode != 0:
        raise OperationFailed(f"pg_dump of {public_url(url)} failed: {_last_words(done.stderr)}")


def read_dump(file: Path) -> Iterator[TableRows]:
    """Every table of a dump with its rows. OperationFailed when pg_restore cannot read it to its end."""
    command = ["pg_restore", "--data-only", "--file=-", str(file)]
    # Its errors go to a file: nobody empties a second pipe while the first is read.
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)  # noqa: S603 - no shell
        except FileNotFoundError as error:
            raise _missing(command[0]) from error
        stream = cast("IO[bytes]", process.stdout)
        try:
            for line in stream:
                if line.startswith(b"COPY "):
                    name, columns = _copied(line)
                    rows = _rows(stream)
                    yield TableRows(name, columns, rows)
                    for _ in rows:  # what the caller did not read
                        pass
            if process.wait() != 0:
                errors.seek(0)
                raise OperationFailed(f"{file} cannot be read: {_last_words(errors.read())}")
        finally:
            if process.poll() is None:  # the caller stopped reading
                process.kill()
            stream.close()
            process.wait()


def count_rows(file: Path, store: Store) -> tuple[dict[str, int], str | None]:
    """How many rows each table of a dump holds, and the schema version that it tells."""
    counts: dict[str, int] = {}
    version = None
    for table in read_dump(file):
        counts[table.name] = 0
        for row in table.rows:
            counts[table.name] += 1
            if table.name == VERSION_TABLES[store]:
                version = row[0]
    return counts, version


def _rows(stream: Iterator[bytes]) -> Iterator[Row]:
    for line in stream:
        if line == b"\\.\n":
            return
        yield [None if cell == b"\\N" else _unescaped(cell) for cell in line.removesuffix(b"\n").split(b"\t")]
    raise OperationFailed("the dump ends in the middle of a table")


def _unescaped(cell: bytes) -> str:
    if b"\\" in cell:
        first, *rest = cell.split(b"\\")
        parts, escaped = [first], False
        for part in rest:
            if escaped:  # the second of two backslashes
                parts.append(part)
                escaped = False
            elif part == b"":
                parts.append(b"\\")
                escaped = True
            else:
                parts.append(_ESCAPES.get(part[:1], part[:1]) + part[1:])
        cell = b"".join(parts)
    return cell.decode()


def _copied(line: bytes) -> tuple[str, tuple[str, ...]]:
    """Table and columns of a line such as `COPY public.jobs (id, "trigger") FROM stdin;`."""
    name, _, columns = line.decode().removeprefix("COPY ").partition(" (")
    listed = columns.partition(")")[0].split(", ")
    return name.rpartition(".")[2].strip('"'), tuple(column.strip('"') for column in listed)


def _as_libpq(url: str) -> tuple[str, Mapping[str, str]]:
    """The address for a command line, which others of this host can read, and the password for its environment."""
    parsed = make_url(url)
    plain = URL.create(
        "postgresql",
        username=parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.query,
    )
    password = {"PGPASSWORD": str(parsed.password)} if parsed.password else {}
    return plain.render_as_string(hide_password=False), {
        "PATH": _PROGRAMS,
        "PGCONNECT_TIMEOUT": "10",
        **password,
    }


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, env=dict(environment), capture_output=True, check=False)  # noqa: S603 - no shell
    except FileNotFoundError as error:
        raise _missing(command[0]) from error


def _missing(program: str) -> OperationFailed:
    return OperationFailed(
        f"{program} is not installed here; the app's images have it, elsewhere it is in PostgreSQL's client package"
    )


def _last_words(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "without a word"
