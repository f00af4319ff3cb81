"""The services as other code calls them: by name, without a request, in a process without a scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from app.db.engines import write_transaction
from app.db.jobstore_tables import jobs
from app.errors import Forbidden, NotFound, PreconditionFailed, ServiceUnavailable, ValidationError
from app.ledger import NewJob
from app.runtime import Runtime
from app.scheduler import _reload_all_jobs
from app.services.scheduler.scheduler_actions_service import (
    SchedulerActionsService,
    SchedulerJobsReloadResult,
)
from app.services.scheduler.scheduler_job_write_service import SchedulerJobWriteService
from app.services.scheduler.scheduler_jobs_read_service import SchedulerJobsReadService
from app.services.scheduler.scheduler_runs_read_service import SchedulerRunsReadService
from app.services.scheduler.scheduler_status_read_service import SchedulerStatusReadService
from app.services.scheduler.scheduler_trigger_preview_service import SchedulerTriggerPreviewService
from app.tasks import BUILTIN_TASK_IDS

CRON: dict[str, Any] = {"trigger_type": "cron", "hour": 3}


@pytest.fixture
def loaded(app: Flask, runtime: Runtime) -> Runtime:
    """A store with the default jobs, in a process that runs no scheduler; inside its context."""
    with app.app_context():
        _reload_all_jobs()
        yield runtime


def test_the_context_gives_the_runtime(loaded: Runtime) -> None:
    assert [job.id for job in SchedulerJobsReadService().list_jobs()] == sorted(BUILTIN_TASK_IDS)
    assert SchedulerJobsReadService().get_job("sync_accounts").trigger == "cron[hour='1', minute='0']"


def test_no_context_is_needed_with_a_runtime(runtime: Runtime) -> None:
    _reload_all_jobs(runtime)
    assert len(SchedulerJobsReadService(runtime).list_jobs()) == len(BUILTIN_TASK_IDS)
    run = SchedulerActionsService(runtime).start_run("sync_accounts", 7)
    assert SchedulerRunsReadService(runtime).get_run(run.run_id).created_by == "7"
    assert SchedulerStatusReadService(runtime).status().queue.pending == 1


def test_run_job_in_background_answers_the_name_of_the_run(loaded: Runtime) -> None:
    service = SchedulerActionsService()
    name = service.run_job_in_background(job_id="sync_accounts", created_by=None)
    assert name.startswith("sync_accounts")
    (run,) = SchedulerRunsReadService().history("sync_accounts").items
    assert name.endswith(run.run_id)
    assert (run.outcome, run.created_by) == ("pending", "system"), "a scheduler elsewhere takes it"
    with pytest.raises(NotFound):
        service.run_job_in_background("nothing")
    with pytest.raises(ValidationError):
        service.run_job_in_background("sync_accounts")


def test_reload_jobs(loaded: Runtime) -> None:
    SchedulerActionsService().pause("sync_accounts")
    result = SchedulerActionsService().reload_jobs()
    assert isinstance(result, SchedulerJobsReloadResult)
    assert set(result.deleted) == set(result.reloaded) == BUILTIN_TASK_IDS
    assert result.deleted_count == result.reloaded_count == len(BUILTIN_TASK_IDS)
    assert result.failed == {}
    assert (loaded.settings.userdata_dir / "exports" / result.export).is_file()


def test_load_and_upsert(loaded: Runtime) -> None:
    service = SchedulerJobWriteService()
    job = service.load("sync_accounts")
    saved = service.upsert(CRON, job, by="1", if_revision=job.revision)
    assert saved.job.trigger["hour"] == "3"
    assert saved.job.updated_by == "1"
    assert saved.job.overrides == ("trigger",)
    with pytest.raises(PreconditionFailed):
        service.upsert(CRON, job, if_revision=job.revision)
    with pytest.raises(NotFound):
        service.load("nothing")
    created = service.upsert({**CRON, "id": "mine", "task": "purge_run_history"}).job
    assert (created.id, created.source, created.created_by) == ("mine", "own", "system")


@pytest.mark.parametrize("payload", [{}, None, [], "cron", {"hour": 3}, {**CRON, "unknown": 1}])
def test_upsert_checks_whoever_calls_it(loaded: Runtime, payload: Any) -> None:
    service = SchedulerJobWriteService()
    job = service.load("sync_accounts")
    with pytest.raises(ValidationError):
        service.upsert(payload, job)
    with pytest.raises(ValidationError):
        service.upsert(payload)
    assert service.load("sync_accounts") == job


def test_a_job_of_the_defaults_file_is_not_changed(loaded: Runtime) -> None:
    trigger = {"type": "cron", "hour": "1", "timezone": "UTC"}
    loaded.ledger.add_job(NewJob(id="d", task="purge_run_history", trigger=trigger, source="default"), "x")
    service = SchedulerJobWriteService()
    with pytest.raises(Forbidden):
        service.upsert(CRON, service.load("d"))
    with pytest.raises(Forbidden):
        service.delete(service.load("d"))


def test_a_new_task_is_checked_with_the_old_kwargs(loaded: Runtime) -> None:
    service = SchedulerJobWriteService()
    new = {**CRON, "id": "mine", "task": "backup_jobstore", "kwargs": {"keep": 2}}
    job = service.upsert(new).job
    with pytest.raises(ValidationError) as refused:
        service.upsert({**CRON, "task": "sync_accounts"}, job)
    assert refused.value.field == "kwargs.keep"
    changed = service.upsert({**CRON, "task": "sync_accounts", "kwargs": {}}, job).job
    assert (changed.task, dict(changed.kwargs)) == ("sync_accounts", {})


def test_the_settings_of_a_finished_job_can_be_changed(loaded: Runtime) -> None:
    past = {"type": "date", "run_date": "2001-01-01T00:00:00+00:00", "timezone": "UTC"}
    loaded.ledger.add_job(NewJob(id="once", task="purge_run_history", trigger=past), "x")
    with write_transaction(loaded.jobstore) as connection:  # as after its run
        connection.execute(update(jobs).where(jobs.c.id == "once").values(next_run_time=None))
    service = SchedulerJobWriteService()
    same = {"trigger_type": "date", "run_date": "2001-01-01T00:00:00", "timezone": "UTC"}
    saved = service.upsert({**same, "max_attempts": 3}, service.load("once")).job
    assert (saved.max_attempts, saved.trigger, saved.next_run_time) == (3, past, None)
    with pytest.raises(ValidationError) as refused:
        service.upsert({**same, "run_date": "2001-01-02T00:00:00"}, saved)
    assert refused.value.field == "run_date"


def test_a_job_of_the_fleet_can_be_changed_while_there_is_none(loaded: Runtime) -> None:
    """Its executor is refused when it is given, not when it stays: the job's trigger must not be locked in."""
    trigger = {"type": "cron", "hour": "1", "timezone": "UTC"}
    loaded.ledger.add_job(NewJob(id="far", task="purge_run_history", trigger=trigger, executor="celery"), "x")
    service = SchedulerJobWriteService()
    assert service.upsert({**CRON, "priority": 5}, service.load("far")).job.executor == "celery"
    with pytest.raises(ValidationError, match="CELERY_BROKER_URL"):
        service.upsert({**CRON, "executor": "celery"}, service.load("far"))


