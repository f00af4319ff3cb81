"""The moments that a job's triggers imply, by arithmetic alone, and whether the ledger has each of them once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BEGIN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def as_us(second: float) -> int:
    """Microseconds since the epoch of a second of the model's time."""
    return round((_BEGIN - _EPOCH).total_seconds() * 1_000_000 + second * 1_000_000)


def every(seconds: int, *, first: float, last: float) -> dict[str, Any]:
    """An interval from `first` to `last`, seconds of the model's time."""
    return {
        "type": "interval",
        "seconds": seconds,
        "start_date": (_BEGIN + timedelta(seconds=first)).isoformat(),
        "end_date": (_BEGIN + timedelta(seconds=last)).isoformat(),
        "timezone": "UTC",
    }


def once(second: float) -> dict[str, Any]:
    """A date at a second of the model's time."""
    return {"type": "date", "run_date": (_BEGIN + timedelta(seconds=second)).isoformat(), "timezone": "UTC"}


def _moments(trigger: Mapping[str, Any]) -> set[int]:
    def us(text: str) -> int:
        return round((datetime.fromisoformat(text) - _EPOCH).total_seconds() * 1_000_000)

    if trigger["type"] == "date":
        return {us(trigger["run_date"])}
    return set(range(us(trigger["start_date"]), us(trigger["end_date"]) + 1, trigger["seconds"] * 1_000_000))


@dataclass
class _Span:
    """A trigger in force from `now`, by the edit's time, committed at `at`; None: the job does not fire."""

    trigger: Mapping[str, Any] | None
    now: int
    at: int


@dataclass
class Timeline:
    """What each job's trigger was when."""

    _spans: dict[str, list[_Span]] = field(default_factory=dict)
    _revisions: dict[str, int] = field(default_factory=dict)

    def set_trigger(self, job_id: str, trigger: Mapping[str, Any] | None, *, now: int, at: int) -> None:
        self._spans.setdefault(job_id, []).append(_Span(trigger, now, at))
        self._revisions.setdefault(job_id, 1)

    def see(self, row: Mapping[Any, Any], *, at: int) -> None:
        """Notes what an edit that was just committed made of the job in `row`."""
        if self._revisions[row["id"]] == row["revision"]:
            return
        self._revisions[row["id"]] = row["revision"]
        fires = row["is_active"] and row["is_enabled"] and not row["is_paused"]
        self.set_trigger(row["id"], json.loads(row["trigger"]) if fires else None, now=row["updated_at"], at=at)

    def implied(self, job_id: str) -> tuple[set[int], set[int]]:
        """The moments that must be on record, and those that may be: due while an edit was on its way."""
        must: set[int] = set()
        may: set[int] = set()
        spans = self._spans[job_id]
        for span, following in zip(spans, [*spans[1:], None], strict=True):
            if span.trigger is not None:
                moments = _moments(span.trigger)
                # A date gives its own moment, past or not, when it is set.
                since = {m for m in moments if m >= span.now or span.trigger["type"] == "date"}
                must |= {m for m in since if following is None or m <= following.now}
                may |= {m for m in since if following is not None and following.now < m <= following.at}
        return must, may - must

    def problem(self, rows: list[dict[str, Any]]) -> str | None:
        """What is wrong with the first attempts in `rows`; None when every moment has exactly one outcome."""
        for job_id in self._spans:
            must, may = self.implied(job_id)
            seen: dict[int, str] = {}
            for row in rows:
                if row["job_id"] != job_id or row["kind"] != "schedule" or row["attempt"] != 1:
                    continue
                first = row["scheduled_for"] if row["scheduled_from"] is None else row["scheduled_from"]
                covered = sorted(m for m in must | may if first <= m <= row["scheduled_for"])
                if len(covered) > row["count"]:  # of two triggers with moments in between: those of one second's part
                    part = row["scheduled_for"] % 1_000_000
                    covered = [m for m in covered if m % 1_000_000 == part]
                if len(covered) != row["count"] or row["scheduled_for"] not in covered:
                    return f"{job_id}: a row counts {row['count']} moments, the trigger has {covered}"
                for moment in covered:
                    if moment in seen:
                        return f"{job_id}@{moment} is on record twice: {seen[moment]} and {row['outcome']}"
                    seen[moment] = row["outcome"]
            if missing := must - seen.keys():
                return f"{job_id}@{min(missing)} vanished: no outcome on record"
        return None
