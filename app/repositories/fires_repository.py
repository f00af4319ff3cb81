"""Reads around one fire: its own rows, what ran and what was claimed beside it, and who edited its job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Select, or_, select

from app.db.account_tables import audit_log
from app.db.clock import from_us, to_us
from app.db.engines import read_transaction
from app.db.jobstore_tables import runs
from app.ledger import Run, run_from_row, run_id_floor

_AROUND = timedelta(hours=6)
"""A run that was going on at a moment was claimed at most so long before it: what bounds the search."""
_REACHING_BACK = 20
_JOBS = "/api/v1/scheduler/jobs"
EDITS = {
    "scheduler.pause_job": "pause",
    "scheduler.resume_job": "resume",
    "scheduler.enable_job": "enable",
    "scheduler.disable_job": "disable",
    "scheduler.change_job": "change",
    "scheduler.delete_job": "delete",
    "scheduler.restore_job": "restore",
    "scheduler.reload_jobs": "reload",
    "scheduler.act_on_job": "act",
}
"""What the audit log calls the requests that change when a job fires; `act`, of releases before 0.2, is any of them."""


@dataclass(frozen=True)
class Fire:
    """A row of the ledger with what it took over from its job: the grace time in seconds and the limit of instances."""

    run: Run
    grace_s: int
    max_instances: int


@dataclass(frozen=True)
class Edit:
    """One accepted request that may have changed when a job fires. `kind` is a value of EDITS."""

    at: datetime
    actor: str
    kind: str


@dataclass(frozen=True)
class ClaimsAround:
    """Claims around a stretch of time: the last one before it and the first one in it."""

    last_before: datetime | None
    first_between: datetime | None


class FiresRepository:
    """Queries of `runs` and `audit_log` around a moment."""

    def __init__(self, jobstore: Engine, database: Engine) -> None:
        self._jobstore = jobstore
        self._database = database

    def rows_between(self, job_id: str, start: datetime, until: datetime, *, limit: int) -> list[Fire]:
        """Up to `limit` rows of a job with a moment in [start, until), oldest first; and folds that begin in it."""
        of_job = select(runs).where(runs.c.job_id == job_id, runs.c.kind.in_(("schedule", "manual")))
        inside = of_job.where(runs.c.scheduled_for >= to_us(start), runs.c.scheduled_for < to_us(until))
        found = self._fires(inside.order_by(runs.c.scheduled_for, runs.c.attempt, runs.c.run_id).limit(limit))
        # Rows of one job hardly overlap, so that only the very next ones can reach back: the others are not read.
        behind = select(runs).where(
            runs.c.job_id == job_id, runs.c.kind == "schedule", runs.c.scheduled_for >= to_us(until)
        )
        reaching = self._fires(behind.order_by(runs.c.scheduled_for).limit(_REACHING_BACK))
        folded = ((fire, fire.run.scheduled_from) for fire in reaching)
        return found + [fire for fire, first in folded if first is not None and first < until]

    def newest(self, job_id: str) -> Fire | None:
        """The newest row of a job that its trigger asked for."""
        query = select(runs).where(runs.c.job_id == job_id, runs.c.kind == "schedule")
        found = self._fires(query.order_by(runs.c.run_id.desc()).limit(1))
        return found[0] if found else None

    def has_runs(self, job_id: str) -> bool:
        """Whether anything of a job is on record."""
        return bool(self._runs(select(runs).where(runs.c.job_id == job_id).limit(1)))

    def claimed_with(self, run: Run) -> list[Run]:
        """The other rows of the same job that the same look claimed, by their moments."""
        at = to_us(run.claimed_at)
        query = select(runs).where(
            runs.c.job_id == run.job_id,
            runs.c.run_id >= run_id_floor(at),
            runs.c.claimed_at == at,
            runs.c.run_id != run.run_id,
        )
        return self._runs(query.order_by(runs.c.scheduled_for).limit(50))

    def claimed_at(self, at: datetime) -> list[Run]:
        """What was claimed, of any job, in the very same look: at most 100 rows."""
        moment = to_us(at)
        query = select(runs).where(
            runs.c.run_id >= run_id_floor(moment),
            runs.c.run_id < run_id_floor(moment + 2000),
            runs.c.claimed_at == moment,
        )
        return self._runs(query.order_by(runs.c.run_id).limit(100))

    def going_on(self, at: datetime, *, job_id: str | None = None, executor: str | None = None) -> list[Run]:
        """Runs that had started by `at` and not ended, the oldest first; at most 100."""
        query = select(runs).where(
            runs.c.run_id >= run_id_floor(to_us(at - _AROUND)),
            runs.c.run_id < run_id_floor(to_us(at) + 1000),
            runs.c.started_at <= to_us(at),
            or_(runs.c.finished_at.is_(None), runs.c.finished_at > to_us(at)),
        )
        if job_id is not None:
            query = query.where(runs.c.job_id == job_id)
        if executor is not None:
            query = query.where(runs.c.executor == executor)
        return self._runs(query.order_by(runs.c.run_id).limit(100))

    def claims_around(self, start: datetime, until: datetime) -> ClaimsAround:
        """What schedulers claimed, of any job, around [start, until); only what triggers asked for counts."""
        claimed = select(runs.c.claimed_at).where(runs.c.kind == "schedule").limit(1)
        first, last = run_id_floor(to_us(start)), run_id_floor(to_us(until))
        with read_transaction(self._jobstore) as connection:
            before, between = (
                connection.execute(query).scalar_one_or_none()
                for query in (
                    claimed.where(runs.c.run_id < first).order_by(runs.c.run_id.desc()),
                    claimed.where(runs.c.run_id >= first, runs.c.run_id < last).order_by(runs.c.run_id),
                )
            )
        return ClaimsAround(None if before is None else from_us(before), None if between is None else from_us(between))

    def edits(self, job_id: str, *, limit: int = 500) -> Sequence[Edit]:
        """The newest edits of a job that were accepted, oldest first."""
        job = f"{_JOBS}/{job_id}"
        targets = [job, f"{job}/action", f"{_JOBS}/actions/reload"]
        targets += [f"{job}/actions/{action}" for action in ("pause", "resume", "restore")]
        query = (
            select(audit_log.c.at, audit_log.c.actor, audit_log.c.action)
            .where(audit_log.c.target.in_(targets), audit_log.c.action.in_(EDITS), audit_log.c.status.between(200, 299))
            .order_by(audit_log.c.id.desc())
            .limit(limit)
        )
        with read_transaction(self._database) as connection:
            found = [Edit(from_us(at), actor, EDITS[action]) for at, actor, action in connection.execute(query)]
        return found[::-1]

    def _runs(self, query: Select[Any]) -> list[Run]:
        return [fire.run for fire in self._fires(query)]

    def _fires(self, query: Select[Any]) -> list[Fire]:
        with read_transaction(self._jobstore) as connection:
            return [
                Fire(run_from_row(row), row["misfire_grace_time"], row["max_instances"])
                for row in connection.execute(query).mappings()
            ]
