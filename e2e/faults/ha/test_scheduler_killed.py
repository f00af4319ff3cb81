"""A scheduler is killed: the other goes on at once, and what ran in the dead one is lost, not forgotten."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from docker.models.containers import Container

from e2e.harness.client import Client
from e2e.harness.faults import kill_and_start, kill_master, node_of, wait_until_node
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["worker", "master", "container"])
def test_next_fire_is_on_time(ha_stack: Stack, probes: Probes, schedulers: list[Container], victim: str) -> None:
    client = ha_stack.bearer()
    job_id = f"in-flight-{time.time_ns()}"
    trigger = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
    client.create_job(job_id, "oracle_sleep", trigger, kwargs={"seconds": 60})
    with probes.watch("scheduler killed", f"SIGKILL to the {victim}, one of two schedulers", limit="3 s") as watch:
        client.run_now(job_id)
        running = wait_until("a run is in flight", lambda: row_of(client, job_id, "running"), within=10)
        (killed,) = [container for container in schedulers if node_of(container) == running["node"]]
        struck = watch.strike()
        if victim == "worker":
            ha_stack.signal(signal.SIGKILL, "scheduler", "worker", container=killed)
        elif victim == "master":
            kill_master(ha_stack, killed)
        else:
            kill_and_start(killed)
        # Killed or not: in the end it is a node again, by itself.
        wait_until_node(ha_stack, killed, since=struck)
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness()) <= LIMIT_S, watch.measurement
    ended = wait_until("the run in flight has ended", lambda: row_of(client, job_id, *FINAL), within=10)
    assert ended["outcome"] == "lost", ended
    client.delete_job(job_id)


def row_of(client: Client, job_id: str, *outcomes: str) -> dict[str, Any]:
    """The job's only run, once its outcome is one of these."""
    (row,) = client.history(job_id)
    if row["outcome"] not in outcomes:
        raise LookupError(f"its outcome is {row['outcome']}")
    return row
