"""Waiting on a condition with a deadline: the only way a test lets time pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import requests

T = TypeVar("T")

#: What a probe of something that is still starting may raise; anything else is a bug of the test.
NOT_YET = (requests.RequestException, OSError, LookupError)


class NotInTimeError(AssertionError):
    """A condition that did not come true within its deadline."""


def wait_until(
    what: str,
    probe: Callable[[], T],
    met: Callable[[T], object] = bool,
    *,
    within: float,
    every: float = 0.2,
) -> T:
    """Call `probe` until `met` accepts its value, and return that value.

    `within` and `every` are seconds. Raises NotInTimeError with the last value (or error) seen, so that a
    failing test says what it waited for and what it saw instead.
    """
    pause = threading.Event()
    deadline = time.monotonic() + within
    while True:
        try:
            value = probe()
            seen = repr(value)
            if met(value):
                return value
        except NOT_YET as error:
            seen = f"{type(error).__name__}: {error}"
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotInTimeError(f"{what}: not within {within:g} s; last seen: {seen[:2000]}")
        pause.wait(min(every, left))


def wait_for_clock(moment: float) -> None:
    """Wait until the wall clock shows `moment` (seconds since the epoch), to the millisecond."""
    pause = threading.Event()
    while (left := moment - time.time()) > 0:
        pause.wait(left)
