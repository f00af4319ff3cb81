"""What scripts/doctor.sh finds in the data of the one container: stores, default jobs, drop-in modules, the volume.

The tests share a stack, and each leaves it sound: a finding goes again once that is done which its command or its page
says. The last one leaves it stopped and moved.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness.doctor import doctor, findings, found_by, wait_until_found, wait_until_gone
from e2e.harness.overlay import overlaid_stack
from e2e.harness.postgres_server import PASSWORD, USER, postgres_server
from e2e.harness.scripts import run_on
from e2e.harness.sqlite_lock import JOB_STORE
from e2e.harness.stack import ROOT, SERVICE, Stack
from e2e.harness.waiting import wait_until

NEVER = {"trigger_type": "date", "run_date": "2199-01-01T00:00:00Z"}
#: Where the container sees the folder that the outside log lies in.
OUTSIDE = "/oracle"
#: The default jobs and the drop-in tasks from a folder of the test's own, in which it makes mistakes.
OVERLAY = f"""
services:
  whalefall:
    environment: {{TASKS_DIR: {OUTSIDE}/tasks, SCHEDULER_TASKS_FILE: {OUTSIDE}/scheduler_tasks.yaml}}
"""
SAME_VOLUME = "volumes: {{userdata: {{name: {volume}, external: true}}}}\n"

#: Runs in the container: STATEMENT; on the job store.
EXECUTE = f"""
import sqlite3, sys
store = sqlite3.connect("{JOB_STORE}", timeout=20, isolation_level=None)
store.execute(sys.argv[1])
"""
#: Runs in the container: a job as an older app's own APScheduler stored it.
STORE_AS_OLD_APPS_DID = f"""
import sys, types
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
scheduler = BackgroundScheduler(jobstores={{"default": SQLAlchemyJobStore(url="sqlite:///{JOB_STORE}")}})
sys.modules["old_app"] = old_app = types.ModuleType("old_app")
old_app.oracle_fire = lambda: None
scheduler.start(paused=True)
scheduler.add_job("old_app:oracle_fire", "interval", hours=7, id="of-the-old-app")
scheduler.shutdown()
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    def lay_out(stack: Stack) -> None:
        shutil.copytree(ROOT / "e2e/tasks", stack.oracle_folder / "tasks")
        shutil.copy(ROOT / "app/config/scheduler_tasks.yaml", stack.oracle_folder)

    with overlaid_stack(tmp_path_factory.mktemp("data"), "data", OVERLAY, prepare=lay_out) as stack:
        yield stack


def test_a_container_that_has_just_begun(one: Stack) -> None:
    one.container().restart()
    found = found_by(doctor(one, "--json"), but=())
    assert found["container-starting"]["what"] == f"{one.name}-{SERVICE}-1 is still starting"
    wait_until(
        "it to be no news any more",
        lambda: "container-starting" not in found_by(doctor(one, "--json"), but=()),
        within=60,
    )
    one.wait_until_ready()


def test_a_drop_in_module_that_cannot_be_loaded(one: Stack) -> None:
    module = one.oracle_folder / "tasks" / "broken.py"
    module.write_text("import nothing_of_this_name\n")
    assert "nothing_of_this_name" in findings(one)["task-module"]["what"]
    module.unlink()
    assert findings(one) == {}


def test_a_mistake_in_the_file_of_default_jobs(one: Stack) -> None:
    """Found while all still runs, and once the container starts over and over for it; the command works in both."""
    file = one.oracle_folder / "scheduler_tasks.yaml"
    before = file.read_text()
    file.write_text("default_tasks: nonsense\n")
    found = findings(one)["defaults-invalid"]
    assert f"{OUTSIDE}/scheduler_tasks.yaml" in found["what"]
    assert f"{OUTSIDE}/scheduler_tasks.yaml" in one.execute(*found["command"].split()[4:])

    one.container().restart()
    beside = wait_until(
        "the doctor to look from beside",
        lambda: findings(one)["defaults-invalid"]["command"].removeprefix("docker compose ").split(),
        lambda command: command[0] == "run",
        within=90,
    )
    assert f"{OUTSIDE}/scheduler_tasks.yaml" in one.compose(*beside)

    file.write_text(before)
    one.compose("up", "--detach", "--no-build", "--force-recreate")
    one.wait_until_ready()
    assert findings(one) == {}


def test_a_store_that_somebody_emptied(one: Stack) -> None:
    """Its command leads to an export or a backup; the start that the page names brings the default jobs back."""
    run_on(one, "backup_jobstore.sh")
    one.execute("python3", "-c", EXECUTE, "DELETE FROM jobs")
    found = findings(one)["store-without-jobs"]
    assert "5 of 5 default jobs are missing: " in found["what"]
    one.container().restart()
    one.wait_until_ready()
    one.execute("flask", "jobs", "wait-defaults")
    assert findings(one) == {}


