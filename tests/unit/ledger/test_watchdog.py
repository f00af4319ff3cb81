"""The watchdog ends a process whose loop stands still, and only that."""

from __future__ import annotations

import json
import subprocess
import sys

from app.ledger.watchdog import EXIT_STATUS

SCRIPT = """
import sys, time
from app.ledger.watchdog import Watchdog
from app.logging_setup import configure_logging
configure_logging("scheduler", "INFO")
turning = sys.argv[1] == "turning"
began = time.monotonic()
Watchdog(lambda: time.monotonic() if turning else began, limit_s=0.3, look_s=0.1).start()
time.sleep(1.5)
"""


def run(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=30, check=False)


def test_a_loop_that_stands_still_ends_the_process() -> None:
    ended = run("standing")
    assert ended.returncode == EXIT_STATUS
    said, stood = (json.loads(line) for line in ended.stdout.splitlines())
    assert "has not turned" in said["message"]
    assert "Thread" in stood["exception"]  # where every thread stands
    assert ended.stderr == ""


def test_a_loop_that_turns_is_left_alone() -> None:
    assert run("turning").returncode == 0
