"""scripts/export_jobs.sh and scripts/import_jobs.sh on a working stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.harness.client import SCHEDULER
from e2e.harness.scripts import environment_of, run_on, run_script
from e2e.harness.stack import Stack

EXPORT, IMPORT = "export_jobs.sh", "import_jobs.sh"


def content(text: str) -> dict[str, Any]:
    """What an export holds, without the moment of its making."""
    found: dict[str, Any] = yaml.safe_load(text)
    found.pop("created_at")
    return found


@pytest.fixture
def as_found(stack: Stack, tmp_path: Path) -> Iterator[Path]:
    """An export of every job of the shared stack, to which the test's end goes back."""
    file = tmp_path / "as-found.yaml"
    run_on(stack, EXPORT, "--output", str(file))
    yield file
    run_on(stack, IMPORT, str(file), "--prune", "--yes")


def test_jobs_go_out_and_come_back(stack: Stack, as_found: Path, tmp_path: Path) -> None:
    client = stack.bearer()
    client.create_job("nightly", "oracle_fire", {"trigger_type": "cron", "cron_expression": "30 2 * * *"}, name="夜间")
    client.data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/pause")
    exported = run_on(stack, EXPORT).stdout
    file = tmp_path / "jobs.yaml"
    edited = exported.replace("name: 夜间", "name: 每夜")
    assert edited != exported
    file.write_text(edited, encoding="utf-8")
    client.data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/resume")
    client.create_job("surplus", "oracle_fire", {"trigger_type": "interval", "days": 1})

    shown = run_on(stack, IMPORT, str(file), "--diff", "--prune")
    assert "-name: 夜间\n+name: 每夜\n" in shown.stdout
    assert "--- store/sync_accounts\n+++ import/sync_accounts\n" in shown.stdout
    assert "-is_paused: false\n+is_paused: true\n" in shown.stdout
    assert "--- store/surplus\n+++ /dev/null\n" in shown.stdout
    assert "0 to add, 0 to restore, 2 to change, 1 to delete, " in shown.stdout
    assert client.job("nightly")["name"] == "夜间"

    done = run_on(stack, IMPORT, str(file), "--prune", "--yes")
    assert set(done.stdout.split("\n")) >= {"changed: nightly", "changed: sync_accounts", "removed: surplus"}
    assert content(run_on(stack, EXPORT).stdout) == content(edited)
    again = json.loads(run_on(stack, IMPORT, str(file), "--prune", "--yes", "--json").stdout)
    assert not any(again[action] for action in ("added", "restored", "changed", "removed"))

    # The way back that it told.
    command = done.stderr.strip().splitlines()[-1].partition("scripts/import_jobs.sh ")[2].split()
    run_on(stack, IMPORT, *command, "--yes")
    names = {job["id"]: job["name"] for job in client.jobs()}
    assert (names["nightly"], names["surplus"]) == ("夜间", "surplus")
    assert not client.job("sync_accounts")["is_paused"]


@pytest.mark.faults_long
def test_killed_at_every_step_it_is_all_or_nothing(stack: Stack, as_found: Path, tmp_path: Path) -> None:
    client = stack.bearer()
    ids = [f"many-{number}" for number in range(20)]
    for job_id in ids:
        client.create_job(job_id, "oracle_fire", {"trigger_type": "interval", "days": 1})
    file = tmp_path / "jobs.yaml"
    run_on(stack, EXPORT, "--output", str(file))
    for step, is_applied in ((1, False), (2, False), (3, True), (4, True)):
        for job_id in ids:
            client.data("POST", f"{SCHEDULER}/jobs/{job_id}/actions/pause")
        environment = environment_of(stack) | {"FAIL_AT_STEP": str(step)}
        killed = run_script(IMPORT, str(file), "--yes", environment=environment)
        assert killed.code == -9, f"step {step}: {killed}"
        assert {job["is_paused"] for job in client.jobs() if job["id"] in ids} == {not is_applied}, f"step {step}"
        run_on(stack, IMPORT, str(file), "--yes")
        assert {job["is_paused"] for job in client.jobs() if job["id"] in ids} == {False}


def test_bad_input_changes_nothing(stack: Stack, as_found: Path, tmp_path: Path) -> None:
    client = stack.bearer()
    client.create_job("hourly", "oracle_fire", {"trigger_type": "cron", "cron_expression": "17 * * * *"})
    exported = run_on(stack, EXPORT).stdout
    client.data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/pause")
    before = client.jobs()
    file = tmp_path / "bad.yaml"
    for old, new, said in (
        ("    minute: '17'", "    minute: '61'", "job hourly: trigger: minute holds '61'"),
        ("  task: oracle_fire", "  taks: oracle_fire", "own_jobs"),
        ("default_jobs:", "default_jobs: [", "standard input is no YAML"),
    ):
        bad = exported.replace(old, new)
        assert bad != exported
        file.write_text(bad, encoding="utf-8")
        assert_refused(stack, str(file), "--yes", said=said)
    assert_refused(stack, "no-such-export.yaml", "--yes", said="there is no export 'no-such-export.yaml'")
    file.write_text(exported, encoding="utf-8")
    assert_refused(stack, str(file), said="say --yes")  # without a terminal there is nobody to ask
    assert client.jobs() == before


def assert_refused(stack: Stack, *arguments: str, said: str) -> None:
    refused = run_script(IMPORT, *arguments, environment=environment_of(stack))
    assert refused.code == 1, refused
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert said in line
