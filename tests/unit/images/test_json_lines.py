"""images/json-lines: lines of programs that write no JSON, their last ones too, and their signals and exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "images" / "json-lines"


def turned(program: str, written: bytes, **environment: str) -> list[str]:
    done = subprocess.run(
        [SCRIPT, program],
        input=written,
        env={"PATH": os.environ["PATH"], "NODE_NAME": "n1", **environment},
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def read(line: str) -> dict[str, Any]:
    found = json.loads(line)
    assert list(found) == ["time", "level", "program", "node", "message"]
    assert abs(datetime.fromisoformat(found["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert found["node"] == "n1"
    return dict(found)


@pytest.mark.parametrize(
    ("program", "line", "level", "message"),
    [
        ("nginx", '2026/11/21 08:42:00 [error] 12#12: *5 connect() "failed"', "error", '*5 connect() "failed"'),
        ("nginx", "nginx: [emerg] cannot load certificate", "critical", "cannot load certificate"),
        ("nginx", "2026/11/21 08:42:00 [warn] 1#1: x", "warning", "x"),
        ("postgres", "[postgres] 2026-11-21 08:42:00.123 UTC LOG:  ready", "info", "ready"),
        ("postgres", "2026-11-21 08:42:00.123 UTC [7] FATAL:  no such role", "critical", "no such role"),
        (
            "postgres",
            "[postgres] 2026-11-21 08:42:00.123 UTC STATEMENT:  SELECT 'a\\b'",
            "info",
            "STATEMENT: SELECT 'a\\b'",
        ),
        (
            "valkey",
            "12:M 21 Nov 2026 08:42:00.123 * Ready to accept connections",
            "info",
            "Ready to accept connections",
        ),
        ("valkey", "12:M 21 Nov 2026 08:42:00.123 # low memory", "warning", "low memory"),
        (
            "prometheus",
            'ts=2026-11-21T08:42:00.123Z caller=main.go:627 level=warn component=tsdb msg="slow"',
            "warning",
            'component=tsdb msg="slow"',
        ),
        (
            "prometheus",
            'time=2026-11-21T08:42:00Z level=INFO source=main.go msg="up"',
            "info",
            'source=main.go msg="up"',
        ),
        ("entrypoint", "error: not writable", "error", "not writable"),
        ("any", "plain", "info", "plain"),
        ("any", "", "info", ""),
        ("any", "任务\u2028\t\x1b[0m\x7f", "info", "任务\u2028\t\x1b[0m\x7f"),
    ],
)
def test_a_line_is_understood(program: str, line: str, level: str, message: str) -> None:
    (made,) = turned(program, f"{line}\n".encode())
    found = read(made)
    assert (found["program"], found["level"], found["message"]) == (program, level, message)


def test_bytes_that_are_no_text_do_not_spoil_the_line() -> None:
    (made,) = turned("any", b"a\xff\xfe\xc3b\n")
    assert read(made)["message"].startswith("a")


def test_a_long_line_stays_whole_in_docker() -> None:
    (made,) = turned("any", b"x" * 100_000)
    assert len(made) < 16 * 1024


def test_text_has_the_program_in_front_once() -> None:
    made = turned("postgres", b"[postgres] now LOG:  a\nb\n", LOG_FORMAT="text")
    assert made == ["[postgres] now LOG:  a", "[postgres] b"]


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 128 + signal.SIGKILL)])
def test_the_last_line_is_written_and_the_status_comes_back(command: str, status: int) -> None:
    done = subprocess.run(
        [SCRIPT, "any", "sh", "-c", f"echo out; echo last >&2; {command}"], capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (status, b"")
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == ["out", "last"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_reaches_the_command(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    command = f"trap 'echo told; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    # Who starts the tests in the background has them ignore some signals, and bash cannot trap what it was to ignore.
    heeding = ["env", f"--default-signal={name}", SCRIPT, "any", "bash", "-c", command]
    with subprocess.Popen(heeding, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["message"] == "ready"
        running.send_signal(number)
        assert json.loads(running.stdout.readline())["message"] == "told"
        assert running.wait(timeout=30) == 7
