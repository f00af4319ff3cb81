"""Triggers: from user input to a checked, normal JSON form, and from that form to fire times.

The normal form ("spec") is what the store keeps:

    {"type": "cron", "hour": "1", "minute": "30", "day_of_week": "mon-fri", ..., "timezone": "Asia/Shanghai"}
    {"type": "interval", "minutes": 10, "start_date": ISO, "timezone": ...}
    {"type": "date", "run_date": ISO, "timezone": ...}

with "start_date", "end_date" (cron, interval) and "jitter" (seconds) only where given; an interval always has
its start_date, the point its grid hangs on.

When they fire, and what a clock change does to them: app/fire_times.py.
"""

from __future__ import annotations

import calendar
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.date import DateTrigger
from cron_descriptor import ExpressionDescriptor, Options

from app.errors import _N, ValidationError
from app.fire_times import (
    DAY_S,
    EPOCH,
    MAX_YEAR,
    MIN_YEAR,
    GridIntervalTrigger,
    WallClockCronTrigger,
    clock_changes,
    later,
    micros,
    next_second,
)

Spec = dict[str, Any]

TRIGGER_TYPES = ("cron", "interval", "date")
MAX_EXPRESSION_LENGTH = 256  # characters
MIN_INTERVAL_S = 0.1  # below it the ledger would do nothing but write
MAX_INTERVAL_S = 36_525 * 86_400  # 100 years
MAX_JITTER_S = 86_400

# Names accepted for each cron field; of several the first that is not empty wins.
CRON_FIELD_NAMES: Mapping[str, tuple[str, ...]] = {
    "year": ("year", "cron_year"),
    "month": ("cron_month", "month"),
    "day": ("cron_day", "day"),
    "week": ("week", "cron_week"),
    "day_of_week": ("cron_weekday", "cron_day_of_week", "day_of_week", "weekday"),
    "hour": ("cron_hour", "hour"),
    "minute": ("cron_minute", "minute"),
    "second": ("cron_second", "second"),
}
EXPRESSION_PARTS: Mapping[int, tuple[str, ...]] = {
    7: ("second", "minute", "hour", "day", "month", "day_of_week", "year"),
    6: ("second", "minute", "hour", "day", "month", "day_of_week"),
    5: ("minute", "hour", "day", "month", "day_of_week"),
}
INTERVAL_SECONDS: Mapping[str, int] = {
    "weeks": 604_800,
    "days": 86_400,
    "hours": 3_600,
    "minutes": 60,
    "seconds": 1,
}
TRIGGER_FIELDS = frozenset(
    {"trigger_type", "cron_expression", "run_date", "start_date", "end_date", "jitter", "timezone"}
    | set(INTERVAL_SECONDS)
    | {name for names in CRON_FIELD_NAMES.values() for name in names}
)
"""Every key of a request body that parse_trigger reads."""

CRON_LIMITS: Mapping[str, tuple[int, int]] = {
    "year": (MIN_YEAR, MAX_YEAR),
    "month": (1, 12),
    "day": (1, 31),
    "week": (1, 53),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 59),
}
CRON_ACCEPTED: Mapping[str, str] = {
    "year": _N("1970 到 2199 的年份、*、*/n、a-b、a-b/n，可用逗号连接"),
    "month": _N("1 到 12 或 jan 到 dec、*、*/n、a-b、a-b/n，可用逗号连接"),
    "day": _N("1 到 31、*、*/n、a-b、a-b/n、last、2nd mon、last fri，可用逗号连接"),
    "week": _N("1 到 53 的 ISO 周数、*、*/n、a-b、a-b/n，可用逗号连接"),
    "day_of_week": _N("0 到 7（0 和 7 都是星期日）或 mon 到 sun、*、*/n、a-b、a-b/n，可用逗号连接"),
    "hour": _N("0 到 23、*、*/n、a-b、a-b/n，可用逗号连接"),
    "minute": _N("0 到 59、*、*/n、a-b、a-b/n，可用逗号连接"),
    "second": _N("0 到 59、*、*/n、a-b、a-b/n，可用逗号连接"),
}
ACCEPTED_EXPRESSION = _N(
    "5 段（分 时 日 月 周）、6 段（秒 分 时 日 月 周）或 7 段（秒 分 时 日 月 周 年），至多 256 个字符"
)
ACCEPTED_NUMBER = _N("不小于 0 的数字或数字字符串")
ACCEPTED_MOMENT = _N("ISO 8601 时间，1970 到 2199 年，例如 2030-01-31T08:30:00+08:00")

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # as in APScheduler: Monday is 0
CRONTAB_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")  # as in crontab: Sunday is 0 (and 7)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
POSITIONS = ("1st", "2nd", "3rd", "4th", "5th", "last")

