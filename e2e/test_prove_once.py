"""scripts/prove_once.sh: a drill on a real stack is proven, a spoilt one is not, an interrupted one harms nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.scripts import Outcome, environment_of, run_on, run_script
from e2e.harness.stack import ROOT, Stack, running_stack
from e2e.harness.waiting import wait_until

SCRIPT = "prove_once.sh"
NOT_PROVEN = 4
#: Runs in the container. Adds the last line of the newest drill's log once more.
WRITE_TWICE = """
import pathlib
log = max(pathlib.Path("/app/userdata/drills").iterdir()) / "fires.jsonl"
line = log.read_text().splitlines()[-1]
with log.open("a") as file:
    file.write(line + "\\n")
print(line)
"""
#: Runs in the container. Deletes the ledger's row of a start in the middle of the newest drill.
FORGET_ONE = """
import json, pathlib, sqlite3
log = max(pathlib.Path("/app/userdata/drills").iterdir()) / "fires.jsonl"
lines = log.read_text().splitlines()
line = lines[len(lines) // 2]
store = sqlite3.connect("/app/userdata/scheduler.db")
store.execute("DELETE FROM runs WHERE run_id = ?", (json.loads(line)["run_id"],))
store.commit()
print(line)
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A one-container stack of its own: its container is killed and frozen."""
    with running_stack(tmp_path_factory) as stack:
        yield stack


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory, shape="ha") as stack:
        yield stack


def probes(stack: Stack) -> list[str]:
    """The drills' jobs that the stack still has, deleted ones too."""
    listed = json.loads(stack.execute("flask", "jobs", "list", "--deleted", "--json"))
    return [job["id"] for job in listed if job["id"].startswith("drill-")]


def assert_whole(stack: Stack) -> None:
    """Every container runs, is healthy, and is where it was on the networks; no probe fires."""

    def states() -> dict[str, str]:
        return {
            str(container.name): str(container.attrs["State"].get("Health", {}).get("Status"))
            if container.status == "running"
            else str(container.status)
            for container in stack.containers()
        }

    wait_until("every container healthy", states, lambda found: set(found.values()) == {"healthy"}, within=90)
    if stack.shape == "ha":
        for service in ("web", "scheduler", "worker"):
            for container in stack.containers_of(service):
                networks = container.attrs["NetworkSettings"]["Networks"]
                assert set(networks) == {f"{stack.name}_default", f"{stack.name}_stores"}
                assert service in networks[f"{stack.name}_stores"]["Aliases"]
    stack.wait_until_ready()
    listed = json.loads(stack.execute("flask", "jobs", "list", "--json"))
    assert [job["id"] for job in listed if job["id"].startswith("drill-")] == []


def report_in(folder: Path) -> dict[str, Any]:
    """The report that was copied to the host; its HTML has a mark for every start."""
    document: dict[str, Any] = json.loads((folder / "report.json").read_text())
    html = (folder / "report.html").read_text()
    assert html.count("<circle") >= document["starts"]
    assert html.count('class="band"') == len(document["faults"])
    return document


@contextmanager
def begun(stack: Stack, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The script, running, in a group of processes of its own, as a terminal has it; and what it says so far."""
    said = stack.folder / f"said-{time.monotonic_ns()}"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            # A test run in the background hears no Ctrl-C, and neither would its children.
            ["env", "--default-signal=INT", str(ROOT / "scripts" / SCRIPT), "--yes", *arguments],
            env=environment_of(stack),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    try:
        yield process, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=150)


def wait_until_said(said: Path, words: str, *, within: float) -> None:
    wait_until(f"{words!r} from {SCRIPT}", said.read_text, lambda text: words in text, within=within)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ([], "--yes"),
            (["--minutes", "1"], "--yes"),
            (["--yes", "--minutes", "0"], "1 to 60"),
            (["--yes", "--minutes", "61"], "1 to 60"),
            (["--yes", "--minutes", "1.5"], "1 to 60"),
            (["--yes", "--minutes"], "--minutes needs a value"),
            (["--yes", "--jobs", "many"], "1 to 200"),
            (["--yes", "--jobs", "-1"], "1 to 200"),
            (["--yes", "--jobs", "200", "--minutes", "60"], "720000 fires; accepted: at most 100000"),
            (["--yes", "--executor", "gevent"], "default, process, celery"),
            (["--yes", "--faults", "kill,flood"], "'flood'"),
            (["--yes", "--faults", ""], "--faults needs a value"),
            (["--yes", "--faults", "kill,,freeze"], "''"),
            (["--yes", "--faults", "cut"], "allows: kill freeze"),
            (["--yes", "--faults", "kill,database"], "shape prod"),
            (["--yes", "--seed", "32768"], "0 to 32767"),
            (["--yes", "--report", "/nowhere"], "'/nowhere'"),
            (["--yes", "kill"], "unknown argument 'kill'"),
        ],
    )
    def test_wrong_ones_are_one_line_and_change_nothing(self, one: Stack, arguments: list[str], names: str) -> None:
        before = [(container.id, container.attrs["State"]["StartedAt"]) for container in one.containers()]
        outcome = run_script(SCRIPT, *arguments, environment=environment_of(one))
        assert_one_line(outcome, names, code=2)
        assert [(container.id, container.attrs["State"]["StartedAt"]) for container in one.containers()] == before

    def test_the_fleet_is_refused_where_there_is_none(self, one: Stack) -> None:
        outcome = run_script(SCRIPT, "--yes", "--executor", "celery", environment=environment_of(one))
        assert outcome.code == 1
        assert "CELERY_BROKER_URL" in outcome.stderr
        assert probes(one) == []


def assert_one_line(outcome: Outcome, names: str, *, code: int) -> None:
    assert outcome.code == code, outcome
    assert outcome.stdout == "", outcome
    assert len(outcome.stderr.splitlines()) == 1, outcome
    assert names in outcome.stderr, outcome


def test_a_drill_on_the_one_container_is_proven_and_a_spoilt_one_is_not(one: Stack, tmp_path: Path) -> None:
    arguments = ("--yes", "--minutes", "1", "--jobs", "10", "--faults", "kill,freeze", "--report", str(tmp_path))
    outcome = run_on(one, SCRIPT, *arguments, "--json")
    assert json.loads(outcome.stdout)["proven"], outcome
    document = report_in(tmp_path)
    assert document["proven"]
    assert document["due"] > 400
    assert document["faults"], "a drill without a fault proves little"
    for figures in document["faults"]:
        assert figures["fault"]["kind"] in ("kill", "freeze")
        assert figures["fault"]["target"] == "whalefall-1"
        assert figures["recovery"] is not None
        nodes = {start["node"] for start in document["fires"]}
        assert figures["fault"]["node"] in nodes, "the picture shows whom it struck"
    assert_whole(one)
    assert probes(one) == [], "not even to be restored"
    # The same drill again, with its sources spoilt.
    drill = document["drill"]
    line = json.loads(one.execute("python3", "-c", WRITE_TWICE))
    doubled = conclude(one, drill)
    assert doubled["duplicates"] == [
        f"{line['job_id']} was started 2 times for {line['scheduled_for']:.3f}, attempt 1, on {line['node']}"
    ]
    assert doubled["absent"] == []
    gone = json.loads(one.execute("python3", "-c", FORGET_ONE))
    forgotten = conclude(one, drill)
    assert forgotten["absent"] == [f"{gone['job_id']} at {gone['scheduled_for']:.3f} is not in the ledger"]


def conclude(stack: Stack, drill: str) -> dict[str, Any]:
    """The verdict of a drill that is not proven."""
    code, output = stack.container().exec_run(["flask", "jobs", "drill-verdict", drill, "--json"])
    assert code == NOT_PROVEN, output
    found: dict[str, Any] = json.loads(output)
    return found


def test_a_dry_run_says_what_it_would_do_and_does_nothing(one: Stack) -> None:
    outcome = run_script(SCRIPT, "--dry-run", "--json", "--jobs", "3", environment=environment_of(one))
    plan = {"dry_run": True, "minutes": "5", "jobs": "3", "executor": "default", "faults": "kill,freeze"}
    assert (outcome.code, json.loads(outcome.stdout)) == (0, plan)
    words = run_script(SCRIPT, "--dry-run", environment=environment_of(one)).stdout
    assert "one of: kill,freeze.\nNothing was changed." in words
    assert probes(one) == []


def test_an_interrupted_drill_leaves_a_whole_stack(one: Stack) -> None:
    with begun(one, "--jobs", "5", "--faults", "freeze") as (process, said):
        wait_until_said(said, "the drill", within=60)
        refused = run_script(SCRIPT, "--yes", environment=environment_of(one))
        assert refused.code == 1, refused
        assert "is running; wait for it, or stop it: flask jobs drill-stop" in refused.stderr
        wait_until_said(said, "freeze whalefall-1", within=60)
        wait_until("a frozen container", lambda: one.container().status, lambda status: status == "paused", within=10)
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        assert process.wait(timeout=150) == 128 + signal.SIGINT, said.read_text()
        assert "warning" not in said.read_text()
    assert_whole(one)


@pytest.mark.faults_long
@pytest.mark.parametrize(
    ("kind", "sent", "is_harmed"),
    [
        ("kill", signal.SIGTERM, lambda container, _: container.status == "exited"),
        ("freeze", signal.SIGHUP, lambda container, _: container.status == "paused"),
        ("cut", signal.SIGINT, lambda container, stores: stores not in container.attrs["NetworkSettings"]["Networks"]),
    ],
)
def test_every_fault_is_mended_when_it_is_interrupted(
    cluster: Stack, kind: str, sent: signal.Signals, is_harmed: Callable[[Any, str], bool]
) -> None:
    def harmed() -> Sequence[str]:
        stores = f"{cluster.name}_stores"
        return [str(found.name) for found in cluster.containers_of("scheduler") if is_harmed(found, stores)]

    with begun(cluster, "--jobs", "5", "--faults", kind) as (process, said):
        wait_until_said(said, f"{kind} scheduler-", within=60)
        wait_until(f"a scheduler under {kind}", harmed, bool, within=10)
        process.send_signal(sent)
        expected = 128 + (signal.SIGTERM if sent == signal.SIGHUP else sent)
        assert process.wait(timeout=150) == expected, said.read_text()
        assert "warning" not in said.read_text()
    assert harmed() == []
    assert_whole(cluster)


@pytest.mark.faults_long
def test_a_drill_with_every_fault_is_proven_on_the_cluster(cluster: Stack, tmp_path: Path) -> None:
    run_on(cluster, SCRIPT, "--yes", "--minutes", "5", "--seed", "1", "--report", str(tmp_path), timeout=600)
    document = report_in(tmp_path)
    assert document["proven"]
    assert document["due"] > 5000
    assert {figures["fault"]["kind"] for figures in document["faults"]} == {"kill", "freeze", "cut", "database"}
    assert all(figures["recovery"] is not None for figures in document["faults"])
    assert_whole(cluster)
    assert probes(cluster) == []


@pytest.mark.faults_long
def test_a_drill_of_the_worker_fleet_is_proven(cluster: Stack, tmp_path: Path) -> None:
    arguments = ("--yes", "--minutes", "2", "--executor", "celery", "--seed", "5", "--report", str(tmp_path))
    run_on(cluster, SCRIPT, *arguments, timeout=400)
    document = report_in(tmp_path)
    assert document["proven"]
    workers = {str(container.id)[:12] for container in cluster.containers_of("worker")}
    assert {start["node"] for start in document["fires"]} <= workers
    assert_whole(cluster)


@pytest.mark.faults_long
def test_a_start_written_twice_during_the_drill_is_found(cluster: Stack, tmp_path: Path) -> None:
    arguments = ("--minutes", "1", "--jobs", "5", "--faults", "database", "--report", str(tmp_path))
    with begun(cluster, *arguments) as (process, said):
        wait_until_said(said, "database postgres-1", within=60)
        line = json.loads(cluster.execute("python3", "-c", WRITE_TWICE))
        assert process.wait(timeout=240) == NOT_PROVEN, said.read_text()
    document = report_in(tmp_path)
    assert not document["proven"]
    assert any(sentence.startswith(f"{line['job_id']} was started 2 times") for sentence in document["duplicates"])
    assert_whole(cluster)


def test_a_stopped_stack_is_refused(one: Stack) -> None:
    one.compose("stop", timeout=120)
    try:
        assert_one_line(run_script(SCRIPT, "--yes", environment=environment_of(one)), "not running", code=1)
    finally:
        one.compose("start")
        one.wait_until_ready()
