"""The scheduler API: jobs, their runs, their changes, triggers, and the scheduler's own health.

Every route but the two health routes answers 409 in a process that runs no scheduler on purpose: whoever meets
it is asking the wrong process. The services know no such guard; the pages use them from the web process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from apiflask import APIBlueprint, APIFlask
from flask import Response, request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema, models_json_schema

from app.api.v1.auth import require
from app.api.v1.envelope import success
from app.api.v1.repeats import mark_replayed, repeat_key, repeatable
from app.errors import (
    _N,
    AuthenticationRequired,
    PreconditionFailed,
    SchedulerNotRunning,
    ServiceUnavailable,
)
from app.http.audit_trail import audit_action
from app.i18n import current_language, translate
from app.job_fields import storable
from app.ledger import Job
from app.repositories.jobs_repository import JobFilter
from app.repositories.runs_repository import RunFilter
from app.runtime import current_runtime
from app.services.accounts import Permission, Principal, current_principal
from app.services.health_service import readiness
from app.services.scheduler.job_input import JobChangeInput, NewJobInput, TriggerPreviewInput
from app.services.scheduler.job_views import SchedulerJobDetail, SchedulerJobListItem
from app.services.scheduler.run_views import CancelView, RunDetail, RunView
from app.services.scheduler.scheduler_actions_service import Action, SchedulerActionsService
from app.services.scheduler.scheduler_job_write_service import SavedJob, SchedulerJobWriteService
from app.services.scheduler.scheduler_jobs_read_service import SchedulerJobsReadService
from app.services.scheduler.scheduler_runs_read_service import HISTORY_LIMIT, SchedulerRunsReadService
from app.services.scheduler.scheduler_status_read_service import SchedulerStatus, SchedulerStatusReadService
from app.services.scheduler.scheduler_trigger_preview_service import (
    SchedulerTriggerPreviewService,
    TriggerPreview,
)

PAGE_LIMIT = 500
RETRY_AFTER_S = 2  # a scheduler that is restarted turns again within about this time
RUN_ID_PATTERN = r"^[0-9a-f]{32}$"
REASON_SHOWN = 200  # characters of the loop's problem that health repeats

P = ParamSpec("P")
R = TypeVar("R")

AUDITED_AS: dict[Action, str] = {
    "trigger": "scheduler.run_job",
    "pause": "scheduler.pause_job",
    "resume": "scheduler.resume_job",
    "enable": "scheduler.enable_job",
    "disable": "scheduler.disable_job",
}
"""What the audit log calls an action that a body asked for: as the path of its own, where it has one."""

scheduler = APIBlueprint("scheduler", __name__, url_prefix="/api/v1/scheduler", tag="scheduler")


# Input


def _with_offset(moment: datetime) -> datetime:
    if not 1970 <= moment.year <= 9998:  # what the store's clock can hold, in any zone
        raise ValueError("a moment of the years 1970 to 9998")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Text = Annotated[str, Field(max_length=256), AfterValidator(storable)]
Moment = Annotated[datetime, AfterValidator(_with_offset), Field(description="ISO 8601; UTC without an offset")]
Limit = Annotated[int, Field(ge=1, le=PAGE_LIMIT)]
Outcome = Literal["pending", "running", "success", "failed", "lost", "cancelled", "missed", "coalesced", "skipped"]


def _without_null(schema: dict[str, Any]) -> None:
    # An option that is left out has no value; null is what Python calls it.
    for option in schema["properties"].values():
        if option.get("default", "") is None:
            del option["default"]


class _Query(BaseModel):
    # A filter that is misspelt and silently ignored would show what was not asked for.
    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_null)


class JobsQuery(_Query):
    """Which jobs to list."""

    limit: Limit | SkipJsonSchema[None] = Field(default=None, description="All when left out")
    cursor: Text | SkipJsonSchema[None] = Field(default=None, description="meta.next_cursor of the page before")
    state: Literal["STATE_RUNNING", "STATE_PAUSED"] | SkipJsonSchema[None] = None
    task: Text | SkipJsonSchema[None] = Field(default=None, description="Name of a task")
    q: Text | SkipJsonSchema[None] = Field(
        default=None, description="Part of id, name or description, whatever its case"
    )
    source: Literal["builtin", "default", "own"] | SkipJsonSchema[None] = None
    is_enabled: bool | SkipJsonSchema[None] = None
    is_active: bool = Field(default=True, description="false: deleted jobs that can still be restored")

    def filter(self) -> JobFilter:
        """The filter for the service."""
        return JobFilter(
            scheduled=None if self.state is None else self.state == "STATE_RUNNING",
            task=self.task,
            q=self.q,
            source=self.source,
            is_enabled=self.is_enabled,
            is_active=self.is_active,
        )


class TasksQuery(_Query):
    """Which tasks to list."""

    limit: Limit | SkipJsonSchema[None] = Field(default=None, description="All when left out")
    cursor: Text | SkipJsonSchema[None] = Field(default=None, description="meta.next_cursor of the page before")


class HistoryQuery(_Query):
    """Which runs to list."""

    limit: Limit = HISTORY_LIMIT
    cursor: str | SkipJsonSchema[None] = Field(
        default=None, pattern=RUN_ID_PATTERN, description="meta.next_cursor of the page before"
    )
    outcome: Outcome | SkipJsonSchema[None] = None
    kind: Literal["schedule", "manual"] | SkipJsonSchema[None] = None
    since: Moment | SkipJsonSchema[None] = Field(default=None, description="Claimed at or after this moment")
    until: Moment | SkipJsonSchema[None] = Field(default=None, description="Claimed before this moment")

    def filter(self) -> RunFilter:
        """The filter for the service."""
        return RunFilter(outcome=self.outcome, kind=self.kind, since=self.since, until=self.until)


class ActionInput(BaseModel):
    """What to do with a job."""

    model_config = ConfigDict(extra="forbid", strict=True)

    action: Action


# Output, for the API's description


class ManualRunView(BaseModel):
    """A run that was asked for."""

    manual_job_id: str = Field(description="Name of the background run; begins with the job's id")
    run_id: str


class ReloadView(BaseModel):
    """What a reload did."""

    deleted: list[str]
    reloaded: list[str]
    deleted_count: int
    reloaded_count: int
    failed: dict[str, str] = Field(description="Jobs that could not be removed and stay, with the reason")
    export: str = Field(description="File in userdata/exports/ with what the API had changed")


_OUTPUTS: tuple[type[BaseModel], ...] = (
    SchedulerJobListItem,
    SchedulerJobDetail,
    RunView,
    RunDetail,
    CancelView,
    ManualRunView,
    ReloadView,
    SchedulerStatus,
    TriggerPreview,
)


def _answers(
    model: type[BaseModel] | None, description: str, *, many: bool = False, status: int = 200
) -> dict[int, Any]:
    """The description of a success whose `data` is `model`, or a list of it."""
    data: dict[str, Any] = {"type": "object"}
    if model is not None:
        data = {"$ref": f"#/components/schemas/{model.__name__}"}
    if many:
        data = {"type": "array", "items": data}
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Success"},
            {"type": "object", "required": ["data"], "properties": {"data": data}},
        ]
    }
    return {status: {"description": description, "content": {"application/json": {"schema": schema}}}}


def init_scheduler_api(app: APIFlask) -> None:
    """Add the routes, and the models of their answers to the API's description."""
    app.register_blueprint(scheduler)
    complete = app.spec_callback

    @app.spec_processor
    def add_models(spec: Any) -> Any:
        spec = spec if complete is None else complete(spec)
        _, definitions = models_json_schema(
            [(model, "serialization") for model in _OUTPUTS], ref_template="#/components/schemas/{model}"
        )
        spec["components"]["schemas"] |= definitions["$defs"]
        for path, methods in spec["paths"].items():
            if path.startswith(scheduler.url_prefix):
                for operation in methods.values():
                    if "requestBody" in operation:
                        operation["requestBody"]["required"] = True
        return spec


