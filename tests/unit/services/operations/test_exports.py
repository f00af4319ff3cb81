"""An export holds what the API changed, and gives it back whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.ledger import Job, NewJob
from app.ledger.jobs import SETTINGS
from app.runtime import Runtime
from app.services.operations.exports import export_changes, find_export, read_export
from app.services.operations.failure import OperationFailed
from app.services.operations.imports import Applied, apply_export
from app.triggers import parse_trigger
from tests.unit.services.operations.conftest import DEFAULTS, EVERY_MORNING, EVERY_NIGHT


def change_everything(runtime: Runtime) -> None:
    ledger = runtime.ledger
    ledger.change_job("sync_accounts", {"trigger": EVERY_MORNING}, "1")
    ledger.pause_job("purge_run_history", "1")
    ledger.change_job("copy_report", {"is_enabled": False}, "1")
    ledger.add_job(
        NewJob(
            id="日报",
            task="purge_run_history",
            trigger=parse_trigger(
                {"trigger_type": "interval", "hours": "2", "start_date": "2030-01-01T00:00:00+08:00"},
                default_timezone="Asia/Shanghai",
            ).spec,
            name="每日报表",
            kwargs={"retention_days": 7},
            max_instances=3,
            misfire_grace_time=60,
            max_attempts=4,
            retry_delay=7,
            soft_time_limit=50,
            time_limit=55,
            ping_url="https://hc.example/ping/1",
        ),
        "1",
    )
    ledger.pause_job("日报", "1")
    ledger.add_job(NewJob(id="given_up", task="purge_run_history", trigger=EVERY_NIGHT), "1")
    ledger.delete_job("given_up", "1")


def apply_file(runtime: Runtime, path: Path, **options: Any) -> Applied:
    return apply_export(runtime, read_export(path), name=path.name, by="test", **options)


def seen(runtime: Runtime) -> dict[str, dict[str, Any]]:
    """What an export must bring back, of every job."""
    names = ("trigger", "is_enabled", "is_paused", *SETTINGS)
    found: dict[str, dict[str, Any]] = {}
    for job_id in ("sync_accounts", "purge_run_history", "copy_report", "日报", "given_up"):
        job = runtime.ledger.get_job(job_id)
        if job is not None:
            found[job_id] = {name: getattr(job, name) for name in names}
    return found


def test_export_of_an_unchanged_store_is_empty(with_defaults: Runtime) -> None:
    path = export_changes(with_defaults, "manual")
    export = read_export(path)
    assert (export.default_jobs, export.own_jobs, export.deleted_own_jobs) == ([], [], [])
    assert path.parent == with_defaults.settings.userdata_dir / "exports"
    assert path.name.endswith("-manual.yaml")


def test_export_names_only_what_was_changed(with_defaults: Runtime) -> None:
    change_everything(with_defaults)
    content = yaml.safe_load(export_changes(with_defaults, "reload").read_text(encoding="utf-8"))
    assert content["default_jobs"] == [
        {"id": "copy_report", "is_enabled": False},
        {"id": "purge_run_history", "is_paused": True},
        {"id": "sync_accounts", "trigger": EVERY_MORNING},
    ]
    assert [job["id"] for job in content["own_jobs"]] == ["日报"]
    assert [job["id"] for job in content["deleted_own_jobs"]] == ["given_up"]


def test_file_can_be_reviewed(with_defaults: Runtime) -> None:
    """A person reads it: a heading that says how to use it, and Chinese as Chinese."""
    change_everything(with_defaults)
    path = export_changes(with_defaults, "reload")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#")
    assert f"scripts/import_jobs.sh {path.name}" in text
    assert "每日报表" in text


def test_reset_and_apply_give_the_same_jobs(with_defaults: Runtime) -> None:
    change_everything(with_defaults)
    before = seen(with_defaults)
    path = export_changes(with_defaults, "reset")
    remove_everything(with_defaults)
    applied = apply_file(with_defaults, path)
    assert seen(with_defaults) == before
    assert applied.added == ("日报",)
    assert set(applied.changed) == {"sync_accounts", "purge_run_history", "copy_report"}
    assert apply_file(with_defaults, path).unchanged == (*applied.changed, "日报")


def remove_everything(runtime: Runtime) -> None:
    """The store as after a reset: the defaults, and nobody's own jobs."""
    with runtime.jobstore.begin() as connection:
        connection.exec_driver_sql("DELETE FROM jobs")
    runtime.ledger.load_defaults(DEFAULTS)


