"""Claim before run: rows and next run times in one transaction."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.dialects import postgresql

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.ledger.claim import active_counts, claim, due_jobs

from .conftest import START, Store, seconds


def test_a_claim_writes_the_run_and_advances_the_job(store: Store) -> None:
    store.add(kwargs={"a": 1}, priority=3)
    store.due_at(START)
    (ticket,) = store.claim(START + seconds(0.01)).tickets
    (run,) = store.runs()
    assert (run["run_id"], run["outcome"], run["owner"], run["epoch"]) == (ticket.run_id, "pending", "n1", 1)
    assert run["scheduled_for"] == to_us(START) == ticket.scheduled_for
    assert ticket.kwargs == '{"a":1}'
    assert store.job()["next_run_time"] == to_us(START + seconds(1))


def test_what_is_claimed_is_not_claimed_again(store: Store) -> None:
    store.add()
    store.due_at(START)
    assert len(store.claim(START).tickets) == 1
    assert store.claim(START, owner="n2").tickets == []


def test_a_moment_on_record_does_not_start_again(store: Store) -> None:
    store.add(max_instances=5)
    store.due_at(START)
    store.claim(START)
    store.due_at(START)  # a clock that was set back, an edit: the same moment comes round again
    assert store.claim(START).tickets == []
    assert len(store.runs()) == 1
    assert store.job()["next_run_time"] == to_us(START + seconds(1))


def test_the_most_urgent_job_comes_first(store: Store) -> None:
    for name, priority in (("low", 0), ("high", 9), ("middle", 5)):
        store.add(name, priority=priority)
        store.due_at(START, name)
    assert [ticket.job_id for ticket in store.claim(START).tickets] == ["high", "middle", "low"]


def test_instances_are_counted_over_all_nodes_and_kinds(store: Store) -> None:
    store.add(max_instances=2)
    store.ledger.request_run("job", "test")
    for second in range(3):
        store.due_at(START + seconds(second))
        store.claim(START + seconds(second), owner=f"n{second}")
    assert [run["outcome"] for run in store.runs(kind="schedule")] == ["pending", "skipped", "skipped"]
    assert "max_instances (2)" in store.runs(outcome="skipped")[0]["reason"]


@pytest.mark.parametrize(
    ("column", "content"),
    [
        ("trigger", "not json"),
        ("trigger", '{"type":"cron","second":"*","timezone":"No/Where"}'),
        ("trigger", '{"type":"moon"}'),
        ("trigger", "[]"),
        ("trigger", r'{"type":"cron","hour":"\ud800","timezone":"UTC"}'),
        ("trigger", r'{"type":"cron","hour":"1\u0000","timezone":"UTC"}'),
        ("kwargs", "\x00"),
        ("kwargs", '"text"'),
    ],
)
def test_an_unreadable_row_is_set_aside_untouched_and_stops_nobody(store: Store, column: str, content: str) -> None:
    for name in ("broken", "sound"):
        store.add(name)
        store.due_at(START, name)
    store.set_job("broken", **{column: content})
    assert [ticket.job_id for ticket in store.claim(START).tickets] == ["sound"]
    broken = store.job("broken")
    assert broken[column] == content
    assert broken["problem"]
    assert "\0" not in broken["problem"], "PostgreSQL would not take it"
    assert store.claim(START + seconds(0.5)).tickets == []
    seen = store.ledger.get_job("broken")
    assert seen is not None
    assert seen.problem == broken["problem"]


def test_a_failing_transaction_leaves_nothing_behind(store: Store) -> None:
    store.add()
    store.due_at(START)

    def claim_and_fail(connection: Connection) -> None:
        claim(connection, owner="n1", now=to_us(START))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError), write_transaction(store.engine) as connection:
        claim_and_fail(connection)
    assert store.runs() == []
    assert store.job()["next_run_time"] == to_us(START)
    assert len(store.claim(START).tickets) == 1


def test_folded_moments_are_one_row_with_a_count(store: Store) -> None:
    store.add(misfire_grace_time=60)
    store.due_at(START)
    now = START + seconds(3600)
    assert len(store.claim(now).tickets) == 1
    missed, coalesced, run = store.runs()
    assert (missed["outcome"], missed["count"], missed["scheduled_from"]) == ("missed", 3540, to_us(START))
    assert (coalesced["outcome"], coalesced["count"]) == ("coalesced", 60)
    assert (run["scheduled_for"], run["count"], run["scheduled_from"]) == (to_us(now), 1, None)


def test_bytes_that_are_no_text_set_their_job_aside_and_stop_nobody(store: Store) -> None:
    for name in ("broken", "sound"):
        store.add(name)
        store.due_at(START, name)
    with write_transaction(store.engine) as connection:
        connection.exec_driver_sql("""UPDATE jobs SET kwargs = CAST(x'7b22ff223a317d' AS TEXT) WHERE id = 'broken'""")
    assert [ticket.job_id for ticket in store.claim(START).tickets] == ["sound"]
    assert store.job("broken")["problem"]


@pytest.mark.parametrize("job_id", [None, "job"])
def test_active_runs_are_counted_by_their_own_index(store: Store, job_id: str | None) -> None:
    seen: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", note)
    with store.engine.connect() as connection:
        active_counts(connection, job_id)
        event.remove(store.engine, "before_cursor_execute", note)
        statement, parameters = seen[-1]
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    assert "ix_runs_active" in plan[0].detail


@pytest.mark.parametrize(("only", "lock"), [("job", "FOR UPDATE"), (None, "FOR UPDATE SKIP LOCKED")])
def test_claims_lock_their_jobs_where_rows_can_be_locked(only: str | None, lock: str) -> None:
    statement = str(due_jobs(0, only=only).compile(dialect=postgresql.dialect()))
    assert statement.endswith(lock)