# Guards


def guarded(permission: Permission) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let only those with this permission in, and only where a scheduler runs: 401, 403, then 409."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def where_a_scheduler_runs(*args: P.args, **kwargs: P.kwargs) -> R:
            if current_runtime().scheduler is None:
                raise SchedulerNotRunning
            return view(*args, **kwargs)

        return require(permission)(where_a_scheduler_runs)

    return decorate


def _principal() -> Principal:
    principal = current_principal()
    if principal is None:
        raise AuthenticationRequired
    return principal


def _revision_to_match(job: Job) -> int | None:
    """The revision that the header If-Match asks for; None without one. PreconditionFailed for another one.

    Weak tags match too: nginx weakens the tag of an answer that it compresses.
    """
    tags = request.if_match
    if not tags or tags.star_tag:
        return None
    if not tags.contains_weak(str(job.revision)):
        raise PreconditionFailed(context={"revision": job.revision})
    return job.revision


# Answers


def _job(job: SchedulerJobDetail, message: str = _N("操作成功"), *, status: int = 200, meta: Any = None) -> Response:
    response = success(job.model_dump(), message, status=status, meta=meta)
    response.set_etag(str(job.revision))
    return response


def _changed_job(job: Job, message: str, *, status: int = 200, meta: Any = None) -> Response:
    return _job(_jobs().after_change(job), message, status=status, meta=meta)


