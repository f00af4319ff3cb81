"""Leases, settlements and what is given up, on a real SQLite file."""

from __future__ import annotations

import pytest

from app.alerts import outbox as outbox_module
from app.alerts.outbox import (
    BATCH,
    KEEP_S,
    LEASE_S,
    REFUSED,
    GivenUp,
    Retry,
    Settlement,
    give_up_old,
    lease,
    settle,
    try_all_again,
)
from app.db.clock import now_us

from .conftest import Outbox


def test_a_leased_message_is_nobody_elses_until_its_lease_ends(box: Outbox) -> None:
    row_id = box.put_alert()
    [message] = lease(box.engine, "alert")
    assert (message.id, message.url, message.attempts) == (row_id, None, 0)
    assert LEASE_S - 5 < (message.leased_until - now_us()) / 1e6 <= LEASE_S
    assert lease(box.engine, "alert") == []
    box.make_due()
    assert [again.id for again in lease(box.engine, "alert")] == [row_id]


def test_kinds_are_leased_apart_and_the_oldest_first(box: Outbox) -> None:
    alerts = [box.put_alert(number) for number in range(BATCH + 5)]
    ping = box.put_ping("http://hc.example/u")
    assert [message.id for message in lease(box.engine, "alert")] == alerts[:BATCH]
    assert [message.id for message in lease(box.engine, "ping")] == [ping]


def test_messages_to_one_address_wait_for_those_before_them(box: Outbox) -> None:
    first, second = box.put_ping("http://hc.example/a", "start"), box.put_ping("http://hc.example/a")
    other = box.put_ping("http://hc.example/b")
    leased = lease(box.engine, "ping")
    assert [message.id for message in leased] == [first, second, other]
    third = box.put_ping("http://hc.example/a", "start")
    late = box.put_ping("http://hc.example/c")
    assert [message.id for message in lease(box.engine, "ping")] == [late], "third would overtake what is being sent"

    settle(
        box.engine,
        Settlement(gone=[other, late], retries=[Retry(leased[0], 60.0, "503")], untouched=[leased[1]]),
    )
    assert lease(box.engine, "ping") == [], "the first is waiting for its next try"
    box.make_due()
    assert [message.id for message in lease(box.engine, "ping")] == [first, second, third]


def test_a_refused_alert_holds_up_nobody(box: Outbox) -> None:
    box.put_alert()
    [refused] = lease(box.engine, "alert")
    settle(box.engine, Settlement(retries=[Retry(refused, 3600.0, f"{REFUSED}400 Bad Request")]))
    newer = box.put_alert()
    assert [message.id for message in lease(box.engine, "alert")] == [newer]


def test_a_try_that_failed_is_counted_and_one_that_was_not_made_is_not(box: Outbox) -> None:
    box.put_alert(1)
    box.put_alert(2)
    tried, waits = lease(box.engine, "alert")
    settle(box.engine, Settlement(retries=[Retry(tried, 8.0, "503 down"), Retry(waits, 8.0)]))
    assert [(row["attempts"], row["last_error"]) for row in box.rows()] == [(1, "503 down"), (0, None)]
    for row in box.rows():
        assert 3 < (row["next_try_at"] - now_us()) / 1e6 <= 8


def test_a_lease_that_ended_settles_nothing_but_what_was_delivered(box: Outbox) -> None:
    """The row is in another sender's hands by then: its lease must stand; a delivery is a fact all the same."""
    box.put_alert(1)
    kept = box.put_alert(2)
    delivered, failed = lease(box.engine, "alert")
    box.make_due()
    assert len(lease(box.engine, "alert")) == 2
    settle(box.engine, Settlement(gone=[delivered.id], retries=[Retry(failed, 0.0, "500")]))
    [row] = box.rows()
    assert (row["id"], row["attempts"], row["last_error"]) == (kept, 0, None)
    assert lease(box.engine, "alert") == []


def test_settling_twice_changes_nothing(box: Outbox) -> None:
    box.put_alert(1)
    box.put_alert(2)
    delivered, failed = lease(box.engine, "alert")
    settlement = Settlement(gone=[delivered.id], retries=[Retry(failed, 60.0, "500")])
    settle(box.engine, settlement)
    settle(box.engine, settlement)
    assert [row["attempts"] for row in box.rows()] == [1]


@pytest.mark.parametrize("kind", ["alert", "ping"])
def test_what_is_too_old_is_given_up(box: Outbox, kind: str) -> None:
    put = box.put_alert if kind == "alert" else lambda **options: box.put_ping("http://hc.example/u", **options)
    put(age_s=KEEP_S[kind] + 60)  # type: ignore[index]
    put(age_s=KEEP_S[kind] + 30)  # type: ignore[index]
    young = put(age_s=KEEP_S[kind] - 60)  # type: ignore[index]
    first, second, third = lease(box.engine, kind)  # type: ignore[arg-type]
    settle(box.engine, Settlement(retries=[Retry(first, 1, "500 old"), Retry(second, 1, "500 new"), Retry(third, 1)]))
    assert give_up_old(box.engine) == [GivenUp(kind, 2, "500 new")]  # type: ignore[arg-type]
    assert [row["id"] for row in box.rows()] == [young]
    assert give_up_old(box.engine) == []


def test_what_is_too_much_is_given_up_the_oldest_first(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MOST_ROWS", 3)
    alerts = [box.put_alert(number) for number in range(5)]
    pings = [box.put_ping("http://hc.example/u") for _ in range(3)]
    assert give_up_old(box.engine) == [GivenUp("alert", 2, None)]
    assert [row["id"] for row in box.rows()] == sorted(alerts[2:] + pings)


def test_a_new_start_tries_what_waits_long_and_leaves_what_is_being_sent(box: Outbox) -> None:
    box.put_alert(1)
    box.put_alert(2)
    waiting, sent = lease(box.engine, "alert")
    settle(box.engine, Settlement(retries=[Retry(waiting, 3600.0, f"{REFUSED}404")]))
    try_all_again(box.engine, "alert")
    due = {row["id"]: row["next_try_at"] for row in box.rows()}
    assert due[waiting.id] <= now_us()
    assert due[sent.id] == sent.leased_until
