"""scripts/reset_jobstore.sh: nothing that the outside log saw is lost, whatever interrupts it, in every shape."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.client import SCHEDULER
from e2e.harness.every_second import EverySecond, start_load
from e2e.harness.oracle import FINAL, STARTED
from e2e.harness.scripts import Outcome, environment_of, run_on, run_script
from e2e.harness.stack import SERVICE, Stack
from e2e.harness.waiting import wait_until

SCRIPT = "reset_jobstore.sh"
BUILTIN = {
    "sync_accounts",
    "collect_database_sizes",
    "calculate_database_size_aggregations",
    "backup_jobstore",
    "purge_run_history",
}
STORE = "/app/userdata/scheduler.db"
KILLED = -9
#: Steps of a reset with --from-export: beyond the last one nothing is left that could be interrupted.
STEPS = range(1, 11)
STOPPED, SET_ASIDE = 5, 6  # the script is killed when it was done with stopping, with setting aside

#: Runs in the container: every run of a job store file, by id.
READ_RUNS = """
import json, sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
print(json.dumps(dict(connection.execute("SELECT run_id, outcome FROM runs"))))
"""

#: Overwrites some pages in the middle of a file, as a failing disk would; prints the sha256 of what is left.
SPOIL = """
import hashlib, pathlib, sys
file = pathlib.Path(sys.argv[1])
content = bytearray(file.read_bytes())
if sys.argv[2] == "middle":
    start = len(content) // 2 // 4096 * 4096
    content[start : start + 4 * 4096] = b"\\xaa" * (4 * 4096)
else:
    content = b"this is no database at all"
file.write_bytes(content)
print(hashlib.sha256(content).hexdigest())
"""

HASH = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"

#: Keeps a job store open, as a second container that shares the volume by mistake does.
HOLD_OPEN = f"""
import sqlite3, time
connection = sqlite3.connect("{STORE}")
connection.execute("SELECT count(*) FROM runs").fetchone()
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture
def stack(private_stack: Callable[..., Stack]) -> Stack:
    return private_stack()


def runs_in(stack: Stack, file: str = STORE) -> dict[str, str]:
    """The outcome of every run in a job store file of the stack."""
    found: dict[str, str] = json.loads(stack.execute("python3", "-c", READ_RUNS, file))
    return found


def change_what_the_api_can(stack: Stack) -> dict[str, Any]:
    """A trigger, a pause, a switch and an own job; what `changed` must say again after the export is applied."""
    client = stack.bearer()
    client.data(
        "PUT", f"{SCHEDULER}/jobs/sync_accounts", json={"trigger_type": "cron", "cron_expression": "15 2 * * mon"}
    )
    client.data("POST", f"{SCHEDULER}/jobs/collect_database_sizes/actions/pause")
    client.data("POST", f"{SCHEDULER}/jobs/purge_run_history/action", json={"action": "disable"})
    client.create_job(
        "weekly_report", "oracle_fire", {"trigger_type": "cron", "cron_expression": "0 8 * * 1"}, name="周报"
    )
    return changed(stack)


def changed(stack: Stack) -> dict[str, Any]:
    names = ("name", "trigger_spec", "is_paused", "is_enabled", "kwargs", "max_instances")
    return {
        job["id"]: {name: job[name] for name in names}
        for job in stack.bearer().jobs()
        if not job["id"].startswith("load_")
    }


def run_once(stack: Stack) -> tuple[str, bool]:
    """Asks with one and the same key for a run of a job, as a client that got no answer does; the run's id, and whether
    it had been asked for before."""
    path = f"{SCHEDULER}/jobs/purge_run_history/actions/run"
    answer = stack.bearer().post(path, headers={"Idempotency-Key": "tonight's"})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["run_id"], "Idempotency-Replayed" in answer.headers


def export_of(stack: Stack, folder: Path) -> Path:
    """The jobs as they are now."""
    file = folder / "jobs.yaml"
    run_on(stack, "export_jobs.sh", "--output", str(file))
    return file


def killed_at(stack: Stack, step: int, *arguments: str) -> Outcome:
    """The script, killed like by a power cut where it would begin its step of that number."""
    return run_script(SCRIPT, *arguments, environment=environment_of(stack) | {"FAIL_AT_STEP": str(step)})


