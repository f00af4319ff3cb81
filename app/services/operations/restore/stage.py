"""A restored store, made beside the present one: what a backup holds, and what the present store knows since.

Both kinds of backup become SQLite files of this release's schema here; from these the restore goes on into either kind
of store.
"""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, and_, delete, func, inspect, select, update
from sqlalchemy.dialects import sqlite as sqlite_dialect

from app.db.account_tables import audit_log, users
from app.db.clock import now_us
from app.db.engines import create_engine_for, sqlite_path, write_transaction
from app.db.jobstore_tables import (
    IS_ACTIVE,
    holds,
    idempotency_keys,
    jobs,
    nodes,
    outbox,
    run_logs,
    run_totals,
    runs,
    uncounted_runs,
)
from app.db.migrate import Store, ensure_schema, schema_transaction, upgrade_schema
from app.ledger.holds import put_hold
from app.services.operations.backup.backups import Backup, StoreManifest
from app.services.operations.backup.postgres_dump import exported_snapshot, read_dump
from app.services.operations.failure import OperationFailed
from app.services.operations.reset.history import Carried, batches
from app.services.operations.stores.files import SIDE_FILES, STORE_NAMES, finding_of, open_database, store_url
from app.settings import Settings

_ROWS_AT_ONCE = 2000

_ENDINGS = {
    "pending": ("cancelled", "a backup was restored before it started"),
    "running": ("lost", "a backup was restored while its end was not on record"),
}
_FORGOTTEN = "the backup holds its beginning; whether it ended is not on record"

_OF_THE_PRESENT = (outbox, run_totals, uncounted_runs)
"""What is still to be sent, and what was counted: the backup's has been overtaken."""

Rows = list[dict[str, Any]]


@dataclass
class Merged:
    """What the present store added to the backup. `damage`: what of it could not be read, None when all could."""

    runs: int = 0  # that the backup does not know
    logs: int = 0
    audit: int = 0
    cancelled: int = 0  # were waiting for their start
    lost: int = 0  # had started, and their end is not on record
    damage: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def stage_files(settings: Settings) -> dict[Store, Path]:
    """Where a restored store is made: beside the file that it will replace, on the same volume."""
    files = {}
    for store in STORE_NAMES:
        live = sqlite_path(store_url(settings, store))
        files[store] = (
            live.with_name(f".restoring-{live.name}") if live else settings.userdata_dir / f".restoring-{store}"
        )
    return files


def remove_stage(files: Mapping[Store, Path]) -> None:
    """Removes staged files, of an attempt that was killed too."""
    for file in files.values():
        for suffix in (*SIDE_FILES, ""):
            file.with_name(file.name + suffix).unlink(missing_ok=True)


def fill(backup: Backup, files: Mapping[Store, Path]) -> None:
    """Makes the staged files from a verified backup, at this release's schema; OperationFailed when it does not fit."""
    remove_stage(files)
    for store, manifest in backup.manifest.stores.items():
        source, file = backup.path / manifest.file, files[store]
        if manifest.is_dump:
            _load_dump(source, file, store, manifest)
        else:
            shutil.copyfile(source, file)
        file.chmod(0o600)
        with _engine(file) as engine:
            ensure_schema(engine, store)


def merge(settings: Settings, files: Mapping[Store, Path], *, reason: str, by: str) -> Merged:
    """Brings into the staged files what the present stores know since the backup, and puts a hold into them.

    Runs of the backup that had not ended get the end that the present store knows, or are lost; runs since the backup
    are added, so that none of them starts again. What waits for its start in the present store is cancelled. Sessions
    end: one that was revoked since the backup must not come to life again. A damaged present store gives what can be
    read of it.
    """
    merged = Merged()
    with ExitStack() as opened:
        present = {store: opened.enter_context(_present(settings, store)) for store in STORE_NAMES}
        with _engine(files["jobstore"]) as engine, write_transaction(engine) as connection:
            _merge_jobstore(connection, present["jobstore"], merged)
            put_hold(connection, reason=reason, by=by, now=now_us())
        with _engine(files["app"]) as engine, write_transaction(engine) as connection:
            before = _count(connection, audit_log)
            for rows in present["app"].read(audit_log):
                _add(connection, audit_log, rows)
            merged.audit = _count(connection, audit_log) - before
            for user_id in connection.execute(select(users.c.id)).scalars().all():
                stamp = secrets.token_hex(16)
                connection.execute(update(users).where(users.c.id == user_id).values(session_stamp=stamp))
    damages = [store.damage for store in present.values() if store.damage is not None]
    merged.damage = "; ".join(damages) or None
    return merged


