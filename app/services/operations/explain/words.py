"""How explanations speak: sentences of the catalogue in one language, times in one zone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from app.errors import _N
from app.i18n import english


@dataclass(frozen=True)
class Answer:
    """What became of a fire: a verdict for programs (see Explanation), sentences, the first one the plainest, and the
    runs that they are about."""

    verdict: str
    sentences: tuple[str, ...]
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Words:
    """The language, `zh` or `en`, and the zone that times are shown in."""

    language: str
    zone: ZoneInfo

    def say(self, message: str, **params: Any) -> str:
        """A message of the catalogue with its placeholders filled."""
        if self.language == "en":
            return english(message, params)
        return message % params if params else message

    def at(self, moment: datetime) -> str:
        """A moment to the second, with its offset."""
        return moment.astimezone(self.zone).isoformat(sep=" ", timespec="seconds")

    def by(self, who: str) -> str:
        """Who did something: the ledger names a user by number, everybody else by name."""
        return self.say(_N("用户 %(id)s"), id=who) if who.isdecimal() else who

    def span(self, length: timedelta) -> str:
        """A length of time in its two largest units."""
        seconds = max(length.total_seconds(), 0.0)
        if seconds < 60:
            return f"{seconds:.1f} s"
        parts: list[str] = []
        rest = round(seconds)
        for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
            number, rest = divmod(rest, size)
            if number and len(parts) < 2:
                parts.append(f"{number} {unit}")
        return " ".join(parts)
