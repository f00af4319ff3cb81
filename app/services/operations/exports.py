"""Exports: jobs as YAML that a person can review, and that app.services.operations.imports applies.

Either what the API changed and the users' own jobs, or every job in full:
userdata/exports/20260401T003000Z-reload.yaml
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic import ValidationError as PydanticError

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
)
from app.ledger import Job, Ledger
from app.ledger.jobs import SETTINGS
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.stores.files import stamp, utc_now, write_whole
from app.settings import Settings
from app.version import VERSION

EXPORT_FORMAT = 1
_CHANGES_HEADER = """\
# What was changed through the API: the default jobs' triggers, pauses and switches, and the users' own jobs.
# Read it, remove what should not come back, then apply the rest, all or nothing:
#   scripts/import_jobs.sh {name}
# Jobs below `deleted_own_jobs` are not applied; move one to `own_jobs` to bring it back.
"""
_ALL_HEADER = """\
# Every job. Of a default job its trigger, pause and switch can be changed here; its settings come from its own file
# (SCHEDULER_TASKS_FILE) and stand here to be read. An own job can be changed in full. Applied all or nothing:
#   scripts/import_jobs.sh {name} --diff    shows what that would change
#   scripts/import_jobs.sh {name}           applies it; with --prune it also deletes own jobs that are not in it
"""


class _Document(BaseModel):
    # Numbers and booleans as YAML writes them: "10" where a number belongs is a mistake to be told.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DefaultJob(_Document):
    """What the API changed on one job of the defaults file, or may change; what is left out stays as the file says.

    `settings` are that file's, for whoever reads the export; they are not applied.
    """

    id: JobId
    trigger: dict[str, Any] | None = None
    is_paused: bool | None = None
    is_enabled: bool | None = None
    settings: dict[str, Any] | None = None

    @field_validator("settings")
    @classmethod
    def _are_known(cls, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in settings or {}:
            if name not in SETTINGS:
                raise ValueError(f"{name} is no setting of a job; accepted: {', '.join(SETTINGS)}")
        return settings


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
    default_jobs: list[DefaultJob] = Field(default_factory=list)
    own_jobs: list[OwnJob] = Field(default_factory=list)
    deleted_own_jobs: list[DeletedJob] = Field(default_factory=list)
    unreadable_jobs: list[UnreadableJob] = Field(default_factory=list)


class _TextLoader(yaml.SafeLoader):
    """Leaves moments as they are written: the trigger parser reads them, and JSON knows no others."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name is PyYAML's
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def exports_folder(settings: Settings) -> Path:
    """Where exports are kept. Nothing removes them: each is small, and the only record of its moment."""
    return settings.userdata_dir / "exports"


def export_changes(runtime: Runtime, reason: str) -> Path:
    """Writes what the API changed and all own jobs to a new file and returns its path.

    reason: a word for the file's name, such as `reload` or `reset`. The file is written even when nothing was
    changed: that is a finding too. OperationFailed when the file cannot be written.
    """
    return write_export(exports_folder(runtime.settings), collect(runtime.ledger, reason))


def write_export(folder: Path, export: Export, *, in_full: bool = False) -> Path:
    """Writes an export to a new file in `folder`, named by its moment and reason, and returns its path.

    OperationFailed when the reason is none for a file's name, or the file cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", export.reason):
        raise OperationFailed(f"reason {export.reason!r}: expected lower-case letters, digits and '-', 40 at most")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = _free_name(folder, f"{stamp(datetime.fromisoformat(export.created_at))}-{export.reason}")
        write_whole(path, as_yaml(export, path.name, in_full=in_full))
    except OSError as error:
        raise OperationFailed(f"the export cannot be written to {folder}: {error}") from error
    return path


def as_yaml(export: Export, name: str, *, in_full: bool = False) -> str:
    """The text of an export file of that name, with what to do with it on top."""
    content = export.model_dump(mode="json", exclude_none=True)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    return (_ALL_HEADER if in_full else _CHANGES_HEADER).format(name=name) + text


def read_export(path: Path) -> Export:
    """The export in a file. OperationFailed names the line or the field of the first thing that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperationFailed(f"the export {path} cannot be read: {error}") from error
    return parse_export(text, str(path))


def parse_export(text: str, name: str) -> Export:
    """The export in a text; `name` is how to call it in messages. OperationFailed as read_export."""
    try:
        content = yaml.load(text, Loader=_TextLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise OperationFailed(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise OperationFailed(f"{name} is nested too deeply") from None
    if not isinstance(content, dict):
        raise OperationFailed(f"{name} holds no export: a mapping with `format: {EXPORT_FORMAT}` is expected")
    if content.get("format") != EXPORT_FORMAT:
        raise OperationFailed(f"{name}: format: {content.get('format')!r} is not known; {EXPORT_FORMAT} is expected")
    try:
        export = Export.model_validate(content)
    except PydanticError as error:
        first = error.errors(include_url=False)[0]
        raise OperationFailed(f"{name}: {_place(content, first['loc'])}: {first['msg']}") from error
    _refuse_duplicates(name, export)
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


def collect(ledger: Ledger, reason: str, *, in_full: bool = False) -> Export:
    """What the API changed and all own jobs, as they are now; `in_full`: every job, and none that was deleted."""
    default: list[DefaultJob] = []
    own: list[OwnJob] = []
    deleted: list[DeletedJob] = []
    unreadable: list[UnreadableJob] = []
    for reading in all_jobs(ledger):
        job = reading.job
        if job.problem is not None and not (job.trigger and job.is_active):
            unreadable.append(UnreadableJob(id=job.id, problem=job.problem))
        elif job.source == "own":
            if job.is_active:
                own.append(OwnJob.model_construct(**_definition(job)))
            elif not in_full:
                deleted.append(DeletedJob.model_construct(**_definition(job)))
        elif job.is_active and in_full:
            settings = {name: plain(getattr(job, name)) for name in SETTINGS}
            default.append(
                DefaultJob(
                    **default_job_of(job),
                    settings={name: value for name, value in settings.items() if value is not None},
                )
            )
        elif job.is_active and job.overrides:
            default.append(
                DefaultJob(
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
        default_jobs=default,
        own_jobs=own,
        deleted_own_jobs=deleted,
        unreadable_jobs=unreadable,
    )


def all_jobs(ledger: Ledger) -> Sequence[Any]:
    """Every job of the store by its id, deleted ones too."""
    return JobsRepository(ledger.engine).page(JobFilter(is_active=None))


def default_job_of(job: Job) -> dict[str, Any]:
    """Of a job of the defaults file what the API can change."""
    return {"id": job.id, "trigger": dict(job.trigger), "is_paused": job.is_paused, "is_enabled": job.is_enabled}


def own_job_of(job: Job) -> dict[str, Any]:
    """A user's own job in full, as an export holds it; what is not set is left out."""
    return {name: value for name, value in _definition(job).items() if value is not None}


def plain(value: Any) -> Any:
    """A setting as YAML and JSON hold it."""
    return dict(value) if isinstance(value, Mapping) else value


def _definition(job: Job) -> dict[str, Any]:
    # Put into models without validation: an export keeps what the store holds; applying it is where it is checked.
    return {name: plain(getattr(job, name)) for name in DeletedJob.model_fields}


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


def _refuse_duplicates(name: str, export: Export) -> None:
    seen: set[str] = set()
    ids = [*(change.id for change in export.default_jobs), *(own.id for own in export.own_jobs)]
    for job_id in ids:
        if job_id in seen:
            raise OperationFailed(f"{name}: the job {job_id} is named twice")
        seen.add(job_id)
