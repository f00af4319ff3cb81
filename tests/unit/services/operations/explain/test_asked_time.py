"""A time as a person types it."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from app.services.operations.explain.asked_time import asked_time
from app.services.operations.failure import OperationFailed

NOW = datetime(2026, 6, 10, 4, 30, tzinfo=UTC)  # 12:30 in Shanghai
SHANGHAI = ZoneInfo("Asia/Shanghai")
NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("text", "start", "until"),
    [
        ("12:30", "2026-06-10T04:30", "2026-06-10T04:31"),
        ("2:00", "2026-06-09T18:00", "2026-06-09T18:01"),
        ("12:31", "2026-06-09T04:31", "2026-06-09T04:32"),  # not yet today: yesterday's
        ("02:00:05", "2026-06-09T18:00:05", "2026-06-09T18:00:06"),
        ("2026-06-01", "2026-05-31T16:00", "2026-06-01T16:00"),
        ("2026-06-01 01:00", "2026-05-31T17:00", "2026-05-31T17:01"),
        (" 2026-06-01T01:00:30 ", "2026-05-31T17:00:30", "2026-05-31T17:00:31"),
        ("2026-06-01T01:00:30.25", "2026-05-31T17:00:30", "2026-05-31T17:00:31"),
        ("2026-06-01T01:00Z", "2026-06-01T01:00", "2026-06-01T01:01"),
        ("2026-06-01 01:00+02:00", "2026-05-31T23:00", "2026-05-31T23:01"),
    ],
)
def test_what_is_meant(text: str, start: str, until: str) -> None:
    meant = asked_time(text, SHANGHAI, NOW)
    assert (meant.start, meant.until) == tuple(datetime.fromisoformat(each + "+00:00") for each in (start, until))


def test_a_clock_time_that_comes_twice_means_both() -> None:
    meant = asked_time("2025-11-02 01:30", NEW_YORK, NOW)
    assert meant.start == datetime(2025, 11, 2, 5, 30, tzinfo=UTC)
    assert meant.until == datetime(2025, 11, 2, 6, 31, tzinfo=UTC)


def test_a_clock_time_that_is_left_out_counts_from_before_the_change() -> None:
    meant = asked_time("2026-03-08 02:30", NEW_YORK, NOW)
    assert meant.start == datetime(2026, 3, 8, 7, 30, tzinfo=UTC)
    assert meant.until == datetime(2026, 3, 8, 7, 31, tzinfo=UTC)


def test_a_day_has_the_length_that_the_clock_gives_it() -> None:
    meant = asked_time("2026-03-08", NEW_YORK, NOW)
    assert meant.is_day
    assert (meant.until - meant.start).total_seconds() == 23 * 3600


@pytest.mark.parametrize(
    "text",
    ["", "noon", "25:00", "12:60", "1", "2026-13-01", "2026-02-30 01:00", "12:00 PM", "0001-01-01", "12:00:00:00"],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(OperationFailed, match=r"^TIME is .*; accepted: HH:MM") as refused:
        asked_time(text, SHANGHAI, NOW)
    assert "\n" not in str(refused.value)
