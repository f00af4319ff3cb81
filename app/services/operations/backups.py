"""Online backups: a consistent copy of both databases with a manifest, and the check that a copy is whole.

userdata/backups/20260401T003000Z/
    scheduler.db  whalefall.db  manifest.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from app.db.clock import from_us
from app.db.migrate import Store
from app.services.operations.failure import OperationFailed
from app.services.operations.store_files import (
    STORE_NAMES,
    existing_store_file,
    finding_of,
    new_folder,
    open_database,
    schema_version,
    stamp,
    sync_folder,
    utc_now,
    write_whole,
)
from app.settings import Settings
from app.version import VERSION

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
_PARTIAL = ".partial-"
_PARTIAL_IS_STALE_AFTER = timedelta(days=1)
_SPARE_BYTES = 16 * 1024 * 1024  # left free beside a copy, so that the live stores can go on writing

logger = logging.getLogger(__name__)


class StoreManifest(BaseModel):
    """One database of a backup. `rows` counts by table; `schema_version` is its migration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    bytes: int
    sha256: str
    schema_version: str | None
    rows: dict[str, int]


class NewestRun(BaseModel):
    """The newest run that a backup holds: what came after it is not in there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    claimed_at: datetime


class Manifest(BaseModel):
    """What a backup holds, written last: a folder without it is no backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    created_at: datetime
    app_version: str
    reason: str
    stores: dict[Store, StoreManifest]
    newest_run: NewestRun | None


@dataclass(frozen=True)
class Backup:
    """A backup on disk."""

    path: Path
    manifest: Manifest

    def as_json(self) -> dict[str, Any]:
        """For programs: the manifest, and where it is."""
        return {"path": str(self.path), **self.manifest.model_dump(mode="json")}


def backups_folder(settings: Settings) -> Path:
    """Where backups are kept."""
    return settings.userdata_dir / "backups"


def back_up(settings: Settings, *, reason: str, keep: int | None = None) -> Backup:
    """Copies both databases while they are used, checks the copies, and keeps the newest `keep` backups.

    Each copy is one moment's state; writers are not held up. keep: `BACKUP_KEEP` when left out.
    OperationFailed when a store is no SQLite file, is damaged, or does not fit on the disk; older backups are
    only removed after this one is whole.
    """
    keep = settings.backup_keep if keep is None else keep
    if keep < 1:
        raise OperationFailed(f"at least one backup has to be kept, not {keep}")
    sources = {name: existing_store_file(settings, name) for name in STORE_NAMES}
    folder = backups_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale_partials(folder)
    _check_space(folder, sources)
    created_at = utc_now()
    partial = new_folder(folder, _PARTIAL + stamp(created_at))
    try:
        manifest = _copy_all(sources, partial, created_at=created_at, reason=reason)
        target = _claim_name(folder, partial, stamp(created_at))
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)  # the first error is the one to tell
        if isinstance(error, (OSError, sqlite3.Error)):
            raise OperationFailed(f"the backup to {folder} failed: {error}") from error
        raise
    for old in list_backups(settings)[keep:]:
        logger.info("removing backup %s: the newest %s are kept", old.path.name, keep)
        shutil.rmtree(old.path)
    return Backup(target, manifest)


def list_backups(settings: Settings) -> list[Backup]:
    """The backups, newest first. Folders without a manifest that can be read are passed over."""
    found = []
    for path in _folders(backups_folder(settings)):
        try:
            found.append(Backup(path, read_manifest(path)))
        except OperationFailed as problem:
            if not path.name.startswith((".", "aside-")):
                logger.warning("%s", problem)
    return sorted(found, key=lambda backup: (backup.manifest.created_at, backup.path.name), reverse=True)


def find_backup(settings: Settings, name: str) -> Path:
    """The folder that an operator means by a path, by a name below `backups/`, or by `latest`."""
    if name == "latest":
        newest = list_backups(settings)
        if not newest:
            raise OperationFailed(f"there is no backup in {backups_folder(settings)}")
        return newest[0].path
    for path in (Path(name), backups_folder(settings) / name):
        if path.is_dir():
            return path
    raise OperationFailed(f"there is no backup {name!r}, neither as a folder nor in {backups_folder(settings)}")


