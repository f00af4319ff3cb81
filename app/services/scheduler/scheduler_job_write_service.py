"""Creates, changes, deletes and restores jobs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import _N, Forbidden, NotFound, ValidationError
from app.job_fields import check_executor, check_time_limits
from app.ledger import Job, NewJob
from app.ledger.repeats import RepeatedRequest, RepeatKey
from app.runtime import Runtime, current_runtime
from app.services.scheduler.job_input import JobChangeInput, JobSettings, NewJobInput, checked
from app.services.scheduler.repeated_requests import refuse_repeat
from app.services.scheduler.store_failures import store_failures
from app.tasks import BUILTIN_TASK_IDS
from app.triggers import ParsedTrigger, parse_trigger

SYSTEM = "system"
"""Who is on record for what no person asked for."""


@dataclass(frozen=True)
class SavedJob:
    """A job as it was stored. warnings: (message id, its params), about what was accepted with a change. replayed: an
    earlier request with the same key created it."""

    job: Job
    warnings: tuple[tuple[str, dict[str, Any]], ...] = ()
    replayed: bool = False


class SchedulerJobWriteService:
    """Changes of jobs, by the rules of who may change what."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._runtime = runtime or current_runtime()
        self._ledger = self._runtime.ledger

    def load(self, resource_id: str) -> Job:
        """The job `resource_id`; NotFound for one that is not there or is deleted."""
        with store_failures(_N("获取任务详情失败")):
            job = None if "\0" in resource_id else self._ledger.get_job(resource_id)
        if job is None:
            raise NotFound(_N("任务不存在"))
        return job

    def upsert(
        self,
        payload: Mapping[str, Any] | JobSettings,
        resource: Job | None = None,
        *,
        by: str = SYSTEM,
        if_revision: int | None = None,
        repeat: RepeatKey | None = None,
    ) -> SavedJob:
        """Changes the job `resource`, or creates an own job when there is none.

        The trigger is replaced as a whole; other fields that the payload leaves out keep their values. Nothing
        changes unless all of it can. ValidationError; Forbidden for a job, or a field of it, that cannot be
        changed; PreconditionFailed when the job is no longer at `if_revision`. `repeat`, of a creation: one that was
        carried out before under this key creates nothing new.
        """
        if resource is None:
            return self._create(checked(NewJobInput, payload), by, repeat)
        return self._change(resource, checked(JobChangeInput, payload), by, if_revision)

    def delete(self, resource: Job, by: str = SYSTEM) -> Job:
        """Deletes an own job softly; Forbidden for any other."""
        if resource.source == "builtin":
            raise Forbidden(_N("内置任务不能删除，可以停用它"))
        if resource.source != "own":
            raise Forbidden(_N("默认任务不能删除，可以停用它，或从默认任务文件中移除后重新加载"))
        with store_failures():
            return self._ledger.delete_job(resource.id, by)

    def restore(self, job_id: str, by: str = SYSTEM) -> Job:
        """Brings a deleted job back; NotFound when no deleted job has this id."""
        with store_failures():
            deleted = None if "\0" in job_id else self._ledger.get_job(job_id, include_deleted=True)
            if deleted is None or deleted.is_active:
                raise NotFound(_N("没有可恢复的任务"))
            return self._ledger.restore_job(job_id, by)

    def _create(self, new: NewJobInput, by: str, repeat: RepeatKey | None) -> SavedJob:
        try:
            with store_failures():
                refuse_repeat(self._runtime.jobstore, repeat)
                return self._add(new, by, repeat)
        except RepeatedRequest as earlier:
            return self._created_before(earlier.resource)

    def _add(self, new: NewJobInput, by: str, repeat: RepeatKey | None) -> SavedJob:
        parsed = self._trigger(new, new.misfire_grace_time)
        fields = new.job_fields()
        job_id = fields.pop("id", None) or f"{new.task}-{secrets.token_hex(4)}"
        if job_id in BUILTIN_TASK_IDS:
            raise ValidationError(_N("任务 ID 已被占用"), field="id", value=job_id, accepted=_N("未被占用的 ID"))
        fields["kwargs"] = self._runtime.tasks.check_kwargs(new.task, new.kwargs)
        self._check_settings(fields)
        job = self._ledger.add_job(NewJob(id=job_id, trigger=parsed.spec, **fields), by, repeat=repeat)
        return SavedJob(job, parsed.warnings)

    def _created_before(self, job_id: str) -> SavedJob:
        with store_failures():
            job = self._ledger.get_job(job_id, include_deleted=True)
        if job is None:
            raise NotFound(_N("任务不存在"))
        return SavedJob(job, replayed=True)

    def _change(self, job: Job, change: JobChangeInput, by: str, if_revision: int | None) -> SavedJob:
        fields = change.job_fields()
        if job.source == "default":
            raise Forbidden(_N("此任务由默认任务文件定义，不能修改"))
        if job.source == "builtin" and fields:
            raise Forbidden(_N("内置任务只能修改触发器"), context={"fields": sorted(fields), "editable": ["trigger"]})
        grace_s = fields.get("misfire_grace_time", job.misfire_grace_time)
        parsed = self._trigger(change, grace_s, allow_past=True)
        # A job that is done keeps its trigger, so that its other fields can be changed; a new one that has no fire left
        # is refused.
        if job.next_run_time is not None or job.problem is not None or parsed.spec != dict(job.trigger):
            parsed = self._trigger(change, grace_s)
            fields["trigger"] = parsed.spec
        if fields.keys() & {"task", "kwargs"}:
            fields["kwargs"] = self._runtime.tasks.check_kwargs(
                fields.get("task", job.task), fields.get("kwargs", job.kwargs)
            )
        self._check_settings(fields, job)
        if fields.get("name") == "":
            fields["name"] = job.id
        with store_failures():
            changed = self._ledger.change_job(job.id, fields, by, if_revision=if_revision)
        return SavedJob(changed, parsed.warnings)

    def _check_settings(self, fields: Mapping[str, Any], job: Job | None = None) -> None:
        """What one field alone does not tell; of a `job`, its fields count that are not given."""
        if fields.keys() & {"soft_time_limit", "time_limit"}:
            soft, hard = (fields.get(name, getattr(job, name, None)) for name in ("soft_time_limit", "time_limit"))
            check_time_limits(soft, hard)
        if "executor" in fields:
            check_executor(fields["executor"], self._runtime.settings.celery_broker_url)

    def _trigger(self, given: JobSettings, misfire_grace_s: float, *, allow_past: bool = False) -> ParsedTrigger:
        return parse_trigger(
            given.trigger_fields(),
            default_timezone=self._runtime.settings.scheduler_timezone,
            misfire_grace_s=misfire_grace_s,
            allow_past=allow_past,
        )
