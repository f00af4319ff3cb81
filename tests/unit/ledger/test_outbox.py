"""The outbox: which events are told, to whom, and in whose transaction."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import outbox
from app.ledger import Ticket
from app.ledger.claim import claim
from app.ledger.outbox import LOG_TAIL
from app.ledger.record import Finish, record_finishes, record_missed, record_starts
from app.ledger.recover import Suspects, recover, release

from .conftest import START, Store

NOW = to_us(START)


def messages(store: Store, kind: str = "alert") -> list[dict[str, Any]]:
    with store.engine.connect() as connection:
        rows = connection.execute(select(outbox).where(outbox.c.kind == kind).order_by(outbox.c.id)).mappings()
        return [{**json.loads(row["payload"]), "url": row["url"]} for row in rows]


def events(store: Store) -> list[str]:
    return [message["event"] for message in messages(store)]


def started(store: Store, job_id: str = "job", *, moment: int = 0, **job: Any) -> Ticket:
    if not moment:
        store.add(job_id, **job)
    at = START + timedelta(seconds=moment)
    store.due_at(at, job_id)
    (ticket,) = store.claim(at, only=job_id).tickets
    with write_transaction(store.engine) as connection:
        record_starts(connection, [ticket], owner="n1", node="n1", now=NOW)
    return ticket


def end(store: Store, ticket: Ticket, outcome: str, *, alerts: bool = True, **fields: Any) -> None:
    with write_transaction(store.engine) as connection:
        finish = Finish(ticket, outcome, 5, **fields)  # type: ignore[arg-type]
        record_finishes(connection, [finish], owner="n1", now=ticket.scheduled_for, node="node-1", alerts=alerts)


def test_a_failure_is_told_with_all_that_one_wants_to_know(store: Store) -> None:
    ticket = started(store, name="The job")
    end(store, ticket, "failed", error="ValueError: no")
    (message,) = messages(store)
    assert message == {
        "event": "run.failed",
        "at": START.isoformat(),
        "job_id": "job",
        "job_name": "The job",
        "task": "sample",
        "run_id": ticket.run_id,
        "scheduled_for": START.isoformat(),
        "attempt": 1,
        "count": 1,
        "node": "node-1",
        "reason": None,
        "error": "ValueError: no",
        "url": None,
    }
    assert store.job()["is_alarming"]


def test_the_first_success_after_an_alarm_is_told_and_the_next_is_not(store: Store) -> None:
    end(store, started(store), "failed")
    end(store, started(store, moment=1), "failed")
    end(store, started(store, moment=2), "success")
    end(store, started(store, moment=3), "success")
    assert events(store) == ["run.failed", "run.failed", "job.recovered"]
    assert not store.job()["is_alarming"]


def test_a_failure_that_is_tried_again_is_not_told(store: Store) -> None:
    end(store, started(store, max_attempts=2), "failed")
    assert events(store) == []


def test_missed_moments_are_told_in_one_message(store: Store) -> None:
    store.add(misfire_grace_time=5)
    store.due_at(START)
    with write_transaction(store.engine) as connection:
        claim(connection, owner="n1", now=to_us(START + timedelta(seconds=60)), alerts=True)
    (message,) = messages(store)
    assert (message["event"], message["count"]) == ("run.missed", 55)


def test_a_claimed_run_that_came_too_late_is_told(store: Store) -> None:
    store.add()
    store.due_at(START)
    claimed = store.claim(START).tickets
    with write_transaction(store.engine) as connection:
        record_missed(connection, claimed, owner="n1", now=NOW, alerts=True)
    assert events(store) == ["run.missed"]


@pytest.mark.parametrize("how", ["reaper", "stop", "child"])
def test_a_loss_is_told_whoever_finds_it(store: Store, how: str) -> None:
    ticket = started(store)
    if how == "child":
        end(store, ticket, "lost", reason="the process that ran it died")
    else:
        with write_transaction(store.engine) as connection:
            if how == "reaper":
                recover(connection, me="n2", suspects=Suspects(silent={"n1"}, gone={"n1"}), now=NOW, alerts=True)
            else:
                release(connection, me="n1", now=NOW, alerts=True)
    (message,) = messages(store)
    assert (message["event"], message["run_id"]) == ("run.lost", ticket.run_id)


def test_without_a_receiver_nothing_is_written(store: Store) -> None:
    end(store, started(store), "failed", alerts=False)
    assert messages(store) == []
    assert not store.job()["is_alarming"]


def test_pings_tell_of_start_and_end_whether_or_not_there_are_alerts(store: Store) -> None:
    ticket = started(store, ping_url="https://ping.example/uuid")
    end(store, ticket, "success", alerts=False, log="x" * (LOG_TAIL + 5) + "end")
    end(store, started(store, moment=1), "failed", alerts=False)
    pings = messages(store, "ping")
    assert [ping["signal"] for ping in pings] == ["success", "fail"]
    assert {ping["url"] for ping in pings} == {"https://ping.example/uuid"}
    assert len(pings[0]["log"]) == LOG_TAIL
    assert pings[0]["log"].endswith("end")


def test_a_failed_transaction_tells_nothing(store: Store) -> None:
    ticket = started(store)
    with suppress(RuntimeError), write_transaction(store.engine) as connection:
        record_finishes(connection, [Finish(ticket, "failed", 5)], owner="n1", now=NOW, alerts=True)
        raise RuntimeError
    assert events(store) == []


def test_the_end_of_one_that_was_run_again_meanwhile_is_not_told(store: Store) -> None:
    ticket = started(store, retry_on_loss=True, ping_url="https://hc.example.org/1")
    with write_transaction(store.engine) as connection:
        suspects = Suspects(silent={"n1"}, gone={"n1"})
        recover(connection, me="n2", suspects=suspects, now=NOW, alerts=True)
    end(store, ticket, "success")  # its node was frozen, and comes back
    assert events(store) == ["run.lost"]
    assert [message["signal"] for message in messages(store, "ping")] == ["fail"]
    assert store.job()["is_alarming"]


def test_the_end_of_one_that_was_presumed_lost_is_told(store: Store) -> None:
    ticket = started(store)
    with write_transaction(store.engine) as connection:
        recover(connection, me="n2", suspects=Suspects(silent={"n1"}, gone={"n1"}), now=NOW, alerts=True)
    end(store, ticket, "success")
    assert events(store) == ["run.lost", "job.recovered"]
