"""From a request body to the normal form: aliases, fallbacks, and what is refused with which words."""

from __future__ import annotations

from datetime import UTC, date, datetime
from time import perf_counter
from typing import Any

import pytest

from app.errors import ValidationError
from app.triggers import CRON_FIELD_NAMES, TRIGGER_FIELDS, build_trigger, parse_trigger, trigger_args

NOW = datetime(2026, 1, 15, 12, 0, 0, 250_000, tzinfo=UTC)
ZONE = "Asia/Shanghai"


def parse(now: datetime = NOW, **payload: Any) -> dict[str, Any]:
    return parse_trigger(payload, default_timezone=ZONE, now=now).spec


def cron(**payload: Any) -> dict[str, Any]:
    spec = parse(trigger_type="cron", **payload)
    return {name: value for name, value in spec.items() if name not in ("type", "timezone")}


def refusal(*, now: datetime = NOW, **payload: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        parse(now=now, **payload)
    error = caught.value
    assert error.field, "a refusal names the field"
    assert str(error), "and says something"
    return error


class TestExpression:
    def test_five_parts_are_minute_hour_day_month_weekday_at_second_0(self) -> None:
        spec = parse(trigger_type="cron", cron_expression="30 2 1 6 *")
        assert trigger_args(spec) == {
            "second": "0",
            "minute": "30",
            "hour": "2",
            "day": "1",
            "month": "6",
            "day_of_week": "*",
            "year": "",
        }

    def test_six_parts_begin_with_the_second(self) -> None:
        assert trigger_args(parse(trigger_type="cron", cron_expression="15 30 2 * * mon"))["second"] == "15"

    def test_seven_parts_end_with_the_year(self) -> None:
        args = trigger_args(parse(trigger_type="cron", cron_expression="0 0 0 1 1 * 2027-2030"))
        assert args["year"] == "2027-2030"

    def test_any_white_space_separates(self) -> None:
        assert cron(cron_expression=" 0\t3  * *\n* ") == cron(cron_expression="0 3 * * *")

    @pytest.mark.parametrize("expression", ["", "  ", "1", "1 2 3 4", "1 2 3 4 5 6 7 8", "@daily"])
    def test_another_number_of_parts_is_refused_without_a_single_field(self, expression: str) -> None:
        error = refusal(trigger_type="cron", cron_expression=expression)
        assert (error.field, error.value) == ("cron_expression", expression)
        assert "7 段" in error.accepted

    def test_another_number_of_parts_overrides_nothing(self) -> None:
        parsed = parse_trigger(
            {"trigger_type": "cron", "cron_expression": "9 9 9", "cron_hour": "4"}, default_timezone=ZONE, now=NOW
        )
        assert trigger_args(parsed.spec)["hour"] == "4"
        assert trigger_args(parsed.spec)["minute"] == "0"
        assert [params for _, params in parsed.warnings] == [{"parts": 3}]

    def test_at_most_256_characters(self) -> None:
        fits = ",".join(["1"] * 124) + " 0 * * *"
        assert len(fits) == 255
        assert cron(cron_expression=fits)["minute"] == "1"
        error = refusal(trigger_type="cron", cron_expression=fits + "  ", hour="1")
        assert error.field == "cron_expression"

    def test_ten_thousand_characters_are_refused_at_once(self) -> None:
        began = perf_counter()
        error = refusal(trigger_type="cron", cron_expression="*/5 " * 2500)
        assert perf_counter() - began < 0.1
        assert len(str(error.context["value"])) < 300

    @pytest.mark.parametrize("expression", [5, True, ["0 0 * * *"], {"a": 1}, 0.5])
    def test_must_be_text(self, expression: Any) -> None:
        assert refusal(trigger_type="cron", cron_expression=expression).value == expression

    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("60 * * * *", "60"),
            ("* 24 * * *", "24"),
            ("* * 0 * *", "0"),
            ("* * 32 * *", "32"),
            ("* * * 13 *", "13"),
            ("* * * * 8", "8"),
            ("* * * * * * 1969", "1969"),
            ("* * * * * * 2200", "2200"),
            ("a * * * *", "a"),
            ("1,,2 * * * *", "1,,2"),
            ("5-1 * * * *", "5-1"),
            ("*/0 * * * *", "*/0"),
            ("*/60 * * * *", "*/60"),
            ("1-5/9 * * * *", "1-5/9"),
            ("-1 * * * *", "-1"),
            ("* * * * monday", "monday"),
            ("* * * * mon-fry", "mon-fry"),
            ("* * * january *", "january"),
            ("１ * * * *", "１"),
            ("* * * * *\x00", "*\x00"),
        ],
    )
    def test_a_bad_part_is_named(self, expression: str, value: str) -> None:
        error = refusal(trigger_type="cron", cron_expression=expression)
        assert (error.field, error.value) == ("cron_expression", value)
        assert error.accepted


