"""This process's scheduler: default jobs at a start, a store of an older app, tasks in processes of their own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import text

from app import create_app
from app.db.engines import create_engine_for, write_transaction
from app.runtime import Runtime, runtime_of
from app.scheduler import OLD_STORE_TABLE, stop_scheduler
from app.services.scheduler.scheduler_actions_service import SchedulerActionsService
from app.services.scheduler.scheduler_job_write_service import SchedulerJobWriteService
from app.services.scheduler.scheduler_jobs_read_service import SchedulerJobsReadService
from app.services.scheduler.scheduler_runs_read_service import SchedulerRunsReadService
from app.settings import Settings

TASK = """
import os

from app.runtime import current_runtime
from app.tasks import task


@task("which_process", description="Tells the process and the app that it runs in")
def which_process(parent: int):
    print("child" if os.getppid() == parent else "same", current_runtime().scheduler)
"""
DEFAULTS = """\
default_tasks:
  - id: a
    task: purge_run_history
    trigger_type: cron
    trigger_params: {{hour: {hour}}}
  - id: b
    task: purge_run_history
    trigger_type: cron
    trigger_params: {{hour: 2}}
"""


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**environment, "SCHEDULER_TASKS_FILE": str(tmp_path / "tasks.yaml"), "DRAIN_SECONDS": "5"}


def started_and_stopped(settings: Settings) -> Runtime:
    """The runtime after a start and a stop."""
    app = create_app(settings)
    stop_scheduler()
    return runtime_of(app)


def test_a_start_keeps_what_the_api_changed_and_takes_what_the_file_changed(settings: Settings) -> None:
    settings.scheduler_tasks_file.write_text(DEFAULTS.format(hour=1), encoding="utf-8")
    runtime = started_and_stopped(settings)
    SchedulerActionsService(runtime).pause("b")
    own = {"id": "own", "task": "purge_run_history", "trigger_type": "cron", "hour": 5}
    SchedulerJobWriteService(runtime).upsert(own)

    only_a = DEFAULTS.format(hour=9).partition("  - id: b")[0]
    settings.scheduler_tasks_file.write_text(only_a, encoding="utf-8")
    jobs = {job.id: job for job in SchedulerJobsReadService(started_and_stopped(settings)).list_jobs()}
    assert jobs["a"].trigger_args["hour"] == "9", "the API had not changed it"
    assert jobs["b"].is_paused, "no longer in the file: stays until a reload"
    assert jobs["own"].trigger_args["hour"] == "5"


def test_an_older_apps_store_is_left_untouched_and_reported(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.scheduler_tasks_file.write_text(DEFAULTS.format(hour=1), encoding="utf-8")
    engine = create_engine_for(settings.jobstore_url)
    with write_transaction(engine) as connection:
        connection.execute(
            text(f"CREATE TABLE {OLD_STORE_TABLE} (id VARCHAR PRIMARY KEY, next_run_time FLOAT, job_state BLOB)")
        )
        connection.execute(text(f"INSERT INTO {OLD_STORE_TABLE} VALUES ('old', 1.0, x'80049500')"))
    started_and_stopped(settings)
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT * FROM {OLD_STORE_TABLE}")).all() == [("old", 1.0, b"\x80\x04\x95\x00")]
    engine.dispose()
    assert OLD_STORE_TABLE in capsys.readouterr().out


def test_the_executor_process_runs_tasks_in_a_process_with_an_app_of_its_own(settings: Settings) -> None:
    import os

    settings.scheduler_tasks_file.write_text(DEFAULTS.format(hour=1), encoding="utf-8")
    settings.tasks_dir.mkdir(parents=True)
    (settings.tasks_dir / "which.py").write_text(TASK, encoding="utf-8")
    runtime = runtime_of(create_app(settings))
    try:
        SchedulerJobWriteService(runtime).upsert(
            {
                "id": "mine",
                "task": "which_process",
                "kwargs": {"parent": os.getpid()},
                "executor": "process",
                "trigger_type": "cron",
                "hour": 1,
            }
        )
        asked = SchedulerActionsService(runtime).start_run("mine")
        deadline = time.monotonic() + 30
        while (run := SchedulerRunsReadService(runtime).get_run(asked.run_id)).finished_at is None:
            assert time.monotonic() < deadline, run
            time.sleep(0.05)
    finally:
        stop_scheduler()
    assert run.outcome == "success", run.error
    assert "child None" in run.log
