"""Where the rows of an older app's job store come from: a SQLite file as a stream, or this stack's own store."""

from __future__ import annotations

import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Engine, inspect
from sqlalchemy import text as sql

from app.db.engines import read_transaction
from app.scheduler import OLD_STORE_TABLE
from app.services.operations.failure import OperationFailed

MOST_JOBS = 10_000
_MAGIC = b"SQLite format 3\0"
_COMPANIONS = ("", "-wal", "-journal")
"""What belongs to a SQLite file that was not closed in order; without it the newest changes would be missing."""
_CHUNK = 1 << 20
_PLACE = ".legacy-"
_LEFT_AFTER_S = 3600


@dataclass(frozen=True)
class LegacyRow:
    """A row as it was stored: `state` is the pickle, `has_next_run` is false for a paused job."""

    id: str
    has_next_run: bool
    state: bytes


def read_stream(stream: BinaryIO, folder: Path, *, table: str = OLD_STORE_TABLE) -> list[LegacyRow]:
    """The rows of a SQLite file that comes as itself, or as a tar that holds it with what lies beside it.

    folder: where it is put while it is read; a container's /tmp may be too small. OperationFailed when it holds no such
    table, OSError when there is no room.
    """
    _check_table_name(table)
    _remove_what_was_left(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PLACE) as place:
        file = _receive(stream, Path(place))
        try:
            return _read_file(file, table)
        except sqlite3.DatabaseError as error:
            raise OperationFailed(f"the file is no SQLite database that can be read: {error}") from error


def read_present_store(jobstore: Engine, *, table: str = OLD_STORE_TABLE) -> list[LegacyRow]:
    """The rows that an older app left in the very store that this stack works on."""
    _check_table_name(table)
    if not inspect(jobstore).has_table(table):
        raise OperationFailed(f"this stack's job store holds no table {table} of an older app")
    with read_transaction(jobstore) as connection:
        found = connection.execute(sql(_SELECT.format(table=table))).all()
    return [_row(*each) for each in found]


# The name of the table is checked: letters, digits and '_'.
_SELECT = 'SELECT id, next_run_time, job_state FROM "{table}" ORDER BY id LIMIT ' + str(MOST_JOBS + 1)  # noqa: S608


def _remove_what_was_left(folder: Path) -> None:
    """Copies of imports that were killed; one that is at work is younger."""
    for place in folder.glob(f"{_PLACE}*"):
        if time.time() - place.stat().st_mtime > _LEFT_AFTER_S:
            shutil.rmtree(place, ignore_errors=True)


def _check_table_name(table: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", table):
        raise OperationFailed(f"--table is {table!r}; accepted: letters, digits and '_'")


def _receive(stream: BinaryIO, folder: Path) -> Path:
    head = stream.read(512)
    if head.startswith(_MAGIC):
        path = folder / "store.db"
        with path.open("wb") as file:
            _copy(stream, file, head)
        return path
    archive = folder / "received.tar"
    with archive.open("wb") as file:
        _copy(stream, file, head)
    try:
        return _unpack(archive, folder)
    except tarfile.TarError as error:
        raise OperationFailed("the file is no SQLite database, and no tar that holds one") from error
    finally:
        archive.unlink()


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive, "r:") as tar:
        members = [member for member in tar.getmembers() if member.isreg()]
        for member in members[:8]:
            suffix = next((end for end in _COMPANIONS[1:] if member.name.endswith(end)), "")
            content = tar.extractfile(member)
            if content is not None:
                # Under names of our own: a name in a tar may lead anywhere.
                with content, (folder / f"store.db{suffix}").open("wb") as file:
                    _copy(content, file)
    path = folder / "store.db"
    if not path.is_file() or not _begins_like_sqlite(path):
        raise OperationFailed("the file is no SQLite database")
    return path


def _begins_like_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _copy(source: Any, target: BinaryIO, head: bytes = b"") -> None:
    target.write(head)
    while chunk := source.read(_CHUNK):
        target.write(chunk)


def _read_file(path: Path, table: str) -> list[LegacyRow]:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")  # what the file's own schema calls is not run
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name"
        tables = {name: (definition or "") for name, definition in connection.execute(query)}
        if table not in tables or not re.match(r"\s*CREATE\s+TABLE\b", tables[table], re.IGNORECASE):
            names = ", ".join(list(tables)[:20]) or "none"
            raise OperationFailed(f"the file holds no table {table}; its tables: {names}. --table names another one")
        columns = {row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')}
        missing = {"id", "next_run_time", "job_state"} - columns
        if missing:
            raise OperationFailed(f"the table {table} is none of APScheduler 3: it has no {', '.join(sorted(missing))}")
        return [_row(*each) for each in connection.execute(_SELECT.format(table=table))]


def _row(job_id: Any, next_run_time: Any, state: Any) -> LegacyRow:
    return LegacyRow(str(job_id), next_run_time is not None, bytes(state) if isinstance(state, bytes) else b"")
