"""A time as a person types it: a clock time, a day, or a moment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from app.services.operations.failure import OperationFailed

ACCEPTED = "HH:MM, HH:MM:SS, YYYY-MM-DD, or YYYY-MM-DD HH:MM with or without seconds and UTC offset"

_CLOCK = re.compile(r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?P<second>:\d{2})?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?P<second>:\d{2}(?:[.,]\d{1,6})?)?(?:Z|[+-]\d{2}:?\d{2})?")


@dataclass(frozen=True)
class AskedTime:
    """What was meant: the moments in [start, until), aware UTC. `is_day`: a whole day. `is_left_out`: a clock time that
    a clock change skips; the offset before it counts."""

    start: datetime
    until: datetime
    is_day: bool = False
    is_left_out: bool = False


def asked_time(text: str, zone: ZoneInfo, now: datetime) -> AskedTime:
    """What `text` means in `zone`; a clock time alone is the latest one that has been. As exact as it was typed: to the
    minute, to the second, or a day.

    OperationFailed for anything else. A clock time that a clock change repeats means both.
    """
    text = text.strip()
    try:
        if match := _CLOCK.fullmatch(text):
            clock = {name: int(match[name]) for name in ("hour", "minute")}
            clock["second"] = int(match["second"][1:]) if match["second"] else 0
            moment = now.astimezone(zone).replace(tzinfo=None, microsecond=0, **clock)
            if moment.replace(tzinfo=zone).astimezone(UTC) > now:
                moment -= timedelta(days=1)
            return _window(moment, zone, 1 if match["second"] else 60)
        if _DAY.fullmatch(text):
            day = datetime.fromisoformat(text)
            following = day + timedelta(days=1)
            start, until = (each.replace(tzinfo=zone).astimezone(UTC) for each in (day, following))
            return AskedTime(start, until, is_day=True)
        if match := _MOMENT.fullmatch(text):
            moment = datetime.fromisoformat(text.replace(",", "."))
            return _window(moment, zone, 1 if match["second"] else 60)
    except (ValueError, OverflowError):
        pass
    raise OperationFailed(f"TIME is {text!r}; accepted: {ACCEPTED}")


def _window(moment: datetime, zone: ZoneInfo, precision_s: int) -> AskedTime:
    moment = moment.replace(microsecond=0)
    if moment.tzinfo is not None:
        first = last = moment.astimezone(UTC)
    else:
        first, last = (moment.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    left_out = first > last
    until = (first if left_out else last) + timedelta(seconds=precision_s)
    return AskedTime(first, until, is_left_out=left_out)
