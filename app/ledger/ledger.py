"""The ledger's door for everybody but the loop: jobs are added, edited and deleted, runs are asked for.

Every edit first claims the moments of its job that are already due, in the same transaction, so that no edit
makes a fire vanish.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from app.db.clock import from_us, to_us
from app.db.engines import database_now_us, read_transaction, write_transaction
from app.db.jobstore_tables import ACTIVE, IS_ACTIVE, JOB_ID_LENGTH, Row, jobs, run_logs, runs
from app.db.reach import cause_of, is_out_of_reach
from app.errors import _N, NotFound, PreconditionFailed, ValidationError
from app.ledger.claim import active_counts, claim, copied, insert_runs
from app.ledger.fates import first_moment
from app.ledger.holds import CatchUp, CaughtUp, DueMoments, Hold, due_moments, end_hold, find_hold, put_hold
from app.ledger.jobs import SETTINGS, Job, NewJob, job_from_row, to_json, what_is_unreadable
from app.ledger.nodes import Node, list_nodes
from app.ledger.repeats import RepeatKey, remember
from app.ledger.run_ids import new_run_id, run_id_floor
from app.ledger.runs import Run, run_from_row

logger = logging.getLogger(__name__)

RESTORABLE_DAYS = 30
"""How long a deleted job can be restored."""

_PURGE_PAUSE_S = 0.1
_MICROSECONDS_A_DAY = 86_400 * 1_000_000
_EDITABLE = frozenset({*SETTINGS, "trigger", "is_enabled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """Ids of the default jobs that a start added, brought up to date, left alone; and of stored ones that the
    file no longer names."""

    added: tuple[str, ...]
    updated: tuple[str, ...]
    kept: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReloadReport:
    """Ids that a reload deleted and registered, and why those that stayed could not be removed."""

    deleted: tuple[str, ...]
    reloaded: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)


class Ledger:
    """Jobs and runs in the job store behind `engine`.

    A process that runs a scheduler attaches it: runs asked for here are then its own, and it is woken.
    Elsewhere they belong to nobody until a scheduler adopts them. `alerts`: what goes wrong is announced in the
    outbox, because somebody delivers it.
    """

    def __init__(self, engine: Engine, *, alerts: bool = False) -> None:
        self.engine = engine
        self.alerts = alerts
        self._owner = ""
        self._wake: Callable[[], None] = lambda: None
        self._shared: tuple[Connection, int] | None = None

    def attach(self, owner: str, wake: Callable[[], None]) -> None:
        """Makes node `owner` of this process the owner of new runs; `wake` is called after every change."""
        self._owner, self._wake = owner, wake

    def detach(self) -> None:
        """New runs belong to nobody again: this process's scheduler has stopped."""
        self.attach("", lambda: None)

    @contextmanager
    def together(self) -> Iterator["Ledger"]:
        """Edits made through the yielded ledger share one transaction: all of them, or none.

        Its reads do not see the edits; they are for deciding before the first one.
        """
        with self._edit() as shared:
            edits = Ledger(self.engine, alerts=self.alerts)
            edits.attach(self._owner, lambda: None)  # this ledger wakes the loop, after the commit
            edits._shared = shared
            yield edits

    # Jobs

    def get_job(self, job_id: str, *, include_deleted: bool = False) -> Job | None:
        """The job, or None; one that cannot be read comes with its `problem`."""
        with read_transaction(self.engine) as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
        if row is None or not (row["is_active"] or include_deleted):
            return None
        return job_from_row(row, tolerant=True)

    def add_job(self, new: NewJob, by: str, *, repeat: RepeatKey | None = None) -> Job:
        """Adds a job; ValidationError when its id is taken, also by a deleted job that can be restored.

        `repeat` makes a second request with the same key harmless: RepeatedRequest.
        """
        with self._edit() as (connection, now):
            if repeat is not None:
                remember(connection, repeat, resource=new.id, now=now)
            if not _insert_job(connection, new, by=by, now=now):
                taken = connection.execute(select(jobs.c.is_active).where(jobs.c.id == new.id)).scalar_one_or_none()
                message = _N("任务 ID 属于一个已删除、仍可恢复的任务") if taken is False else _N("任务 ID 已被占用")
                raise ValidationError(message, field="id", value=new.id, accepted=_N("未被占用的 ID"))
            return _read_job(connection, new.id)

    def change_job(self, job_id: str, changes: Mapping[str, Any], by: str, *, if_revision: int | None = None) -> Job:
        """Replaces the given fields of a job; a paused job stays paused, a disabled one disabled.

        NotFound; PreconditionFailed when the job is no longer at `if_revision`; ValueError for a field that
        is not one of a job's.
        """
        unknown = set(changes) - _EDITABLE
        if unknown:
            raise ValueError(f"not fields of a job that can be changed: {', '.join(sorted(unknown))}")
        with self._edit(job_id) as (connection, now):
            row = _active_row(connection, job_id)
            if if_revision is not None and row["revision"] != if_revision:
                raise PreconditionFailed(context={"revision": row["revision"]})
            values = {name: _stored(value) for name, value in changes.items()}
            _update_job(connection, row, values, by=by, now=now)
            return _read_job(connection, job_id)

    def pause_job(self, job_id: str, by: str) -> Job:
        """No next run until the job is resumed."""
        return self._set_flag(job_id, "is_paused", True, by)

    def resume_job(self, job_id: str, by: str) -> Job:
        """The next run is the trigger's next moment from now on."""
        return self._set_flag(job_id, "is_paused", False, by)

    def delete_job(self, job_id: str, by: str) -> Job:
        """Deletes softly: the job can be restored for RESTORABLE_DAYS days."""
        with self._edit(job_id) as (connection, now):
            row = _active_row(connection, job_id)
            _update_job(connection, row, {"is_active": False, "deleted_at": now}, by=by, now=now)
            return _read_job(connection, job_id)

    def restore_job(self, job_id: str, by: str) -> Job:
        """Brings a deleted job back; NotFound when there is none."""
        with self._edit() as (connection, now):
            query = select(jobs).where(jobs.c.id == job_id).with_for_update()
            row = connection.execute(query).mappings().one_or_none()
            if row is None or row["is_active"]:
                raise NotFound(_N("任务不存在"))
            _update_job(connection, row, {"is_active": True, "deleted_at": None}, by=by, now=now)
            return _read_job(connection, job_id)

    def purge_deleted_jobs(self, older_than_days: int = RESTORABLE_DAYS, *, only: Collection[str] | None = None) -> int:
        """Drops jobs that were deleted longer ago than that, of `only` these ids where they are given; their number.

        Their runs stay on record.
        """
        with write_transaction(self.engine) as connection:
            before = database_now_us(connection) - older_than_days * _MICROSECONDS_A_DAY
            statement = delete(jobs).where(~jobs.c.is_active, jobs.c.deleted_at < before)
            return connection.execute(statement if only is None else statement.where(jobs.c.id.in_(only))).rowcount

    def load_defaults(self, defaults: Sequence[NewJob], by: str = "system") -> LoadReport:
        """Brings the default jobs of the configuration into the store, at a start.

        Missing ones are added; stored ones take what the configuration changed and keep what the API changed;
        ones that it no longer names stay until a reload.
        """
        added: list[str] = []
        updated: list[str] = []
        kept: list[str] = []
        with self._edit() as (connection, now):
            stored = {row["id"]: row for row in connection.execute(select(jobs)).mappings()}
            for new in defaults:
                row = stored.get(new.id)
                if row is None:
                    # Another node that starts at this moment may have added it meanwhile.
                    (added if _insert_job(connection, new, by=by, now=now) else kept).append(new.id)
                elif row["source"] == "own":
                    logger.error("default job %s: its id is taken by a job of a user's own, which stays", new.id)
                    kept.append(new.id)
                elif values := _new_definition(row, new):
                    self._settle(connection, new.id, now)
                    _update_job(connection, _row(connection, new.id), values, by=by, now=now, own_edit=False)
                    updated.append(new.id)
                else:
                    kept.append(new.id)
        unknown = [
            job_id
            for job_id, row in stored.items()
            if row["is_active"] and row["source"] != "own" and job_id not in {new.id for new in defaults}
        ]
        return LoadReport(added=tuple(added), updated=tuple(updated), kept=tuple(kept), unknown=tuple(unknown))

    def reload_defaults(self, defaults: Sequence[NewJob], by: str) -> ReloadReport:
        """Deletes every job, each in a transaction of its own, and registers the defaults anew.

        Own jobs can be restored. A default that was disabled stays so. A row that cannot be read is put aside
        under another id, with its content as it was. What cannot be removed is reported and stays. A store that is out
        of reach for all of it raises what it raised.
        """
        deleted: list[str] = []
        reloaded: list[str] = []
        failed: dict[str, str] = {}
        out_of_reach: SQLAlchemyError | None = None
        by_id = {new.id: new for new in defaults}
        with read_transaction(self.engine) as connection:
            stored = list(connection.execute(select(jobs.c.id).where(jobs.c.is_active)).scalars())
        for job_id in [*stored, *(new.id for new in defaults if new.id not in stored)]:
            try:
                with self._edit(job_id) as (connection, now):
                    known = _remove(connection, job_id, by=by, now=now, replaced=job_id in by_id)
                    if job_id in by_id:
                        new = by_id[job_id]
                        enabled = new.is_enabled and (known is None or known["is_enabled"])
                        # Who was told that it fails is told when it no longer does.
                        alarming = known is not None and known["is_alarming"]
                        _insert_job(connection, new, by=by, now=now, is_enabled=enabled, is_alarming=alarming)
            except Exception as error:
                logger.exception("job %s could not be reloaded", job_id)
                # Not the statement and its parameters: the reader of the report may know only so much.
                cause = cause_of(error) if isinstance(error, SQLAlchemyError) else str(error)
                failed[job_id] = f"{type(error).__name__}: {cause}"
                if isinstance(error, SQLAlchemyError) and is_out_of_reach(error):
                    out_of_reach = error
                continue
            if job_id in stored:
                deleted.append(job_id)
            if job_id in by_id:
                reloaded.append(job_id)
        if out_of_reach is not None and not deleted and not reloaded:
            raise out_of_reach
        return ReloadReport(deleted=tuple(deleted), reloaded=tuple(reloaded), failed=failed)

    # Runs

    def request_run(
        self,
        job_id: str,
        created_by: str,
        kwargs: Mapping[str, Any] | None = None,
        *,
        repeat: RepeatKey | None = None,
    ) -> Run:
        """Puts a manual run of the job on record, to be started at once, paused and disabled jobs too.

        `kwargs` replace the job's own for this run. NotFound; ValidationError at `max_instances`. `repeat` makes a
        second request with the same key harmless: RepeatedRequest.
        """
        with self._edit() as (connection, now):
            if find_hold(connection) is None:  # else what is due waits for a decision
                self._settle(connection, job_id, now)
            row = _active_row(connection, job_id)
            run_id = new_run_id(now)
            if repeat is not None:
                remember(connection, repeat, resource=run_id, now=now)
            active = active_counts(connection, job_id).get(job_id, 0)
            if active >= row["max_instances"]:
                raise ValidationError(
                    _N("任务正在运行的实例已达上限 %(limit)s"),
                    field="max_instances",
                    value=active,
                    params={"limit": row["max_instances"]},
                )
            values = {
                "run_id": run_id,
                "job_id": job_id,
                "kind": "manual",
                "scheduled_for": now,
                "attempt": 1,
                "outcome": "pending",
                "owner": self._owner,
                "epoch": 1,
                "created_by": created_by,
                "claimed_at": now,
                "kwargs": row["kwargs"] if kwargs is None else to_json(dict(kwargs)),
                "first_run_id": None,
                "not_before": None,
                **copied(row),
            }
            if not insert_runs(connection, [values]):  # two requests in the same microsecond
                values["scheduled_for"] += 1
                insert_runs(connection, [values])
            stored = connection.execute(select(runs).where(runs.c.run_id == values["run_id"]))
            return run_from_row(stored.mappings().one())

    def cancel_run(self, run_id: str, by: str) -> Run:
        """Cancels a run that has not ended: at once while it waits; else its node is told, and obeys as soon as its
        executor can (a thread is asked, a process is killed).

        NotFound; ValidationError when it has ended.
        """
        with self._edit() as (connection, now):
            query = select(runs).where(runs.c.run_id == run_id)
            row = connection.execute(query.with_for_update()).mappings().one_or_none()
            if row is None:
                raise NotFound(_N("执行记录不存在"))
            if row["outcome"] not in ACTIVE:
                raise ValidationError(
                    _N("该执行已结束（%(outcome)s），无法取消"),
                    field="run_id",
                    value=run_id,
                    accepted=_N("等待中或运行中的执行"),
                    params={"outcome": row["outcome"]},
                )
            values: dict[str, Any] = {}
            if row["cancel_requested_at"] is None:
                values = {"cancel_requested_at": now, "cancel_requested_by": by}
            if row["outcome"] == "pending":
                values |= {"outcome": "cancelled", "finished_at": now, "reason": "cancelled before it began"}
            if values:
                connection.execute(update(runs).where(runs.c.run_id == run_id).values(values))
            return run_from_row(connection.execute(query).mappings().one())

    def purge_runs(self, older_than: datetime, batch: int = 5000) -> int:
        """Drops runs claimed before `older_than` that have ended, with their logs; their number.

        Works in transactions of `batch` rows with a pause after each, so that claims go on in between.
        """
        total = 0
        while True:
            with write_transaction(self.engine) as connection:
                old = list(
                    connection.execute(
                        select(runs.c.run_id)
                        .where(
                            runs.c.run_id < run_id_floor(to_us(older_than)),
                            runs.c.outcome.not_in(("pending", "running")),
                        )
                        .limit(batch)
                    ).scalars()
                )
                for table in (run_logs, runs):
                    connection.execute(delete(table).where(table.c.run_id.in_(old)))
            total += len(old)
            if len(old) < batch:
                return total
            # Who waits for SQLite's lock sleeps up to 0.1 s between two tries: without a pause it hardly gets in.
            time.sleep(_PURGE_PAUSE_S)

    # Holds

    def hold(self, reason: str, by: str) -> Hold:
        """From now on no job fires by its trigger, on any node, until `release_hold`; a hold that is there stays."""
        with self._edit() as (connection, now):
            return put_hold(connection, reason=reason, by=by, now=now)

    def held(self) -> Hold | None:
        """The hold on record, if any."""
        with read_transaction(self.engine) as connection:
            return find_hold(connection)

    def due_moments(self) -> list[DueMoments]:
        """What is due and not on record, by job: in a hold, the fires that wait for a decision."""
        with read_transaction(self.engine) as connection:
            return due_moments(connection, now=database_now_us(connection))

    def release_hold(self, catch_up: CatchUp) -> CaughtUp | None:
        """Ends the hold; `catch_up` says what becomes of what is due. None when there is no hold.

        TooMuchToCatchUp, and the hold goes on.
        """
        with self._edit() as (connection, now):
            return end_hold(connection, catch_up=catch_up, now=now)

    # The store

    def nodes(self) -> list[Node]:
        """The scheduler processes on record, the newest first."""
        with read_transaction(self.engine) as connection:
            return list_nodes(connection)

    def now(self) -> datetime:
        """The present time by the clock that claims go by, aware UTC."""
        with read_transaction(self.engine) as connection:
            return from_us(database_now_us(connection))

    def _set_flag(self, job_id: str, flag: str, value: bool, by: str) -> Job:
        with self._edit(job_id) as (connection, now):
            row = _active_row(connection, job_id)
            if row[flag] != value:
                _update_job(connection, row, {flag: value}, by=by, now=now)
            return _read_job(connection, job_id)

    @contextmanager
    def _edit(self, job_id: str | None = None) -> Iterator[tuple[Connection, int]]:
        """A write transaction with its time; what is due of `job_id` is claimed first; wakes the loop at the end."""
        with ExitStack() as stack:
            stack.callback(self._wake)  # after an error too: a commit of unknown fate may have left the loop runs
            if self._shared is None:
                connection = stack.enter_context(write_transaction(self.engine))
                now = database_now_us(connection)
            else:
                connection, now = self._shared
            if job_id is not None:
                self._settle(connection, job_id, now)
            yield connection, now

    def _settle(self, connection: Connection, job_id: str, now: int) -> None:
        """Claims every moment of the job that is due, however many looks that takes."""
        while claim(connection, owner=self._owner, now=now, only=job_id, alerts=self.alerts).more_due:
            pass


