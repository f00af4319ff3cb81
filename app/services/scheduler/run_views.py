"""Runs as the API and the pages show them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from app.ledger import Run


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


class RunDetail(RunView):
    """A run with what its task wrote, at most 64 KiB; empty when it wrote nothing."""

    log: str


class RunPage(BaseModel):
    """Runs, newest first. `next_cursor` continues after the last one; None at the end."""

    items: list[RunView]
    next_cursor: str | None


def run_view(run: Run, zone: ZoneInfo) -> RunView:
    """A ledger row with its times in `zone`."""
    return RunView.model_construct(**_fields(run, zone))


def run_detail(run: Run, log: str, zone: ZoneInfo) -> RunDetail:
    """The same with its log."""
    return RunDetail.model_construct(**_fields(run, zone), log=log)


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
    }
