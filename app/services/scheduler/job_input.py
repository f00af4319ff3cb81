"""Jobs, changes of jobs and triggers as they come in: shapes and limits. What a trigger's fields may hold is
the trigger parser's to say, so that it is said once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic import ValidationError as PydanticError

from app.errors import _N, ValidationError
from app.input_errors import refused_input
from app.job_fields import (
    Executor,
    JobDescription,
    JobId,
    JobName,
    Kwargs,
    MaxAttempts,
    MaxInstances,
    MisfireGraceTime,
    PingUrl,
    Priority,
    RetryDelay,
    RetryOnLoss,
    SoftTimeLimit,
    TaskName,
    TimeLimit,
)
from app.triggers import MAX_EXPRESSION_LENGTH, TRIGGER_TYPES

PREVIEW_LIMIT = 100


# Fields that the trigger parser checks, to the last character; their schemas are for readers of the API's description.
_TriggerType = Annotated[Any, WithJsonSchema({"type": "string", "enum": list(TRIGGER_TYPES)})]
_Expression = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["string", "null"],
            "maxLength": MAX_EXPRESSION_LENGTH,
            "description": "5, 6 or 7 parts; single fields win over its parts",
        }
    ),
]
_CronField = Annotated[
    Any,
    WithJsonSchema({"type": ["string", "integer", "null"], "description": "Cron field; empty counts as not given"}),
]
_Amount = Annotated[
    Any,
    WithJsonSchema({"type": ["number", "string", "null"], "description": "Zero or empty counts as not given"}),
]
_Moment = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["string", "null"],
            "description": "ISO 8601; read in the trigger's zone without an offset",
        }
    ),
]
_Zone = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["string", "null"],
            "description": "Name of a time zone; the scheduler's own when missing or unknown",
        }
    ),
]
_Jitter = Annotated[Any, WithJsonSchema({"type": ["number", "string", "null"], "description": "Seconds"})]


def _require_trigger_type(schema: dict[str, Any]) -> None:
    schema["required"] = sorted({*schema.get("required", ()), "trigger_type"})


class TriggerInput(BaseModel):
    """A whole trigger: its type, and the fields of that type beside it."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_require_trigger_type)

    trigger_type: _TriggerType = None
    timezone: _Zone = None
    start_date: _Moment = None
    end_date: _Moment = None
    jitter: _Jitter = None
    cron_expression: _Expression = None
    cron_second: _CronField = None
    second: _CronField = None
    cron_minute: _CronField = None
    minute: _CronField = None
    cron_hour: _CronField = None
    hour: _CronField = None
    cron_day: _CronField = None
    day: _CronField = None
    cron_month: _CronField = None
    month: _CronField = None
    week: _CronField = None
    cron_week: _CronField = None
    cron_weekday: _CronField = None
    cron_day_of_week: _CronField = None
    day_of_week: _CronField = None
    weekday: _CronField = None
    year: _CronField = None
    cron_year: _CronField = None
    weeks: _Amount = None
    days: _Amount = None
    hours: _Amount = None
    minutes: _Amount = None
    seconds: _Amount = None
    run_date: _Moment = None

    def trigger_fields(self) -> dict[str, Any]:
        """The trigger's fields as they were given, for the trigger parser."""
        given = self.model_fields_set & TriggerInput.model_fields.keys() | {"trigger_type"}
        return {name: getattr(self, name) for name in TriggerInput.model_fields if name in given}


class JobSettings(TriggerInput):
    """A trigger with the fields of a job. What is left out keeps its value, or takes its default in a new job."""

    name: JobName = ""
    description: JobDescription = ""
    kwargs: Kwargs = {}
    misfire_grace_time: MisfireGraceTime = 300
    coalesce: bool = True
    max_instances: MaxInstances = 1
    priority: Priority = 0
    executor: Executor = "default"
    retry_on_loss: RetryOnLoss = False
    max_attempts: MaxAttempts = 1
    retry_delay: RetryDelay = 60
    soft_time_limit: SoftTimeLimit | None = None
    time_limit: TimeLimit | None = None
    ping_url: PingUrl | None = None
    is_enabled: bool = True

    def job_fields(self) -> dict[str, Any]:
        """The job's fields that were given, without the trigger's."""
        given = self.model_fields_set - TriggerInput.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(given)}


class NewJobInput(JobSettings):
    """A job of the user's own."""

    id: JobId | None = Field(default=None, description="Made from the task's name when left out")
    task: TaskName


class JobChangeInput(JobSettings):
    """A change: the whole trigger, and, of an own job, any other field."""

    task: TaskName = ""


class TriggerPreviewInput(TriggerInput):
    """A trigger whose fire times are asked for."""

    count: Annotated[int, Field(ge=1, le=PREVIEW_LIMIT, description="How many fire times")] = 5
    after: Annotated[
        AwareDatetime | None, Field(strict=False, description="Fire times after this moment; now when left out")
    ] = None


Input = TypeVar("Input", bound=TriggerInput)


def checked(kind: type[Input], payload: Mapping[str, Any] | TriggerInput) -> Input:
    """`payload` as `kind`; ValidationError names the first field that does not fit."""
    if not isinstance(payload, kind):
        try:
            payload = kind.model_validate(payload)
        except PydanticError as error:
            raise refused_input(error) from error
    if not payload.model_fields_set:
        raise ValidationError(_N("请求体必须是非空的 JSON 对象"))
    return payload
