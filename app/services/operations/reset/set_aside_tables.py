"""Sets a job store in PostgreSQL aside: its tables are copied to a SQLite file, proved by sums, and emptied.

userdata/backups/aside-20260401T003000Z/
    scheduler.db  aside.json

The file is a job store like those of the other shapes, so that whatever reads one reads it too. The tables are emptied
in the transaction that read them, and that transaction leaves the folder's name behind: after a crash it tells a copy
that took the store's place from one of a store that is still in use.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress

from sqlalchemy import Column, Connection, MetaData, String, Table, delete, insert, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import create_engine_for, database_now_us, read_transaction, write_transaction
from app.db.jobstore_tables import nodes
from app.db.migrate import METADATA, ensure_schema
from app.db.reach import public_url
from app.ledger import failpoints
from app.ledger.nodes import LIVING
from app.runtime import Runtime
from app.services.health_service import HEARTBEAT_FRESH_S
from app.services.operations.backup.backups import backups_folder
from app.services.operations.failure import OperationFailed
from app.services.operations.reset.set_aside import (
    PREFIX,
    Aside,
    Note,
    all_asides,
    refuse_where_no_scheduler_runs,
    write_note,
)
from app.services.operations.stores.copy import lift_limits, sum_of, tables_of
from app.services.operations.stores.files import new_folder, stamp, sync_folder, utc_now

FILE = "scheduler.db"

_ROWS_AT_ONCE = 1000
_LOOK_AGAIN_S = 0.5
_TABLES = ", ".join(table.name for table in METADATA["jobstore"].sorted_tables)

_emptied = Table("jobs_set_aside", MetaData(), Column("folder", String(255), primary_key=True))
"""In the store: the folders whose copies took its place, each committed together with the emptying."""


def check_tables_can_be_set_aside(runtime: Runtime) -> str:
    """Where the job store is, when the next start would put the default jobs into it; OperationFailed when not."""
    refuse_where_no_scheduler_runs(runtime.settings)
    return public_url(runtime.jobstore.url)


def set_aside_tables(runtime: Runtime, *, reason: str, backup: str | None = None) -> Aside:
    """Copies the job store's tables into a new folder below `backups/` and empties them, in one transaction.

    OperationFailed, with nothing changed, while a scheduler or a worker lives on the store: one that was killed is
    waited for until its last heartbeat is old.
    """
    check_tables_can_be_set_aside(runtime)
    settle_interrupted(runtime)
    _wait_until_nobody_lives(runtime)
    moment = utc_now()
    folder = new_folder(backups_folder(runtime.settings), PREFIX + stamp(moment))
    note = Note(file=FILE, set_aside_at=moment, reason=reason, backup=backup, is_whole=False)
    aside = write_note(folder, note)
    try:
        with write_transaction(runtime.jobstore) as connection:
            lift_limits(connection)
            connection.execute(text(f"LOCK TABLE {_TABLES} IN ACCESS EXCLUSIVE MODE"))
            if names := _living(connection):
                raise _still_living(names)
            _copy(connection, aside)
            connection.execute(text(f"TRUNCATE {_TABLES}"))
            _emptied.create(connection, checkfirst=True)
            connection.execute(insert(_emptied).values(folder=folder.name))
            failpoints.reach("aside.copied")
    except BaseException:
        # The commit itself may be what failed: only the store knows. While it is away, the next attempt asks it.
        with suppress(SQLAlchemyError):
            settle_interrupted(runtime)
        raise
    failpoints.reach("aside.committed")
    return aside.noted(is_whole=True)


def settle_interrupted(runtime: Runtime) -> None:
    """Ends what an interrupted `set_aside_tables` left: its copy counts when the tables were emptied, and else goes."""
    begun = [aside for aside in all_asides(runtime.settings) if not aside.note.is_whole]
    if not begun:
        return
    with read_transaction(runtime.jobstore) as connection:
        done: set[str] = set()
        if inspect(connection).has_table(_emptied.name):
            done = set(connection.execute(select(_emptied.c.folder)).scalars())
    for aside in begun:
        if aside.path.name in done:
            aside.noted(is_whole=True)
        else:
            shutil.rmtree(aside.path)


def _copy(connection: Connection, aside: Aside) -> None:
    """Writes every table into the folder's file and compares what is in it with what was read."""
    engine = create_engine_for(f"sqlite:///{aside.file}")
    try:
        ensure_schema(engine, "jobstore")
        with write_transaction(engine) as copy:
            for table in tables_of("jobstore"):
                copy.execute(delete(table))  # what a migration may have put into it
                found = connection.execute(select(table), execution_options={"yield_per": _ROWS_AT_ONCE}).mappings()
                for rows in found.partitions():
                    copy.execute(insert(table), [dict(row) for row in rows])
        with read_transaction(engine) as copy:
            for table in tables_of("jobstore"):
                there, here = sum_of(connection, table), sum_of(copy, table)
                if there != here:
                    raise OperationFailed(
                        f"{table.name}: {there.rows} rows are in the store and {here.rows} in {aside.file}, or they"
                        " differ; nothing was changed"
                    )
    finally:
        engine.dispose()
    sync_folder(aside.path)


def _living(connection: Connection) -> list[str]:
    since = database_now_us(connection) - int(HEARTBEAT_FRESH_S * 1_000_000)
    query = select(nodes.c.kind, nodes.c.name).where(nodes.c.state.in_(LIVING), nodes.c.heartbeat_at > since)
    return [f"{row.kind} {row.name}" for row in connection.execute(query)]


def _wait_until_nobody_lives(runtime: Runtime) -> None:
    deadline = time.monotonic() + HEARTBEAT_FRESH_S + 2 * _LOOK_AGAIN_S
    while True:
        with read_transaction(runtime.jobstore) as connection:
            names = _living(connection)
        if not names:
            return
        if time.monotonic() >= deadline:
            raise _still_living(names)
        time.sleep(_LOOK_AGAIN_S)


def _still_living(names: list[str]) -> OperationFailed:
    return OperationFailed(
        f"still at work on this store: {', '.join(names)}; stop every scheduler and worker that uses it, on other"
        " machines too, and try again. Nothing was changed"
    )
