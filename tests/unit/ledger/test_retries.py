"""Attempts: the next one after a failure, after a loss, and when there is none."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import runs
from app.ledger import Ticket
from app.ledger.record import Finish, record_finishes, record_starts
from app.ledger.recover import own_pending
from app.ledger.retries import JITTER, LONGEST_DELAY_S, delay_s

from .conftest import START, Store

NOW = to_us(START)


def started(store: Store, job_id: str = "job", **job: Any) -> Ticket:
    store.add(job_id, **job)
    store.due_at(START, job_id)
    (ticket,) = store.claim(START, only=job_id).tickets
    with write_transaction(store.engine) as connection:
        record_starts(connection, [ticket], owner="n1", node="n1", now=NOW)
    return ticket


def end(store: Store, ticket: Ticket, outcome: str, *, now: int = NOW, **options: Any) -> list[Ticket]:
    with write_transaction(store.engine) as connection:
        return record_finishes(
            connection,
            [Finish(ticket, outcome, 5)],
            owner="n1",
            now=now,
            **options,  # type: ignore[arg-type]
        )


def by_attempt(store: Store) -> dict[int, dict[str, Any]]:
    return {run["attempt"]: run for run in store.runs()}


@pytest.mark.parametrize(
    ("attempt", "base"), [(1, 60), (2, 120), (3, 240), (7, LONGEST_DELAY_S), (90, LONGEST_DELAY_S)]
)
def test_the_delay_doubles_up_to_an_hour_with_some_jitter(attempt: int, base: int) -> None:
    delays = [delay_s(attempt, 60) for _ in range(200)]
    assert min(delays) >= base
    assert max(delays) <= base * (1 + JITTER)
    assert len(set(delays)) > 1


def test_a_delay_that_is_longer_than_an_hour_stays() -> None:
    assert delay_s(5, 7200) >= 7200


def test_a_failed_run_gets_its_next_attempt_which_points_at_the_first(store: Store) -> None:
    first = started(store, max_attempts=3, retry_delay=10)
    (again,) = end(store, first, "failed")
    assert again.not_before is not None
    assert timedelta(seconds=10) <= timedelta(microseconds=again.not_before - NOW) <= timedelta(seconds=12)
    rows = by_attempt(store)
    assert rows[1]["outcome"] == "failed"
    assert (rows[2]["outcome"], rows[2]["first_run_id"], rows[2]["owner"]) == ("pending", first.run_id, "n1")
    with write_transaction(store.engine) as connection:
        record_starts(connection, [again], owner="n1", node="n1", now=again.not_before)
    (third,) = end(store, again, "failed", now=again.not_before)
    assert by_attempt(store)[3]["first_run_id"] == first.run_id
    with write_transaction(store.engine) as connection:
        record_starts(connection, [third], owner="n1", node="n1", now=NOW)
    assert end(store, third, "failed") == []
    assert sorted(by_attempt(store)) == [1, 2, 3]


def test_a_waiting_attempt_holds_the_jobs_instance(store: Store) -> None:
    first = started(store, max_attempts=2, retry_delay=600)
    end(store, first, "failed")
    claimed = store.claim(START + timedelta(seconds=1))
    assert claimed.tickets == []
    assert [fold.fate for _, fold in claimed.folded] == ["skipped"]


def test_an_end_that_is_recorded_twice_makes_one_next_attempt(store: Store) -> None:
    first = started(store, max_attempts=2)
    assert len(end(store, first, "failed")) == 1
    assert end(store, first, "failed") == []
    assert sorted(by_attempt(store)) == [1, 2]


def test_a_success_a_cancelled_run_and_one_without_attempts_are_not_tried_again(store: Store) -> None:
    assert end(store, started(store, "a", max_attempts=3), "success") == []
    assert end(store, started(store, "b", max_attempts=3), "cancelled") == []
    assert end(store, started(store, "c"), "failed") == []


def test_a_run_that_failed_while_somebody_wanted_it_cancelled_is_not_tried_again(store: Store) -> None:
    first = started(store, max_attempts=3)
    with write_transaction(store.engine) as connection:
        connection.execute(update(runs).values(cancel_requested_at=NOW))
    assert end(store, first, "failed") == []


@pytest.mark.parametrize(
    ("job", "attempts"),
    [({}, 1), ({"max_attempts": 5}, 1), ({"retry_on_loss": True}, 2), ({"retry_on_loss": True, "max_attempts": 3}, 3)],
)
def test_a_lost_run_is_run_again_only_where_its_job_says_so(store: Store, job: dict[str, Any], attempts: int) -> None:
    ticket: Ticket | None = started(store, **job)
    while ticket is not None:
        again = end(store, ticket, "lost")
        ticket = again[0] if again else None
        if ticket is not None:
            assert ticket.not_before is None
            with write_transaction(store.engine) as connection:
                record_starts(connection, [ticket], owner="n1", node="n1", now=NOW)
    assert len(store.runs()) == attempts


def test_the_next_attempt_may_be_left_to_anybody(store: Store) -> None:
    end(store, started(store, max_attempts=2), "failed", next_owner="")
    assert by_attempt(store)[2]["owner"] == ""


@pytest.mark.parametrize("stop", ["pause", "disable", "delete"])
def test_a_job_that_was_stopped_repeats_nothing(store: Store, stop: str) -> None:
    changes = {
        "pause": lambda: store.ledger.pause_job("job", by="test"),
        "disable": lambda: store.ledger.change_job("job", {"is_enabled": False}, by="test"),
        "delete": lambda: store.ledger.delete_job("job", by="test"),
    }
    first = started(store, max_attempts=3)
    (waiting,) = end(store, first, "failed")
    running = started(store, "other", max_attempts=3)
    changes[stop]()
    assert by_attempt(store)[2]["outcome"] == "cancelled"
    with write_transaction(store.engine) as connection:
        assert record_starts(connection, [waiting], owner="n1", node="n1", now=waiting.not_before or 0) == set()
    store.ledger.pause_job("other", by="test")
    assert end(store, running, "failed") == [], "it was running when the job was stopped"


def test_a_run_by_hand_is_repeated_though_its_job_is_paused(store: Store) -> None:
    store.add(max_attempts=2)
    store.ledger.pause_job("job", by="test")
    run = store.ledger.request_run("job", "somebody")
    with write_transaction(store.engine) as connection:
        (ticket,) = own_pending(connection, me="")
        record_starts(connection, [ticket], owner="", node="n1", now=NOW)
        (again,) = record_finishes(connection, [Finish(ticket, "failed", 5)], owner="", now=NOW)
    assert again.first_run_id == run.run_id
