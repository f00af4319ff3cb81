"""Restores a backup of either kind into the stores of this deployment, whichever they are.

First everything is checked, then the present is backed up, then the restored store is made beside it, with a hold in it
and with what the present store knows since the backup; at last it takes its place in one step. Whatever interrupts a
restore before that step has changed nothing; whatever interrupts it later is finished by the next start, or by running
it again.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.db.clock import from_us, now_us
from app.db.engines import create_engine_for, database_now_us, read_transaction, sqlite_path, write_transaction
from app.db.jobstore_tables import nodes
from app.db.migrate import HEADS, METADATA, Store, ensure_schema
from app.db.reach import StoreUnusable, cause_of, public_url
from app.ledger import failpoints
from app.ledger.holds import DueMoments, due_moments, find_hold
from app.ledger.nodes import LIVING, LockFile, list_nodes
from app.ledger.one_store import refuse_other_store
from app.services.health_service import HEARTBEAT_FRESH_S
from app.services.operations.backup.archive import forget_stale, is_incoming, restores_folder
from app.services.operations.backup.backups import (
    MANIFEST,
    Backup,
    back_up,
    backups_folder,
    find_backup,
    list_backups,
    verify_backup,
)
from app.services.operations.failure import OperationFailed
from app.services.operations.move.note import refuse_moved_store
from app.services.operations.restore.stage import Merged, fill, merge, remove_stage, seal, stage_files
from app.services.operations.restore.swap import Replacement, finish_swap, is_swap_open, swap
from app.services.operations.stores.files import (
    STORE_NAMES,
    finding_of,
    is_open_elsewhere,
    new_folder,
    open_database,
    stamp,
    store_url,
    utc_now,
    write_whole,
)
from app.settings import Settings

_LOCK = "restore"
_LOCK_TEXT = "the stores, to restore a backup into them"
_LOCK_WITHIN_S = 60.0
"""How long a restore waits for another one: its script may have been killed, and it still be at work."""
_STORE_FAILURES = (OSError, sqlite3.Error, SQLAlchemyError)
_ALONE_WITHIN_S = HEARTBEAT_FRESH_S + 5.0
"""How long a restore waits for processes that are just ending."""
_PAUSE_S = 0.2
_ADVISORY_LOCK = 0x52455354  # "REST"
_RECORD = "restored-"
_KEPT_RECORDS = 20
_BEFORE = "before the restore of "  # reason of the backup that is made of the present
_HELD_BY = "restore "  # and the record's id: as long as that hold is there, nothing has fired in the restored store
_KEY_TABLES: Mapping[Store, str] = {"jobstore": "runs", "app": "users"}
"""A table that every store of this app has, of any release."""

Tell = Callable[[str], None]


class Record(BaseModel):
    """What a restore did, for the undo and for one that goes on after an interruption.

    `before`: the backup of what was there before; None where there was nothing sound, which then is in `aside`.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    backup: str
    manifest_sha256: str
    created_at: datetime
    restored_at: datetime
    before: str | None
    aside: str | None
    is_done: bool = False


@dataclass(frozen=True)
class Restored:
    """What was restored, or would be. `rows`: what the backup holds, by store and table. `already`: it had been
    restored before, and nothing has fired since. `due`: what is due and not on record, by job."""

    backup: Path
    created_at: datetime
    app_version: str
    rows: dict[str, dict[str, int]]
    merged: Merged | None
    before: str | None
    aside: str | None
    due: list[DueMoments]
    already: bool = False

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "backup": str(self.backup),
            "created_at": self.created_at.isoformat(),
            "app_version": self.app_version,
            "rows": self.rows,
            "carried": self.merged.as_json() if self.merged else None,
            "before": self.before,
            "aside": self.aside,
            "already": self.already,
            "due": [
                {**asdict(each), "first": each.first.isoformat(), "last": each.last.isoformat()} for each in self.due
            ],
        }


