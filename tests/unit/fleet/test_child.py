"""A child of a worker: the door, the task, the end."""

from __future__ import annotations

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError

from app.db.jobstore_tables import run_logs
from app.ledger import failpoints
from tests.unit.fleet.conftest import SCHEDULER, WORKER, Fleet

pytestmark = pytest.mark.unit


def test_a_run_is_started_and_ended_on_record(fleet: Fleet) -> None:
    run_id = fleet.pending("quick")
    child = fleet.fork(run_id)
    row = fleet.wait_for(run_id, "success")
    assert (row["owner"], row["node"]) == (WORKER, "w1")
    with fleet.engine.connect() as connection:
        log = connection.execute(select(run_logs.c.log).where(run_logs.c.run_id == run_id)).scalar_one()
    assert "written by the task" in log
    child.join(timeout=10)
    assert fleet.board.taken() == []


def test_a_failure_is_on_record_and_leaves_the_next_attempt_to_any_scheduler(fleet: Fleet) -> None:
    run_id = fleet.pending("failing", max_attempts=2, retry_delay=30)
    fleet.fork(run_id)
    row = fleet.wait_for(run_id, "failed")
    assert row["error"] == "RuntimeError: on purpose"
    again = fleet.runs_of(row["job_id"])[1]
    assert (again["outcome"], again["owner"], again["attempt"]) == ("pending", "", 2)
    assert again["not_before"] > row["finished_at"]


@pytest.mark.parametrize(("owner", "epoch"), [("another", 1), (SCHEDULER, 2)])
def test_a_message_with_another_key_opens_nothing(fleet: Fleet, owner: str, epoch: int) -> None:
    run_id = fleet.pending("quick")
    fleet.worker._engine = fleet.engine
    fleet.worker.work_on(run_id, owner, epoch)
    assert fleet.run(run_id)["outcome"] == "pending"
    assert fleet.board.taken() == []


def test_a_late_message_opens_nothing(fleet: Fleet) -> None:
    run_id = fleet.pending("quick", misfire_grace_time=10)
    fleet.scheduled(run_id, late_s=60)
    fleet.worker._engine = fleet.engine
    fleet.worker.work_on(run_id, SCHEDULER, 1)
    assert fleet.run(run_id)["outcome"] == "missed"


def test_a_second_message_for_the_same_run_changes_nothing(fleet: Fleet) -> None:
    run_id = fleet.pending("failing")
    fleet.fork(run_id)
    ended = fleet.wait_for(run_id, "failed")
    fleet.fork(run_id).join(timeout=10)
    assert fleet.run(run_id) == ended


def test_start_and_end_are_tried_until_the_store_takes_them(fleet: Fleet) -> None:
    run_id = fleet.pending("quick")
    failures = {"UPDATE runs SET outcome": 3}

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "UPDATE runs" in statement and failures["UPDATE runs SET outcome"] > 0:
            failures["UPDATE runs SET outcome"] -= 1
            raise OperationalError(statement, None, Exception("database is locked"))

    event.listen(fleet.engine, "before_cursor_execute", fail)
    fleet.worker._engine = fleet.engine
    fleet.worker.work_on(run_id, SCHEDULER, 1)
    assert fleet.run(run_id)["outcome"] == "success"
    assert failures["UPDATE runs SET outcome"] == 0


@pytest.mark.parametrize("point", ["start.written", "start.committed", "finish.written", "finish.committed"])
def test_the_fail_points_lie_on_its_way(fleet: Fleet, point: str) -> None:
    run_id = fleet.pending("quick")
    failpoints.arm({point: ("exit", 1.0)})
    try:
        child = fleet.fork(run_id)
        child.join(timeout=20)
    finally:
        failpoints.arm({})
    assert child.exitcode == failpoints.EXIT_STATUS
    expected = {"start.written": "pending", "finish.committed": "success"}
    assert fleet.run(run_id)["outcome"] == expected.get(point, "running")
