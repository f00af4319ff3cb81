"""Cron expressions: in words, with their next fires, and refused in one line that says what is accepted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask

from app.services.operations.cron_check import check_cron, cron_lines
from app.services.operations.failure import OperationFailed

SPRING = datetime(2026, 3, 7, 12, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 31, 12, tzinfo=UTC)


def lines(expression: str, language: str = "en", **options: Any) -> list[str]:
    options = {"timezone": "America/New_York", "count": 3, "after": SPRING, **options}
    return cron_lines(check_cron(expression, language=language, **options), language)


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("30 4 * * *", "2026-03-08 04:30:00 -04:00"),
        ("15 30 4 * * *", "2026-03-08 04:30:15 -04:00"),
        ("15 30 4 * * * 2027", "2027-01-01 04:30:15 -05:00"),
        ("0 12 * * 0", "2026-03-08 12:00:00 -04:00"),  # crontab's 0, which APScheduler alone reads as Monday
        ("0 12 * * 7", "2026-03-08 12:00:00 -04:00"),
        ("0 12 last * *", "2026-03-31 12:00:00 -04:00"),
    ],
)
def test_the_next_fires_have_their_offset(expression: str, first: str) -> None:
    told = lines(expression)
    assert told[0] == f"{expression}  (America/New_York)"
    assert told[2] == first
    assert len(told) <= 5


def test_what_a_clock_change_does_is_marked() -> None:
    assert lines("*/20 2 * * *")[2:4] == [
        "2026-03-08 03:00:00 -04:00  moved by the clock change, asked for at 2026-03-08T02:00:00",
        "2026-03-08 02:20:00 -05:00  the first of 2 that do not fire: the clock change leaves them out",
    ]
    assert lines("30 1 * * *", after=AUTUMN)[2:4] == [
        "2026-11-01 01:30:00 -04:00  this clock time comes twice that day",
        "2026-11-01 01:30:00 -05:00  this clock time comes twice that day",
    ]


def test_in_chinese() -> None:
    told = lines("30 2 * * 1-5", "zh")
    assert "星期一" in told[1]
    assert any("因时钟调整" in line for line in lines("30 2 * * *", "zh"))


def test_fewer_fires_than_asked_for() -> None:
    assert len(lines("0 0 0 1 1 * 2027", count=10)) == 3


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("61 * * * *", "cron_expression (minute): 61 is out of range; accepted: 0 to 59"),
        ("* * * *", "has 4 parts; accepted: 5 (minute"),
        ("", "has 0 parts"),
        ("* * * * * * * *", "has 8 parts"),
        ("0 0 31 2 *", "never fire"),
        ("0 0 1 1 1 * 2020", "in the past"),
        ("? * * * *", "is not supported"),
        ("0 0 * * 5-9", "out of range"),
        ("0 0 * * monday", "monday"),
        ("a" * 5000 + " * * * *", "accepted: 5 parts"),
    ],
)
def test_what_is_wrong_and_what_is_accepted(expression: str, part: str) -> None:
    with pytest.raises(OperationFailed) as refused:
        check_cron(expression, timezone="UTC")
    assert part in str(refused.value)
    assert "accepted: " in str(refused.value)


def test_an_unknown_zone() -> None:
    with pytest.raises(OperationFailed, match="'Mars/Base' is not known; accepted: IANA names"):
        check_cron("* * * * *", timezone="Mars/Base")


def test_the_command(app: Flask) -> None:
    run = app.test_cli_runner().invoke
    told = run(args=["jobs", "validate-cron", "0 1 * * *", "--json", "--after", "2026-01-01", "--count", "2"])
    found = json.loads(told.stdout)
    assert found["timezone"] == "Asia/Shanghai"
    assert [fire["at"] for fire in found["fires"]] == ["2026-01-02T01:00:00+08:00", "2026-01-03T01:00:00+08:00"]
    assert run(args=["jobs", "validate-cron", "0 1 * *"]).exit_code == 1
    assert run(args=["jobs", "validate-cron", "0 1 * * *", "--after", "soon"]).exit_code == 1
    assert run(args=["jobs", "validate-cron", "0 1 * * *", "--count", "0"]).exit_code == 2