def find_restorable(settings: Settings, name: str) -> Path:
    """The backup that an operator means by a path, by a name below `backups/`, or by `latest`.

    The latest that no restore made of what it was about to replace: the first attempt may have been interrupted.
    """
    if name != "latest":
        return find_backup(settings, name)
    for backup in list_backups(settings):
        if not backup.manifest.reason.startswith(_BEFORE):
            return backup.path
    raise OperationFailed(f"there is no backup in {backups_folder(settings)}")


def check_restorable(path: Path) -> Backup:
    """The verified backup at `path`; OperationFailed when it is damaged, foreign, or of a newer release."""
    backup = verify_backup(path)
    for store, manifest in backup.manifest.stores.items():
        if manifest.schema_version is None or _KEY_TABLES[store] not in manifest.rows:
            raise OperationFailed(f"{path / manifest.file} is no {store} database of this app; nothing was changed")
        if manifest.schema_version > HEADS[store]:
            raise OperationFailed(
                f"{path / manifest.file} is at schema {manifest.schema_version}, which this release does not know (its"
                f" newest is {HEADS[store]}); restore it with release {backup.manifest.app_version} or a newer one."
                " Nothing was changed"
            )
    return backup


def note_released(settings: Settings) -> None:
    """A hold is about to end: where a restore put it, and was interrupted before it said so, that restore is done."""
    present = _present_restore(settings)
    if present is not None and not present.is_done:
        _write_record(settings, present.model_copy(update={"is_done": True}))


def backup_to_undo(settings: Settings) -> Path:
    """The backup that brings back what was there before the last restore."""
    present = _present_restore(settings)
    record = present or next((each for each in _records(settings) if each.is_done), None)
    if record is None:
        raise OperationFailed("nothing was restored on this volume, so there is nothing to undo")
    if record.before is None:
        kept = f"; its files are kept in {record.aside}" if record.aside else ""
        raise OperationFailed(f"the restore found no sound store that could be brought back{kept}")
    path = Path(record.before)
    if not path.is_dir():
        raise OperationFailed(f"the backup {path}, made before the last restore, is no longer there (BACKUP_KEEP)")
    return path


def restore(settings: Settings, path: Path, *, tell: Tell) -> Restored:
    """Puts the backup at `path` into the place of the present stores, held. `tell` takes lines of progress.

    OperationFailed, with nothing changed, when the backup cannot be restored, when a process still uses a store, or
    when something does not fit. The caller has closed its own connections. Safe to run again after any interruption.
    """
    backup = check_restorable(path)
    tell(
        f"{path.name} is whole: made {backup.manifest.created_at.isoformat()} by release {backup.manifest.app_version}"
    )
    try:
        refuse_moved_store(settings)
        with _alone(settings, tell):
            finish_swap(settings)
            restored = _restore(settings, backup, tell)
    except StoreUnusable as error:
        raise OperationFailed(str(error)) from error
    if is_incoming(settings, backup.path):
        shutil.rmtree(backup.path)
    forget_stale(settings)
    return restored


def preview(settings: Settings, path: Path) -> Restored:
    """What `restore` would come to, at this moment; the stack may be running. Nothing is changed."""
    backup = check_restorable(path)
    try:
        refuse_moved_store(settings)
    except StoreUnusable as error:
        raise OperationFailed(str(error)) from error
    folder = restores_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="preview-", dir=folder) as temporary, _as_operation_failure():
        files = {store: Path(temporary) / f"{store}.db" for store in STORE_NAMES}
        fill(backup, files)
        merged = merge(settings, files, reason="preview", by="preview")
        return _result(backup, due=_due_in(files["jobstore"]), merged=merged)