def _warnings(saved: SavedJob) -> dict[str, Any] | None:
    return _translated(saved.warnings)


def _translated(warnings: tuple[tuple[str, Mapping[str, Any]], ...]) -> dict[str, Any] | None:
    if not warnings:
        return None
    return {"warnings": [translate(message, params) for message, params in warnings]}


def _jobs() -> SchedulerJobsReadService:
    return SchedulerJobsReadService(language=current_language())


# Jobs


@scheduler.get("/jobs")
@scheduler.doc(
    summary="Jobs, sorted by id; the options filter",
    responses=_answers(SchedulerJobListItem, "`meta.next_cursor` continues after the last one", many=True),
)
@guarded("view")
@scheduler.input(JobsQuery, location="query", arg_name="query")
def list_jobs(query: JobsQuery) -> Response:
    page = _jobs().page(query.filter(), limit=query.limit, cursor=query.cursor)
    return success([job.model_dump() for job in page.items], meta={"next_cursor": page.next_cursor})


@scheduler.post("/jobs")
@scheduler.doc(summary="Create a job of one's own", responses=_answers(SchedulerJobDetail, "Created", status=201))
@guarded("admin")
@repeatable
@scheduler.input(NewJobInput, arg_name="new")
def create_job(new: NewJobInput) -> Response:
    principal = _principal()
    saved = SchedulerJobWriteService().upsert(new, by=principal.created_by, repeat=repeat_key(principal))
    response = _changed_job(saved.job, _N("任务创建成功"), status=201, meta=_warnings(saved))
    response.headers["Location"] = f"{request.path}/{saved.job.id}"
    return mark_replayed(response) if saved.replayed else response


@scheduler.get("/jobs/<job_id>")
@scheduler.doc(summary="One job; its ETag is its revision", responses=_answers(SchedulerJobDetail, "The job"))
@guarded("view")
def get_job(job_id: str) -> Response:
    return _job(_jobs().get_job(job_id))


@scheduler.put("/jobs/<job_id>")
@scheduler.doc(
    summary="Replace a job's trigger, and any other field of an own job",
    description="With the header If-Match it is refused with 412 when somebody else changed the job.",
    responses=_answers(SchedulerJobDetail, "The changed job"),
)
@guarded("admin")
@scheduler.input(JobChangeInput, arg_name="change")
def change_job(job_id: str, change: JobChangeInput) -> Response:
    service = SchedulerJobWriteService()
    job = service.load(job_id)
    saved = service.upsert(change, job, by=_principal().created_by, if_revision=_revision_to_match(job))
    return _changed_job(saved.job, _N("任务更新成功"), meta=_warnings(saved))


@scheduler.delete("/jobs/<job_id>")
@scheduler.doc(summary="Delete an own job; it can be restored for 30 days", responses=_answers(None, "Deleted"))
@guarded("admin")
def delete_job(job_id: str) -> Response:
    service = SchedulerJobWriteService()
    job = service.load(job_id)
    _revision_to_match(job)
    deleted = service.delete(job, _principal().created_by)
    data = {"id": deleted.id, "is_active": deleted.is_active, "deleted_at": deleted.deleted_at}
    return success(data, _N("任务已删除，30 天内可以还原"))


# Actions


