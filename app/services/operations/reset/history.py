"""Carries the run history of an older job store file into the present one, as far as it can be read, and what goes with
it: messages on their way out, keys of requests."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from app.db.clock import now_us
from app.db.engines import sqlite_path, write_transaction
from app.db.jobstore_tables import idempotency_keys, jobs, outbox, run_logs, runs
from app.ledger.fates import next_moment
from app.ledger.run_ids import new_run_id
from app.runtime import Runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.reset.set_aside import asides
from app.services.operations.stores.files import finding_of, open_database, utc_now
from app.settings import Settings

_ROWS_PER_COMMIT = 500
"""So that no transaction holds up the scheduler, which waits less than a second for the store."""

_AFTER_ALL = "~"  # sorts after every hex digit

_MOST_MOMENTS = 100_000
"""Of one job during one reset; beyond that the row says `at least`."""

_ENDINGS = {
    "pending": ("cancelled", "the job store was reset before it started"),
    "running": ("lost", "the job store was reset while its end was not on record"),
}


@dataclass
class Carried:
    """What came over. `damage` says what could not be read, None when everything could."""

    source: str
    runs: int = 0
    runs_there_already: int = 0
    logs: int = 0
    messages: int = 0  # alerts and pings that had not been delivered
    repeats: int = 0  # keys of requests, by which one that is sent again is known
    cancelled: int = 0  # were still waiting for their start
    lost: int = 0  # had started, and their end is not on record
    missed: int = 0  # moments of the default jobs that fell into the reset
    damage: str | None = None
    gaps: list[str] = field(default_factory=list)
    failed: bool = False  # nothing could be carried

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def carry_history(source: Path, jobstore: Engine) -> Carried:
    """Copies runs, their logs, undelivered messages and the keys of requests from the job store file `source` into the
    store behind `jobstore`.

    Runs that are there already stay as they are, so it can be called twice. A run that had not started
    becomes `cancelled`, one that had not ended `lost`: their processes are gone. Moments of jobs that both
    stores have, due after the old store's last claim and before the new store knew the job, become `missed`, unless
    they are on record: a store between the two may have had them.
    A damaged file gives every row that can be read from either end of a table; `damage` and `gaps` tell
    the rest.
    OperationFailed when `source` is no job store or nothing of its history can be read.
    """
    if not source.is_file():
        raise OperationFailed(f"there is no file {source}")
    carried = Carried(source=str(source))
    with open_database(source) as old:
        try:
            tables = {row[0] for row in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError as error:
            raise OperationFailed(f"{source} cannot be read as a SQLite database: {error}") from error
        if "runs" not in tables:
            raise OperationFailed(f"{source} holds no run history (it has no table `runs`)")
        carried.damage = finding_of(old)
        _carry_runs(old, jobstore, carried)
        if "run_logs" in tables:
            _carry_logs(old, jobstore, carried)
        if "outbox" in tables:
            _carry_messages(old, jobstore, carried)
        if "jobs" in tables:
            _record_missed(old, jobstore, carried)
        if {"jobs", "idempotency_keys"} <= tables:
            _carry_repeats(old, jobstore, carried)
    if carried.damage is not None and not carried.runs and not carried.runs_there_already and carried.gaps:
        raise OperationFailed(f"nothing of the history in {source} can be read: {carried.damage}")
    return carried


def carry_from(runtime: Runtime, sources: Sequence[Path]) -> list[Carried]:
    """Carries the history of each source: a database file, a folder of a backup, or of a store set aside.

    Without sources: every store that was set aside and not carried yet, and behind a damaged one the backup
    that its note names, for what the file itself no longer tells. A source that gives nothing is reported as
    `failed`; it does not stop the others.
    """
    if sources:
        return [_carry_one(_database_in(runtime.settings, source), runtime) for source in sources]
    if runtime.jobstore.dialect.name == "postgresql":
        # It brings PostgreSQL's driver, which a stack on SQLite never needs.
        from app.services.operations.reset.set_aside_tables import settle_interrupted  # noqa: PLC0415

        settle_interrupted(runtime)
    results = []
    for aside in asides(runtime.settings):
        if aside.note.carried_at is not None:
            continue
        found = [_carry_one(aside.file, runtime)]
        if found[0].damage is not None and aside.note.backup is not None:
            found.append(_carry_one(_database_in(runtime.settings, Path(aside.note.backup)), runtime))
        if not all(result.failed for result in found):
            aside.noted(carried_at=utc_now())
        results += found
    return results


def _carry_one(file: Path, runtime: Runtime) -> Carried:
    try:
        return carry_history(file, runtime.jobstore)
    except OperationFailed as problem:
        return Carried(source=str(file), damage=str(problem), failed=True)


def _database_in(settings: Settings, source: Path) -> Path:
    if source.is_dir():
        # What was set aside of a PostgreSQL store, too, is such a file (see set_aside_tables).
        own = sqlite_path(settings.jobstore_url)
        return source / ("scheduler.db" if own is None else own.name)
    return source


def _carry_runs(old: sqlite3.Connection, jobstore: Engine, carried: Carried) -> None:
    now = now_us()
    for batch in batches(old, runs, carried):
        rows = [_ended(row, now) for row in batch]
        before = [row["run_id"] for row in rows]
        with write_transaction(jobstore) as new:
            there = set(new.execute(select(runs.c.run_id).where(runs.c.run_id.in_(before))).scalars())
            fresh = [row for row in rows if row["run_id"] not in there]
            inserted = set(_insert(new, runs, fresh))
        carried.runs_there_already += len(there)
        carried.runs += len(inserted)
        for run_id, outcome in ((row["run_id"], row["outcome"]) for row in batch):
            if run_id in inserted and outcome in _ENDINGS:
                name = _ENDINGS[outcome][0]
                setattr(carried, name, getattr(carried, name) + 1)


def _carry_logs(old: sqlite3.Connection, jobstore: Engine, carried: Carried) -> None:
    for batch in batches(old, run_logs, carried):
        with write_transaction(jobstore) as new:
            carried.logs += len(_insert(new, run_logs, batch))


def _carry_messages(old: sqlite3.Connection, jobstore: Engine, carried: Carried) -> None:
    for batch in batches(old, outbox, carried):
        with write_transaction(jobstore) as new:
            carried.messages += len(_insert(new, outbox, batch))


def _carry_repeats(old: sqlite3.Connection, jobstore: Engine, carried: Carried) -> None:
    """A request that was carried out is still known when it is sent again. One that created a job which the reset took
    away is not: sent again, it creates the job again."""
    try:
        created = {row["id"] for row in old.execute("SELECT id FROM jobs")}
        query = "SELECT scope, key, fingerprint, resource, created_at FROM idempotency_keys"
        found = [dict(row) for row in old.execute(query)]
    except sqlite3.DatabaseError as error:
        carried.damage = carried.damage or str(error)
        carried.gaps.append(f"idempotency_keys: they could not be read: {error}")
        return
    for start in range(0, len(found), _ROWS_PER_COMMIT):
        with write_transaction(jobstore) as new:
            gone = created - set(new.execute(select(jobs.c.id)).scalars())
            rows = [row for row in found[start : start + _ROWS_PER_COMMIT] if row["resource"] not in gone]
            carried.repeats += len(_insert(new, idempotency_keys, rows))


def _key(table: Table) -> str:
    """The first column of the table's key: an id that rises with time, where it is the only one."""
    return str(table.primary_key.columns[0].name)


