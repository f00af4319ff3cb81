"""Imports: an export applied to the store, all of it or nothing, and before that shown as a diff of every job."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from app.default_jobs import load_default_jobs
from app.errors import ValidationError
from app.i18n import english
from app.job_fields import check_executor, check_time_limits
from app.ledger import Job, Ledger, NewJob
from app.ledger.jobs import SETTINGS
from app.runtime import Runtime
from app.services.operations.exports import (
    DefaultJob,
    Export,
    OwnJob,
    all_jobs,
    default_job_of,
    own_job_of,
    plain,
)
from app.services.operations.failure import OperationFailed
from app.triggers import TRIGGER_FIELDS, parse_trigger

Action = Literal["change", "add", "restore", "remove", "none"]

_OWN_SETTINGS = (*SETTINGS, "trigger", "is_enabled")


@dataclass(frozen=True)
class Applied:
    """What an import changed, or would change, by job id.

    `warnings` tell of jobs that were applied all the same; `diff` is a unified diff of every job that is not unchanged;
    `plan` names exactly this change, so that what was looked at can be told from what is done later.
    """

    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    diff: str = ""
    plan: str = ""

    @property
    def changes(self) -> int:
        """How many jobs are not as they were."""
        return len(self.changed) + len(self.added) + len(self.restored) + len(self.removed)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name in self.__dataclass_fields__
            for value in [getattr(self, name)]
        }


def apply_export(
    runtime: Runtime,
    export: Export,
    *,
    name: str,
    by: str,
    dry_run: bool = False,
    prune: bool = False,
    expected_plan: str | None = None,
) -> Applied:
    """Applies an export: every change of it, or, when one of them cannot be made, none.

    A default job takes the exported trigger, pause and switch; an own job is added, restored or brought to the exported
    state. Jobs that the export does not name stay as they are; with `prune`, own jobs among them are deleted, and can
    be restored like any deleted job. Applying twice changes nothing more.
    name: how to call the export in messages. OperationFailed names the job and the field that cannot be applied; it is
    raised too when the change is another one than `expected_plan`.
    """
    jobs = {reading.job.id: reading.job for reading in all_jobs(runtime.ledger)}
    edits, warnings = _plan(runtime, name, export, jobs, prune=prune)
    diff = "".join(edit.diff() for edit in edits)
    plan = hashlib.sha256(diff.encode()).hexdigest()[:16]
    if expected_plan is not None and plan != expected_plan:
        raise OperationFailed(
            f"{name}: the jobs have changed since the diff {expected_plan} was made (now {plan}); look at it again."
            " Nothing was changed"
        )
    if not dry_run:
        _apply(runtime.ledger, [edit for edit in edits if edit.action != "none"], jobs, name=name, by=by)

    def ids(action: Action) -> tuple[str, ...]:
        return tuple(edit.job_id for edit in edits if edit.action == action)

    return Applied(
        changed=ids("change"),
        added=ids("add"),
        restored=ids("restore"),
        removed=ids("remove"),
        unchanged=ids("none"),
        warnings=tuple(warnings),
        diff=diff,
        plan=plan,
    )


def check_onto_defaults(runtime: Runtime, export: Export, *, name: str) -> None:
    """OperationFailed unless the export could be applied to a fresh store that holds the default jobs alone."""
    fresh = {new.id: new for new in load_default_jobs(runtime.settings, runtime.tasks)}
    for change in export.default_jobs:
        if change.id not in fresh:
            raise _no_such_default(name, change.id)
    for own in export.own_jobs:
        if own.id in fresh:
            raise _not_own(name, own.id)
        _own_values(runtime, name, own, [])
    for change in export.default_jobs:
        if change.trigger is not None:
            _checked_trigger(runtime, name, change.id, change.trigger)


@dataclass(frozen=True)
class _Edit:
    """One job of the export against the job in the store. `before` and `after`: its description, for people."""

    job_id: str
    action: Action
    new: NewJob | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    pause: bool | None = None  # None: stays as it is
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None

    def apply(self, ledger: Ledger, by: str) -> None:
        if self.action == "remove":
            ledger.delete_job(self.job_id, by)
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

    def diff(self) -> str:
        if self.action == "none":
            return ""
        lines = difflib.unified_diff(
            _lines(self.before),
            _lines(self.after),
            fromfile="/dev/null" if self.before is None else f"store/{self.job_id}",
            tofile="/dev/null" if self.after is None else f"import/{self.job_id}",
            n=2,
        )
        return "".join(lines)


def _lines(job: Mapping[str, Any] | None) -> list[str]:
    if job is None:
        return []
    # What means the same must read the same: the order in which a person wrote a trigger's fields is no change.
    job = {name: dict(sorted(value.items())) if isinstance(value, Mapping) else value for name, value in job.items()}
    text: str = yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=110)
    return text.splitlines(keepends=True)


def _apply(ledger: Ledger, edits: Sequence[_Edit], jobs: Mapping[str, Job], *, name: str, by: str) -> None:
    with ledger.together() as shared:
        # On SQLite nobody else can write from here on; on PostgreSQL a change in this very moment still can slip in.
        present = {reading.job.id: reading.job.revision for reading in all_jobs(ledger)}
        for edit in edits:
            known = jobs.get(edit.job_id)
            if present.get(edit.job_id) != (None if known is None else known.revision):
                raise OperationFailed(
                    f"{name}: somebody changed the job {edit.job_id} at this moment; nothing was applied, try again"
                )
        for edit in edits:
            edit.apply(shared, by)


def _plan(
    runtime: Runtime, name: str, export: Export, jobs: Mapping[str, Job], *, prune: bool
) -> tuple[list[_Edit], list[str]]:
    warnings: list[str] = []
    edits = [_plan_default(runtime, name, change, jobs.get(change.id), warnings) for change in export.default_jobs]
    edits += [_plan_own(runtime, name, own, jobs.get(own.id), warnings) for own in export.own_jobs]
    if prune:
        named = {own.id for own in export.own_jobs}
        edits += [
            _Edit(job.id, "remove", before=own_job_of(job))
            for job in jobs.values()
            if job.source == "own" and job.is_active and job.id not in named
        ]
    return edits, warnings


def _plan_default(runtime: Runtime, name: str, change: DefaultJob, job: Job | None, warnings: list[str]) -> _Edit:
    if job is None or not job.is_active:
        raise _no_such_default(name, change.id)
    if job.source == "own":
        raise OperationFailed(f"{name}: default_jobs: {change.id} is a user's own job in this store")
    changes: dict[str, Any] = {}
    if change.trigger is not None:
        trigger = _checked_trigger(runtime, name, change.id, change.trigger)
        if dict(job.trigger) != trigger:
            changes["trigger"] = trigger
    if change.is_enabled is not None and change.is_enabled != job.is_enabled:
        changes["is_enabled"] = change.is_enabled
    for setting, value in (change.settings or {}).items():
        present = plain(getattr(job, setting))
        if value != present:
            warnings.append(
                f"job {change.id}: {setting} is {value!r} in {name} and {present!r} here, and stays so:"
                " a default job's settings come from its file (SCHEDULER_TASKS_FILE)"
            )
    pause = change.is_paused if change.is_paused not in (None, job.is_paused) else None
    before = default_job_of(job)
    after = before | changes | ({} if pause is None else {"is_paused": pause})
    action: Action = "none" if not changes and pause is None else "change"
    return _Edit(change.id, action, changes=changes, pause=pause, before=before, after=after)


def _plan_own(runtime: Runtime, name: str, own: OwnJob, job: Job | None, warnings: list[str]) -> _Edit:
    wanted = _own_values(runtime, name, own, warnings)
    after = {"id": own.id, **{key: value for key, value in wanted.items() if value is not None}}
    after["is_paused"] = own.is_paused
    if job is None:
        new = NewJob(id=own.id, **wanted)
        return _Edit(own.id, "add", new=new, pause=own.is_paused or None, after=_in_order(after))
    if job.source != "own":
        raise _not_own(name, own.id)
    changes = {key: value for key, value in wanted.items() if plain(getattr(job, key)) != value}
    pause = own.is_paused if own.is_paused != job.is_paused else None
    before = own_job_of(job) if job.is_active else None
    action: Action = "restore" if not job.is_active else "change" if changes or pause is not None else "none"
    return _Edit(own.id, action, changes=changes, pause=pause, before=before, after=_in_order(after))


def _in_order(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in OwnJob.model_fields if name in job}


def _own_values(runtime: Runtime, name: str, own: OwnJob, warnings: list[str]) -> dict[str, Any]:
    """What the export asks for of an own job, checked; OperationFailed for what cannot be."""
    trigger = _checked_trigger(runtime, name, own.id, own.trigger)
    try:
        check_time_limits(own.soft_time_limit, own.time_limit)
        check_executor(own.executor, runtime.settings.celery_broker_url)
    except ValidationError as error:
        raise _refused(name, f"job {own.id}", error) from error
    if runtime.tasks.get(own.task) is None:
        warnings.append(f"job {own.id}: this installation has no task {own.task}; its runs will fail until it has")
        kwargs = own.kwargs
    else:
        try:
            kwargs = runtime.tasks.check_kwargs(own.task, own.kwargs)
        except ValidationError as error:
            raise _refused(name, f"job {own.id}", error) from error
    return {key: getattr(own, key) for key in _OWN_SETTINGS} | {
        "trigger": trigger,
        "kwargs": kwargs,
        "name": own.name or own.id,
    }


def _checked_trigger(runtime: Runtime, name: str, job_id: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The trigger in its normal form, whatever a person's edit made of it."""
    fields = {key: value for key, value in spec.items() if key != "type"}
    try:
        for key, value in fields.items():
            if key not in TRIGGER_FIELDS or key == "trigger_type":
                raise ValidationError(field=key, value=value, accepted=sorted(TRIGGER_FIELDS - {"trigger_type"}))
        parsed = parse_trigger(
            {**fields, "trigger_type": spec.get("type")},
            default_timezone=runtime.settings.scheduler_timezone,
            allow_past=True,
        )
    except ValidationError as error:
        raise _refused(name, f"job {job_id}: trigger", error) from error
    for message, params in parsed.warnings:
        raise OperationFailed(f"{name}: job {job_id}: trigger: {english(message, params)}")
    return parsed.spec


def _no_such_default(name: str, job_id: str) -> OperationFailed:
    return OperationFailed(f"{name}: default_jobs: the store holds no job {job_id}; is it still in the defaults file?")


def _not_own(name: str, job_id: str) -> OperationFailed:
    return OperationFailed(f"{name}: own_jobs: the id {job_id} belongs to a job of the defaults file")


def _refused(name: str, where: str, error: ValidationError) -> OperationFailed:
    field_name = (error.field or "").replace("trigger_type", "type")
    return OperationFailed(f"{name}: {where}: {field_name} holds {error.value!r}; accepted: {_accepted(error)}")


def _accepted(error: ValidationError) -> str:
    if isinstance(error.accepted, list):
        return ", ".join(map(str, error.accepted))
    message = error.accepted if isinstance(error.accepted, str) else error.message
    return english(message, error.params)
