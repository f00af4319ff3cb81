"""When cron and interval triggers fire: APScheduler's triggers with a search of their own.

What a clock change does to cron jobs (the same rules in next_fire, in counts and in previews):
- a moment that the clock skips fires as much later as the clock skips ("moved"); of several moments in one
  skipped hour only the first does, the rest are "dropped", and so is one that would meet another fire;
- a moment that the clock repeats fires both times ("doubled").
These are APScheduler's rules, without its loss: APScheduler 3.11 resets the lesser fields by adding elapsed
time, comes out an hour late when the sum crosses a spring change, and so skips the fires of the first hour
of the next day or month (daily 00:30 in Berlin: no fire on 30 March 2026; monthly at 00:30 in New York:
never in April; agronholm/apscheduler#529 and #606). Hence WallClockCronTrigger, which keeps APScheduler's
fields and replaces the search.
"""

from __future__ import annotations

import calendar
import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.cron.expressions import LastDayOfMonthExpression, WeekdayPositionExpression
from apscheduler.triggers.interval import IntervalTrigger

MIN_YEAR, MAX_YEAR = 1970, 2199  # a bounded calendar bounds the search of a trigger that never fires
DAY_S = 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = EPOCH.toordinal()


class ClockTimes:
    """The clock times that the fields of a cron trigger name, without any time zone.

    Times are "wall seconds": seconds since 1970-01-01T00:00:00 of the same clock.
    """

    __slots__ = (
        "_field_day",
        "days",
        "every_day",
        "hours",
        "minutes",
        "months",
        "per_day",
        "positions",
        "seconds",
        "weekdays",
        "weeks",
        "years",
    )

    def __init__(self, fields: list[Any]) -> None:
        by_name = {field.name: field for field in fields}

        def values(name: str, samples: Iterator[date]) -> frozenset[int] | None:
            field = by_name[name]
            if str(field) == "*":
                return None
            fits = (sample for sample in samples if field.get_next_value(sample) == field.get_value(sample))
            return frozenset(field.get_value(sample) for sample in fits)

        midnight = datetime(2024, 1, 1)
        self.hours = _ordered(values("hour", (midnight.replace(hour=v) for v in range(24))), 24)
        self.minutes = _ordered(values("minute", (midnight.replace(minute=v) for v in range(60))), 60)
        self.seconds = _ordered(values("second", (midnight.replace(second=v) for v in range(60))), 60)
        self.per_day = len(self.hours) * len(self.minutes) * len(self.seconds)
        self.years = values("year", (date(v, 1, 1) for v in range(MIN_YEAR, MAX_YEAR + 1)))
        self.months = values("month", (date(2024, v, 1) for v in range(1, 13)))
        self.weeks = values("week", (date.fromisocalendar(2020, v, 1) for v in range(1, 54)))
        self.weekdays = values("day_of_week", (date(2024, 1, v) for v in range(1, 8)))
        self._field_day = by_name["day"]
        self.positions = [
            expression
            for expression in self._field_day.expressions
            if isinstance(expression, WeekdayPositionExpression | LastDayOfMonthExpression)
        ]
        plain = [
            expression
            for expression in self._field_day.expressions
            if not isinstance(expression, WeekdayPositionExpression | LastDayOfMonthExpression)
        ]
        self.days: frozenset[int] | None = None
        if str(self._field_day) != "*":
            january = [date(2024, 1, v) for v in range(1, 32)]
            self.days = frozenset(
                day.day
                for day in january
                if any(expression.get_next_value(day, self._field_day) == day.day for expression in plain)
            )
        self.every_day = all(limit is None for limit in (self.years, self.months, self.days, self.weeks, self.weekdays))

    def next(self, wall: int) -> int | None:
        """The first clock time at or after wall; None when there is none up to the last year."""
        day, second = divmod(wall, DAY_S)
        found = self._next_day(day)
        if found == day:
            in_day = self._next_in_day(second)
            if in_day is not None:
                return day * DAY_S + in_day
            found = self._next_day(day + 1)
        if found is None:
            return None
        return found * DAY_S + self.hours[0] * 3600 + self.minutes[0] * 60 + self.seconds[0]

    def count(self, start: int, stop: int) -> int:
        """How many clock times lie in [start, stop)."""
        first_day, first_second = divmod(start, DAY_S)
        last_day, last_second = divmod(stop, DAY_S)
        if stop <= start:
            return 0
        total = 0
        if self._next_day(first_day) == first_day:
            total -= self._rank(first_second)
        if last_second and self._next_day(last_day) == last_day:
            total += self._rank(last_second)
        if self.every_day:
            return total + (last_day - first_day) * self.per_day
        day = self._next_day(first_day)
        while day is not None and day < last_day:
            total += self.per_day
            day = self._next_day(day + 1)
        return total

    def _next_in_day(self, second: int) -> int | None:
        hour, rest = divmod(second, 3600)
        minute, second = divmod(rest, 60)
        at_hour = bisect_left(self.hours, hour)
        if at_hour < len(self.hours) and self.hours[at_hour] == hour:
            at_minute = bisect_left(self.minutes, minute)
            if at_minute < len(self.minutes) and self.minutes[at_minute] == minute:
                at_second = bisect_left(self.seconds, second)
                if at_second < len(self.seconds):
                    return hour * 3600 + minute * 60 + self.seconds[at_second]
                at_minute += 1
            if at_minute < len(self.minutes):
                return hour * 3600 + self.minutes[at_minute] * 60 + self.seconds[0]
            at_hour += 1
        if at_hour < len(self.hours):
            return self.hours[at_hour] * 3600 + self.minutes[0] * 60 + self.seconds[0]
        return None

    def _rank(self, second: int) -> int:
        """How many clock times of a day lie before this second of it."""
        hour, rest = divmod(second, 3600)
        minute, second = divmod(rest, 60)
        at_hour = bisect_left(self.hours, hour)
        rank = at_hour * len(self.minutes) * len(self.seconds)
        if at_hour < len(self.hours) and self.hours[at_hour] == hour:
            at_minute = bisect_left(self.minutes, minute)
            rank += at_minute * len(self.seconds)
            if at_minute < len(self.minutes) and self.minutes[at_minute] == minute:
                rank += bisect_left(self.seconds, second)
        return rank

    def _next_day(self, day: int) -> int | None:
        """The first day (since 1970-01-01) at or after day whose date fits; misfits are leapt over."""
        if self.every_day:
            return day if day <= _LAST_DAY else None
        while day <= _LAST_DAY:
            current = date.fromordinal(day + _EPOCH_ORDINAL)
            if self.years is not None and current.year not in self.years:
                ahead = [year for year in self.years if year > current.year]
                if not ahead:
                    return None
                day = date(min(ahead), 1, 1).toordinal() - _EPOCH_ORDINAL
            elif self.months is not None and current.month not in self.months:
                day += calendar.monthrange(current.year, current.month)[1] - current.day + 1
            elif (
                (self.weekdays is None or current.weekday() in self.weekdays)
                and (self.days is None or current.day in self.days or self._at_position(current))
                and (self.weeks is None or current.isocalendar()[1] in self.weeks)
            ):
                return day
            else:
                day += 1
        return None

    def _at_position(self, current: date) -> bool:
        return any(expression.get_next_value(current, self._field_day) == current.day for expression in self.positions)


