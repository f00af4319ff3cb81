"""One Idempotency-Key, sent many times at once and to both schedulers: carried out once, and answered alike."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import requests
from docker.models.containers import Container

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

AT_ONCE = 20
NEVER = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
REPLAYED = "Idempotency-Replayed"


@pytest.fixture
def client(ha_stack: Stack, schedulers: list[Container]) -> Client:
    """A script's way in, while both schedulers run."""
    return ha_stack.bearer()


def all_at_once(stack: Stack, path: str, key: str, body: Any = None) -> list[requests.Response]:
    """The answers to the same request, sent `AT_ONCE` times at the same moment, each over a connection of its own."""
    together = Barrier(AT_ONCE)

    def ask(_number: int) -> requests.Response:
        sender = stack.bearer()
        together.wait(timeout=30)
        return sender.post(path, json=body, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, range(AT_ONCE)))


def one_was_first(answers: list[requests.Response], status: int) -> None:
    assert {answer.status_code for answer in answers} == {status}, [answer.text for answer in answers]
    assert sorted(answer.headers.get(REPLAYED, "") for answer in answers) == ["", *["true"] * (AT_ONCE - 1)]


def test_twenty_run_now_at_once_start_one_run(ha_stack: Stack, client: Client) -> None:
    job_id = f"repeated-{time.time_ns()}"
    client.create_job(job_id, "oracle_fire", NEVER, max_instances=10)
    for number in range(3):
        path = f"{SCHEDULER}/jobs/{job_id}/actions/run"
        answers = all_at_once(ha_stack, path, f"{job_id}-{number}")
        one_was_first(answers, 200)
        assert len({answer.json()["data"]["run_id"] for answer in answers}) == 1
    wait_until(
        "three runs ended", lambda: [run["outcome"] for run in client.history(job_id)] == ["success"] * 3, within=30
    )
    assert len([start for start in ha_stack.starts() if start.job_id == job_id]) == 3
    client.delete_job(job_id)


def test_twenty_creations_at_once_make_one_job(ha_stack: Stack, client: Client) -> None:
    name = f"created-{time.time_ns()}"
    body = {"task": "oracle_fire", "name": name, **NEVER}  # without an id: each request makes up one of its own
    answers = all_at_once(ha_stack, f"{SCHEDULER}/jobs", name, body)
    one_was_first(answers, 201)
    (job_id,) = {answer.json()["data"]["id"] for answer in answers}
    assert [job["id"] for job in client.data("GET", f"{SCHEDULER}/jobs?q={name}")] == [job_id]
    client.delete_job(job_id)