_TERM = re.compile(r"(?:(?P<all>\*)|(?P<first>[0-9a-z]{1,9})(?:-(?P<last>[0-9a-z]{1,9}))?)(?:/(?P<step>[0-9]{1,4}))?")
_POSITION = re.compile(rf"(?P<position>{'|'.join(POSITIONS)})\s+(?P<weekday>[0-7]|{'|'.join(WEEKDAYS)})")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})")
_ZONE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+\-/]{0,63}")


@dataclass(frozen=True)
class ParsedTrigger:
    """A checked trigger. warnings: (message id, its params) for the answer's `meta.warnings`."""

    spec: Spec
    warnings: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class PreviewFire:
    """One row of a preview.

    at: ISO 8601 in the trigger's zone with offset; of a dropped moment the clock time that does not exist,
    with the offset that held before the change. utc: the same instant in UTC. utc_offset: "+08:00".
    change: what a clock change does to it: None, "moved", "doubled" or "dropped" (it does not fire).
    moved_from: the clock time that was asked for, of a moved fire. count: moments in this row, above 1 only
    where several dropped ones of one change are folded.
    """

    at: str
    utc: str
    utc_offset: str
    change: str | None = None
    moved_from: str | None = None
    count: int = 1


# --- From user input to the normal form ---------------------------------------------------------------


def parse_trigger(
    payload: Mapping[str, Any],
    *,
    default_timezone: str,
    now: datetime | None = None,
    misfire_grace_s: float = 300,
    interval_start: datetime | None = None,
    allow_past: bool = False,
) -> ParsedTrigger:
    """Check user input and bring it into the normal form. Keys that no trigger has are not looked at.

    default_timezone: the zone used when `timezone` is missing or unknown.
    now: for tests. misfire_grace_s: a `date` this many seconds in the past may still run.
    interval_start: first fire of an interval that names no start_date; default is now + one interval. A file
    of defaults that is read at every start passes a fixed moment, so that the trigger stays the same.
    allow_past: accept a trigger whose fires all lie in the past (a date job that is done stays in its file).

    Raises ValidationError naming field, value and what is accepted.
    """
    if not isinstance(payload, Mapping) or not payload:
        raise ValidationError(_N("触发器必须是非空的 JSON 对象"), field="trigger", value=payload)
    now = (now or datetime.now(UTC)).astimezone(UTC)
    trigger_type = payload.get("trigger_type")
    if trigger_type is None or trigger_type == "":
        raise ValidationError(
            _N("缺少 trigger_type"), field="trigger_type", value=trigger_type, accepted=list(TRIGGER_TYPES)
        )
    warnings: list[tuple[str, dict[str, Any]]] = []
    zone_name = _parse_timezone(payload.get("timezone"), default_timezone, warnings)
    zone = ZoneInfo(zone_name)
    if trigger_type == "cron":
        spec = _parse_cron(payload, warnings)
    elif trigger_type == "interval":
        spec = _parse_interval(payload)
    elif trigger_type == "date":
        not_before = None if allow_past else now - timedelta(seconds=misfire_grace_s)
        return _parse_date(payload, zone, not_before, warnings)
    else:
        raise ValidationError(
            _N("未知的 trigger_type：%(value)s"),
            params={"value": _short(trigger_type)},
            field="trigger_type",
            value=trigger_type,
            accepted=list(TRIGGER_TYPES),
        )
    start = _parse_moment(payload, "start_date", zone, warnings)
    end = _parse_moment(payload, "end_date", zone, warnings)
    if start is None and trigger_type == "interval":
        start = interval_start or now.replace(microsecond=0) + timedelta(seconds=_interval_s(spec))
        start = start.astimezone(zone)
    if start is not None and end is not None and end.astimezone(UTC) < start.astimezone(UTC):
        raise ValidationError(
            _N("end_date（%(end)s）早于 start_date（%(start)s）"),
            params={"end": end.isoformat(), "start": start.isoformat()},
            field="end_date",
            value=payload.get("end_date"),
            accepted=_N("不早于 start_date 的时间"),
        )
    jitter = _parse_number(payload, "jitter", MAX_JITTER_S)
    spec |= {"timezone": zone_name}
    spec |= {"start_date": start.isoformat()} if start is not None else {}
    spec |= {"end_date": end.isoformat()} if end is not None else {}
    spec |= {"jitter": jitter} if jitter else {}
    _check_fires(spec, payload, now, allow_past)
    return ParsedTrigger(spec, tuple(warnings))