_LAST_DAY = date(MAX_YEAR, 12, 31).toordinal() - _EPOCH_ORDINAL


@lru_cache(maxsize=4096)  # most triggers share them
def _ordered(values: frozenset[int] | None, size: int) -> tuple[int, ...]:
    return tuple(range(size)) if values is None else tuple(sorted(values))


@dataclass(frozen=True)
class ClockChange:
    """At `at` (seconds since the epoch) the zone's offset goes from `before` to `after` (seconds)."""

    at: int
    before: int
    after: int


_BUCKET_S = 365 * DAY_S


@lru_cache(maxsize=4096)
def _changes_in_bucket(zone: tzinfo, bucket: int) -> tuple[ClockChange, ...]:
    """The clock changes of one stretch of 365 days; zoneinfo does not list them, so they are searched."""
    changes = []
    start = bucket * _BUCKET_S
    before = _offset(zone, start - 1)
    for low in range(start - 1, start + _BUCKET_S - 1, DAY_S):
        high = min(low + DAY_S, start + _BUCKET_S - 1)
        after = _offset(zone, high)
        if after != before:
            left, right = low, high  # the offset differs between the two: halve until they are neighbours
            while right - left > 1:
                middle = (left + right) // 2
                left, right = (middle, right) if _offset(zone, middle) == before else (left, middle)
            changes.append(ClockChange(right, before, after))
        before = after
    return tuple(changes)