class TestSingleFields:
    @pytest.mark.parametrize(("field", "name"), [(f, n) for f, ns in CRON_FIELD_NAMES.items() for n in ns])
    def test_every_alias(self, field: str, name: str) -> None:
        value = "2030" if field == "year" else "5"
        assert cron(**{name: value})[field] == ("fri" if field == "day_of_week" else value)
        assert name in TRIGGER_FIELDS

    def test_the_documented_aliases_are_there(self) -> None:
        documented = (
            "cron_second second cron_minute minute cron_hour hour cron_day day cron_month month "
            "cron_weekday cron_day_of_week day_of_week weekday year"
        )
        assert set(documented.split()) <= TRIGGER_FIELDS

    def test_they_win_over_the_expression(self) -> None:
        args = trigger_args(parse(trigger_type="cron", cron_expression="10 20 3 * * *", cron_hour="5", second=7))
        assert (args["second"], args["minute"], args["hour"]) == ("7", "20", "5")

    def test_they_replace_a_bad_part_of_the_expression(self) -> None:
        assert cron(cron_expression="99 3 * * *", minute="9")["minute"] == "9"

    @pytest.mark.parametrize("empty", ["", "   ", None])
    def test_an_empty_one_is_not_given(self, empty: Any) -> None:
        assert cron(cron_expression="10 3 * * *", cron_minute=empty, minute=empty)["minute"] == "10"
        assert cron(cron_minute=empty, minute="6")["minute"] == "6"
        refusal(trigger_type="cron", minute=empty)

    def test_zero_is_given(self) -> None:
        assert cron(minute=0, hour="0") == {"minute": "0", "hour": "0"}

    def test_fields_left_out_are_apscheduler_s_defaults(self) -> None:
        args = trigger_args(parse(trigger_type="cron", cron_hour="3"))
        assert " ".join(args.values()) == "0 0 3 * * * "
        args = trigger_args(parse(trigger_type="cron", second="*/10"))
        assert args["minute"] == "*"

    @pytest.mark.parametrize("value", [True, False, [1], {"a": 1}, 1.5, -1, 10**30])
    def test_neither_text_nor_whole_number(self, value: Any) -> None:
        error = refusal(trigger_type="cron", cron_minute=value)
        assert (error.field, error.value) == ("cron_minute", value)

    @pytest.mark.parametrize("value", ["last", "2nd mon", "last fri", "1,last", "3rd sun,5th sat"])
    def test_positions_in_the_month(self, value: str) -> None:
        assert cron(day=value)["day"] == value

    def test_a_weekday_number_in_a_position_is_crontab_s(self) -> None:
        assert cron(day="2nd 1, LAST 0,1st 7")["day"] == "2nd mon,last sun,1st sun"

    @pytest.mark.parametrize("value", ["L", "LW", "15W", "6L", "friL", "5#2", "fri#2"])
    def test_quartz_letters_are_refused_with_the_way_to_say_it(self, value: str) -> None:
        for name in ("day", "weekday"):
            error = refusal(trigger_type="cron", **{name: value})
            assert error.field == name
            assert "2nd mon" in str(error)

    def test_a_question_mark_is_refused(self) -> None:
        assert "*" in str(refusal(trigger_type="cron", cron_expression="0 0 12 ? * mon"))

    def test_months_by_name(self) -> None:
        assert cron(month="jan-mar/2,DEC")["month"] == "1-3/2,12"

    def test_what_apscheduler_would_swallow_is_refused(self) -> None:
        # its patterns for names have no end: it reads "mon-fri/2" as "mon-fri" and "lastly" as "last"
        assert cron(weekday="mon-fri/2")["day_of_week"] == "mon,wed,fri"
        for value in ("lastly", "2nd monday", "2nd mon tue"):
            refusal(trigger_type="cron", day=value)