def seal(files: Mapping[Store, Path]) -> None:
    """Makes each staged database one file without companions, and checks it; OperationFailed when it is not sound."""
    for file in files.values():
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("PRAGMA journal_mode=DELETE")
            finding = finding_of(connection)
        if finding is not None:
            raise OperationFailed(f"the restored copy {file} is not sound: {finding}; nothing was changed")


@contextmanager
def _engine(file: Path) -> Iterator[Engine]:
    engine = create_engine_for(f"sqlite:///{file}")
    try:
        yield engine
    finally:
        engine.dispose()


# From a dump


def _load_dump(source: Path, file: Path, store: Store, manifest: StoreManifest) -> None:
    """The rows of a dump, in a SQLite file of the schema that it was made at."""
    with _engine(file) as engine, schema_transaction(engine) as connection:
        upgrade_schema(connection, store, to=str(manifest.schema_version))
    loaded: dict[str, int] = {}
    with closing(sqlite3.connect(file, isolation_level=None)) as plain:
        plain.execute("BEGIN")
        for table in read_dump(source):
            kinds = {row[1]: row[2] for row in plain.execute(f'PRAGMA table_info("{table.name}")')}
            if not set(table.columns) <= kinds.keys():
                raise OperationFailed(
                    f"{source}: the table {table.name} is not that of schema {manifest.schema_version}"
                )
            plain.execute(f'DELETE FROM "{table.name}"')  # noqa: S608 - a name that was found above
            names = ", ".join(f'"{column}"' for column in table.columns)
            places = ", ".join("?" for _ in table.columns)
            into = f'INSERT INTO "{table.name}" ({names}) VALUES ({places})'  # noqa: S608
            convert = [_converter(kinds[column]) for column in table.columns]
            rows = (
                [None if cell is None else to(cell) for to, cell in zip(convert, row, strict=True)]
                for row in table.rows
            )
            try:
                loaded[table.name] = plain.executemany(into, rows).rowcount
            except (sqlite3.Error, ValueError) as error:
                raise OperationFailed(f"{source}: the rows of {table.name} cannot be used: {error}") from error
        plain.execute("COMMIT")
        finding = finding_of(plain)
    found = {name: max(count, 0) for name, count in loaded.items()}
    if finding is not None or found != manifest.rows:
        raise OperationFailed(f"{source}: what was read is not what the manifest says: {finding or found}")


def _converter(kind: str) -> Callable[[str], Any]:
    if kind == "BOOLEAN":
        return lambda cell: cell == "t"
    if "INT" in kind:
        return int
    if kind == "FLOAT":
        return float
    return str


# From the present store


@dataclass
class _PresentFile:
    """A SQLite store, sound or damaged; None where there is no file."""

    connection: sqlite3.Connection | None
    damage: str | None = None

    def read(self, table: Table) -> Iterator[Rows]:
        if self.connection is None:
            return
        try:
            if not self.connection.execute(f"PRAGMA table_info({table.name})").fetchall():
                return
            if [column.type.python_type for column in table.primary_key] == [str]:
                carried = Carried(source="")
                yield from batches(self.connection, table, carried)
                self.damage = self.damage or carried.damage
                return
            found = self.connection.execute(f"SELECT * FROM {table.name}")  # noqa: S608 - a name of ours
            while rows := found.fetchmany(_ROWS_AT_ONCE):
                yield [_known(table, dict(row)) for row in rows]
        except sqlite3.DatabaseError as error:
            self.damage = self.damage or f"{table.name}: {error}"


