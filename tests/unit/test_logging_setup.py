"""Logs: one line a record, a prefix to filter by, nothing that fakes a record."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from app.logging_setup import HANDLER_NAME, configure_logging

LINE = re.compile(
    r"^\[web\] \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (?P<level>[A-Z]+) +(?P<logger>\S+) (?P<text>.*)$"
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level = root.level
    target = io.StringIO()
    configure_logging("web", "INFO", target)
    yield target
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler.name == HANDLER_NAME]:
        root.removeHandler(handler)


def the_line(stream: io.StringIO) -> re.Match[str]:
    (line,) = stream.getvalue().splitlines()
    match = LINE.match(line)
    assert match, line
    return match


def test_both_ways_of_logging_look_the_same(stream: io.StringIO) -> None:
    structlog.get_logger("a.b").warning("job added", job="copy report", count=3)
    first = the_line(stream)
    assert (first["level"], first["logger"]) == ("WARNING", "a.b")
    assert first["text"] == "job added job='copy report' count=3"

    stream.truncate(0)
    stream.seek(0)
    logging.getLogger("a.b").warning("job %s added", "x", extra={"count": 3})
    assert the_line(stream)["text"] == "job x added count=3"


def test_the_request_id_is_in_every_record(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logging.getLogger("sqlalchemy.pool").error("lost")
    assert the_line(stream)["text"] == "lost request_id=r1"


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\x0b", "\u2028", "\x85"])
def test_a_value_cannot_fake_a_record(stream: io.StringIO, break_: str) -> None:
    structlog.get_logger("a").info(f"任务{break_}[web] fake", path=f"/x{break_}[web] fake")
    assert the_line(stream)["text"].startswith("任务\\")


def test_half_a_surrogate_pair_can_be_written(stream: io.StringIO) -> None:
    structlog.get_logger("a").info("x", path="\udcff")
    stream.getvalue().encode("utf-8")


def test_a_traceback_keeps_the_prefix(stream: io.StringIO) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        structlog.get_logger("a").exception("failed", job="x")
    lines = stream.getvalue().splitlines()
    assert LINE.match(lines[0])
    assert all(line.startswith("[web] | ") for line in lines[1:])
    assert lines[-1] == "[web] | second"


def test_other_handlers_get_plain_text(stream: io.StringIO) -> None:
    kept = io.StringIO()
    other = logging.StreamHandler(kept)
    logger = logging.getLogger("of.a.task")
    logger.addHandler(other)
    try:
        structlog.get_logger("of.a.task").info("100% copied", files=2)
    finally:
        logger.removeHandler(other)
    assert kept.getvalue() == "100% copied files=2\n"
    assert the_line(stream)["text"] == "100% copied files=2"


def test_the_level_filters(stream: io.StringIO) -> None:
    structlog.get_logger("a").debug("x")
    logging.getLogger("a").debug("x")
    assert stream.getvalue() == ""


def test_configuring_again_writes_no_record_twice(stream: io.StringIO) -> None:
    again = io.StringIO()
    configure_logging("scheduler", "INFO", again)
    logging.getLogger("a").info("x")
    assert stream.getvalue() == ""
    assert again.getvalue().count("\n") == 1
    assert again.getvalue().startswith("[scheduler] ")
