"""Backup on a working stack: nothing that the outside log saw is missing from it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from e2e.harness.every_second import start_load
from e2e.harness.scripts import run_on
from e2e.harness.stack import Stack


@pytest.fixture
def stack(private_stack: Callable[..., Stack]) -> Stack:
    return private_stack()


@contextmanager
def manual_runs(stack: Stack, job_id: str) -> Iterator[None]:
    """Manual runs, one after the other, while the body runs."""
    client, stop = stack.bearer(), threading.Event()

    def run() -> None:
        while not stop.wait(0.05):
            client.post(f"/api/v1/scheduler/jobs/{job_id}/actions/run")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_backups_under_load_hold_every_run_up_to_their_moment(stack: Stack, tmp_path: Path) -> None:
    ids = start_load(stack, 20)
    with manual_runs(stack, ids[0]):
        for number in range(5):
            made = run_on(stack, "backup_jobstore.sh", "--json", "--copy-to", str(tmp_path))
            manifest = json.loads(made.stdout)
            folder = tmp_path / Path(manifest["path"]).name
            assert json.loads((folder / "manifest.json").read_text())["stores"] == manifest["stores"]
            for store in manifest["stores"].values():
                assert hashlib.sha256((folder / store["file"]).read_bytes()).hexdigest() == store["sha256"]
            moment = datetime.fromisoformat(manifest["created_at"]).timestamp()
            with closing(sqlite3.connect(f"file:{folder}/scheduler.db?immutable=1", uri=True)) as copy:
                assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                held = {row[0] for row in copy.execute("SELECT run_id FROM runs")}
            seen = {start.run_id for start in stack.starts() if start.time < moment}
            assert seen, f"backup {number}: the outside log is empty"
            assert seen <= held, f"backup {number} lacks {len(seen - held)} of {len(seen)} runs"
            assert manifest["stores"]["jobstore"]["rows"]["runs"] == len(held)
            assert manifest["newest_run"]["run_id"] == max(held)


def test_a_stopped_stack_is_backed_up(stack: Stack) -> None:
    stack.compose("stop", timeout=120)
    try:
        path = run_on(stack, "backup_jobstore.sh").stdout.strip()
    finally:
        stack.compose("start")
        stack.wait_until_ready()
    stack.execute("flask", "jobs", "verify", path)
