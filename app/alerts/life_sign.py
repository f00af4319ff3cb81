"""The scheduler's own dead-man ping: somebody outside notices when it no longer comes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from app.alerts.letters import Letter
from app.alerts.post import send, shown

logger = logging.getLogger(__name__)

EVERY_S = 60.0
LOOK_S = 1.0
RETRY_S = 10.0


class Health(Protocol):
    """What a scheduler says of itself (app.ledger.LoopHealth)."""

    @property
    def ready(self) -> bool:
        """Whether its loop turns and reaches its store."""

    @property
    def last_store_age_s(self) -> float:
        """Seconds since it reached its store."""


class LifeSign:
    """Pings `url` every EVERY_S seconds while the scheduler's loop turns and reaches its store, and not otherwise."""

    def __init__(self, url: str, *, health: Callable[[], Health], body: str, every_s: float = EVERY_S) -> None:
        self._health, self._every_s = health, every_s
        self._url = url
        self._letter = Letter(url, body.encode(), "text/plain; charset=utf-8")
        self._stopping = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._ping, name="life-sign", daemon=True)

    def start(self) -> None:
        """Begins to ping."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Pings no more."""
        self._stopping.set()

    def join(self, within_s: float) -> bool:
        """Waits for the end of the stop; False when a request is still out after `within_s` seconds."""
        self._thread.join(max(0.0, within_s))
        return not self._thread.is_alive()

    def _ping(self) -> None:
        began = due = time.monotonic()
        while not self._stopping.wait(LOOK_S):
            now = time.monotonic()
            if now < due:
                continue
            health = self._health()
            # Before its first turn ends, a loop's clocks show no more than when it was made.
            if health.ready and health.last_store_age_s < now - began:
                due = now + (self._every_s if self._send() else min(RETRY_S, self._every_s))

    def _send(self) -> bool:
        answer = send(self._letter)
        delivered = answer.verdict == "delivered"
        if self._failing == delivered:
            self._failing = not delivered
            if delivered:
                logger.info("the scheduler's ping reaches %s again", shown(self._url))
            else:
                logger.warning("the scheduler's ping does not reach %s: %s", shown(self._url), answer.error)
        return delivered
