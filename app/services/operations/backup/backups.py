"""Online backups: a consistent copy of both stores with a manifest, and the check that a copy is whole.

userdata/backups/20260401T003000Z/
    scheduler.db   whalefall.db  manifest.json  SHA256SUMS     of SQLite stores: copies of the files
    jobstore.dump  app.dump      manifest.json  SHA256SUMS     of PostgreSQL stores: dumps in pg_dump's custom format
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError
from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from app.db.clock import from_us
from app.db.engines import create_engine_for, sqlite_path
from app.db.jobstore_tables import runs
from app.db.migrate import Store, current_revision
from app.db.reach import cause_of, public_url
from app.services.operations.backup import postgres_dump
from app.services.operations.failure import OperationFailed
from app.services.operations.stores.files import (
    STORE_NAMES,
    existing_store_file,
    finding_of,
    new_folder,
    open_database,
    schema_version,
    stamp,
    store_url,
    sync_folder,
    utc_now,
    write_whole,
)
from app.settings import Settings
from app.version import VERSION

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
SUMS = "SHA256SUMS"
"""What `sha256sum --check` reads: on any machine, without this app."""
_WITHOUT_SUMS = ("0.1.0",)  # releases that wrote no such file

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

    @property
    def is_dump(self) -> bool:
        """Whether it comes from PostgreSQL; else it is a SQLite file."""
        return self.file.endswith(postgres_dump.SUFFIX)


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


@dataclass(frozen=True)
class Plan:
    """What a backup would copy: of each store where it is and how many bytes it takes there; and the room for it."""

    stores: dict[Store, tuple[str, int]]
    folder: Path
    free: int  # bytes
    keep: int

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        stores = {store: {"at": where, "bytes": size} for store, (where, size) in self.stores.items()}
        return {"stores": stores, "folder": str(self.folder), "free_bytes": self.free, "keep": self.keep}


def backups_folder(settings: Settings) -> Path:
    """Where backups are kept."""
    return settings.userdata_dir / "backups"


def back_up(settings: Settings, *, reason: str, keep: int | None = None, spare: Collection[Path] = ()) -> Backup:
    """Copies both stores while they are used, checks the copies, and keeps the newest `keep` backups.

    Each copy is one moment's state, and one moment's for both where they share a PostgreSQL database; writers are not
    held up. keep: `BACKUP_KEEP` when left out; backups in `spare` stay however old they are. OperationFailed when a
    store is out of reach, is damaged, or does not fit on the disk; older backups are only removed after this one is
    whole.
    """
    keep = settings.backup_keep if keep is None else keep
    if keep < 1:
        raise OperationFailed(f"at least one backup has to be kept, not {keep}")
    folder = backups_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale_partials(folder)
    created_at = utc_now()  # before any snapshot: whatever was on record by then is in the backup
    with _opened_sources(settings) as sources:
        _check_space(folder, sum(source.bytes() for source in sources.values()))
        partial = new_folder(folder, _PARTIAL + stamp(created_at))
        try:
            manifest = _copy_all(sources, partial, created_at=created_at, reason=reason)
            target = _claim_name(folder, partial, stamp(created_at))
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)  # the first error is the one to tell
            if isinstance(error, (OSError, sqlite3.Error)):
                raise OperationFailed(f"the backup to {folder} failed: {error}") from error
            raise
    spared = {path.resolve() for path in spare}
    for old in list_backups(settings)[keep:]:
        if old.path.resolve() not in spared:
            logger.info("removing backup %s: the newest %s are kept", old.path.name, keep)
            shutil.rmtree(old.path)
    return Backup(target, manifest)


def plan_backup(settings: Settings) -> Plan:
    """What `back_up` would do; OperationFailed where it could not even begin."""
    with _opened_sources(settings) as sources:
        stores = {store: (public_url(store_url(settings, store)), source.bytes()) for store, source in sources.items()}
    folder = backups_folder(settings)
    free = shutil.disk_usage(settings.userdata_dir).free
    return Plan(stores, folder, free, settings.backup_keep)


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
    """Re-opens every file of a backup: size and sha256, content, schema version, every row count.

    A SQLite file is read through by `integrity_check`, a dump to its end by pg_restore. OperationFailed names the first
    thing that is not as the manifest says.
    """
    manifest = read_manifest(path)
    _verify_manifest(path, manifest)
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
        rows, version = postgres_dump.count_rows(file, name) if store.is_dump else _read_through(file, name)
        if version != store.schema_version:
            raise OperationFailed(f"{file}: its schema version is not the manifest's")
        if rows != store.rows:
            raise OperationFailed(f"{file}: its row counts are not the manifest's")
    return Backup(path, manifest)


def _verify_manifest(path: Path, manifest: Manifest) -> None:
    """The manifest tells of the other files; this tells of the manifest."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if manifest.app_version in _WITHOUT_SUMS and not (path / SUMS).exists():
            return
        raise OperationFailed(f"{path} holds no readable {SUMS}: {error}") from error
    if lines != _sums(path / MANIFEST, manifest):
        raise OperationFailed(f"{path / SUMS} does not fit {MANIFEST}; one of them was changed or damaged")


