"""Behind nginx no request to the scheduler API ever meets a 409, not even while its process is restarted.

The 409 belongs to a process that runs no scheduler, and to that one only.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import pytest
import requests

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import Role, Stack
from e2e.harness.waiting import wait_until

CALLS = 2000
CLIENTS = 8
FAR_AWAY = {"trigger_type": "cron", "cron_expression": "0 0 1 1 *"}
WEB = "http://127.0.0.1:5001"

#: Runs in the container: the web process is bound where only nginx can reach it.
ASK_WEB = """
import json, sys, urllib.error, urllib.request
answers = []
for method, path in json.loads(sys.argv[1]):
    body = b"{}" if method in ("POST", "PUT") else None
    call = urllib.request.Request(sys.argv[2] + path, data=body, method=method)
    call.add_header("Authorization", "Bearer " + sys.argv[3])
    call.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(call, timeout=30) as answer:
            answers.append([answer.status, json.load(answer)])
    except urllib.error.HTTPError as error:
        answers.append([error.code, json.load(error)])
print(json.dumps(answers))
"""


@dataclass
class Tally:
    """What the clients saw; every method may be called by several threads."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    #: Answers that broke off: the worker died after it had sent their head. nginx cannot take that back.
    cut: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, call: str, status: int, retry_after: str | None, text: str) -> None:
        bad = status == 409 or (status >= 500 and not (status == 503 and retry_after))
        with self.lock:
            self.statuses[status] += 1
            if bad:
                self.wrong.append(f"{call}: {status}, Retry-After {retry_after}: {text[:300]}")

    def add_cut(self) -> None:
        with self.lock:
            self.cut += 1

    @property
    def total(self) -> int:
        with self.lock:
            return sum(self.statuses.values())


def calls(job_id: str) -> Iterator[tuple[str, str, dict[str, object] | None]]:
    """Reads and writes of one client's own job, for ever."""
    job = f"{SCHEDULER}/jobs/{job_id}"
    for number in count():
        yield "GET", f"{SCHEDULER}/jobs?limit=50", None
        yield "GET", job, None
        yield "POST", f"{job}/actions/pause", None
        yield "GET", f"{SCHEDULER}/status", None
        yield "POST", f"{job}/actions/resume", None
        yield "PUT", job, {"trigger_type": "cron", "cron_expression": f"{number % 60} 0 1 1 *"}
        yield "GET", f"{job}/history?limit=10", None
        if number % 5 == 0:
            yield "POST", f"{job}/actions/run", None


def keep_calling(client: Client, job_id: str, tally: Tally, enough: threading.Event) -> None:
    for method, path, body in calls(job_id):
        if enough.is_set():
            return
        try:
            answer = client.request(method, path, json=body)
        except requests.exceptions.ChunkedEncodingError:
            tally.add_cut()
            continue
        tally.add(f"{method} {path}", answer.status_code, answer.headers.get("Retry-After"), answer.text)


def scheduler_pids(stack: Stack) -> set[int]:
    return {process.pid for process in stack.gunicorn("scheduler", "worker")}


def replace_scheduler(stack: Stack, tally: Tally, number: signal.Signals, role: Role) -> None:
    """Under load, have the scheduler's worker replaced by another one, and wait until that one serves."""
    load = tally.total + 300
    wait_until("calls before the fault", lambda: tally.total, lambda total: total >= load, within=60)
    old = scheduler_pids(stack)
    stack.signal(number, role=role)
    wait_until(
        f"another scheduler worker after {number.name}",
        lambda: scheduler_pids(stack),
        lambda pids: pids and not pids & old,
        within=60,
    )
    stack.wait_until_ready()


@pytest.fixture
def own_jobs(api: Client) -> Iterator[list[str]]:
    jobs = [f"caller-{number}" for number in range(CLIENTS)]
    for job_id in jobs:
        api.create_job(job_id, "oracle_fire", FAR_AWAY)
    yield jobs
    for job_id in jobs:
        api.delete_job(job_id)


@pytest.mark.timeout(300)
def test_no_call_meets_a_409_while_the_scheduler_restarts(stack: Stack, own_jobs: list[str]) -> None:
    tally, enough = Tally(), threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(keep_calling, stack.bearer(), job_id, tally, enough) for job_id in own_jobs]
        try:
            replace_scheduler(stack, tally, signal.SIGHUP, "master")
            replace_scheduler(stack, tally, signal.SIGKILL, "worker")
            wait_until(f"{CALLS} calls", lambda: tally.total, lambda total: total >= CALLS, within=120)
        finally:
            enough.set()
        for client in clients:
            client.result()

    print(f"\nstatuses of {tally.total} calls: {dict(sorted(tally.statuses.items()))}, cut off {tally.cut}")
    assert tally.cut <= CLIENTS, "more answers broke off than calls were under way at the kill"
    assert not tally.wrong, "\n".join(tally.wrong[:20])
    assert tally.total >= CALLS
    # A stack that was down all the time would have shown no 409 either.
    assert tally.statuses[200] >= CALLS // 2, tally.statuses


def test_web_process_answers_the_scheduler_api_with_409(stack: Stack) -> None:
    job = f"{SCHEDULER}/jobs/sync_accounts"
    asked = [
        ("GET", f"{SCHEDULER}/jobs"),
        ("POST", f"{SCHEDULER}/jobs"),
        ("GET", job),
        ("PUT", job),
        ("POST", f"{job}/actions/pause"),
        ("POST", f"{job}/actions/resume"),
        ("POST", f"{job}/actions/run"),
        ("POST", f"{job}/action"),
        ("GET", f"{job}/history"),
        ("DELETE", job),
        ("POST", f"{SCHEDULER}/jobs/actions/reload"),
        ("GET", f"{SCHEDULER}/status"),
    ]
    printed = stack.execute("python3", "-c", ASK_WEB, json.dumps(asked), WEB, stack.secrets["api_token"])
    answers = dict(zip(asked, json.loads(printed), strict=True))
    for call, (status, body) in answers.items():
        assert (status, body.get("message_code")) == (409, "CONSTRAINT_VIOLATION"), f"{call}: {status} {body}"
        assert body["message"] == "调度器未启动"


def test_web_process_knows_that_a_scheduler_turns_elsewhere(api: Client) -> None:
    """The pages' process runs none itself; its readiness is about the ledger's heartbeats."""
    assert api.get("/api/v1/health/ready").status_code == 200
