"""All that a scheduler process sends to the outside, started and stopped together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine

from app.alerts.letters import alert_letter, ping_letter
from app.alerts.life_sign import Health, LifeSign
from app.alerts.sender import Sender

logger = logging.getLogger(__name__)

STOP_S = 3.0
"""How long a stop waits for a last request; what is not delivered by then is for the next scheduler."""


class Delivery:
    """Senders of the outbox in `engine`, and the scheduler's own ping.

    webhook_url: where alerts go; None sends none. life_sign_url: the scheduler's own ping; None sends none.
    health: what the scheduler says of itself; node: its name. Pings of jobs are sent in any case, and what is
    too old or too much is given up in any case: the ledger may have written it before the settings changed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        webhook_url: str | None,
        life_sign_url: str | None,
        health: Callable[[], Health],
        node: str,
    ) -> None:
        self._senders = [Sender(engine, "ping", letter=ping_letter, address=lambda message: message.url or "")]
        if webhook_url:
            letter = partial(alert_letter, webhook_url=webhook_url)
            self._senders.append(Sender(engine, "alert", letter=letter, address=lambda _message: webhook_url))
        self._life_sign = None
        if life_sign_url:
            self._life_sign = LifeSign(life_sign_url, health=health, body=f"scheduler {node}\n")

    def start(self) -> None:
        """Starts the threads; they end no process and hold up no stop."""
        for sender in self._senders:
            sender.start()
        if self._life_sign is not None:
            self._life_sign.start()

    def stop(self, within_s: float = STOP_S) -> None:
        """The orderly stop, within `within_s` seconds: a last look into the outbox, then no more requests."""
        deadline = time.monotonic() + within_s
        if self._life_sign is not None:
            self._life_sign.begin_stop()
        for sender in self._senders:
            sender.begin_stop(within_s * 2 / 3)  # the rest is for the answer and for writing it down
        threads: list[Sender | LifeSign] = [*self._senders]
        if self._life_sign is not None:
            threads.append(self._life_sign)
        ended = [thread.join(deadline - time.monotonic()) for thread in threads]
        if not all(ended):
            logger.warning("a request to the outside was still out at the stop: its message is sent again")
