"""What a scheduler process sends to the outside, from its start to its stop: the real app, a real job, a receiver."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from app import create_app
from app.runtime import runtime_of
from app.scheduler import stop_scheduler
from app.services.scheduler.scheduler_actions_service import SchedulerActionsService
from app.services.scheduler.scheduler_job_write_service import SchedulerJobWriteService
from app.settings import Settings
from e2e.harness.receiver import Receiver, Reply
from e2e.harness.waiting import wait_until

from .conftest import Outbox

TASK = """
import time
from pathlib import Path

from app.tasks import task


@task("sour", description="Fails unless there is sugar")
def sour(sugar: str, seconds: float = 0.0):
    time.sleep(seconds)
    if not Path(sugar).exists():
        raise RuntimeError("gone sour")
"""


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path, receiver: Receiver) -> dict[str, str]:
    tasks_file = tmp_path / "tasks.yaml"
    tasks_file.write_text("default_tasks: []\n", encoding="utf-8")
    return {
        **environment,
        "SCHEDULER_TASKS_FILE": str(tasks_file),
        "DRAIN_SECONDS": "5",
        "ALERT_WEBHOOK_URL": receiver.url("/hook"),
        "SCHEDULER_PING_URL": receiver.url("/scheduler"),
    }


@pytest.fixture
def running(settings: Settings) -> Iterator[Flask]:
    settings.tasks_dir.mkdir(parents=True)
    (settings.tasks_dir / "sour.py").write_text(TASK, encoding="utf-8")
    yield create_app(settings)
    stop_scheduler()


@pytest.fixture
def sugar(tmp_path: Path) -> Path:
    return tmp_path / "sugar"


def start_job(app: Flask, receiver: Receiver, sugar: Path, seconds: float = 0.0) -> str:
    """Makes the job and runs it: the run's id."""
    SchedulerJobWriteService(runtime_of(app)).upsert(
        {
            "id": "job",
            "name": "Sour",
            "task": "sour",
            "kwargs": {"sugar": str(sugar), "seconds": seconds},
            "ping_url": receiver.url("/ping"),
            "trigger_type": "cron",
            "hour": 1,
        }
    )
    return SchedulerActionsService(runtime_of(app)).start_run("job").run_id


def test_a_failure_a_recovery_and_their_pings_arrive(running: Flask, receiver: Receiver, sugar: Path) -> None:
    first = start_job(running, receiver, sugar)
    wait_until("an alert", lambda: receiver.to("/hook"), within=20)
    sugar.touch()
    second = SchedulerActionsService(runtime_of(running)).start_run("job").run_id
    wait_until("the recovery", lambda: len(receiver.to("/hook")) == 2, within=20)

    failed, recovered = (got.json for got in receiver.to("/hook"))
    assert (failed["event"], failed["run_id"], failed["job_name"]) == ("run.failed", first, "Sour")
    assert "gone sour" in failed["error"]
    assert (recovered["event"], recovered["run_id"]) == ("job.recovered", second)
    assert len({failed["id"], recovered["id"]}) == 2

    wait_until("the pings", lambda: receiver.to("/ping"), within=20)
    pings = [got for got in receiver.received if got.path.startswith("/ping")]
    assert [got.path for got in pings] == ["/ping/start", "/ping/fail", "/ping/start", "/ping"]
    rids = [got.query["rid"][0].replace("-", "") for got in pings]
    assert rids == [first, first, second, second]
    assert pings[1].body.endswith(b"RuntimeError: gone sour\n")
    wait_until("the scheduler's own ping", lambda: receiver.to("/scheduler"), within=20)


def test_a_stop_sends_what_its_last_runs_left(running: Flask, receiver: Receiver, sugar: Path) -> None:
    start_job(running, receiver, sugar, seconds=3.0)
    wait_until("the start's ping", lambda: receiver.to("/ping/start"), within=20)
    stop_scheduler()
    assert [got.json["event"] for got in receiver.to("/hook")] == ["run.failed"]
    assert [got.path for got in receiver.received if got.path.startswith("/ping")] == ["/ping/start", "/ping/fail"]


def test_a_hanging_receiver_holds_up_neither_the_loop_nor_the_stop(
    running: Flask, receiver: Receiver, sugar: Path
) -> None:
    receiver.reply = Reply(after_s=30)
    scheduler = runtime_of(running).scheduler
    assert scheduler is not None
    start_job(running, receiver, sugar)
    wait_until("requests that hang", lambda: receiver.to("/hook") and receiver.to("/ping/start"), within=20)
    assert scheduler.health().ready
    ended = threading.Thread(target=stop_scheduler)
    ended.start()
    ended.join(10)
    assert not ended.is_alive(), "3 s for requests that are out"
    kinds = [row["kind"] for row in Outbox(runtime_of(running).jobstore).rows()]
    assert sorted(kinds) == ["alert", "ping", "ping"], "for the next scheduler"


def test_nothing_is_imported_where_nothing_is_sent() -> None:
    program = "import sys; import app.scheduler; sys.exit('requests' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[3])