def reset_killed_at(stack: Stack, steps: Iterator[int] | range | tuple[int, ...], folder: Path) -> None:
    """Kills a reset at each of the steps, and runs it again each time; judges the fires from before the first to after
    the last."""
    fires = EverySecond(stack)
    arguments = ("--yes", "--from-export", str(export_of(stack, folder)))
    fires.wait_for_fires()
    for step in steps:
        killed = killed_at(stack, step, *arguments)
        assert killed.code == KILLED, f"step {step}: {killed}"
        again = run_script(SCRIPT, *arguments, environment=environment_of(stack))
        assert again.code == 0, f"after a kill at step {step}: {again}"
        stack.wait_until_ready()
        assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN | set(EverySecond.IDS)
        fires.wait_for_fires()
    fires.judge()


def test_reset_keeps_the_history_and_the_export_brings_the_changes_back(stack: Stack) -> None:
    at_first = changed(stack)
    wanted = change_what_the_api_can(stack)
    start_load(stack, 5)
    run_id, _ = run_once(stack)
    long_run = stack.bearer().create_job(
        "long", "oracle_sleep", {"trigger_type": "interval", "days": 1}, kwargs={"seconds": 3}
    )
    stack.bearer().run_now(long_run["id"])

    planned = run_on(stack, SCRIPT, "--dry-run")
    assert "Nothing was changed." in planned.stdout
    assert changed(stack).keys() == {*wanted, "long"}

    before = {run_id: outcome for run_id, outcome in runs_in(stack).items() if outcome in FINAL}
    reset = run_on(stack, SCRIPT, "--yes")
    assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN
    assert changed(stack) == at_first
    progress = [line for line in reset.stderr.splitlines() if re.match(r"\[ *\d+s\] ", line)]
    assert len(progress) >= 7, reset.stderr
    after = runs_in(stack)
    seen = stack.starts()
    assert {after.get(start.run_id) for start in seen} <= STARTED, "a run that was started is not on record"
    assert len({start.run_id for start in seen}) == len(seen), "a run was started twice"
    assert not set(after.values()) & {"pending", "running"}
    assert after.items() >= before.items()
    assert run_once(stack) == (run_id, True)
    assert [row["kind"] for row in stack.bearer().history("purge_run_history")] == ["manual"]
    assert "does not keep running" not in reset.stderr

    # What the script says is what an operator does.
    command = reset.stdout.strip().splitlines()[-1].split()
    assert command[0] == "scripts/import_jobs.sh"
    run_on(stack, "import_jobs.sh", *command[1:], "--yes")
    there = changed(stack)
    assert there.pop("long")["kwargs"] == {"seconds": 3}
    assert there == wanted
    already = len(seen)
    wait_until("the own jobs fire again", stack.starts, lambda starts: len(starts) > already + 5, within=30)

    # Safe to run again, and a soft one keeps even the store: both export what was brought back.
    again = json.loads(run_on(stack, SCRIPT, "--yes", "--json").stdout)
    assert again["aside"]
    assert [carried["damage"] for carried in again["history"]] == [None]
    assert runs_in(stack).keys() >= after.keys()
    assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN
    softly(stack, Path(again["export"]).name, wanted.keys() | {"long"})


def softly(stack: Stack, export: str, own: set[str]) -> None:
    """The soft reset, with an export that the stack keeps: nothing stops, and the runs on record stay."""
    started = {container.id: container.attrs["State"]["StartedAt"] for container in stack.containers()}
    processes = stack.gunicorn("scheduler", "worker")
    before = runs_in(stack)
    done = json.loads(run_on(stack, SCRIPT, "--soft", "--yes", "--from-export", export, "--json").stdout)
    assert (done["soft"], done["aside"]) == (True, None)
    assert set(done["applied"]["added"]) == own - BUILTIN | {f"load_{number}" for number in range(5)}
    assert changed(stack).keys() == own
    assert runs_in(stack).keys() >= before.keys()
    assert stack.gunicorn("scheduler", "worker") == processes
    for container in stack.containers():
        assert container.attrs["State"]["StartedAt"] == started[container.id]


