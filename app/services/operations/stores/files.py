"""The SQLite files behind the stores, as the operations reach them: beside SQLAlchemy, by Python's sqlite3.

The online backup and a look into a damaged file need the driver itself.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from app.db.engines import sqlite_path
from app.db.migrate import VERSION_TABLES, Store
from app.services.operations.failure import OperationFailed
from app.settings import Settings

STORE_NAMES: tuple[Store, ...] = ("jobstore", "app")
SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database; a database without its -wal lacks its last commits."""

BUSY_TIMEOUT_S = 30.0

# Where SQLite puts its locks (sqlite3.c, "PENDING_BYTE"): a connection in WAL mode holds a shared lock on
# the 510 bytes after the first two for as long as it is open.
_SHARED_FIRST = 0x40000000 + 2
_SHARED_SIZE = 510


def store_url(settings: Settings, store: Store) -> str:
    """Where a store is."""
    return settings.jobstore_url if store == "jobstore" else settings.database_url


def store_file(settings: Settings, store: Store) -> Path:
    """The file of a store; OperationFailed when the store is no SQLite database."""
    path = sqlite_path(store_url(settings, store))
    if path is None:
        variable = "JOBSTORE_URL" if store == "jobstore" else "DATABASE_URL"
        raise OperationFailed(f"{variable} names no SQLite file")
    return path


def existing_store_file(settings: Settings, store: Store) -> Path:
    """The file of a store; OperationFailed when there is none yet."""
    path = store_file(settings, store)
    if not path.is_file():
        raise OperationFailed(f"there is no {store} database at {path}; start the app once to make it")
    return path


@contextmanager
def open_database(path: Path, *, mode: Literal["ro", "rw"] = "ro") -> Iterator[sqlite3.Connection]:
    """A connection to an existing file, closed at the end. `ro` neither creates nor checkpoints anything."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def finding_of(connection: sqlite3.Connection) -> str | None:
    """What `integrity_check` says of a database, in one line; None when it is sound."""
    try:
        rows = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
        if rows != ["ok"]:
            return " ".join("; ".join(rows).split())
        broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if broken is None else f"table {broken[0]} refers to a missing row of {broken[2]}"


def schema_version(connection: sqlite3.Connection, store: Store) -> str | None:
    """The migration that a store's database is at; None for one that was never migrated."""
    try:
        row = connection.execute(f"SELECT version_num FROM {VERSION_TABLES[store]}").fetchone()  # noqa: S608
    except sqlite3.OperationalError:  # no such table
        return None
    return None if row is None else str(row[0])


def is_open_elsewhere(path: Path) -> bool:
    """Whether another process has the database open, in this container or any other on the same host.

    Asks the kernel for the lock that every connection in WAL mode holds; the content is not read, so a
    damaged file can be asked about too. Only sound while this process itself has the file closed: closing it
    drops every lock that the process holds on it.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(descriptor)
    return False


def stamp(moment: datetime) -> str:
    """A moment as it stands in file names: sorts by time, UTC."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def utc_now() -> datetime:
    """Now, aware."""
    return datetime.now(UTC)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is either there in full or not at all; only its owner can read it."""
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
    sync_folder(path.parent)


def new_folder(parent: Path, name: str) -> Path:
    """Makes a folder of this name, with a number when it is taken; `parent` is made as needed."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path
    raise OperationFailed(f"{parent} already holds a thousand folders named {name}")
