"""Ends the process when the scheduler's loop no longer turns, so that whatever started it starts it anew."""

import faulthandler
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

LIMIT_S = 60.0
"""Gunicorn's timeout for the scheduler is longer, so that this speaks first and says why."""
EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h

_LOOK_S = 5.0


class Watchdog:
    """Watches `last_turn` (seconds of the monotonic clock) from a thread of its own."""

    def __init__(self, last_turn: Callable[[], float], *, limit_s: float = LIMIT_S, look_s: float = _LOOK_S) -> None:
        self._last_turn, self._limit_s, self._look_s = last_turn, limit_s, look_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ledger-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stops watching."""
        self._stopped.set()

    def _watch(self) -> None:
        suspected: float | None = None
        while not self._stopped.wait(self._look_s):
            turn = self._last_turn()
            if time.monotonic() - turn < self._limit_s:
                suspected = None
            elif suspected != turn:
                # Whatever kept the loop from turning (a task in one long C call, a stopped process) kept this
                # thread from looking as well: the loop gets one more look's time.
                suspected = turn
            else:
                logger.critical(
                    "the scheduler's loop has not turned for %.0f s: the process ends and is started anew",
                    time.monotonic() - turn,
                )
                logger.critical("what its threads were at", extra={"exception": _traces()})
                os._exit(EXIT_STATUS)


def _traces() -> str:
    """Where every thread of this process stands."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()
