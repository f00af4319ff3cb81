"""Moves everything that the SQLite stores hold into PostgreSQL, and checks it before it says so.

Each PostgreSQL database gets its rows in one transaction, which is committed only when row counts and checksums agree:
whoever is interrupted has changed nothing, or all of it. With the rows it gets a record of what came from where
(`moved_from_sqlite`), so that a repeated move knows its own earlier work from somebody else's data. The old files are
only read, and locked meanwhile; at the end a note beside them keeps schedulers off (see move.note).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
)

from app.db import inventory_tables  # noqa: F401 - so that the metadata below knows all tables
from app.db.account_tables import users
from app.db.clock import to_us
from app.db.engines import create_engine_for, read_transaction, sqlite_path, write_transaction
from app.db.jobstore_tables import IS_ACTIVE, nodes, runs
from app.db.migrate import (
    COMPATIBILITY_TABLES,
    HEADS,
    METADATA,
    VERSION_TABLES,
    NewerSchema,
    Store,
    current_revision,
    ensure_schema,
    is_newer_and_usable,
)
from app.db.reach import StoreUnusable, public_url, wait_for_server
from app.ledger import failpoints
from app.ledger.nodes import LockFile
from app.ledger.one_store import refuse_other_store
from app.services.accounts.admin_sync import ADMIN_NAME
from app.services.operations.failure import OperationFailed
from app.services.operations.move.note import MovedNote, read_note, write_note
from app.services.operations.stores.copy import (
    SqliteSource,
    Sum,
    Tell,
    copy_store,
    lift_limits,
    verify_store,
)
from app.services.operations.stores.files import STORE_NAMES, finding_of, is_open_elsewhere, open_database, utc_now
from app.settings import Settings

DEFAULT_FILES: Mapping[Store, str] = {"jobstore": "scheduler.db", "app": "whalefall.db"}
VARIABLES: Mapping[Store, str] = {"jobstore": "JOBSTORE_URL", "app": "DATABASE_URL"}

_LOCK = "move-to-postgres"
_ADVISORY_LOCK = 0x4D4F5645  # "MOVE"

records = Table(
    "moved_from_sqlite",
    MetaData(),
    Column("store", String(16), primary_key=True),
    Column("source", Text, nullable=False),
    Column("moved_at", BigInteger, nullable=False),
    Column("sums", Text, nullable=False),  # JSON: table -> [rows, checksum]
)
"""In the target: what was moved there, committed together with the rows themselves."""


@dataclass(frozen=True)
class Moved:
    """What was moved, or would be. `already`: it had been moved before, whole and checked.

    sums: by store and table. not_ended: runs that a scheduler left pending or running; the ones on PostgreSQL take
    them over or call them lost.
    """

    sources: dict[str, str]
    targets: dict[str, str]
    sums: dict[str, dict[str, Sum]]
    not_ended: int
    already: bool = False

    def tables(self) -> Iterator[tuple[str, str, Sum]]:
        """(store, table, sum) of all that is moved."""
        for store, sums in self.sums.items():
            for table, found in sums.items():
                yield store, table, found

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "sources": self.sources,
            "targets": self.targets,
            "tables": {
                table: {"store": store, "rows": found.rows, "checksum": found.checksum}
                for store, table, found in self.tables()
            },
            "not_ended": self.not_ended,
            "already": self.already,
        }


def move(settings: Settings, *, files: Mapping[Store, Path] | None = None, tell: Tell, dry_run: bool = False) -> Moved:
    """Moves the rows of the SQLite `files` (those of this userdata when left out) to where JOBSTORE_URL and
    DATABASE_URL point. `tell` takes lines of progress.

    dry_run: only looks; the stack may be running. OperationFailed, with nothing changed, when a process has a file
    open, when the target holds other data, or when something does not fit. Safe to run again after any interruption.
    """
    sources = {store: (files or {}).get(store) or settings.userdata_dir / name for store, name in DEFAULT_FILES.items()}
    _check_targets(settings)
    for store, file in sources.items():
        if not file.is_file():
            raise OperationFailed(f"there is no {store} database at {file}, so there is nothing to move from it")
    with ExitStack() as held:
        if not dry_run:
            held.enter_context(_nobody_else(settings, sources))
        targets = {store: held.enter_context(_target(settings, store, dry_run=dry_run)) for store in STORE_NAMES}
        opened = [held.enter_context(_opened(store, file, dry_run=dry_run)) for store, file in sources.items()]
        for source in opened:
            tell(f"reading {source.file}")
            source.take_sums()
            _tell_strangers(source, tell)
        # Stores in one database are moved in one transaction.
        groups: dict[str, list[SqliteSource]] = {}
        for source in opened:
            groups.setdefault(str(targets[source.store].url), []).append(source)
        already = True
        for group in groups.values():
            target = targets[group[0].store]
            if dry_run and not _answers(target, VARIABLES[group[0].store]):
                tell(f"{public_url(target.url)} does not answer, so it was not looked at")
                already = False
                continue
            already &= _move_group(target, group, tell, dry_run=dry_run)
        moved = Moved(
            sources={source.store: str(source.file) for source in opened},
            targets={store: public_url(engine.url) for store, engine in targets.items()},
            sums={source.store: source.sums for source in opened},
            not_ended=_not_ended(opened[0]),
            already=already,
        )
        if not dry_run:
            _note(settings, moved)
            failpoints.reach("move.noted")
        return moved


# What has to be so


def _check_targets(settings: Settings) -> None:
    for store, variable in VARIABLES.items():
        url = settings.jobstore_url if store == "jobstore" else settings.database_url
        if sqlite_path(url) is not None:
            raise OperationFailed(
                f"{variable} names the SQLite file {sqlite_path(url)}; accepted: postgresql+psycopg://user@host/name,"
                " as in the shape ha"
            )


@contextmanager
def _nobody_else(settings: Settings, sources: Mapping[Store, Path]) -> Iterator[None]:
    """Keeps every process of this volume from starting meanwhile; OperationFailed when one is alive."""
    text = "the SQLite files, to move them to PostgreSQL"
    try:
        refuse_other_store(settings.locks_dir, text)
        lock = LockFile(settings.locks_dir / f"{_LOCK}.lock", text)
    except BlockingIOError as error:
        raise OperationFailed("another move is going on; wait for it") from error
    except StoreUnusable as error:
        raise OperationFailed(
            "a scheduler or a worker is alive on this volume; stop the stack in order, and try again"
        ) from error
    try:
        for file in sources.values():
            if is_open_elsewhere(file):
                raise OperationFailed(
                    f"{file} is open in another process; stop every web and scheduler process that uses it,"
                    " in other containers too, and try again"
                )
        yield
    finally:
        lock.release()


@contextmanager
def _target(settings: Settings, store: Store, *, dry_run: bool) -> Iterator[Engine]:
    """An engine of a PostgreSQL store at this release's schema."""
    engine = create_engine_for(settings.jobstore_url if store == "jobstore" else settings.database_url)
    try:
        if not dry_run:
            wait_for_server(engine, VARIABLES[store])
            ensure_schema(engine, store)
        yield engine
    except (StoreUnusable, NewerSchema) as error:
        raise OperationFailed(str(error)) from error
    finally:
        engine.dispose()