def _row(connection: Connection, job_id: str) -> Row:
    query = select(jobs).where(jobs.c.id == job_id).with_for_update()
    return connection.execute(query).mappings().one()


def _active_row(connection: Connection, job_id: str) -> Row:
    query = select(jobs).where(jobs.c.id == job_id, jobs.c.is_active).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(_N("任务不存在"))
    return row


def _read_job(connection: Connection, job_id: str) -> Job:
    return job_from_row(_row(connection, job_id), tolerant=True)


def _stored(value: Any) -> Any:
    return to_json(dict(value)) if isinstance(value, Mapping) else value


def _insert_job(
    connection: Connection,
    new: NewJob,
    *,
    by: str,
    now: int,
    is_enabled: bool | None = None,
    is_alarming: bool = False,
) -> bool:
    """Whether the job is added; not when its id is taken."""
    values = {name: _stored(getattr(new, name)) for name in SETTINGS}
    values["name"] = new.name or new.id
    enabled = new.is_enabled if is_enabled is None else is_enabled
    trigger = to_json(dict(new.trigger))
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    inserted = connection.execute(
        dialect.insert(jobs)
        .values(
            id=new.id,
            source=new.source,
            trigger=trigger,
            is_enabled=enabled,
            # A switch that differs from the definition is the API's, and stays so at the next start.
            overrides=json.dumps([] if enabled == new.is_enabled else ["is_enabled"]),
            is_paused=False,
            is_active=True,
            is_alarming=is_alarming,
            next_run_time=first_moment(trigger, now) if enabled else None,
            revision=1,
            created_by=by,
            created_at=now,
            updated_by=by,
            updated_at=now,
            **values,
        )
        .on_conflict_do_nothing(index_elements=[jobs.c.id])
        .execution_options(preserve_rowcount=True)
    )
    return inserted.rowcount == 1