def _insert(new: Connection, table: Table, rows: list[dict[str, Any]]) -> list[str]:
    """Inserts the rows whose keys are free; the ids of those that are in. A row that a damaged page garbled
    so that it breaks the table's rules is left out."""
    if not rows:
        return []
    if new.dialect.name == "postgresql":
        return _insert_on_server(new, table, rows)
    statement = sqlite_dialect.insert(table).prefix_with("OR IGNORE")
    return [row[_key(table)] for row in rows if new.execute(statement.values(**row)).rowcount == 1]


def _insert_on_server(new: Connection, table: Table, rows: list[dict[str, Any]]) -> list[str]:
    """The same on PostgreSQL: in one statement where it takes all of them, else one by one."""
    # Its texts hold no NUL.
    clean = [
        {name: value.replace("\0", "\\x00") if isinstance(value, str) else value for name, value in row.items()}
        for row in rows
    ]
    key = table.c[_key(table)]
    statement = postgresql.insert(table).on_conflict_do_nothing().returning(key)
    try:
        with new.begin_nested():
            return list(new.execute(statement.values(clean)).scalars())
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        if len(clean) == 1:
            return []
    return [key for row in clean for key in _insert_on_server(new, table, [row])]


def _ended(row: Mapping[str, Any], now: int) -> dict[str, Any]:
    values = dict(row)
    if values["outcome"] in _ENDINGS:
        values["outcome"], values["reason"] = _ENDINGS[values["outcome"]]
        values["finished_at"] = now
    return values


def batches(old: sqlite3.Connection, table: Table, carried: Carried) -> Iterator[list[dict[str, Any]]]:
    """All rows of a table by rising key; past a place that cannot be read, those from the other end.

    The key is the table's first column, by which no two rows are equal. `carried` is told of what cannot be read.
    """
    reader = _TableReader(old, table)
    yield from reader.walk("ASC")
    if reader.error is None:
        return
    yield from reader.walk("DESC")
    carried.damage = carried.damage or str(reader.error)
    first = reader.low or "the beginning"
    last = "the end" if reader.high == _AFTER_ALL else reader.high
    carried.gaps.append(f"{table.name}: nothing between {first} and {last} can be read: {reader.error}")