class TestWeekdayNumbers:
    @pytest.mark.parametrize(
        ("given", "stored"),
        [
            ("0", "sun"),
            ("7", "sun"),
            (0, "sun"),
            ("1", "mon"),
            ("6", "sat"),
            ("1-5", "mon-fri"),
            ("5-7", "fri-sun"),
            ("0-6", "mon-sun"),
            ("0-7", "mon-sun"),
            ("1-7", "mon-sun"),
            ("0-2", "mon-tue,sun"),
            ("7-2", "mon-tue,sun"),
            ("6-7", "sat-sun"),
            ("6-1", "mon,sat-sun"),
            ("5-1/2", "fri,sun"),
            ("1-5/2", "mon,wed,fri"),
            ("1/2", "mon,wed,fri"),
            ("*/2", "tue,thu,sat-sun"),
            ("0,6", "sun,sat"),
            ("1,1,mon", "mon"),
            ("MON-Fri", "mon-fri"),
            ("sun-tue", "mon-tue,sun"),
            ("fri-mon", "mon,fri-sun"),
            ("mon-5", "mon-fri"),
            ("*", "*"),
        ],
    )
    def test_are_crontab_s_and_stored_as_names(self, given: Any, stored: str) -> None:
        assert cron(weekday=given)["day_of_week"] == stored
        assert cron(cron_expression=f"0 0 * * {given}")["day_of_week"] == stored

    @pytest.mark.parametrize(("given", "isoweekday"), [("0", 7), ("7", 7), ("1", 1), ("3", 3), ("6", 6)])
    def test_fire_on_that_day(self, given: str, isoweekday: int) -> None:
        spec = parse(trigger_type="cron", cron_expression=f"0 9 * * {given}")
        assert build_trigger(spec).get_next_fire_time(None, NOW).isoweekday() == isoweekday

    @pytest.mark.parametrize("given", ["8", "0-8", "*/7", "1-5/0", "7/2", "1-", "-5", "1--5", "1-2-3", ","])
    def test_out_of_range(self, given: str) -> None:
        assert refusal(trigger_type="cron", weekday=given).field == "weekday"


class TestInterval:
    @pytest.mark.parametrize("unit", ["weeks", "days", "hours", "minutes", "seconds"])
    @pytest.mark.parametrize(("given", "stored"), [(2, 2), ("2", 2), (" 2.0 ", 2), (2.5, 2.5), ("2.5", 2.5)])
    def test_numbers_and_numeric_strings(self, unit: str, given: Any, stored: float) -> None:
        assert parse(trigger_type="interval", **{unit: given})[unit] == stored

    @pytest.mark.parametrize("nothing", [0, "0", "", "  ", None, 0.0, "0.0"])
    def test_zero_and_empty_are_not_given(self, nothing: Any) -> None:
        spec = parse(trigger_type="interval", hours=nothing, minutes=5)
        assert "hours" not in spec
        assert "seconds" in str(refusal(trigger_type="interval", hours=nothing))

    def test_nothing_given(self) -> None:
        refusal(trigger_type="interval")

    @pytest.mark.parametrize("value", ["ten", "1e3", "inf", "nan", "1_000", "0x10", "-", ".", "--1", [5], {}, True])
    def test_not_a_number(self, value: Any) -> None:
        error = refusal(trigger_type="interval", minutes=value)
        assert (error.field, error.value) == ("minutes", value)

    @pytest.mark.parametrize("value", [-1, "-1", -0.5])
    def test_negative(self, value: Any) -> None:
        assert "负" in str(refusal(trigger_type="interval", seconds=value))

    @pytest.mark.parametrize("value", [10**12, "9" * 15, 10**400, "9" * 400, float("inf"), float("nan"), 1e300])
    @pytest.mark.parametrize("unit", ["weeks", "seconds"])
    def test_too_large(self, unit: str, value: Any) -> None:
        assert refusal(trigger_type="interval", **{unit: value}).field == unit

    def test_too_large_together_or_too_short(self) -> None:
        assert refusal(trigger_type="interval", weeks=5000, days=10_000).field == "weeks"
        assert refusal(trigger_type="interval", seconds=0.01).field == "seconds"

    def test_start_is_one_interval_ahead_unless_given(self) -> None:
        assert parse(trigger_type="interval", minutes=10)["start_date"] == "2026-01-15T20:10:00+08:00"
        given = parse(trigger_type="interval", minutes=10, start_date="2026-02-01T00:00:30")
        assert given["start_date"] == "2026-02-01T00:00:30+08:00"

    def test_a_fixed_start_keeps_a_file_s_trigger_the_same(self) -> None:
        start = datetime(2020, 1, 1, tzinfo=UTC)
        payload = {"trigger_type": "interval", "hours": 6}
        specs = [
            parse_trigger(payload, default_timezone=ZONE, now=now, interval_start=start).spec
            for now in (NOW, NOW.replace(year=2030))
        ]
        assert specs[0] == specs[1]

    @pytest.mark.parametrize("value", ["x", -1, 86_401, True, [1]])
    def test_bad_jitter(self, value: Any) -> None:
        assert refusal(trigger_type="interval", minutes=5, jitter=value).field == "jitter"

    def test_jitter(self) -> None:
        assert parse(trigger_type="interval", minutes=5, jitter="30")["jitter"] == 30
        assert "jitter" not in parse(trigger_type="interval", minutes=5, jitter=0)


