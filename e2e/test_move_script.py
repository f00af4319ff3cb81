"""scripts/move_to_postgres.sh on running stacks, step by step as its runbook says: no fire is lost or doubled."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from e2e.harness.checkout import Checkout, checked_out
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.every_second import EverySecond
from e2e.harness.runbooks import PAGES, Operator, blocks_of
from e2e.harness.scripts import run_script
from e2e.harness.stack import Shape, free_port
from e2e.harness.waiting import wait_until

RUNBOOK = "move-to-postgres"
PLAN, BACK_UP, MOVE, GO_BACK, VERIFY, _ = blocks_of(PAGES[RUNBOOK])
#: What the script says at each of its steps, in their order; the last ones are those of scripts/up.sh.
STEPS = (
    "building the images",
    "making the secret .secrets/postgres_password",
    "stopping the stack",
    "starting PostgreSQL",
    "copying everything into it",
    "keeping the shape ha",
    "everything was moved before",
    "starting the shape ha",
    "starting the stack",
    "waiting until it is healthy",
)
HASH_STORE = """
import hashlib, pathlib
print(hashlib.sha256(pathlib.Path("/app/userdata/scheduler.db").read_bytes()).hexdigest())
"""


@contextmanager
def brought_up(folder: Path, name: str, shape: Shape) -> Iterator[Checkout]:
    with checked_out(folder, f"whalefall-e2e-move-{name}-{os.getpid()}", Checkout) as made:
        done = made.up("--shape", shape)
        assert done.returncode == 0, done.stderr
        made.load_oracle_tasks()
        yield made


@pytest.fixture(params=["prod", pytest.param("split", marks=pytest.mark.faults_long)])
def checkout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with brought_up(tmp_path_factory.mktemp(f"move-{request.param}"), request.param, request.param) as made:
        yield made


def kill_when_it_says(checkout: Checkout, words: str) -> None:
    """Runs the move and kills it, and all it started, at that line."""
    with subprocess.Popen(
        ["scripts/move_to_postgres.sh", "--yes"],
        cwd=checkout.folder,
        env={key: os.environ[key] for key in ("PATH", "HOME", "DOCKER_HOST") if key in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        assert script.stderr is not None
        told = ""
        for line in script.stderr:
            told += line
            if words in line:
                break
        else:
            raise AssertionError(f"it never said {words!r}:\n{told}")
        os.killpg(script.pid, signal.SIGKILL)


@pytest.mark.faults_long
@pytest.mark.timeout(1800)
def test_killed_at_every_step_it_goes_on_from_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Killed with all that it started at each of its steps, one after the other; the run after the last succeeds."""
    with brought_up(tmp_path_factory.mktemp("move-killed"), "killed", "prod") as checkout:
        fires = EverySecond(checkout)
        fires.wait_for_fires()
        for words in STEPS:
            kill_when_it_says(checkout, words)
            wait_until(
                "the end of what it had started beside the stack", lambda: not one_off_containers(checkout), within=120
            )
        moved = checkout.run("scripts/move_to_postgres.sh", "--yes", "--json", env={})
        assert moved.returncode == 0, moved.stderr
        assert "everything was moved before" in moved.stderr
        assert moved.stdout == "null\n", "what was moved was told by the run that moved it"
        checkout.wait_until_ready()
        fires.wait_for_fires()
        fires.judge()


def one_off_containers(checkout: Checkout) -> list[Container]:
    labels = [f"com.docker.compose.project={checkout.project}", "com.docker.compose.oneoff=True"]
    found: list[Container] = docker.from_env().containers.list(filters={"label": labels})
    return found


