"""The worker fleet with RabbitMQ as its broker, named by its URL: runs, a cancellation, and a broker that dies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from e2e.harness.client import SCHEDULER
from e2e.harness.faults import SCHEDULER_SERVICE, claimed_by, paused
from e2e.harness.fleet import WORKER_SERVICE, run_on_fleet
from e2e.harness.stack import ROOT, Stack
from e2e.harness.waiting import wait_until

BROKER = "rabbitmq"

#: Runs in the scheduler's container: every message that waits, as JSON; all of them go back when the channel closes.
LOOK_INTO_THE_QUEUE = """
import json, os
from kombu import Connection
with Connection(os.environ["CELERY_BROKER_URL"]) as connection:
    channel = connection.channel()
    waiting = iter(lambda: channel.basic_get("whalefall", no_ack=False), None)
    print(json.dumps([{**message.properties, "body": message.body} for message in waiting]))
"""


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
        wait_until("the worker listens", lambda: queue_has(made, "consumers"), within=60)
        yield made
    finally:
        made.remove()


def queue_has(stack: Stack, what: str) -> int:
    """How many `messages` (given to a worker or not) or `consumers` the queue has; 0 where there is no queue yet."""
    command = ("rabbitmqctl", "--quiet", "--formatter", "json", "list_queues", "name", what)
    listed = json.loads(stack.execute(*command, container=stack.container(BROKER)))
    return int({queue["name"]: queue[what] for queue in listed}.get("whalefall", 0))


def test_a_run_goes_by_way_of_it_as_json(stack: Stack) -> None:
    (worker,) = stack.containers_of(WORKER_SERVICE)
    with paused(worker):
        # One is given to the frozen worker; the others wait, the most urgent one first.
        runs = [run_on_fleet(stack, priority=priority) for priority in (0, 0, 900)]
        wait_until("their messages", lambda: queue_has(stack, "messages") == len(runs), within=20)
        waiting = json.loads(stack.execute("python", "-c", LOOK_INTO_THE_QUEUE))
        assert [message["priority"] for message in waiting] == [9, 4]
        for message in waiting:
            assert (message["content_type"], message["content_encoding"]) == ("application/json", "utf-8")
            assert message["delivery_mode"] == 2, "it is kept on the broker's disk"
            positional, named, _ = json.loads(message["body"])
            assert (positional, set(named)) == ([], {"run_id", "owner", "epoch"})
    for run in runs:
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
    (worker,) = stack.containers_of(WORKER_SERVICE)
    going = run_on_fleet(stack, "oracle_sleep", kwargs={"seconds": 5})
    going.begun()
    with paused(worker):
        # Three whose messages the broker has when it dies, one of them given to the worker; three that find no broker.
        claimed = [run_on_fleet(stack) for _ in range(3)]
        wait_until("their messages", lambda: queue_has(stack, "messages") == len(claimed), within=20)
        broker.kill()
        claimed += [run_on_fleet(stack) for _ in range(3)]
        (scheduler,) = stack.containers_of(SCHEDULER_SERVICE)
        wait_until("all are claimed", lambda: claimed_by(stack, scheduler) == len(claimed), within=10)
    assert going.ended(within=30)["outcome"] == "success", "its end needs no broker"
    broker.start()
    for run in claimed:
        assert run.ended(within=90)["outcome"] == "success"
    # A message that was kept and one that was sent again are the same run: the second finds its door shut.
    wait_until("no message is left", lambda: not queue_has(stack, "messages"), within=20)
    for run in (going, *claimed):
        assert [trace["event"] for trace in run.traces()].count("start") == 1
        assert [row["outcome"] for row in run.rows()] == ["success"]
