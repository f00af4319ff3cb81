"""Runs: what every fire leaves behind, and what a task is told of its own."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from app.db.clock import from_us
from app.db.jobstore_tables import Row
from app.ledger.stopping import RunStopped, StopSignal

Outcome = Literal["pending", "running", "success", "failed", "lost", "cancelled", "missed", "coalesced", "skipped"]
Kind = Literal["schedule", "manual"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One row of the ledger. `count` moments from `scheduled_from` to `scheduled_for` share it where a run of
    moments had the same fate; times are aware UTC, durations milliseconds. A later attempt points at the run that it
    repeats with `first_run_id` and starts at `not_before` at the earliest."""

    run_id: str
    job_id: str
    task: str
    kind: Kind
    scheduled_for: datetime
    scheduled_from: datetime | None
    count: int
    attempt: int
    outcome: Outcome
    reason: str | None
    error: str | None
    owner: str
    epoch: int
    node: str | None
    created_by: str
    claimed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    executor: str
    max_attempts: int
    first_run_id: str | None
    not_before: datetime | None
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None

    @property
    def lateness_ms(self) -> float | None:
        """From the due moment, of a later attempt from when it was allowed to, to the start; None for what never
        started."""
        return _milliseconds(self.not_before or self.scheduled_for, self.started_at)

    @property
    def duration_ms(self) -> float | None:
        """From the start to the end; None before the end."""
        return None if self.started_at is None else _milliseconds(self.started_at, self.finished_at)


def _milliseconds(start: datetime, end: datetime | None) -> float | None:
    return None if end is None else (end - start).total_seconds() * 1000


def run_from_row(row: Row) -> Run:
    """The run in a row of the `runs` table."""
    times: dict[str, Any] = {
        name: None if row[name] is None else from_us(row[name])
        for name in (
            *("scheduled_for", "scheduled_from", "claimed_at", "started_at", "finished_at"),
            *("not_before", "cancel_requested_at"),
        )
    }
    return Run(
        **times,
        **{
            name: row[name]
            for name in (
                *("run_id", "job_id", "task", "kind", "count", "attempt", "outcome", "reason", "error"),
                *("owner", "epoch", "node", "created_by", "executor", "max_attempts", "first_run_id"),
                "cancel_requested_by",
            )
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """What a task that asks for `run` is given. `id` is unique to this start: an idempotency key.

    A task that may take long looks at `stop_requested`, or calls `check()`, from time to time.
    """

    id: str
    job_id: str
    scheduled_for: datetime
    node: str
    kind: Kind
    attempt: int
    created_by: str
    stop: StopSignal = field(default_factory=StopSignal, repr=False, compare=False)

    @property
    def stop_requested(self) -> bool:
        """Whether the run was cancelled or has reached a time limit, and should end soon."""
        return self.stop.requested

    def check(self) -> None:
        """Raises RunStopped when the run should end; a task lets it through."""
        if self.stop.requested:
            raise RunStopped("the run was asked to stop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """A claimed run on its way to an executor: everything a start needs, so that no row is read again."""

    run_id: str
    job_id: str
    task: str
    kind: Kind
    scheduled_for: int  # microseconds since the epoch, as stored
    attempt: int
    epoch: int
    priority: int
    executor: str
    max_instances: int
    misfire_grace_time: int
    kwargs: str
    created_by: str
    max_attempts: int = 1
    retry_delay: int = 60  # seconds
    soft_time_limit: int | None = None  # seconds
    time_limit: int | None = None  # seconds
    first_run_id: str | None = None
    not_before: int | None = None  # microseconds since the epoch


def is_too_late(ticket: Ticket, now: int) -> bool:
    """Whether a claimed run is past its grace time at `now` (microseconds). A later attempt and a run that somebody
    asked for never are."""
    return (
        ticket.kind == "schedule"
        and ticket.attempt == 1
        and now > ticket.scheduled_for + ticket.misfire_grace_time * 1_000_000
    )


TICKET_COLUMNS = tuple(Ticket.__dataclass_fields__)