def _parse_timezone(value: Any, default: str, warnings: list[tuple[str, dict[str, Any]]]) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    name = value.strip() if isinstance(value, str) else None
    if name is not None and known_timezone(name):
        return name
    warnings.append((_N("未知的时区 %(value)s，已改用 %(fallback)s"), {"value": _short(value), "fallback": default}))
    return default


@lru_cache(maxsize=1024)
def known_timezone(name: str) -> bool:
    """Whether the name is one of the IANA zones (no paths, no leap-second variants, no `localtime`)."""
    if not _ZONE_NAME.fullmatch(name) or name.startswith(("posix/", "right/")):
        return False
    if name in ("localtime", "posixrules", "Factory"):
        return False
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not found; not a zone file; a folder such as "America"
        return False
    return True


def _parse_cron(payload: Mapping[str, Any], warnings: list[tuple[str, dict[str, Any]]]) -> Spec:
    fields: dict[str, str] = {}
    expression = payload.get("cron_expression")
    if expression is None:
        expression = ""
    if not isinstance(expression, str):
        raise ValidationError(
            _N("cron_expression 必须是字符串"),
            field="cron_expression",
            value=expression,
            accepted=ACCEPTED_EXPRESSION,
        )
    if len(expression) > MAX_EXPRESSION_LENGTH:
        raise ValidationError(
            _N("cron_expression 有 %(length)s 个字符，超过上限"),
            params={"length": len(expression)},
            field="cron_expression",
            value=expression,
            accepted=ACCEPTED_EXPRESSION,
        )
    singles = {}
    for field, names in CRON_FIELD_NAMES.items():
        for name in names:
            value = payload.get(name)
            if value is not None and not (isinstance(value, str) and not value.strip()):
                singles[field] = (name, value)
                break
    parts = expression.split()
    for field, part in zip(EXPRESSION_PARTS.get(len(parts), ()), parts, strict=False):
        if field not in singles:
            fields[field] = _parse_cron_field(field, part, "cron_expression")
    for field, (name, value) in singles.items():
        fields[field] = _parse_cron_field(field, value, name)
    if not fields:
        raise ValidationError(
            _N("cron 触发器需要 cron_expression（5、6 或 7 段）或至少一个单独字段"),
            field="cron_expression",
            value=payload.get("cron_expression"),
            accepted=ACCEPTED_EXPRESSION,
        )
    if parts and len(parts) not in EXPRESSION_PARTS:
        warnings.append((_N("cron_expression 有 %(parts)s 段，未被采用"), {"parts": len(parts)}))
    return {"type": "cron"} | {field: fields[field] for field in CRON_FIELD_NAMES if field in fields}


def _parse_cron_field(field: str, value: Any, name: str) -> str:
    """The field in APScheduler's syntax, weekdays as names. name is what the user called the field."""

    def refuse(message: str) -> ValidationError:
        return ValidationError(
            message,
            params={
                "field": name if name != "cron_expression" else f"{name} ({field})",
                "value": _short(value),
            },
            field=name,
            value=value,
            accepted=CRON_ACCEPTED[field],
        )

    if isinstance(value, bool) or not isinstance(value, str | int):
        raise refuse(_N("%(field)s 必须是字符串或整数，而不是 %(value)s"))
    if isinstance(value, int) and not 0 <= value <= 9999:
        raise refuse(_N("%(field)s 的值 %(value)s 超出范围"))
    text = str(value).strip().lower()
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise refuse(_N("%(field)s 太长，至多 256 个字符"))
    if "?" in text:
        raise refuse(_N("%(field)s 不支持 ?（%(value)s），请改用 *"))
    terms: list[str] = []
    for term in (part.strip() for part in text.split(",")):
        for normal in _parse_cron_term(field, term, refuse):
            if normal not in terms:
                terms.append(normal)
    return ",".join(terms)


