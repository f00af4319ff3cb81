"""Run-now, asked for again and again while the schedulers restart: started once, or a clean 503; never twice."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import pytest
import requests
from docker.models.containers import Container

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.faults import wait_until_node
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

ASKERS = 3
JOBS_EACH = 10


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.faults_long)])
def test_run_now_during_restarts(ha_stack: Stack, probes: Probes, schedulers: list[Container], rounds: int) -> None:
    client = ha_stack.bearer()
    # max_instances is counted a job, and what a stopping scheduler hands back waits a moment: each asker takes turns
    # among jobs of its own, so that no run is refused.
    turns = [[f"asked-{time.time_ns()}-{asker}-{number}" for number in range(JOBS_EACH)] for asker in range(ASKERS)]
    jobs = [job_id for own in turns for job_id in own]
    for job_id in jobs:
        trigger = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
        client.create_job(job_id, "oracle_fire", trigger, max_instances=10)
    with probes.watch(
        "POST during a restart", f"run-now in a loop, {rounds} restarts of each scheduler", limit="never twice"
    ) as watch:
        watch.strike()
        with ThreadPoolExecutor(ASKERS) as pool:
            restarting = [True]
            asked = [pool.submit(ask, ha_stack.bearer(), own, restarting) for own in turns]
            try:
                for _ in range(rounds):
                    for container in schedulers:
                        container.restart(timeout=60)
                        wait_until_node(ha_stack, container)
            finally:
                restarting.clear()
            answers = [answer for future in asked for answer in future.result()]
        watch.heal()
    watch.check()

    statuses = Counter(answer.status_code for answer in answers)
    print(f"run-now during {2 * rounds} restarts: {dict(statuses)}")
    assert set(statuses) <= {200, 503}, statuses
    assert statuses[200] > 0.5 * len(answers), statuses
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["message_code"] == "SERVICE_UNAVAILABLE", answer.text
            assert "Retry-After" in answer.headers
    promised = {answer.json()["data"]["run_id"] for answer in answers if answer.status_code == 200}
    assert len(promised) == statuses[200], "two answers named the same run"

    def rows() -> list[dict[str, str]]:
        return [row for job_id in jobs for row in client.history(job_id)]

    ended = wait_until(
        "every run has ended", rows, lambda found: all(row["outcome"] in FINAL for row in found), within=60
    )
    outcomes = {row["run_id"]: row["outcome"] for row in ended}
    seen = Counter(start.run_id for start in ha_stack.starts() if start.job_id in jobs)
    assert max(seen.values()) == 1, "a run was started twice"
    assert promised <= outcomes.keys(), "a run that was promised is not on record"
    assert {outcomes[run_id] for run_id in promised} == {"success"}
    assert promised <= seen.keys()
    # A 503 may hide a run that was asked for after all; each at most one.
    assert len(outcomes) <= len(answers)
    for job_id in jobs:
        client.delete_job(job_id)


def ask(client: Client, jobs: list[str], restarting: list[bool]) -> list[requests.Response]:
    """Asks for a run as soon as the last one was answered, until `restarting` is empty."""
    answers = []
    for job_id in cycle(jobs):
        if not restarting:
            break
        answers.append(client.post(f"{SCHEDULER}/jobs/{job_id}/actions/run"))
    return answers