class TestDate:
    def test_without_offset_it_is_read_in_the_job_s_zone(self) -> None:
        spec = parse(trigger_type="date", run_date="2026-06-01 08:30:00", timezone="Europe/Berlin")
        assert spec == {"type": "date", "run_date": "2026-06-01T08:30:00+02:00", "timezone": "Europe/Berlin"}

    @pytest.mark.parametrize(
        ("given", "stored"),
        [
            ("2026-06-01T08:30:00Z", "2026-06-01T16:30:00+08:00"),
            ("2026-06-01T08:30:00-04:00", "2026-06-01T20:30:00+08:00"),
            ("2026-06-01", "2026-06-01T00:00:00+08:00"),
            (date(2026, 6, 1), "2026-06-01T00:00:00+08:00"),
            (datetime(2026, 6, 1, 8, 30), "2026-06-01T08:30:00+08:00"),
            (" 2026-06-01T08:30 ", "2026-06-01T08:30:00+08:00"),
        ],
    )
    def test_forms(self, given: Any, stored: str) -> None:
        assert parse(trigger_type="date", run_date=given)["run_date"] == stored

    @pytest.mark.parametrize(
        "value",
        [
            *(None, "", "tomorrow", "2026-13-01", "2026-02-30", 1_780_000_000, True, ["2026-06-01"], "x" * 10_000),
            *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-06-01T25:00:00"),
        ],
    )
    def test_bad(self, value: Any) -> None:
        error = refusal(trigger_type="date", run_date=value)
        assert (error.field, error.value) == ("run_date", value)

    def test_the_past_is_refused_beyond_the_grace_time(self) -> None:
        payload = {"trigger_type": "date", "run_date": "2026-01-15T11:58:00Z"}
        assert parse_trigger(payload, default_timezone=ZONE, now=NOW, misfire_grace_s=300).spec
        with pytest.raises(ValidationError, match="已经过去"):
            parse_trigger(payload, default_timezone=ZONE, now=NOW, misfire_grace_s=60)
        assert parse_trigger(payload, default_timezone=ZONE, now=NOW, misfire_grace_s=60, allow_past=True).spec

    def test_a_skipped_clock_time_warns(self) -> None:
        parsed = parse_trigger(
            {"trigger_type": "date", "run_date": "2026-03-29T02:30", "timezone": "Europe/Berlin"},
            default_timezone=ZONE,
            now=NOW,
        )
        assert [params["at"] for _, params in parsed.warnings] == ["2026-03-29T03:30:00+02:00"]

    def test_a_repeated_clock_time_is_the_first_and_warns(self) -> None:
        parsed = parse_trigger(
            {"trigger_type": "date", "run_date": "2026-10-25T02:30", "timezone": "Europe/Berlin"},
            default_timezone=ZONE,
            now=NOW,
        )
        assert parsed.spec["run_date"] == "2026-10-25T02:30:00+02:00"
        assert len(parsed.warnings) == 1


