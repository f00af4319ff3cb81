"""The app with a running scheduler, and drop-in tasks for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.runtime import Runtime, runtime_of
from app.scheduler import stop_scheduler
from app.settings import Settings
from tests.unit.conftest import ADMIN_PASSWORD, API_TOKEN

JOBS = "/api/v1/scheduler/jobs"

TASKS = """
import logging
import time
from pathlib import Path

from flask import current_app

from app.tasks import task

# Not print: pytest puts its own stdout in the place of the one that captures it.
logger = logging.getLogger(__name__)


@task("note", description="Appends a word to a file")
def note(path: str, word: str = "done", times: int = 1):
    for _ in range(times):
        with Path(path).open("a") as file:
            file.write(word + "\\n")
    logger.info("noted %s in %s", word, current_app.name)


@task("wait", description="Waits until a file is there")
def wait(path: str, *, run):
    deadline = time.monotonic() + 20
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)


@task("patient", description="Runs until it is asked to stop, and obeys once the other file is there")
def patient(path: str, obeys_from: str, *, run):
    Path(path).touch()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if Path(obeys_from).exists():
            run.check()
        time.sleep(0.01)


@task("fail", description="Fails")
def fail():
    raise RuntimeError("this task always fails")


@task("who", description="Tells who asked", takes_manual_context=True)
def who(manual_run: bool = False, created_by: int | str | None = None):
    logger.info("manual_run=%r created_by=%r", manual_run, created_by)
"""

DEFAULT_JOB = """
  - id: nightly_note
    task: note
    trigger_type: cron
    trigger_params: {hour: 5, minute: 0}
    kwargs: {path: /dev/null}
"""

Json = dict[str, Any]


def with_tasks(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """`environment` with drop-in tasks, and with a default job that is no built-in one."""
    tasks = Path(environment["USERDATA_DIR"]) / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "drop_in.py").write_text(TASKS, encoding="utf-8")
    shipped = Settings.load(environment).scheduler_tasks_file.read_text(encoding="utf-8")
    (folder / "tasks.yaml").write_text(shipped + DEFAULT_JOB, encoding="utf-8")
    return {**environment, "SCHEDULER_TASKS_FILE": str(folder / "tasks.yaml"), "DRAIN_SECONDS": "10"}


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return with_tasks(environment, tmp_path)


@contextmanager
def running(settings: Settings) -> Iterator[Flask]:
    """The app of a scheduler process; its scheduler turns. One at a time: a process has one."""
    built = create_app(settings)
    yield built
    stop_scheduler()
    runtime = runtime_of(built)
    runtime.jobstore.dispose()
    runtime.database.dispose()


@pytest.fixture
def scheduling_app(settings: Settings) -> Iterator[Flask]:
    with running(settings) as app:
        yield app


@pytest.fixture
def scheduling_runtime(scheduling_app: Flask) -> Runtime:
    return runtime_of(scheduling_app)


def script(app: Flask) -> FlaskClient:
    """A script with the API token."""
    made = app.test_client()
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {API_TOKEN}"
    return made


@pytest.fixture
def api(scheduling_app: Flask) -> FlaskClient:
    return script(scheduling_app)


@pytest.fixture
def browser(scheduling_app: Flask) -> FlaskClient:
    """A browser of the logged-in admin, at a scheduler process."""
    made = scheduling_app.test_client()
    answer = made.post("/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
    made.environ_base["HTTP_X_CSRFTOKEN"] = answer.get_json()["data"]["csrf_token"]
    return made


def data(answer: Any, status: int = 200) -> Any:
    """`data` of an answer that has this status."""
    assert answer.status_code == status, answer.get_data(as_text=True)
    body = answer.get_json()
    assert (body["success"], body["error"]) == (True, False)
    return body["data"]


def refusal(answer: Any) -> tuple[int, str]:
    """Status and code of an answer that refuses."""
    body = answer.get_json()
    assert (body["success"], body["error"]) == (False, True), body
    assert body["message"]
    assert body["request_id"]
    return answer.status_code, body["message_code"]


def wait_until(condition: Callable[[], Any], *, within_s: float = 10.0) -> Any:
    """The first true value of `condition`; fails with the last one at the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still {value!r} after {within_s} s"
        time.sleep(0.02)
    return value


def create(api: FlaskClient, **fields: Any) -> Json:
    """An own job that fires far from now."""
    body = {"id": "mine", "task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "cron", "hour": 6}
    created: Json = data(api.post(JOBS, json={**body, **fields}), 201)
    return created


def finished_run(api: FlaskClient, run_id: str) -> Json:
    """The run, once it has ended."""

    def ended() -> Json | None:
        run: Json = data(api.get(f"/api/v1/scheduler/runs/{run_id}"))
        return run if run["outcome"] not in ("pending", "running") else None

    found: Json = wait_until(ended)
    return found