def _update_job(
    connection: Connection,
    row: Row,
    values: Mapping[str, Any],
    *,
    by: str,
    now: int,
    own_edit: bool = True,
) -> None:
    """Writes `values` and what follows from them: the next run time, the overrides, the revision."""
    after = {**row, **values}
    values = dict(values)
    if row["problem"] is not None and values.keys() & {"trigger", "kwargs"}:
        values["problem"] = after["problem"] = _problem(after, now)
    if not _fires(after):
        values["next_run_time"] = None
        if _fires(row):
            _cancel_waiting_attempts(connection, row["id"], now)
    elif "trigger" in values or not _fires(row):
        values["next_run_time"] = first_moment(after["trigger"], now)
    if own_edit and row["source"] != "own":
        changed = values.keys() & {"trigger", "is_paused", "is_enabled"}
        values["overrides"] = json.dumps(sorted({*_overrides(row), *changed}))
    connection.execute(
        update(jobs)
        .where(jobs.c.id == row["id"])
        .values(**values, revision=row["revision"] + 1, updated_by=by, updated_at=now)
    )


def _cancel_waiting_attempts(connection: Connection, job_id: str, now: int) -> None:
    """A job that fires no more repeats nothing either; what somebody asked for by hand goes on."""
    waiting = (IS_ACTIVE, runs.c.job_id == job_id, runs.c.kind == "schedule", runs.c.outcome == "pending")
    connection.execute(
        update(runs)
        .where(*waiting, runs.c.attempt > 1)
        .values(outcome="cancelled", finished_at=now, reason="the job was paused, disabled or deleted")
    )


