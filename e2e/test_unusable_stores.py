"""What is wrong with a store is told in one clear line at the start, or in the status, and nothing is damaged.

The processes run beside the tests, as Gunicorn would start them, on a real PostgreSQL.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.bare_machine import START, BareMachine
from e2e.harness.postgres_server import PASSWORD, PostgresServer
from e2e.harness.scripts import Outcome
from e2e.harness.stack import ROOT
from e2e.harness.waiting import wait_until

#: Gunicorn's code for an app that cannot be loaded: its master gives up at once.
NOT_LOADED = 4
LIVE = "import signal, wsgi; print('started', flush=True); signal.pause()"
ASK = """
import json, wsgi
from app.runtime import runtime_of
from app.services.scheduler.scheduler_status_read_service import SchedulerStatusReadService
print("STATUS" + SchedulerStatusReadService(runtime_of(wsgi.application), language="en").status().model_dump_json())
"""


@pytest.fixture
def url(server: PostgresServer) -> str:
    """An empty database."""
    return server.new_database("start")


class Machine(BareMachine):
    """One whose processes live on while a test goes on."""

    @contextmanager
    def process(self, code: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A process that runs as long as the body."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def scheduler(self, log: Path) -> Iterator[None]:
        """A living scheduler process, once it has started."""
        with self.process(LIVE, log):
            wait_until("the start", log.read_text, lambda text: "\nstarted\n" in f"\n{text}", within=60)
            yield

    def status(self) -> dict[str, Any]:
        """What a web process of this machine tells of all nodes."""
        done = self.python("-c", ASK, ENABLE_SCHEDULER="false", NODE_NAME="asks")
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("STATUS")]
        status: dict[str, Any] = json.loads(line.removeprefix("STATUS"))
        return status


def assert_one_line(done: Outcome, *words: str) -> None:
    assert done.code == NOT_LOADED, done
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line, line
    assert PASSWORD not in done.stderr + done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("scheduler", ["true", "false"])
def test_a_server_that_refuses_is_not_waited_for(
    server: PostgresServer, url: str, tmp_path: Path, scheduler: str
) -> None:
    wrong = {
        "password": (server.url("start", password="wrong"), "password authentication failed"),
        "database": (server.url("missing"), 'database "missing" does not exist'),
        "user": (server.url("start", user="nobody"), 'password authentication failed for user "nobody"'),
    }
    for store, said in wrong.values():
        machine = Machine(tmp_path / "userdata", store, ENABLE_SCHEDULER=scheduler)
        assert_one_line(machine.start(within=30), "JOBSTORE_URL: the database at postgresql://127.0.0.1", said)


def test_rights_that_are_missing_are_told(server: PostgresServer, url: str, tmp_path: Path) -> None:
    with server.connect("start") as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reads'")
    machine = Machine(tmp_path / "userdata", server.url("start", user="reader", password="reads"))
    assert_one_line(machine.start(), "JOBSTORE_URL", "permission denied for schema public")


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("mysql://root@db/jobs", "JOBSTORE_URL is 'mysql://***@db/jobs'; accepted: sqlite:////absolute/path.db"),
        ("postgres-whalefall", "JOBSTORE_URL is 'postgres-whalefall'; accepted:"),
        ("postgresql://whalefall:pw@db", "JOBSTORE_URL is 'postgresql://***@db'; accepted:"),
        (
            "sqlite:////proc/scheduler.db",
            "JOBSTORE_URL: the database at /proc/scheduler.db cannot be used: unable to open",
        ),
        ("sqlite:////proc/new/scheduler.db", "JOBSTORE_URL: the database at /proc/new/scheduler.db cannot be used:"),
        ("sqlite:////etc/passwd", "The file /etc/passwd is kept as it is"),
    ],
)
def test_a_url_that_leads_to_no_store(tmp_path: Path, store: str, said: str) -> None:
    assert_one_line(Machine(tmp_path / "userdata", JOBSTORE_URL=store).start(), said)


def test_a_server_that_is_still_starting_is_waited_for(server: PostgresServer, url: str, tmp_path: Path) -> None:
    """One line an attempt; then the start goes on by itself."""
    machine = Machine(tmp_path / "userdata", url, ENABLE_SCHEDULER="false")
    server.container.pause()
    log = tmp_path / "log"
    try:
        # Paused, it accepts connections and says nothing: what a hung server looks like, too.
        with machine.process(START, log) as process:
            wait_until("a line", log.read_text, lambda text: '"variable": "JOBSTORE_URL"' in text, within=40)
            server.container.unpause()
            assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        server.container.reload()
        if server.container.status == "paused":
            server.container.unpause()
    attempts = [line for line in log.read_text().splitlines() if "waiting for the database" in line]
    assert all('"attempt": ' in line and '"cause": ' in line for line in attempts), attempts
    assert PASSWORD not in log.read_text()


def test_a_newer_schema_is_left_alone(server: PostgresServer, url: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "userdata", url, ENABLE_SCHEDULER="false")
    assert machine.start().code == 0
    with server.connect("start") as connection:
        connection.execute("UPDATE jobstore_schema_version SET version_num = '9999'")
        connection.execute("UPDATE jobstore_schema_compatibility SET usable_from = '9998'")
    assert_one_line(machine.start(), "The jobstore database is at schema 9999, which this release does not know")
    with server.connect("start") as connection:
        assert connection.execute("SELECT version_num FROM jobstore_schema_version").fetchall() == [("9999",)]


def test_two_stacks_with_different_code_on_one_database_are_told_of(url: str, tmp_path: Path) -> None:
    """Each has drop-in tasks of its own; both schedulers go on."""
    machines = []
    for name in ("one", "two"):
        tasks = tmp_path / name / "tasks"
        tasks.mkdir(parents=True)
        (tasks / "own.py").write_text(f"from app.tasks import task\n@task('only_{name}')\ndef only():\n    pass\n")
        machines.append(Machine(tmp_path / name, url, NODE_NAME=name))
    with machines[0].scheduler(tmp_path / "one.log"), machines[1].scheduler(tmp_path / "two.log"):
        told = wait_until(
            "the status to tell of it",
            lambda: machines[0].status()["problems"],
            lambda problems: [problem["code"] for problem in problems] == ["code_differs"],
            within=30,
        )
    assert told[0]["nodes"] == ["one", "two"]
    assert "one | two" in told[0]["message"]


def test_two_stores_on_one_volume(url: str, tmp_path: Path) -> None:
    """One container on SQLite beside a stack on PostgreSQL, on one machine: whoever comes second does not start."""
    userdata = tmp_path / "userdata"
    on_postgres, on_sqlite = Machine(userdata, url), Machine(userdata)
    with on_postgres.scheduler(tmp_path / "log"):
        for role in ("true", "false"):
            refused = on_sqlite.start(ENABLE_SCHEDULER=role)
            assert_one_line(refused, "would use scheduler.db in userdata", "uses postgresql://127.0.0.1", "Stop one")
        assert not (userdata / "scheduler.db").exists(), "the refused start made a store"
        assert [node["is_alive"] for node in on_postgres.status()["nodes"]] == [True]
    # Killed, its lock is free: nobody has to clear anything away.
    with on_sqlite.scheduler(tmp_path / "log2"):
        assert_one_line(on_postgres.start(), "would use postgresql://127.0.0.1", "uses scheduler.db in userdata")


PAUSE_WHILE_KILLED = """
import threading, time, wsgi
from sqlalchemy import event, text
from app.runtime import runtime_of