def test_reload_and_apply_restore_own_jobs(with_defaults: Runtime) -> None:
    change_everything(with_defaults)
    before = seen(with_defaults)
    path = export_changes(with_defaults, "reload")
    with_defaults.ledger.reload_defaults(DEFAULTS, by="test")
    assert with_defaults.ledger.get_job("日报") is None
    applied = apply_file(with_defaults, path)
    assert applied.restored == ("日报",)
    assert seen(with_defaults) == before


def test_paused_job_has_no_next_run_after_apply(with_defaults: Runtime) -> None:
    change_everything(with_defaults)
    path = export_changes(with_defaults, "reset")
    remove_everything(with_defaults)
    apply_file(with_defaults, path)
    for job_id in ("purge_run_history", "copy_report", "日报"):
        job = with_defaults.ledger.get_job(job_id)
        assert isinstance(job, Job)
        assert job.next_run_time is None
    changed = with_defaults.ledger.get_job("sync_accounts")
    assert changed is not None
    assert changed.next_run_time is not None
    assert changed.overrides == ("trigger",)


def test_what_an_export_leaves_out_is_cleared(with_defaults: Runtime) -> None:
    """An own job is brought to the exported state, also where that is: no limit, no ping."""
    with_defaults.ledger.add_job(NewJob(id="plain", task="purge_run_history", trigger=EVERY_NIGHT), "1")
    path = export_changes(with_defaults, "manual")
    with_defaults.ledger.change_job(
        "plain", {"time_limit": 9, "ping_url": "https://hc.example/", "max_attempts": 3}, "1"
    )
    assert apply_file(with_defaults, path).changed == ("plain",)
    plain = with_defaults.ledger.get_job("plain")
    assert plain is not None
    assert (plain.time_limit, plain.ping_url, plain.max_attempts) == (None, None, 1)


def test_dry_run_changes_nothing(with_defaults: Runtime) -> None:
    change_everything(with_defaults)
    path = export_changes(with_defaults, "reset")
    remove_everything(with_defaults)
    before = seen(with_defaults)
    assert apply_file(with_defaults, path, dry_run=True).added == ("日报",)
    assert seen(with_defaults) == before


def test_unknown_task_is_applied_with_a_warning(with_defaults: Runtime) -> None:
    with_defaults.ledger.add_job(NewJob(id="later", task="not_here_yet", trigger=EVERY_NIGHT), "1")
    path = export_changes(with_defaults, "reset")
    remove_everything(with_defaults)
    applied = apply_file(with_defaults, path)
    assert applied.added == ("later",)
    assert "not_here_yet" in applied.warnings[0]


def own(**changes: Any) -> dict[str, Any]:
    return {"id": "mine", "task": "purge_run_history", "trigger": dict(EVERY_NIGHT)} | changes


