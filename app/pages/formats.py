"""How times, durations and counts are written on the pages."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from flask import g
from flask_babel import gettext as _
from markupsafe import Markup, escape

from app.runtime import current_runtime

DASH = "—"
_BREAKS = re.compile(r"([_\-./])(?=\w)")


def page_now() -> datetime:
    """Now, aware UTC; the same moment for the whole page."""
    if "page_now" not in g:
        g.page_now = datetime.now(UTC)
    moment: datetime = g.page_now
    return moment


def page_zone() -> ZoneInfo:
    """The zone that the pages write times in: the scheduler's."""
    return ZoneInfo(current_runtime().settings.scheduler_timezone)


def scheduler_time(moment: datetime | None) -> str:
    """`2026-03-01 08:30:00` in the scheduler's zone, or a dash for none."""
    return DASH if moment is None else moment.astimezone(page_zone()).strftime("%Y-%m-%d %H:%M:%S")


def relative_time_now(moment: datetime | None) -> str:
    """How far `moment` is from now, in the page's language."""
    return relative_time(moment, page_now())


def relative_time(moment: datetime | None, now: datetime) -> str:
    """How far `moment` is from `now`, in the page's language: "3 分钟前", "in 2 h"; empty for none."""
    if moment is None:
        return ""
    seconds = (moment - now).total_seconds()
    if abs(seconds) < 1:
        return str(_("刚刚"))
    amount = rounded_duration(abs(seconds))
    return str(_("%(amount)s后", amount=amount) if seconds > 0 else _("%(amount)s前", amount=amount))


def rounded_duration(seconds: float) -> str:
    """A length of time in its largest fitting unit: "5 秒", "3 min", "2 d"."""
    if seconds < 60:
        return str(_("%(n)s 秒", n=int(seconds)))
    if seconds < 3600:
        return str(_("%(n)s 分钟", n=int(seconds // 60)))
    if seconds < 48 * 3600:
        return str(_("%(n)s 小时", n=int(seconds // 3600)))
    return str(_("%(n)s 天", n=int(seconds // 86400)))


def milliseconds(value: float | None) -> str:
    """A duration given in milliseconds: "12 ms", "1.24 s", "3:05", "2:10:00"; a dash for none."""
    if value is None:
        return DASH
    if value < 1000:
        return f"{round(value)} ms"
    if value < 60_000:
        return f"{value / 1000:.2f} s"
    minutes, seconds = divmod(round(value / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def breakable(name: str) -> Markup:
    """A long name that a narrow column may break behind its `_`, `-`, `.` and `/`."""
    return Markup(_BREAKS.sub(r"\1<wbr>", str(escape(name))))  # noqa: S704 - escaped before


def short_count(value: int, limit: int) -> str:
    """`value`, or `limit+` when it was counted only up to `limit`."""
    return f"{limit}+" if value > limit else str(value)


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, the exception."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
