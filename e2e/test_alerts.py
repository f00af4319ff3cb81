"""Alerts and pings of a real stack: all that went wrong is told, also when the receiver or the scheduler is away."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select

from app.alerts.letters import alert_letter
from app.alerts.outbox import Retry, Settlement, lease, settle
from app.alerts.sender import Sender
from app.db.clock import now_us
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import outbox
from app.db.migrate import ensure_schema
from app.ledger.run_ids import new_run_id
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.postgres_server import postgres_server
from e2e.harness.receiver import Receiver, bridge_address
from e2e.harness.stack import ROOT, Stack, running_stack
from e2e.harness.waiting import wait_for_clock, wait_until

DOCS = ROOT / "docs" / "alerts.md"
NEVER = {"trigger_type": "cron", "hour": "0", "day": "29", "month": "2"}
COUNT_OUTBOX = """
import sqlite3
store = sqlite3.connect("file:/app/userdata/scheduler.db?mode=ro", uri=True)
print(*store.execute("SELECT count(*) FROM outbox").fetchone())
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver(bridge_address()) as listening:
        yield listening


@pytest.fixture(scope="module")
def stack(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    hook, ping = receiver.url("/hook/sesame"), receiver.url("/scheduler/sesame")
    with running_stack(tmp_path_factory, ALERT_WEBHOOK_URL=hook, SCHEDULER_PING_URL=ping) as made:
        yield made


def block_of_docs(language: str) -> str:
    """The one block of docs/alerts.md in that language."""
    [body] = re.findall(rf"^```{language}\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(body)


def documented_alert() -> dict[str, Any]:
    alert: dict[str, Any] = json.loads(block_of_docs("json"))
    return alert


def ended(api: Client, job_id: str, outcome: str) -> dict[str, Any]:
    """The newest run of the job, once it has that outcome."""
    return wait_until(
        f"{outcome} of {job_id}",
        lambda: next(iter(api.history(job_id)), {}),
        lambda run: run.get("outcome") == outcome,
        within=30,
    )


@pytest.mark.timeout(240)
def test_every_alarm_is_told_once_whatever_is_away(stack: Stack, receiver: Receiver) -> None:
    api = stack.bearer()

    def hooks() -> list[dict[str, Any]]:
        return [got.json for got in receiver.to("/hook/sesame")]

    # A failure, with everybody there.
    sour = {"name": "发酵", "ping_url": receiver.url("/ping/key/slug?create=1")}
    api.create_job("sour", "oracle_fail", NEVER, kwargs={"message": "gone\nsour"}, **sour)
    first = api.run_now("sour")["run_id"]
    [failed] = wait_until("the first alert", hooks, within=20)
    run = ended(api, "sour", "failed")
    assert list(failed) == list(documented_alert()), "docs/alerts.md shows every field"
    at = datetime.fromisoformat(failed.pop("at"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert len(failed.pop("id")) == 32
    assert failed == {
        "event": "run.failed",
        "job_id": "sour",
        "job_name": "发酵",
        "task": "oracle_fail",
        "run_id": first,
        "scheduled_for": failed["scheduled_for"],
        "attempt": 1,
        "count": 1,
        "node": run["node"],
        "reason": run["reason"],
        "error": run["error"],
    }
    assert "gone\nsour" in failed["error"]
    assert datetime.fromisoformat(failed["scheduled_for"]) == datetime.fromisoformat(run["scheduled_for"])

    # The receiver is away: a moment is missed by a frozen scheduler, which is killed before it could tell; a run dies
    # with it; the sour job recovers.
    receiver.down()
    api.create_job("sleeper", "oracle_sleep", NEVER, kwargs={"seconds": 600})
    api.run_now("sleeper")
    due = datetime.now(UTC) + timedelta(seconds=2)
    late = {"trigger_type": "date", "run_date": due.isoformat()}
    api.create_job("late", "oracle_fire", late, misfire_grace_time=1)
    wait_until("the sleeper's start", lambda: stack.logged("sleeper"), within=20)
    frozen = stack.signal(signal.SIGSTOP, role="worker")
    wait_for_clock(due.timestamp() + 2)
    stack.signal(signal.SIGCONT, role="worker")
    ended(api, "late", "missed")
    assert stack.signal(signal.SIGKILL, role="worker") == frozen
    wait_until(
        "another worker", lambda: stack.gunicorn("scheduler", "worker"), lambda now: now and now != frozen, within=60
    )
    stack.wait_until_ready()
    ended(api, "sleeper", "lost")
    api.data("PUT", f"{SCHEDULER}/jobs/sour", json={**NEVER, "task": "oracle_fire", "kwargs": {}})
    second = api.run_now("sour")["run_id"]
    ended(api, "sour", "success")
    assert len(hooks()) == 1

    # It is back: all of it arrives, in order, and nothing twice.
    receiver.up()
    wait_until(
        "an empty outbox", lambda: stack.execute("python3", "-c", COUNT_OUTBOX).strip(), lambda n: n == "0", within=60
    )
    told = hooks()
    assert [(alert["event"], alert["job_id"]) for alert in told] == [
        ("run.failed", "sour"),
        ("run.missed", "late"),
        ("run.lost", "sleeper"),
        ("job.recovered", "sour"),
    ]
    assert len({alert["id"] for alert in told}) == 4
    assert told[1]["count"] == 1
    assert told[3]["run_id"] == second

    # The pings of the sour job's two runs, start and end paired by the run's id.
    pings = [got for got in receiver.received if got.path.startswith("/ping/")]
    assert [(got.path, got.query["create"][0], got.query["rid"][0].replace("-", "")) for got in pings] == [
        ("/ping/key/slug/start", "1", first),
        ("/ping/key/slug/fail", "1", first),
        ("/ping/key/slug/start", "1", second),
        ("/ping/key/slug", "1", second),
    ]
    assert b"gone\nsour" in pings[1].body
    assert receiver.to("/scheduler/sesame"), "the scheduler's own ping"

    log = stack.container().logs().decode(errors="replace")
    assert "sesame" not in log, "an address may hold a token"
    assert "alerts to http://" in log


@pytest.mark.timeout(120)
def test_senders_of_two_nodes_share_one_postgresql(receiver: Receiver) -> None:
    """In order and each once, while one receiver serves both; a message in doubt is sent again."""
    with postgres_server() as server, ExitStack() as opened:
        engines = [create_engine_for(server.url()) for _ in range(3)]
        for engine in engines:
            opened.callback(engine.dispose)
        ensure_schema(engines[0], "jobstore")
        webhook = receiver.url("/shared")
        senders = [
            Sender(engine, "alert", letter=partial(alert_letter, webhook_url=webhook), address=lambda _message: webhook)
            for engine in engines[:2]
        ]
        for sender in senders:
            sender.start()
        ids = []
        for batch in range(15):  # written while both are looking
            ids += put_alerts(engines[2], 20, batch)
        wait_until("an empty outbox", lambda: not waiting(engines[2]), within=60)
        for sender in senders:
            sender.begin_stop(0)
        assert [sender.join(20) for sender in senders] == [True, True]
        assert [got.json["id"] for got in receiver.to("/shared")] == ids

        # One that failed holds up those behind it, and a lease those of both.
        put_alerts(engines[0], 3, 0)
        first, *others = lease(engines[0], "alert")
        assert len(others) == 2
        assert lease(engines[1], "alert") == []
        settle(engines[0], Settlement(retries=[Retry(first, 60.0, "503")], untouched=others))
        assert lease(engines[1], "alert") == []


def test_the_documented_example_is_an_alert(receiver: Receiver) -> None:
    command = block_of_docs("sh").replace("https://hooks.example.com/your-token", receiver.url("/example"))
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "200\n"
    [got] = receiver.to("/example")
    assert list(got.json) == list(documented_alert())
    assert got.headers["Content-Type"] == "application/json; charset=utf-8"


def put_alerts(engine: Engine, count: int, batch: int) -> list[str]:
    at = now_us()
    rows = [
        {
            "id": new_run_id(at),
            "kind": "alert",
            "payload": f'{{"event": "run.failed", "number": {batch * count + number}}}',
            "created_at": at,
            "next_try_at": at,
        }
        for number in range(count)
    ]
    with write_transaction(engine) as connection:
        connection.execute(insert(outbox), rows)
    return [str(row["id"]) for row in rows]


def waiting(engine: Engine) -> int:
    with engine.connect() as connection:
        return len(connection.execute(select(outbox.c.id)).all())
