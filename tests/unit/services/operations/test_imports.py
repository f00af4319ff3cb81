"""An import says in a diff what it would change, changes exactly that, and takes nothing by halves."""

from __future__ import annotations

from typing import Any

import pytest

from app.ledger import NewJob
from app.runtime import Runtime
from app.services.operations.exports import Export, as_yaml, collect, parse_export
from app.services.operations.failure import OperationFailed
from app.services.operations.imports import Applied, apply_export, check_onto_defaults
from tests.unit.services.operations.conftest import EVERY_MORNING, EVERY_NIGHT


@pytest.fixture
def changed(with_defaults: Runtime) -> Runtime:
    ledger = with_defaults.ledger
    ledger.change_job("sync_accounts", {"trigger": EVERY_MORNING}, "1")
    ledger.pause_job("purge_run_history", "1")
    ledger.add_job(
        NewJob(id="weekly", task="purge_run_history", trigger=EVERY_NIGHT, kwargs={"retention_days": 7}), "1"
    )
    return with_defaults


def in_full(runtime: Runtime) -> Export:
    """An export of every job, as it comes back from its file."""
    text = as_yaml(collect(runtime.ledger, "manual", in_full=True), "jobs.yaml", in_full=True)
    return parse_export(text, "jobs.yaml")


def run(runtime: Runtime, export: Export, **options: Any) -> Applied:
    return apply_export(runtime, export, name="jobs.yaml", by="test", **options)


def everything(runtime: Runtime) -> dict[str, Any]:
    return collect(runtime.ledger, "manual", in_full=True).model_dump(exclude={"created_at"})


def test_export_in_full_names_every_job_with_its_settings(changed: Runtime) -> None:
    export = in_full(changed)
    assert [job.id for job in export.default_jobs] == ["copy_report", "purge_run_history", "sync_accounts"]
    copy_report = export.default_jobs[0]
    assert (copy_report.trigger, copy_report.is_paused, copy_report.is_enabled) == (EVERY_NIGHT, False, True)
    assert copy_report.settings is not None
    assert copy_report.settings["task"] == "no_such_task"
    assert copy_report.settings["misfire_grace_time"] == 300
    assert [job.id for job in export.own_jobs] == ["weekly"]
    assert not export.deleted_own_jobs


def test_own_export_changes_nothing(changed: Runtime) -> None:
    before = everything(changed)
    found = run(changed, in_full(changed), prune=True)
    assert (found.changes, found.diff, len(found.unchanged)) == (0, "", 4)
    assert everything(changed) == before


def test_diff_shows_every_change_of_every_job(changed: Runtime) -> None:
    wanted = in_full(changed)
    ledger = changed.ledger
    ledger.resume_job("purge_run_history", "2")
    ledger.change_job("weekly", {"kwargs": {"retention_days": 9}}, "2")
    ledger.add_job(NewJob(id="new", task="purge_run_history", trigger=EVERY_NIGHT), "2")
    found = run(changed, wanted, dry_run=True, prune=True)
    shown = [line for line in found.diff.splitlines() if not line.startswith((" ", "@@"))]
    assert shown[:9] == [
        "--- store/purge_run_history",
        "+++ import/purge_run_history",
        "-is_paused: false",
        "+is_paused: true",
        "--- store/weekly",
        "+++ import/weekly",
        "-  retention_days: 9",
        "+  retention_days: 7",
        "--- store/new",
    ]
    assert shown[9:11] == ["+++ /dev/null", "-id: new"]
    assert all(line.startswith("-") for line in shown[10:])
    assert (found.changed, found.removed) == (("purge_run_history", "weekly"), ("new",))


def test_what_is_left_out_stays_unless_it_is_pruned(changed: Runtime) -> None:
    wanted = in_full(changed)
    changed.ledger.add_job(NewJob(id="new", task="purge_run_history", trigger=EVERY_NIGHT), "2")
    assert run(changed, wanted).changes == 0
    assert changed.ledger.get_job("new") is not None
    assert run(changed, wanted, prune=True).removed == ("new",)
    assert changed.ledger.get_job("new") is None
    gone = changed.ledger.get_job("new", include_deleted=True)
    assert gone is not None, "it can be restored"
    assert run(changed, wanted, prune=True).changes == 0


