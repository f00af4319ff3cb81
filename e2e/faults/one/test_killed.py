"""The scheduler of the one container is killed: its worker, its master, the container.

What ran in a killed worker is lost, and runs again only where its job says so. A worker whose master was killed ends in
order: its runs go on to their end beside the next scheduler.
"""

from __future__ import annotations

import signal
from functools import partial

import pytest

from e2e.harness.client import Client
from e2e.harness.faults import kill_and_start
from e2e.harness.nodes import running_nodes, wait_for_new_node
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
FAR_AWAY = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
#: Of the runs in flight; shorter than the drain.
RUN_S = 5


def outcomes(client: Client, job_id: str) -> list[tuple[int, str]]:
    """(attempt, outcome) of a job's runs, the first attempt first."""
    return sorted((row["attempt"], row["outcome"]) for row in client.history(job_id))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["worker", "master", "container"])
def test_fires_go_on_at_most_3_s_after_it_is_back(one_stack: Stack, probes: Probes, victim: str) -> None:
    client = one_stack.bearer()
    once, again = f"once-{victim}", f"again-{victim}"
    client.create_job(once, "oracle_sleep", FAR_AWAY, kwargs={"seconds": RUN_S})
    client.create_job(again, "oracle_sleep", FAR_AWAY, kwargs={"seconds": RUN_S}, retry_on_loss=True)
    with probes.watch("scheduler killed", f"SIGKILL to the {victim}, the only one", outage=True, limit="3 s") as watch:
        known = running_nodes(one_stack)
        for job_id in (once, again):
            client.run_now(job_id)
            wait_until(f"the start of {job_id}", partial(one_stack.logged, job_id), within=20)
        watch.strike()
        if victim == "worker":
            one_stack.signal(signal.SIGKILL, "scheduler", "worker")
        elif victim == "master":
            one_stack.signal(signal.SIGKILL, "scheduler", "master")
        else:
            kill_and_start(one_stack.container())
        wait_for_new_node(one_stack, known)
        watch.heal()
        one_stack.wait_until_ready()
    watch.check()
    assert watch.recovery <= LIMIT_S, watch.measurement

    expected = {once: [(1, "lost")], again: [(1, "lost"), (2, "success")]}
    if victim == "master":
        expected = {once: [(1, "success")], again: [(1, "success")]}
    wait_until(
        "an end of every run in flight",
        lambda: [end for job_id in expected for end in outcomes(client, job_id)],
        lambda ends: len(ends) == sum(map(len, expected.values())) and {outcome for _, outcome in ends} <= FINAL,
        within=40,
    )
    assert {job_id: outcomes(client, job_id) for job_id in expected} == expected
    for job_id, ends in expected.items():
        assert [start.attempt for start in one_stack.starts() if start.job_id == job_id] == [n for n, _ in ends]
        client.delete_job(job_id)
