"""Asking a run to stop: because somebody cancelled it, or because it reached a time limit.

A thread can only be asked: its task sees `run.stop_requested`, or calls `run.check()`. A process can be killed.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

StopReason = Literal["cancel", "soft", "hard"]
"""Somebody cancelled the run; it reached its `soft_time_limit`; it reached its `time_limit`."""

_WEIGHT: dict[StopReason, int] = {"soft": 1, "hard": 2, "cancel": 3}


class RunStopped(Exception):
    """Raised in a task by `run.check()` after the run was asked to stop; let it through."""


class SoftTimeLimitExceeded(RunStopped):
    """Raised in a task that runs in a process of its own when its `soft_time_limit` is over."""


class StopSignal:
    """Whether one run was asked to stop, and why. Safe to use from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason: StopReason | None = None

    def request(self, reason: StopReason) -> None:
        """Asks; a weightier reason replaces one that was given before."""
        if self.reason is None or _WEIGHT[reason] > _WEIGHT[self.reason]:
            self.reason = reason
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits up to so long for the request; whether it is there."""
        return self._event.wait(seconds)


@contextmanager
def soft_alarm(seconds: int | None, stop: StopSignal) -> Iterator[None]:
    """Raises SoftTimeLimitExceeded in this process's main thread after `seconds`; None: never."""
    if seconds is None:
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        stop.request("soft")
        raise SoftTimeLimitExceeded(f"the soft time limit of {seconds} s is over")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
