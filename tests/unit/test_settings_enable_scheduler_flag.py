"""Whether a process runs a scheduler: ENABLE_SCHEDULER, the reloader, the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import create_app
from app.runtime import runtime_of
from app.scheduler import _should_start_scheduler, get_scheduler, stop_scheduler
from app.settings import PROJECT_ROOT, Settings


@pytest.mark.parametrize("value", ["true", "True", "TRUE", "1", "yes", "YES", " true "])
def test_these_enable(environment: dict[str, str], value: str) -> None:
    settings = Settings.load({**environment, "ENABLE_SCHEDULER": value})
    assert settings.enable_scheduler is True
    assert _should_start_scheduler(settings)


@pytest.mark.parametrize("value", ["false", "False", "0", "no", "", "on", "enabled", "2", "ture"])
def test_anything_else_disables(environment: dict[str, str], value: str) -> None:
    settings = Settings.load({**environment, "ENABLE_SCHEDULER": value})
    assert settings.enable_scheduler is False
    assert not _should_start_scheduler(settings)


def test_it_is_enabled_by_default(environment: dict[str, str]) -> None:
    assert Settings.load(environment).enable_scheduler is True


def test_the_environment_of_the_process_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLASK_RUN_FROM_CLI", "WERKZEUG_RUN_MAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENABLE_SCHEDULER", "false")
    assert not _should_start_scheduler()
    monkeypatch.setenv("ENABLE_SCHEDULER", "true")
    assert _should_start_scheduler()


@pytest.mark.parametrize(
    ("flask_run_from_cli", "werkzeug_run_main", "starts"),
    [
        (None, None, True),  # gunicorn, or app.run() without a reloader
        ("true", None, False),  # a flask command, and the parent of `flask run --reload`
        ("true", "true", True),  # the reloader's child
        (None, "true", True),
        ("false", None, True),
    ],
)
def test_the_reloader_and_the_command_line(
    environment: dict[str, str], flask_run_from_cli: str | None, werkzeug_run_main: str | None, starts: bool
) -> None:
    given = {"FLASK_RUN_FROM_CLI": flask_run_from_cli, "WERKZEUG_RUN_MAIN": werkzeug_run_main}
    environment = {**environment, **{name: value for name, value in given.items() if value is not None}}
    assert _should_start_scheduler(Settings.load(environment)) is starts
    disabled = Settings.load({**environment, "ENABLE_SCHEDULER": "false"})
    assert not _should_start_scheduler(disabled)


def test_an_app_without_a_scheduler(settings: Settings) -> None:
    app = create_app(settings, init_scheduler_on_start=False)
    assert runtime_of(app).scheduler is None
    with app.app_context():
        assert get_scheduler() is None


def test_an_app_with_a_scheduler_until_it_is_stopped(settings: Settings) -> None:
    assert get_scheduler() is None
    app = create_app(settings)
    try:
        scheduler = runtime_of(app).scheduler
        assert scheduler is not None
        assert scheduler.running
        assert get_scheduler() is scheduler, "outside a context: the process's"
        with app.app_context():
            assert get_scheduler() is scheduler
        with create_app(settings, init_scheduler_on_start=False).app_context():
            assert get_scheduler() is None, "in a context: that app's"
    finally:
        stop_scheduler()
    assert not scheduler.running
    assert get_scheduler() is None
    stop_scheduler()


def test_a_disabled_app_has_none(environment: dict[str, str]) -> None:
    app = create_app(Settings.load({**environment, "ENABLE_SCHEDULER": "false"}))
    assert runtime_of(app).scheduler is None


def test_a_flask_command_starts_none(environment: dict[str, str], tmp_path: Path) -> None:
    code = "from app import create_app; from app.runtime import runtime_of; print(runtime_of(create_app()).scheduler)"
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "FLASK_RUN_FROM_CLI": "true", "PYTHONPATH": str(PROJECT_ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert asked.stdout.splitlines()[-1] == "None"


def test_importing_the_app_does_nothing(tmp_path: Path) -> None:
    code = (
        "import threading, app, app.scheduler, app.default_jobs, app.factory, app.api.v1.scheduler;"
        "print(threading.active_count())"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PROJECT_ROOT), "USERDATA_DIR": str(tmp_path / "userdata")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert asked.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []
