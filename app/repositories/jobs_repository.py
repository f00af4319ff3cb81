"""Reads of stored jobs. Changes go through the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Engine, Select, and_, func, or_, select

from app.db.clock import from_us, to_us
from app.db.engines import read_transaction
from app.db.jobstore_tables import jobs, runs
from app.ledger import Job
from app.ledger.jobs import job_from_row


@dataclass(frozen=True)
class JobReading:
    """A stored job with what its runs add: the start of its newest run, the outcome of its newest row."""

    job: Job
    last_run_time: datetime | None = None
    last_outcome: str | None = None


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; None asks for nothing. `scheduled` means: has a next run. `q` is looked for in id,
    name and description, whatever its case."""

    scheduled: bool | None = None
    task: str | None = None
    q: str | None = None
    source: Literal["builtin", "default", "own"] | None = None
    is_enabled: bool | None = None
    is_active: bool | None = True

    def conditions(self) -> list[ColumnElement[bool]]:
        """The filter as SQL."""
        wanted: list[ColumnElement[bool]] = []
        if self.scheduled is not None:
            is_scheduled = jobs.c.next_run_time.is_not(None)
            wanted.append(is_scheduled if self.scheduled else ~is_scheduled)
        if self.task is not None:
            wanted.append(jobs.c.task == self.task)
        if self.source is not None:
            wanted.append(jobs.c.source == self.source)
        if self.is_enabled is not None:
            wanted.append(jobs.c.is_enabled.is_(self.is_enabled))
        if self.is_active is not None:
            wanted.append(jobs.c.is_active.is_(self.is_active))
        if self.q:
            columns = (jobs.c.id, jobs.c.name, jobs.c.description)
            wanted.append(or_(*(column.icontains(self.q, autoescape=True) for column in columns)))
        return wanted


@dataclass(frozen=True)
class JobCounts:
    """How many jobs there are. The groups may overlap, but for `deleted`, whose jobs are in no other."""

    total: int
    scheduled: int
    paused: int
    disabled: int
    with_problem: int
    deleted: int


def _newest_of_job(column: ColumnElement[Any], *conditions: ColumnElement[bool]) -> ColumnElement[Any]:
    """Of each job's newest row in the ledger, under `conditions`, the value of `column`."""
    return (
        select(column)
        .where(runs.c.job_id == jobs.c.id, *conditions)
        .order_by(runs.c.run_id.desc())
        .limit(1)
        .correlate(jobs)
        .scalar_subquery()
    )


def _readings() -> Select[Any]:
    return select(
        jobs,
        _newest_of_job(runs.c.started_at, runs.c.started_at.is_not(None)).label("last_started_at"),
        _newest_of_job(runs.c.outcome).label("last_outcome"),
    )


def _reading(row: Any) -> JobReading:
    started = row["last_started_at"]
    return JobReading(
        job=job_from_row(row, tolerant=True),
        last_run_time=None if started is None else from_us(started),
        last_outcome=row["last_outcome"],
    )


class JobsRepository:
    """Queries of the `jobs` table. A row whose content is damaged is read with its `problem`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, wanted: JobFilter, *, limit: int | None = None, after: str | None = None) -> Sequence[JobReading]:
        """Up to `limit` jobs (None: all) by id, beginning behind the id `after`, in one query."""
        query = _readings().where(*wanted.conditions()).order_by(jobs.c.id)
        if after is not None:
            query = query.where(jobs.c.id > after)
        if limit is not None:
            query = query.limit(limit)
        return self._read(query)

    def get(self, job_id: str, *, include_deleted: bool = False) -> JobReading | None:
        """The job `job_id`, or None."""
        if "\0" in job_id:  # PostgreSQL refuses the query itself
            return None
        query = _readings().where(jobs.c.id == job_id)
        if not include_deleted:
            query = query.where(jobs.c.is_active.is_(True))
        found = self._read(query)
        return found[0] if found else None

    def overdue(self, before: datetime, *, limit: int) -> Sequence[JobReading]:
        """Jobs whose next run was due before `before` and has not been claimed, the latest first."""
        due = and_(jobs.c.next_run_time.is_not(None), jobs.c.next_run_time < to_us(before))
        return self._read(
            _readings()
            .where(jobs.c.is_active.is_(True), due, jobs.c.problem.is_(None))
            .order_by(jobs.c.next_run_time)
            .limit(limit)
        )

    def upcoming(self, *, limit: int) -> Sequence[JobReading]:
        """The jobs that run next, the soonest first."""
        return self._read(
            _readings()
            .where(jobs.c.is_active.is_(True), jobs.c.next_run_time.is_not(None))
            .order_by(jobs.c.next_run_time)
            .limit(limit)
        )

    def tasks_in_use(self) -> set[tuple[str, str]]:
        """(task, executor) of every job that is on, paused ones too."""
        query = select(jobs.c.task, jobs.c.executor).where(
            jobs.c.is_active.is_(True), jobs.c.is_enabled.is_(True), jobs.c.problem.is_(None)
        )
        with read_transaction(self._engine) as connection:
            return {(row.task, row.executor) for row in connection.execute(query.distinct())}

    def counts(self) -> JobCounts:
        """How many jobs there are of each kind, in one query."""
        active = jobs.c.is_active.is_(True)

        def count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
            return func.count().filter(*conditions)

        query = select(
            count(active).label("total"),
            count(active, jobs.c.next_run_time.is_not(None)).label("scheduled"),
            count(active, jobs.c.is_paused.is_(True)).label("paused"),
            count(active, jobs.c.is_enabled.is_(False)).label("disabled"),
            count(active, jobs.c.problem.is_not(None)).label("with_problem"),
            count(~active).label("deleted"),
        ).select_from(jobs)
        with read_transaction(self._engine) as connection:
            return JobCounts(**connection.execute(query).mappings().one())

    def _read(self, query: Select[Any]) -> list[JobReading]:
        with read_transaction(self._engine) as connection:
            return [_reading(row) for row in connection.execute(query).mappings()]