def test_nothing_is_moved_while_another_container_has_the_store_open(stack: Stack, tmp_path: Path) -> None:
    """And nothing at all is done for an export that a fresh store could not take, or while the jobs are held."""
    before = changed(stack)
    wrong = tmp_path / "jobs.yaml"
    wrong.write_text(
        "format: 1\ncreated_at: ''\napp_version: ''\nreason: x\ndefault_jobs: [{id: gone, is_paused: true}]\n"
    )
    for arguments in ([], ["--soft"]):
        refused = run_script(
            SCRIPT, "--yes", "--from-export", str(wrong), *arguments, environment=environment_of(stack)
        )
        assert refused.code == 1, refused
        assert "holds no job gone" in refused.stderr
    stack.execute("flask", "jobs", "hold", "--reason", "works at the database")
    held = run_script(SCRIPT, "--yes", environment=environment_of(stack))
    assert held.code == 1, held
    assert "the job store is held (works at the database)" in held.stderr
    stack.execute("flask", "jobs", "release-hold", "--catch-up", "skip")
    assert stack.starts() == []
    other = stack.docker.containers.run(
        stack.container().image.id,
        ["python3", "-c", HOLD_OPEN],
        detach=True,
        volumes={f"{stack.name}_userdata": {"bind": "/app/userdata", "mode": "rw"}},
        labels={"com.docker.compose.project": stack.name},
    )
    try:
        wait_until("the other container has it open", lambda: b"open" in other.logs(), within=30)
        refused = run_script(SCRIPT, "--yes", environment=environment_of(stack))
        assert refused.code != 0
        assert "is open in another process" in refused.stderr
    finally:
        other.remove(force=True)
    stack.wait_until_ready()
    assert changed(stack) == before


@pytest.mark.parametrize("extent", ["middle", "all"])
def test_damaged_store_is_kept_and_a_fresh_one_started(stack: Stack, extent: str) -> None:
    """The start refuses the damaged file and keeps it; the reset keeps it too, and the stack works again."""
    start_load(stack, 15)
    # So many that the middle of the file is not all there is of it.
    wait_until("some history", lambda: len(runs_in(stack)), lambda count: count > 250, within=60)
    if extent == "middle":
        run_on(stack, "backup_jobstore.sh")
    known = runs_in(stack)
    stack.compose("stop", timeout=120)
    hash_of_damaged = stack.compose(
        "run", "--rm", "-T", "--no-deps", SERVICE, "python3", "-c", SPOIL, STORE, extent
    ).strip()
    stack.compose("up", "--detach", "--no-build", "--pull", "never")
    wait_until(
        "the start is refused",
        lambda: stack.container().logs(since=int(time.time()) - 60),
        lambda log: b"amaged" in log or b"not a database" in log,
        within=90,
    )

    reset = run_on(stack, SCRIPT, "--yes")
    stack.wait_until_ready()
    assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN
    assert "the job store is damaged" in reset.stderr
    aside = re.search(r"^old store: (\S+)$", reset.stdout, re.MULTILINE)
    assert aside is not None
    assert stack.execute("python3", "-c", HASH, f"{aside[1]}/scheduler.db").strip() == hash_of_damaged
    carried = runs_in(stack).keys() & known.keys()
    if extent == "middle":
        assert carried, "nothing of a file with both ends intact was carried over"
        assert "not carried over: " in reset.stderr
    else:
        assert not carried
        assert "the history was not carried over" in reset.stderr


@pytest.mark.timeout(300)
def test_killed_between_two_steps_and_run_again(stack: Stack, tmp_path: Path) -> None:
    """The two places where no store is in use: nobody fires, and the stack is down."""
    reset_killed_at(stack, (STOPPED, SET_ASIDE), tmp_path)


@pytest.mark.faults_long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", ["prod", "split", "ha"])
def test_killed_at_every_step_and_run_again(private_stack: Callable[..., Stack], shape: str, tmp_path: Path) -> None:
    reset_killed_at(private_stack(shape=shape), STEPS, tmp_path)


@pytest.mark.timeout(300)
def test_store_in_postgresql(private_stack: Callable[..., Stack], tmp_path: Path) -> None:
    """Its tables go to a file aside and come back as history; users and inventory in the same database stay."""
    stack = private_stack(shape="ha", scale={"web": 1, "worker": 1})
    fires = EverySecond(stack)
    export = export_of(stack, tmp_path)
    run_id, _ = run_once(stack)
    fires.wait_for_fires()
    planned = run_on(stack, SCRIPT, "--dry-run")
    assert "the job store postgresql://postgres/whalefall" in planned.stdout
    done = json.loads(run_on(stack, SCRIPT, "--yes", "--from-export", str(export), "--json").stdout.splitlines()[-1])
    assert set(done["applied"]["added"]) == set(EverySecond.IDS)
    assert {job["id"] for job in stack.bearer().jobs()} == BUILTIN | set(EverySecond.IDS)
    [carried] = done["history"]
    kept = runs_in(stack, f"{done['aside']}/scheduler.db")
    assert carried["runs"] == len(kept) > 0
    assert run_once(stack) == (run_id, True)
    assert stack.admin().data("GET", "/api/v1/scheduler/status")["nodes"]
    fires.wait_for_fires()
    fires.judge()
