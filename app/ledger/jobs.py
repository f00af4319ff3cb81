"""Jobs: what is stored of each, and how a stored row is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from app.db.clock import from_us
from app.db.jobstore_tables import Row
from app.ledger.stored_text import stored_text

Source = Literal["builtin", "default", "own"]

EXECUTORS = ("default", "process", "celery")
"""Executors: threads of a scheduler, processes of its own, and the worker fleet."""

SETTINGS = (
    "name",
    "description",
    "task",
    "kwargs",
    "misfire_grace_time",
    "coalesce",
    "max_instances",
    "priority",
    "executor",
    "retry_on_loss",
    "max_attempts",
    "retry_delay",
    "soft_time_limit",
    "time_limit",
    "ping_url",
)
"""The fields of a job that a definition sets, beside its trigger and whether it is enabled."""


class UnreadableJob(ValueError):
    """A stored job whose content cannot be read; the message says which column and why."""


def what_is_unreadable(error: Exception) -> str:
    """What is put on record about a stored job that raised `error` when it was read."""
    reason = str(error) if isinstance(error, UnreadableJob) else f"{type(error).__name__}: {error}"
    return stored_text(reason)  # it may repeat what the row holds, whatever that is


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job to be added: a definition without a history.

    `trigger` is a spec of app.triggers. `misfire_grace_time`, `retry_delay` (before the second attempt; later ones
    wait longer, see app.ledger.retries) and the time limits (None: none) are in seconds.
    """

    id: str
    task: str
    trigger: Mapping[str, Any]
    name: str = ""
    description: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    misfire_grace_time: int = 300
    coalesce: bool = True
    max_instances: int = 1
    priority: int = 0
    executor: str = "default"
    retry_on_loss: bool = False
    max_attempts: int = 1
    retry_delay: int = 60
    soft_time_limit: int | None = None
    time_limit: int | None = None
    ping_url: str | None = None
    is_enabled: bool = True
    source: Source = "own"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A stored job. Times are aware UTC; `overrides` names the fields that the API changed on a default job;
    `problem` says why a row was set aside, None while it can be read."""

    id: str
    task: str
    name: str
    description: str
    source: Source
    trigger: dict[str, Any]
    kwargs: dict[str, Any]
    next_run_time: datetime | None
    misfire_grace_time: int
    coalesce: bool
    max_instances: int
    priority: int
    executor: str
    retry_on_loss: bool
    max_attempts: int
    retry_delay: int
    soft_time_limit: int | None
    time_limit: int | None
    ping_url: str | None
    is_alarming: bool
    is_enabled: bool
    is_paused: bool
    is_active: bool
    overrides: tuple[str, ...]
    problem: str | None
    revision: int
    created_by: str
    created_at: datetime
    updated_by: str
    updated_at: datetime
    deleted_at: datetime | None


def job_from_row(row: Row, *, tolerant: bool = False) -> Job:
    """The job in a row of the `jobs` table.

    Raises UnreadableJob for a row that cannot be read; `tolerant` gives it with empty content and `problem`
    set instead, so that it can be listed.
    """
    problem = row["problem"]
    try:
        trigger, kwargs = read_object(row, "trigger"), read_object(row, "kwargs")
        overrides = tuple(json.loads(row["overrides"]))
    except (UnreadableJob, ValueError, TypeError) as error:
        if not tolerant:
            raise UnreadableJob(str(error)) from error
        trigger, kwargs, overrides, problem = {}, {}, (), problem or str(error)
    times: dict[str, Any] = {
        name: None if row[name] is None else from_us(row[name])
        for name in ("next_run_time", "created_at", "updated_at", "deleted_at")
    }
    return Job(
        trigger=trigger,
        kwargs=kwargs,
        overrides=overrides,
        problem=problem,
        **times,
        **{
            name: row[name]
            for name in (
                *("id", "task", "name", "description", "source", "misfire_grace_time", "coalesce"),
                *("max_instances", "priority", "executor", "retry_on_loss", "max_attempts", "retry_delay"),
                *("soft_time_limit", "time_limit", "ping_url", "is_alarming", "is_enabled", "is_paused"),
                *("is_active", "revision", "created_by", "updated_by"),
            )
        },
    )


def read_object(row: Row, column: str) -> dict[str, Any]:
    """The JSON object in a text `column` of `row`; UnreadableJob when it holds anything else."""
    try:
        value = json.loads(row[column])
    except (ValueError, TypeError) as error:
        raise UnreadableJob(f"column {column} holds no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnreadableJob(f"column {column} holds {type(value).__name__}, not a JSON object")
    return value


def to_json(value: Any) -> str:
    """`value` as the store keeps it: compact JSON with sorted keys, so that equal values are equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