@scheduler.post("/jobs/<job_id>/actions/pause")
@scheduler.doc(summary="No next run until the job is resumed", responses=_answers(SchedulerJobDetail, "The job"))
@guarded("admin")
def pause_job(job_id: str) -> Response:
    return _changed_job(_pause(job_id), _N("任务暂停成功"))


@scheduler.post("/jobs/<job_id>/actions/resume")
@scheduler.doc(summary="Run again from the next fire time on", responses=_answers(SchedulerJobDetail, "The job"))
@guarded("admin")
def resume_job(job_id: str) -> Response:
    return _changed_job(_resume(job_id), _N("任务恢复成功"))


@scheduler.post("/jobs/<job_id>/actions/run")
@scheduler.doc(
    summary="Run now, in the background; 400 at max_instances",
    responses=_answers(ManualRunView, "The run is on record and starts at once"),
)
@guarded("admin")
@repeatable
def run_job(job_id: str) -> Response:
    return _run(job_id)


@scheduler.post("/jobs/<job_id>/actions/restore")
@scheduler.doc(summary="Bring a deleted job back", responses=_answers(SchedulerJobDetail, "The job"))
@guarded("admin")
def restore_job(job_id: str) -> Response:
    job = SchedulerJobWriteService().restore(job_id, _principal().created_by)
    return _changed_job(job, _N("任务已还原"))


@scheduler.post("/jobs/<job_id>/action")
@scheduler.doc(
    summary="Trigger, pause, resume, enable or disable a job",
    description="`trigger` answers the run that was asked for, the others the job. Only `trigger` heeds a key:"
    " repeating one of the others does no more.",
    responses=_answers(None, "The run, or the job"),
)
@guarded("admin")
@repeatable
@scheduler.input(ActionInput, arg_name="body")
def act_on_job(job_id: str, body: ActionInput) -> Response:
    audit_action(AUDITED_AS[body.action])
    match body.action:
        case "trigger":
            return _run(job_id)
        case "pause":
            return _changed_job(_pause(job_id), _N("任务暂停成功"))
        case "resume":
            return _changed_job(_resume(job_id), _N("任务恢复成功"))
        case "enable":
            return _changed_job(_set_enabled(job_id, True), _N("任务已启用"))
        case "disable":
            return _changed_job(_set_enabled(job_id, False), _N("任务已停用"))


def _pause(job_id: str) -> Job:
    return SchedulerActionsService().pause(job_id, _principal().created_by)


def _resume(job_id: str) -> Job:
    return SchedulerActionsService().resume(job_id, _principal().created_by)


def _set_enabled(job_id: str, is_enabled: bool) -> Job:
    return SchedulerActionsService().set_enabled(job_id, is_enabled, _principal().created_by)


def _run(job_id: str) -> Response:
    principal = _principal()
    created_by = principal.name if principal.user_id is None else principal.user_id
    run = SchedulerActionsService().start_run(job_id, created_by, repeat=repeat_key(principal))
    response = success({"manual_job_id": run.manual_job_id, "run_id": run.run_id}, _N("任务已提交后台执行"))
    return mark_replayed(response) if run.replayed else response


@scheduler.post("/jobs/actions/reload")
@scheduler.doc(
    summary="Delete every job and register the default jobs again",
    description="What the API had changed is exported first; own jobs can be restored.",
    responses=_answers(ReloadView, "What was deleted and registered"),
)
@guarded("admin")
def reload_jobs() -> Response:
    result = SchedulerActionsService().reload_jobs(_principal().created_by)
    return success(
        {
            "deleted": result.deleted,
            "reloaded": result.reloaded,
            "deleted_count": result.deleted_count,
            "reloaded_count": result.reloaded_count,
            "failed": result.failed,
            "export": result.export,
        },
        _N("已删除 %(deleted)s 个任务，重新加载 %(reloaded)s 个任务"),
        params={"deleted": result.deleted_count, "reloaded": result.reloaded_count},
    )


# Runs, triggers, tasks, status


@scheduler.get("/jobs/<job_id>/history")
@scheduler.doc(
    summary="A job's runs, newest first",
    responses=_answers(RunView, "`meta.next_cursor` continues after the last one", many=True),
)
@guarded("view")
@scheduler.input(HistoryQuery, location="query", arg_name="query")
def list_runs(job_id: str, query: HistoryQuery) -> Response:
    page = SchedulerRunsReadService().history(job_id, query.filter(), limit=query.limit, cursor=query.cursor)
    return success([run.model_dump() for run in page.items], meta={"next_cursor": page.next_cursor})


