"""The geometry of the timeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from app.pages.timeline import FUTURE_SHARE, SMALLEST_BAR_PERCENT, Timeline, draw_timeline

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SHANGHAI = ZoneInfo("Asia/Shanghai")


@dataclass(frozen=True)
class Fired:
    run_id: str = "r"
    job_id: str = "job"
    outcome: str = "success"
    count: int = 1
    scheduled_for: datetime = NOW - timedelta(minutes=45)
    scheduled_from: datetime | None = None
    started_at: datetime | None = NOW - timedelta(minutes=45)
    finished_at: datetime | None = NOW - timedelta(minutes=44)


def drawn(*fires: Fired, lane_limit: int = 12) -> Timeline:
    return draw_timeline(fires, now=NOW, zone=SHANGHAI, lane_limit=lane_limit)


def test_nothing_to_draw() -> None:
    timeline = drawn()
    assert timeline.lanes == []
    assert timeline.fires == 0
    assert timeline.height == 0


def test_span_is_the_smallest_that_holds_all() -> None:
    timeline = drawn(Fired())
    assert timeline.start == NOW - timedelta(hours=1)
    assert timeline.end == NOW + timedelta(hours=1) * FUTURE_SHARE


def test_a_run_is_a_bar_from_start_to_end() -> None:
    (mark,) = drawn(Fired()).lanes[0].marks
    assert mark.ran
    assert abs(mark.x - 25 / (1 + FUTURE_SHARE)) < 0.01
    assert abs(mark.width - 100 / 60 / (1 + FUTURE_SHARE)) < 0.01


def test_a_running_run_reaches_now() -> None:
    timeline = drawn(Fired(outcome="running", finished_at=None))
    (mark,) = timeline.lanes[0].marks
    assert abs(mark.x + mark.width - timeline.now_x) < 0.01


def test_a_short_run_stays_visible() -> None:
    start = NOW - timedelta(minutes=45)
    (mark,) = drawn(Fired(finished_at=start + timedelta(milliseconds=3))).lanes[0].marks
    assert mark.width == SMALLEST_BAR_PERCENT


def test_a_missed_moment_is_no_bar() -> None:
    (mark,) = drawn(Fired(outcome="missed", started_at=None, finished_at=NOW)).lanes[0].marks
    assert not mark.ran
    assert mark.at == NOW - timedelta(minutes=45)


def test_counts_are_of_moments_not_of_rows() -> None:
    folded = Fired(outcome="missed", started_at=None, count=40, scheduled_from=NOW - timedelta(minutes=50))
    timeline = drawn(folded, Fired())
    assert timeline.outcomes == {"missed": 40, "success": 1}
    assert timeline.fires == 41


def test_one_lane_a_job_sorted_by_name_the_rest_together() -> None:
    fires = [Fired(run_id=str(n), job_id=f"job-{n:02d}") for n in range(9, -1, -1)]
    timeline = drawn(*fires, lane_limit=3)
    assert [lane.job_id for lane in timeline.lanes] == ["job-07", "job-08", "job-09", None]
    assert timeline.lanes[-1].jobs == 7
    assert len(timeline.lanes[-1].marks) == 7


def test_newest_mark_is_painted_last() -> None:
    fires = [replace(Fired(), run_id="newest"), replace(Fired(), run_id="oldest")]
    assert [mark.run_id for mark in drawn(*fires).lanes[0].marks] == ["oldest", "newest"]


def test_marks_stay_inside_the_picture() -> None:
    ancient = Fired(
        scheduled_for=NOW - timedelta(days=400),
        started_at=NOW - timedelta(days=400),
        finished_at=NOW - timedelta(days=399),
    )
    future = Fired(outcome="pending", scheduled_for=NOW + timedelta(days=400), started_at=None, finished_at=None)
    for lane in drawn(future, ancient).lanes:
        for mark in lane.marks:
            assert 0 <= mark.x <= 100


def test_ticks_are_round_in_the_readers_zone() -> None:
    day = Fired(
        scheduled_for=NOW - timedelta(hours=20),
        started_at=NOW - timedelta(hours=20),
        finished_at=NOW - timedelta(hours=20),
    )
    assert [tick.label for tick in drawn(day).ticks] == ["00:00", "06:00", "12:00", "18:00"]
    assert [tick.label for tick in drawn(Fired()).ticks] == [
        *("19:10", "19:20", "19:30", "19:40", "19:50", "20:00"),
    ]