class TestTypeAndZone:
    @pytest.mark.parametrize("payload", [None, {}, [], "cron", 5])
    def test_a_trigger_is_an_object(self, payload: Any) -> None:
        with pytest.raises(ValidationError):
            parse_trigger(payload, default_timezone=ZONE)

    @pytest.mark.parametrize("value", [None, "", "crontab", "CRON", 5, True, ["cron"], {"a": 1}])
    def test_unknown_type(self, value: Any) -> None:
        error = refusal(trigger_type=value, cron_hour="1")
        assert (error.field, error.value) == ("trigger_type", value)
        assert error.accepted == ["cron", "interval", "date"]

    def test_missing_type(self) -> None:
        assert refusal(cron_hour="1").field == "trigger_type"

    @pytest.mark.parametrize("value", [None, "", " "])
    def test_a_missing_zone_falls_back_silently(self, value: Any) -> None:
        parsed = parse_trigger({"trigger_type": "cron", "hour": 1, "timezone": value}, default_timezone=ZONE, now=NOW)
        assert (parsed.spec["timezone"], parsed.warnings) == (ZONE, ())

    @pytest.mark.parametrize(
        "value",
        [
            *("Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe", "right/UTC", "posix/UTC", "localtime"),
            *("+08:00", "x" * 5000, "中国", "Asia/\x00", 8, True, ["UTC"], {}),
        ],
    )
    def test_an_unknown_zone_falls_back_and_is_named(self, value: Any) -> None:
        parsed = parse_trigger({"trigger_type": "cron", "hour": 1, "timezone": value}, default_timezone=ZONE, now=NOW)
        assert parsed.spec["timezone"] == ZONE
        ((_, params),) = parsed.warnings
        assert params["fallback"] == ZONE
        assert len(params["value"]) <= 65

    @pytest.mark.parametrize("value", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
    def test_a_known_zone(self, value: str) -> None:
        assert parse(trigger_type="cron", hour=1, timezone=value)["timezone"] == value


class TestNeverFires:
    @pytest.mark.parametrize(
        "fields",
        [
            {"cron_expression": "0 0 30 2 *"},
            {"cron_expression": "0 0 31 4,6,9,11 *"},
            {"week": "53", "month": "3-11"},
            {"week": "30", "month": "1", "day": "2nd mon"},
            {"day": "5th mon", "month": "feb", "year": "2027"},
            {"cron_expression": "0 0 0 29 2 * 2027"},
        ],
    )
    def test_is_refused_quickly(self, fields: dict[str, Any]) -> None:
        began = perf_counter()
        error = refusal(trigger_type="cron", **fields)
        assert "永远不会触发" in str(error)
        assert perf_counter() - began < 1  # APScheduler's own search takes 9 s for the third

    def test_years_gone_by(self) -> None:
        assert refusal(trigger_type="cron", hour="1", year="2020-2025").field == "year"
        assert refusal(trigger_type="cron", cron_expression="0 0 0 1 1 * 2026").field == "cron_expression"

    def test_end_before_start(self) -> None:
        for payload in ({"trigger_type": "cron", "hour": 1}, {"trigger_type": "interval", "hours": 1}):
            error = refusal(**payload, start_date="2026-05-02", end_date="2026-05-01")
            assert (error.field, error.value) == ("end_date", "2026-05-01")

    def test_end_before_the_first_interval(self) -> None:
        assert refusal(trigger_type="interval", days=10, end_date="2026-01-20").field == "end_date"

    def test_end_in_the_past(self) -> None:
        for payload in ({"trigger_type": "cron", "hour": 1}, {"trigger_type": "interval", "hours": 1}):
            error = refusal(**payload, start_date="2025-01-01", end_date="2025-05-01")
            assert error.field == "end_date"
            past = parse_trigger(
                {**payload, "start_date": "2025-01-01", "end_date": "2025-05-01"},
                default_timezone=ZONE,
                now=NOW,
                allow_past=True,
            )
            assert past.spec["end_date"] == "2025-05-01T00:00:00+08:00"

    def test_the_fire_may_be_this_very_second(self) -> None:
        assert parse(
            trigger_type="cron",
            cron_expression="0 0 20 15 1 * 2026",
            now=datetime(2026, 1, 15, 12, 0, tzinfo=UTC),
        )


def test_keys_of_a_job_are_left_alone() -> None:
    assert cron(hour=1, name="x", kwargs={"a": 1}) == {"hour": "1"}