@scheduler.get("/runs/<run_id>")
@scheduler.doc(summary="One run, with what its task wrote", responses=_answers(RunDetail, "The run"))
@guarded("view")
def get_run(run_id: str) -> Response:
    return success(SchedulerRunsReadService().get_run(run_id).model_dump())


@scheduler.post("/runs/<run_id>/actions/cancel")
@scheduler.doc(
    summary="Cancel a run: one that has not started will not start, one that is running is asked to stop",
    description="A process is killed, a worker's task is ended, a thread can only be asked. 400 when it has ended.",
    responses=_answers(CancelView, "`effect` tells which of the two it is"),
)
@guarded("admin")
def cancel_run(run_id: str) -> Response:
    cancelled = SchedulerActionsService().cancel_run(run_id, _principal().created_by)
    message = _N("运行已取消") if cancelled.effect == "cancelled" else _N("已请求停止这次运行")
    return success(cancelled.model_dump(), message)


@scheduler.post("/triggers/preview")
@scheduler.doc(
    summary="The next fire times of a trigger, and what clock changes do to them",
    responses=_answers(TriggerPreview, "The fire times; `meta.warnings` as for a change"),
)
@guarded("view")
@scheduler.input(TriggerPreviewInput, arg_name="trigger")
def preview_trigger(trigger: TriggerPreviewInput) -> Response:
    previewed = SchedulerTriggerPreviewService(language=current_language()).preview(trigger)
    return success(previewed.preview.model_dump(), meta=_translated(previewed.warnings))


@scheduler.get("/tasks")
@scheduler.doc(
    summary="The registered tasks with their typed parameters, sorted by name",
    responses=_answers(None, "Tasks; `meta.next_cursor` continues after the last one", many=True),
)
@guarded("view")
@scheduler.input(TasksQuery, location="query", arg_name="query")
def list_tasks(query: TasksQuery) -> Response:
    behind = [task for task in current_runtime().tasks.describe() if task["name"] > (query.cursor or "")]
    shown = behind[: query.limit]
    return success(shown, meta={"next_cursor": shown[-1]["name"] if len(behind) > len(shown) else None})


@scheduler.get("/status")
@scheduler.doc(
    summary="Nodes, queue, lateness, counters", responses=_answers(SchedulerStatus, "The state at one moment")
)
@guarded("view")
def get_status() -> Response:
    return success(SchedulerStatusReadService(language=current_language()).status().model_dump())


# Health, for supervisors and load balancers: no login, no 409


@scheduler.get("/health/live")
@scheduler.doc(summary="200 while the scheduler's loop of this process turns, else 503")
def live() -> Response:
    checks, alive, _ = _loop()
    if not alive:
        raise ServiceUnavailable(_N("调度器没有运转"), context=checks, retry_after=RETRY_AFTER_S)
    return success({"status": "ok", **checks})


@scheduler.get("/health/ready")
@scheduler.doc(summary="200 while the loop turns and reaches its stores, else 503")
def ready() -> Response:
    checks, _, turns_and_reaches = _loop()
    found = readiness()
    checks |= {
        "jobstore": "ok" if found.jobstore else "unreachable",
        "database": "ok" if found.database else "unreachable",
    }
    if not (turns_and_reaches and found.jobstore and found.database):
        raise ServiceUnavailable(_N("调度器尚未就绪"), context=checks, retry_after=RETRY_AFTER_S)
    return success({"status": "ok", **checks})


def _loop() -> tuple[dict[str, Any], bool, bool]:
    """What is told of the loop, whether it turns, and whether it reaches its store too."""
    running = current_runtime().scheduler
    if running is None:
        return {"scheduler": "not in this process"}, False, False
    if not running.running:
        return {"scheduler": "stopped"}, False, False
    health = running.health()
    checks: dict[str, Any] = {
        "last_turn_age_s": round(health.last_turn_age_s, 3),
        "last_store_age_s": round(health.last_store_age_s, 3),
    }
    if health.problem is not None:
        checks["problem"] = health.problem.partition("[SQL")[0].strip()[:REASON_SHOWN]
    return checks, health.alive, health.ready