def test_a_scheduler_that_was_killed_in_a_run(one: Stack) -> None:
    client = one.bearer()
    client.create_job("long", "oracle_sleep", NEVER, kwargs={"seconds": 300})
    client.run_now("long")
    wait_until("its start", lambda: one.logged("long"), within=20)
    one.signal(signal.SIGKILL, "scheduler", "worker")
    found = wait_until_found(one, "runs-lost", within=60)
    assert found["what"] == "in the last day: long (1 lost)"
    assert "lost" in one.execute(*found["command"].split()[4:])
    one.wait_until_ready()


def test_jobs_of_an_older_app(one: Stack) -> None:
    one.execute("python3", "-c", STORE_AS_OLD_APPS_DID)
    found = findings(one)["legacy-jobs"]
    assert found["severity"] == "note"
    script, *options = found["command"].removeprefix("scripts/").split()
    assert "of-the-old-app" in run_on(one, script, *options).stdout
    one.execute("python3", "-c", EXECUTE, "DROP TABLE apscheduler_jobs")
    assert "legacy-jobs" not in findings(one)


def test_a_store_that_a_newer_release_wrote(one: Stack) -> None:
    """As a migration of that release leaves it which this one cannot use."""
    version = one.execute("python3", "-c", "from app.db.migrate import HEADS; print(HEADS['jobstore'])").strip()
    one.execute("python3", "-c", EXECUTE, "UPDATE jobstore_schema_version SET version_num = '9999'")
    one.execute("python3", "-c", EXECUTE, "UPDATE jobstore_schema_compatibility SET usable_from = '9998'")
    found = findings(one)["store-newer"]
    assert found["what"] == f"the job store is at schema 9999, this release knows {version}"
    assert found["command"] == "scripts/upgrade.sh VERSION"
    one.execute("python3", "-c", EXECUTE, f"UPDATE jobstore_schema_version SET version_num = '{version}'")
    assert "store-newer" not in findings(one)


def test_a_volume_that_another_user_owns(one: Stack) -> None:
    """As a copy by root leaves it."""
    give_to(one, "0")
    try:
        found = findings(one)["volume-read-only"]
        assert found["what"] == "/app/userdata cannot be written to: Permission denied"
        assert found["command"] == f"docker volume inspect {one.name}_userdata"
    finally:
        give_to(one, "10001")
    assert "volume-read-only" not in findings(one)


def give_to(stack: Stack, user: str) -> None:
    volume = {f"{stack.name}_userdata": {"bind": "/volume", "mode": "rw"}}
    stack.docker.containers.run(
        stack.container().image.id, ["chown", f"{user}:{user}", "/volume"], user="0", volumes=volume, remove=True
    )


def test_a_second_stack_on_the_volume_with_another_store(one: Stack, tmp_path: Path) -> None:
    """The second one does not start, and says why; so does the doctor, asked about it."""
    volume = f"{one.name}_userdata"
    settings = {"JOBSTORE_URL": "sqlite:////app/userdata/second.db"}
    overlay = SAME_VOLUME.format(volume=volume)
    with overlaid_stack(tmp_path, "second", overlay, settings, may_never_be_ready=True) as second:
        found = found_by(doctor(second, "--json"), but=())
        assert (
            "another one on the same volume is alive and uses scheduler.db in userdata" in found["two-stores"]["what"]
        )
        assert one.name in found["other-stack"]["what"].split(": ")[1].split()
        assert second.name in found_by(doctor(one, "--json"), but=())["other-stack"]["what"]
        one.compose("stop", timeout=120)
        wait_until_gone(second, "two-stores")
        second.compose("stop", timeout=120)
    one.up()
    one.wait_until_ready()
    wait_until("the stack to be as it was", lambda: set(findings(one)) <= {"runs-lost"}, within=60)


def test_files_that_were_moved_to_postgresql(one: Stack) -> None:
    one.compose("stop", timeout=120)
    with postgres_server() as server:
        network = one.docker.networks.get(f"{one.name}_default")
        network.connect(server.container, aliases=["elsewhere"])
        try:
            url = f"postgresql+psycopg://{USER}:{PASSWORD}@elsewhere/whalefall"
            options = ["--env", f"JOBSTORE_URL={url}", "--env", f"DATABASE_URL={url}"]
            in_app = ["run", "--rm", "-T", "--no-deps", *options, SERVICE]
            one.compose(*in_app, "flask", "jobs", "move-to-postgres")
        finally:
            network.disconnect(server.container)
    found = findings(one)["store-moved"]
    assert "scheduler.db was moved to PostgreSQL" in found["what"]
    assert PASSWORD not in found["what"]
    assert found["command"] == "scripts/up.sh --shape ha"
    # The page's way back.
    one.compose("run", "--rm", "-T", "--no-deps", SERVICE, "rm", "userdata/moved_to_postgres.json")
    assert "store-moved" not in findings(one)
