"""The thread that delivers one kind of message: alerts have one, pings another, so that a ping's receiver that hangs
delays no alert."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine

from app.alerts.letters import Letter, UnreadableMessage, job_of
from app.alerts.outbox import (
    KEEP_S,
    REFUSED,
    Kind,
    Message,
    Retry,
    Settlement,
    give_up_old,
    lease,
    settle,
    try_all_again,
)
from app.alerts.post import Answer, send, shown

logger = logging.getLogger(__name__)

LOOK_S = 1.0
BATCH_S = 10.0
"""After so long no request of a batch is begun any more: its lease must not end first."""
LONGEST_WAIT_S: dict[Kind, float] = {"alert": 300.0, "ping": 60.0}
"""Between two tries of a receiver that does not answer; all messages to it share them."""
LONGEST_WAIT_REFUSED_S = 3600.0
"""Between two tries of one alert that is refused: an operator has to act first."""
_SWEEP_S = 60.0
_MOST_COMPLAINTS = 10_000


def wait_before_retry_s(attempts: int, longest_s: float) -> float:
    """Seconds before the next try after `attempts` that failed: 1, 2, 4 ... up to `longest_s`, and up to a fifth more
    at random, so that what failed together does not come again together."""
    return min(longest_s, 2.0 ** min(attempts - 1, 30)) * (1 + random.random() / 5)  # noqa: S311 - no secret


class Sender:
    """Delivers messages of one kind from `engine`'s outbox until it is stopped.

    letter: makes the request of a message; UnreadableMessage for one that is none, which is dropped.
    address: where a message goes, for what happens to the others to the same place; never logged whole.
    """

    def __init__(
        self,
        engine: Engine,
        kind: Kind,
        *,
        letter: Callable[[Message], Letter],
        address: Callable[[Message], str],
    ) -> None:
        self._engine, self._kind = engine, kind
        self._letter, self._address = letter, address
        self._stopping = threading.Event()
        self._stop_by = float("inf")  # of the monotonic clock
        self._unsettled = Settlement()
        self._silent_until: dict[
            str, float
        ] = {}  # receivers (origins) that do not answer, and addresses that cannot now
        self._complained: set[str] = set()
        self._store_complained = False
        self._swept = float("-inf")
        self._thread = threading.Thread(target=self._deliver, name=f"{kind}-sender", daemon=True)

    def start(self) -> None:
        """Begins to deliver."""
        self._thread.start()

    def begin_stop(self, within_s: float) -> None:
        """Begins the stop: one more look, for what the last runs left behind, and no request begun after `within_s`
        seconds."""
        self._stop_by = time.monotonic() + within_s
        self._stopping.set()

    def join(self, within_s: float) -> bool:
        """Waits for the end of the stop; False when a request is still out after `within_s` seconds. Its message is
        delivered again by whoever finds its lease ended."""
        self._thread.join(max(0.0, within_s))
        return not self._thread.is_alive()

    # The thread

    def _deliver(self) -> None:
        fresh = True
        while True:
            last = self._stopping.is_set()
            busy = False
            try:
                if fresh:
                    try_all_again(self._engine, self._kind)
                    fresh = False
                busy = self._look()
                self._sweep()
                self._store_complained = False
            except Exception as error:  # a store that is away comes back; nothing ends the thread but a stop
                self._complain_of_store(error)
            if last:
                return
            if not busy:
                self._stopping.wait(LOOK_S)

    def _look(self) -> bool:
        """Delivers one batch; whether there may be more to do at once."""
        if self._unsettled:  # an earlier settlement did not reach the store
            self._settle()
        messages = lease(self._engine, self._kind)
        deadline = time.monotonic() + BATCH_S
        for message in messages:
            if time.monotonic() >= min(deadline, self._stop_by):
                self._unsettled.untouched.append(message)
            else:
                self._handle(message)
        if self._unsettled:
            self._settle()
        return bool(messages)

    def _settle(self) -> None:
        settle(self._engine, self._unsettled)
        self._unsettled = Settlement()

    def _handle(self, message: Message) -> None:
        address = self._address(message)
        origin = shown(address)
        silent_s = max(self._silent_until.get(key, 0.0) for key in (origin, address)) - time.monotonic()
        if silent_s > 0:
            self._unsettled.retries.append(Retry(message, silent_s))
            return
        try:
            letter = self._letter(message)
        except UnreadableMessage as error:
            logger.error("%s %s is dropped: %s", self._kind, message.id, error)
            self._unsettled.gone.append(message.id)
            return
        self._take_in(message, send(letter), address, origin)

    def _take_in(self, message: Message, answer: Answer, address: str, origin: str) -> None:
        if answer.verdict == "delivered":
            for key in (origin, address):
                self._silent_until.pop(key, None)
            if address in self._complained:
                logger.info("%ss to %s are delivered again", self._kind, origin)
            self._complained -= {address, message.id}
            self._unsettled.gone.append(message.id)
        elif answer.verdict == "refused":
            self._take_refusal(message, answer, origin)
        else:
            wait_s = wait_before_retry_s(message.attempts + 1, LONGEST_WAIT_S[self._kind])
            wait_s = max(wait_s, answer.retry_after_s)
            # No answer speaks of the whole receiver, an answer of this address alone.
            self._silent_until[origin if answer.verdict == "no answer" else address] = time.monotonic() + wait_s
            if self._is_new_complaint(address):
                logger.warning(
                    "%ss to %s cannot be delivered: %s; they are kept, and tried again for %s",
                    self._kind,
                    origin,
                    answer.error,
                    _duration(KEEP_S[self._kind]),
                )
            self._unsettled.retries.append(Retry(message, wait_s, answer.error))

    def _take_refusal(self, message: Message, answer: Answer, origin: str) -> None:
        if self._kind == "ping":  # by the time somebody has mended the address it would tell of the past
            if self._is_new_complaint(self._address(message)):
                logger.warning(
                    "pings of job %s to %s are refused (%s) and dropped: is its ping_url right?",
                    job_of(message),
                    origin,
                    answer.error,
                )
            self._unsettled.gone.append(message.id)
            return
        if self._is_new_complaint(message.id):
            logger.warning(
                "alert %s was refused by %s: %s; it is tried again for %s",
                message.id,
                origin,
                answer.error,
                _duration(KEEP_S[self._kind]),
            )
        wait_s = wait_before_retry_s(message.attempts + 1, LONGEST_WAIT_REFUSED_S)
        self._unsettled.retries.append(Retry(message, wait_s, REFUSED + answer.error))

    def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept < _SWEEP_S:
            return
        self._swept = now
        for given_up in give_up_old(self._engine):
            logger.error(
                "%d %ss were given up undelivered: older than %s, or too many; the last error: %s",
                given_up.count,
                given_up.kind,
                _duration(KEEP_S[given_up.kind]),
                given_up.error or "none, nobody was there to send them",
            )

    def _is_new_complaint(self, about: str) -> bool:
        if about in self._complained:
            return False
        if len(self._complained) >= _MOST_COMPLAINTS:  # of messages that others delivered meanwhile
            self._complained.clear()
        self._complained.add(about)
        return True

    def _complain_of_store(self, error: Exception) -> None:
        if not self._store_complained:
            self._store_complained = True
            cause = getattr(error, "orig", None) or error  # without the statement, which says nothing to an operator
            logger.warning("%ss wait: the store cannot be used: %s: %s", self._kind, type(cause).__name__, cause)


def _duration(seconds: float) -> str:
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days" if days and not hours else f"{days * 24 + hours} h"
