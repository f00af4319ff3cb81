"""The worker fleet: what a run on it leaves behind, its limits, its cancellation, and what goes through the broker."""

from __future__ import annotations

import base64
import json

import pytest

from e2e.harness.client import SCHEDULER
from e2e.harness.faults import node_of, paused
from e2e.harness.fleet import BROKER_SERVICE, WORKER_SERVICE, run_on_fleet
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until


def test_a_run_is_in_the_ledger_like_any_other(ha_stack: Stack) -> None:
    run = run_on_fleet(ha_stack, "oracle_fail", max_attempts=2, retry_delay=1)
    row = run.ended()
    assert row["outcome"] == "failed"
    assert row["error"] == "RuntimeError: failed on purpose"
    workers = {node_of(container) for container in ha_stack.containers_of(WORKER_SERVICE)}
    assert row["node"] in workers
    detail = ha_stack.bearer().data("GET", f"{SCHEDULER}/runs/{run.run_id}")
    assert "failed on purpose" in detail["log"]
    second = wait_until("the second attempt", run.rows, lambda rows: len(rows) == 2, within=20)[1]
    assert second["first_run_id"] == run.run_id


def test_the_status_lists_workers_and_what_they_run(ha_stack: Stack) -> None:
    run = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 6})
    run.begun()

    def running() -> list[str]:
        nodes = ha_stack.bearer().data("GET", f"{SCHEDULER}/status")["nodes"]
        return [
            entry["run_id"]
            for node in nodes
            if node["kind"] == "worker" and node["state"] == "running"
            for entry in node["stats"]["running"]
        ]

    wait_until("the run in a worker's list", running, lambda found: run.run_id in found, within=10)
    assert run.ended()["outcome"] == "success"


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("soft_time_limit", "its soft time limit of 2 s"),
        ("time_limit", "its time limit of 2 s; its process was killed"),
    ],
)
def test_time_limits(ha_stack: Stack, limit: str, words: str) -> None:
    run = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 60}, **{limit: 2})
    row = run.ended()
    assert row["outcome"] == "failed"
    assert row["error"] == f"it reached {words}"
    assert row["duration_ms"] < 10_000


def test_cancel_kills_the_process(ha_stack: Stack) -> None:
    run = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 60})
    run.begun()
    ha_stack.bearer().data("POST", f"{SCHEDULER}/runs/{run.run_id}/actions/cancel")
    row = run.ended(within=10)
    assert row["outcome"] == "cancelled"
    assert [trace["event"] for trace in run.traces()] == ["start"], "it did not come to its end"


def test_messages_are_json_and_say_nothing_but_where_the_door_is(ha_stack: Stack) -> None:
    broker = ha_stack.container(BROKER_SERVICE)

    def ask(*words: str) -> str:
        login = 'REDISCLI_AUTH="$(cat /run/secrets/valkey_password)" exec valkey-cli --raw "$@"'
        return ha_stack.execute("sh", "-c", login, "ask", *words, container=broker)

    first, second = ha_stack.containers_of(WORKER_SERVICE)
    with paused(first), paused(second):
        # What a frozen worker has asked for is given to it; the ledger's door and a second message see to that.
        runs = [run_on_fleet(ha_stack, priority=priority) for priority in (-900, 0, 900, -900, 0, 900)]
        # One list for each level of urgency.
        wait_until("messages in the queue", lambda: ask("KEYS", "whalefall*"), within=20)
        for name in ask("KEYS", "whalefall*").split():
            for text in ask("LRANGE", name, "0", "-1").splitlines():
                message = json.loads(text)
                assert (message["content-type"], message["content-encoding"]) == ("application/json", "utf-8")
                assert message["headers"]["task"] == "whalefall.run"
                positional, named, _ = json.loads(base64.b64decode(message["body"]))
                assert (positional, set(named)) == ([], {"run_id", "owner", "epoch"})
    for run in runs:
        assert run.ended(within=30)["outcome"] == "success"
        assert len(run.traces()) == 1
