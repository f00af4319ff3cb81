"""Exports: what the API changed and the users' own jobs, as YAML that a person can review, and applied back.

userdata/exports/20260401T003000Z-reload.yaml
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from app.errors import ValidationError
from app.i18n import english
from app.job_fields import (
    Executor,
    JobDescription,
    JobId,
    JobName,
    Kwargs,
    MaxAttempts,
    MaxInstances,
    MisfireGraceTime,
    PingUrl,
    Priority,
    RetryDelay,
    RetryOnLoss,
    SoftTimeLimit,
    TaskName,
    TimeLimit,
    check_executor,
    check_time_limits,
)
from app.ledger import Job, Ledger, NewJob
from app.ledger.jobs import SETTINGS
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.store_files import stamp, utc_now, write_whole
from app.settings import Settings
from app.triggers import TRIGGER_FIELDS, parse_trigger
from app.version import VERSION

EXPORT_FORMAT = 1
_OWN_SETTINGS = (*SETTINGS, "trigger", "is_enabled")
_HEADER = """\
# What was changed through the API: the default jobs' triggers, pauses and switches, and the users' own jobs.
# Read it, remove what should not come back, then apply the rest, all or nothing:
#   flask jobs apply-export {name}
# Jobs below `deleted_own_jobs` are not applied; move one to `own_jobs` to bring it back.
"""


class _Document(BaseModel):
    # Numbers and booleans as YAML writes them: "10" where a number belongs is a mistake to be told.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DefaultJobChange(_Document):
    """What the API changed on one job of the defaults file; what is left out stays as the file says."""

    id: JobId
    trigger: dict[str, Any] | None = None
    is_paused: bool | None = None
    is_enabled: bool | None = None


class DeletedJob(_Document):
    """A user's own job in full; `misfire_grace_time` in seconds, `trigger` as the API's `trigger_spec`."""

    id: str  # a reload may have given it a longer one than a user could
    task: TaskName
    name: JobName = ""
    description: JobDescription = ""
    trigger: dict[str, Any]
    kwargs: Kwargs = {}
    misfire_grace_time: MisfireGraceTime = 300
    coalesce: bool = True
    max_instances: MaxInstances = 1
    priority: Priority = 0
    executor: Executor = "default"
    retry_on_loss: RetryOnLoss = False
    max_attempts: MaxAttempts = 1
    retry_delay: RetryDelay = 60
    soft_time_limit: SoftTimeLimit | None = None
    time_limit: TimeLimit | None = None
    ping_url: PingUrl | None = None
    is_enabled: bool = True
    is_paused: bool = False


class OwnJob(DeletedJob):
    """The same of a job that is to be applied."""

    id: JobId


class UnreadableJob(_Document):
    """A job whose row cannot be read; its content stays in the store, or in the store that was set aside."""

    id: str
    problem: str


class Export(_Document):
    """The content of an export file."""

    format: int
    created_at: str
    app_version: str
    reason: str
    default_jobs: list[DefaultJobChange] = Field(default_factory=list)
    own_jobs: list[OwnJob] = Field(default_factory=list)
    deleted_own_jobs: list[DeletedJob] = Field(default_factory=list)
    unreadable_jobs: list[UnreadableJob] = Field(default_factory=list)


class _TextLoader(yaml.SafeLoader):
    """Leaves moments as they are written: the trigger parser reads them, and JSON knows no others."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name is PyYAML's
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True)
class Applied:
    """What an export changed, by job id; `warnings` tell of jobs that were applied all the same."""

    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}


def exports_folder(settings: Settings) -> Path:
    """Where exports are kept. Nothing removes them: each is small, and the only record of its moment."""
    return settings.userdata_dir / "exports"


def export_changes(runtime: Runtime, reason: str) -> Path:
    """Writes what the API changed and all own jobs to a new file and returns its path.

    reason: a word for the file's name, such as `reload` or `reset`. The file is written even when nothing was
    changed: that is a finding too. OperationFailed when the file cannot be written.
    """
    document = _collect(runtime.ledger, reason)
    return _write(exports_folder(runtime.settings), document, reason)