def clock_changes(zone: tzinfo, after: int, until: int) -> Iterator[ClockChange]:
    """The clock changes at instants in (after, until], oldest first."""
    for bucket in range(after // _BUCKET_S, until // _BUCKET_S + 1):
        for change in _changes_in_bucket(zone, bucket):
            if after < change.at <= until:
                yield change


def _offset(zone: tzinfo, instant: int) -> int:
    offset = datetime.fromtimestamp(instant, zone).utcoffset()
    return 0 if offset is None else offset.days * DAY_S + offset.seconds


class WallClockCronTrigger(CronTrigger):
    """APScheduler's CronTrigger with a search of its own: no fire is lost after a clock change (see above).

    Instants inside are whole seconds since the epoch. The search ends with MAX_YEAR.
    """

    __slots__ = ("_first", "_last", "moments")

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.moments = ClockTimes(self.fields)
        self._first = math.ceil(self.start_date.timestamp()) if self.start_date else None
        self._last = math.floor(self.end_date.timestamp()) if self.end_date else None

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first fire after previous_fire_time, or without one the first at or after now."""
        instant = self.first_at(next_second(previous_fire_time) if previous_fire_time else ceil_second(now))
        if instant is None:
            return None
        fire = datetime.fromtimestamp(instant, self.timezone)
        if self.jitter:
            fire = later(fire, random.uniform(0, self.jitter))  # noqa: S311 - spreads load, guards nothing
            fire = min(fire, self.end_date, key=datetime.timestamp).astimezone(self.timezone) if self.end_date else fire
        return fire

    def first_at(self, instant: int) -> int | None:
        """The first fire at or after an instant, without jitter."""
        if self._first is not None and instant < self._first:
            instant = self._first
        moved = min((m for m in self._moved(instant - DAY_S, instant) if m >= instant), default=None)
        offset = _offset(self.timezone, instant)
        while True:
            wall = self.moments.next(instant + offset)
            # Without a clock time ahead a coming change may still repeat one that is behind.
            found = None if wall is None else wall - offset
            change = next(clock_changes(self.timezone, instant, instant + DAY_S if found is None else found), None)
            if change is None or (moved is not None and moved < change.at):
                break
            moved = min((m for m in (moved, self._moved_by(change)) if m is not None), default=None)
            instant, offset = change.at, change.after
        if moved is not None and (found is None or moved < found):
            found = moved
        return None if found is None or (self._last is not None and found > self._last) else found

    def count(self, start: int, stop: int) -> int:
        """How many fires lie in [start, stop), without jitter."""
        if self._first is not None:
            start = max(start, self._first)
        if self._last is not None:
            stop = min(stop, self._last + 1)
        if stop <= start:
            return 0
        total = sum(
            start <= moved < stop and not self._is_clock_time(moved) for moved in self._moved(start - DAY_S, stop - 1)
        )
        offset = _offset(self.timezone, start)
        for change in clock_changes(self.timezone, start, stop - 1):
            total += self.moments.count(start + offset, change.at + offset)
            start, offset = change.at, change.after
        return total + self.moments.count(start + offset, stop + offset)

    def skipped(self, change: ClockChange) -> tuple[int | None, int, int]:
        """A change that skips time: (instant of the moved fire or None, first dropped clock time, dropped).

        The first dropped clock time is in wall seconds and without meaning when none is dropped.
        """
        low, high = change.at + change.before, change.at + change.after
        if high <= low:
            return None, low, 0
        moved = self._moved_by(change)
        if moved is None:
            return None, low, 0
        dropped = self.moments.count(low, high)
        first = moved + change.before
        if self._is_clock_time(moved):  # two moments meet: one fire
            return None, first, dropped
        return moved, self.moments.next(first + 1) or first, dropped - 1

    def _moved(self, after: int, until: int) -> Iterator[int]:
        for change in clock_changes(self.timezone, after, until):
            moved = self._moved_by(change)
            if moved is not None:
                yield moved

    def _moved_by(self, change: ClockChange) -> int | None:
        """When the first clock time that the change skips fires instead."""
        if change.after <= change.before:
            return None
        wall = self.moments.next(change.at + change.before)
        return wall - change.before if wall is not None and wall < change.at + change.after else None

    def _is_clock_time(self, instant: int) -> bool:
        wall = instant + _offset(self.timezone, instant)
        return self.moments.next(wall) == wall


class GridIntervalTrigger(IntervalTrigger):
    """APScheduler's IntervalTrigger on whole microseconds; jitter spreads fires but does not make them drift.

    APScheduler adds the interval to the previous fire, jitter and all, so that every fire is later than the
    one before by interval + jitter. Here it is the next point of the grid after it, plus jitter.
    """

    __slots__ = ()

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first fire after previous_fire_time, or without one the first at or after now."""
        if previous_fire_time is None:
            base = self.first_at(now)
        elif self.jitter:
            base = self.first_at(later(previous_fire_time, 1e-6))
        else:
            base = previous_fire_time.astimezone(UTC) + self.interval
        if base is None or (self.end_date is not None and base > self.end_date) or base.year > MAX_YEAR:
            return None
        if self.jitter:
            base = later(base, random.uniform(0, self.jitter))  # noqa: S311 - spreads load, guards nothing
            base = min(base, self.end_date) if self.end_date else base
        return base.astimezone(self.timezone)

    def first_at(self, moment: datetime) -> datetime | None:
        """The first point of the grid at or after a moment, in UTC; None when it is after end_date."""
        start = self.start_date.astimezone(UTC)
        behind = moment.astimezone(UTC) - start
        steps = -(-behind // self.interval) if behind > timedelta(0) else 0
        if steps > (datetime(MAX_YEAR, 12, 31, tzinfo=UTC) - start) // self.interval:
            return None
        point = start + steps * self.interval
        return None if self.end_date is not None and point > self.end_date else point


def later(moment: datetime, seconds: float) -> datetime:
    """Elapsed time later: adding to an aware datetime would add clock time."""
    return (moment.astimezone(UTC) + timedelta(seconds=seconds)).astimezone(moment.tzinfo)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def next_second(moment: datetime) -> int:
    return micros(moment) // 1_000_000 + 1


def ceil_second(moment: datetime) -> int:
    return -(-micros(moment) // 1_000_000)