def _parse_cron_term(field: str, term: str, refuse: Any) -> list[str]:
    if field == "day":
        if term == "last":
            return [term]
        if position := _POSITION.fullmatch(term):
            weekday = position["weekday"]
            day = CRONTAB_WEEKDAYS[int(weekday) % 7] if weekday.isdigit() else weekday
            return [f"{position['position']} {day}"]
    if re.fullmatch(r"[0-9]*(?:l|w|lw)|[0-9a-z]+(?:#[0-9l]+)|(?:mon|tue|wed|thu|fri|sat|sun)l", term):
        raise refuse(_N("%(field)s 不支持 L、W 和 #（%(value)s），请在日字段用 last 或 2nd mon 这样的写法"))
    match = _TERM.fullmatch(term)
    if match is None:
        raise refuse(_N("%(field)s 的值 %(value)s 无法识别"))
    step = int(match["step"]) if match["step"] is not None else None
    if field == "day_of_week":
        return _parse_weekdays(match, step, refuse)
    low, high = CRON_LIMITS[field]
    first, last = low, high
    if not match["all"]:
        first = _cron_number(field, match["first"], refuse)
        last = _cron_number(field, match["last"], refuse) if match["last"] else (high if step else first)
        if first > last:
            raise refuse(_N("%(field)s 的值 %(value)s 起点大于终点"))
    if step is not None and not 1 <= step <= last - first:
        raise refuse(_N("%(field)s 的值 %(value)s 步长必须至少为 1 且不超过范围的长度"))
    suffix = f"/{step}" if step else ""
    if match["all"]:
        return [f"*{suffix}"]
    return [(f"{first}-{last}" if match["last"] and first != last else str(first)) + suffix]


def _cron_number(field: str, text: str, refuse: Any) -> int:
    if field == "month" and text in MONTHS:
        return MONTHS.index(text) + 1
    if not text.isdigit():
        raise refuse(_N("%(field)s 的值 %(value)s 无法识别"))
    low, high = CRON_LIMITS[field]
    if not low <= int(text) <= high:
        raise refuse(_N("%(field)s 的值 %(value)s 超出范围"))
    return int(text)


