"""create_app: what stops it, what it leaves behind, what it does not start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flask import Flask

from app import create_app
from app.db.engines import DamagedDatabase
from app.runtime import Runtime, runtime_of
from app.settings import PROJECT_ROOT, SECRET_NAMES, Settings, SettingsError


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_missing_secret_stops_it_and_is_named(environment: dict[str, str], name: str) -> None:
    del environment[name]
    with pytest.raises(SettingsError, match=f"^{name} is not set"):
        create_app(Settings.load(environment))


def test_a_damaged_store_stops_it_and_is_kept(app: Flask, settings: Settings) -> None:
    file = settings.userdata_dir / "scheduler.db"
    runtime_of(app).jobstore.dispose()
    for left in (Path(f"{file}-wal"), Path(f"{file}-shm")):
        left.unlink(missing_ok=True)
    damaged = b"not a database" * 1000
    file.write_bytes(damaged)

    with pytest.raises(DamagedDatabase, match=r"scheduler\.db"):
        create_app(settings)
    assert file.read_bytes() == damaged


def test_an_app_without_a_scheduler_starts_no_thread(settings: Settings) -> None:
    before = set(threading.enumerate())
    app = create_app(settings, init_scheduler_on_start=False)
    assert runtime_of(app).scheduler is None
    assert set(threading.enumerate()) == before


def test_a_fork_inherits_no_connection(runtime: Runtime) -> None:
    assert runtime.jobstore.pool.checkedin() == 0  # type: ignore[attr-defined]
    assert runtime.database.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_two_apps_in_one_process_do_not_mix(environment: dict[str, str], tmp_path: Path, app: Flask) -> None:
    other = create_app(
        Settings.load({**environment, "USERDATA_DIR": str(tmp_path / "other"), "API_TOKEN": "other"}),
        init_scheduler_on_start=False,
    )
    assert runtime_of(other).jobstore.url != runtime_of(app).jobstore.url
    headers = {"Authorization": "Bearer other"}
    assert other.test_client().get("/api/v1/auth/me", headers=headers).status_code == 200
    assert app.test_client().get("/api/v1/auth/me", headers=headers).status_code == 401


def test_importing_parts_does_nothing_and_loads_no_web(tmp_path: Path) -> None:
    code = (
        "import sys, threading, app, app.errors, app.settings\n"
        "assert 'flask' not in sys.modules and 'sqlite3' not in sys.modules, 'too much loaded'\n"
        "import app.factory, app.scheduler\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_ROOT), "USERDATA_DIR": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"SCHEDULER_TIMEZONE": "Mars/Olympus"}, "SCHEDULER_TIMEZONE is 'Mars/Olympus'; accepted: "),
        ({"SECRET_KEY": ""}, "SECRET_KEY is not set; accepted: "),
        ({"SCHEDULER_TASKS_FILE": "/nowhere/tasks.yaml"}, "/nowhere/tasks.yaml"),
    ],
)
def test_a_mistake_of_the_operator_is_one_line_and_exit_4(
    environment: dict[str, str], tmp_path: Path, changed: dict[str, str], line: str
) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_ROOT), **environment, **changed}
    done = subprocess.run(
        [sys.executable, "-c", "import wsgi"], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
