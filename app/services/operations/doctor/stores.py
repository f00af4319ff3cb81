"""What is wrong with the stores and the volume that they lie on. Nothing is made, migrated or changed."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import create_engine_for, read_transaction, sqlite_path
from app.db.migrate import HEADS, Store, is_newer_and_usable
from app.db.reach import StoreUnusable, store_name
from app.ledger.one_store import refuse_other_store
from app.services.operations.doctor.findings import Finding, Place, make_finding
from app.services.operations.move.note import refuse_moved_store
from app.services.operations.stores.files import STORE_NAMES
from app.services.operations.stores.state import DatabaseState, check_databases
from app.settings import Settings

LOCK_WAIT_S = 3.0
"""Longer than any transaction of the app: a lock that is held so long is held by somebody who is not at work."""
LOW_SHARE = 0.1
LOW_BYTES = 1 << 30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TRIED_BYTES = 1 << 16
NAMES: dict[Store, str] = {"jobstore": "the job store", "app": "the database of users and inventory"}


def store_findings(settings: Settings, place: Place) -> list[Finding]:
    """Everything that is wrong with the stores; none of it when both can be used."""
    try:
        refuse_moved_store(settings)
    except StoreUnusable as error:
        return [make_finding("store-moved", str(error), place)]
    found = [finding for store in STORE_NAMES for finding in _store_findings(settings, store, place)]
    try:
        refuse_other_store(settings.locks_dir, store_name(settings.jobstore_url, settings.userdata_dir))
    except StoreUnusable as error:
        if settings.locks_dir.is_dir():  # else it is the volume that is wrong
            found.append(make_finding("two-stores", str(error), place))
    return found


def volume_findings(settings: Settings, place: Place) -> list[Finding]:
    """Whether the data folder can be written to, and how much room there is."""
    folder = settings.userdata_dir
    try:
        with tempfile.TemporaryFile(dir=folder) as tried:  # without a name: nothing is left of it
            tried.write(os.urandom(_TRIED_BYTES))
            tried.flush()
            os.fsync(tried.fileno())
    except OSError as error:
        if error.errno in _NO_ROOM:
            return [make_finding("disk-full", f"no room is left in {folder}", place)]
        return [make_finding("volume-read-only", f"{folder} cannot be written to: {error.strerror}", place)]
    room = os.statvfs(folder)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    if free < LOW_BYTES and free < LOW_SHARE * total:
        what = f"{folder} has {free >> 20} MiB of {total >> 20} MiB left"
        return [make_finding("disk-low", what, place)]
    return []


def usable_stores(found: list[Finding], settings: Settings) -> bool:
    """Whether the job store can be looked into, after these findings."""
    blind = {"store-damaged", "store-missing", "store-unreachable", "store-newer", "store-moved"}
    path = sqlite_path(settings.jobstore_url)
    return not any(finding.id in blind for finding in found) and (path is None or path.is_file())


def _store_findings(settings: Settings, store: Store, place: Place) -> Iterator[Finding]:
    url = settings.jobstore_url if store == "jobstore" else settings.database_url
    path = sqlite_path(url)
    if path is not None and not path.is_file():
        yield make_finding("store-missing", f"{NAMES[store]} is not at {path}", place)
        return
    (state,) = check_databases(settings, (store,))
    if state.problem:
        kind = "store-unreachable" if path is None else "store-damaged"
        yield make_finding(kind, f"{NAMES[store]}, {state.file}: {state.problem}", place)
        return
    if state.schema_version is None:
        yield make_finding("store-missing", f"{NAMES[store]}, {state.file}, has no tables", place)
        return
    if _is_too_new(url, store, state):
        what = f"{NAMES[store]} is at schema {state.schema_version}, this release knows {HEADS[store]}"
        yield make_finding("store-newer", what, place)
    if path is not None and (problem := _lock_problem(path)):
        yield make_finding("store-locked", f"{NAMES[store]}, {path}: {problem}", place)


def _is_too_new(url: str, store: Store, state: DatabaseState) -> bool:
    if state.schema_version is None or state.schema_version <= HEADS[store]:
        return False
    engine = create_engine_for(url)
    try:
        with read_transaction(engine) as connection:
            return not is_newer_and_usable(connection, store)
    except SQLAlchemyError:  # told as what it is by the check before
        return False
    finally:
        engine.dispose()


def _lock_problem(path: Path) -> str | None:
    """What SQLite says when the write lock is not to be had in LOCK_WAIT_S, and which processes of this container hold
    a lock on the file."""
    connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        # A full disk refuses the lock as well, and is a finding of its own.
        if "locked" not in str(error):
            return None
        holders = _writers(path)
        return f"{error} for {LOCK_WAIT_S:g} s" + (f"; held by {', '.join(holders)}" if holders else "")
    finally:
        connection.close()
    return None


def _writers(path: Path) -> list[str]:
    """Processes of this container with a write lock in the file's shared memory (SQLite's locks in WAL mode)."""
    try:
        inode = path.with_name(f"{path.name}-shm").stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    pids = set()
    for line in lines:
        fields = line.split()  # 1: POSIX ADVISORY WRITE 4711 fd:00:1234 120 120
        if "WRITE" in fields and fields[-3].endswith(f":{inode}"):
            pids.add(fields[-4])
    return [f"process {pid} ({name})" for pid in sorted(pids) if (name := _command(pid))]


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # of another container, or gone
        return ""
    return b" ".join(words).decode(errors="replace").strip()[:80]
