"""The sender, with a broker in memory that can be away and forget."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from app.fleet import sender as module
from app.fleet.sender import Sender, open_broker
from app.ledger.runs import Ticket
from tests.unit.fleet.conftest import wait_until

pytestmark = pytest.mark.unit

OWNER = "scheduler1"


def ticket(run_id: str = "1", *, priority: int = 0, epoch: int = 1) -> Ticket:
    return Ticket(
        run_id=run_id,
        job_id="job",
        task="task",
        kind="manual",
        scheduled_for=0,
        attempt=1,
        epoch=epoch,
        priority=priority,
        executor="celery",
        max_instances=1,
        misfire_grace_time=300,
        kwargs="{}",
        created_by="test",
    )


@dataclass
class MemoryBroker:
    """A queue that nobody empties. While it is away, nothing can be sent or asked."""

    queue: list[tuple[str, str, int]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    is_away: bool = False
    hangs: threading.Event | None = None
    connections: int = 0

    def connect(self) -> MemoryBroker:
        self._answer()
        self.connections += 1
        return self

    def publish(self, ticket: Ticket, owner: str) -> None:
        self._answer()
        self.queue.append((ticket.run_id, owner, ticket.epoch))
        self.sent.append(ticket.run_id)

    def depth(self) -> int:
        self._answer()
        return len(self.queue)

    def close(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.hangs is not None:
            self.hangs.wait(20)
        if self.is_away:
            raise ConnectionError("no broker")


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def sender(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    monkeypatch.setattr(module, "AGAIN_S", (0.1, 0.2))
    monkeypatch.setattr(module, "_RETRY_S", (0.05,))
    started = Sender(broker.connect)
    started.start(OWNER)
    yield started
    started.close()


def let_pass(condition: Callable[[], object], seconds: float) -> None:
    """Time passes; the condition must hold all along."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < end:
        assert condition()
        pause.wait(0.02)


def test_the_most_urgent_are_sent_first_each_once(sender: Sender, broker: MemoryBroker) -> None:
    tickets = [ticket("low", priority=-5), ticket("high", priority=7), ticket("usual")]
    for _ in range(5):
        sender.send(tickets)
    wait_until(lambda: len(broker.sent) == 3, "three messages")
    assert broker.sent == ["high", "usual", "low"]
    assert broker.queue[0] == ("high", OWNER, 1)


def test_what_waits_in_the_queue_is_not_sent_again(sender: Sender, broker: MemoryBroker) -> None:
    sender.send([ticket()])
    wait_until(lambda: broker.sent, "the message")
    let_pass(lambda: (sender.send([ticket()]), broker.sent == ["1"])[1], 0.6)


def test_what_the_queue_lost_and_still_waits_is_sent_again(sender: Sender, broker: MemoryBroker) -> None:
    sender.send([ticket()])
    wait_until(lambda: broker.sent, "the message")
    broker.queue.clear()
    wait_until(lambda: (sender.send([ticket()]), broker.sent == ["1", "1"])[1], "the message again")


def test_a_full_queue_of_others_does_not_hold_it_back_for_ever(
    sender: Sender, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STILL_QUEUED_S", 0.3)
    sender.send([ticket()])
    wait_until(lambda: broker.sent, "the message")
    broker.queue[:] = [("other", "another", 1)] * 10
    wait_until(lambda: (sender.send([ticket()]), broker.sent == ["1", "1"])[1], "the message again")


def test_a_full_queue_of_others_does_not_hold_it_back_beyond_its_grace_time(
    sender: Sender, broker: MemoryBroker
) -> None:
    short = replace(ticket(), misfire_grace_time=1)
    sender.send([short])
    wait_until(lambda: broker.sent, "the message")
    broker.queue[:] = [("other", "another", 1)] * 10
    wait_until(lambda: (sender.send([short]), broker.sent == ["1", "1"])[1], "the message again")


def test_what_waits_no_more_is_not_sent_again(
    sender: Sender, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FORGET_S", 0.05)
    sender.send([ticket()])
    wait_until(lambda: broker.sent, "the message")
    broker.queue.clear()
    # Named no more before it would be sent again.
    threading.Event().wait(0.07)
    sender.send([ticket("2")])
    let_pass(lambda: broker.sent.count("1") == 1, 0.4)


def test_what_was_taken_by_a_worker_is_not_sent_again(
    sender: Sender, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STILL_NAMED_S", 0.05)
    sender.send([ticket()])
    wait_until(lambda: broker.sent, "the message")
    broker.queue.clear()  # a worker has it, and the scheduler names it no more
    let_pass(lambda: broker.sent == ["1"], 0.6)


def test_what_the_scheduler_names_is_sent_at_once_whatever_this_machines_clock_says(
    sender: Sender, broker: MemoryBroker
) -> None:
    hour_s = 3600
    sender.send([replace(ticket(), attempt=2, not_before=round((time.time() + hour_s) * 1_000_000))])
    wait_until(lambda: broker.sent, "the message", timeout_s=5)


def test_a_new_epoch_is_a_new_message(sender: Sender, broker: MemoryBroker) -> None:
    sender.send([ticket()])
    wait_until(lambda: broker.sent, "the message")
    sender.send([ticket(epoch=2)])
    wait_until(lambda: ("1", OWNER, 2) in broker.queue, "the message with the new key")


def test_an_outage_is_survived_and_what_waited_is_sent(sender: Sender, broker: MemoryBroker) -> None:
    broker.is_away = True
    sender.send([ticket("1"), ticket("2")])
    let_pass(lambda: not broker.sent, 0.2)
    broker.is_away = False
    wait_until(lambda: sorted(broker.sent) == ["1", "2"], "both messages")


def test_a_broker_that_hangs_never_holds_up_the_scheduler(sender: Sender, broker: MemoryBroker) -> None:
    broker.hangs = threading.Event()
    began = time.monotonic()
    for number in range(100):
        sender.send([ticket(str(number))])
    assert time.monotonic() - began < 1.0
    broker.hangs.set()
    wait_until(lambda: len(broker.sent) == 100, "all messages")


def test_real_clients_give_up_a_broker_that_is_not_there() -> None:
    began = time.monotonic()
    for url in ("redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"):
        with pytest.raises(Exception, match=r"refused"):
            open_broker(url)
    assert time.monotonic() - began < 15.0


def test_celery_is_not_loaded_before_there_is_something_to_send() -> None:
    script = (
        "import sys, app.scheduler, app.factory, app.fleet.sender;"
        " print([name for name in ('celery', 'kombu') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
