"""What a person does to jobs beside editing them: run now, pause, resume, switch on and off, reload."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from zoneinfo import ZoneInfo

from app.default_jobs import DefaultJobsError, load_default_jobs
from app.errors import _N, InternalError, NotFound, ValidationError
from app.ledger import Job
from app.ledger.repeats import RepeatedRequest, RepeatKey
from app.runtime import Runtime, current_runtime
from app.scheduler import _reload_all_jobs
from app.services.operations.exports import export_changes
from app.services.operations.failure import OperationFailed
from app.services.scheduler.repeated_requests import refuse_repeat
from app.services.scheduler.run_views import CancelView, cancel_view
from app.services.scheduler.scheduler_job_write_service import SYSTEM, SchedulerJobWriteService
from app.services.scheduler.store_failures import store_failures

Action = Literal["trigger", "pause", "resume", "enable", "disable"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ManualRun:
    """A run that was asked for: its name, which begins with the job's id, and its id in the ledger. `replayed`: an
    earlier request with the same key asked for it."""

    manual_job_id: str
    run_id: str
    replayed: bool = False


@dataclass(frozen=True)
class SchedulerJobsReloadResult:
    """What a reload did. failed: why jobs that could not be removed stayed; export: the file's name."""

    deleted: list[str]
    reloaded: list[str]
    deleted_count: int
    reloaded_count: int
    failed: dict[str, str] = field(default_factory=dict)
    export: str = ""


class SchedulerActionsService:
    """Actions on jobs. They go through the ledger, so any process that reaches the store can do them."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._runtime = runtime or current_runtime()
        self._ledger = self._runtime.ledger

    def run_job_in_background(self, job_id: str, created_by: int | str | None = None) -> str:
        """Puts a run of the job on record, to be started at once, and returns its name."""
        return self.start_run(job_id, created_by).manual_job_id

    def start_run(
        self, job_id: str, created_by: int | str | None = None, *, repeat: RepeatKey | None = None
    ) -> ManualRun:
        """The same, with the run's id. NotFound; ValidationError when `max_instances` of it are running.

        `repeat`: a request that was carried out before under this key asks for nothing new; ValidationError when the
        key came with another request.
        """
        try:
            with store_failures(_N("执行任务失败")):
                refuse_repeat(self._runtime.jobstore, repeat)
                job = self._load(job_id)
                run = self._ledger.request_run(
                    job_id,
                    SYSTEM if created_by is None else str(created_by),
                    kwargs=self._manual_kwargs(job, created_by),
                    repeat=repeat,
                )
        except RepeatedRequest as earlier:
            return _manual_run(job_id, earlier.resource, replayed=True)
        logger.info("run %s of job %s was asked for by %s", run.run_id, job_id, run.created_by)
        return _manual_run(job_id, run.run_id)

    def cancel_run(self, run_id: str, by: str = SYSTEM) -> CancelView:
        """Cancels a run that has not started, asks one that is running to stop, and returns it as it is then.

        NotFound; ValidationError when it has ended already.
        """
        with store_failures(_N("取消运行失败")):
            if "\0" in run_id:
                raise NotFound(_N("执行记录不存在"))
            run = self._ledger.cancel_run(run_id, by)
        logger.info("run %s of job %s was cancelled by %s: %s", run_id, run.job_id, by, run.outcome)
        return cancel_view(run, ZoneInfo(self._runtime.settings.scheduler_timezone))

    def pause(self, job_id: str, by: str = SYSTEM) -> Job:
        """No next run until the job is resumed."""
        self._load(job_id)
        with store_failures():
            return self._ledger.pause_job(job_id, by)

    def resume(self, job_id: str, by: str = SYSTEM) -> Job:
        """The job runs again from its trigger's next moment on."""
        self._load(job_id)
        with store_failures():
            return self._ledger.resume_job(job_id, by)

    def set_enabled(self, job_id: str, is_enabled: bool, by: str = SYSTEM) -> Job:
        """A disabled job has no next run, and stays disabled over a reload."""
        self._load(job_id)
        with store_failures():
            return self._ledger.change_job(job_id, {"is_enabled": is_enabled}, by)

    def reload_jobs(self, by: str = SYSTEM) -> SchedulerJobsReloadResult:
        """Exports what the API changed, deletes every job and registers the defaults file again.

        ValidationError when the file is invalid, InternalError when the export cannot be written: nothing is
        deleted then.
        """
        try:
            load_default_jobs(self._runtime.settings, self._runtime.tasks)
        except DefaultJobsError as error:
            raise ValidationError(_N("默认任务文件无效：%(reason)s"), params={"reason": str(error)}) from error
        with store_failures(_N("重新加载任务失败")):
            try:
                export = export_changes(self._runtime, "reload")
            except OperationFailed as error:
                logger.error("jobs are not reloaded: %s", error)
                raise InternalError(_N("导出任务失败，任务没有重新加载")) from error
            report = _reload_all_jobs(self._runtime, by)
        for job_id, reason in report.failed.items():
            logger.error("job %s could not be reloaded: %s", job_id, reason)
        return SchedulerJobsReloadResult(
            deleted=list(report.deleted),
            reloaded=list(report.reloaded),
            deleted_count=len(report.deleted),
            reloaded_count=len(report.reloaded),
            failed=dict(report.failed),
            export=export.name,
        )

    def _load(self, job_id: str) -> Job:
        return SchedulerJobWriteService(self._runtime).load(job_id)

    def _manual_kwargs(self, job: Job, created_by: int | str | None) -> Mapping[str, Any] | None:
        """The kwargs of a manual run; None: the job's own."""
        task = self._runtime.tasks.get(job.task)
        if task is None or not task.takes_manual_context:
            return None
        return {**job.kwargs, "manual_run": True, "created_by": created_by}


def _manual_run(job_id: str, run_id: str, *, replayed: bool = False) -> ManualRun:
    return ManualRun(f"{job_id}_manual_{run_id}", run_id, replayed)
