"""SQLite is locked from outside: fires wait for it and go on, and no user reads "database is locked"."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.probes import Probes
from e2e.harness.sqlite_lock import hold_lock
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
FAR_AWAY = {"trigger_type": "cron", "cron_expression": "0 0 1 1 *"}


@dataclass(frozen=True)
class Answer:
    call: str
    status: int
    retry_after: str | None
    text: str


def reads(client: Client, page: Client, job_id: str) -> Iterator[Answer]:
    while True:
        yield asked(client, "GET", f"{SCHEDULER}/jobs")
        yield asked(client, "GET", f"{SCHEDULER}/jobs/{job_id}/history")
        yield asked(page, "GET", "/dashboard")


def writes(client: Client, job_id: str) -> Iterator[Answer]:
    while True:
        yield asked(client, "POST", f"{SCHEDULER}/jobs/{job_id}/actions/pause")
        yield asked(client, "POST", f"{SCHEDULER}/jobs/{job_id}/actions/resume")


def asked(client: Client, method: str, path: str) -> Answer:
    answer = client.request(method, path, timeout=90)
    return Answer(f"{method} {path}", answer.status_code, answer.headers.get("Retry-After"), answer.text)


@contextmanager
def users(stack: Stack, job_id: str) -> Iterator[list[Answer]]:
    """One who reads and one who writes, each call as soon as the one before has answered; what they were answered."""
    answers: list[Answer] = []
    enough = threading.Event()

    def ask(calls: Iterator[Answer]) -> None:
        for answer in calls:
            answers.append(answer)
            if enough.wait(0.05):
                return

    with ThreadPoolExecutor() as pool:
        calls = (reads(stack.bearer(), stack.admin(), job_id), writes(stack.bearer(), job_id))
        asking = [pool.submit(ask, each) for each in calls]
        try:
            yield answers
        finally:
            enough.set()
        for one in asking:
            one.result()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.faults_long)])
def test_fires_go_on_after_the_release(one_stack: Stack, probes: Probes, seconds: int) -> None:
    client = one_stack.bearer()
    job_id = f"edited-under-a-lock-of-{seconds}-s"
    client.create_job(job_id, "oracle_fire", FAR_AWAY)
    how = f"an outside BEGIN IMMEDIATE, {seconds} s"
    with probes.watch("SQLite locked", how, outage=True, limit="3 s") as watch, users(one_stack, job_id) as answers:
        wait_until("the users' first answers", lambda: len(answers) >= 5, within=30)
        watch.struck, watch.healed = hold_lock(one_stack, seconds)
        one_stack.wait_until_ready()
    watch.check()
    assert watch.recovery <= LIMIT_S, watch.measurement

    # A request waits longer for the lock than the short one lasts; of the long one it is told to come again.
    refused = [answer for answer in answers if answer.status != 200]
    print(f"{len(answers)} answers, refused: {[(answer.call, answer.status) for answer in refused]}")
    assert not [answer for answer in answers if "locked" in answer.text and "database" in answer.text.lower()]
    assert all(answer.status == 503 and answer.retry_after for answer in refused), refused
    assert not refused or seconds > 30, refused
    client.delete_job(job_id)
