"""Statistics of database sizes per day, week, month and quarter.

Periods are those of a calendar in one time zone (SCHEDULER_TIMEZONE): a day begins at midnight there, a week
on Monday. Growth is counted inside the period, from its first reading to its last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from typing import Literal, get_args

Period = Literal["day", "week", "month", "quarter"]
PERIODS: tuple[Period, ...] = get_args(Period)


@dataclass(frozen=True)
class SizeReading:
    """The size of a database at a moment (aware)."""

    database: str
    collected_at: datetime
    size_bytes: int


@dataclass(frozen=True)
class SizeAggregation:
    """What the readings of one database in one period say. Sizes in bytes.

    end: the first day after the period. avg_bytes: the mean of the readings, rounded half to even.
    growth_percent: growth as a share of the first reading; None when that is 0.
    """

    database: str
    period: Period
    start: date
    end: date
    readings: int
    min_bytes: int
    max_bytes: int
    avg_bytes: int
    first_bytes: int
    last_bytes: int
    growth_bytes: int
    growth_percent: float | None


def period_of(day: date, period: Period) -> tuple[date, date]:
    """The first day of the `period` that holds `day`, and the first day after it."""
    if period == "day":
        return day, day + timedelta(days=1)
    if period == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    months = 1 if period == "month" else 3
    first_month = (day.month - 1) // months * months + 1
    start = date(day.year, first_month, 1)
    after = first_month + months
    return start, date(day.year + (after > 12), (after - 1) % 12 + 1, 1)


def aggregate(readings: Iterable[SizeReading], zone: tzinfo) -> list[SizeAggregation]:
    """One aggregation for every database and period that holds a reading, sorted."""
    groups: dict[tuple[str, Period, date, date], list[SizeReading]] = defaultdict(list)
    for reading in readings:
        day = reading.collected_at.astimezone(zone).date()
        for period in PERIODS:
            groups[(reading.database, period, *period_of(day, period))].append(reading)
    return [_aggregated(*key, group) for key, group in sorted(groups.items(), key=lambda item: item[0])]


def _aggregated(database: str, period: Period, start: date, end: date, group: list[SizeReading]) -> SizeAggregation:
    sizes = [reading.size_bytes for reading in sorted(group, key=lambda reading: reading.collected_at)]
    first, last = sizes[0], sizes[-1]
    return SizeAggregation(
        database=database,
        period=period,
        start=start,
        end=end,
        readings=len(sizes),
        min_bytes=min(sizes),
        max_bytes=max(sizes),
        avg_bytes=_rounded_mean(sizes),
        first_bytes=first,
        last_bytes=last,
        growth_bytes=last - first,
        growth_percent=(last - first) / first * 100 if first else None,
    )


def _rounded_mean(sizes: list[int]) -> int:
    # In whole numbers: a float has no room for the bytes of petabytes.
    whole, rest = divmod(sum(sizes), len(sizes))
    double = 2 * rest
    return whole + (double > len(sizes) or (double == len(sizes) and whole % 2 == 1))