def read_export(path: Path) -> Export:
    """The export in a file. OperationFailed names the line or the field of the first thing that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperationFailed(f"the export {path} cannot be read: {error}") from error
    try:
        content = yaml.load(text, Loader=_TextLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise OperationFailed(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise OperationFailed(f"{path} is nested too deeply") from None
    if not isinstance(content, dict):
        raise OperationFailed(f"{path} holds no export: a mapping with `format: {EXPORT_FORMAT}` is expected")
    if content.get("format") != EXPORT_FORMAT:
        raise OperationFailed(f"{path}: format: {content.get('format')!r} is not known; {EXPORT_FORMAT} is expected")
    try:
        export = Export.model_validate(content)
    except PydanticError as error:
        first = error.errors(include_url=False)[0]
        raise OperationFailed(f"{path}: {_place(content, first['loc'])}: {first['msg']}") from error
    _refuse_duplicates(path, export)
    return export


def find_export(settings: Settings, name: str) -> Path:
    """The file that an operator means by a path, by a name below `exports/`, or by `latest`."""
    folder = exports_folder(settings)
    if name == "latest":
        files = sorted(folder.glob("*.yaml"), key=lambda path: path.name)
        if not files:
            raise OperationFailed(f"there is no export in {folder}")
        return files[-1]
    for path in (Path(name), folder / name):
        if path.is_file():
            return path
    raise OperationFailed(f"there is no export {name!r}, neither as a file nor in {folder}")


def apply_export(runtime: Runtime, path: Path, *, by: str, dry_run: bool = False) -> Applied:
    """Applies an export: every change of it, or, when one of them cannot be made, none.

    A default job takes the exported fields; an own job is added, restored or brought to the exported state;
    jobs that the export does not name stay as they are. Applying twice changes nothing more.
    OperationFailed names the job and the field that cannot be applied.
    """
    export = read_export(path)
    jobs = {reading.job.id: reading.job for reading in _all_jobs(runtime.ledger)}
    edits, warnings = _plan(runtime, path, export, jobs)
    if not dry_run:
        with runtime.ledger.together() as ledger:
            for edit in edits:
                edit.apply(ledger, by)

    def ids(action: str) -> tuple[str, ...]:
        return tuple(edit.job_id for edit in edits if edit.action == action)

    return Applied(ids("change"), ids("add"), ids("restore"), ids("none"), tuple(warnings))


@dataclass(frozen=True)
class _Edit:
    """One job of the export against the job in the store."""

    job_id: str
    action: str  # change, add, restore, none
    new: NewJob | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    pause: bool | None = None  # None: stays as it is

    def apply(self, ledger: Ledger, by: str) -> None:
        if self.action == "none":
            return
        if self.action == "add" and self.new is not None:
            ledger.add_job(self.new, by)
        if self.action == "restore":
            ledger.restore_job(self.job_id, by)
        if self.pause:  # first, so that no next run is set which the pause then takes away
            ledger.pause_job(self.job_id, by)
        if self.changes:
            ledger.change_job(self.job_id, self.changes, by)
        if self.pause is False:
            ledger.resume_job(self.job_id, by)


def _collect(ledger: Ledger, reason: str) -> Export:
    changed: list[DefaultJobChange] = []
    own: list[OwnJob] = []
    deleted: list[DeletedJob] = []
    unreadable: list[UnreadableJob] = []
    for reading in _all_jobs(ledger):
        job = reading.job
        if job.problem is not None and not (job.trigger and job.is_active):
            unreadable.append(UnreadableJob(id=job.id, problem=job.problem))
        elif job.source == "own":
            if job.is_active:
                own.append(OwnJob.model_construct(**_definition(job)))
            else:
                deleted.append(DeletedJob.model_construct(**_definition(job)))
        elif job.overrides and job.is_active:
            changed.append(
                DefaultJobChange(
                    id=job.id,
                    trigger=dict(job.trigger) if "trigger" in job.overrides else None,
                    is_paused=job.is_paused if "is_paused" in job.overrides else None,
                    is_enabled=job.is_enabled if "is_enabled" in job.overrides else None,
                )
            )
    return Export(
        format=EXPORT_FORMAT,
        created_at=utc_now().isoformat(timespec="seconds"),
        app_version=VERSION,
        reason=reason,
        default_jobs=changed,
        own_jobs=own,
        deleted_own_jobs=deleted,
        unreadable_jobs=unreadable,
    )


def _all_jobs(ledger: Ledger) -> Sequence[Any]:
    return JobsRepository(ledger.engine).page(JobFilter(is_active=None))


def _definition(job: Job) -> dict[str, Any]:
    # Put into models without validation: an export keeps what the store holds; applying it is where it is checked.
    return {name: _plain(getattr(job, name)) for name in DeletedJob.model_fields}


def _write(folder: Path, document: Export, reason: str) -> Path:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", reason):
        raise OperationFailed(f"reason {reason!r}: expected lower-case letters, digits and '-', 40 at most")
    content = document.model_dump(mode="json", exclude_none=True)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = _free_name(folder, f"{stamp(datetime.fromisoformat(document.created_at))}-{reason}")
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
        write_whole(path, _HEADER.format(name=path.name) + text)
    except OSError as error:
        raise OperationFailed(f"the export cannot be written to {folder}: {error}") from error
    return path


def _free_name(folder: Path, name: str) -> Path:
    """Takes the first free name by making the file, so that two exports in one second never share it."""
    for number in range(1, 1000):
        path = folder / f"{name}{'' if number == 1 else f'-{number}'}.yaml"
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise OperationFailed(f"{folder} already holds a thousand exports named {name}")


def _place(content: Mapping[str, Any], loc: Sequence[int | str]) -> str:
    """Where in the file, with the job's id rather than only its number."""
    where: Any = content
    parts: list[str] = []
    for step in loc:
        parts.append(str(step))
        try:
            where = where[step]
        except (LookupError, TypeError):
            where = None
        if isinstance(step, int) and isinstance(where, Mapping) and isinstance(where.get("id"), str):
            parts[-1] = f"{step} ({where['id']})"
    return ".".join(parts) or "content"


