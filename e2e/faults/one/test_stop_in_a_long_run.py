"""SIGTERM during a long run: what outlasts the drain is lost, and nothing is advanced that neither ran nor is told."""

from __future__ import annotations

import time
from functools import partial

import pytest

from e2e.faults.one.conftest import DRAIN_S
from e2e.harness.client import Client
from e2e.harness.nodes import running_nodes, wait_for_new_node
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
#: What a stop may take beside the drain: nginx and the web end first. Well below the grace after which Docker kills.
STOP_S = 15.0
FAR_AWAY = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
#: Each job's run, by how long it takes.
RUNS = {"stopped-short": DRAIN_S - 4.0, "stopped-long": 600.0}


def outcomes(client: Client, job_id: str) -> list[str]:
    return [row["outcome"] for row in client.history(job_id)]


@pytest.mark.timeout(180)
def test_docker_stop_drains_what_it_can_and_calls_the_rest_lost(one_stack: Stack, probes: Probes) -> None:
    client = one_stack.bearer()
    for job_id, seconds in RUNS.items():
        client.create_job(job_id, "oracle_sleep", FAR_AWAY, kwargs={"seconds": seconds})
    with probes.watch(
        "SIGTERM during a long run", f"docker stop, {DRAIN_S} s to drain", outage=True, limit="3 s after its start"
    ) as watch:
        known = running_nodes(one_stack)
        for job_id in RUNS:
            client.run_now(job_id)
        for job_id in RUNS:
            wait_until(f"the start of {job_id}", partial(one_stack.logged, job_id), within=20)
        watch.strike()
        container = one_stack.container()
        began = time.monotonic()
        one_stack.docker.api.stop(container.id)  # Docker's own way: SIGTERM, then the container's grace
        took = time.monotonic() - began
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0
        container.start()
        wait_for_new_node(one_stack, known)
        watch.heal()
        one_stack.wait_until_ready()
        ended = {
            job_id: wait_until("ended", partial(outcomes, client, job_id), lambda f: set(f) <= FINAL, within=20)
            for job_id in RUNS
        }
    watch.check()
    assert watch.recovery <= LIMIT_S, watch.measurement
    print(f"stopped in {took:.1f} s")
    assert took <= DRAIN_S + STOP_S
    assert ended == {"stopped-short": ["success"], "stopped-long": ["lost"]}
    for job_id in RUNS:
        assert len([start for start in one_stack.starts() if start.job_id == job_id]) == 1
        client.delete_job(job_id)
