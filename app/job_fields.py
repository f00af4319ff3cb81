"""What the fields of a job may hold: one definition for the API and for the file of default jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.db.jobstore_tables import JOB_ID_LENGTH

# Without a bound of its own (max_length has it): unrolled over Unicode's letters it would cost each model 12 MB.
JOB_ID_PATTERN = r"^[^\W_][\w.:-]*$"
LONGEST_GRACE_S = 366 * 86400
PRIORITY_LIMIT = 1000

JobId = Annotated[
    str,
    Field(
        pattern=JOB_ID_PATTERN,
        max_length=JOB_ID_LENGTH,
        description="Letters, digits, '_', '.', ':' and '-', beginning with a letter or digit",
    ),
]
TaskName = Annotated[str, Field(min_length=1, max_length=255, description="Name of a registered task")]
JobName = Annotated[str, Field(max_length=255)]
JobDescription = Annotated[str, Field(max_length=4000)]
Kwargs = Annotated[dict[str, Any], Field(description="Checked against the task's typed parameters")]
MisfireGraceTime = Annotated[int, Field(ge=1, le=LONGEST_GRACE_S, description="Seconds")]
MaxInstances = Annotated[int, Field(ge=1, le=10, description="Runs at the same time, counted over the whole cluster")]
Priority = Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT, description="Higher starts first")]
Executor = Literal["default", "process"]
RetryOnLoss = Annotated[bool, Field(description="Run again when the process of a run died")]
