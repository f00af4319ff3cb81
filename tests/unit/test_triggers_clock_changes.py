"""What clock changes and leap days do to fires: the documented lists, exactly.

The rules are in app/fire_times.py. The last class shows what APScheduler alone would do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger

from app.triggers import PreviewFire, build_trigger, fires_between, fold_fires, parse_trigger, preview

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def spec_of(zone: str, **payload: Any) -> dict[str, Any]:
    payload = {"trigger_type": "cron", "timezone": zone, **payload}
    return parse_trigger(payload, default_timezone="UTC", now=NOW).spec


def local(zone: str, text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def rows(zone: str, after: str, count: int, **payload: Any) -> list[str]:
    """The preview as "time offset mark" lines."""
    fires = preview(spec_of(zone, **payload), count, local(zone, after))
    return [
        f"{fire.at} {fire.change or '-'}{f' x{fire.count}' if fire.count > 1 else ''}"
        + (f" from {fire.moved_from}" if fire.moved_from else "")
        for fire in fires
    ]


class TestBerlinSpring:  # 2026-03-29, 02:00 CET -> 03:00 CEST
    zone = "Europe/Berlin"

    def test_a_skipped_daily_fire_is_moved(self) -> None:
        assert rows(self.zone, "2026-03-28", 3, cron_expression="30 2 * * *") == [
            "2026-03-28T02:30:00+01:00 -",
            "2026-03-29T03:30:00+02:00 moved from 2026-03-29T02:30:00",
            "2026-03-30T02:30:00+02:00 -",
        ]

    def test_the_first_hour_of_the_next_day_is_not_lost(self) -> None:
        assert rows(self.zone, "2026-03-28", 4, cron_expression="30 0 * * *") == [
            "2026-03-28T00:30:00+01:00 -",
            "2026-03-29T00:30:00+01:00 -",
            "2026-03-30T00:30:00+02:00 -",
            "2026-03-31T00:30:00+02:00 -",
        ]

    def test_of_several_in_the_skipped_hour_the_first_is_moved(self) -> None:
        assert rows(self.zone, "2026-03-29", 4, cron_expression="*/20 2 * * *") == [
            "2026-03-29T03:00:00+02:00 moved from 2026-03-29T02:00:00",
            "2026-03-29T02:20:00+01:00 dropped x2",
            "2026-03-30T02:00:00+02:00 -",
            "2026-03-30T02:20:00+02:00 -",
        ]

    def test_one_that_would_meet_another_is_dropped(self) -> None:
        assert rows(self.zone, "2026-03-29", 3, cron_expression="30 2,3 * * *") == [
            "2026-03-29T02:30:00+01:00 dropped",
            "2026-03-29T03:30:00+02:00 -",
            "2026-03-30T02:30:00+02:00 -",
        ]

    def test_hourly_goes_on_hour_by_hour(self) -> None:
        assert rows(self.zone, "2026-03-29T00:45", 4, cron_expression="30 * * * *") == [
            "2026-03-29T01:30:00+01:00 -",
            "2026-03-29T02:30:00+01:00 dropped",
            "2026-03-29T03:30:00+02:00 -",
            "2026-03-29T04:30:00+02:00 -",
        ]

    def test_every_second_goes_on_second_by_second(self) -> None:
        spec = spec_of(self.zone, second="*")
        fires = fires_between(spec, datetime(2026, 3, 29, 0, 59, 58, tzinfo=UTC), datetime(2026, 3, 29, 2, tzinfo=UTC))
        assert [fire.isoformat() for fire in fires[:4]] == [
            "2026-03-29T01:59:58+01:00",
            "2026-03-29T01:59:59+01:00",
            "2026-03-29T03:00:00+02:00",
            "2026-03-29T03:00:01+02:00",
        ]
        assert rows(self.zone, "2026-03-29T01:59:59", 3, second="*") == [
            "2026-03-29T01:59:59+01:00 -",
            "2026-03-29T02:00:00+01:00 dropped x3600",
            "2026-03-29T03:00:00+02:00 -",
        ]

    def test_a_start_after_the_change_still_finds_the_moved_fire(self) -> None:
        spec = spec_of(self.zone, cron_expression="30 2 * * *")
        fire = build_trigger(spec).get_next_fire_time(None, local(self.zone, "2026-03-29T03:10"))
        assert fire.isoformat() == "2026-03-29T03:30:00+02:00"

    def test_a_row_has_the_instant_and_the_offset(self) -> None:
        (fire,) = preview(spec_of(self.zone, cron_expression="30 2 * * *"), 1, local(self.zone, "2026-03-29"))
        assert fire == PreviewFire(
            at="2026-03-29T03:30:00+02:00",
            utc="2026-03-29T01:30:00Z",
            utc_offset="+02:00",
            change="moved",
            moved_from="2026-03-29T02:30:00",
        )


class TestBerlinAutumn:  # 2026-10-25, 03:00 CEST -> 02:00 CET
    zone = "Europe/Berlin"

    def test_a_repeated_daily_fire_is_doubled(self) -> None:
        assert rows(self.zone, "2026-10-24", 4, cron_expression="30 2 * * *") == [
            "2026-10-24T02:30:00+02:00 -",
            "2026-10-25T02:30:00+02:00 doubled",
            "2026-10-25T02:30:00+01:00 doubled",
            "2026-10-26T02:30:00+01:00 -",
        ]

    def test_hourly_goes_on_hour_by_hour(self) -> None:
        assert rows(self.zone, "2026-10-25T01:00", 4, cron_expression="30 * * * *") == [
            "2026-10-25T01:30:00+02:00 -",
            "2026-10-25T02:30:00+02:00 doubled",
            "2026-10-25T02:30:00+01:00 doubled",
            "2026-10-25T03:30:00+01:00 -",
        ]

    def test_both_passes_of_the_hour_in_full(self) -> None:
        assert rows(self.zone, "2026-10-25T01:30", 7, cron_expression="*/20 2 * * *") == [
            "2026-10-25T02:00:00+02:00 doubled",
            "2026-10-25T02:20:00+02:00 doubled",
            "2026-10-25T02:40:00+02:00 doubled",
            "2026-10-25T02:00:00+01:00 doubled",
            "2026-10-25T02:20:00+01:00 doubled",
            "2026-10-25T02:40:00+01:00 doubled",
            "2026-10-26T02:00:00+01:00 -",
        ]

    def test_a_last_moment_is_repeated_too(self) -> None:
        assert rows(self.zone, "2026-10-25", 5, cron_expression="0 30 2 25 10 * 2026") == [
            "2026-10-25T02:30:00+02:00 doubled",
            "2026-10-25T02:30:00+01:00 doubled",
        ]

    def test_counts_know_it(self) -> None:
        spec = spec_of(self.zone, second="*")
        first, until = local(self.zone, "2026-10-25"), datetime(2026, 10, 25, 22, 59, 59, tzinfo=UTC)
        count, last, following = fold_fires(spec, first, until)
        assert count == 25 * 3600
        assert (last.isoformat(), following and following.isoformat()) == (
            "2026-10-25T23:59:59+01:00",
            "2026-10-26T00:00:00+01:00",
        )


class TestNewYork:  # 2026-03-08 02:00 EST -> 03:00 EDT; 2026-11-01 02:00 EDT -> 01:00 EST
    zone = "America/New_York"

    def test_spring(self) -> None:
        assert rows(self.zone, "2026-03-07", 3, cron_expression="0 0 2 * * *") == [
            "2026-03-07T02:00:00-05:00 -",
            "2026-03-08T03:00:00-04:00 moved from 2026-03-08T02:00:00",
            "2026-03-09T02:00:00-04:00 -",
        ]

    def test_autumn(self) -> None:
        assert rows(self.zone, "2026-10-31", 4, cron_expression="30 1 * * *") == [
            "2026-10-31T01:30:00-04:00 -",
            "2026-11-01T01:30:00-04:00 doubled",
            "2026-11-01T01:30:00-05:00 doubled",
            "2026-11-02T01:30:00-05:00 -",
        ]

    def test_monthly_in_the_first_hour_has_its_april(self) -> None:
        assert rows(self.zone, "2026-02-15", 3, cron_expression="30 0 1 * *") == [
            "2026-03-01T00:30:00-05:00 -",
            "2026-04-01T00:30:00-04:00 -",
            "2026-05-01T00:30:00-04:00 -",
        ]

    def test_a_day_of_seconds_has_23_hours_in_spring(self) -> None:
        count, _, following = fold_fires(
            spec_of(self.zone, second="*"),
            local(self.zone, "2026-03-08"),
            local(self.zone, "2026-03-08T23:59:59"),
        )
        assert count == 23 * 3600
        assert following == local(self.zone, "2026-03-09")


class TestOtherZones:
    def test_half_an_hour_on_lord_howe(self) -> None:  # 2026-10-04, 02:00 +10:30 -> 02:30 +11:00
        assert rows("Australia/Lord_Howe", "2026-10-03T12:00", 3, cron_expression="10 2 * * *") == [
            "2026-10-04T02:40:00+11:00 moved from 2026-10-04T02:10:00",
            "2026-10-05T02:10:00+11:00 -",
            "2026-10-06T02:10:00+11:00 -",
        ]

    def test_midnight_is_skipped_in_cairo(self) -> None:  # 2026-04-24, 00:00 +02 -> 01:00 +03
        assert rows("Africa/Cairo", "2026-04-23", 3, cron_expression="0 0 * * *") == [
            "2026-04-23T00:00:00+02:00 -",
            "2026-04-24T01:00:00+03:00 moved from 2026-04-24T00:00:00",
            "2026-04-25T00:00:00+03:00 -",
        ]

    def test_midnight_is_repeated_in_havana(self) -> None:  # 2026-11-01, 01:00 CDT -> 00:00 CST
        assert rows("America/Havana", "2026-10-31T12:00", 3, cron_expression="15 0 * * *") == [
            "2026-11-01T00:15:00-04:00 doubled",
            "2026-11-01T00:15:00-05:00 doubled",
            "2026-11-02T00:15:00-05:00 -",
        ]

    def test_without_clock_changes_nothing_is_marked(self) -> None:
        fires = preview(spec_of("Asia/Shanghai", cron_expression="30 2 * * *"), 400, NOW)
        assert {(fire.utc_offset, fire.change) for fire in fires} == {("+08:00", None)}
        assert len({fire.at for fire in fires}) == 400


class TestLeapDay:
    def test_february_29(self) -> None:
        spec = spec_of("Asia/Shanghai", cron_expression="0 0 29 2 *")
        fires = preview(spec, 3, NOW)
        assert [fire.at[:10] for fire in fires] == ["2028-02-29", "2032-02-29", "2036-02-29"]

    def test_2100_is_no_leap_year(self) -> None:
        spec = spec_of("UTC", cron_expression="0 0 29 2 *")
        fires = fires_between(spec, datetime(2095, 1, 1, tzinfo=UTC), datetime(2105, 1, 1, tzinfo=UTC))
        assert [fire.year for fire in fires] == [2096, 2104]

    def test_the_last_day_of_february(self) -> None:
        spec = spec_of("UTC", day="last", month="2", hour="0")
        assert [fire.at[:10] for fire in preview(spec, 3, NOW)] == ["2026-02-28", "2027-02-28", "2028-02-29"]

    def test_the_31st_skips_short_months(self) -> None:
        spec = spec_of("UTC", day="31", hour="0")
        assert [fire.at[5:10] for fire in preview(spec, 3, NOW)] == ["01-31", "03-31", "05-31"]

    def test_a_day_s_interval_over_a_leap_day(self) -> None:
        spec = spec_of("UTC", trigger_type="interval", days=1, start_date="2028-02-28T06:00")
        fires = preview(spec, 3, datetime(2028, 2, 28, tzinfo=UTC))
        assert [fire.at[:10] for fire in fires] == ["2028-02-28", "2028-02-29", "2028-03-01"]


class TestIntervalsAndDates:
    def test_an_interval_is_elapsed_time(self) -> None:
        assert rows(
            "Europe/Berlin", "2026-03-28", 3, trigger_type="interval", days=1, start_date="2026-03-28T02:30"
        ) == [
            "2026-03-28T02:30:00+01:00 -",
            "2026-03-29T03:30:00+02:00 -",
            "2026-03-30T03:30:00+02:00 -",
        ]

    def test_an_hourly_interval_in_autumn(self) -> None:
        assert rows(
            "Europe/Berlin", "2026-10-25T01:30", 3, trigger_type="interval", hours=1, start_date="2026-10-25T01:30"
        ) == [
            "2026-10-25T01:30:00+02:00 -",
            "2026-10-25T02:30:00+02:00 -",
            "2026-10-25T02:30:00+01:00 -",
        ]

    def test_a_date_in_the_skipped_hour_is_moved(self) -> None:
        assert rows("Europe/Berlin", "2026-03-01", 3, trigger_type="date", run_date="2026-03-29T02:30") == [
            "2026-03-29T03:30:00+02:00 moved from 2026-03-29T02:30:00"
        ]

    @pytest.mark.parametrize("run_date", ["2026-03-29T01:30:00Z", "2026-03-29T01:30:00+01:00", "2026-07-01T12:00"])
    def test_any_other_date_is_not(self, run_date: str) -> None:
        (row,) = rows("Europe/Berlin", "2026-03-01", 3, trigger_type="date", run_date=run_date)
        assert row.endswith(" -")

    def test_a_date_gone_by_has_no_preview(self) -> None:
        assert rows("Europe/Berlin", "2026-08-01", 3, trigger_type="date", run_date="2026-07-01") == []


class TestAPSchedulerAlone:
    """Why the search is ours. When these fail, APScheduler was mended: compare, and drop ours if it can go."""

    def fires(self, zone: str, after: str, count: int, **fields: Any) -> list[str]:
        trigger = CronTrigger(timezone=zone, **fields)
        fires: list[datetime] = []
        fire = trigger.get_next_fire_time(None, local(zone, after))
        while fire is not None and len(fires) < count:
            fires.append(fire)
            fire = trigger.get_next_fire_time(fire, fire)
        return [fire.isoformat() for fire in fires]

    def test_loses_the_first_hour_of_the_day_after_the_change(self) -> None:
        assert self.fires("Europe/Berlin", "2026-03-29", 2, hour=0, minute=30) == [
            "2026-03-29T00:30:00+01:00",
            "2026-03-31T00:30:00+02:00",
        ]

    def test_loses_the_first_hour_of_the_month_after_the_change(self) -> None:
        fires = self.fires("America/New_York", "2026-02-15", 24, day=1, hour=0, minute=30)
        assert not [fire for fire in fires if fire[5:7] == "04"]

    def test_agrees_on_what_is_moved_and_doubled(self) -> None:
        for after in ("2026-03-28T12:00", "2026-10-24T12:00"):
            theirs = self.fires("Europe/Berlin", after, 4, hour=2, minute=30)
            ours = fires_between(
                spec_of("Europe/Berlin", cron_expression="30 2 * * *"),
                local("Europe/Berlin", after),
                local("Europe/Berlin", "2027-01-01"),
                limit=4,
            )
            assert [datetime.fromisoformat(fire) for fire in theirs] == [f.astimezone(UTC) for f in ours]
