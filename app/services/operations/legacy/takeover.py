"""What becomes of each job of an older app: taken over, there already, kept as it is here, or listed with the reason.

A default job of this stack takes the trigger and the pause; any other job whose function is a known task becomes a job
of the user's own. What somebody changed here stays, unless it is asked to be overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from app.db.jobstore_tables import JOB_ID_LENGTH
from app.errors import DomainError
from app.i18n import english
from app.job_fields import JOB_ID_PATTERN, LONGEST_GRACE_S, storable
from app.ledger import Job, Ledger, NewJob
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.legacy.pickles import UnreadablePickle, read_pickle
from app.services.operations.legacy.source import MOST_JOBS, LegacyRow
from app.services.operations.legacy.triggers import trigger_fields
from app.services.operations.legacy.values import as_json_value, class_of
from app.tasks.declaration import Task
from app.triggers import build_trigger, describe, parse_trigger, trigger_args

BY = "import-legacy"
_APSCHEDULER_GRACE_S = 1
"""Its default, and so hardly anybody's choice; what it leads to is a missed fire at every restart."""
_GRACE_S = 300
_MOST_INSTANCES = 10

Action = Literal["add", "change", "unchanged", "kept"]


@dataclass(frozen=True)
class TakenOver:
    """One job. `notes` say what is different here; `kept`: it is here already, and differs."""

    id: str
    action: Action
    task: str
    trigger: str  # in words
    paused: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotTaken:
    """A job that cannot be taken over, and why. `func` is what its pickle names, empty where that cannot be read."""

    id: str
    func: str
    reason: str


