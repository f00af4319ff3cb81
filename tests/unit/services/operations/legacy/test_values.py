"""Moments, zones and arguments, as every protocol and every library of zones writes them."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import dateutil.tz
import pytest
import pytz

from app.services.operations.legacy.pickles import UnreadablePickle, read_pickle
from app.services.operations.legacy.values import MOST_VALUES, as_json_value, as_moment, as_span, as_zone

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(value: Any, protocol: int = 4) -> Any:
    return read_pickle(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC),
        datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=ZoneInfo("Asia/Shanghai")),
        datetime(2026, 11, 1, 1, 30, tzinfo=ZoneInfo("America/New_York"), fold=1),
        datetime(2026, 3, 4, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        pytz.timezone("America/New_York").localize(datetime(2026, 11, 1, 1, 30), is_dst=True),
        pytz.timezone("America/New_York").localize(datetime(2026, 11, 1, 1, 30), is_dst=False),
        pytz.UTC.localize(datetime(2026, 1, 1)),
        datetime(2026, 1, 1, tzinfo=pytz.FixedOffset(330)),
        datetime(2026, 1, 1, tzinfo=dateutil.tz.UTC),
        datetime(2026, 1, 1, tzinfo=dateutil.tz.gettz("Asia/Shanghai")),
    ],
    ids=str,
)
def test_moments(moment: datetime, protocol: int) -> None:
    found = as_moment(read(moment, protocol))
    assert found is not None
    if protocol < 4:
        moment = moment.replace(fold=0)  # Python itself writes it from protocol 4 on
    assert found.astimezone(UTC) == moment.astimezone(UTC)


def test_moments_that_are_none() -> None:
    assert as_moment(None) is None
    for value in (datetime(2026, 1, 1), "2026-01-01", 5, timedelta(1)):
        with pytest.raises(UnreadablePickle):
            as_moment(read(value))
    for damaged in (b"\x07", b"\x00" * 10, b"\x07\xea\x0d\x01" + b"\x00" * 6):
        with pytest.raises(UnreadablePickle):
            as_moment(read_pickle(b"cdatetime\ndatetime\n(" + pickle.dumps(damaged, 3)[2:-1] + b"NtR."))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("zone", "name"),
    [
        (ZoneInfo("Asia/Shanghai"), "Asia/Shanghai"),
        (pytz.timezone("Europe/Berlin"), "Europe/Berlin"),
        (pytz.UTC, "UTC"),
        (UTC, "UTC"),
        (dateutil.tz.UTC, "UTC"),
        (timezone(timedelta(hours=8)), "Etc/GMT-8"),
        (pytz.FixedOffset(-180), "Etc/GMT+3"),
    ],
    ids=str,
)
def test_zones(zone: Any, name: str, protocol: int) -> None:
    found = as_zone(read(zone, protocol))
    assert isinstance(found, ZoneInfo)
    assert found.key == name
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert moment.astimezone(found).utcoffset() == moment.astimezone(zone).utcoffset()


def test_zones_that_have_no_name() -> None:
    assert as_zone(read(timezone(timedelta(hours=5, minutes=30)))) == timezone(timedelta(hours=5, minutes=30))
    assert as_zone(read(dateutil.tz.tzlocal())) is None
    assert as_zone(read_pickle(b"cpytz\n_p\n(V../../etc/passwd\ntR.")) is None
    assert as_zone("Asia/Shanghai") is None


def test_lengths_of_time() -> None:
    assert as_span(read(timedelta(days=1, seconds=2, microseconds=3))) == timedelta(days=1, seconds=2, microseconds=3)
    with pytest.raises(UnreadablePickle):
        as_span(read_pickle(b"cdatetime\ntimedelta\n(L99999999999L\nI0\nI0\ntR."))


def test_arguments_as_json() -> None:
    assert as_json_value(read({"a": (1, [2.5, None, True]), "b": {"c": "x"}})) == {
        "a": [1, [2.5, None, True]],
        "b": {"c": "x"},
    }


@pytest.mark.parametrize("value", [{1: 2}, {"a": b"bytes"}, {"a": {1, 2}}, {"a": datetime(2026, 1, 1)}])
def test_arguments_that_json_cannot_hold(value: Any) -> None:
    with pytest.raises(UnreadablePickle):
        as_json_value(read(value))


def test_arguments_without_an_end() -> None:
    itself: list[Any] = []
    itself.append(itself)
    laughs: list[Any] = ["ha"]
    for _ in range(30):
        laughs = [laughs] * 9
    many = [0] * (MOST_VALUES + 1)
    for value in (itself, laughs, many):
        with pytest.raises(UnreadablePickle, match="no end"):
            as_json_value(read({"a": value})["a"])
