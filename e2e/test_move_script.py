"""scripts/move_to_postgres.sh on running stacks, step by step as its runbook says: no fire is lost or doubled."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from e2e.harness.checkout import Checkout, checked_out
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import FINAL, every, judge, parse_moment, read_log
from e2e.harness.scripts import run_script
from e2e.harness.stack import ROOT, free_port
from e2e.harness.waiting import wait_until

RUNBOOK = ROOT / "runbooks" / "move-to-postgres.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
JOBS = ("each-moment", "folded")
#: The oracle's tasks in the volume itself: what up.sh brings up mounts nothing else.
TASKS = (
    (ROOT / "e2e" / "tasks" / "oracle.py").read_text().replace('"/oracle/fires.jsonl"', '"/app/userdata/fires.jsonl"')
)
WRITE_TASKS = """
import pathlib, sys
folder = pathlib.Path("/app/userdata/tasks")
folder.mkdir(exist_ok=True)
(folder / "oracle.py").write_text(sys.argv[1])
"""
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
READ_FIRES = "import pathlib; print(pathlib.Path('/app/userdata/fires.jsonl').read_text())"
HASH_STORE = """
import hashlib, pathlib
print(hashlib.sha256(pathlib.Path("/app/userdata/scheduler.db").read_bytes()).hexdigest())
"""


class Moving:
    """A stack that is moved, as its operator sees it."""

    def __init__(self, checkout: Checkout, shape: str) -> None:
        self.checkout = checkout
        self.service = "whalefall" if shape == "prod" else "scheduler"
        done = checkout.up("--shape", shape)
        assert done.returncode == 0, done.stderr
        self.in_app("python3", "-c", WRITE_TASKS, TASKS)
        checkout.compose("restart", *([self.service] if shape == "prod" else ["web", "scheduler"]))
        self.wait_until_ready()

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.checkout.port}", token=self.checkout.secret("api_token"))

    def wait_until_ready(self) -> None:
        paths = ("/api/v1/health/ready", f"{SCHEDULER}/health/ready")
        client = self.client()
        for path in paths:
            wait_until(path, partial(_status_of, client, path), lambda status: status == 200, within=90)

    def in_app(self, *command: str) -> str:
        return self.checkout.compose("exec", "-T", self.service, *command)

    def block(self, number: int) -> str:
        """The runbook's block, run as it stands; its output. Fails with all it printed."""
        body = BLOCK.findall(RUNBOOK.read_text(encoding="utf-8"))[number]
        body = body.replace("whalefall_postgres", f"{self.checkout.project}_postgres")
        done = self.checkout.run("bash", "-euo", "pipefail", "-c", body, env={})
        assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start_jobs(self) -> datetime:
        """Two jobs that fire every second from the moment that is returned on."""
        first = datetime.fromtimestamp(int(time.time()) + 4, tz=UTC)
        for job_id in JOBS:
            trigger = {"trigger_type": "interval", "seconds": 1, "start_date": first.isoformat()}
            self.client().create_job(job_id, "oracle_fire", trigger, coalesce=job_id == "folded", max_instances=10)
        return first

    def fires_beyond(self, moment: datetime, count: int) -> None:
        """Waits until each job succeeded `count` times for moments after `moment`."""
        client = self.client()

        def least() -> int:
            counts: list[int] = []
            for job_id in JOBS:
                rows = client.data("GET", f"{SCHEDULER}/jobs/{job_id}/history", params={"limit": "50"})
                later = [row for row in rows if parse_moment(row["scheduled_for"]) > moment]
                counts.append(sum(row["outcome"] == "success" for row in later))
            return min(counts)

        wait_until(f"{count} fires after {moment}", least, lambda found: found >= count, within=60)

    def judge(self, first: datetime, folder: Path) -> None:
        """No moment since `first` was started twice or is without an outcome."""
        client = self.client()
        for job_id in JOBS:
            client.data("POST", f"{SCHEDULER}/jobs/{job_id}/actions/pause")
        histories = wait_until(
            "all runs to end",
            lambda: {job_id: client.history(job_id) for job_id in JOBS},
            lambda found: all(row["outcome"] in FINAL for rows in found.values() for row in rows),
            within=60,
        )
        log = folder / "fires.jsonl"
        log.write_text(self.in_app("python3", "-c", READ_FIRES).strip() + "\n")
        lasts = {job_id: max(parse_moment(row["scheduled_for"]) for row in rows) for job_id, rows in histories.items()}
        verdict = judge({job_id: every(1, first, lasts[job_id]) for job_id in JOBS}, read_log(log), histories)
        print(f"\n{verdict}")
        assert verdict.clean, verdict


@pytest.fixture(params=["prod", pytest.param("split", marks=pytest.mark.faults_long)])
def moving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moving]:
    shape = request.param
    folder = tmp_path_factory.mktemp(f"move-{shape}")
    with checked_out(folder, f"whalefall-e2e-move-{shape}-{os.getpid()}") as checkout:
        yield Moving(checkout, shape)


