"""The worker's health check."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.fleet import health
from app.fleet.health import SILENT_S, problems, signs_file, write_signs

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FOLDER", tmp_path)


def test_a_worker_that_never_began_is_not_well() -> None:
    assert problems("w1") == ["it has given no sign of life yet"]


@pytest.mark.parametrize(
    ("silent", "word"), [("turn", "supervisor"), ("store", "JOBSTORE_URL"), ("loop", "CELERY_BROKER_URL")]
)
def test_each_silence_is_named(silent: str, word: str) -> None:
    now = time.monotonic() + 100  # so that long ago is not before the machine began
    signs = {"turn": now, "store": now, "loop": now}
    write_signs("w1", **signs)
    assert problems("w1") == []
    write_signs("w1", **{**signs, silent: time.monotonic() - SILENT_S - 1})
    (problem,) = problems("w1")
    assert word in problem


def test_the_command_needs_no_library_and_tells_by_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # where it really looks
    name = f"test-{os.getpid()}"

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-m", "app.fleet.health", name],  # -S: without site-packages
            capture_output=True,
            text=True,
            check=False,
        )

    bad = check()
    assert (bad.returncode, bad.stderr) == (1, "the worker is not well: it has given no sign of life yet\n")
    now = time.monotonic()
    write_signs(name, turn=now, store=now, loop=now)
    try:
        assert check().returncode == 0
    finally:
        signs_file(name).unlink()
