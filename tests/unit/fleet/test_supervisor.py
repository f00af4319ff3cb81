"""What becomes of the runs of a worker's children: each in a forked process, on a real store."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from app.db.engines import read_transaction
from app.fleet.board import State
from app.fleet.health import problems
from app.fleet.supervisor import Supervisor
from app.ledger.nodes import Node, list_nodes
from tests.unit.fleet.conftest import WORKER, Fleet, wait_until

pytestmark = pytest.mark.unit


def node_of(fleet: Fleet) -> Node:
    with read_transaction(fleet.engine) as connection:
        return next(node for node in list_nodes(connection) if node.node_id == WORKER)


def test_the_worker_is_one_node_and_tells_what_it_runs(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow")
    child = fleet.fork(run_id)
    wait_until(lambda: node_of(fleet).stats["running_count"] == 1, "a node that tells of its run")
    node = node_of(fleet)
    assert (node.kind, node.name, node.state) == ("worker", "w1", "running")
    assert node.stats["running"] == [{"run_id": run_id, "job_id": fleet.run(run_id)["job_id"]}]
    assert node.stats["free"] == {"celery": 1}
    assert problems("w1") == []
    child.kill()


def test_a_killed_child_leaves_a_lost_run_at_once(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow")
    child = fleet.fork(run_id)
    fleet.wait_for(run_id, "running")
    child.kill()
    row = fleet.wait_for(run_id, "lost")
    assert row["reason"] == "the process that ran it died"
    assert len(fleet.runs_of(row["job_id"])) == 1
    wait_until(lambda: not fleet.board.taken(), "a place that is free again")


def test_a_lost_run_gets_its_next_attempt_where_its_job_says_so(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow", retry_on_loss=True)
    child = fleet.fork(run_id)
    fleet.wait_for(run_id, "running")
    child.kill()
    row = fleet.wait_for(run_id, "lost")
    again = fleet.runs_of(row["job_id"])[1]
    assert (again["outcome"], again["attempt"], again["first_run_id"]) == ("pending", 2, run_id)
    assert again["owner"] == "", "any scheduler may carry it on; the worker carries nothing"


def test_the_place_of_a_dead_child_refuses_its_run_until_the_end_is_on_record(fleet: Fleet) -> None:
    run_id = fleet.pending("slow")
    child = fleet.fork(run_id)
    fleet.wait_for(run_id, "running")
    child.kill()
    child.join()
    # The ledger would open its door to this worker again; nobody has called the run lost yet.
    second = fleet.fork(run_id)
    second.join(timeout=10)
    assert second.exitcode == 0, "it must turn the message away, not run the task"
    assert fleet.run(run_id)["outcome"] == "running"


def test_a_time_limit_kills_the_child(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow", time_limit=1)
    child = fleet.fork(run_id)
    row = fleet.wait_for(run_id, "failed")
    assert row["error"] == "it reached its time limit of 1 s; its process was killed"
    child.join(timeout=10)
    assert child.exitcode == -signal.SIGKILL


def test_a_soft_time_limit_is_raised_in_the_task(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow", soft_time_limit=1)
    child = fleet.fork(run_id)
    assert fleet.wait_for(run_id, "failed")["error"] == "it reached its soft time limit of 1 s"
    child.join(timeout=10)
    assert child.exitcode == 0


def test_a_cancelled_run_is_killed(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow", max_attempts=3, retry_on_loss=True)
    fleet.fork(run_id)
    fleet.wait_for(run_id, "running")
    fleet.cancel(run_id)
    row = fleet.wait_for(run_id, "cancelled")
    assert row["reason"] == "it was cancelled; its process was killed"
    assert len(fleet.runs_of(row["job_id"])) == 1, "what was cancelled is not tried again"


def test_a_child_that_has_moved_on_is_not_killed_for_the_run_before(fleet: Fleet, supervisor: Supervisor) -> None:
    """Between the look and the kill the child ended its run and began another."""
    run_id = fleet.pending("slow")
    child = fleet.fork(run_id)
    fleet.wait_for(run_id, "running")
    (seen,) = wait_until(
        lambda: [place for place in fleet.board.taken() if place.state == State.RUNNING], "a running place"
    )
    stale = type(seen)(**{**{name: getattr(seen, name) for name in seen.__slots__}, "run_id": "another"})
    supervisor._stop_child(stale, "hard")
    assert child.is_alive()
    assert fleet.run(run_id)["outcome"] == "running"
    assert "T" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0], "it goes on"
    child.kill()


def test_what_is_on_record_as_running_and_known_to_no_child_is_lost(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow")
    fleet.fork(run_id)
    fleet.wait_for(run_id, "running")
    for place in fleet.board.taken():
        os.kill(place.pid, signal.SIGSTOP)
        fleet.board.free(place.index)
    assert fleet.wait_for(run_id, "lost")["reason"] == "no process of its worker knows of it"


def test_a_place_that_was_given_up_is_cleared(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow")
    index = fleet.board.claim(run_id)
    assert index is not None
    fleet.board.give_up(index)
    wait_until(lambda: not fleet.board.taken(), "a place that is free again")
    assert fleet.run(run_id)["outcome"] == "pending", "its door had never opened"


def test_the_drain_ends_with_lost_runs_and_a_stopped_node(fleet: Fleet, supervisor: Supervisor) -> None:
    run_id = fleet.pending("slow")
    child = fleet.fork(run_id)
    fleet.wait_for(run_id, "running")
    supervisor.begin_stop(0.5)
    child.join(timeout=10)
    supervisor.stop()
    row = fleet.run(run_id)
    assert (row["outcome"], row["reason"]) == ("lost", "its node was stopped before it ended")
    assert node_of(fleet).state == "stopped"