def _answers(target: Engine, variable: str) -> bool:
    try:
        wait_for_server(target, variable, patience_s=0)
    except StoreUnusable:
        return False
    return True


@contextmanager
def _opened(store: Store, file: Path, *, dry_run: bool) -> Iterator[SqliteSource]:
    """A source that is sound and at this release's schema; nobody writes to it until it is closed."""
    with open_database(file) as plain:
        finding = finding_of(plain)
    if finding is not None:
        raise OperationFailed(f"{file} is damaged: {finding}; it is left as it is. See runbooks/reset-jobstore.md")
    engine = create_engine_for(f"sqlite:///{file}")
    try:
        with read_transaction(engine) as connection:
            revision = current_revision(connection, store)
        if revision is None:
            raise OperationFailed(f"{file} has no {VERSION_TABLES[store]}: it is no {store} database of this app")
        if revision != HEADS[store] and dry_run:
            raise OperationFailed(f"{file} is at schema {revision}, not {HEADS[store]}; scripts/up.sh migrates it")
        if not dry_run:
            ensure_schema(engine, store)  # as any start of this release does
        with read_transaction(engine) as connection:
            if is_newer_and_usable(connection, store):
                raise OperationFailed(f"{file} is of a newer release (schema {revision}); move it with that release")
        transaction = read_transaction if dry_run else write_transaction
        with transaction(engine) as connection:
            # Raw values, as the file holds them: the types that PostgreSQL would refuse must be seen.
            yield SqliteSource(store, file, connection)
    except NewerSchema as error:
        raise OperationFailed(str(error)) from error
    finally:
        engine.dispose()


