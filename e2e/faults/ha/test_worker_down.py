"""A worker, or a child of one, dies, freezes or is told to stop in the middle of a long run."""

from __future__ import annotations

import signal
import time

import pytest
from docker.models.containers import Container

from e2e.harness.faults import DATABASE_SERVICE, kill_and_start, node_of, paused, wait_until_node
from e2e.harness.fleet import WORKER_SERVICE, FleetRun, run_on_fleet
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

#: After a death that the lock file proves.
LOST_WITHIN_S = 5.0


@pytest.fixture(autouse=True)
def _two_workers(ha_stack: Stack) -> None:
    for container in ha_stack.containers_of(WORKER_SERVICE):
        wait_until_node(ha_stack, container)


def seconds_until_lost(run: FleetRun) -> float:
    began = time.monotonic()
    row = run.ended(within=30)
    assert row["outcome"] == "lost", row
    return time.monotonic() - began


@pytest.mark.timeout(120)
@pytest.mark.parametrize("who", ["the child", "the container"])
def test_killed_in_a_long_run(ha_stack: Stack, who: str) -> None:
    """It is `lost`, and runs again once where its job says so."""
    plain = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 30})
    worker = plain.worker()
    if who == "the child":
        plain.signal_child(signal.SIGKILL)
    else:
        kill_and_start(worker)
    assert seconds_until_lost(plain) <= LOST_WITHIN_S
    assert len(plain.rows()) == 1

    again = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 5}, retry_on_loss=True)
    worker = again.worker()
    if who == "the child":
        again.signal_child(signal.SIGKILL)
    else:
        kill_and_start(worker)
    assert seconds_until_lost(again) <= LOST_WITHIN_S
    second = wait_until("a second attempt that ends", again.rows, lambda rows: _ended(rows, 2), within=40)[1]
    assert second["outcome"] == "success"
    assert [trace["attempt"] for trace in again.traces() if trace["event"] == "start"] == [1, 2]


@pytest.mark.timeout(120)
def test_frozen_worker_starts_nothing_stale(ha_stack: Stack) -> None:
    """The others take what it would have taken; awake again, it finds its doors shut."""
    frozen, other = ha_stack.containers_of(WORKER_SERVICE)
    with paused(frozen):
        runs = [run_on_fleet(ha_stack) for _ in range(6)]
        for run in runs:
            assert run.ended(within=15)["node"] == node_of(other)
    wait_until_node(ha_stack, frozen)
    last = [run_on_fleet(ha_stack) for _ in range(6)]
    for run in [*runs, *last]:
        assert run.ended()["outcome"] == "success"
        assert len(run.traces()) == 1


@pytest.mark.timeout(120)
def test_the_end_of_a_run_waits_for_the_database(ha_stack: Stack) -> None:
    run = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 3})
    run.begun()
    database = ha_stack.container(DATABASE_SERVICE)
    database.kill()
    try:
        wait_until("the task is over", run.traces, lambda traces: traces[-1]["event"] == "end", within=15)
    finally:
        database.start()
    ha_stack.wait_until_ready()
    row = run.ended(within=30)
    assert (row["outcome"], row["reason"]) == ("success", None), "never presumed lost"


@pytest.mark.timeout(120)
def test_sigterm_drains(ha_stack: Stack) -> None:
    run = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 6})
    worker = run.worker()
    worker.stop(timeout=60)
    try:
        assert run.row()["outcome"] == "success"
        assert _exit_status(worker) == 0
        assert run_on_fleet(ha_stack).ended()["outcome"] == "success", "the other one goes on"
    finally:
        worker.start()


def _ended(rows: list[dict[str, object]], number: int) -> bool:
    return len(rows) == number and rows[-1]["finished_at"] is not None


def _exit_status(container: Container) -> int:
    container.reload()
    return int(container.attrs["State"]["ExitCode"])