def _status_of(client: Client, path: str) -> int:
    return client.get(path, timeout=5).status_code


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
def test_killed_at_every_step_it_goes_on_from_there(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Killed with all that it started at each of its steps, one after the other; the run after the last succeeds."""
    folder = tmp_path_factory.mktemp("move-killed")
    with checked_out(folder, f"whalefall-e2e-move-killed-{os.getpid()}") as checkout:
        moving = Moving(checkout, "prod")
        first = moving.start_jobs()
        moving.fires_beyond(first - timedelta(seconds=1), 3)
        for words in STEPS:
            kill_when_it_says(checkout, words)
            wait_until(
                "the end of what it had started beside the stack", lambda: not one_off_containers(checkout), within=120
            )
        moved = checkout.run("scripts/move_to_postgres.sh", "--yes", "--json", env={})
        assert moved.returncode == 0, moved.stderr
        assert "everything was moved before" in moved.stderr
        assert moved.stdout == "null\n", "what was moved was told by the run that moved it"
        moving.service = "scheduler"
        moving.wait_until_ready()
        moving.fires_beyond(datetime.now(UTC), 3)
        moving.judge(first, tmp_path)


def one_off_containers(checkout: Checkout) -> list[Container]:
    labels = [f"com.docker.compose.project={checkout.project}", "com.docker.compose.oneoff=True"]
    found: list[Container] = docker.from_env().containers.list(filters={"label": labels})
    return found


@pytest.mark.timeout(900)
def test_a_running_stack_is_moved_and_brought_back(moving: Moving, tmp_path: Path) -> None:
    checkout, client = moving.checkout, moving.client()
    first = moving.start_jobs()
    moving.fires_beyond(first - timedelta(seconds=1), 5)

    planned = moving.block(0)
    assert "Nothing was changed." in planned
    assert re.search(r"^jobstore +runs +\d+ ", planned, re.MULTILINE), planned
    moving.wait_until_ready()

    moving.block(1)
    is_prod = moving.service == "whalefall"
    if is_prod:
        kill_when_it_says(checkout, "starting PostgreSQL")
    moved = moving.block(2)
    moving.service = "scheduler"
    assert "everything is moved and checked" in moved, moved
    assert "Address:  http://" in moved
    assert "COMPOSE_FILE=compose/docker-compose.ha.yml" in (checkout.folder / ".env").read_text().splitlines()
    assert {one.labels["com.docker.compose.service"] for one in checkout.containers()} == {
        "nginx", "web", "scheduler", "worker", "postgres", "valkey",
    }  # fmt: skip
    after = datetime.now(UTC)
    moving.fires_beyond(after, 3)
    verified = moving.block(4)
    assert "problem:" not in verified
    assert verified.count(", alive, ") >= 2, verified
    admin = Client(client.base_url)
    admin.log_in("admin", checkout.secret("admin_password"))
    moving.judge(first, tmp_path)

    if not is_prod:
        return
    again = checkout.run("scripts/move_to_postgres.sh", "--yes", env={})
    assert again.returncode == 0, again.stderr
    assert "everything was moved before" in again.stderr
    refuses_the_old_stack_beside(moving)
    refused = checkout.up("--shape", "prod")
    assert refused.returncode != 0

    moving.block(3)
    moving.service = "whalefall"
    assert {one.labels["com.docker.compose.service"] for one in checkout.containers()} == {"whalefall"}
    assert {job["id"] for job in moving.client().jobs()} >= set(JOBS)
    assert (checkout.folder / "since-the-move.sql").stat().st_size > 10_000


def refuses_the_old_stack_beside(moving: Moving) -> None:
    """By mistake somebody starts the one container on the volume of the shape ha: with the note, and without it."""
    before = moving.in_app("python3", "-c", HASH_STORE)
    for hidden, words in ((False, b"was moved to PostgreSQL"), (True, b"another one on the same volume is alive")):
        if hidden:
            moving.in_app("mv", "userdata/moved_to_postgres.json", "userdata/hidden.json")
        try:
            old = start_one_container(moving)
            try:
                wait_until("the refusal", old.logs, _says(words), within=60)
                assert old.wait(timeout=60)["StatusCode"] != 0
            finally:
                old.remove(force=True)
        finally:
            if hidden:
                moving.in_app("mv", "userdata/hidden.json", "userdata/moved_to_postgres.json")
    assert moving.in_app("python3", "-c", HASH_STORE) == before, "the old store was written to"
    status = moving.client().data("GET", f"{SCHEDULER}/status")
    assert sum(node["is_alive"] for node in status["nodes"]) >= 2


def _says(words: bytes) -> Callable[[bytes], bool]:
    return lambda log: words in log


def start_one_container(moving: Moving) -> Container:
    name = f"{moving.checkout.project}-beside"
    command = [
        "docker",
        "compose",
        "-f",
        "compose/docker-compose.prod.yml",
        "run",
        "--detach",
        "--no-deps",
        "--name",
        name,
    ]
    done = moving.checkout.run(*command, "whalefall", env={"COMPOSE_IGNORE_ORPHANS": "true"})
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
