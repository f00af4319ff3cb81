"""A run's output goes to its run, bounded."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from app.ledger import capture
from app.logging_setup import configure_logging


@contextmanager
def captured() -> Iterator[capture.RunLog]:
    """In the test's own body: pytest puts another standard output in place for each of its phases."""
    capture.install()
    try:
        with capture.captured() as log:
            yield log
    finally:
        capture.uninstall()


@pytest.mark.parametrize("level", ["DEBUG", "WARNING"])
def test_prints_and_log_records_are_kept_whatever_the_process_prints(level: str) -> None:
    configure_logging("test", level)
    with captured() as log:
        print("printed")
        logging.getLogger("task").info("logged %d", 1)
        structlog.get_logger("task").info("structured", key="value")
    assert "printed\n" in log.text()
    assert "INFO task: logged 1" in log.text()
    assert "structured key=value" in log.text()


def test_other_threads_keep_their_own() -> None:
    capture.install()
    barrier = threading.Barrier(2)
    texts: dict[str, str] = {}

    def run(name: str) -> None:
        with capture.captured() as log:
            barrier.wait()
            print(name)
            barrier.wait()
        texts[name] = log.text()

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    capture.uninstall()
    assert texts == {"a": "a\n", "b": "b\n"}


@pytest.mark.parametrize("line", ["x" * 79, "日志" * 20])
def test_the_beginning_and_the_end_of_much_output_are_kept(line: str) -> None:
    with captured() as log:
        print("first line")
        for _ in range(5000):
            print(line)
        print("last line")
    text = log.text()
    assert text.startswith("first line\n")
    assert text.endswith("last line\n")
    assert "bytes left out" in text
    assert len(text.encode()) <= capture.LOG_LIMIT


def test_outside_a_run_prints_go_where_they_went() -> None:
    before = sys.stdout
    capture.install()
    assert sys.stdout is not before
    capture.uninstall()
    assert sys.stdout is before


def test_a_log_call_that_does_not_fit_its_arguments_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # standard error would be told
    monkeypatch.setattr(logging.getLogger(), "handlers", [capture._handler])  # pytest's own raises on purpose
    with capture.captured() as log:
        logging.getLogger("task").warning("%d instances", "no number")
        logging.getLogger("task").warning("goes on")
    assert "goes on" in log.text()