class _TableReader:
    """Reads a table by its key from either end towards a place that cannot be read."""

    def __init__(self, old: sqlite3.Connection, table: Table) -> None:
        present = {row["name"] for row in old.execute(f"PRAGMA table_info({table.name})")}
        columns = ", ".join(f'"{column.name}"' for column in table.columns if column.name in present)
        self._key = key = _key(table)
        self._query = f"SELECT {columns} FROM {table.name} WHERE {key} > ? AND {key} < ? ORDER BY {key}"  # noqa: S608
        self._old = old
        self.low, self.high = "", _AFTER_ALL
        self.error: sqlite3.DatabaseError | None = None

    def walk(self, direction: Literal["ASC", "DESC"]) -> Iterator[list[dict[str, Any]]]:
        """Batches of rows between `low` and `high`, which close in on what is left; `error` ends the walk."""
        limit = _ROWS_PER_COMMIT
        while True:
            try:
                found = self._old.execute(f"{self._query} {direction} LIMIT ?", (self.low, self.high, limit))
                rows = [dict(row) for row in found]
                if not rows:
                    return
                key = rows[-1][self._key]
                if not (isinstance(key, str) and self.low < key < self.high):
                    raise sqlite3.DatabaseError("a page holds rows that do not belong there")
            except sqlite3.DatabaseError as error:
                if limit == 1:
                    self.error = error
                    return
                limit = max(1, limit // 8)  # closer to the place
                continue
            yield rows
            if direction == "ASC":
                self.low = key
            else:
                self.high = key


def _record_missed(old: sqlite3.Connection, jobstore: Engine, carried: Carried) -> None:
    """Records the moments that were due between the old store's last claim and the new store's start."""
    try:
        due = {
            row["id"]: (row["trigger"], row["next_run_time"])
            for row in old.execute("SELECT id, trigger, next_run_time FROM jobs WHERE next_run_time IS NOT NULL")
        }
    except sqlite3.DatabaseError as error:
        carried.damage = carried.damage or str(error)
        carried.gaps.append(f"jobs: their next moments could not be read: {error}")
        return
    with write_transaction(jobstore) as new:
        for job in new.execute(select(jobs).where(jobs.c.id.in_(due))).mappings().all():
            trigger, moment = due[job["id"]]
            moments = _moments(trigger, moment, until=job["created_at"])
            for stretch in _not_on_record(new, job["id"], moments):
                row = _missed_row(dict(job), stretch)
                if _insert(new, runs, [row]):
                    carried.missed += row["count"]


def _moments(trigger: str, first: int, *, until: int) -> list[int]:
    found: list[int] = []
    moment: int | None = first
    try:
        while moment is not None and moment <= until and len(found) < _MOST_MOMENTS:
            found.append(moment)
            moment = next_moment(trigger, moment)
    except (ValueError, TypeError, KeyError):  # the old row is damaged: its moments are not known
        return []
    return found


def _not_on_record(new: Connection, job_id: str, moments: list[int]) -> list[list[int]]:
    """The moments without an outcome, in stretches between those that have one."""
    if not moments:
        return []
    of_the_job = (runs.c.job_id == job_id, runs.c.kind == "schedule", runs.c.scheduled_for >= moments[0])
    query = select(runs.c.scheduled_from, runs.c.scheduled_for).where(*of_the_job)
    recorded = sorted((row[0] if row[0] is not None else row[1], row[1]) for row in new.execute(query))
    stretches: list[list[int]] = [[]]
    place = 0
    for moment in moments:
        while place < len(recorded) and recorded[place][1] < moment:
            place += 1
        if place < len(recorded) and recorded[place][0] <= moment:
            stretches.append([])
        else:
            stretches[-1].append(moment)
    return [stretch for stretch in stretches if stretch]


def _missed_row(job: Mapping[str, Any], moments: list[int]) -> dict[str, Any]:
    capped = "at least " if len(moments) == _MOST_MOMENTS else ""
    several = f" ({capped}{len(moments)} moments)" if len(moments) > 1 else ""
    return {
        "run_id": new_run_id(now_us()),
        "job_id": job["id"],
        "task": job["task"],
        "kind": "schedule",
        "scheduled_for": moments[-1],
        "scheduled_from": moments[0] if len(moments) > 1 else None,
        "count": len(moments),
        "outcome": "missed",
        "reason": f"due while the job store was being reset{several}",
        "executor": job["executor"],
        "max_instances": job["max_instances"],
        "misfire_grace_time": job["misfire_grace_time"],
        "retry_on_loss": job["retry_on_loss"],
        "kwargs": job["kwargs"],
        "created_by": "schedule",
        "claimed_at": now_us(),
    }