@dataclass(frozen=True)
class Takeover:
    """What an import did, or would do."""

    jobs: tuple[TakenOver, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {name: [asdict(each) for each in getattr(self, name)] for name in ("jobs", "not_taken")}


class _Refused(Exception):
    """Why a job is not taken over."""


@dataclass(frozen=True)
class _OldJob:
    """A job as its pickle describes it."""

    id: str
    func: str
    fields: Mapping[str, Any]
    paused: bool
    state: Mapping[str, Any]


@dataclass(frozen=True)
class _Edit:
    """What is to be written of one job."""

    shown: TakenOver
    new: NewJob | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    pause: bool | None = None
    restore: bool = False

    def apply(self, ledger: Ledger) -> None:
        if self.shown.action == "add" and self.new is not None:
            ledger.add_job(self.new, BY)
        if self.restore:
            ledger.restore_job(self.shown.id, BY)
        if self.pause:
            ledger.pause_job(self.shown.id, BY)
        if self.changes:
            ledger.change_job(self.shown.id, self.changes, BY)
        if self.pause is False:
            ledger.resume_job(self.shown.id, BY)


def take_over(
    runtime: Runtime,
    rows: Sequence[LegacyRow],
    *,
    tasks: Mapping[str, str] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Takeover:
    """Takes over the jobs of `rows`, all in one transaction; what cannot be taken over is listed with its reason.

    tasks: the task for a function (`module:name`, or its name alone) or a job id of the older app, where the names
    differ. overwrite: jobs that are here already and differ take the older app's definition. OperationFailed for a task
    that is not known.
    """
    if len(rows) > MOST_JOBS:
        raise OperationFailed(f"the table holds more than {MOST_JOBS} jobs")
    for wanted in (tasks or {}).values():
        if runtime.tasks.get(wanted) is None:
            known = ", ".join(task.name for task in runtime.tasks.all())
            raise OperationFailed(f"--map names the task {wanted!r}, which is not known here; accepted: {known}")
    here = {reading.job.id: reading.job for reading in JobsRepository(runtime.jobstore).page(JobFilter(is_active=None))}
    plan = _Plan(runtime, here, tasks or {}, overwrite)
    edits: list[_Edit] = []
    not_taken: list[NotTaken] = []
    for row in rows:
        func = ""
        try:
            old = _read(row)
            func = old.func
            edits.append(plan.edit(old))
        except (_Refused, UnreadablePickle) as error:
            not_taken.append(NotTaken(row.id, func, str(error)))
        except DomainError as error:
            not_taken.append(NotTaken(row.id, func, " ".join(english(error.message, error.params).split())))
        except Exception as error:  # whatever a damaged row holds, the other jobs are taken over
            not_taken.append(NotTaken(row.id, func, f"its data is damaged ({type(error).__name__}: {error})"[:300]))
    if not dry_run:
        with runtime.ledger.together() as ledger:
            for edit in edits:
                edit.apply(ledger)
    return Takeover(tuple(edit.shown for edit in edits), tuple(not_taken))


def _read(row: LegacyRow) -> _OldJob:
    state = read_pickle(row.state)
    if not isinstance(state, dict) or not isinstance(state.get("func"), str):
        raise UnreadablePickle(f"its pickle holds {class_of(state)}, not the state of a job")
    if state.get("version", 1) != 1:
        raise UnreadablePickle(f"its state has the version {state['version']!r}; accepted: 1, of APScheduler 3")
    return _OldJob(row.id, state["func"][:500], trigger_fields(state.get("trigger")), not row.has_next_run, state)


class _Plan:
    """Decides what to do with each old job, against the jobs `here`."""

    def __init__(self, runtime: Runtime, here: Mapping[str, Job], tasks: Mapping[str, str], overwrite: bool) -> None:
        self._runtime, self._here, self._tasks, self._overwrite = runtime, here, tasks, overwrite

    def edit(self, old: _OldJob) -> _Edit:
        """_Refused, UnreadablePickle or a DomainError for one that cannot be taken over."""
        parsed = parse_trigger(old.fields, default_timezone=self._runtime.settings.scheduler_timezone)
        notes = tuple(english(message, params) for message, params in parsed.warnings)
        job = self._here.get(old.id)
        if job is not None and job.source != "own":
            return self._default(old, job, parsed.spec, notes)
        return self._own(old, job, parsed.spec, notes)

    def _default(self, old: _OldJob, job: Job, trigger: dict[str, Any], notes: tuple[str, ...]) -> _Edit:
        same = _same_fires(job.trigger, trigger)
        pause = True if old.paused and not job.is_paused else None
        theirs = [
            name
            for name, differs in (("trigger", not same), ("is_paused", pause is not None))
            if differs and name in job.overrides
        ]
        if old.state.get("kwargs") or old.state.get("args"):
            notes += ("its arguments stay as they are configured here",)
        if job.is_paused and not old.paused:
            notes += ("it is paused here, and stays so",)
        if theirs and not self._overwrite:
            notes += (f"{' and '.join(theirs)} was changed here, and stays; --overwrite replaces it",)
            return _Edit(_as_it_is_here(job, notes))
        action: Action = "unchanged" if same and pause is None else "change"
        shown = _shown(old, action, job.task, trigger, notes, paused=old.paused or job.is_paused)
        return _Edit(shown, changes={} if same else {"trigger": trigger}, pause=pause)

    def _own(self, old: _OldJob, job: Job | None, trigger: dict[str, Any], notes: tuple[str, ...]) -> _Edit:
        if len(old.id) > JOB_ID_LENGTH or not re.fullmatch(JOB_ID_PATTERN, old.id):
            raise _Refused(
                "its id is none here: letters, digits, '_', '.', ':' and '-', beginning with a letter or digit"
            )
        task = self._task(old)
        wanted, more = self._settings(old, task)
        notes += more
        definition = {"task": task.name, "trigger": trigger, **wanted}
        if job is None:
            new = NewJob(id=old.id, **definition)
            shown = _shown(old, "add", task.name, trigger, notes)
            return _Edit(shown, new=new, pause=True if old.paused else None)
        changes = {name: value for name, value in definition.items() if getattr(job, name) != value}
        if _same_fires(job.trigger, trigger):
            changes.pop("trigger", None)
        pause = old.paused if old.paused != job.is_paused else None
        if not changes and pause is None and job.is_active:
            return _Edit(_shown(old, "unchanged", task.name, trigger, notes))
        if not self._overwrite:
            state = "was deleted here" if not job.is_active else "is here already, and differs"
            notes += (f"a job of this id {state}; --overwrite replaces it",)
            return _Edit(_as_it_is_here(job, notes))
        shown = _shown(old, "change", task.name, trigger, notes)
        return _Edit(shown, changes=changes, pause=pause, restore=not job.is_active)

    def _task(self, old: _OldJob) -> Task:
        """The task that stands for the function of the older app."""
        function = old.func.rpartition(":")[2]
        name = next((self._tasks[key] for key in (old.func, function, old.id) if key in self._tasks), None)
        for candidate in (name, function, function.rpartition(".")[2]):
            task = None if candidate is None else self._runtime.tasks.get(candidate)
            if task is not None:
                return task
        raise _Refused(f"no task here stands for its function {old.func}; --map {old.func}=TASK names one")

    def _settings(self, old: _OldJob, task: Task) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Its settings as they can be here, and what differs."""
        notes: list[str] = []
        state = old.state
        name = state.get("name")
        grace, instances = state.get("misfire_grace_time"), state.get("max_instances")
        settings = {
            "kwargs": self._runtime.tasks.check_kwargs(task, self._kwargs(state, task)),
            "name": storable(name)[:255] if isinstance(name, str) and _is_storable(name) else old.id,
            "coalesce": state["coalesce"] if isinstance(state.get("coalesce"), bool) else True,
        }
        if grace is None:
            grace = LONGEST_GRACE_S
            notes.append(f"its grace time without an end is {LONGEST_GRACE_S} s here, the longest there is")
        elif grace == _APSCHEDULER_GRACE_S:
            grace = _GRACE_S
            notes.append(f"its grace time of 1 s, APScheduler's default, is {_GRACE_S} s here")
        settings["misfire_grace_time"] = _within(grace, _GRACE_S, LONGEST_GRACE_S, "grace time", notes)
        settings["max_instances"] = _within(instances, 1, _MOST_INSTANCES, "max_instances", notes)
        if state.get("executor") not in (None, "default"):
            notes.append(f"its executor {state['executor']!r} is `default` here: threads of the scheduler"[:200])
        return settings, tuple(notes)

    def _kwargs(self, state: Mapping[str, Any], task: Task) -> dict[str, Any]:
        kwargs = as_json_value(state.get("kwargs") or {})
        if not isinstance(kwargs, dict):
            raise UnreadablePickle("its keyword arguments are no mapping")
        args = as_json_value(list(state.get("args") or ()))
        names = [parameter.name for parameter in task.parameters]
        if len(args) > len(names) or set(names[: len(args)]) & kwargs.keys():
            raise _Refused(f"its {len(args)} positional arguments do not fit the task {task.name}({', '.join(names)})")
        return _storable_arguments({**dict(zip(names, args, strict=False)), **kwargs})


def _shown(
    old: _OldJob,
    action: Action,
    task: str,
    trigger: dict[str, Any],
    notes: tuple[str, ...],
    *,
    paused: bool | None = None,
) -> TakenOver:
    return TakenOver(old.id, action, task, describe(trigger, "en"), old.paused if paused is None else paused, notes)


def _as_it_is_here(job: Job, notes: tuple[str, ...]) -> TakenOver:
    words = describe(job.trigger, "en") if job.trigger else ""
    return TakenOver(job.id, "kept", job.task, words, job.is_paused, notes)


def _storable_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments themselves; _Refused for what a database does not give back."""
    try:
        return storable(arguments)
    except ValueError as error:
        raise _Refused(f"its arguments cannot be stored; accepted: {error}") from error


def _is_storable(text: str) -> bool:
    try:
        storable(text)
    except ValueError:
        return False
    return True


def _within(value: Any, default: int, most: int, what: str, notes: list[str]) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    taken = most if isinstance(value, int) and value > most else default
    notes.append(f"its {what} is {taken} here: it was {str(value)[:40]}, accepted are 1 to {most}")
    return taken


def _same_fires(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two triggers fire alike, however their fields are written. Of an interval, its beginning does not count:
    one that was given none began whenever it was read."""
    if one == other:
        return True
    kind = one.get("type")
    if kind != other.get("type") or kind not in _COMPARED:
        return False
    if any(one.get(name) != other.get(name) for name in _COMPARED[kind]):
        return False
    try:
        if kind == "cron":
            return trigger_args(dict(one)) == trigger_args(dict(other))
        return bool(build_trigger(dict(one)).interval == build_trigger(dict(other)).interval)
    except (LookupError, TypeError, ValueError):  # a row here that cannot be read
        return False


_COMPARED = {
    "cron": ("week", "timezone", "start_date", "end_date", "jitter"),
    "interval": ("timezone", "end_date", "jitter"),
}
