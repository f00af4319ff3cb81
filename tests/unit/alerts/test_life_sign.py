"""The scheduler's own ping: while it works, and only then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from app.alerts import life_sign
from app.alerts.life_sign import LifeSign
from e2e.harness.receiver import Receiver, Reply
from e2e.harness.waiting import wait_until


@dataclass
class SetHealth:
    """A scheduler's health as a test sets it."""

    ready: bool = True
    last_store_age_s: float = 0.0


@pytest.fixture
def health() -> SetHealth:
    return SetHealth()


@pytest.fixture
def start(receiver: Receiver, health: SetHealth, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LifeSign]]:
    monkeypatch.setattr(life_sign, "LOOK_S", 0.02)
    started: list[LifeSign] = []

    def make(every_s: float = 0.3) -> LifeSign:
        sign = LifeSign(receiver.url("/sesame?k=v"), health=lambda: health, body="scheduler n1\n", every_s=every_s)
        sign.start()
        started.append(sign)
        return sign

    yield make
    for sign in started:
        sign.begin_stop()
        sign.join(5)


def test_it_pings_at_its_pace(receiver: Receiver, start: Callable[..., LifeSign]) -> None:
    start()
    wait_until("four pings", lambda: len(receiver.received) >= 4, within=10)
    first, second, third, fourth = receiver.received[:4]
    assert (first.method, first.path, first.query, first.body) == ("POST", "/sesame", {"k": ["v"]}, b"scheduler n1\n")
    for before, after in ((first, second), (second, third), (third, fourth)):
        assert after.time - before.time > 0.2


def test_a_scheduler_that_does_not_work_is_silent(
    receiver: Receiver, health: SetHealth, start: Callable[..., LifeSign]
) -> None:
    start(every_s=0.05)
    wait_until("a ping", lambda: receiver.received, within=10)
    health.ready = False
    quiet = threading.Event()
    quiet.wait(0.3)  # a ping that was under way
    count = len(receiver.received)
    quiet.wait(0.5)
    assert len(receiver.received) == count
    health.ready = True
    wait_until("a ping again", lambda: len(receiver.received) > count, within=10)


def test_a_scheduler_that_has_not_reached_its_store_yet_is_silent(
    receiver: Receiver, health: SetHealth, start: Callable[..., LifeSign]
) -> None:
    health.last_store_age_s = 3600.0  # its clocks began before it did
    start(every_s=0.05)
    assert not threading.Event().wait(0.5)
    assert receiver.received == []
    health.last_store_age_s = 0.0
    wait_until("a ping", lambda: receiver.received, within=10)


def test_a_failure_is_told_once_and_tried_again_soon(
    receiver: Receiver,
    start: Callable[..., LifeSign],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "app.alerts")
    monkeypatch.setattr(life_sign, "RETRY_S", 0.1)
    receiver.replies.extend([Reply(500), Reply(500)])
    start(every_s=60)
    wait_until("a third ping", lambda: len(receiver.received) == 3, within=10)
    wait_until("a line of it", lambda: "again" in caplog.text, within=10)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "does not reach" in lines[0]
    assert "500" in lines[0]
    assert "sesame" not in caplog.text


def test_a_stop_ends_it(receiver: Receiver, start: Callable[..., LifeSign]) -> None:
    sign = start(every_s=60)
    wait_until("a ping", lambda: receiver.received, within=10)
    sign.begin_stop()
    assert sign.join(5)
