"""What the fields of a job may hold: one definition for the API and for the file of default jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from app.db.jobstore_tables import JOB_ID_LENGTH
from app.errors import _N, ValidationError
from app.ledger.jobs import EXECUTORS
from app.web_address import LONGEST, web_address

# Without a bound of its own (max_length has it): unrolled over Unicode's letters it would cost each model 12 MB.
JOB_ID_PATTERN = r"^[^\W_][\w.:-]*$"
LONGEST_GRACE_S = 366 * 86400
PRIORITY_LIMIT = 1000
MOST_ATTEMPTS = 20
LONGEST_RETRY_DELAY_S = 86_400
LONGEST_TIME_LIMIT_S = 7 * 86_400
NESTING_LIMIT = 32

Value = TypeVar("Value")


def storable(value: Value) -> Value:
    """`value` itself; ValueError for what JSON lets through and a database does not give back: NUL, half
    surrogate pairs, numbers that are none, endless nesting."""
    _check_storable(value, 0)
    return value


def _check_storable(value: object, depth: int) -> None:
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
            _check_storable(key, depth + 1)
            _check_storable(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_storable(inner, depth + 1)


JobId = Annotated[
    str,
    Field(
        pattern=JOB_ID_PATTERN,
        max_length=JOB_ID_LENGTH,
        description="Letters, digits, '_', '.', ':' and '-', beginning with a letter or digit",
    ),
]
TaskName = Annotated[
    str,
    Field(min_length=1, max_length=255, description="Name of a registered task"),
    AfterValidator(storable),
]
JobName = Annotated[str, Field(max_length=255), AfterValidator(storable)]
JobDescription = Annotated[str, Field(max_length=4000), AfterValidator(storable)]
Kwargs = Annotated[
    dict[str, Any],
    Field(description="Checked against the task's typed parameters"),
    AfterValidator(storable),
]
MisfireGraceTime = Annotated[int, Field(ge=1, le=LONGEST_GRACE_S, description="Seconds")]
MaxInstances = Annotated[int, Field(ge=1, le=10, description="Runs at the same time, counted over the whole cluster")]
Priority = Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT, description="Higher starts first")]
Executor = Annotated[
    Literal["default", "process", "celery"],
    Field(description="Threads of a scheduler, processes of its own, or the worker fleet (CELERY_BROKER_URL)"),
]
RetryOnLoss = Annotated[bool, Field(description="Run again when the process of a run died")]
MaxAttempts = Annotated[
    int, Field(ge=1, le=MOST_ATTEMPTS, description="How often a fire that fails is tried; 1: it is not tried again")
]
RetryDelay = Annotated[
    int,
    Field(
        ge=1,
        le=LONGEST_RETRY_DELAY_S,
        description="Seconds before the second attempt; each later one waits twice as long, up to an hour",
    ),
]
SoftTimeLimit = Annotated[
    int,
    Field(ge=1, le=LONGEST_TIME_LIMIT_S, description="Seconds after which a run is asked to stop; below time_limit"),
]
TimeLimit = Annotated[int, Field(ge=1, le=LONGEST_TIME_LIMIT_S, description="Seconds after which a run is stopped")]
PingUrl = Annotated[
    str,
    Field(max_length=LONGEST, description="Address that is told of every start and end of a run"),
    AfterValidator(web_address),
]


def check_time_limits(soft: int | None, hard: int | None) -> None:
    """ValidationError, naming both limits, for a job whose soft time limit is not below its hard one (seconds)."""
    if soft is not None and hard is not None and soft >= hard:
        raise ValidationError(
            _N("soft_time_limit（%(soft)s 秒）必须小于 time_limit（%(hard)s 秒）"),
            params={"soft": soft, "hard": hard},
            field="soft_time_limit",
            value=soft,
            accepted=_N("小于 time_limit 的秒数"),
            context={"time_limit": hard},
        )


def check_executor(executor: str, celery_broker_url: str) -> None:
    """ValidationError for the worker fleet where there is none: its runs would wait for ever."""
    if executor == "celery" and not celery_broker_url:
        raise ValidationError(
            _N("没有配置 CELERY_BROKER_URL，不能使用执行器 celery"),
            field="executor",
            value=executor,
            accepted=[name for name in EXECUTORS if name != "celery"],
        )