def _refuse_duplicates(path: Path, export: Export) -> None:
    seen: set[str] = set()
    ids = [*(change.id for change in export.default_jobs), *(own.id for own in export.own_jobs)]
    for job_id in ids:
        if job_id in seen:
            raise OperationFailed(f"{path}: the job {job_id} is named twice")
        seen.add(job_id)


def _plan(runtime: Runtime, path: Path, export: Export, jobs: Mapping[str, Job]) -> tuple[list[_Edit], list[str]]:
    edits: list[_Edit] = []
    warnings: list[str] = []
    for change in export.default_jobs:
        edits.append(_plan_default(runtime, path, change, jobs.get(change.id)))
    for own in export.own_jobs:
        edits.append(_plan_own(runtime, path, own, jobs.get(own.id), warnings))
    return edits, warnings


def _plan_default(runtime: Runtime, path: Path, change: DefaultJobChange, job: Job | None) -> _Edit:
    if job is None or not job.is_active:
        raise OperationFailed(
            f"{path}: default_jobs: the store holds no job {change.id}; is it still in the defaults file?"
        )
    if job.source == "own":
        raise OperationFailed(f"{path}: default_jobs: {change.id} is a user's own job in this store")
    changes: dict[str, Any] = {}
    if change.trigger is not None:
        trigger = _checked_trigger(runtime, path, change.id, change.trigger)
        if dict(job.trigger) != trigger:
            changes["trigger"] = trigger
    if change.is_enabled is not None and change.is_enabled != job.is_enabled:
        changes["is_enabled"] = change.is_enabled
    pause = change.is_paused if change.is_paused not in (None, job.is_paused) else None
    action = "none" if not changes and pause is None else "change"
    return _Edit(change.id, action, changes=changes, pause=pause)


def _plan_own(runtime: Runtime, path: Path, own: OwnJob, job: Job | None, warnings: list[str]) -> _Edit:
    trigger = _checked_trigger(runtime, path, own.id, own.trigger)
    try:
        check_time_limits(own.soft_time_limit, own.time_limit)
        check_executor(own.executor, runtime.settings.celery_broker_url)
    except ValidationError as error:
        raise _refused(path, f"job {own.id}", error) from error
    if runtime.tasks.get(own.task) is None:
        warnings.append(f"job {own.id}: this installation has no task {own.task}; its runs will fail until it has")
        kwargs = own.kwargs
    else:
        try:
            kwargs = runtime.tasks.check_kwargs(own.task, own.kwargs)
        except ValidationError as error:
            raise _refused(path, f"job {own.id}", error) from error
    wanted = {name: getattr(own, name) for name in _OWN_SETTINGS} | {
        "trigger": trigger,
        "kwargs": kwargs,
        "name": own.name or own.id,
    }
    if job is None:
        new = NewJob(id=own.id, **wanted)
        return _Edit(own.id, "add", new=new, pause=own.is_paused or None)
    if job.source != "own":
        raise OperationFailed(f"{path}: own_jobs: the id {own.id} belongs to a job of the defaults file")
    changes = {name: value for name, value in wanted.items() if _plain(getattr(job, name)) != value}
    pause = own.is_paused if own.is_paused != job.is_paused else None
    if not job.is_active:
        return _Edit(own.id, "restore", changes=changes, pause=pause)
    return _Edit(own.id, "none" if not changes and pause is None else "change", changes=changes, pause=pause)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _checked_trigger(runtime: Runtime, path: Path, job_id: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The trigger in its normal form, whatever a person's edit made of it."""
    fields = {name: value for name, value in spec.items() if name != "type"}
    try:
        for name, value in fields.items():
            if name not in TRIGGER_FIELDS or name == "trigger_type":
                raise ValidationError(field=name, value=value, accepted=sorted(TRIGGER_FIELDS - {"trigger_type"}))
        parsed = parse_trigger(
            {**fields, "trigger_type": spec.get("type")},
            default_timezone=runtime.settings.scheduler_timezone,
            allow_past=True,
        )
    except ValidationError as error:
        raise _refused(path, f"job {job_id}: trigger", error) from error
    for message, params in parsed.warnings:
        raise OperationFailed(f"{path}: job {job_id}: trigger: {english(message, params)}")
    return parsed.spec


def _refused(path: Path, where: str, error: ValidationError) -> OperationFailed:
    field = (error.field or "").replace("trigger_type", "type")
    return OperationFailed(f"{path}: {where}: {field} holds {error.value!r}; accepted: {_accepted(error)}")


def _accepted(error: ValidationError) -> str:
    if isinstance(error.accepted, list):
        return ", ".join(map(str, error.accepted))
    message = error.accepted if isinstance(error.accepted, str) else error.message
    return english(message, error.params)
