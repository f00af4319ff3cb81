"""Periods of the calendar, and the statistics of sizes in them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inventory.aggregation import PERIODS, SizeReading, aggregate, period_of

SHANGHAI = ZoneInfo("Asia/Shanghai")


def reading(when: str, size: int, database: str = "shop") -> SizeReading:
    return SizeReading(database, datetime.fromisoformat(when), size)


@pytest.mark.parametrize(
    ("day", "period", "start", "end"),
    [
        ("2024-02-29", "day", "2024-02-29", "2024-03-01"),
        ("2026-01-01", "week", "2025-12-29", "2026-01-05"),
        ("2025-12-28", "week", "2025-12-22", "2025-12-29"),
        ("2024-02-29", "month", "2024-02-01", "2024-03-01"),
        ("2025-12-31", "month", "2025-12-01", "2026-01-01"),
        ("2025-11-15", "quarter", "2025-10-01", "2026-01-01"),
        ("2025-03-31", "quarter", "2025-01-01", "2025-04-01"),
        ("2025-04-01", "quarter", "2025-04-01", "2025-07-01"),
    ],
)
def test_periods(day, period, start, end):
    assert period_of(date.fromisoformat(day), period) == (date.fromisoformat(start), date.fromisoformat(end))


@given(st.dates(date(1970, 1, 1), date(2199, 12, 31)), st.sampled_from(PERIODS))
def test_every_day_lies_in_exactly_one_period(day, period):
    start, end = period_of(day, period)
    assert start <= day < end
    assert period_of(start, period) == (start, end)
    assert period_of(end - timedelta(days=1), period) == (start, end)
    assert period_of(end, period)[0] == end


def test_statistics_of_a_month():
    found = {
        one.period: one
        for one in aggregate(
            [
                reading("2026-03-03T03:00+08:00", 150),
                reading("2026-03-01T03:00+08:00", 100),
                reading("2026-03-31T23:59+08:00", 130),
                reading("2026-03-15T03:00+08:00", 90),
            ],
            SHANGHAI,
        )
    }
    month = found["month"]
    assert (month.start, month.end) == (date(2026, 3, 1), date(2026, 4, 1))
    assert (month.readings, month.min_bytes, month.max_bytes, month.avg_bytes) == (4, 90, 150, 118)
    assert (month.first_bytes, month.last_bytes, month.growth_bytes) == (100, 130, 30)
    assert month.growth_percent == pytest.approx(30.0)


def test_a_day_is_that_of_the_time_zone():
    late = reading("2026-03-31T16:30+00:00", 7)  # the first of April in Shanghai
    assert {one.period: one.start for one in aggregate([late], SHANGHAI)} == {
        "day": date(2026, 4, 1),
        "week": date(2026, 3, 30),
        "month": date(2026, 4, 1),
        "quarter": date(2026, 4, 1),
    }
    assert {one.start for one in aggregate([late], UTC) if one.period != "week"} == {
        date(2026, 3, 31),
        date(2026, 3, 1),
        date(2026, 1, 1),
    }


def test_a_day_of_25_hours_is_one_day():
    berlin = ZoneInfo("Europe/Berlin")
    first, last = reading("2026-10-24T22:00+00:00", 1), reading("2026-10-25T22:59+00:00", 3)
    after = reading("2026-10-25T23:00+00:00", 9)
    days = [one for one in aggregate([first, last, after], berlin) if one.period == "day"]
    assert [(one.start, one.readings, one.growth_bytes) for one in days] == [
        (date(2026, 10, 25), 2, 2),
        (date(2026, 10, 26), 1, 0),
    ]


def test_growth_from_nothing_has_no_percentage():
    (day, *_) = aggregate([reading("2026-01-01T00:00+00:00", 0), reading("2026-01-01T01:00+00:00", 5)], UTC)
    assert day.growth_bytes == 5
    assert day.growth_percent is None


def test_a_shrinking_database_has_negative_growth():
    (day, *_) = aggregate([reading("2026-01-01T00:00+00:00", 8), reading("2026-01-01T01:00+00:00", 2)], UTC)
    assert (day.growth_bytes, day.growth_percent) == (-6, -75.0)


def test_databases_are_kept_apart():
    readings = [reading("2026-01-01T00:00+00:00", 1, "a"), reading("2026-01-01T00:00+00:00", 9, "b")]
    assert {(one.database, one.max_bytes) for one in aggregate(readings, UTC)} == {("a", 1), ("b", 9)}


@given(
    st.lists(
        st.builds(
            SizeReading,
            st.sampled_from(["a", "b"]),
            st.datetimes(datetime(2025, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),
            st.integers(0, 2**62),
        ),
        max_size=40,
        unique_by=lambda one: (one.database, one.collected_at),
    )
)
def test_statistics_of_any_readings(readings):
    found = aggregate(readings, SHANGHAI)
    assert found == aggregate(list(reversed(readings)), SHANGHAI)
    assert len({(one.database, one.period, one.start) for one in found}) == len(found)
    for period in PERIODS:
        assert sum(one.readings for one in found if one.period == period) == len(readings)
    for one in found:
        inside = sorted(
            (
                other
                for other in readings
                if other.database == one.database
                and one.start <= other.collected_at.astimezone(SHANGHAI).date() < one.end
            ),
            key=lambda other: other.collected_at,
        )
        sizes = [other.size_bytes for other in inside]
        assert (one.readings, one.min_bytes, one.max_bytes) == (len(sizes), min(sizes), max(sizes))
        assert (one.first_bytes, one.last_bytes) == (sizes[0], sizes[-1])
        assert one.growth_bytes == sizes[-1] - sizes[0]
        assert one.avg_bytes == round(Fraction(sum(sizes), len(sizes)))
        assert (one.growth_percent is None) == (sizes[0] == 0)
