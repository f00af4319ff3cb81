"""Logs: one line of JSON a record, whoever wrote it, and nothing that fakes a record."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from app.logging_setup import HANDLER_NAME, configure_logging, log_what_nobody_catches


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level = root.level
    target = io.StringIO()
    configure_logging("web", "INFO", target, node="n1")
    yield target
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler.name == HANDLER_NAME]:
        root.removeHandler(handler)


@pytest.fixture
def nobody_catches() -> Iterator[None]:
    process, thread = sys.excepthook, threading.excepthook
    logging.captureWarnings(False)  # an app that an earlier test built began it, and pytest has undone it since
    log_what_nobody_catches()
    yield
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = process, thread


def the_line(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    read = json.loads(line)
    assert isinstance(read, dict)
    return read


def test_both_ways_of_logging_look_the_same(stream: io.StringIO) -> None:
    structlog.get_logger("a.b").warning("job added", job="copy report", count=3)
    first = the_line(stream)
    assert list(first)[:5] == ["time", "level", "program", "node", "message"]
    del first["time"]
    assert first == {
        "level": "warning",
        "program": "web",
        "node": "n1",
        "message": "job added",
        "logger": "a.b",
        "job": "copy report",
        "count": 3,
    }

    stream.truncate(0)
    stream.seek(0)
    logging.getLogger("a.b").warning("%s added", "x", extra={"count": 3})
    second = the_line(stream)
    assert (second["message"], second["count"]) == ("x added", 3)


def test_ids_of_the_work_at_hand_are_in_every_record(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1", run_id="u1"):
        logging.getLogger("sqlalchemy.pool").error("lost")
    line = the_line(stream)
    assert (line["request_id"], line["run_id"]) == ("r1", "u1")


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
    assert (the_line(stream)["message"], the_line(stream)["files"]) == ("100% copied", 2)


def test_the_level_filters(stream: io.StringIO) -> None:
    structlog.get_logger("a").debug("x")
    logging.getLogger("a").debug("x")
    assert stream.getvalue() == ""


def test_configuring_again_writes_no_record_twice(stream: io.StringIO) -> None:
    again = io.StringIO()
    configure_logging("scheduler", "INFO", again, log_format="text")
    logging.getLogger("a").info("x")
    assert stream.getvalue() == ""
    assert again.getvalue().count("\n") == 1
    assert again.getvalue().startswith("[scheduler] ")


@pytest.mark.usefixtures("nobody_catches")
def test_what_nobody_catches_is_a_record(stream: io.StringIO) -> None:
    def fail() -> None:
        raise ValueError("first\nsecond")

    thread = threading.Thread(target=fail, name="doomed")
    thread.start()
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", UserWarning, stacklevel=1)
    try:
        fail()
    except ValueError:
        sys.excepthook(*sys.exc_info())
    ended, warned, process = (json.loads(line) for line in stream.getvalue().splitlines())
    assert ended["message"] == "thread doomed ends: ValueError"
    assert ended["exception"].endswith("ValueError: first\nsecond")
    assert "old ways" in warned["message"]
    assert (process["level"], process["message"]) == ("critical", "the process ends: ValueError")
