"""A restore by its script, on a stack whose jobs fire: nothing runs twice, nothing is absent, and it can be undone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.oracle import FINAL, STARTED, parse_moment
from e2e.harness.scripts import Outcome, environment_of, run_on, run_script
from e2e.harness.small_volume import full_volume, small_stack
from e2e.harness.stack import ROOT, Stack, running_stack
from e2e.harness.waiting import wait_until

SCRIPT = "restore_jobstore.sh"
LOAD = ("load_0", "load_1", "load_2")
EVERY_SECOND = {"trigger_type": "interval", "seconds": 1}
#: Steps of the script before and after the present store was replaced, as FAIL_AT_STEP counts them.
STEPS = range(1, 7)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this file's own, whose jobs fire every second."""
    with running_stack(tmp_path_factory) as made:
        begin_to_fire(made)
        yield made


def begin_to_fire(stack: Stack) -> None:
    for job_id in LOAD:
        stack.bearer().create_job(job_id, "oracle_fire", dict(EVERY_SECOND))
    wait_for_fires(stack, 2 * len(LOAD))


def wait_for_fires(stack: Stack, more: int) -> None:
    before = len(stack.starts())
    wait_until("the jobs fire", stack.starts, lambda starts: len(starts) >= before + more, within=60)


def archive_of(stack: Stack, file: Path) -> Path:
    """A new backup of the stack as one tar file, by the script's pipe."""
    with file.open("wb") as out:
        done = subprocess.run(
            [str(ROOT / "scripts/backup_jobstore.sh"), "-"],
            cwd="/",
            env=environment_of(stack),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    return file


def definitions(stack: Stack) -> dict[str, Any]:
    names = ("name", "trigger_spec", "is_paused", "is_enabled", "kwargs", "max_instances")
    return {job["id"]: {name: job[name] for name in names} for job in stack.bearer().jobs()}


def change_definitions(stack: Stack) -> None:
    client = stack.bearer()
    client.data("POST", "/api/v1/scheduler/jobs/sync_accounts/actions/pause")
    client.create_job("later", "oracle_fire", {"trigger_type": "interval", "days": 1})


def hold_of(stack: Stack) -> str:
    """The reason of the hold, empty where nothing is held."""
    found = [line for line in stack.execute("flask", "jobs", "status").splitlines() if "restored from" in line]
    return found[0] if found else ""


def assert_nothing_twice_and_nothing_absent(stack: Stack) -> None:
    """The outside log against the ledger, from the first fire to the last, over every restore in between."""
    client = stack.bearer()
    starts = [start for start in stack.starts() if start.job_id in LOAD and start.kind == "schedule"]
    moments = [(start.job_id, start.scheduled_for) for start in starts]
    assert len(set(moments)) == len(moments), "a fire was started twice"
    for job_id in LOAD:
        rows = [row for row in client.history(job_id) if row["kind"] == "schedule"]
        outcomes = {row["run_id"]: row["outcome"] for row in rows}
        seen = {start.run_id for start in starts if start.job_id == job_id}
        assert {outcomes.get(run_id) for run_id in seen} <= STARTED, f"{job_id}: a start is not on record"
        spans = sorted((parse_moment(row["scheduled_from"] or row["scheduled_for"]), row) for row in rows)
        for (_, row), (following, _) in pairwise(spans):
            gap = following - parse_moment(row["scheduled_for"])
            assert gap == timedelta(seconds=1), f"{job_id}: {gap} without a row after {row}"
        # What run-all starts at once has many a moment of long ago.
        ended = partial(older_open_runs, stack, job_id)
        wait_until(f"{job_id}: the end of every older run", ended, lambda open_runs: not open_runs, within=120)


def older_open_runs(stack: Stack, job_id: str) -> list[str]:
    recently = datetime.fromtimestamp(time.time() - 30).astimezone()
    return [
        row["run_id"]
        for row in stack.bearer().history(job_id)
        if row["outcome"] not in FINAL and parse_moment(row["scheduled_for"]) < recently
    ]


def test_killed_while_held_then_finished_then_undone(stack: Stack, tmp_path: Path) -> None:
    wanted = definitions(stack)
    archive = archive_of(stack, tmp_path / "backup.tar")
    change_definitions(stack)
    changed = definitions(stack)
    wait_for_fires(stack, 3 * len(LOAD))

    planned = json.loads(run_on(stack, SCRIPT, str(archive), "--dry-run", "--json").stdout)
    assert planned["dry_run"]
    assert planned["carried"]["runs"] >= 3 * len(LOAD)
    assert definitions(stack) == changed

    # Killed like in a power cut right before it would look what is due: the stack runs, and is held.
    killed = run_script(
        SCRIPT,
        str(archive),
        "--yes",
        "--catch-up=run-latest",
        environment=environment_of(stack) | {"FAIL_AT_STEP": "5"},
    )
    assert killed.code != 0, killed
    stack.wait_until_ready()
    assert "restored from the backup of" in hold_of(stack)
    assert definitions(stack) == wanted
    at_rest = len(stack.starts())
    stack.bearer().run_now("load_0")
    wait_until("a manual run starts in a hold", stack.starts, lambda starts: len(starts) > at_rest, within=20)
    assert [start.kind for start in stack.starts()[at_rest:]] == ["manual"], "a held job fired"

    finished = json.loads(run_on(stack, SCRIPT, str(archive), "--yes", "--catch-up=run-latest", "--json").stdout)
    assert finished["restored"]["already"]
    assert finished["catch_up"] == "run-latest"
    assert finished["released"]["started"] >= len(LOAD)
    assert finished["released"]["coalesced"] > 0
    wait_for_fires(stack, 2 * len(LOAD))
    assert definitions(stack) == wanted
    assert not hold_of(stack)
    assert_nothing_twice_and_nothing_absent(stack)

    undone = run_on(stack, SCRIPT, "--undo", "--yes", "--catch-up=skip")
    assert "missed" in undone.stdout
    assert definitions(stack) == changed
    wait_for_fires(stack, 2 * len(LOAD))
    assert_nothing_twice_and_nothing_absent(stack)
    assert not stack.execute("sh", "-c", "ls -d userdata/restores/incoming-* 2> /dev/null || true").strip()


def spoiled_copies(archive: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """Archives that are no whole backup, and what the refusal says of each; tests/unit has many more."""
    whole = archive.read_bytes()
    cut = folder / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    yield cut, "no whole tar archive"
    flipped = folder / "flipped.tar"
    middle = whole.index(b"SQLite format 3") + 5000
    flipped.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    yield flipped, "sha256"


def test_what_is_no_whole_backup_is_refused_while_everything_goes_on(stack: Stack, tmp_path: Path) -> None:
    archive = archive_of(stack, tmp_path / "backup.tar")
    before = definitions(stack)
    schedulers = {process.pid for process in stack.gunicorn("scheduler", "worker")}
    for file, said in spoiled_copies(archive, tmp_path):
        refused = run_script(SCRIPT, str(file), "--yes", "--catch-up=skip", environment=environment_of(stack))
        assert_refused(refused, said)
    refused = run_script(SCRIPT, "no-such-backup", "--yes", "--catch-up=skip", environment=environment_of(stack))
    assert_refused(refused, "there is no backup 'no-such-backup'")
    assert "scheduler.db" in run_on(stack, "backup_jobstore.sh", "--verify", str(archive), "--json").stdout
    assert {process.pid for process in stack.gunicorn("scheduler", "worker")} == schedulers, "it was stopped"
    assert definitions(stack) == before
    assert not hold_of(stack)


def assert_refused(refused: Outcome, said: str) -> None:
    assert refused.code == 1, refused
    assert said in refused.stderr, refused
    assert refused.stdout == "", refused
    assert "Traceback" not in refused.stderr, refused


@pytest.mark.faults_long
@pytest.mark.parametrize("choice", ["skip", "run-all"])
def test_killed_at_every_step_and_run_again(stack: Stack, tmp_path: Path, choice: str) -> None:
    for step in STEPS:
        wanted = definitions(stack)
        archive = archive_of(stack, tmp_path / f"backup-{step}.tar")
        stack.bearer().create_job(f"later_{choice}_{step}", "oracle_fire", {"trigger_type": "interval", "days": 1})
        wait_for_fires(stack, len(LOAD))
        killed = run_script(
            SCRIPT,
            *(str(archive), "--yes", f"--catch-up={choice}"),
            environment=environment_of(stack) | {"FAIL_AT_STEP": str(step)},
        )
        assert killed.code != 0, f"step {step}: {killed}"
        run_on(stack, SCRIPT, str(archive), "--yes", f"--catch-up={choice}")
        assert definitions(stack) == wanted, f"killed at step {step}"
        wait_for_fires(stack, 2 * len(LOAD))
        assert_nothing_twice_and_nothing_absent(stack)


@pytest.mark.faults_long
def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    with small_stack(tmp_path, mib=48) as stack:
        begin_to_fire(stack)
        archive = archive_of(stack, tmp_path / "backup.tar")
        change_definitions(stack)
        changed = definitions(stack)
        with full_volume(stack):
            for command in (
                (SCRIPT, "latest", "--yes", "--catch-up=skip"),
                (SCRIPT, str(archive), "--yes", "--catch-up=skip"),
            ):
                refused = run_script(*command, environment=environment_of(stack))
                assert refused.code == 1, refused
                assert "Traceback" not in refused.stderr, refused
            backup = run_script("backup_jobstore.sh", environment=environment_of(stack))
            assert backup.code == 1, backup
            assert "MiB free and a backup needs" in backup.stderr, backup
        stack.wait_until_ready()
        assert definitions(stack) == changed
        wait_for_fires(stack, 2 * len(LOAD))
        run_on(stack, SCRIPT, str(archive), "--yes", "--catch-up=skip")
        assert "later" not in definitions(stack)