def _restore(settings: Settings, backup: Backup, tell: Tell) -> Restored:
    present = _present_restore(settings)
    if present is not None and present.manifest_sha256 == _fingerprint(backup):
        tell("it was restored before, and nothing has fired since")
        _write_record(settings, present.model_copy(update={"is_done": True}))
        return _result(backup, due=_due(settings), record=present, already=True)
    files = stage_files(settings)
    try:
        with _as_operation_failure():
            record = _save_present(settings, backup, present, tell)
            failpoints.reach("restore.saved")
            tell("making the restored store beside the present one")
            fill(backup, files)
            reason = f"restored from the backup of {record.created_at.isoformat(timespec='seconds')}"
            merged = merge(settings, files, reason=reason, by=_HELD_BY + record.id)
            if merged.damage is not None:
                tell(f"the present store is damaged; what can be read of it is taken over: {merged.damage}")
            result = _result(backup, due=_due_in(files["jobstore"]), record=record, merged=merged)
            seal(files)
            counts = {store: _counts_in(store, file) for store, file in files.items()}
            failpoints.reach("restore.staged")
            _write_record(settings, record)
            tell("putting it in place")
            _put_in_place(settings, files, record, tell)
            _check_counts(settings, counts)
            _write_record(settings, record.model_copy(update={"is_done": True}))
            failpoints.reach("restore.done")
    finally:
        if not is_swap_open(settings):
            remove_stage(files)
    tell("restored, and its row counts are those of the copy that was checked")
    return result


def _result(
    backup: Backup,
    *,
    due: list[DueMoments],
    record: Record | None = None,
    merged: Merged | None = None,
    already: bool = False,
) -> Restored:
    return Restored(
        backup=backup.path,
        created_at=backup.manifest.created_at,
        app_version=backup.manifest.app_version,
        rows={store: dict(manifest.rows) for store, manifest in backup.manifest.stores.items()},
        merged=merged,
        before=record.before if record else None,
        aside=record.aside if record else None,
        due=due,
        already=already,
    )


@contextmanager
def _as_operation_failure() -> Iterator[None]:
    """A full disk, a lost server: told in one line. What was there before is untouched."""
    try:
        yield
    except _STORE_FAILURES as error:
        raise OperationFailed(f"the backup could not be restored: {_words_of(error)}; nothing was changed") from error


def _words_of(error: Exception) -> str:
    return cause_of(error) if isinstance(error, SQLAlchemyError) else str(error)


# Alone


@contextmanager
def _alone(settings: Settings, tell: Tell) -> Iterator[None]:
    """Keeps every process of this volume from starting meanwhile; OperationFailed when one goes on living."""
    lock = _locked(settings, tell)
    try:
        deadline = time.monotonic() + _ALONE_WITHIN_S
        told = ""
        while (user := _user_of_stores(settings)) is not None:
            if time.monotonic() >= deadline:
                raise OperationFailed(f"{user}; stop the stack, and try again. Nothing was changed")
            if user != told:
                tell(f"waiting: {user}")
                told = user
            time.sleep(_PAUSE_S)
        yield
    finally:
        lock.release()


def _locked(settings: Settings, tell: Tell) -> LockFile:
    deadline = time.monotonic() + _LOCK_WITHIN_S
    while True:
        try:
            return LockFile(settings.locks_dir / f"{_LOCK}.lock", _LOCK_TEXT)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise OperationFailed("another restore is going on; wait for it") from error
            tell("waiting for another restore to end")
            time.sleep(1.0)


def _user_of_stores(settings: Settings) -> str | None:
    """Who else uses a store, in words; None when nobody does."""
    try:
        refuse_other_store(settings.locks_dir, _LOCK_TEXT)
    except StoreUnusable:
        return "a scheduler or a worker is alive on this volume"
    for store in STORE_NAMES:
        url = store_url(settings, store)
        file = sqlite_path(url)
        if file is not None:
            if file.is_file() and is_open_elsewhere(file):
                return f"{file} is open in another process"
        elif store == "jobstore" and (name := _living_node(url)) is not None:
            return f"{name} is alive and uses {public_url(url)}, maybe on another machine"
    return None


