"""The thread that delivers: a real receiver, a real store, real deaths."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from app.alerts import post
from app.alerts import sender as sender_module
from app.alerts.outbox import KEEP_S, lease
from app.alerts.sender import LONGEST_WAIT_S, Sender, wait_before_retry_s
from app.db.clock import now_us
from app.db.engines import write_transaction
from e2e.harness.receiver import Receiver, Reply
from e2e.harness.waiting import wait_until

from .conftest import Outbox, open_store

StartSender = Callable[..., Sender]
ROOT = Path(__file__).resolve().parents[3]


def test_alerts_arrive_in_order_once_and_leave_the_outbox(
    box: Outbox, receiver: Receiver, start_sender: StartSender
) -> None:
    ids = [box.put_alert(number) for number in range(50)]
    start_sender()
    wait_until("an empty outbox", box.is_empty, within=10)
    assert [got.json["id"] for got in receiver.received] == ids
    assert receiver.received[7].json == {"id": ids[7], "event": "run.failed", "job_id": "job", "error": "第 7"}
    assert receiver.received[7].query == {"token": ["sesame"]}


def test_two_senders_side_by_side_send_nothing_twice(
    box: Outbox, receiver: Receiver, start_sender: StartSender, tmp_path: Path
) -> None:
    other = open_store(tmp_path)
    start_sender()
    start_sender(engine=other)
    ids = [box.put_alert(number) for number in range(150)]
    wait_until("an empty outbox", box.is_empty, within=20)
    assert [got.json["id"] for got in receiver.received] == ids, "in order, and each once"
    other.dispose()


def test_a_sender_that_dies_between_send_and_delete_lets_another_send_it_again(
    box: Outbox, receiver: Receiver, start_sender: StartSender, tmp_path: Path
) -> None:
    row_id = box.put_alert()
    receiver.replies.append(Reply(after_s=2))
    program = (
        "import sys, threading\n"
        "from functools import partial\n"
        "from app.alerts.letters import alert_letter\n"
        "from app.alerts.sender import Sender\n"
        "from app.db.engines import create_engine_for\n"
        "store, webhook = sys.argv[1:]\n"
        "letter = partial(alert_letter, webhook_url=webhook)\n"
        "Sender(create_engine_for(store), 'alert', letter=letter, address=lambda _: webhook).start()\n"
        "threading.Event().wait()\n"
    )
    store = f"sqlite:///{tmp_path}/scheduler.db"
    process = subprocess.Popen([sys.executable, "-c", program, store, receiver.url("/hook")], cwd=ROOT)
    try:
        wait_until("a request of the process", lambda: len(receiver.received), within=20)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert [row["id"] for row in box.rows()] == [row_id]
    start_sender()
    box.make_due()  # as if the dead one's lease had ended
    wait_until("an empty outbox", box.is_empty, within=10)
    assert [got.json["id"] for got in receiver.received] == [row_id, row_id], "the receiver can tell by the id"


def test_waits_double_up_to_their_limit() -> None:
    for attempts, least in [(1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (5000, 300)]:
        waits = [wait_before_retry_s(attempts, 300.0) for _ in range(50)]
        assert least <= min(waits)
        assert max(waits) <= least * 1.2
        assert len(set(waits)) > 1


def test_a_receiver_that_fails_is_tried_ever_more_seldom_and_complained_of_once(
    box: Outbox, receiver: Receiver, start_sender: StartSender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.alerts")
    receiver.replies.extend([Reply(500), Reply(500)])
    ids = [box.put_alert(number) for number in range(3)]
    start_sender()
    wait_until("an empty outbox", box.is_empty, within=20)
    assert [got.json["id"] for got in receiver.received] == [ids[0], ids[0], *ids], "nothing overtakes the first"
    first, second, third = (got.time for got in receiver.received[:3])
    assert second - first >= 1
    assert third - second >= 2
    # The outbox is empty a moment before that is told.
    lines = wait_until(
        "both lines",
        # Another test's sender may not have ended yet.
        lambda: [line for record in caplog.records if receiver.url().rstrip("/") in (line := record.getMessage())],
        lambda found: len(found) >= 2,
        within=5,
    )
    assert len(lines) == 2, lines
    assert "cannot be delivered: 500" in lines[0]
    assert "delivered again" in lines[1]
    assert "sesame" not in "".join(lines)


def test_what_failed_is_on_record(box: Outbox, receiver: Receiver, start_sender: StartSender) -> None:
    receiver.down()
    box.put_alert()
    start_sender()
    row = wait_until("a try on record", lambda: box.rows()[0], lambda row: row["attempts"] >= 2, within=10)
    assert row["last_error"] == "Connection refused"
    receiver.up()
    wait_until("an empty outbox", box.is_empty, within=10)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(box: Outbox, receiver: Receiver, start_sender: StartSender, status: int) -> None:
    receiver.replies.append(Reply(status, {"Retry-After": "120"}))
    box.put_alert()
    start_sender()
    [row] = wait_until("a try on record", box.rows, lambda rows: rows[0]["attempts"] == 1, within=10)
    assert 100 < (row["next_try_at"] - now_us()) / 1e6 <= 120


def test_a_refused_alert_is_kept_and_the_others_go_on(
    box: Outbox, receiver: Receiver, start_sender: StartSender, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.replies.extend([Reply(400), Reply(200), Reply(400)])
    refused, other = box.put_alert(1), box.put_alert(2)
    start_sender()
    wait_until("an empty outbox", box.is_empty, within=20)
    assert [got.json["id"] for got in receiver.received] == [refused, other, refused, refused]
    [line] = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert refused in line


def test_a_refused_ping_is_dropped_with_a_line(
    box: Outbox, receiver: Receiver, start_sender: StartSender, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.reply = Reply(404)
    box.put_ping(receiver.url("/sesame"), "start")
    box.put_ping(receiver.url("/sesame"))
    start_sender("ping")
    wait_until("an empty outbox", box.is_empty, within=10)
    assert [got.path for got in receiver.received] == ["/sesame/start", "/sesame"]
    [line] = [record.getMessage() for record in caplog.records]
    assert "pings of job job" in line
    assert "404" in line
    assert "sesame" not in line


@pytest.mark.parametrize("status", [408, 425, 429, 500])
def test_a_ping_is_tried_again(box: Outbox, receiver: Receiver, start_sender: StartSender, status: int) -> None:
    receiver.replies.append(Reply(status))
    box.put_ping(receiver.url("/u"), "start")
    box.put_ping(receiver.url("/u"))
    start_sender("ping")
    wait_until("an empty outbox", box.is_empty, within=10)
    assert [got.path for got in receiver.received] == ["/u/start", "/u/start", "/u"]


def test_a_receiver_that_hangs_costs_the_other_pings_one_wait(
    box: Outbox, receiver: Receiver, start_sender: StartSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "ANSWER_S", 0.5)
    with Receiver() as hanging:
        hanging.reply = Reply(after_s=5)
        for number in range(10):  # ten jobs whose checks lie on one server
            box.put_ping(hanging.url(f"/{number}"))
        box.put_ping(receiver.url("/u"))
        start_sender("ping")
        wait_until("the ping to the other receiver", lambda: receiver.to("/u"), within=10)
        assert len(hanging.received) == 1
        waiting = box.rows()
        assert len(waiting) == 10
        assert sorted(row["attempts"] for row in waiting) == [0] * 9 + [1]


def test_what_cannot_be_read_is_dropped_with_a_line(
    box: Outbox, receiver: Receiver, start_sender: StartSender, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = box.put("alert", '{"event": ')
    whole = box.put_alert()
    start_sender()
    wait_until("an empty outbox", box.is_empty, within=10)
    assert [got.json["id"] for got in receiver.received] == [whole]
    assert damaged in caplog.text


def test_messages_are_given_up_with_a_line(
    box: Outbox, receiver: Receiver, start_sender: StartSender, caplog: pytest.LogCaptureFixture
) -> None:
    """A sender of pings gives up alerts too: where no webhook is set any more, there is no other."""
    box.put_alert(age_s=KEEP_S["alert"] + 1)
    start_sender("ping")
    wait_until("an empty outbox", box.is_empty, within=10)
    assert receiver.received == []
    assert "1 alerts were given up undelivered: older than 7 days" in caplog.text


def test_a_delivery_that_could_not_be_written_down_is_not_repeated(
    box: Outbox,
    receiver: Receiver,
    start_sender: StartSender,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.replies.append(Reply(after_s=0.5))
    box.put_alert()
    start_sender()
    wait_until("a request", lambda: receiver.received, within=10)
    with write_transaction(box.engine) as connection:  # the store is away while the answer comes
        connection.execute(text("ALTER TABLE outbox RENAME TO outbox_away"))
    wait_until("a complaint", lambda: "the store cannot be used" in caplog.text, within=10)
    with write_transaction(box.engine) as connection:
        connection.execute(text("ALTER TABLE outbox_away RENAME TO outbox"))
    wait_until("an empty outbox", box.is_empty, within=10)
    assert len(receiver.received) == 1
    assert caplog.text.count("the store cannot be used") == 1


def test_a_stop_delivers_what_the_last_runs_left(
    box: Outbox, receiver: Receiver, start_sender: StartSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = start_sender()
    first = box.put_alert()
    wait_until("an empty outbox", box.is_empty, within=10)
    monkeypatch.setattr(sender_module, "LOOK_S", 60)  # soon only the stop makes it look again
    row_id = box.put_alert()
    sender.begin_stop(2)
    assert sender.join(5)
    assert [got.json["id"] for got in receiver.received] == [first, row_id]
    assert box.is_empty()


def test_a_stop_begins_nothing_after_its_time_and_hands_back_what_it_had(
    box: Outbox, receiver: Receiver, start_sender: StartSender
) -> None:
    receiver.reply = Reply(after_s=0.3)
    ids = [box.put_alert(number) for number in range(10)]
    sender = start_sender()
    wait_until("a first request", lambda: receiver.received, within=10)
    began = time.monotonic()
    sender.begin_stop(0)
    assert sender.join(5)
    assert time.monotonic() - began < 3
    sent = [got.json["id"] for got in receiver.received]
    assert sent == ids[: len(sent)]
    assert len(sent) < 5
    assert [message.id for message in lease(box.engine, "alert")] == ids[len(sent) :], "due for the next scheduler"


def test_a_stop_does_not_wait_for_a_receiver_that_hangs(
    box: Outbox, receiver: Receiver, start_sender: StartSender
) -> None:
    receiver.reply = Reply(after_s=3)
    row_id = box.put_alert()
    sender = start_sender()
    wait_until("a request", lambda: receiver.received, within=10)
    sender.begin_stop(0)
    assert not sender.join(0.2)
    assert [row["id"] for row in box.rows()] == [row_id]


def test_waits_stay_below_what_is_given_up() -> None:
    assert all(LONGEST_WAIT_S[kind] * 1.2 < KEEP_S[kind] for kind in KEEP_S)
