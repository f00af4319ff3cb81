"""Runs as the API and the pages show them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from app.ledger import Run
from app.repositories.runs_repository import RunReading


class RunView(BaseModel):
    """One row of the ledger. `count` moments from `scheduled_from` to `scheduled_for` share it when it stands
    for more than one. Durations are milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    job_id: str
    task: str
    kind: str = Field(description="schedule or manual")
    scheduled_for: datetime
    scheduled_from: datetime | None = Field(description="First moment of a row that stands for several")
    count: int = Field(description="How many moments the row stands for")
    node: str | None
    created_by: str
    claimed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    lateness_ms: float | None = Field(description="From the due moment to the start")
    duration_ms: float | None
    outcome: str
    reason: str | None
    error: str | None
    attempt: int
    max_attempts: int
    executor: str
    first_run_id: str | None = Field(description="Of a later attempt, the run that it repeats")
    not_before: datetime | None = Field(description="Of a later attempt, when it starts at the earliest")
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None


class RunDetail(RunView):
    """A run with what its task wrote, at most 64 KiB; empty when it wrote nothing. Time limits are seconds."""

    log: str
    soft_time_limit: int | None
    time_limit: int | None
    job_exists: bool = Field(description="false: the job is gone for good; a deleted one that can be restored exists")
    attempts: list[RunView] = Field(description="The other attempts of the same fire, the first one first")


class CancelView(RunView):
    """A run that somebody wants stopped."""

    effect: Literal["cancelled", "requested"] = Field(
        description="cancelled: it had not started, and will not; requested: it is running and was asked to stop"
    )


class RunPage(BaseModel):
    """Runs, newest first. `next_cursor` continues after the last one; None at the end."""

    items: list[RunView]
    next_cursor: str | None


def run_view(run: Run, zone: ZoneInfo) -> RunView:
    """A ledger row with its times in `zone`."""
    return RunView.model_construct(**_fields(run, zone))


def run_detail(reading: RunReading, zone: ZoneInfo) -> RunDetail:
    """The same with its log, its limits and its other attempts."""
    return RunDetail.model_construct(
        **_fields(reading.run, zone),
        log=reading.log,
        soft_time_limit=reading.soft_time_limit,
        time_limit=reading.time_limit,
        job_exists=reading.job_exists,
        attempts=[run_view(run, zone) for run in reading.other_attempts],
    )


def cancel_view(run: Run, zone: ZoneInfo) -> CancelView:
    """The same of a run as a cancellation left it."""
    fields = _fields(run, zone)
    return CancelView.model_construct(**fields, effect="cancelled" if run.outcome == "cancelled" else "requested")


def _fields(run: Run, zone: ZoneInfo) -> dict[str, Any]:
    def local(moment: datetime | None) -> datetime | None:
        return None if moment is None else moment.astimezone(zone)

    return {
        "run_id": run.run_id,
        "job_id": run.job_id,
        "task": run.task,
        "kind": run.kind,
        "scheduled_for": local(run.scheduled_for),
        "scheduled_from": local(run.scheduled_from),
        "count": run.count,
        "node": run.node,
        "created_by": run.created_by,
        "claimed_at": local(run.claimed_at),
        "started_at": local(run.started_at),
        "finished_at": local(run.finished_at),
        "lateness_ms": None if run.lateness_ms is None else round(run.lateness_ms, 3),
        "duration_ms": None if run.duration_ms is None else round(run.duration_ms, 3),
        "outcome": run.outcome,
        "reason": run.reason,
        "error": run.error,
        "attempt": run.attempt,
        "max_attempts": run.max_attempts,
        "executor": run.executor,
        "first_run_id": run.first_run_id,
        "not_before": local(run.not_before),
        "cancel_requested_at": local(run.cancel_requested_at),
        "cancel_requested_by": run.cancel_requested_by,
    }
