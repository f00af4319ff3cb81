"""Fail points: unarmed they do nothing, armed they do what was asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import OperationalError

from app.ledger import failpoints


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    failpoints.arm({})


def test_an_unarmed_point_does_nothing() -> None:
    for name in failpoints.NAMES:
        failpoints.reach(name)


def test_only_the_armed_point_acts() -> None:
    failpoints.arm({"claim.inserted": ("error", 1.0)})
    failpoints.reach("claim.written")
    with pytest.raises(OperationalError, match="injected"):
        failpoints.reach("claim.inserted")


def test_a_probability_is_kept() -> None:
    failpoints.arm({"claim.inserted": ("error", 0.5)})
    met = 0
    for _ in range(400):
        try:
            failpoints.reach("claim.inserted")
        except OperationalError:
            met += 1
    assert 120 < met < 280


@pytest.mark.parametrize("points", [{"claim.nowhere": ("exit", 1.0)}, {"claim.inserted": ("explode", 1.0)}])
def test_what_there_is_not_is_refused(points: dict[str, tuple[str, float]]) -> None:
    with pytest.raises(ValueError, match="there are"):
        failpoints.arm(points)


def run(action: str) -> subprocess.Popen[bytes]:
    code = (
        "from app.ledger import failpoints\n"
        f"failpoints.arm({{'start.written': ({action!r}, 1.0)}})\n"
        "failpoints.reach('start.written')\n"
        "print('went on')\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_exit_ends_the_process_at_once() -> None:
    process = run("exit")
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (failpoints.EXIT_STATUS, b"")


def test_freeze_stops_it_until_it_is_woken() -> None:
    process = run("freeze")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=30)
    assert output == b"went on\n"
