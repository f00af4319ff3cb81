"""Reads of the run ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, select

from app.db.clock import from_us, to_us
from app.db.engines import read_transaction
from app.db.jobstore_tables import (
    ACTIVE,
    IS_ACTIVE,
    IS_ALARMING,
    IS_UNUSUAL,
    UNUSUAL,
    Row,
    jobs,
    outbox,
    run_logs,
    runs,
)
from app.ledger import Run, run_from_row, run_id_floor

_RUN_COLUMNS = [
    runs.c[name]
    for name in (
        *("run_id", "job_id", "task", "kind", "scheduled_for", "scheduled_from", "count", "attempt"),
        *("outcome", "reason", "error", "owner", "epoch", "node", "created_by", "claimed_at", "started_at"),
        *("finished_at", "executor", "max_attempts", "first_run_id", "not_before", "cancel_requested_at"),
        "cancel_requested_by",
    )
]


@dataclass(frozen=True)
class RunFilter:
    """Which runs of a job to list; None asks for nothing. `since` and `until` bound the claim's time."""

    outcome: str | None = None
    kind: Literal["schedule", "manual"] | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The filter as SQL; times are bounds of the run id, which sorts by them."""
        wanted: list[ColumnElement[bool]] = []
        if self.outcome is not None:
            wanted += _has_outcome(self.outcome)
        if self.kind is not None:
            wanted.append(runs.c.kind == self.kind)
        if self.since is not None:
            wanted.append(runs.c.run_id >= run_id_floor(to_us(self.since)))
        if self.until is not None:
            wanted.append(runs.c.run_id < run_id_floor(to_us(self.until)))
        return wanted


def _has_outcome(outcome: str) -> list[ColumnElement[bool]]:
    """The condition, written so that a small index answers it; most runs end in success, and need none."""
    if outcome in UNUSUAL:
        return [IS_UNUSUAL, runs.c.outcome == outcome]
    if outcome in ACTIVE:
        # Of all jobs, from the index of active runs: there are never many.
        found = select(runs.c.run_id).where(IS_ACTIVE, runs.c.outcome == outcome).correlate(None)
        return [runs.c.run_id.in_(found)]
    return [runs.c.outcome == outcome]


@dataclass(frozen=True)
class JobHistory:
    """Runs of one job, newest first, and the name of the zone of its trigger, when it can be read."""

    runs: Sequence[Run]
    timezone: str | None


@dataclass(frozen=True)
class RunReading:
    """One run with the log of its task, and the zone of its job's trigger, when both are there.

    Time limits are in seconds; `other_attempts` are those of the same fire, the first one first.
    """

    run: Run
    log: str
    timezone: str | None
    job_exists: bool
    soft_time_limit: int | None
    time_limit: int | None
    other_attempts: Sequence[Run]


def _timezone(trigger: str | None) -> str | None:
    try:
        spec = json.loads(trigger or "{}")
    except ValueError:
        return None
    zone = spec.get("timezone") if isinstance(spec, Mapping) else None
    return zone if isinstance(zone, str) else None


class RunsRepository:
    """Queries of the `runs` and `run_logs` tables."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def history(self, job_id: str, wanted: RunFilter, *, limit: int, before: str | None = None) -> JobHistory | None:
        """Up to `limit` runs of a job, deleted or not, older than the run `before`; None for no such job.

        One query: the job is the left side of the join, so that "no job" and "no runs" differ.
        """
        if "\0" in job_id:  # PostgreSQL refuses the query itself
            return None
        page = select(*_RUN_COLUMNS).where(runs.c.job_id == job_id, *wanted.conditions())
        if before is not None:
            page = page.where(runs.c.run_id < before)
        newest = page.order_by(runs.c.run_id.desc()).limit(limit).subquery("page")
        query = (
            select(jobs.c.trigger, newest)
            .select_from(jobs.outerjoin(newest, newest.c.job_id == jobs.c.id))
            .where(jobs.c.id == job_id)
            .order_by(newest.c.run_id.desc())
        )
        with read_transaction(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
        if not rows:
            return None
        found = [run_from_row(row) for row in rows if row["run_id"] is not None]
        return JobHistory(found, _timezone(rows[0]["trigger"]))

    def get(self, run_id: str) -> RunReading | None:
        """The run `run_id` with its log and the other attempts of its fire, or None."""
        if "\0" in run_id:  # PostgreSQL refuses the query itself
            return None
        query = (
            select(*_RUN_COLUMNS, runs.c.soft_time_limit, runs.c.time_limit, run_logs.c.log, jobs.c.trigger)
            .select_from(
                runs.outerjoin(run_logs, run_logs.c.run_id == runs.c.run_id).outerjoin(jobs, jobs.c.id == runs.c.job_id)
            )
            .where(runs.c.run_id == run_id)
        )
        with read_transaction(self._engine) as connection:
            row = connection.execute(query).mappings().one_or_none()
            if row is None:
                return None
            others = self._other_attempts(connection, row)
        return RunReading(
            run=run_from_row(row),
            log=row["log"] or "",
            timezone=_timezone(row["trigger"]),
            job_exists=row["trigger"] is not None,
            soft_time_limit=row["soft_time_limit"],
            time_limit=row["time_limit"],
            other_attempts=others,
        )

    def _other_attempts(self, connection: Connection, row: Row) -> list[Run]:
        # All attempts keep the moment of their fire, and its unique key leads to them.
        query = (
            select(*_RUN_COLUMNS)
            .where(
                *(runs.c[name] == row[name] for name in ("job_id", "kind", "scheduled_for")),
                runs.c.run_id != row["run_id"],
            )
            .order_by(runs.c.attempt)
        )
        return [run_from_row(other) for other in connection.execute(query).mappings()]

    def newest(self, *, limit: int) -> Sequence[Run]:
        """The newest rows of all jobs, newest first."""
        return self._read(self._newest_first(limit))

    def active(self, *, limit: int) -> Sequence[Run]:
        """Runs that wait for an executor or are in one, newest first."""
        # Ordered by an expression, so that the planner takes the small index of active runs and sorts those,
        # instead of walking all runs in the order of their ids.
        newest_first = func.coalesce(runs.c.run_id, "").desc()
        return self._read(select(*_RUN_COLUMNS).where(IS_ACTIVE).order_by(newest_first).limit(limit))

    def alarming(self, since: datetime, *, limit: int) -> Sequence[Run]:
        """Rows since `since` that an operator wants to hear of, newest first."""
        floor = run_id_floor(to_us(since))
        return self._read(self._newest_first(limit).where(IS_ALARMING, runs.c.run_id >= floor))

    def outcome_counts(self, since: datetime) -> dict[str, int]:
        """Moments by outcome, of the rows claimed since `since`."""
        query = (
            select(runs.c.outcome, func.sum(runs.c.count))
            .where(runs.c.run_id >= run_id_floor(to_us(since)))
            .group_by(runs.c.outcome)
        )
        with read_transaction(self._engine) as connection:
            return {outcome: int(moments) for outcome, moments in connection.execute(query)}

    def queue(self) -> dict[str, tuple[int, datetime | None]]:
        """Of pending and running runs: how many there are, and since when the oldest was due; a later attempt is due
        when it may start."""
        query = (
            select(runs.c.outcome, func.count(), func.min(func.coalesce(runs.c.not_before, runs.c.scheduled_for)))
            .where(IS_ACTIVE)
            .group_by(runs.c.outcome)
        )
        with read_transaction(self._engine) as connection:
            return {
                outcome: (count, None if oldest is None else from_us(oldest))
                for outcome, count, oldest in connection.execute(query)
            }

    def undelivered(self) -> tuple[int, datetime | None]:
        """How many messages to the outside wait, and since when the oldest does."""
        with read_transaction(self._engine) as connection:
            count, oldest = connection.execute(select(func.count(), func.min(outbox.c.created_at))).one()
        return count, None if oldest is None else from_us(oldest)

    def lateness(self, since: datetime, *, limit: int) -> Sequence[float]:
        """Milliseconds from due to start of the newest `limit` scheduled runs that started since `since`.

        First attempts only: later ones wait on purpose.
        """
        query = (
            select(runs.c.started_at - runs.c.scheduled_for)
            .where(
                runs.c.run_id >= run_id_floor(to_us(since)),
                runs.c.kind == "schedule",
                runs.c.attempt == 1,
                runs.c.started_at.is_not(None),
            )
            .order_by(runs.c.run_id.desc())
            .limit(limit)
        )
        with read_transaction(self._engine) as connection:
            return [late / 1000 for late in connection.execute(query).scalars()]

    def _newest_first(self, limit: int) -> Select[Any]:
        return select(*_RUN_COLUMNS).order_by(runs.c.run_id.desc()).limit(limit)

    def _read(self, query: Select[Any]) -> list[Run]:
        with read_transaction(self._engine) as connection:
            return [run_from_row(row) for row in connection.execute(query).mappings()]
