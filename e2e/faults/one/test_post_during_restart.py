"""Run-now, asked for in a loop while the only scheduler restarts: started once, or a clean 503; never twice."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest
import requests

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.nodes import running_nodes, wait_for_new_node
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes
from e2e.harness.stack import Role, Stack
from e2e.harness.waiting import wait_until

FAR_AWAY = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
ASKERS = 3
RESTARTS: tuple[tuple[signal.Signals, Role], ...] = (
    (signal.SIGHUP, "master"),
    (signal.SIGKILL, "worker"),
    (signal.SIGKILL, "master"),
)


@dataclass
class Asked:
    """What one who asks in a loop was answered."""

    promised: list[str] = field(default_factory=list)
    refused: list[requests.Response] = field(default_factory=list)
    #: Answers that broke off: the worker died after it had sent their head. nginx cannot take that back.
    cut: int = 0


def ask(client: Client, job_id: str, enough: threading.Event) -> Asked:
    asked = Asked()
    while not enough.is_set():
        try:
            answer = client.post(f"{SCHEDULER}/jobs/{job_id}/actions/run")
        except requests.exceptions.ChunkedEncodingError:
            asked.cut += 1
            continue
        if answer.status_code == 200:
            asked.promised.append(answer.json()["data"]["run_id"])
        else:
            asked.refused.append(answer)
        enough.wait(0.05)
    return asked


def is_clean(answer: requests.Response) -> bool:
    """Whether the answer says that the call had no effect, and why."""
    if answer.status_code == 400:  # what was asked for before waits for the next scheduler, and counts
        return bool(answer.json()["context"]["field"] == "max_instances")
    return (
        answer.status_code == 503
        and answer.json()["message_code"] == "SERVICE_UNAVAILABLE"
        and "Retry-After" in answer.headers
    )


def restart(stack: Stack, number: signal.Signals, role: Role) -> None:
    known = running_nodes(stack)
    stack.signal(number, "scheduler", role)
    wait_for_new_node(stack, known)
    stack.wait_until_ready()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.faults_long)])
def test_run_now_during_restarts(one_stack: Stack, probes: Probes, rounds: int) -> None:
    client = one_stack.bearer()
    jobs = [f"asked-{rounds}-{number}" for number in range(ASKERS)]
    for job_id in jobs:
        client.create_job(job_id, "oracle_fire", FAR_AWAY, max_instances=10)
    how = f"run-now in a loop, {rounds} each of HUP, SIGKILL to the worker, to the master"
    enough = threading.Event()
    with (
        probes.watch("POST during a restart", how, outage=True, limit="once, or 503") as watch,
        ThreadPoolExecutor(ASKERS) as pool,
    ):
        watch.strike()
        asking = [pool.submit(ask, one_stack.bearer(), job_id, enough) for job_id in jobs]
        try:
            for _ in range(rounds):
                for number, role in RESTARTS:
                    restart(one_stack, number, role)
        finally:
            enough.set()
        asked = dict(zip(jobs, (one.result() for one in asking), strict=True))
        watch.heal()
    watch.check()

    starts = Counter(start.run_id for start in one_stack.starts() if start.job_id in asked)
    assert starts
    assert max(starts.values()) == 1, "a run was started twice"
    for job_id, answers in asked.items():
        print(f"{job_id}: 200 {len(answers.promised)}, refused {len(answers.refused)}, cut off {answers.cut}")
        for answer in answers.refused:
            assert is_clean(answer), f"{answer.status_code} {dict(answer.headers)} {answer.text}"
        assert len(set(answers.promised)) == len(answers.promised), "two answers named the same run"
        rows = wait_until(
            "every run has ended",
            partial(client.history, job_id),
            lambda found: all(row["outcome"] in FINAL for row in found),
            within=60,
        )
        outcomes = {row["run_id"]: row["outcome"] for row in rows}
        assert set(outcomes.values()) <= {"success", "lost"}
        assert outcomes.keys() >= set(answers.promised), "a run that was promised is not on record"
        assert all(run_id in starts for run_id, outcome in outcomes.items() if outcome == "success")
        # A call without a promise may have had its effect all the same (a 503 of nginx), but never two.
        assert len(outcomes) - len(answers.promised) <= len(answers.refused) + answers.cut
        assert len(answers.promised) > rounds * len(RESTARTS), "the stack was down most of the time"
        client.delete_job(job_id)
