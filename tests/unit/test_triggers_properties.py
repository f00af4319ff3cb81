"""Fire times for any trigger: against APScheduler where it is right, and against a slow and plain oracle."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.errors import ValidationError
from app.fire_times import MAX_YEAR
from app.triggers import (
    build_trigger,
    describe,
    fires_between,
    fold_fires,
    next_fire,
    parse_trigger,
    preview,
    trigger_args,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
slow = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])

# Where and when clocks change: an hour, half an hour, at midnight, over midnight, and nowhere.
CLOCK_CHANGES = [
    ("Europe/Berlin", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("America/New_York", "2026-03-08T07:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Africa/Cairo", "2026-04-23T22:00"),
    ("Africa/Cairo", "2026-10-29T21:00"),
    ("America/Havana", "2026-03-08T05:00"),
    ("America/Havana", "2026-11-01T05:00"),
    ("America/Scoresbysund", "2026-03-29T01:00"),
    ("America/Scoresbysund", "2026-10-25T01:00"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Asia/Shanghai", "2026-03-29T01:00"),
]


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    ranges = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.integers(1, high - low).map(lambda step: f"*/{step}")
    term = st.one_of(number.map(str), ranges, steps)
    return st.one_of(st.just("*"), st.lists(term, min_size=1, max_size=3).map(",".join))


POSITION = st.tuples(
    st.sampled_from(["1st", "2nd", "3rd", "4th", "5th", "last"]), st.sampled_from(["mon", "wed", "sun"])
).map(" ".join)
TIMES = {"second": field(0, 59), "minute": field(0, 59), "hour": field(0, 23)}
DATES = {
    "day": st.one_of(field(1, 31), st.just("last"), POSITION, POSITION.map("7,{}".format)),
    "month": st.one_of(st.just("*"), field(1, 12)),
    "week": st.one_of(st.just("*"), st.just("*"), field(1, 53)),
    "day_of_week": st.one_of(st.just("*"), st.sampled_from(["mon", "tue-thu", "sat,sun", "fri-sun"])),
    "year": st.one_of(st.just("*"), st.just("2026-2030"), st.just("*/4")),
}
MOMENTS = st.integers(0, 5 * 366 * 86_400).map(lambda s: NOW + timedelta(seconds=s, microseconds=s % 3))


def cron_spec(fields: dict[str, str], zone: str = "UTC", now: datetime = NOW) -> dict[str, Any]:
    try:
        payload = {"trigger_type": "cron", "timezone": zone, **fields}
        return parse_trigger(payload, default_timezone="UTC", now=now).spec
    except ValidationError:  # never fires
        assume(False)
        raise


def strictly_after(spec: dict[str, Any], moment: datetime, count: int) -> list[datetime]:
    fires: list[datetime] = []
    fire = next_fire(spec, moment, moment)
    while fire is not None and len(fires) < count:
        fires.append(fire.astimezone(UTC))
        fire = next_fire(spec, fire, fire)
    return fires


@slow
@given(st.fixed_dictionaries({}, optional={**TIMES, **DATES}), st.sampled_from(["UTC", "Asia/Shanghai"]), MOMENTS)
def test_equals_apscheduler_where_no_clock_changes(fields: dict[str, str], zone: str, moment: datetime) -> None:
    assume(fields)
    spec = cron_spec(fields, zone)
    theirs = CronTrigger(
        timezone=zone, end_date=datetime(2060, 1, 1, tzinfo=UTC), **{k: v for k, v in spec.items() if k in fields}
    )
    fire = theirs.get_next_fire_time(None, moment)
    assert next_fire({**spec, "end_date": "2060-01-01T00:00:00+00:00"}, None, moment) == fire
    for _ in range(5):
        if fire is None:
            break
        ours = next_fire({**spec, "end_date": "2060-01-01T00:00:00+00:00"}, fire, fire)
        fire = theirs.get_next_fire_time(fire, fire)
        assert ours == fire


def oracle(fields: dict[str, str], zone: ZoneInfo, start: datetime, stop: datetime) -> list[datetime]:
    """The rules of app/fire_times.py, minute by minute, for triggers of whole minutes and at most one gap."""
    naive = CronTrigger(timezone=UTC, **fields)
    margin = timedelta(days=2)
    instants = set()
    first_skipped = True
    wall = naive.get_next_fire_time(None, start - margin)
    while wall is not None and wall < stop + margin:
        early, late = (wall.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        if early.utcoffset() < late.utcoffset():  # skipped; fold 0 has the offset from before
            if first_skipped:
                instants.add(early.astimezone(UTC))
                first_skipped = False
        else:  # fold 1 differs only where the clock repeats
            instants |= {early.astimezone(UTC), late.astimezone(UTC)}
        wall = naive.get_next_fire_time(wall, wall)
    return sorted(instant for instant in instants if start <= instant < stop)


@slow
@given(
    st.sampled_from(CLOCK_CHANGES),
    st.fixed_dictionaries(
        {"minute": st.sampled_from(["*/10", "*/15", "0", "30", "7,37", "59"]), "hour": field(0, 23)},
        optional={"day_of_week": DATES["day_of_week"]},
    ),
    st.integers(-30 * 60, 30 * 60),
)
def test_equals_the_oracle_at_clock_changes(change: tuple[str, str], fields: dict[str, str], offset: int) -> None:
    name, at = change
    middle = datetime.fromisoformat(at).replace(tzinfo=UTC)
    start, stop = middle + timedelta(minutes=offset), middle + timedelta(hours=60)
    spec = cron_spec(fields, name, now=min(NOW, middle - timedelta(days=30)))
    expected = oracle(fields, ZoneInfo(name), start, stop)
    assert [fire.astimezone(UTC) for fire in fires_between(spec, start, stop)] == expected
    assert build_trigger(spec).count(int(start.timestamp()), int(stop.timestamp())) == len(expected)
    if expected:
        count, last, following = fold_fires(spec, expected[0], stop - timedelta(seconds=1))
        assert (count, last.astimezone(UTC)) == (len(expected), expected[-1])
        assert following is not None
        assert following >= stop
        marks = preview(spec, 1000, start)
        fired = [row for row in marks if row.change != "dropped" and row.utc < stop.isoformat()]
        assert [datetime.fromisoformat(row.utc) for row in fired] == expected


ANY_SPEC = st.one_of(
    st.fixed_dictionaries(
        {"trigger_type": st.just("cron"), "second": TIMES["second"]},
        optional={name: TIMES[name] for name in ("minute", "hour")},
    ),
    st.fixed_dictionaries({"trigger_type": st.just("cron"), "hour": TIMES["hour"]}, optional=DATES),
    st.fixed_dictionaries(
        {"trigger_type": st.just("interval"), "seconds": st.one_of(st.integers(1, 90_000), st.floats(0.1, 100))},
        optional={"minutes": st.integers(0, 100), "start_date": st.just("2026-02-01T00:00:00.25")},
    ),
)
ZONES = st.sampled_from(sorted({name for name, _ in CLOCK_CHANGES}))


def any_spec(payload: dict[str, Any], zone: str) -> dict[str, Any]:
    try:
        return parse_trigger({**payload, "timezone": zone}, default_timezone="UTC", now=NOW).spec
    except ValidationError:
        assume(False)
        raise


def folded(*args: Any, **options: Any) -> tuple[int, datetime, datetime | None]:
    """fold_fires in UTC: Python calls a repeated clock time equal to no time of another zone."""
    count, last, following = fold_fires(*args, **options)
    return count, last.astimezone(UTC), following and following.astimezone(UTC)


@slow
@given(ANY_SPEC, ZONES, MOMENTS, st.integers(0, 40), st.integers(0, 86_400))
def test_folding_is_stepping(payload: dict[str, Any], zone: str, moment: datetime, steps: int, beyond: int) -> None:
    spec = any_spec(payload, zone)
    fires = strictly_after(spec, moment, steps + 2)
    assume(fires)
    steps = min(steps, len(fires) - 1)
    until = fires[steps]
    following = fires[steps + 1] if len(fires) > steps + 1 else None
    if following is not None:  # anywhere before the next fire counts the same
        until = min(until + timedelta(seconds=beyond), following - timedelta(microseconds=1))
    assert folded(spec, fires[0], until) == (steps + 1, fires[steps], following)
    limit = max(1, steps // 2)
    after_limit = fires[limit] if len(fires) > limit else None
    if steps >= limit:
        assert folded(spec, fires[0], until, limit=limit) == (limit, fires[limit - 1], after_limit)


@slow
@given(ANY_SPEC, ZONES, MOMENTS, st.integers(1, 4000))
def test_fires_go_forward_whatever_now_says(payload: dict[str, Any], zone: str, moment: datetime, jitter: int) -> None:
    spec = any_spec({**payload, "jitter": jitter}, zone)
    fire = next_fire(spec, None, moment)
    for now in (moment, moment - timedelta(days=400), moment + timedelta(days=400)):
        if fire is None:
            break
        following = next_fire(spec, fire, now)
        assert following is None or following.astimezone(UTC) > fire.astimezone(UTC)
        fire = following


@slow
@given(ANY_SPEC, ZONES, MOMENTS)
def test_the_normal_form_is_stable_json(payload: dict[str, Any], zone: str, moment: datetime) -> None:
    spec = any_spec(payload, zone)
    again = json.loads(json.dumps(spec))
    assert again == spec
    assert build_trigger(again) is build_trigger(dict(reversed(spec.items())))
    assert next_fire(again, None, moment) == next_fire(spec, None, moment)
    for locale in ("zh_CN", "en"):
        assert describe(spec, locale)
    if spec["type"] == "cron":  # what is shown can be typed in again
        args = trigger_args(spec)
        retyped = {"trigger_type": "cron", "timezone": zone, "week": spec.get("week"), **args}
        shown = parse_trigger(retyped, default_timezone="UTC", now=NOW).spec
        assert next_fire(shown, None, moment) == next_fire(spec, None, moment)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["*", "*/2", "1-5", "last", "?", "2nd mon", "0 0 * * *", "2026-06-01", "2200-01-01", "5"]),
    st.lists(st.integers(), max_size=2),
)


OTHER_NAMES = [
    "weeks",
    "days",
    "hours",
    "minutes",
    "seconds",
    "run_date",
    "start_date",
    "end_date",
    "jitter",
    "timezone",
]
CRON_NAMES = ["cron_expression", "cron_hour", "minute", "second", "day", "month", "weekday", "year", "week"]


@slow
@given(
    st.sampled_from(["cron", "interval", "date"]),
    st.dictionaries(
        st.sampled_from(OTHER_NAMES + CRON_NAMES),
        JUNK,
        max_size=6,
    ),
)
def test_any_input_is_accepted_or_refused_by_name(kind: str, payload: dict[str, Any]) -> None:
    refusal = None
    try:
        parsed = parse_trigger({"trigger_type": kind, **payload}, default_timezone="Asia/Shanghai", now=NOW)
    except ValidationError as error:
        refusal = error
    if refusal is not None:
        assert refusal.field is not None
        assert refusal.accepted is not None
        assert str(refusal)
        json.dumps(refusal.context)
        return
    json.dumps(parsed.spec)
    fire = next_fire(parsed.spec, None, NOW)
    assert fire is not None
    assert 1970 <= fire.year <= MAX_YEAR + 1


@slow
@given(st.text(max_size=60))
def test_any_expression_is_accepted_or_refused(expression: str) -> None:
    field = "cron_expression"
    try:
        parse_trigger({"trigger_type": "cron", "cron_expression": expression}, default_timezone="UTC", now=NOW)
    except ValidationError as error:
        field = error.field
    assert field == "cron_expression"


class TestJitter:
    def test_an_interval_does_not_drift(self) -> None:
        payload = {"trigger_type": "interval", "seconds": 10, "jitter": 5, "start_date": "2026-01-01T00:00:00Z"}
        spec = parse_trigger(payload, default_timezone="UTC", now=NOW).spec
        fires = strictly_after(spec, NOW, 200)
        for number, fire in enumerate(fires, start=1):
            assert 0 <= (fire - NOW).total_seconds() - 10 * number <= 5

    def test_a_cron_fire_is_late_by_at_most_the_jitter(self) -> None:
        spec = cron_spec({"minute": "*"}) | {"jitter": 20}
        for number, fire in enumerate(strictly_after(spec, NOW, 50), start=1):
            assert 0 <= (fire - NOW).total_seconds() - 60 * number <= 20

    def test_the_end_holds(self) -> None:
        payload = {"trigger_type": "cron", "hour": "1", "jitter": 3600, "end_date": "2026-01-01T01:00:05"}
        spec = parse_trigger(payload, default_timezone="UTC", now=NOW).spec
        fire = next_fire(spec, None, NOW)
        assert fire is not None
        assert fire <= datetime(2026, 1, 1, 1, 0, 5, tzinfo=UTC)

    def test_previews_show_the_plain_moments(self) -> None:
        spec = cron_spec({"hour": "1"}) | {"jitter": 600}
        assert [row.at[10:19] for row in preview(spec, 3, NOW)] == ["T01:00:00"] * 3

    def test_previews_are_in_order_within_a_second_too(self) -> None:
        payload = {"trigger_type": "interval", "seconds": 0.5, "start_date": "2026-01-01T00:00:00Z"}
        spec = parse_trigger(payload, default_timezone="UTC", now=NOW).spec
        moments = [datetime.fromisoformat(row.utc) for row in preview(spec, 5, NOW)]
        assert moments == [moments[0] + timedelta(seconds=0.5 * number) for number in range(5)]


class TestEnds:
    def test_end_is_included_and_final(self) -> None:
        for payload in ({"trigger_type": "cron", "hour": "*"}, {"trigger_type": "interval", "hours": 1}):
            spec = parse_trigger(
                {**payload, "start_date": "2026-01-01T02:00", "end_date": "2026-01-01T04:00"},
                default_timezone="UTC",
                now=NOW,
            ).spec
            fires = fires_between(spec, NOW, NOW + timedelta(days=1))
            assert [fire.hour for fire in fires] == [2, 3, 4]
            assert fold_fires(spec, fires[0], NOW + timedelta(days=1)) == (3, fires[2], None)

    def test_a_date_fires_once(self) -> None:
        payload = {"trigger_type": "date", "run_date": "2026-02-01T00:00:00Z"}
        spec = parse_trigger(payload, default_timezone="UTC", now=NOW).spec
        fire = next_fire(spec, None, NOW)
        assert fire == datetime(2026, 2, 1, tzinfo=UTC)
        assert next_fire(spec, fire, fire) is None
        assert fold_fires(spec, fire, fire + timedelta(days=5)) == (1, fire, None)
        assert fires_between(spec, NOW, NOW + timedelta(days=90)) == [fire]
        assert fires_between(spec, NOW + timedelta(days=60), NOW + timedelta(days=90)) == []

    def test_the_calendar_ends(self) -> None:
        spec = cron_spec({"hour": "0"})
        assert next_fire(spec, datetime(MAX_YEAR, 12, 31, 12, tzinfo=UTC), NOW) is None
        payload = {"trigger_type": "interval", "weeks": 52 * 99}
        spec = parse_trigger(payload, default_timezone="UTC", now=NOW).spec
        fires = strictly_after(spec, NOW, 10)
        assert [fire.year for fire in fires] == [2124]


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "Europe/Berlin"])
def test_a_long_outage_is_folded_at_once(zone: str) -> None:
    spec = cron_spec({"second": "*"}, zone)
    first, until = datetime(2026, 1, 2, tzinfo=UTC), datetime(2027, 1, 2, tzinfo=UTC)
    assert fold_fires(spec, first, until, limit=10**9)[0] == 365 * 86_400 + 1