def _living_node(url: str) -> str | None:
    with _server(url) as engine, read_transaction(engine) as connection:
        fresh = from_us(database_now_us(connection)) - timedelta(seconds=HEARTBEAT_FRESH_S)
        return next(
            (
                f"the {node.kind} {node.name}"
                for node in list_nodes(connection)
                if node.state in LIVING and node.heartbeat_at > fresh
            ),
            None,
        )


@contextmanager
def _server(url: str) -> Iterator[Engine]:
    engine = create_engine_for(url)
    try:
        yield engine
    except SQLAlchemyError as error:
        raise OperationFailed(f"{public_url(url)} cannot be used: {cause_of(error)}; nothing was changed") from error
    finally:
        engine.dispose()


# The present


def _save_present(settings: Settings, backup: Backup, present: Record | None, tell: Tell) -> Record:
    """Backs up what is there; a damaged SQLite store, of which there is no backup, will be kept as it is."""
    damage = [problem for store in STORE_NAMES if (problem := _damage_of(settings, store)) is not None]
    files = [sqlite_path(store_url(settings, store)) for store in STORE_NAMES]
    before = aside = None
    if all(file is not None and not file.is_file() for file in files):
        tell("there is no store here yet")
    elif damage:
        tell(f"{'; '.join(damage)}: no backup can be made of the present; its files will be kept")
        aside = str(new_folder(backups_folder(settings), f"aside-{stamp(utc_now())}"))
    else:
        tell("backing up the present")
        kept = [Path(path) for path in (present.before if present else None,) if path]
        saved = back_up(settings, reason=_BEFORE + backup.path.name, spare=[backup.path, *kept])
        verify_backup(saved.path)
        before = str(saved.path)
        tell(f"the present is in {before}")
    if present is not None:  # it has never run: to undo means what was there before it
        before, aside = present.before, present.aside or aside
    return Record(
        id=f"{utc_now():%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}",  # sorts by time
        backup=str(backup.path),
        manifest_sha256=_fingerprint(backup),
        created_at=backup.manifest.created_at,
        restored_at=utc_now(),
        before=before,
        aside=aside,
    )


def _damage_of(settings: Settings, store: Store) -> str | None:
    file = sqlite_path(store_url(settings, store))
    if file is None:
        return None
    if not file.is_file():
        return f"there is no {store} database at {file}"
    with open_database(file) as connection:
        finding = finding_of(connection)
    return None if finding is None else f"{file} is damaged ({finding})"


def _present_restore(settings: Settings) -> Record | None:
    """The record of the restore that the present store came from, if nothing has fired since."""
    url = store_url(settings, "jobstore")
    file = sqlite_path(url)
    if file is not None and not file.is_file():
        return None
    engine = create_engine_for(url)
    try:
        with read_transaction(engine) as connection:
            hold = find_hold(connection)
    except SQLAlchemyError:  # damaged, out of reach: who uses the store next says so
        return None
    finally:
        engine.dispose()
    if hold is None or not hold.by.startswith(_HELD_BY):
        return None
    return next((each for each in _records(settings) if each.id == hold.by.removeprefix(_HELD_BY)), None)


