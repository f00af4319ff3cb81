"""scripts/import_legacy_jobstore.sh: an older app's store is taken over, and what its pickles ask for never happens."""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.scripts import environment_of, run_on, run_script
from e2e.harness.stack import Stack

SHANGHAI = ZoneInfo("Asia/Shanghai")
NIGHTLY = CronTrigger(hour=2, minute=45, timezone=SHANGHAI)
SENTINEL = "/oracle/executed-by-a-pickle"


def state(func: str, trigger: Any, **changes: Any) -> bytes:
    """A row as APScheduler 3 pickles it."""
    values = {
        **{"version": 1, "id": "x", "func": func, "trigger": trigger, "executor": "default", "args": (), "kwargs": {}},
        **{"name": "old", "misfire_grace_time": 30, "coalesce": True, "max_instances": 1, "next_run_time": None},
    }
    return pickle.dumps(values | changes)


@pytest.fixture
def old_store(tmp_path: Path) -> Iterator[Path]:
    """A store whose newest rows are in its -wal, as an app that was killed leaves it; readable for its owner alone."""
    path = tmp_path / "old app's store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE apscheduler_jobs"
            " (id VARCHAR(191) PRIMARY KEY, next_run_time FLOAT(25), job_state BLOB NOT NULL)"
        )
        rows = [
            ("sync_accounts", None, state("old.tasks:sync_accounts", NIGHTLY)),
            ("old-sleep", 4e9, state("old.tasks:oracle_sleep", IntervalTrigger(hours=7), args=(0.5,))),
            ("old-renamed", 4e9, state("old.tasks:fire_away", NIGHTLY)),
            ("old-unknown", 4e9, state("old.tasks:nobody_knows", NIGHTLY)),
            ("old-hostile", 4e9, f"cos\nsystem\n(Vtouch {SENTINEL}\ntR.".encode()),
        ]
        connection.executemany("INSERT INTO apscheduler_jobs VALUES (?, ?, ?)", rows)
        connection.commit()
        path.chmod(0o600)
        yield path


@pytest.fixture
def _as_it_was(api: Client) -> Iterator[None]:
    before = api.job("sync_accounts")["trigger_spec"]
    yield
    fields = {name: value for name, value in before.items() if name != "type"}
    api.data("PUT", f"{SCHEDULER}/jobs/sync_accounts", json={"trigger_type": before["type"], **fields})
    api.data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/resume")
    for job in api.jobs():
        if job["id"].startswith("old-"):
            api.delete_job(job["id"])


@pytest.mark.usefixtures("_as_it_was")
def test_take_over(stack: Stack, api: Client, old_store: Path) -> None:
    options = [str(old_store), "--map", "fire_away=oracle_fire"]
    api.data("POST", f"{SCHEDULER}/jobs/actions/reload")  # nothing was changed here by hand
    before = api.jobs()
    asked = run_script("import_legacy_jobstore.sh", *options, environment=environment_of(stack))
    assert asked.code == 1  # without a terminal there is nobody to ask
    assert "--yes" in asked.stderr
    planned = run_on(stack, "import_legacy_jobstore.sh", *options, "--dry-run").stdout
    assert "would be changed: sync_accounts (task sync_accounts, At 02:45, every day, paused)" in planned
    assert api.jobs() == before

    done = json.loads(run_on(stack, "import_legacy_jobstore.sh", *options, "--yes", "--json").stdout)
    assert {job["id"]: job["action"] for job in done["jobs"]} == {
        "sync_accounts": "change",
        "old-sleep": "add",
        "old-renamed": "add",
    }
    reasons = {job["id"]: job["reason"] for job in done["not_taken"]}
    assert "no task here stands for its function old.tasks:nobody_knows" in reasons["old-unknown"]
    assert "os.system" in reasons["old-hostile"]
    assert not (stack.oracle_folder / Path(SENTINEL).name).exists()

    changed = api.job("sync_accounts")
    assert (changed["trigger_args"]["hour"], changed["trigger_args"]["minute"]) == ("2", "45")
    assert changed["is_paused"]
    assert api.job("old-sleep")["kwargs"] == {"seconds": 0.5}
    assert api.job("old-renamed")["task_name"] == "oracle_fire"

    again = json.loads(run_on(stack, "import_legacy_jobstore.sh", *options, "--yes", "--json").stdout)
    assert {job["action"] for job in again["jobs"]} == {"unchanged"}


def test_what_is_no_store_changes_nothing(stack: Stack, api: Client, tmp_path: Path) -> None:
    before = api.jobs()
    file = tmp_path / "no store"
    file.write_bytes(b"SQLite format 3\0 and then nothing of the kind" * 100)
    for arguments, part in (([str(file)], "no SQLite database"), (["--from-store"], "holds no table apscheduler_jobs")):
        refused = run_script("import_legacy_jobstore.sh", *arguments, "--yes", environment=environment_of(stack))
        assert (refused.code, refused.stdout) == (1, ""), refused
        assert part in refused.stderr
    assert api.jobs() == before
