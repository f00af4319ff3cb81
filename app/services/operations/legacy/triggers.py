"""Triggers of APScheduler 3, from the data of their pickles to the fields that the trigger parser takes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from app.services.operations.legacy.pickles import Made, UnreadablePickle
from app.services.operations.legacy.values import as_moment, as_span, as_zone, class_of, state_of
from app.triggers import CRON_FIELD_NAMES, POSITIONS, WEEKDAYS

_EXPRESSIONS = "apscheduler.triggers.cron.expressions."
_KINDS = {
    "apscheduler.triggers.cron.CronTrigger": "cron",
    "apscheduler.triggers.interval.IntervalTrigger": "interval",
    "apscheduler.triggers.date.DateTrigger": "date",
}
_UNITS = (("days", 86_400_000_000), ("hours", 3_600_000_000), ("minutes", 60_000_000))


def trigger_fields(value: Any) -> dict[str, Any]:
    """What parse_trigger takes for the same fires. UnreadablePickle says why a trigger has no such form here."""
    kind = _KINDS.get(class_of(value))
    if kind is None or not isinstance(value, Made):
        raise UnreadablePickle(f"its trigger is {class_of(value)}; accepted: cron, interval, date")
    state = state_of(value)
    if kind == "date":
        moment = as_moment(state.get("run_date"))
        if moment is None:
            raise UnreadablePickle("its date trigger has no date")
        # A clock time that a zone's change repeats is told apart by its offset; the zone is only for display.
        return {"trigger_type": "date", "run_date": moment.isoformat(), **_zone_of(moment.tzinfo)}
    fields: dict[str, Any] = {"trigger_type": kind}
    for name in ("start_date", "end_date"):
        moment = as_moment(state.get(name))
        if moment is not None:
            fields[name] = moment.isoformat()
    if state.get("jitter"):
        fields["jitter"] = state["jitter"]
    zone = as_zone(state.get("timezone"))
    if kind == "interval":
        return fields | _interval(as_span(state.get("interval"))) | _zone_of(zone)
    if not isinstance(zone, ZoneInfo):
        raise UnreadablePickle("its cron trigger has a time zone that has no name here (IANA, such as Asia/Shanghai)")
    return fields | _cron(state.get("fields")) | _zone_of(zone)


def _zone_of(zone: Any) -> dict[str, str]:
    return {"timezone": zone.key} if isinstance(zone, ZoneInfo) else {}


def _interval(length: timedelta) -> dict[str, Any]:
    left = length // timedelta(microseconds=1)
    fields: dict[str, Any] = {}
    for name, size in _UNITS:
        number, left = divmod(left, size)
        if number:
            fields[name] = number
    if left or not fields:
        fields["seconds"] = left // 1_000_000 if left % 1_000_000 == 0 else left / 1_000_000
    return fields


def _cron(value: Any) -> dict[str, str]:
    """The fields that were given: the others have the same defaults here."""
    if not isinstance(value, list | tuple):
        raise UnreadablePickle("its cron trigger has no fields")
    found: dict[str, str] = {}
    for field in value:
        if not class_of(field).startswith("apscheduler.triggers.cron.fields."):
            raise UnreadablePickle(f"its cron trigger holds {class_of(field)}")
        state = state_of(field)
        name, expressions = state.get("name"), state.get("expressions")
        if (
            not isinstance(name, str)
            or name not in CRON_FIELD_NAMES
            or not isinstance(expressions, list)
            or not expressions
        ):
            raise UnreadablePickle("a field of its cron trigger is damaged")
        if not state.get("is_default", False):
            found[name] = ",".join(_expression(name, expression) for expression in expressions)
    if not found:
        raise UnreadablePickle("its cron trigger has no field that was set")
    return found


def _expression(field: str, value: Any) -> str:
    kind = class_of(value).removeprefix(_EXPRESSIONS)
    if kind == "LastDayOfMonthExpression":
        return "last"
    state = state_of(value)
    if kind == "WeekdayPositionExpression":
        return f"{_pick(POSITIONS, state.get('option_num'))} {_pick(WEEKDAYS, state.get('weekday'))}"
    if kind == "AllExpression":
        first, last = (0, 6) if field == "day_of_week" else (None, None)
    elif kind in ("RangeExpression", "MonthRangeExpression", "WeekdayRangeExpression"):
        first, last = _number(state.get("first")), state.get("last")
        last = None if last is None else _number(last)
    else:
        raise UnreadablePickle(f"its cron trigger holds {class_of(value)}")
    step = None if state.get("step") is None else _number(state["step"])
    if field == "day_of_week":
        return _weekdays(state, first or 0, last, step)
    if first is None:
        return "*" if step is None else f"*/{step}"
    suffix = "" if step is None else f"/{step}"
    if last is None and step is None:
        last = first
    return (str(first) if last in (None, first) else f"{first}-{last}") + suffix


def _weekdays(state: Mapping[str, Any], first: int, last: int | None, step: int | None) -> str:
    """Every day by its name: APScheduler counts from Monday, crontab, and so the parser here, from Sunday."""
    if "first" not in state and step is None:
        return "*"
    if last is None:
        last = first if step is None else 6
    if not 0 <= first <= last <= 6 or (step is not None and step < 1):
        raise UnreadablePickle("the weekdays of its cron trigger are damaged")
    return ",".join(WEEKDAYS[day] for day in range(first, last + 1, step or 1))


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9999:
        raise UnreadablePickle("a field of its cron trigger is damaged")
    return value


def _pick(names: tuple[str, ...], value: Any) -> str:
    number = _number(value)
    if number >= len(names):
        raise UnreadablePickle("a field of its cron trigger is damaged")
    return names[number]