def _records(settings: Settings) -> list[Record]:
    """Of the restores on this volume, the newest first."""
    found = []
    for path in sorted(restores_folder(settings).glob(f"{_RECORD}*.json"), reverse=True):
        try:
            found.append(Record.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, PydanticError) as error:
            raise OperationFailed(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return found


def _write_record(settings: Settings, record: Record) -> None:
    folder = restores_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(folder / f"{_RECORD}{record.id}.json", record.model_dump_json(indent=2) + "\n")
    for old in sorted(folder.glob(f"{_RECORD}*.json"), reverse=True)[_KEPT_RECORDS:]:
        old.unlink(missing_ok=True)


def _fingerprint(backup: Backup) -> str:
    return hashlib.sha256((backup.path / MANIFEST).read_bytes()).hexdigest()


# Due moments


def _due(settings: Settings) -> list[DueMoments]:
    with _server(store_url(settings, "jobstore")) as engine, read_transaction(engine) as connection:
        return due_moments(connection, now=database_now_us(connection))


def _due_in(file: Path) -> list[DueMoments]:
    engine = create_engine_for(f"sqlite:///{file}")
    try:
        with read_transaction(engine) as connection:
            return due_moments(connection, now=now_us())
    finally:
        engine.dispose()


# In place


def _put_in_place(settings: Settings, files: Mapping[Store, Path], record: Record, tell: Tell) -> None:
    """The job store comes last: its hold says that all is restored."""
    replacements: list[Replacement] = []
    servers: dict[str, list[Store]] = {}
    for store in STORE_NAMES:
        url = store_url(settings, store)
        live = sqlite_path(url)
        if live is None:
            servers.setdefault(url, []).append(store)
        else:
            aside = Path(record.aside) if record.aside and record.before is None else None
            replacements.append(Replacement(staged=files[store], live=live, aside=aside))
    steps: list[Callable[[], None]] = []
    if replacements:
        steps.append(lambda: swap(settings, replacements))
    for url, stores in servers.items():
        staged = {store: files[store] for store in stores}
        step = partial(_copy_to_server, url, staged, tell)
        steps.insert(len(steps) if "jobstore" in stores else 0, step)
    for number, put in enumerate(steps):
        try:
            put()
        except _STORE_FAILURES as error:
            if number == 0:
                raise
            raise OperationFailed(
                f"the app's own database is restored, the job store is not: {_words_of(error)}; run the restore again"
            ) from error
        failpoints.reach("restore.half")


def _copy_to_server(url: str, files: Mapping[Store, Path], tell: Tell) -> None:
    """Replaces the rows of the stores in one PostgreSQL database, in one transaction, and checks them in it."""
    # It brings PostgreSQL's driver, which a stack on SQLite never needs.
    from app.services.operations.stores.copy import (  # noqa: PLC0415
        SqliteSource,
        copy_store,
        lift_limits,
        tables_of,
        verify_store,
    )

    with ExitStack() as opened:
        sources = []
        for store, file in files.items():
            staged = create_engine_for(f"sqlite:///{file}")
            opened.callback(staged.dispose)
            sources.append(SqliteSource(store, file, opened.enter_context(write_transaction(staged))))
            sources[-1].take_sums()
        target = opened.enter_context(_server(url))
        for store in files:
            ensure_schema(target, store)
        with write_transaction(target) as connection:
            lift_limits(connection)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            names = ", ".join(f'"{table.name}"' for source in sources for table in tables_of(source.store))
            connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
            for source in sources:
                copy_store(connection, source, tell)
            for source in sources:
                verify_store(connection, source, tell)


def _counts_in(store: Store, file: Path) -> dict[str, int]:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)) as connection:
        return {
            table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]  # noqa: S608 - our own names
            for table in METADATA[store].tables
        }


def _check_counts(settings: Settings, counts: Mapping[Store, dict[str, int]]) -> None:
    for store, wanted in counts.items():
        url = store_url(settings, store)
        file = sqlite_path(url)
        if file is not None:
            found = _counts_in(store, file)
        else:
            with _server(url) as engine, read_transaction(engine) as connection:
                found = {
                    name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                    for name, table in METADATA[store].tables.items()
                    if name in wanted
                }
        wrong = sorted(name for name in wanted if name != nodes.name and found[name] != wanted[name])
        if wrong:
            raise OperationFailed(
                f"{wrong[0]} has {found[wrong[0]]} rows after the restore, and should have {wanted[wrong[0]]}; do not"
                " start the stack like this: run the restore again"
            )
