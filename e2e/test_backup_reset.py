"""Backup and reset on a working stack: nothing that the outside log saw is lost, and what was changed comes back."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.oracle import FINAL, STARTED
from e2e.harness.scripts import environment_of, run_on, run_script
from e2e.harness.stack import SERVICE, Stack
from e2e.harness.waiting import wait_until

BUILTIN = {
    "sync_accounts",
    "collect_database_sizes",
    "calculate_database_size_aggregations",
    "backup_jobstore",
    "purge_run_history",
}
STORE = "/app/userdata/scheduler.db"

#: Runs in the container: every run of a job store file, by id.
READ_RUNS = """
import json, sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
print(json.dumps(dict(connection.execute("SELECT run_id, outcome FROM runs"))))
"""

#: Overwrites some pages in the middle of a file, as a failing disk would; prints the sha256 of what is left.
SPOIL = """
import hashlib, pathlib, sys
file = pathlib.Path(sys.argv[1])
content = bytearray(file.read_bytes())
if sys.argv[2] == "middle":
    start = len(content) // 2 // 4096 * 4096
    content[start : start + 4 * 4096] = b"\\xaa" * (4 * 4096)
else:
    content = b"this is no database at all"
file.write_bytes(content)
print(hashlib.sha256(content).hexdigest())
"""

HASH = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"

#: Keeps a job store open, as a second container that shares the volume by mistake does.
HOLD_OPEN = f"""
import sqlite3, time
connection = sqlite3.connect("{STORE}")
connection.execute("SELECT count(*) FROM runs").fetchone()
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture
def stack(private_stack: Callable[..., Stack]) -> Stack:
    return private_stack()


def runs_in(stack: Stack, file: str = STORE) -> dict[str, str]:
    """The outcome of every run in a job store file of the stack."""
    found: dict[str, str] = json.loads(stack.execute("python3", "-c", READ_RUNS, file))
    return found


def fires_every_second(stack: Stack, count: int) -> list[str]:
    """Own jobs that fire every second until they are deleted."""
    client = stack.bearer()
    ids = [f"load_{number}" for number in range(count)]
    for job_id in ids:
        client.create_job(job_id, "oracle_fire", {"trigger_type": "interval", "seconds": 1})
    wait_until("the first fires", stack.starts, lambda starts: len(starts) >= 2 * count, within=30)
    return ids


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


def change_what_the_api_can(stack: Stack) -> dict[str, Any]:
    """A trigger, a pause, a switch and two own jobs; what `changed` must say again after the export is applied."""
    client = stack.bearer()
    client.data(
        "PUT",
        "/api/v1/scheduler/jobs/sync_accounts",
        json={"trigger_type": "cron", "cron_expression": "15 2 * * mon"},
    )
    client.data("POST", "/api/v1/scheduler/jobs/collect_database_sizes/actions/pause")
    client.data("POST", "/api/v1/scheduler/jobs/purge_run_history/action", json={"action": "disable"})
    client.create_job(
        "weekly_report", "oracle_fire", {"trigger_type": "cron", "cron_expression": "0 8 * * 1"}, name="周报"
    )
    return changed(stack)


def changed(stack: Stack) -> dict[str, Any]:
    names = ("name", "trigger_spec", "is_paused", "is_enabled", "kwargs", "max_instances")
    return {
        job["id"]: {name: job[name] for name in names}
        for job in stack.bearer().jobs()
        if not job["id"].startswith("load_")
    }


def test_backups_under_load_hold_every_run_up_to_their_moment(stack: Stack, tmp_path: Path) -> None:
    ids = fires_every_second(stack, 20)
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


