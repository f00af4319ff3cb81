"""The worker fleet with RabbitMQ as its broker, named by its URL: runs, a cancellation, and a broker that dies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from e2e.harness.faults import paused
from e2e.harness.fleet import WORKER_SERVICE, run_on_fleet
from e2e.harness.stack import ROOT, Stack
from e2e.harness.waiting import wait_until

BROKER = "rabbitmq"
SCHEDULER = "/api/v1/scheduler"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One of each, so that what waits is one worker's affair."""
    made = Stack(
        f"whalefall-e2e-{os.getpid()}-rabbitmq",
        tmp_path_factory.mktemp("rabbitmq"),
        {
            "CELERY_BROKER_URL": "amqp://whalefall:of-the-tests@rabbitmq:5672//",
            **{name: os.environ[name] for name in ("BASE_IMAGE", "BUILD_SETTINGS_DIR") if name in os.environ},
        },
        shape="ha",
        scale={"web": 1, "scheduler": 1, "worker": 1},
    )
    made.compose_files = (*made.compose_files, str(ROOT / "e2e/brokers/docker-compose.yml"))
    made.compose("build", "--quiet", BROKER, timeout=600)
    try:
        made.start()
        yield made
    finally:
        made.remove()


def queued(stack: Stack) -> dict[str, int]:
    """How many messages lie in each queue, given to a worker or not."""
    command = ("rabbitmqctl", "--quiet", "--formatter", "json", "list_queues", "name", "messages")
    listed = json.loads(stack.execute(*command, container=stack.container(BROKER)))
    return {queue["name"]: queue["messages"] for queue in listed}


def test_a_run_goes_by_way_of_it(stack: Stack) -> None:
    (worker,) = stack.containers_of(WORKER_SERVICE)
    with paused(worker):
        run = run_on_fleet(stack)
        wait_until("its message", lambda: sum(queued(stack).values()), within=20)
    row = run.ended(within=30)
    assert (row["outcome"], row["attempt"]) == ("success", 1)
    assert len(run.traces()) == 1


def test_cancel_kills_the_process(stack: Stack) -> None:
    run = run_on_fleet(stack, "oracle_sleep", kwargs={"seconds": 60})
    run.begun()
    stack.bearer().data("POST", f"{SCHEDULER}/runs/{run.run_id}/actions/cancel")
    assert run.ended(within=10)["outcome"] == "cancelled"


def test_every_claimed_run_starts_once_while_it_is_killed(stack: Stack) -> None:
    broker = stack.container(BROKER)
    going = run_on_fleet(stack, "oracle_sleep", kwargs={"seconds": 5})
    going.begun()
    broker.kill()
    waiting = [run_on_fleet(stack) for _ in range(5)]
    assert {run.row()["outcome"] for run in waiting} == {"pending"}
    assert going.ended(within=30)["outcome"] == "success", "its end needs no broker"
    broker.start()
    for run in waiting:
        assert run.ended(within=90)["outcome"] == "success"
        assert len(run.traces()) == 1
