"""What an operator asks about one job: scripts/explain.sh, scripts/check_job.py and scripts/validate_cron.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import parse_moment
from e2e.harness.scripts import Outcome, environment_of, run_on, run_script
from e2e.harness.stack import ROOT, Stack
from e2e.harness.waiting import wait_until

JOB = "explained"
EVERY_SECOND = {"trigger_type": "cron", "cron_expression": "* * * * * *", "timezone": "UTC"}


@pytest.fixture
def job(stack: Stack, api: Client) -> Iterator[str]:
    """A job of every second that hardly waits for a scheduler that is away."""
    api.create_job(JOB, "oracle_fire", EVERY_SECOND, misfire_grace_time=2)
    yield JOB
    api.delete_job(JOB)


def explain(stack: Stack, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run_on(stack, "explain.sh", *arguments, "--json").stdout)
    return answer


def check(stack: Stack, *arguments: str) -> Outcome:
    """scripts/check_job.py as a monitoring system calls it: another Python, nothing installed."""
    command = [sys.executable, "-I", "-S", str(ROOT / "scripts" / "check_job.py"), *arguments]
    token = str(stack.folder / "secrets" / "api_token")
    done = subprocess.run(
        [*command, "--url", stack.base_url, "--token-file", token],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def newest(api: Client, outcome: str) -> dict[str, Any]:
    """The newest run with that outcome; empty while there is none."""
    return next((run for run in api.history(JOB)[:200] if run["outcome"] == outcome), {})


def clock(moment: str) -> str:
    return f"{parse_moment(moment):%Y-%m-%d %H:%M:%S}"


def test_a_fire_a_pause_an_outage(stack: Stack, api: Client, job: str) -> None:
    """The life of one job, and what is said of it: it fired, was paused, was missed while no scheduler was alive."""
    fired = wait_until("a run", partial(newest, api, "success"), within=30)
    found = explain(stack, job, clock(fired["scheduled_for"]))
    assert (found["verdict"], found["run_ids"]) == ("success", [fired["run_id"]])
    assert "succeeded after" in found["sentence"]
    text = run_on(stack, "explain.sh", job, clock(fired["scheduled_for"]), "--lang", "zh").stdout
    assert "成功" in text.splitlines()[0]
    assert check(stack, "--job-id", job).code == 0

    api.data("POST", f"{SCHEDULER}/jobs/{job}/actions/pause")
    paused = explain(stack, job)
    assert paused["verdict"] == "paused"
    assert "was paused at" in paused["sentence"]
    assert "by api-token" in paused["sentence"]
    status = check(stack, "--job-id", job)
    assert (status.code, status.stderr) == (3, "")
    assert status.stdout.startswith(f"UNKNOWN - {job}: paused: ")
    assert check(stack, "--job-id", job, "--paused-is", "ok").code == 0
    wait_until("a moment of the pause is over", lambda: datetime.now(UTC), lambda now: now > later(paused), within=10)
    api.data("POST", f"{SCHEDULER}/jobs/{job}/actions/resume")

    stack.compose("stop", timeout=120)
    try:
        # Asked in a container of its own, beside the one that is stopped.
        away = wait_until("it is due", partial(explain, stack, job), lambda it: it["verdict"] != "success", within=60)
        assert away["verdict"] == "no_scheduler"
        assert "No scheduler is alive" in " ".join(away["details"])
        unreachable = check(stack, "--job-id", job)
        assert (unreachable.code, unreachable.stderr) == (3, "")
        assert "cannot be asked" in unreachable.stdout
    finally:
        stack.compose("start")
        stack.wait_until_ready()
    missed = wait_until("a missed fire", partial(newest, api, "missed"), within=30)
    found = explain(stack, job, clock(missed["scheduled_for"]))
    assert found["verdict"] == "missed"
    assert "No scheduler was alive" in " ".join(found["details"])
    in_pause = f"{later(paused) - timedelta(seconds=1):%Y-%m-%d %H:%M:%S}"
    gone_by = explain(stack, job, in_pause)
    assert gone_by["verdict"] == "paused"
    assert any("was resumed at" in text for text in gone_by["details"])

    api.create_job("explained-failing", "oracle_fail", {"trigger_type": "date", "run_date": soon()})
    try:
        failed = wait_until(
            "a failure", partial(check, stack, "--job-id", "explained-failing"), lambda it: it.code == 2, within=30
        )
        assert "failed on purpose" in failed.stdout
        assert explain(stack, "explained-failing")["verdict"] == "finished"
    finally:
        api.delete_job("explained-failing")
    assert explain(stack, "explained-failing")["verdict"] == "deleted"


def later(paused: dict[str, Any]) -> datetime:
    """Some seconds after a pause, which its sentence tells to the second."""
    words = paused["sentence"].split(" was paused at ")[1]
    return parse_moment(words[:25].replace(" ", "T")) + timedelta(seconds=3)


def soon() -> str:
    return (datetime.now(UTC) + timedelta(seconds=1)).isoformat()


def test_no_moment_and_no_job(stack: Stack) -> None:
    found = explain(stack, "sync_accounts", "2026-01-05 01:30")
    assert found["verdict"] == "not_a_moment"
    assert any("2026-01-05 01:00:00+08:00" in text for text in found["details"])
    unknown = run_script("explain.sh", "sync_acounts", environment=environment_of(stack))
    assert (unknown.code, unknown.stdout) == (1, "")
    assert "did you mean sync_accounts?" in unknown.stderr
    wrong = run_script("explain.sh", "sync_accounts", "teatime", environment=environment_of(stack))
    assert (wrong.code, wrong.stdout) == (1, "")
    assert "accepted: HH:MM" in wrong.stderr
    missing = check(stack, "--job-id", "sync_acounts")
    assert (missing.code, missing.stderr) == (3, "")
    assert "404" in missing.stdout


def validate(*arguments: str, bare: bool, environment: dict[str, str]) -> Outcome:
    """scripts/validate_cron.py by a Python that has the packages, or by a bare one."""
    python = [sys.executable, *(["-S"] if bare else [])]
    done = subprocess.run(
        [*python, str(ROOT / "scripts" / "validate_cron.py"), *arguments],
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_an_expression_on_a_bare_host_and_on_one_with_the_packages(stack: Stack, tmp_path: Path) -> None:
    expression = ("*/30 1,2 * * 0", "--timezone", "America/New_York", "--after", "2026-03-01T12:00:00+00:00")
    kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    here = validate(*expression, "--count", "6", bare=False, environment=kept)
    there = validate(*expression, "--count", "6", bare=True, environment=environment_of(stack))
    assert (here.code, here.stderr) == (0, "")
    assert (there.code, there.stdout) == (0, here.stdout), there
    assert "2026-03-08 03:00:00 -04:00  moved by the clock change" in here.stdout
    for bare, environment in ((False, kept), (True, environment_of(stack))):
        wrong = validate("0 25 * * *", bare=bare, environment=environment)
        assert (wrong.code, wrong.stdout) == (1, "")
        assert "25 is out of range; accepted: 0 to 23" in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1
    assert validate("* * * * *", "surplus", bare=True, environment=kept).code == 2
    assert validate("--help", bare=True, environment=kept).stdout.startswith("Usage: scripts/validate_cron.py EXPR")