@pytest.mark.timeout(900)
def test_a_running_stack_is_moved_and_brought_back(checkout: Checkout) -> None:
    shape, operator = checkout.shape, Operator(checkout)
    fires = EverySecond(checkout)
    fires.wait_for_fires(5)

    planned = operator.run(PLAN, RUNBOOK)
    assert "Nothing was changed." in planned
    assert re.search(r"^jobstore +runs +\d+ ", planned, re.MULTILINE), planned
    checkout.wait_until_ready()

    operator.run(BACK_UP, RUNBOOK)
    if shape == "prod":
        kill_when_it_says(checkout, "starting PostgreSQL")
    moved = operator.run(MOVE, RUNBOOK)
    assert "everything is moved and checked" in moved, moved
    assert "Address:  http://" in moved
    assert checkout.setting("COMPOSE_FILE") == "compose/docker-compose.ha.yml"
    assert {one.labels["com.docker.compose.service"] for one in checkout.containers()} == {
        "nginx", "web", "scheduler", "worker", "postgres", "valkey",
    }  # fmt: skip
    fires.wait_for_fires()
    verified = operator.run(VERIFY, RUNBOOK)
    assert "problem:" not in verified
    assert "backup_jobstore" in verified, verified
    Client(checkout.base_url).log_in("admin", checkout.secret("admin_password"))
    fires.judge()

    if shape != "prod":
        return
    again = checkout.run("scripts/move_to_postgres.sh", "--yes", env={})
    assert again.returncode == 0, again.stderr
    assert "everything was moved before" in again.stderr
    refuses_the_old_stack_beside(checkout)
    refused = checkout.up("--shape", "prod")
    assert refused.returncode != 0

    operator.run(GO_BACK, RUNBOOK)
    assert {one.labels["com.docker.compose.service"] for one in checkout.containers()} == {"whalefall"}
    assert {job["id"] for job in checkout.bearer().jobs()} >= set(EverySecond.IDS)
    assert (checkout.folder / "since-the-move.sql").stat().st_size > 10_000


def refuses_the_old_stack_beside(checkout: Checkout) -> None:
    """By mistake somebody starts the one container on the volume of the shape ha: with the note, and without it."""
    before = checkout.execute("python3", "-c", HASH_STORE)
    for hidden, words in ((False, b"was moved to PostgreSQL"), (True, b"another one on the same volume is alive")):
        if hidden:
            checkout.execute("mv", "userdata/moved_to_postgres.json", "userdata/hidden.json")
        try:
            old = start_one_container(checkout)
            try:
                wait_until("the refusal", old.logs, _says(words), within=60)
                assert old.wait(timeout=60)["StatusCode"] != 0
            finally:
                old.remove(force=True)
        finally:
            if hidden:
                checkout.execute("mv", "userdata/hidden.json", "userdata/moved_to_postgres.json")
    assert checkout.execute("python3", "-c", HASH_STORE) == before, "the old store was written to"
    status = checkout.bearer().data("GET", f"{SCHEDULER}/status")
    assert sum(node["is_alive"] for node in status["nodes"]) >= 2


def _says(words: bytes) -> Callable[[bytes], bool]:
    return lambda log: words in log


def start_one_container(checkout: Checkout) -> Container:
    name = f"{checkout.project}-beside"
    compose = ("docker", "compose", "--file", "compose/docker-compose.prod.yml")
    begin = ("run", "--detach", "--no-deps", "--name", name, "whalefall")
    done = checkout.run(*compose, *begin, env={"COMPOSE_IGNORE_ORPHANS": "true"})
    assert done.returncode == 0, done.stderr
    found: Container = docker.from_env().containers.get(name)
    return found


def test_nothing_to_move() -> None:
    environment = {**os.environ, "COMPOSE_PROJECT_NAME": "whalefall-never-started", "HTTP_PORT": str(free_port())}
    outcome = run_script("move_to_postgres.sh", "--yes", environment=environment)
    assert outcome.code == 1, outcome
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("move_to_postgres.sh: there is no stack here")


def test_a_sqlite_url_in_the_settings_is_refused() -> None:
    environment = {**os.environ, "JOBSTORE_URL": "sqlite:////app/userdata/other.db"}
    outcome = run_script("move_to_postgres.sh", "--yes", environment=environment)
    assert outcome.code == 1, outcome
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("move_to_postgres.sh: JOBSTORE_URL names a SQLite database")