def test_a_change_is_answered_though_the_store_fails_after_it(loaded: Runtime) -> None:
    paused = SchedulerActionsService().pause("sync_accounts")
    with write_transaction(loaded.jobstore) as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO away")
    with pytest.raises(ServiceUnavailable):
        SchedulerJobsReadService().get_job("sync_accounts")
    shown = SchedulerJobsReadService().after_change(paused)
    assert (shown.id, shown.state, shown.last_run_time) == ("sync_accounts", "STATE_PAUSED", None)


def test_an_empty_name_becomes_the_id(loaded: Runtime) -> None:
    service = SchedulerJobWriteService()
    job = service.upsert({**CRON, "id": "mine", "task": "purge_run_history", "name": "x"}).job
    assert service.upsert({**CRON, "name": ""}, job).job.name == "mine"


def test_the_dashboard(loaded: Runtime) -> None:
    SchedulerActionsService().start_run("sync_accounts", 1)
    shown = SchedulerStatusReadService().dashboard(upcoming=2)
    assert [run.job_id for run in shown.running] == ["sync_accounts"]
    assert [run.job_id for run in shown.recent] == ["sync_accounts"]
    assert (shown.alarms, shown.late) == ([], [])
    assert [job.id for job in shown.upcoming] == sorted(
        (job.id for job in shown.upcoming), key=lambda job_id: SchedulerJobsReadService().get_job(job_id).next_run_time
    )
    assert len(shown.upcoming) == 2
    assert shown.nodes == []


def test_the_preview_speaks_the_readers_language(loaded: Runtime) -> None:
    chinese, english = (
        SchedulerTriggerPreviewService(language=language).preview(CRON).preview.description for language in ("zh", "en")
    )
    assert chinese != english
    spec = SchedulerJobWriteService().load("sync_accounts").trigger
    assert len(SchedulerTriggerPreviewService().of_job(spec, 3).fires) == 3


def test_an_export_that_cannot_be_written_stops_the_reload(loaded: Runtime) -> None:
    SchedulerJobWriteService().upsert({**CRON, "id": "mine", "task": "purge_run_history"})
    exports: Path = loaded.settings.userdata_dir / "exports"
    exports.write_text("a file where the folder belongs", encoding="utf-8")
    with pytest.raises(Exception, match="没有重新加载"):
        SchedulerActionsService().reload_jobs()
    assert SchedulerJobsReadService().get_job("mine").is_active
