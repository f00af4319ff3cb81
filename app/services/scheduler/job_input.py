"""Jobs, changes of jobs and triggers as they come in: shapes and limits. What a trigger's fields may hold is
the trigger parser's to say, so that it is said once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from app.db.jobstore_tables import JOB_ID_LENGTH

JOB_ID_PATTERN = rf"^[^\W_][\w.:-]{{0,{JOB_ID_LENGTH - 1}}}$"
NESTING_LIMIT = 32
LONGEST_GRACE_S = 366 * 86400
PRIORITY_LIMIT = 1000
PREVIEW_LIMIT = 100

JobId = Annotated[
    str,
    Field(
        pattern=JOB_ID_PATTERN,
        max_length=JOB_ID_LENGTH,
        description="Letters, digits, '_', '.', ':' and '-', beginning with a letter or digit",
    ),
]


def _checked_later(*types: str, description: str, **schema: Any) -> Any:
    """A field that the trigger parser checks; the schema is for readers of the API's description."""
    return Annotated[Any, WithJsonSchema({"type": list(types), "description": description, **schema})]


_CRON = _checked_later("string", "integer", "null", description="Cron field; empty counts as not given")
_AMOUNT = _checked_later("number", "string", "null", description="Zero or empty counts as not given")
_MOMENT = _checked_later("string", "null", description="ISO 8601; read in the trigger's zone without an offset")

class TriggerInput(BaseModel):
    """A whole trigger: its type, and the fields of that type beside it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trigger_type: Literal["cron", "interval", "date"]
    timezone: _checked_later(
        "string", "null", description="Name of a time zone; the scheduler's own when missing or unknown"
    ) = None
    start_date: _MOMENT = None
    end_date: _MOMENT = None
    jitter: _checked_later("number", "string", "null", description="Seconds") = None
    cron_expression: _checked_later(
        "string", "null", description="5, 6 or 7 parts; single fields win over its parts", maxLength=256
    ) = None
    cron_second: _CRON = None
    second: _CRON = None
    cron_minute: _CRON = None
    minute: _CRON = None
    cron_hour: _CRON = None
    hour: _CRON = None
    cron_day: _CRON = None
    day: _CRON = None
    cron_month: _CRON = None
    month: _CRON = None
    week: _CRON = None
    cron_weekday: _CRON = None
    cron_day_of_week: _CRON = None
    day_of_week: _CRON = None
    weekday: _CRON = None
    year: _CRON = None
    weeks: _AMOUNT = None
    days: _AMOUNT = None
    hours: _AMOUNT = None
    minutes: _AMOUNT = None
    seconds: _AMOUNT = None
    run_date: _MOMENT = None

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            _refuse_what_no_store_keeps(value)
        return value

    def trigger_fields(self) -> dict[str, Any]:
        """The trigger's fields as they were given, for the trigger parser."""
        given = self.model_fields_set & TriggerInput.model_fields.keys()
        return {name: getattr(self, name) for name in TriggerInput.model_fields if name in given}


class JobSettings(TriggerInput):
    """A trigger with the fields of a job. What is left out keeps its value, or takes its default in a new job."""

    name: Annotated[str, Field(max_length=255)] = ""
    description: Annotated[str, Field(max_length=4000)] = ""
    kwargs: Annotated[dict[str, Any], Field(description="Checked against the task's typed parameters")] = {}
    misfire_grace_time: Annotated[int, Field(ge=1, le=LONGEST_GRACE_S, description="Seconds")] = 300
    coalesce: bool = True
    max_instances: Annotated[
        int, Field(ge=1, le=10, description="Runs at the same time, over the whole cluster")
    ] = 1
    priority: Annotated[
        int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT, description="Higher runs first")
    ] = 0
    executor: Literal["default", "process", "celery"] = "default"
    retry_on_loss: Annotated[bool, Field(description="Run again when the process of a run died")] = False
    is_enabled: bool = True

    def job_fields(self) -> dict[str, Any]:
        """The job's fields that were given, without the trigger's."""
        given = self.model_fields_set - TriggerInput.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(given)}


class NewJobInput(JobSettings):
    """A job of the user's own."""

    id: JobId | None = Field(default=None, description="Made from the task's name when left out")
    task: Annotated[str, Field(min_length=1, max_length=255, description="Name of a registered task")]


class JobChangeInput(JobSettings):
    """A change: the whole trigger, and, of an own job, any other field."""

    task: Annotated[str, Field(min_length=1, max_length=255, description="Name of a registered task")] = ""


class TriggerPreviewInput(TriggerInput):
    """A trigger whose fire times are asked for."""

    count: Annotated[int, Field(ge=1, le=PREVIEW_LIMIT, description="How many fire times")] = 5
    after: Annotated[
        AwareDatetime | None, Field(strict=False, description="Fire times after this moment; now when left out")
    ] = None


def _refuse_what_no_store_keeps(value: Any, depth: int = 0) -> None:
    """ValueError for what JSON lets through and a database does not give back: NUL, half surrogate pairs, NaN,
    endless nesting."""
    if depth > NESTING_LIMIT:
        raise ValueError(f"nested at most {NESTING_LIMIT} levels deep")
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("text without NUL and half surrogate pairs")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a finite number")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_what_no_store_keeps(key, depth + 1)
            _refuse_what_no_store_keeps(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _refuse_what_no_store_keeps(inner, depth + 1)

