"""JSON at the edges of the app."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest
from flask import Flask

from app.http.json_format import JSONProvider


@pytest.fixture
def provider() -> JSONProvider:
    return JSONProvider(Flask("test"))


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        '{"a": NaN}',
        pytest.param("[" * 200_000, id="nested lists"),
        pytest.param('{"a":' * 200_000, id="nested objects"),
        '"\\ud800"',
        '{"\\udfff": 1}',
        pytest.param("9" * 5000, id="5000 digits"),
    ],
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_what_no_standard_knows_is_refused(provider: JSONProvider, text: str, as_bytes: bool) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - Flask takes any ValueError for bad JSON
        provider.loads(text.encode() if as_bytes else text)


@pytest.mark.parametrize("value", [{"a": [1, 1.5, None, True]}, "中文", "\U0001f40b", "\\u", []])
def test_the_rest_goes_round(provider: JSONProvider, value: object) -> None:
    assert provider.loads(provider.dumps(value)) == value
    assert provider.loads(json.dumps(value)) == value  # with \u escapes, whole pairs among them


def test_chinese_stays_readable(provider: JSONProvider) -> None:
    assert provider.dumps({"message": "操作成功"}) == '{"message": "操作成功"}'


def test_times_are_iso_8601_with_an_offset(provider: JSONProvider) -> None:
    assert provider.dumps(datetime(2026, 5, 1, tzinfo=UTC)) == '"2026-05-01T00:00:00+00:00"'
    assert provider.dumps(date(2026, 5, 1)) == '"2026-05-01"'
    with pytest.raises(TypeError, match="time zone"):
        provider.dumps(datetime(2026, 5, 1))  # noqa: DTZ001, RUF100


def test_half_a_surrogate_pair_in_an_answer_breaks_nothing(provider: JSONProvider) -> None:
    assert provider.dumps("\ud800").encode("utf-8") == b'"\\ud800"'
