"""Jobs as the API and the pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from app.ledger.jobs import SETTINGS, Job
from app.repositories.jobs_repository import JobReading
from app.runtime import Runtime
from app.triggers import build_trigger, trigger_args, trigger_type

State = Literal["STATE_RUNNING", "STATE_PAUSED"]
JobState = Literal["scheduled", "paused", "disabled", "finished", "unreadable", "deleted"]

UNREADABLE = (LookupError, TypeError, ValueError, ArithmeticError)
"""What a stored trigger raises that is no trigger."""
EDITABLE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "builtin": ("trigger",),
    "default": (),
    "own": ("trigger", *SETTINGS, "is_enabled"),
}
"""What a PUT may change, by the job's source."""


class SchedulerJobListItem(BaseModel):
    """A job in a list. Times are in the job's zone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    task_id: str = Field(description="Name of the registered task that the job runs")
    name: str
    task_name: str = Field(description="The same name, for people")
    description: str
    next_run_time: datetime | None = Field(description="Null while the job is paused, disabled or finished")
    last_run_time: datetime | None = Field(description="When its newest run started")
    last_outcome: str | None = Field(description="Outcome of its newest row in the ledger")
    trigger_type: str
    trigger_args: dict[str, str] = Field(
        description="Of a cron trigger its fields as strings, of any other its description"
    )
    trigger_spec: dict[str, Any] = Field(description="The whole trigger as it is stored")
    timezone: str
    state: State
    is_builtin: bool
    source: Literal["builtin", "default", "own"]
    editable_fields: list[str]
    func: str = Field(description="module:function; empty when this process does not know the task")
    args: list[Any]
    kwargs: dict[str, Any]
    misfire_grace_time: int = Field(description="Seconds")
    max_instances: int
    coalesce: bool
    priority: int
    executor: str
    retry_on_loss: bool
    max_attempts: int
    retry_delay: int = Field(description="Seconds before the second attempt")
    soft_time_limit: int | None = Field(description="Seconds; null: none")
    time_limit: int | None = Field(description="Seconds; null: none")
    ping_url: str | None = Field(description="Told of every start and end of a run; null: nobody is")
    is_enabled: bool
    is_paused: bool
    is_active: bool
    overrides: list[str] = Field(description="What the API changed on a job of the defaults file")
    task_known: bool
    problem: str | None = Field(description="Why the stored job cannot be read; null while it can")
    revision: int = Field(description="Also the ETag")
    created_by: str
    created_at: datetime
    updated_by: str
    updated_at: datetime
    deleted_at: datetime | None


class SchedulerJobDetail(SchedulerJobListItem):
    """One job, with its trigger as APScheduler writes it."""

    trigger: str


def job_zone(spec: Mapping[str, Any], default: str) -> ZoneInfo:
    """The zone of a trigger spec; the scheduler's own for one that names none that exists."""
    for name in (spec.get("timezone"), default):
        try:
            return ZoneInfo(str(name))
        except (KeyError, ValueError, OSError):  # a damaged row must not hide the other jobs
            continue
    return ZoneInfo("UTC")


def job_list_item(reading: JobReading, runtime: Runtime, language: str = "zh") -> SchedulerJobListItem:
    """The list item of a stored job, its description of the trigger in `language`."""
    return SchedulerJobListItem.model_construct(**_fields(reading, runtime, language))


def job_detail(reading: JobReading, runtime: Runtime, language: str = "zh") -> SchedulerJobDetail:
    """The detail of a stored job, its description of the trigger in `language`."""
    written = _written(dict(reading.job.trigger))
    return SchedulerJobDetail.model_construct(**_fields(reading, runtime, language), trigger=written)


def _fields(reading: JobReading, runtime: Runtime, language: str) -> dict[str, Any]:
    job = reading.job
    zone = job_zone(job.trigger, runtime.settings.scheduler_timezone)
    task = runtime.tasks.get(job.task)

    def local(moment: datetime | None) -> datetime | None:
        return None if moment is None else moment.astimezone(zone)

    kind, args = _trigger(dict(job.trigger), language)
    return {
        "id": job.id,
        "task_id": job.task,
        "name": job.name,
        "task_name": job.task,
        "description": job.description,
        "next_run_time": local(job.next_run_time),
        "last_run_time": local(reading.last_run_time),
        "last_outcome": reading.last_outcome,
        "trigger_type": kind,
        "trigger_args": args,
        "trigger_spec": dict(job.trigger),
        "timezone": zone.key,
        "state": "STATE_PAUSED" if job.next_run_time is None else "STATE_RUNNING",
        "is_builtin": job.source == "builtin",
        "source": job.source,
        "editable_fields": list(EDITABLE_FIELDS[job.source]) if job.is_active else [],
        "func": task.func_ref if task is not None else "",
        "args": [],
        "kwargs": dict(job.kwargs),
        "misfire_grace_time": job.misfire_grace_time,
        "max_instances": job.max_instances,
        "coalesce": job.coalesce,
        "priority": job.priority,
        "executor": job.executor,
        "retry_on_loss": job.retry_on_loss,
        "max_attempts": job.max_attempts,
        "retry_delay": job.retry_delay,
        "soft_time_limit": job.soft_time_limit,
        "time_limit": job.time_limit,
        "ping_url": job.ping_url,
        "is_enabled": job.is_enabled,
        "is_paused": job.is_paused,
        "is_active": job.is_active,
        "overrides": list(job.overrides),
        "task_known": task is not None,
        "problem": job.problem,
        "revision": job.revision,
        "created_by": job.created_by,
        "created_at": local(job.created_at),
        "updated_by": job.updated_by,
        "updated_at": local(job.updated_at),
        "deleted_at": local(job.deleted_at),
    }


def _trigger(spec: dict[str, Any], language: str) -> tuple[str, dict[str, str]]:
    try:
        return trigger_type(spec), trigger_args(spec, language)
    except UNREADABLE:  # the row is set aside; `problem` says why
        return str(spec.get("type", "")), {"description": ""}


def _written(spec: dict[str, Any]) -> str:
    try:
        return str(build_trigger(spec))
    except UNREADABLE:
        return ""


def job_state(job: Job | SchedulerJobListItem) -> JobState:
    """Why a job has a next run, or has none."""
    if not job.is_active:
        return "deleted"
    if job.problem is not None:
        return "unreadable"
    if not job.is_enabled:
        return "disabled"
    if job.is_paused:
        return "paused"
    return "finished" if job.next_run_time is None else "scheduled"
