"""Runbooks of stores that are locked, full, damaged or empty, are reset or restored, followed in that situation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from operator import eq
from pathlib import Path

import pytest

from e2e.harness.checkout import READY
from e2e.harness.client import SCHEDULER
from e2e.harness.runbooks import COPY_REPORT, Operator
from e2e.harness.site import Site, site
from e2e.harness.small_volume import FILL, SMALL_VOLUME
from e2e.harness.sqlite_lock import APP_DATABASE, JOB_STORE
from e2e.harness.waiting import wait_until

DAILY = {"trigger_type": "cron", "cron_expression": "0 3 * * *"}
#: A person's shell in a transaction that nobody ended.
FORGOTTEN_TRANSACTION = """
import sqlite3, time
connection = sqlite3.connect("/app/userdata/scheduler.db", isolation_level=None, timeout=20)
connection.execute("BEGIN IMMEDIATE")
time.sleep(3600)
"""
SPOIL = """
import pathlib
file = pathlib.Path("/app/userdata/scheduler.db")
content = bytearray(file.read_bytes())
content[4096:] = bytes(len(content) - 4096)
file.write_bytes(content)
"""
#: Which jobs: LIKE this.
FORGET_JOBS = """
import sqlite3, sys
with sqlite3.connect("/app/userdata/scheduler.db", timeout=20) as connection:
    connection.execute("DELETE FROM jobs WHERE id LIKE ?", sys.argv[1:])
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The one container. Each page leaves it as it should be: healthy."""
    with site(tmp_path_factory.mktemp("runbooks"), "runbooks-stores", tasks={"copy_report": COPY_REPORT}) as made:
        yield made


@pytest.fixture
def operator(here: Site) -> Operator:
    return Operator(here)


def test_forgotten_transaction(here: Site, operator: Operator) -> None:
    here.compose("run", "--detach", "--no-deps", "whalefall", "python3", "-I", "-c", FORGOTTEN_TRANSACTION)
    wait_until("health to be red", lambda: here.status_of(READY), partial(eq, 503), within=60)
    done = operator.follow("database-is-locked")
    assert "BEGIN IMMEDIATE" in done.diagnosis, "the process that holds the lock was not found"


def test_store_without_jobs(here: Site, operator: Operator) -> None:
    here.bearer().create_job("weekly_report", "copy_report", DAILY)
    here.execute("flask", "jobs", "export")
    here.execute("python3", "-I", "-c", FORGET_JOBS, "%")
    operator.follow("jobstore-without-jobs")


def test_jobs_are_reset(here: Site, operator: Operator) -> None:
    here.bearer().data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/pause")
    done = operator.follow("reset-jobstore", "jobs")
    assert "sync_accounts" in done.diagnosis


def test_store_is_reset(here: Site, operator: Operator) -> None:
    here.bearer().data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/pause")
    operator.follow("reset-jobstore", "store")


class TestBackupAndRestore:
    """One after the other: a backup, the way back to it, and the way back from there."""

    def test_no_backup(self, here: Site, operator: Operator) -> None:
        here.bearer().create_job("report", "copy_report", DAILY)
        here.execute("sh", "-c", "rm -rf userdata/backups/*")
        operator.follow("backup-and-restore", "no backup")

    def test_an_older_state(self, here: Site, operator: Operator) -> None:
        """The job was deleted after the backup, for good."""
        here.execute("python3", "-I", "-c", FORGET_JOBS, "report")
        done = operator.follow("backup-and-restore", "an older state")
        assert "report" in done.verification

    def test_the_wrong_one(self, here: Site, operator: Operator) -> None:
        """The backup is from a time when the job was deleted."""
        here.bearer().delete_job("report")
        here.execute("flask", "jobs", "backup")
        here.bearer().data("POST", f"{SCHEDULER}/jobs/report/actions/restore")
        run_once(here, "restore_jobstore.sh", "latest", "--yes", "--catch-up=skip")
        operator.follow("backup-and-restore", "the wrong one")
        here.bearer().delete_job("report")


def run_once(here: Site, script: str, *arguments: str) -> None:
    done = here.run(f"scripts/{script}", *arguments, env={})
    assert done.returncode == 0, done.stderr


def test_damaged_store_with_a_backup(here: Site, operator: Operator) -> None:
    here.bearer().create_job("kept", "copy_report", DAILY)
    here.execute("flask", "jobs", "backup")
    spoil(here)
    operator.follow("jobstore-damaged", "with a backup")
    assert here.bearer().job("kept")["id"] == "kept"


def test_damaged_store_without_a_backup(here: Site, operator: Operator) -> None:
    spoil(here)
    operator.follow("jobstore-damaged", "without a backup")


def spoil(here: Site) -> None:
    here.compose("stop")
    here.beside("python3", "-I", "-c", SPOIL)
    here.start(ready=False)
    wait_until(
        "the start is refused", lambda: here.container().logs(tail=100), lambda found: b"damaged" in found, within=90
    )


def test_disk_full(tmp_path: Path) -> None:
    def lay_over(made: Site) -> None:
        (made.folder / "compose" / "small.yml").write_text(SMALL_VOLUME.format(mib=24))
        made.keep(COMPOSE_FILE="compose/docker-compose.prod.yml:compose/small.yml")

    with site(tmp_path / "small", "runbooks-full", prepare=lay_over) as small:
        aside = "/app/userdata/backups/aside-20260101T000000Z"
        small.execute("mkdir", "-p", aside)
        small.execute("python3", "-I", "-c", FILL, f"{aside}/scheduler.db", JOB_STORE, APP_DATABASE)
        wait_until("health to be red", lambda: small.status_of(READY), partial(eq, 503), within=60)
        done = Operator(small).follow("disk-full")
        assert "100%" in done.diagnosis
