"""What a cron expression means: in words, its next fires with their UTC offsets, and what clock changes do to them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from app.errors import ValidationError
from app.i18n import english
from app.services.operations.failure import OperationFailed
from app.triggers import EXPRESSION_PARTS, PreviewFire, describe, known_timezone, parse_trigger, preview

MOST_FIRES = 100


@dataclass(frozen=True)
class CronCheck:
    """`fields` are as they are stored: weekdays by name. `fires` also holds moments that a clock change drops."""

    expression: str
    timezone: str
    description: str
    fields: dict[str, str]
    fires: tuple[PreviewFire, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"fires": [asdict(fire) for fire in self.fires]}


def check_cron(
    expression: str, *, timezone: str, count: int = 10, after: datetime | None = None, language: str = "en"
) -> CronCheck:
    """Checks a cron expression of 5, 6 or 7 parts and tells its next `count` fires after `after` (now when left out).

    OperationFailed says which part is wrong, what it holds and what is accepted; so for a zone that is not known, which
    the API would replace by its own.
    """
    if not known_timezone(timezone):
        raise OperationFailed(f"the time zone {timezone!r} is not known; accepted: IANA names such as Asia/Shanghai")
    parts = len(expression.split())
    if parts not in EXPRESSION_PARTS:
        raise OperationFailed(
            f"{expression!r} has {parts} parts; accepted: 5 (minute hour day month day_of_week), 6 (second first) or 7"
            " (year last)"
        )
    fields = {"trigger_type": "cron", "cron_expression": expression, "timezone": timezone}
    try:
        spec = parse_trigger(fields, default_timezone=timezone, now=after).spec
    except ValidationError as error:
        accepted = error.accepted
        if isinstance(accepted, str):
            accepted = english(accepted)
        raise OperationFailed(f"{english(error.message, error.params)}; accepted: {accepted}") from error
    return CronCheck(
        expression=expression,
        timezone=timezone,
        description=describe(spec, language),
        fields={name: spec[name] for name in EXPRESSION_PARTS[7] if name in spec},
        fires=tuple(preview(spec, count, after)),
    )


_WORDS = {
    "en": {
        "moved": "moved by the clock change, asked for at {moved_from}",
        "doubled": "this clock time comes twice that day",
        "dropped": "does not fire: the clock change leaves it out",
        "several": "the first of {count} that do not fire: the clock change leaves them out",
        "none": "no further fire",
    },
    "zh": {
        "moved": "因时钟调整而推移，原定 {moved_from}",
        "doubled": "因时钟调整，这个钟点当天出现两次",
        "dropped": "不触发：因时钟调整，这个钟点不存在",
        "several": "共 {count} 个时刻不触发（从这个起）：因时钟调整，这些钟点不存在",
        "none": "不再触发",
    },
}


def cron_lines(check: CronCheck, language: str) -> list[str]:
    """The check for people, a line a fire."""
    words = _WORDS[language]
    lines = [f"{check.expression}  ({check.timezone})", check.description]
    for fire in check.fires:
        key = "several" if fire.change == "dropped" and fire.count > 1 else fire.change
        note = "" if key is None else "  " + words[key].format(moved_from=fire.moved_from, count=fire.count)
        lines.append(f"{datetime.fromisoformat(fire.at):%Y-%m-%d %H:%M:%S} {fire.utc_offset}{note}")
    if not check.fires:
        lines.append(words["none"])
    return lines