runtime = runtime_of(wsgi.application)
how = {how!r}

def before(connection, cursor, statement, parameters, context, executemany):
    if statement.startswith("UPDATE jobs") and not done:
        done.append(True)
        if how == "idle":
            time.sleep(3)
        else:
            with runtime.database.connect() as other:
                pid = connection.connection.driver_connection.info.backend_pid
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {{"pid": pid}})

done = []
event.listen(runtime.jobstore, "before_cursor_execute", before)
client = wsgi.application.test_client()
client.environ_base["HTTP_AUTHORIZATION"] = "Bearer token of the tests"
for _ in range(2):
    answer = client.post("/api/v1/scheduler/jobs/sync_accounts/actions/pause")
    print("ANSWER", answer.status_code, answer.headers.get("Retry-After"), answer.get_json().get("message_code"))
"""


@pytest.mark.parametrize("how", ["idle", "terminated"])
def test_a_session_that_the_server_ended_is_a_503(url: str, tmp_path: Path, how: str) -> None:
    """Ended for idling in its transaction, or by an administrator: trying again later helps, and does at once."""
    done = Machine(tmp_path / "userdata", url).python("-c", PAUSE_WHILE_KILLED.format(how=how))
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answers == ["ANSWER 503 5 SERVICE_UNAVAILABLE", "ANSWER 200 None None"], done