def _tell_strangers(source: SqliteSource, tell: Tell) -> None:
    ours = {*METADATA[source.store].tables, VERSION_TABLES[source.store], COMPATIBILITY_TABLES[source.store]}
    for name in sorted(set(inspect(source.connection).get_table_names()) - ours):
        tell(f"{source.file}: the table {name} is none of this app's and stays where it is")


def _not_ended(jobstore: SqliteSource) -> int:
    found: int = jobstore.connection.execute(select(func.count()).select_from(runs).where(IS_ACTIVE)).scalar_one()
    return found


# The move itself


def _move_group(target: Engine, sources: Sequence[SqliteSource], tell: Tell, *, dry_run: bool) -> bool:
    """Moves the stores that go into one database, in one transaction; True when it was done before."""
    where = public_url(target.url)
    transaction = read_transaction if dry_run else write_transaction
    with transaction(target) as connection:
        lift_limits(connection)
        # A move that was killed may still be undone by the server.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        known = _recorded(connection)
        if all(known.get(source.store) == source.sums for source in sources):
            tell(f"{where}: everything is there already, and was checked")
            return True
        _check_free(connection, where, sources, known)
        if dry_run:
            return False
        failpoints.reach("move.begun")
        for source in sources:
            copy_store(connection, source, tell)
        failpoints.reach("move.copied")
        for source in sources:
            verify_store(connection, source, tell)
        _record(connection, sources)
        failpoints.reach("move.verified")
    tell(f"{where}: committed")
    failpoints.reach("move.committed")
    return False


def _recorded(connection: Connection) -> dict[str, dict[str, Sum]]:
    """What earlier moves left on record in this database, by store."""
    if not inspect(connection).has_table(records.name):
        return {}
    return {
        row.store: {table: Sum(*found) for table, found in json.loads(row.sums).items()}
        for row in connection.execute(select(records))
    }


def _record(connection: Connection, sources: Sequence[SqliteSource]) -> None:
    records.create(connection, checkfirst=True)
    for source in sources:
        sums = {table: [found.rows, found.checksum] for table, found in source.sums.items()}
        connection.execute(delete(records).where(records.c.store == source.store))
        connection.execute(
            insert(records).values(
                store=source.store, source=str(source.file), moved_at=to_us(utc_now()), sums=json.dumps(sums)
            )
        )


def _check_free(
    connection: Connection, where: str, sources: Sequence[SqliteSource], known: Mapping[str, dict[str, Sum]]
) -> None:
    """OperationFailed unless the stores are empty there, or hold an earlier copy that nobody has used since.

    Such a copy is replaced: it was interrupted, and the files may have gone on since.
    """
    is_unused_copy = bool(known) and not _rows_held(connection, [nodes])
    for source in sources:
        held = _rows_held(connection, METADATA[source.store].sorted_tables)
        if held and not (is_unused_copy and source.store in known):
            raise OperationFailed(
                f"{where} holds data that is no unused copy of {source.file}: {held}. Nothing was changed; point"
                f" {VARIABLES[source.store]} at an empty database (runbooks/move-to-postgres.md)"
            )


def _rows_held(connection: Connection, tables: Sequence[Table]) -> str:
    """How many rows the tables hold, for people; empty when they are empty, or not there yet."""
    there = set(inspect(connection).get_table_names())
    counts = {table.name: _foreign(connection, table) for table in tables if table.name in there}
    return ", ".join(f"{count} rows in {name}" for name, count in counts.items() if count)


def _foreign(connection: Connection, table: Table) -> int:
    count = select(func.count()).select_from(table)
    if table is users:  # every start of the app, a command's too, makes the admin
        count = count.where(users.c.username != ADMIN_NAME)
    found: int = connection.execute(count).scalar_one()
    return found


def _note(settings: Settings, moved: Moved) -> None:
    if moved.already and (present := _present_note(settings)) is not None and present.targets == moved.targets:
        return
    files = {store: Path(file) for store, file in moved.sources.items()}
    inside = settings.userdata_dir
    note = MovedNote(
        moved_at=utc_now(),
        sources={
            store: str(file.relative_to(inside) if file.is_relative_to(inside) else file)
            for store, file in files.items()
        },
        targets=moved.targets,
        rows={table: found.rows for _store, table, found in moved.tables()},
    )
    write_note(settings, note)


def _present_note(settings: Settings) -> MovedNote | None:
    try:
        return read_note(settings)
    except ValueError:  # it is written anew
        return None