def test_reset_keeps_the_history_and_the_export_brings_the_changes_back(stack: Stack) -> None:
    at_first = changed(stack)
    wanted = change_what_the_api_can(stack)
    fires_every_second(stack, 5)
    stack.bearer().run_now("purge_run_history")
    long_run = stack.bearer().create_job(
        "long", "oracle_sleep", {"trigger_type": "interval", "days": 1}, kwargs={"seconds": 3}
    )
    stack.bearer().run_now(long_run["id"])

    planned = run_on(stack, "reset_jobstore.sh", "--dry-run")
    assert "Nothing was changed." in planned.stdout
    assert changed(stack).keys() == {*wanted, "long"}

    before = {run_id: outcome for run_id, outcome in runs_in(stack).items() if outcome in FINAL}
    reset = run_on(stack, "reset_jobstore.sh", "--yes")
    assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN
    assert changed(stack) == at_first
    progress = [line for line in reset.stderr.splitlines() if re.match(r"\[ *\d+s\] ", line)]
    assert len(progress) >= 7, reset.stderr
    after = runs_in(stack)
    seen = stack.starts()
    assert {after.get(start.run_id) for start in seen} <= STARTED, "a run that was started is not on record"
    assert len({start.run_id for start in seen}) == len(seen), "a run was started twice"
    assert not set(after.values()) & {"pending", "running"}
    assert after.items() >= before.items()
    assert [row["kind"] for row in stack.bearer().history("purge_run_history")] == ["manual"]
    assert "does not keep running" not in reset.stderr

    # What the script says is what an operator does.
    command = reset.stdout.strip().splitlines()[-1].split()
    assert command[:4] == ["docker", "compose", "exec", SERVICE]
    stack.execute(*command[4:])
    there = changed(stack)
    assert there.pop("long")["kwargs"] == {"seconds": 3}
    assert there == wanted
    already = len(seen)
    wait_until("the own jobs fire again", stack.starts, lambda starts: len(starts) > already + 5, within=30)

    # Safe to run again: it exports what was brought back, and the history only grows.
    again = run_on(stack, "reset_jobstore.sh", "--yes")
    assert again.stdout != reset.stdout
    assert runs_in(stack).keys() >= after.keys()
    assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN


def test_nothing_is_moved_while_another_container_has_the_store_open(stack: Stack) -> None:
    before = changed(stack)
    other = stack.docker.containers.run(
        stack.container().image.id,
        ["python3", "-c", HOLD_OPEN],
        detach=True,
        volumes={f"{stack.name}_userdata": {"bind": "/app/userdata", "mode": "rw"}},
        labels={"com.docker.compose.project": stack.name},
    )
    try:
        wait_until("the other container has it open", lambda: b"open" in other.logs(), within=30)
        refused = run_script("reset_jobstore.sh", "--yes", environment=environment_of(stack))
        assert refused.code != 0
        assert "is open in another process" in refused.stderr
    finally:
        other.remove(force=True)
    stack.wait_until_ready()
    assert changed(stack) == before


@pytest.mark.parametrize("extent", ["middle", "all"])
def test_damaged_store_is_kept_and_a_fresh_one_started(stack: Stack, extent: str) -> None:
    """The start refuses the damaged file and keeps it; the reset keeps it too, and the stack works again."""
    fires_every_second(stack, 15)
    # So many that the middle of the file is not all there is of it.
    wait_until("some history", lambda: len(runs_in(stack)), lambda count: count > 250, within=60)
    if extent == "middle":
        run_on(stack, "backup_jobstore.sh")
    known = runs_in(stack)
    stack.compose("stop", timeout=120)
    hash_of_damaged = stack.compose(
        "run", "--rm", "-T", "--no-deps", SERVICE, "python3", "-c", SPOIL, STORE, extent
    ).strip()
    stack.compose("up", "--detach", "--no-build", "--pull", "never")
    wait_until(
        "the start is refused",
        lambda: stack.container().logs(since=int(time.time()) - 60),
        lambda log: b"amaged" in log or b"not a database" in log,
        within=90,
    )

    reset = run_on(stack, "reset_jobstore.sh", "--yes")
    stack.wait_until_ready()
    assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN
    assert "the job store is damaged" in reset.stderr
    aside = re.search(r"^old store: (\S+)$", reset.stdout, re.MULTILINE)
    assert aside is not None
    assert stack.execute("python3", "-c", HASH, f"{aside[1]}/scheduler.db").strip() == hash_of_damaged
    carried = runs_in(stack).keys() & known.keys()
    if extent == "middle":
        assert carried, "nothing of a file with both ends intact was carried over"
        assert "not carried over: " in reset.stderr
    else:
        assert not carried
        assert "the history was not carried over" in reset.stderr