def _fires(row: Row) -> bool:
    return bool(row["is_active"] and row["is_enabled"] and not row["is_paused"] and not row["problem"])


def _problem(row: Row, now: int) -> str | None:
    """Why the row cannot be read, or None when it can."""
    try:
        job_from_row({**row, "problem": None})
        first_moment(row["trigger"], now)
    except Exception as error:  # whatever is in the row
        return what_is_unreadable(error)
    return None


def _overrides(row: Row) -> list[str]:
    try:
        return list(json.loads(row["overrides"]))
    except (ValueError, TypeError):
        return []


def _new_definition(row: Row, new: NewJob) -> dict[str, Any]:
    """The columns of a stored default job that its definition changes; nothing of what the API changed."""
    values = {name: _stored(getattr(new, name)) for name in SETTINGS}
    values["name"] = new.name or new.id
    values["source"] = new.source
    overrides = _overrides(row)
    if "is_enabled" not in overrides:
        values["is_enabled"] = new.is_enabled
    if "trigger" not in overrides and not _same_trigger(row["trigger"], new.trigger):
        values["trigger"] = to_json(dict(new.trigger))
    if not row["is_active"]:
        values.update(is_active=True, deleted_at=None)
    return {name: value for name, value in values.items() if row[name] != value}


def _same_trigger(stored: str, new: Mapping[str, Any]) -> bool:
    """Whether an interval differs in nothing but where it began: one without a start begins anew at each parse."""
    try:
        old = json.loads(stored)
    except ValueError:
        return True  # set aside: a start does not overwrite what it cannot read
    if isinstance(old, dict) and old.get("type") == new.get("type") == "interval":
        old, new = ({**spec, "start_date": None} for spec in (old, new))
    return bool(old == dict(new))


def _remove(connection: Connection, job_id: str, *, by: str, now: int, replaced: bool) -> Row | None:
    """Takes the job away, or out of the way when it is `replaced`: its row before, None when there was none.

    Deleted for good is only what the configuration can bring back: an own job and a row that cannot be read
    stay, restorable, under another id where their own is needed.
    """
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).mappings().one_or_none()
    if row is None:
        return None
    readable = _problem(row, now) is None
    if readable and row["source"] != "own":
        connection.execute(delete(jobs).where(jobs.c.id == job_id))
        return row
    values: dict[str, Any] = {"is_active": False, "deleted_at": row["deleted_at"] or now}
    if replaced or not readable:
        values["id"] = f"{job_id[: JOB_ID_LENGTH - 33]}~{new_run_id(now)}"
    _update_job(connection, row, values, by=by, now=now)
    return row
