"""The commands: results on standard output, one line on standard error when they fail, no scheduler started."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from app.default_jobs import load_default_jobs
from app.runtime import runtime_of


@pytest.fixture
def run(app: Flask) -> Any:
    runner = app.test_cli_runner()

    def invoke(*arguments: str) -> Result:
        return runner.invoke(args=list(arguments))

    return invoke


@pytest.fixture
def defaults(app: Flask) -> list[str]:
    """The ids of the default jobs, which are in the store."""
    runtime = runtime_of(app)
    jobs = load_default_jobs(runtime.settings, runtime.tasks)
    runtime.ledger.load_defaults(jobs)
    return [job.id for job in jobs]


def test_list(run: Any, app: Flask, defaults: list[str]) -> None:
    runtime_of(app).ledger.pause_job("sync_accounts", "1")
    listed = json.loads(run("jobs", "list", "--json").stdout)
    assert sorted(defaults) == [job["id"] for job in listed]
    assert {job["id"]: job["state"] for job in listed}["sync_accounts"] == "paused"
    assert "sync_accounts" in run("jobs", "list").stdout


def test_status_tells_of_queue_and_outcomes(run: Any, app: Flask, defaults: list[str]) -> None:
    assert "scheduler: none" in run("jobs", "status").stdout
    runtime_of(app).ledger.request_run("sync_accounts", "1")
    assert "queue: 1 pending, 0 running" in run("jobs", "status").stdout
    assert json.loads(run("jobs", "status", "--json").stdout)["queue"]["pending"] == 1


def test_history_lists_the_runs_of_a_job(run: Any, app: Flask, defaults: list[str]) -> None:
    asked = runtime_of(app).ledger.request_run("sync_accounts", "1")
    [row] = json.loads(run("jobs", "history", "sync_accounts", "--json").stdout)
    assert (row["run_id"], row["outcome"]) == (asked.run_id, "pending")
    heading, line = run("jobs", "history", "sync_accounts").stdout.splitlines()
    assert heading.startswith("scheduled_for")
    assert "manual" in line


def test_export_and_apply(run: Any, app: Flask, defaults: list[str]) -> None:
    runtime_of(app).ledger.pause_job("sync_accounts", "1")
    path = Path(run("jobs", "export").stdout.strip())
    assert path.is_file()
    runtime_of(app).ledger.resume_job("sync_accounts", "1")
    assert "would be changed: sync_accounts" in run("jobs", "apply-export", "latest", "--dry-run").stdout
    assert json.loads(run("jobs", "apply-export", path.name, "--json").stdout)["changed"] == ["sync_accounts"]
    job = runtime_of(app).ledger.get_job("sync_accounts")
    assert job is not None
    assert job.is_paused


def test_export_in_full_is_applied_from_standard_input(app: Flask, defaults: list[str]) -> None:
    runtime_of(app).ledger.pause_job("sync_accounts", "1")
    runner = app.test_cli_runner()
    exported = runner.invoke(args=["jobs", "export", "--all", "--stdout"]).stdout
    assert all(f"- id: {job_id}\n" in exported for job_id in defaults)
    runtime_of(app).ledger.resume_job("sync_accounts", "1")
    shown = runner.invoke(args=["jobs", "apply-export", "-", "--diff"], input=exported).stdout
    assert "-is_paused: false\n+is_paused: true\n" in shown
    plan = shown.splitlines()[-1].removeprefix("plan: ")
    applied = runner.invoke(args=["jobs", "apply-export", "-", "--plan", plan, "--json"], input=exported)
    assert json.loads(applied.stdout)["changed"] == ["sync_accounts"]
    again = runner.invoke(args=["jobs", "apply-export", "-", "--plan", plan], input=exported)
    assert again.exit_code == 1
    assert "look at it again" in again.stderr
    assert not list(runtime_of(app).settings.userdata_dir.glob("exports/*"))


def test_export_is_checked_for_a_fresh_store(run: Any, app: Flask, defaults: list[str]) -> None:
    runtime_of(app).ledger.pause_job("sync_accounts", "1")
    path = run("jobs", "export").stdout.strip()
    assert run("jobs", "apply-export", "latest", "--onto-defaults").stdout.strip() == path
    Path(path).write_text(Path(path).read_text().replace("id: sync_accounts", "id: gone"))
    refused = run("jobs", "apply-export", "latest", "--onto-defaults")
    assert refused.exit_code == 1
    assert "holds no job gone" in refused.stderr


def test_reload_without_a_scheduler_is_one_line(run: Any, defaults: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            "app.services.operations.reset.reload.ADDRESS", f"http://127.0.0.1:{nobody.getsockname()[1]}"
        )
        planned = json.loads(run("jobs", "reload", "--dry-run", "--json").stdout)
        assert planned == {"deleted": sorted(defaults), "reloaded": defaults}
        failed = run("jobs", "reload")
    assert failed.exit_code == 1
    (line,) = failed.stderr.splitlines()
    assert "the scheduler of this container gave no answer" in line


def test_store_that_is_held_is_not_set_aside(run: Any, app: Flask, defaults: list[str]) -> None:
    assert run("jobs", "hold", "--reason", "works").exit_code == 0
    refused = run("jobs", "set-aside")
    assert refused.exit_code == 1
    assert "the job store is held (works)" in refused.stderr
    assert (runtime_of(app).settings.userdata_dir / "scheduler.db").exists()


def test_backup_and_verify(run: Any, defaults: list[str]) -> None:
    made = json.loads(run("jobs", "backup", "--reason", "unit test", "--json").stdout)
    assert made["reason"] == "unit test"
    assert run("jobs", "verify", "latest").stdout.strip() == made["path"]
    assert [each["path"] for each in json.loads(run("jobs", "list-backups", "--json").stdout)] == [made["path"]]


def test_backup_is_planned_without_being_made(run: Any, defaults: list[str]) -> None:
    planned = json.loads(run("jobs", "backup", "--dry-run", "--json").stdout)
    assert planned["stores"]["jobstore"]["bytes"] > 0
    assert "would go to" in run("jobs", "backup", "--dry-run").stdout
    assert json.loads(run("jobs", "list-backups", "--json").stdout) == []


def test_restore_is_checked_planned_done_and_undone(run: Any, app: Flask, defaults: list[str]) -> None:
    ledger = runtime_of(app).ledger
    made = json.loads(run("jobs", "backup", "--json").stdout)["path"]
    ledger.delete_job("purge_run_history", by="test")
    assert run("jobs", "restore", "latest", "--check").stdout.strip() == made
    planned = run("jobs", "restore", "latest", "--dry-run")
    assert "would be restored" in planned.stdout
    assert ledger.get_job("purge_run_history") is None
    done = run("jobs", "restore", made)
    assert "restored: " in done.stdout
    assert ledger.get_job("purge_run_history") is not None
    assert ledger.held() is not None
    undone = json.loads(run("jobs", "restore", "--undo", "--json").stdout)
    assert undone["before"]
    assert ledger.get_job("purge_run_history") is None


@pytest.mark.parametrize("arguments", [(), ("latest", "--undo"), ("no-such-backup",), ("latest",), ("--undo",)])
def test_restore_of_nothing_is_one_line(run: Any, arguments: tuple[str, ...]) -> None:
    refused = run("jobs", "restore", *arguments)
    assert refused.exit_code in (1, 2)
    assert refused.stdout == ""
    assert "Traceback" not in refused.stderr


def test_set_aside(run: Any, app: Flask, defaults: list[str]) -> None:
    runtime_of(app).ledger.request_run("sync_accounts", "1")
    store = runtime_of(app).settings.userdata_dir / "scheduler.db"
    assert run("jobs", "set-aside", "--dry-run").stdout.strip() == str(store)
    assert store.exists()
    aside = Path(run("jobs", "set-aside").stdout.strip())
    assert (aside / "scheduler.db").exists()
    assert not store.exists()


def test_check_finds_a_damaged_store(run: Any, app: Flask, defaults: list[str]) -> None:
    assert run("db", "check").exit_code == 0
    runtime_of(app).jobstore.dispose()
    (runtime_of(app).settings.userdata_dir / "scheduler.db").write_bytes(b"no database")
    assert run("db", "check").exit_code == 3
    assert run("db", "check", "--store", "app").exit_code == 0
    [state] = json.loads(run("db", "check", "--store", "jobstore", "--json").stdout)
    assert state["problem"] == "file is not a database"


def test_waiting_says_what_is_missing(run: Any, app: Flask) -> None:
    waited = run("jobs", "wait-defaults", "--timeout", "0.3")
    assert waited.exit_code == 1
    assert "default jobs not in the store: " in waited.stderr
    assert "no scheduler has sent a heartbeat" in waited.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "apply-export", "nope"),
        ("jobs", "apply-export", "latest"),
        ("jobs", "verify", "nope"),
        ("jobs", "verify", "latest"),
        ("jobs", "export", "--reason", "../up"),
        ("jobs", "carry-history", "nope"),
        ("jobs", "history", "nope"),
        ("jobs", "move-to-postgres"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(run: Any, defaults: list[str], arguments: tuple[str, ...]) -> None:
    failed = run(*arguments)
    assert failed.exit_code == 1
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "no-such-command"),
        ("jobs", "backup", "--keep", "0"),
        ("jobs", "backup", "--keep"),
        ("jobs", "list", "--surplus"),
        ("jobs", "apply-export"),
        ("db", "check", "--store", "other"),
        ("jobs", "move-to-postgres", "surplus"),
    ],
)
def test_wrong_usage_is_refused(run: Any, defaults: list[str], arguments: tuple[str, ...]) -> None:
    failed = run(*arguments)
    assert failed.exit_code == 2
    assert failed.stdout == ""
    assert failed.stderr


def test_no_command_starts_a_scheduler(run: Any, app: Flask, defaults: list[str]) -> None:
    run("jobs", "list")
    assert runtime_of(app).scheduler is None
    assert runtime_of(app).ledger.nodes() == []
