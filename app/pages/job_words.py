"""A job as the pages show it: its state, its schedule in words, its cron expression."""

from __future__ import annotations

import hashlib
from typing import Any

from app.i18n import current_language
from app.triggers import describe, trigger_args, trigger_type

_EXPRESSION_FIELDS = ("second", "minute", "hour", "day", "month", "day_of_week", "year")


def element_key(job_id: str) -> str:
    """A short name of a job that may stand in an HTML id: a job's own id may hold any character."""
    return hashlib.sha256(job_id.encode()).hexdigest()[:12]


def schedule_words(spec: dict[str, Any]) -> str:
    """A trigger in words, in the page's language; empty for one that cannot be read."""
    try:
        return describe(spec, current_language())
    except (LookupError, TypeError, ValueError):
        return ""


def cron_expression(spec: dict[str, Any]) -> str:
    """A cron trigger as one expression: 5 parts where second and year are plain, else 7 (with 6 where no year is).

    Empty for other triggers. A week number is no part of an expression; it stands beside it.
    """
    try:
        if trigger_type(spec) != "cron":
            return ""
        args = trigger_args(spec)
    except (LookupError, TypeError, ValueError):
        return ""
    parts = [args.get(name, "") for name in _EXPRESSION_FIELDS]
    if parts[-1] in ("", "*"):
        parts.pop()
        if parts[0] == "0":
            parts.pop(0)
    return " ".join(parts)
