"""The last fires as a picture: one lane a job, time from left to right, one mark a row of the ledger.

Only geometry and words are made here, in percent of the width and pixels of the height; `timeline.svg`
draws it, the style sheet colours it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

LANE_LIMIT = 12
LANE_HEIGHT_PX = 30
SMALLEST_BAR_PERCENT = 0.4  # a run of some milliseconds would be invisible
TICKS_WANTED = 6
FUTURE_SHARE = 0.02  # air between now and the right edge

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
SPANS = tuple(
    timedelta(seconds=unit * count)
    for unit, counts in ((_MINUTE, (1, 2, 5, 10, 15, 30)), (_HOUR, (1, 2, 3, 6, 12)), (_DAY, (1, 2, 3, 7, 14, 30, 90)))
    for count in counts
)
TICK_STEPS_S = tuple(
    unit * count
    for unit, counts in (
        (1, (5, 10, 15, 30)),
        (_MINUTE, (1, 2, 3, 5, 10, 15, 30)),
        (_HOUR, (1, 2, 3, 6, 12)),
        (_DAY, (1, 2, 7, 14, 30)),
    )
    for count in counts
)

RAN = frozenset({"running", "success", "failed", "lost", "cancelled"})
"""Outcomes that took time; the others are a moment that had no run of its own."""


class Fire(Protocol):
    """What the picture needs to know of a row of the ledger."""

    @property
    def run_id(self) -> str: ...
    @property
    def job_id(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def scheduled_for(self) -> datetime: ...
    @property
    def scheduled_from(self) -> datetime | None: ...
    @property
    def started_at(self) -> datetime | None: ...
    @property
    def finished_at(self) -> datetime | None: ...


@dataclass(frozen=True)
class Mark:
    """One row of the ledger. x and width in percent; `ran` tells a bar from a ring."""

    run_id: str
    job_id: str
    outcome: str
    ran: bool
    x: float
    width: float
    at: datetime
    count: int


@dataclass
class Lane:
    """The marks of one job; `job_id` None collects the jobs that found no lane of their own."""

    job_id: str | None
    jobs: int = 1
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Tick:
    """A labelled moment of the axis, x in percent."""

    x: float
    label: str


@dataclass(frozen=True)
class Timeline:
    """The whole picture; `height` in pixels without the axis."""

    lanes: list[Lane]
    ticks: list[Tick]
    start: datetime
    end: datetime
    now_x: float
    fires: int
    outcomes: dict[str, int]

    @property
    def height(self) -> int:
        return len(self.lanes) * LANE_HEIGHT_PX


def draw_timeline(fires: Sequence[Fire], *, now: datetime, zone: ZoneInfo, lane_limit: int = LANE_LIMIT) -> Timeline:
    """The picture of `fires`, which come newest first; the span is the smallest of SPANS that holds them all."""
    oldest = min((_begin(fire) for fire in fires), default=now - SPANS[0])
    span = next((s for s in SPANS if now - oldest <= s), SPANS[-1])
    end = now + span * FUTURE_SHARE
    start = now - span
    total = (end - start).total_seconds()

    def percent(moment: datetime) -> float:
        return min(100.0, max(0.0, (moment - start).total_seconds() / total * 100))

    lanes: dict[str, Lane] = {}
    others = Lane(job_id=None, jobs=0)
    other_jobs: set[str] = set()
    outcomes: dict[str, int] = {}
    for fire in fires:
        outcomes[fire.outcome] = outcomes.get(fire.outcome, 0) + fire.count
        lane = lanes.get(fire.job_id)
        if lane is None:
            if len(lanes) < lane_limit:
                lane = lanes[fire.job_id] = Lane(job_id=fire.job_id)
            else:
                lane = others
                other_jobs.add(fire.job_id)
        begin, finish = _begin(fire), _finish(fire, now)
        x = percent(begin)
        lane.marks.append(
            Mark(
                run_id=fire.run_id,
                job_id=fire.job_id,
                outcome=fire.outcome,
                ran=fire.outcome in RAN and fire.started_at is not None,
                x=round(x, 3),
                width=round(max(percent(finish) - x, SMALLEST_BAR_PERCENT), 3),
                at=begin,
                count=fire.count,
            )
        )
    drawn = sorted(lanes.values(), key=lambda lane: lane.job_id or "")
    if other_jobs:
        others.jobs = len(other_jobs)
        drawn.append(others)
    for lane in drawn:
        lane.marks.reverse()  # the newest is painted last, on top
    return Timeline(
        lanes=drawn,
        ticks=_ticks(start, now, zone, percent),
        start=start,
        end=end,
        now_x=round(percent(now), 3),
        fires=sum(outcomes.values()),
        outcomes=outcomes,
    )


def _begin(fire: Fire) -> datetime:
    return fire.started_at or fire.scheduled_from or fire.scheduled_for


def _finish(fire: Fire, now: datetime) -> datetime:
    if fire.started_at is None:
        return fire.scheduled_for
    return fire.finished_at or now


def _ticks(start: datetime, now: datetime, zone: ZoneInfo, percent: Callable[[datetime], float]) -> list[Tick]:
    """Round moments of the reader's zone, about TICKS_WANTED of them."""
    span_s = (now - start).total_seconds()
    step_s = next((s for s in TICK_STEPS_S if span_s / s <= TICKS_WANTED), TICK_STEPS_S[-1])
    offset_s = (now.astimezone(zone).utcoffset() or timedelta()).total_seconds()
    first = (start.timestamp() + offset_s) // step_s * step_s + step_s - offset_s
    pattern = "%H:%M:%S" if step_s < 60 else "%H:%M" if step_s < 86400 else "%m-%d"
    ticks = []
    moment = first
    while moment <= now.timestamp():
        at = datetime.fromtimestamp(moment, zone)
        ticks.append(Tick(x=round(percent(at), 3), label=at.strftime(pattern)))
        moment += step_s
    return ticks