def test_job_that_was_deleted_comes_back(changed: Runtime) -> None:
    wanted = in_full(changed)
    before = everything(changed)
    changed.ledger.delete_job("weekly", "2")
    found = run(changed, wanted)
    assert found.restored == ("weekly",)
    assert "--- /dev/null\n+++ import/weekly\n" in found.diff
    assert everything(changed) == before


def test_settings_of_a_default_job_are_told_and_not_applied(changed: Runtime) -> None:
    wanted = in_full(changed)
    settings = dict(wanted.default_jobs[0].settings or {}) | {"priority": 7}
    wanted = wanted.model_copy(
        update={"default_jobs": [wanted.default_jobs[0].model_copy(update={"settings": settings})]}
    )
    found = run(changed, wanted)
    assert found.changes == 0
    [warning] = found.warnings
    assert warning.startswith("job copy_report: priority is 7 in jobs.yaml and 0 here, and stays so")


def test_unknown_setting_is_refused(changed: Runtime) -> None:
    text = as_yaml(collect(changed.ledger, "manual", in_full=True), "x", in_full=True)
    with pytest.raises(OperationFailed, match=r"default_jobs\.0 \(copy_report\)\.settings.*prioritty is no setting"):
        parse_export(text.replace("priority:", "prioritty:", 1), "jobs.yaml")


def test_plan_that_was_looked_at_is_the_one_that_is_done(changed: Runtime) -> None:
    wanted = in_full(changed)
    changed.ledger.resume_job("purge_run_history", "2")
    shown = run(changed, wanted, dry_run=True).plan
    changed.ledger.change_job("sync_accounts", {"trigger": EVERY_NIGHT}, "3")
    before = everything(changed)
    with pytest.raises(OperationFailed, match="the jobs have changed since the diff"):
        run(changed, wanted, expected_plan=shown)
    assert everything(changed) == before
    assert run(changed, wanted, expected_plan=run(changed, wanted, dry_run=True).plan).changes == 2


def test_change_in_the_very_moment_stops_it(changed: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the plan and the transaction somebody else edits: nothing is overwritten."""
    wanted = in_full(changed)
    changed.ledger.resume_job("purge_run_history", "2")
    together = type(changed.ledger).together

    def interrupted(ledger: Any) -> Any:
        changed.ledger.change_job("purge_run_history", {"trigger": EVERY_MORNING}, "3")
        return together(ledger)

    monkeypatch.setattr("app.ledger.ledger.Ledger.together", interrupted)
    with pytest.raises(OperationFailed, match="somebody changed the job purge_run_history at this moment"):
        run(changed, wanted)
    job = changed.ledger.get_job("purge_run_history")
    assert job is not None
    assert (job.trigger, job.is_paused) == (EVERY_MORNING, False)


def test_check_onto_a_fresh_store(runtime: Runtime) -> None:
    """Before a reset: the present jobs do not count, those of the defaults file do."""
    ledger = runtime.ledger
    ledger.add_job(NewJob(id="mine", task="purge_run_history", trigger=EVERY_NIGHT), "1")
    export = collect(ledger, "manual")
    check_onto_defaults(runtime, export, name="jobs.yaml")
    taken = export.own_jobs[0].model_copy(update={"id": "sync_accounts"})
    with pytest.raises(OperationFailed, match="the id sync_accounts belongs to a job of the defaults file"):
        check_onto_defaults(runtime, export.model_copy(update={"own_jobs": [taken]}), name="jobs.yaml")
    unknown = parse_export(
        "format: 1\ncreated_at: ''\napp_version: ''\nreason: x\ndefault_jobs: [{id: gone, is_paused: true}]", "x"
    )
    with pytest.raises(OperationFailed, match="holds no job gone"):
        check_onto_defaults(runtime, unknown, name="jobs.yaml")
