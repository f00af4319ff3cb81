"""The sender: carries messages of a scheduler's pending runs to the broker, in a thread of its own.

The ledger is the queue that counts; the broker's is a way to wake a worker. So a message is sent again when its run is
still pending after a while, and the loop of the scheduler never waits for a broker.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from app.ledger.runs import Ticket

logger = logging.getLogger(__name__)

AGAIN_S = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""After so many seconds a message whose run is still pending is sent again, for the first time, the second, ..."""
STILL_QUEUED_S = 600.0
"""The same, while the broker holds at least as many messages as wait here: most likely they are these, and a queue that
is long would only become longer."""
_STILL_NAMED_S = 1.2
"""What the scheduler named so lately is most likely still pending; all else has begun, and no message for it is sent
again."""
_FORGET_S = 10.0
"""What the scheduler has not named for so long is pending no more."""
_RETRY_S = (0.5, 1.0, 2.0)
"""Pauses after the first, second and every further failure to reach the broker."""
_COMPLAIN_S = 30.0
_CLOSE_S = 2.0


class Broker(Protocol):
    """A connection to a broker; `open_broker` makes one."""

    def publish(self, ticket: Ticket, owner: str) -> None:
        """Sends a run's message; raises where the broker did not take it."""

    def depth(self) -> int:
        """How many messages wait in the queue."""

    def close(self) -> None:
        """Gives the connection up."""


@dataclass(slots=True)
class _Waiting:
    ticket: Ticket
    named_at: float
    due_at: float
    sent_at: float = 0.0
    times: int = 0


class Sender:
    """The ledger's Fleet (app.ledger.fleet) of one scheduler; `connect` opens the broker."""

    def __init__(self, connect: Callable[[], Broker]) -> None:
        self._connect = connect
        self._owner = ""
        self._changed = threading.Condition()
        self._named: dict[str, Ticket] = {}  # since the thread last looked
        self._closed = False
        self._waiting: dict[str, _Waiting] = {}
        self._broker: Broker | None = None
        self._failures = 0
        self._complained_at = float("-inf")
        self._thread = threading.Thread(target=self._work, name="fleet-sender", daemon=True)

    def start(self, owner: str) -> None:
        """Begins to send, for the scheduler whose node's id is `owner`."""
        self._owner = owner
        self._thread.start()

    def send(self, tickets: Sequence[Ticket]) -> None:
        """Takes the runs that wait for a worker; returns at once."""
        with self._changed:
            self._named.update((ticket.run_id, ticket) for ticket in tickets)
            self._changed.notify()

    def close(self) -> None:
        """Sends nothing more; waits for a message that is on its way, but not long."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._named or self._closed, self._patience(pause))
                if self._closed:
                    break
                named, self._named = self._named, {}
            self._note(named.values())
            if time.monotonic() < pause:
                continue
            try:
                self._send_due()
            except Exception as error:  # whatever a broker and its client may raise; the runs stay pending
                pause = time.monotonic() + self._fail(error)
        self._drop()

    def _patience(self, pause: float) -> float | None:
        if not self._waiting:
            return None
        due = min(waiting.due_at for waiting in self._waiting.values())
        return max(0.0, max(due, pause) - time.monotonic())

    def _note(self, named: Iterable[Ticket]) -> None:
        now = time.monotonic()
        for ticket in named:
            known = self._waiting.get(ticket.run_id)
            if known is not None and known.ticket.epoch == ticket.epoch:
                known.named_at = now
                continue
            self._waiting[ticket.run_id] = _Waiting(ticket, named_at=now, due_at=now)
        for run_id in [run_id for run_id, w in self._waiting.items() if now - w.named_at > _FORGET_S]:
            del self._waiting[run_id]

    def _send_due(self) -> None:
        now = time.monotonic()
        due: list[_Waiting] = []
        for waiting in self._waiting.values():
            if waiting.due_at > now:
                continue
            if waiting.times and now - waiting.named_at > _STILL_NAMED_S:
                waiting.due_at = now + AGAIN_S[0]  # it may be named again: the scheduler could not reach its store
            else:
                due.append(waiting)
        if not due:
            return
        due.sort(key=lambda w: (-w.ticket.priority, w.ticket.scheduled_for))
        if self._broker is None:
            self._broker = self._connect()
            if self._failures:
                logger.info("the broker is back")
                self._failures = 0
                self._complained_at = float("-inf")
        is_all_queued = any(waiting.times for waiting in due) and self._is_all_queued()
        for waiting in due:
            if self._closed:
                return
            # Others' messages in the queue may hide that this one is gone: in time for its grace, it is sent again.
            patience = min(STILL_QUEUED_S, waiting.ticket.misfire_grace_time / 3)
            if waiting.times and is_all_queued and now - waiting.sent_at < patience:
                waiting.due_at = now + AGAIN_S[0]  # looked at again soon: the queue may lose it yet
                continue
            self._broker.publish(waiting.ticket, self._owner)
            waiting.sent_at = time.monotonic()
            waiting.due_at = waiting.sent_at + AGAIN_S[min(waiting.times, len(AGAIN_S) - 1)]
            waiting.times += 1

    def _is_all_queued(self) -> bool:
        sent = sum(1 for waiting in self._waiting.values() if waiting.times)
        return self._broker is not None and self._broker.depth() >= sent

    def _fail(self, error: Exception) -> float:
        """Notes that the broker could not be reached; seconds to the next try."""
        self._drop()
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_S:
            self._complained_at = now
            logger.warning("%d runs wait for the broker: %s: %s", len(self._waiting), type(error).__name__, error)
        self._failures += 1
        # What it forgot when it went is sent again as soon as it is back, not at the end of a long pause.
        for waiting in self._waiting.values():
            waiting.due_at = min(waiting.due_at, now + AGAIN_S[0])
        return _RETRY_S[min(self._failures, len(_RETRY_S)) - 1]

    def _drop(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            with suppress(Exception):  # it is broken: that is why it is dropped
                broker.close()


def open_broker(broker_url: str) -> Broker:
    """A connection to the broker at `broker_url`; raises what its client raises when there is none."""
    from app.fleet.messages import fleet_app  # noqa: PLC0415 - Celery is loaded with the first message, not before

    return _KombuBroker(fleet_app(broker_url))


class _KombuBroker:
    def __init__(self, app: Any) -> None:
        from app.fleet.messages import queue  # noqa: PLC0415 - as above

        self._app = app
        self._connection = app.connection_for_write()
        try:
            # One try: the sender has its own way of waiting.
            self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=1)
            self._queue = queue().bind(self._connection.default_channel)
            self._queue.declare()
            self._producer = app.amqp.Producer(self._connection, auto_declare=False)
        except BaseException:
            self.close()
            raise

    def publish(self, ticket: Ticket, owner: str) -> None:
        from app.fleet.messages import QUEUE, TASK, broker_priority  # noqa: PLC0415 - as above

        self._app.send_task(
            TASK,
            kwargs={"run_id": ticket.run_id, "owner": owner, "epoch": ticket.epoch},
            task_id=ticket.run_id,
            producer=self._producer,
            exchange="",
            routing_key=QUEUE,
            priority=broker_priority(ticket.priority, transport=self._connection.transport.driver_type),
            retry=False,
            ignore_result=True,
        )

    def depth(self) -> int:
        return int(self._queue.queue_declare().message_count)

    def close(self) -> None:
        self._connection.release()