def _parse_weekdays(match: re.Match[str], step: int | None, refuse: Any) -> list[str]:
    """Weekdays as names, in ranges that run from Monday to Sunday. Numbers are crontab's."""

    def number(text: str) -> int:
        if text in CRONTAB_WEEKDAYS:
            return CRONTAB_WEEKDAYS.index(text)
        if not text.isdigit():
            raise refuse(_N("%(field)s 的值 %(value)s 无法识别"))
        if int(text) > 7:
            raise refuse(_N("%(field)s 的值 %(value)s 超出范围"))
        return int(text)

    if match["all"]:
        if step is None:
            return ["*"]
        first, last = 0, 6
    else:
        first = number(match["first"])
        last = number(match["last"]) if match["last"] else (max(first, 6) if step else first)
    if last < first:  # round the end of the week: 6-1, fri-mon
        last += 7
    if step is not None and not 1 <= step <= last - first:
        raise refuse(_N("%(field)s 的值 %(value)s 步长必须至少为 1 且不超过范围的长度"))
    chosen = {CRONTAB_WEEKDAYS[day % 7] for day in range(first, last + 1, step or 1)}
    runs: list[list[str]] = []
    for index, day in enumerate(WEEKDAYS):
        if day in chosen:
            if index and WEEKDAYS[index - 1] in chosen:
                runs[-1].append(day)
            else:
                runs.append([day])
    return [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def _parse_interval(payload: Mapping[str, Any]) -> Spec:
    spec: Spec = {"type": "interval"}
    for field, unit in INTERVAL_SECONDS.items():
        number = _parse_number(payload, field, MAX_INTERVAL_S / unit)
        if number:
            spec[field] = number
    if len(spec) == 1:
        raise ValidationError(
            _N("interval 触发器的 weeks、days、hours、minutes、seconds 至少有一个要大于 0"),
            field="seconds",
            value=payload.get("seconds"),
            accepted=_N("大于 0 的数字或数字字符串"),
        )
    length = _interval_s(spec)
    if not MIN_INTERVAL_S <= length <= MAX_INTERVAL_S:
        field = next(name for name in INTERVAL_SECONDS if name in spec)
        raise ValidationError(
            _N("间隔 %(length)s 秒超出范围"),
            params={"length": f"{length:g}"},
            field=field,
            value=payload.get(field),
            accepted=_N("合计 0.1 秒到 36525 天"),
        )
    return spec


def _parse_number(payload: Mapping[str, Any], field: str, limit: float) -> int | float:
    """A number of the payload, whole where it can be; 0 when it is missing, empty or zero."""
    value = payload.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return 0
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 10**15
    if isinstance(value, str):
        numeric = _NUMBER.fullmatch(value.strip()) is not None
    number = float(value) if numeric else math.nan
    if math.isnan(number):
        message, accepted = _N("%(field)s 必须是数字，而不是 %(value)s"), ACCEPTED_NUMBER
    elif number < 0:
        message, accepted = _N("%(field)s 不能为负数：%(value)s"), ACCEPTED_NUMBER
    elif number > limit:
        message, accepted = _N("%(field)s 的值 %(value)s 太大"), f"0 - {limit:.10g}"
    else:
        return int(number) if number.is_integer() else number
    raise ValidationError(
        message, params={"field": field, "value": _short(value)}, field=field, value=value, accepted=accepted
    )


def _interval_s(spec: Spec) -> float:
    return math.fsum(spec.get(field, 0) * unit for field, unit in INTERVAL_SECONDS.items())


def _parse_date(
    payload: Mapping[str, Any],
    zone: ZoneInfo,
    not_before: datetime | None,
    warnings: list[tuple[str, dict[str, Any]]],
) -> ParsedTrigger:
    run_date = _parse_moment(payload, "run_date", zone, warnings)
    if run_date is None:
        raise ValidationError(
            _N("date 触发器需要 run_date"),
            field="run_date",
            value=payload.get("run_date"),
            accepted=ACCEPTED_MOMENT,
        )
    if not_before is not None and run_date < not_before:
        raise _past("run_date", payload.get("run_date"), run_date)
    spec = {"type": "date", "run_date": run_date.isoformat(), "timezone": zone.key}
    return ParsedTrigger(spec, tuple(warnings))


def _parse_moment(
    payload: Mapping[str, Any], field: str, zone: ZoneInfo, warnings: list[tuple[str, dict[str, Any]]]
) -> datetime | None:
    """An aware moment in the zone, or None when not given.

    A clock time that the zone skips keeps the offset that held before, so that a preview can tell.
    """
    value = payload.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    moment: datetime | None = None
    if isinstance(value, datetime):  # YAML reads a time by itself
        moment = value
    elif isinstance(value, date):
        moment = datetime(value.year, value.month, value.day)
    elif isinstance(value, str) and len(value) <= 64:
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            moment = None
    if moment is None or not MIN_YEAR <= moment.year <= MAX_YEAR:
        raise ValidationError(
            _N("%(field)s 的值 %(value)s 不是可用的时间"),
            params={"field": field, "value": _short(value)},
            field=field,
            value=value,
            accepted=ACCEPTED_MOMENT,
        )
    if moment.tzinfo is not None:
        return moment.astimezone(zone)
    moment = moment.replace(tzinfo=zone)
    offset, other = moment.utcoffset(), moment.replace(fold=1).utcoffset()
    real = moment.astimezone(UTC).astimezone(zone)
    if real.replace(tzinfo=None) != moment.replace(tzinfo=None):
        warnings.append(
            (
                _N("%(field)s 的本地时间 %(value)s 因时钟调整而不存在，将在 %(at)s 执行"),
                {"field": field, "value": _short(value), "at": real.isoformat()},
            )
        )
    elif offset != other:
        warnings.append(
            (
                _N("%(field)s 的本地时间 %(value)s 因时钟调整出现两次，取第一次 %(at)s"),
                {"field": field, "value": _short(value), "at": moment.isoformat()},
            )
        )
    return moment


def _check_fires(spec: Spec, payload: Mapping[str, Any], now: datetime, allow_past: bool) -> None:
    """Refuse a cron or interval trigger that has no fire ahead."""
    try:
        if next_fire(spec, None, now) is not None:
            return
        past = next_fire(spec, None, datetime(MIN_YEAR, 1, 2, tzinfo=UTC)) is not None
    except (ValueError, OverflowError, OSError) as error:  # what the checks above did not foresee
        raise ValidationError(
            _N("无法建立触发器：%(reason)s"),
            params={"reason": str(error)},
            field="trigger_type",
            value=spec["type"],
            accepted=list(TRIGGER_TYPES),
        ) from error
    if past and allow_past:
        return
    if "end_date" in spec and (past or spec["type"] == "interval"):
        raise _past("end_date", payload.get("end_date"), datetime.fromisoformat(spec["end_date"]))
    if past:
        field, value = next(
            (name, payload[name])
            for name in (*CRON_FIELD_NAMES["year"], "cron_expression")
            if payload.get(name) not in (None, "")
        )
        raise ValidationError(
            _N("触发器的所有时刻都已过去"),
            field=field,
            value=value,
            accepted=_N("至少有一个将来的触发时刻"),
        )
    given = {name: payload[name] for name in sorted(TRIGGER_FIELDS & set(payload)) if payload[name] not in (None, "")}
    given.pop("trigger_type", None)
    field = "cron_expression" if payload.get("cron_expression") else next(iter(given), "cron_expression")
    raise ValidationError(
        _N("触发器永远不会触发：没有任何日期同时满足所有字段"),
        field=field,
        value=payload.get("cron_expression") or given,
        accepted=_N("至少有一个将来的触发时刻"),
    )


def _past(field: str, value: Any, moment: datetime) -> ValidationError:
    return ValidationError(
        _N("%(field)s（%(at)s）已经过去"),
        params={"field": field, "at": moment.isoformat()},
        field=field,
        value=value,
        accepted=_N("将来的时间"),
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 64 else text[:64] + "…"


# --- Fire times --------------------------------------------------------------------------------------


def build_trigger(spec: Spec) -> BaseTrigger:
    """The APScheduler trigger of a spec. Cached: equal specs share one trigger, which holds no state."""
    return _build(_canonical(spec))


def _canonical(spec: Spec) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=16384)
def _build(canonical: str) -> BaseTrigger:
    spec: Spec = json.loads(canonical)
    zone = ZoneInfo(spec["timezone"])
    if spec["type"] == "date":
        return DateTrigger(run_date=datetime.fromisoformat(spec["run_date"]).astimezone(zone))
    limits: dict[str, Any] = {
        name: datetime.fromisoformat(spec[name]).astimezone(zone) for name in ("start_date", "end_date") if name in spec
    }
    limits |= {"timezone": zone, "jitter": spec.get("jitter")}
    if spec["type"] == "interval":
        return GridIntervalTrigger(**{name: spec[name] for name in INTERVAL_SECONDS if name in spec}, **limits)
    if spec["type"] == "cron":
        return WallClockCronTrigger(**{name: spec[name] for name in CRON_FIELD_NAMES if name in spec}, **limits)
    raise ValueError(f"unknown trigger type {spec['type']!r}, accepted: {', '.join(TRIGGER_TYPES)}")


def next_fire(spec: Spec, previous: datetime | None, now: datetime) -> datetime | None:
    """The next fire, aware, in the trigger's zone; None when there is none.

    With previous: the first fire after it, wherever now is (a clock that was put back repeats nothing).
    Without: the first at or after now; a date trigger gives its date even when that is past.
    """
    fire: datetime | None = build_trigger(spec).get_next_fire_time(previous, now)
    return fire


def fold_fires(
    spec: Spec, first: datetime, until: datetime, limit: int = 10_000_000
) -> tuple[int, datetime, datetime | None]:
    """Fold the due fires from first (a fire itself, whatever the trigger says) to until, both included.

    Returns (how many, 1 to limit; the last of them; the fire after that one, None at the end).
    Jitter moves none of the folded fires, only the next one. Costs microseconds, not a step a fire.
    """
    trigger = build_trigger(spec)
    zone = ZoneInfo(spec["timezone"])
    first = first.astimezone(zone)
    until = until.astimezone(UTC)  # within one zone Python compares clock times
    if until <= first or limit <= 1 or spec["type"] == "date":
        return 1, first, trigger.get_next_fire_time(first, first)
    if isinstance(trigger, GridIntervalTrigger):
        last_moment = until.astimezone(UTC) if trigger.end_date is None else min(until, trigger.end_date)
        start = (
            trigger.first_at(later(first, 1e-6)) if trigger.jitter else later(first, trigger.interval.total_seconds())
        )
        steps = 0
        if start is not None and start <= last_moment:
            steps = min((last_moment - start.astimezone(UTC)) // trigger.interval + 1, limit - 1)
        if not steps or start is None:
            return 1, first, trigger.get_next_fire_time(first, first)
        last = (start.astimezone(UTC) + (steps - 1) * trigger.interval).astimezone(zone)
        return 1 + steps, last, trigger.get_next_fire_time(last, last)
    start_s, stop_s = next_second(first), micros(until) // 1_000_000 + 1
    more = min(trigger.count(start_s, stop_s), limit - 1)
    if not more:
        return 1, first, trigger.get_next_fire_time(first, first)
    low, high = start_s, stop_s  # the last fire is the smallest second with `more` fires up to and with it
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trigger.count(start_s, middle) >= more else (middle, high)
    last = datetime.fromtimestamp(high - 1, zone)
    return 1 + more, last, trigger.get_next_fire_time(last, last)


def fires_between(spec: Spec, after: datetime, until: datetime, limit: int = 1000) -> list[datetime]:
    """The fires in [after, until), oldest first, at most limit, without jitter, in the trigger's zone."""
    fires: list[datetime] = []
    until = until.astimezone(UTC)  # within one zone Python compares clock times
    for fire in _fires(spec, after):
        if fire >= until or len(fires) >= limit:
            break
        fires.append(fire)
    return fires


def _fires(spec: Spec, start: datetime) -> Iterator[datetime]:
    """Every fire at or after start, without jitter."""
    plain = {name: value for name, value in spec.items() if name != "jitter"}
    trigger = build_trigger(plain)
    fire = trigger.get_next_fire_time(None, start)
    if spec["type"] == "date" and fire is not None and fire.astimezone(UTC) < start:
        return
    while fire is not None:
        yield fire
        fire = trigger.get_next_fire_time(fire, fire)


# --- What people see ---------------------------------------------------------------------------------


def trigger_type(spec: Spec) -> str:
    """`cron`, `interval` or `date`."""
    return str(spec["type"])


def trigger_args(spec: Spec, locale: str = "zh") -> dict[str, str]:
    """`trigger_args` of the job list: the seven cron fields as strings, or a description otherwise."""
    if spec["type"] != "cron":
        return {"description": describe(spec, locale)}
    return _cron_args(spec)


def _cron_args(spec: Spec) -> dict[str, str]:
    fields = {field.name: str(field) for field in build_trigger(spec).fields}
    args = {name: fields[name] for name in EXPRESSION_PARTS[7]}
    return args | ({} if "year" in spec else {"year": ""})


def preview(spec: Spec, count: int, after: datetime | None = None) -> list[PreviewFire]:
    """The next `count` rows of a trigger at or after a moment (default: now), without jitter.

    A row is a fire, or one or more moments that a clock change drops, where they would have been.
    """
    after = after or datetime.now(UTC)
    trigger = build_trigger(spec)
    zone = ZoneInfo(spec["timezone"])
    rows: list[PreviewFire] = []
    behind = micros(after) // 1_000_000
    for fire in _fires(spec, after):
        if isinstance(trigger, WallClockCronTrigger):
            instant = int(fire.timestamp())
            rows += _dropped_rows(trigger, behind, instant)
            rows.append(_cron_row(trigger, instant))
            behind = instant
        elif spec["type"] == "date":
            rows.append(_date_row(datetime.fromisoformat(spec["run_date"]), zone))
        else:
            rows.append(_row(fire))
        if len(rows) >= count:
            break
    rows.sort(key=lambda row: datetime.fromisoformat(row.utc))
    return rows[:count]


def _row(moment: datetime, **marks: Any) -> PreviewFire:
    iso = moment.isoformat()
    utc = moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return PreviewFire(iso, utc, iso[max(iso.rfind("+"), iso.rfind("-")) :], **marks)


def _date_row(run_date: datetime, zone: ZoneInfo) -> PreviewFire:
    """A clock time that the zone skips was stored with the offset that held before (see _parse_moment)."""
    fire = run_date.astimezone(zone)
    earlier = datetime.fromtimestamp(run_date.timestamp() - DAY_S, zone).utcoffset()
    if run_date.utcoffset() != fire.utcoffset() and run_date.utcoffset() == earlier:
        return _row(fire, change="moved", moved_from=run_date.replace(tzinfo=None).isoformat())
    return _row(fire)


def _cron_row(trigger: WallClockCronTrigger, instant: int) -> PreviewFire:
    fire = datetime.fromtimestamp(instant, trigger.timezone)
    for change in clock_changes(trigger.timezone, instant - DAY_S, instant + DAY_S):
        shift = change.after - change.before
        if shift > 0 and trigger.skipped(change)[0] == instant:
            asked = datetime.fromtimestamp(instant + change.before, UTC).replace(tzinfo=None)
            return _row(fire, change="moved", moved_from=asked.isoformat())
        if shift < 0 and change.at + shift <= instant < change.at - shift:
            return _row(fire, change="doubled")
    return _row(fire)


def _dropped_rows(trigger: WallClockCronTrigger, after: int, until: int) -> list[PreviewFire]:
    rows = []
    for change in clock_changes(trigger.timezone, after, until):
        _, first, dropped = trigger.skipped(change)
        if dropped:
            offset = timedelta(seconds=change.before)
            wall = (EPOCH + timedelta(seconds=first)).replace(tzinfo=None)
            rows.append(_row(wall.replace(tzinfo=timezone(offset)), change="dropped", count=dropped))
    return rows


_WORDS: Mapping[str, Mapping[str, Any]] = {
    "zh": {
        "weeks": ("周", "周"),
        "days": ("天", "天"),
        "hours": ("小时", "小时"),
        "minutes": ("分钟", "分钟"),
        "seconds": ("秒", "秒"),
        "every": "每 {0}",
        "once": "仅一次：{0}",
        "week": "，ISO 第 {0} 周",
        "start": "，自 {0} 起",
        "end": "，至 {0} 止",
        "jitter": "，随机延后至多 {0} 秒",
    },
    "en": {
        "weeks": ("week", "weeks"),
        "days": ("day", "days"),
        "hours": ("hour", "hours"),
        "minutes": ("minute", "minutes"),
        "seconds": ("second", "seconds"),
        "every": "Every {0}",
        "once": "Once: {0}",
        "week": ", in ISO week {0}",
        "start": ", from {0}",
        "end": ", until {0}",
        "jitter": ", delayed at random by up to {0} s",
    },
}


def describe(spec: Spec, locale: str = "zh") -> str:
    """The trigger in words, in Chinese (`zh…`, the default) or English (`en…`)."""
    return _describe(_canonical(spec), "en" if locale.lower().startswith("en") else "zh")


@lru_cache(maxsize=16384)
def _describe(canonical: str, locale: str) -> str:
    spec: Spec = json.loads(canonical)
    words = _WORDS[locale]
    if spec["type"] == "date":
        moment = datetime.fromisoformat(spec["run_date"]).astimezone(ZoneInfo(spec["timezone"]))
        return str(words["once"].format(moment.isoformat(sep=" ")))
    if spec["type"] == "interval":
        parts = [f"{spec[unit]} {words[unit][spec[unit] != 1]}" for unit in INTERVAL_SECONDS if unit in spec]
        text = words["every"].format(" ".join(parts))
    else:
        text = _describe_cron(spec, locale)
        if "week" in spec and spec["week"] != "*":
            text += words["week"].format(spec["week"])
        if "start_date" in spec:
            text += words["start"].format(spec["start_date"])
    if "end_date" in spec:
        text += words["end"].format(spec["end_date"])
    if "jitter" in spec:
        text += words["jitter"].format(spec["jitter"])
    return str(text)


def _describe_cron(spec: Spec, locale: str) -> str:
    args = _cron_args(spec)
    day, weekday = args["day"], args["day_of_week"]
    if position := _POSITION.fullmatch(day):
        # cron-descriptor says "the second Monday" in the weekday field, so that must be free.
        if weekday == "*":
            number = CRONTAB_WEEKDAYS.index(position["weekday"])
            rank = POSITIONS.index(position["position"]) + 1
            day, weekday = "*", f"{number}L" if position["position"] == "last" else f"{number}#{rank}"
    elif day == "last":
        day = "L"
    expression = " ".join(
        [args["second"], args["minute"], args["hour"], day, args["month"], weekday, args["year"] or "*"]
    )
    options = Options(locale_code="en_US" if locale == "en" else "zh_CN", use_24hour_time_format=True, verbose=True)
    try:
        text = str(ExpressionDescriptor(expression, options).get_description())
    except Exception:  # noqa: BLE001, RUF100 - APScheduler has fields (lists of positions) that it does not know
        return "cron: " + ", ".join(f"{name} = {value}" for name, value in args.items() if value)
    return text if locale == "en" else _ENGLISH_NAMES.sub(lambda match: _CHINESE_NAMES[match[0]], text)


# cron-descriptor takes the names of months and weekdays from the C locale, which is English in the images.
_CHINESE_NAMES = {name: f"{month} 月" for month, name in enumerate(calendar.month_name) if name} | {
    name: f"星期{character}" for name, character in zip(calendar.day_name, "一二三四五六日", strict=True)
}
_ENGLISH_NAMES = re.compile("|".join(_CHINESE_NAMES))
