"""How times, durations and counts are written."""

from __future__ import annotations

import pytest

from app.pages.formats import last_line, milliseconds, short_count


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "—"),
        (0.0, "0 ms"),
        (12.4, "12 ms"),
        (999.0, "999 ms"),
        (1240.0, "1.24 s"),
        (61_000.0, "1:01"),
        (3_599_900.0, "1:00:00"),
        (7_805_000.0, "2:10:05"),
    ],
)
def test_milliseconds(value: float | None, written: str) -> None:
    assert milliseconds(value) == written


def test_short_count_says_when_it_stopped_counting() -> None:
    assert short_count(200, 200) == "200"
    assert short_count(201, 200) == "200+"


def test_last_line_of_a_traceback_is_the_exception() -> None:
    assert last_line('Traceback:\n  File "a.py"\nValueError: no\n\n') == "ValueError: no"
    assert last_line("  \n") == ""
