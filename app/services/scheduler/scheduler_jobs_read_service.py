"""Lists jobs and shows one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from sqlalchemy.exc import SQLAlchemyError

from app.errors import _N, NotFound
from app.ledger import Job
from app.repositories.jobs_repository import JobFilter, JobReading, JobsRepository
from app.runtime import Runtime, current_runtime
from app.services.scheduler.job_views import (
    SchedulerJobDetail,
    SchedulerJobListItem,
    job_detail,
    job_list_item,
)
from app.services.scheduler.store_failures import store_failures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobPage:
    """Jobs sorted by id. `next_cursor` continues after the last one; None at the end."""

    items: list[SchedulerJobListItem]
    next_cursor: str | None


class SchedulerJobsReadService:
    """Reads jobs from the store, in whatever process: no scheduler is asked."""

    def __init__(self, runtime: Runtime | None = None, *, language: str = "zh") -> None:
        self._runtime = runtime or current_runtime()
        self._language = language  # that triggers are described in: zh or en
        self._jobs = JobsRepository(self._runtime.jobstore)

    def list_jobs(self, wanted: JobFilter | None = None) -> list[SchedulerJobListItem]:
        """All jobs that `wanted` asks for, sorted by id; all that are not deleted without it."""
        return self.page(wanted).items

    def page(self, wanted: JobFilter | None = None, *, limit: int | None = None, cursor: str | None = None) -> JobPage:
        """Up to `limit` jobs (None: all) behind the cursor, in one query.

        ServiceUnavailable or InternalError when the store fails.
        """
        with store_failures(_N("获取任务列表失败")):
            readings = self._jobs.page(wanted or JobFilter(), limit=None if limit is None else limit + 1, after=cursor)
        shown = readings if limit is None else readings[:limit]
        return JobPage(
            items=[job_list_item(reading, self._runtime, self._language) for reading in shown],
            next_cursor=shown[-1].job.id if len(readings) > len(shown) else None,
        )

    def get_job(self, job_id: str, *, include_deleted: bool = False) -> SchedulerJobDetail:
        """The job `job_id`; NotFound for one that is not there, and for a deleted one unless it is asked for."""
        with store_failures(_N("获取任务详情失败")):
            reading = self._jobs.get(job_id, include_deleted=include_deleted)
        if reading is None:
            raise NotFound(_N("任务不存在"))
        return job_detail(reading, self._runtime, self._language)

    def after_change(self, job: Job) -> SchedulerJobDetail:
        """A job as a change left it, which is done: where the store fails now, what runs add to it is null."""
        reading = None
        try:
            reading = self._jobs.get(job.id, include_deleted=True)
        except SQLAlchemyError as error:
            logger.warning("job %s was changed, and is shown without its last run: %s", job.id, error)
        return job_detail(replace(reading or JobReading(job), job=job), self._runtime, self._language)