@dataclass
class _PresentServer:
    """A PostgreSQL store, as one snapshot shows it."""

    connection: Connection
    damage: str | None = None

    def read(self, table: Table) -> Iterator[Rows]:
        there = inspect(self.connection)
        if not there.has_table(table.name):
            return
        names = {column["name"] for column in there.get_columns(table.name)}
        wanted = [column for column in table.columns if column.name in names]
        options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
        found = self.connection.execute(select(*wanted), execution_options=options).mappings()
        for rows in found.partitions(_ROWS_AT_ONCE):
            yield [dict(row) for row in rows]


_Present = _PresentFile | _PresentServer


@contextmanager
def _present(settings: Settings, store: Store) -> Iterator[_Present]:
    url = store_url(settings, store)
    file = sqlite_path(url)
    if file is not None:
        if not file.is_file():
            yield _PresentFile(None)
            return
        with open_database(file) as connection:
            # As the app reads: a damaged byte must not fail the query that selects its row among others.
            connection.text_factory = lambda value: value.decode("utf-8", "backslashreplace")
            yield _PresentFile(connection, finding_of(connection))
        return
    engine = create_engine_for(url)
    try:
        with exported_snapshot(engine) as (connection, _snapshot):
            yield _PresentServer(connection)
    finally:
        engine.dispose()


def _known(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in table.columns}


# Together


def _merge_jobstore(connection: Connection, present: _Present, merged: Merged) -> None:
    now = now_us()
    runs_before, logs_before = _count(connection, runs), _count(connection, run_logs)
    for rows in present.read(runs):
        for row in rows:
            if row["outcome"] in _ENDINGS:
                merged.cancelled += row["outcome"] == "pending"
                merged.lost += row["outcome"] == "running"
                row["outcome"], row["reason"] = _ENDINGS[row["outcome"]]
                row["finished_at"] = now
        _add(connection, runs, rows, over=True)
    for rows in present.read(run_logs):
        _add(connection, run_logs, rows, over=True)
    there = set(connection.execute(select(jobs.c.id)).scalars())
    gone = {row["id"] for rows in present.read(jobs) for row in rows} - there
    for rows in present.read(idempotency_keys):
        # What created a job that the backup does not have creates it again when it is sent again.
        _add(connection, idempotency_keys, [row for row in rows if row["resource"] not in gone])
    for table in _OF_THE_PRESENT:
        found = [row for rows in present.read(table) for row in rows]
        if present.damage is None:
            connection.execute(delete(table))
        _add(connection, table, found)
    forgotten = {"outcome": "lost", "reason": _FORGOTTEN, "finished_at": now}
    merged.lost += connection.execute(update(runs).where(IS_ACTIVE).values(forgotten)).rowcount
    for table in (nodes, holds):  # who lived then, and what was held then
        connection.execute(delete(table))
    merged.runs = _count(connection, runs) - runs_before
    merged.logs = _count(connection, run_logs) - logs_before


def _add(connection: Connection, table: Table, rows: Rows, *, over: bool = False) -> None:
    """Adds rows; `over`: where the key is known, they tell more than what is there. A row that a damaged page garbled
    so that it breaks the table's rules is left out."""
    if not rows:
        return
    statement: Any = sqlite_dialect.insert(table).prefix_with("OR IGNORE")
    if over:
        fixed = {"job_id", "kind", "scheduled_for", "attempt", *(column.name for column in table.primary_key)}
        new = {name: statement.excluded[name] for name in rows[0] if name not in fixed}
        # A run that has succeeded or failed has its end; one that was called lost since then did not lose it.
        where = and_(table.c.outcome != "success", table.c.outcome != "failed") if table is runs else None
        statement = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=new, where=where)
    connection.execute(statement, rows)


def _count(connection: Connection, table: Table) -> int:
    found: int = connection.execute(select(func.count()).select_from(table)).scalar_one()
    return found