def _sums(manifest_file: Path, manifest: Manifest) -> list[str]:
    files = [(store.sha256, store.file) for store in manifest.stores.values()]
    return [f"{sha256}  {file}" for sha256, file in (*files, (_sha256(manifest_file), MANIFEST))]


def _read_through(file: Path, store: Store) -> tuple[dict[str, int], str | None]:
    # `immutable`: a backup is one file that nobody writes, and looking must leave nothing beside it.
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)) as connection:
        finding = finding_of(connection)
        if finding is not None:
            raise OperationFailed(f"{file} is damaged: {finding}")
        return _row_counts(connection), schema_version(connection, store)


@dataclass(frozen=True)
class _FileSource:
    """A SQLite store."""

    store: Store
    file: Path

    def bytes(self) -> int:
        parts = (self.file, self.file.with_name(self.file.name + "-wal"))
        return sum(part.stat().st_size for part in parts if part.exists())

    def copy(self, folder: Path) -> tuple[StoreManifest, NewestRun | None]:
        file = folder / self.file.name
        _copy(self.file, file)
        with closing(sqlite3.connect(file)) as connection:
            finding = finding_of(connection)
            if finding is not None:
                raise OperationFailed(f"the {self.store} database {self.file} is damaged: {finding}")
            version, rows = schema_version(connection, self.store), _row_counts(connection)
            newest = _newest_run(connection) if self.store == "jobstore" else None
        return _described(file, version, rows), newest


@dataclass(frozen=True)
class _ServerSource:
    """A PostgreSQL store, as one snapshot shows it."""

    store: Store
    url: str
    connection: Connection
    snapshot: str

    def bytes(self) -> int:
        return postgres_dump.bytes_of(self.connection, postgres_dump.tables_there(self.connection, self.store))

    def copy(self, folder: Path) -> tuple[StoreManifest, NewestRun | None]:
        file = folder / f"{self.store}{postgres_dump.SUFFIX}"
        tables = postgres_dump.tables_there(self.connection, self.store)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        postgres_dump.dump(self.url, self.snapshot, tables, file)
        _sync(file)
        version = current_revision(self.connection, self.store)
        rows = postgres_dump.row_counts(self.connection, tables)
        return _described(file, version, rows), self._newest_run()

    def _newest_run(self) -> NewestRun | None:
        if self.store != "jobstore":
            return None
        newest = select(runs.c.run_id, runs.c.claimed_at).order_by(runs.c.run_id.desc()).limit(1)
        row = self.connection.execute(newest).one_or_none()
        return None if row is None else NewestRun(run_id=row.run_id, claimed_at=from_us(row.claimed_at))


_Source = _FileSource | _ServerSource


@contextmanager
def _opened_sources(settings: Settings) -> Iterator[dict[Store, _Source]]:
    sources: dict[Store, _Source] = {}
    opened: dict[str, tuple[Connection, str]] = {}
    with ExitStack() as held:
        for store in STORE_NAMES:
            url = store_url(settings, store)
            if sqlite_path(url) is not None:
                sources[store] = _FileSource(store, existing_store_file(settings, store))
                continue
            if url not in opened:
                engine = create_engine_for(url)
                held.callback(engine.dispose)
                try:
                    opened[url] = held.enter_context(postgres_dump.exported_snapshot(engine))
                except SQLAlchemyError as error:
                    raise OperationFailed(
                        f"the {store} database at {public_url(url)} cannot be read: {cause_of(error)}"
                    ) from error
            sources[store] = _ServerSource(store, url, *opened[url])
        yield sources


def _copy_all(sources: dict[Store, _Source], partial: Path, *, created_at: datetime, reason: str) -> Manifest:
    stores: dict[Store, StoreManifest] = {}
    newest: NewestRun | None = None
    for name, source in sources.items():
        stores[name], newest_run = source.copy(partial)
        newest = newest or newest_run
    manifest = Manifest(
        format=MANIFEST_FORMAT,
        created_at=created_at,
        app_version=VERSION,
        reason=reason,
        stores=stores,
        newest_run=newest,
    )
    write_whole(partial / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")
    write_whole(partial / SUMS, "".join(f"{line}\n" for line in _sums(partial / MANIFEST, manifest)))
    return manifest


def _described(file: Path, version: str | None, rows: dict[str, int]) -> StoreManifest:
    return StoreManifest(
        file=file.name, bytes=file.stat().st_size, sha256=_sha256(file), schema_version=version, rows=rows
    )


def _copy(source: Path, target: Path) -> None:
    """One moment's state of a live database, as one file without companions."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with open_database(source, mode="rw") as live, closing(sqlite3.connect(target)) as copy:
        # In one step, because a copy in pieces starts over whenever another process commits in between, and
        # this store commits all the time. In WAL mode the step holds up no writer.
        live.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")  # the copy inherits WAL, which would want side files
    _sync(target)


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
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


def _check_space(folder: Path, needed: int) -> None:
    needed += _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OperationFailed(
            f"{folder} has {free // 2**20} MiB free and a backup needs {-(-needed // 2**20)} MiB;"
            " remove old backups or lower BACKUP_KEEP"
        )


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