def document(**sections: Any) -> dict[str, Any]:
    return {"format": 1, "created_at": "2026-01-01", "app_version": "0", "reason": "test"} | sections


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a list", "a mapping"),
        ("a: [", "no YAML"),
        ({"format": 2}, "format: 2"),
        (document(surplus=1), "surplus"),
        (document(own_jobs=[own(max_instances=11)]), r"own_jobs.0 \(mine\).max_instances"),
        (document(own_jobs=[own(max_instances="2")]), r"own_jobs.0 \(mine\).max_instances"),
        (document(own_jobs=[own(executor="celery")]), "job mine: executor holds 'celery'; accepted: default, process"),
        (document(own_jobs=[own(executor="rocket")]), r"own_jobs.0 \(mine\).executor"),
        (document(own_jobs=[own(max_attempts=21)]), r"own_jobs.0 \(mine\).max_attempts"),
        (document(own_jobs=[own(ping_url="no address")]), r"own_jobs.0 \(mine\).ping_url"),
        (document(own_jobs=[own(soft_time_limit=9, time_limit=9)]), "job mine: soft_time_limit holds 9.*time_limit"),
        (document(own_jobs=[own(id="a b")]), r"own_jobs.0 \(a b\).id"),
        (document(own_jobs=[own(), own()]), "mine is named twice"),
        (document(own_jobs=[own(trigger={"type": "sometimes"})]), "job mine: trigger: type holds 'sometimes'"),
        (document(own_jobs=[own(trigger={"type": "cron", "minuet": "5"})]), "minuet"),
        (document(own_jobs=[own(trigger={"type": "cron", "minute": "61"})]), "job mine: trigger: minute holds '61'"),
        (document(own_jobs=[own(trigger={**EVERY_NIGHT, "timezone": "Asia/Nowhere"})]), "Asia/Nowhere"),
        (document(own_jobs=[own(kwargs={"retention_days": 0})]), "job mine: kwargs.retention_days holds 0"),
        (document(own_jobs=[own(kwargs={"surplus": 1})]), "job mine: kwargs.surplus"),
        (document(own_jobs=[own(id="copy_report")]), "belongs to a job of the defaults file"),
        (document(default_jobs=[{"id": "gone", "is_paused": True}]), "holds no job gone"),
        (document(default_jobs=[{"id": "sync_accounts", "is_paused": "yes"}]), "is_paused"),
    ],
)
def test_bad_export_is_refused_whole(with_defaults: Runtime, tmp_path: Path, content: Any, said: str) -> None:
    """One line that says where; and the good part of the file is not applied either."""
    if isinstance(content, dict) and "default_jobs" not in content and content["format"] == 1:
        content["default_jobs"] = [{"id": "sync_accounts", "is_paused": True}]
    path = tmp_path / "bad.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True))
    before = seen(with_defaults)
    with pytest.raises(OperationFailed, match=said) as refused:
        apply_file(with_defaults, path)
    assert "\n" not in str(refused.value)
    assert seen(with_defaults) == before


def test_failure_in_the_middle_leaves_nothing_applied(with_defaults: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only checks: an edit that fails rolls the ones before it back."""
    change_everything(with_defaults)
    path = export_changes(with_defaults, "reset")
    remove_everything(with_defaults)
    before = seen(with_defaults)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr("app.ledger.ledger.Ledger.add_job", fail)
    with pytest.raises(RuntimeError, match="disk"):
        apply_file(with_defaults, path)
    assert seen(with_defaults) == before


def test_exports_of_the_same_second_have_names_of_their_own(with_defaults: Runtime) -> None:
    paths = [export_changes(with_defaults, "manual") for _ in range(3)]
    assert len(set(paths)) == 3
    assert find_export(with_defaults.settings, "latest") in paths
    assert find_export(with_defaults.settings, paths[0].name) == paths[0]


@pytest.mark.parametrize("reason", ["", "../up", "Reset", "a b"])
def test_reason_cannot_leave_the_folder(with_defaults: Runtime, reason: str) -> None:
    with pytest.raises(OperationFailed, match="reason"):
        export_changes(with_defaults, reason)


def test_unreadable_job_is_named(with_defaults: Runtime, add_runs: Callable[..., list[str]]) -> None:
    """Runs are no part of an export; jobs whose row is damaged are named."""
    add_runs(3)
    with with_defaults.jobstore.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET kwargs = '{' WHERE id = 'copy_report'")
    export = read_export(export_changes(with_defaults, "manual"))
    assert [job.id for job in export.unreadable_jobs] == ["copy_report"]
