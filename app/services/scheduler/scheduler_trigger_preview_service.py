"""When a trigger would fire, before anybody saves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.runtime import Runtime, current_runtime
from app.services.scheduler.job_input import TriggerPreviewInput, checked
from app.triggers import describe, parse_trigger, preview, trigger_args


class FireView(BaseModel):
    """A fire time, or, when `change` is dropped, moments that a clock change leaves without one."""

    at: str = Field(description="ISO 8601 in the trigger's zone")
    utc: str
    utc_offset: str = Field(description="Such as +08:00")
    change: str | None = Field(description="What a clock change does to it: moved, doubled, dropped; else null")
    moved_from: str | None = Field(description="The clock time that was asked for, of a moved fire")
    count: int = Field(description="Moments that the row stands for; above 1 only where some are dropped")


class TriggerPreview(BaseModel):
    """The next fire times of a trigger, soonest first; fewer than asked for when it ends."""

    trigger_type: str
    trigger_args: dict[str, str]
    trigger_spec: dict[str, Any]
    timezone: str
    description: str
    fires: list[FireView]


@dataclass(frozen=True)
class Previewed:
    """A preview; warnings: (message id, its params), about what was accepted with a change."""

    preview: TriggerPreview
    warnings: tuple[tuple[str, dict[str, Any]], ...] = ()


class SchedulerTriggerPreviewService:
    """Reads triggers as the write service does, and changes nothing."""

    def __init__(self, runtime: Runtime | None = None, *, language: str = "zh") -> None:
        self._runtime = runtime or current_runtime()
        self._language = language  # that the trigger is described in: zh or en

    def preview(self, payload: Mapping[str, Any] | TriggerPreviewInput) -> Previewed:
        """The fire times of the trigger in `payload`; ValidationError when it cannot be built."""
        asked = checked(TriggerPreviewInput, payload)
        parsed = parse_trigger(asked.trigger_fields(), default_timezone=self._runtime.settings.scheduler_timezone)
        return Previewed(self._shown(parsed.spec, asked.count, asked.after), parsed.warnings)

    def of_job(self, spec: Mapping[str, Any], count: int = 5, after: datetime | None = None) -> TriggerPreview:
        """The fire times of a stored trigger."""
        return self._shown(dict(spec), count, after)

    def _shown(self, spec: dict[str, Any], count: int, after: datetime | None) -> TriggerPreview:
        return TriggerPreview(
            trigger_type=spec["type"],
            trigger_args=trigger_args(spec, self._language),
            trigger_spec=spec,
            timezone=spec["timezone"],
            description=describe(spec, self._language),
            fires=[FireView(**asdict(fire)) for fire in preview(spec, count, after)],
        )
