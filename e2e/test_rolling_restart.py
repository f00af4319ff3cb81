"""scripts/rolling_restart.sh on a stack of the shape ha under load: no request fails, no fire is missed or doubled."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests

from e2e.harness.client import SCHEDULER
from e2e.harness.probes import Probes
from e2e.harness.scripts import environment_of, run_on, run_script
from e2e.harness.stack import Stack, running_stack

REQUESTS_PER_S = 50
#: Above all that a request may wait for: a connection that is held back (7 s), the database (5 s).
TIMEOUT_S = 30.0
DOUBLED = ("worker", "scheduler", "web")
SINGLE = ("valkey", "postgres", "nginx")
#: One request in ten writes.
READS = (
    "/api/v1/health/basic",
    f"{SCHEDULER}/jobs",
    f"{SCHEDULER}/status",
    "/login",
    f"{SCHEDULER}/jobs?limit=1",
    f"{SCHEDULER}/jobs/rolling/history",
    "/api/v1/health/live",
    f"{SCHEDULER}/jobs/rolling",
    "/api/v1/health/basic",
)


@dataclass
class Load:
    """Requests at a steady pace, each on a connection of its own, until it is stopped."""

    stack: Stack
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(200) as pool:
            number = 0
            while not self._stopped.wait(max(0.0, began + number / REQUESTS_PER_S - time.monotonic())):
                pool.submit(self._ask, number)
                number += 1

    def stop(self) -> None:
        self._stopped.set()

    def _ask(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.stack.secrets['api_token']}", "Connection": "close"}
        begin = time.monotonic()
        path = READS[number % 10] if number % 10 < len(READS) else f"{SCHEDULER}/jobs/rolling/actions/run"
        try:
            if path.endswith("/run"):
                headers["Idempotency-Key"] = str(uuid.uuid4())
                answer = requests.post(self.stack.base_url + path, headers=headers, timeout=TIMEOUT_S)
            else:
                answer = requests.get(self.stack.base_url + path, headers=headers, timeout=TIMEOUT_S)
            told = f"{answer.status_code}"
            # Ten runs at a time are allowed: a refusal of the eleventh is no failure of the stack.
            good = answer.status_code < 400 or (answer.status_code == 400 and "max_instances" in answer.text)
        except requests.RequestException as error:
            told, good = type(error).__name__, False
        took = time.monotonic() - begin
        with self._lock:
            self.answers[told] += 1
            self.slowest_s = max(self.slowest_s, took)
            if not good:
                self.failures.append(f"{time.strftime('%X')} {path}: {told} after {took:.2f} s")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory, shape="ha") as stack:
        never = {"trigger_type": "date", "run_date": "2199-01-01T00:00:00Z"}
        stack.bearer().create_job("rolling", "oracle_fire", never, max_instances=10)
        yield stack


def containers(stack: Stack, *services: str) -> dict[str, set[str]]:
    return {service: {str(container.id) for container in stack.containers_of(service)} for service in services}


def roll(stack: Stack, *services: str) -> None:
    """Restarts the services under load and with probes that fire all the time."""
    before = containers(stack, *DOUBLED, *SINGLE)
    probes = Probes(stack, 10, prefix=f"rolling-{len(services)}")
    probes.start()
    load = Load(stack)
    with ThreadPoolExecutor(1) as pool, probes.watch("rolling restart", ", ".join(services) or "all") as watch:
        loaded: Future[None] = pool.submit(load.run)
        try:
            watch.strike()
            begin = time.monotonic()
            run_on(stack, "rolling_restart.sh", *services, timeout=600)
            took = time.monotonic() - begin
        finally:
            load.stop()
        loaded.result(timeout=60)
    probes.stop()
    after = containers(stack, *DOUBLED, *SINGLE)
    print(
        f"\nrolled in {took:.0f} s; {sum(load.answers.values())} requests {dict(load.answers)}, "
        f"slowest {load.slowest_s:.2f} s"
    )
    for service in before:
        assert len(after[service]) == len(before[service]), service
        replaced = not (after[service] & before[service])
        assert replaced == (not services or service in services), service
    stack.up()
    assert containers(stack, *DOUBLED, *SINGLE) == after, "a plain `up` would replace them once more"
    assert load.failures == []
    assert sum(load.answers.values()) >= REQUESTS_PER_S * took * 0.9, "the load was not what it should be"
    watch.check()
    # Drained, not cut off: every fire ran and came to its end.
    assert set(watch.verdict.outcomes) <= {"success", "coalesced"}, watch.verdict


def test_webs_and_schedulers_are_replaced_without_a_failed_request(cluster: Stack) -> None:
    roll(cluster, "web", "scheduler")


@pytest.mark.faults_long
def test_every_container_is_replaced_without_a_failed_request_or_a_lost_fire(cluster: Stack) -> None:
    roll(cluster)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(cluster: Stack) -> None:
    before = containers(cluster, *DOUBLED, *SINGLE)
    outcome = run_on(cluster, "rolling_restart.sh", "--dry-run")
    assert outcome.stdout.splitlines() == [
        *(f"{service}: 2 to be replaced" for service in DOUBLED),
        *(f"{service}: 1 to be replaced" for service in SINGLE),
    ]
    told = json.loads(run_on(cluster, "rolling_restart.sh", "--dry-run", "--json", "web", "nginx").stdout)
    assert told == {"dry_run": True, "replaced": {"web": 2, "nginx": 1}}
    assert containers(cluster, *DOUBLED, *SINGLE) == before


@pytest.mark.parametrize("argument", ["database", "--fast", ""])
def test_a_wrong_argument_is_refused_and_changes_nothing(cluster: Stack, argument: str) -> None:
    outcome = run_script("rolling_restart.sh", argument, environment=environment_of(cluster))
    assert outcome.code == 2
    assert "unknown argument" in outcome.stderr


def test_the_one_container_is_refused(stack: Stack) -> None:
    outcome = run_script("rolling_restart.sh", environment=environment_of(stack))
    assert outcome.code == 1
    assert "shapes split and ha" in outcome.stderr