def read_manifest(path: Path) -> Manifest:
    """The manifest of the backup in the folder `path`."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperationFailed(f"{path} holds no readable {MANIFEST}: {error}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except PydanticError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OperationFailed(f"{path / MANIFEST}: {where or 'content'}: {first['msg']}") from error
    if manifest.format != MANIFEST_FORMAT:
        raise OperationFailed(f"{path / MANIFEST}: format {manifest.format} is not known to this release")
    return manifest


def verify_backup(path: Path) -> Backup:
    """Re-opens every file of a backup: size and sha256, `integrity_check`, schema version, every row count.

    OperationFailed names the first thing that is not as the manifest says.
    """
    manifest = read_manifest(path)
    missing = [name for name in STORE_NAMES if name not in manifest.stores]
    if missing:
        raise OperationFailed(f"{path}: the manifest names no {missing[0]} database")
    for name, store in manifest.stores.items():
        file = path / store.file
        if Path(store.file).name != store.file or not file.is_file():
            raise OperationFailed(f"{path}: {store.file} is missing")
        size = file.stat().st_size
        if size != store.bytes:
            raise OperationFailed(f"{file} has {size} bytes, the manifest says {store.bytes}")
        if _sha256(file) != store.sha256:
            raise OperationFailed(f"{file}: its sha256 is not the manifest's; it was changed or damaged")
        # `immutable`: a backup is one file that nobody writes, and looking must leave nothing beside it.
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)) as connection:
            finding = finding_of(connection)
            if finding is not None:
                raise OperationFailed(f"{file} is damaged: {finding}")
            if schema_version(connection, name) != store.schema_version:
                raise OperationFailed(f"{file}: its schema version is not the manifest's")
            if _row_counts(connection) != store.rows:
                raise OperationFailed(f"{file}: its row counts are not the manifest's")
    return Backup(path, manifest)


def _copy_all(sources: dict[Store, Path], partial: Path, *, created_at: datetime, reason: str) -> Manifest:
    stores: dict[Store, StoreManifest] = {}
    newest: NewestRun | None = None
    for name, source in sources.items():
        file = partial / source.name
        _copy(source, file)
        with closing(sqlite3.connect(file)) as connection:
            finding = finding_of(connection)
            if finding is not None:
                raise OperationFailed(f"the {name} database {source} is damaged: {finding}")
            stores[name] = StoreManifest(
                file=file.name,
                bytes=file.stat().st_size,
                sha256=_sha256(file),
                schema_version=schema_version(connection, name),
                rows=_row_counts(connection),
            )
            if name == "jobstore":
                newest = _newest_run(connection)
    manifest = Manifest(
        format=MANIFEST_FORMAT,
        created_at=created_at,
        app_version=VERSION,
        reason=reason,
        stores=stores,
        newest_run=newest,
    )
    write_whole(partial / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")
    return manifest


def _copy(source: Path, target: Path) -> None:
    """One moment's state of a live database, as one file without companions."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with open_database(source, mode="rw") as live, closing(sqlite3.connect(target)) as copy:
        # In one step, because a copy in pieces starts over whenever another process commits in between, and
        # this store commits all the time. In WAL mode the step holds up no writer.
        live.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")  # the copy inherits WAL, which would want side files
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def _row_counts(connection: sqlite3.Connection) -> dict[str, int]:
    tables = [
        row[0]
        for row in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
    ]
    return {
        table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]  # noqa: S608
        for table in tables
    }


def _newest_run(connection: sqlite3.Connection) -> NewestRun | None:
    try:
        row = connection.execute("SELECT run_id, claimed_at FROM runs ORDER BY run_id DESC LIMIT 1").fetchone()
    except sqlite3.OperationalError:  # a database that was never migrated
        return None
    return None if row is None else NewestRun(run_id=row[0], claimed_at=from_us(row[1]))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_space(folder: Path, sources: dict[Store, Path]) -> None:
    needed = sum(source.stat().st_size for source in sources.values())
    needed += sum(wal.stat().st_size for wal in map(_wal, sources.values()) if wal.exists()) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OperationFailed(
            f"{folder} has {free // 2**20} MiB free and a backup needs {-(-needed // 2**20)} MiB;"
            " remove old backups or lower BACKUP_KEEP"
        )


def _wal(file: Path) -> Path:
    return file.with_name(file.name + "-wal")


def _claim_name(folder: Path, partial: Path, name: str) -> Path:
    """Gives the finished folder its name, which is taken first: renaming onto an empty folder is atomic."""
    target = new_folder(folder, name)
    partial.rename(target)
    sync_folder(folder)
    return target


def _remove_stale_partials(folder: Path) -> None:
    """Removes what a backup that was killed left behind."""
    oldest = (utc_now() - _PARTIAL_IS_STALE_AFTER).timestamp()
    for path in _folders(folder):
        if path.name.startswith(_PARTIAL) and path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)  # another backup may be removing it at the same time


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
