"""The history of a job, and one run with its log."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from app.errors import _N, NotFound
from app.repositories.runs_repository import RunFilter, RunsRepository
from app.runtime import Runtime, current_runtime
from app.services.scheduler.job_views import job_zone
from app.services.scheduler.run_views import RunDetail, RunPage, run_detail, run_view
from app.services.scheduler.store_failures import store_failures

HISTORY_LIMIT = 50


class SchedulerRunsReadService:
    """Reads the run ledger."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._runtime = runtime or current_runtime()
        self._runs = RunsRepository(self._runtime.jobstore)

    def history(
        self,
        job_id: str,
        wanted: RunFilter | None = None,
        *,
        limit: int = HISTORY_LIMIT,
        cursor: str | None = None,
    ) -> RunPage:
        """Up to `limit` runs of a job, deleted or not, newest first, in one query; NotFound for no such job."""
        with store_failures(_N("获取执行历史失败")):
            history = self._runs.history(job_id, wanted or RunFilter(), limit=limit + 1, before=cursor)
        if history is None:
            raise NotFound(_N("任务不存在"))
        zone = self._zone(history.timezone)
        shown = history.runs[:limit]
        return RunPage(
            items=[run_view(run, zone) for run in shown],
            next_cursor=shown[-1].run_id if len(history.runs) > limit else None,
        )

    def get_run(self, run_id: str) -> RunDetail:
        """The run `run_id` with its log and the other attempts of its fire; NotFound when it is not on record."""
        with store_failures(_N("获取执行记录失败")):
            reading = self._runs.get(run_id)
        if reading is None:
            raise NotFound(_N("执行记录不存在"))
        return run_detail(reading, self._zone(reading.timezone))

    def _zone(self, name: str | None) -> ZoneInfo:
        return job_zone({"timezone": name}, self._runtime.settings.scheduler_timezone)
