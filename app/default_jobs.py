"""The default jobs: what `SCHEDULER_TASKS_FILE` says, checked, or one line that names its line and field."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from app.errors import ValidationError, shown_value
from app.i18n import english
from app.job_fields import (
    Executor,
    JobDescription,
    JobId,
    JobName,
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
    storable,
)
from app.ledger import NewJob
from app.settings import Settings
from app.tasks import BUILTIN_TASK_IDS, TaskRegistry
from app.triggers import TRIGGER_FIELDS, TRIGGER_TYPES, parse_trigger

LIST_KEY = "default_tasks"

logger = logging.getLogger(__name__)


class DefaultJobsError(ValueError):
    """The file of default jobs cannot be used. One line: file, line, field, what it held, what is accepted."""


class DefaultJobEntry(BaseModel):
    """An entry of `default_tasks`."""

    # Numbers and booleans as YAML writes them: "10" where a number belongs is a mistake to be told.
    model_config = ConfigDict(extra="forbid", strict=True)

    id: JobId
    trigger_type: str
    trigger_params: dict[str, Any]
    task: TaskName | None = None
    kwargs: dict[str, Any] = {}
    enabled: bool = True
    is_enabled: bool = True  # what the same setting is called everywhere else; either may say no
    name: JobName = ""
    description: JobDescription = ""
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


def load_default_jobs(settings: Settings, tasks: TaskRegistry) -> list[NewJob]:
    """The jobs that the file defines, in its order.

    A task that is not registered, or kwargs that do not fit it, are logged and stop nothing: a drop-in module
    may be at fault, and the job's runs say so too. Anything else that is wrong raises DefaultJobsError.
    """
    return _File(settings.scheduler_tasks_file).jobs(settings, tasks)


class _File:
    """The file as data, and as the nodes that know their lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DefaultJobsError(
                f"SCHEDULER_TASKS_FILE is {str(path)!r}, which cannot be read: {error}; accepted: a YAML file in UTF-8"
            ) from error
        loader = yaml.SafeLoader(text)
        try:
            self._root = loader.get_single_node()
            self._data = None if self._root is None else loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._error(mark.line + 1 if mark else 1, "", f"no valid YAML: {error.problem}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise self._error(1, "", f"no valid YAML: {' '.join(str(error).split())}") from error
        finally:
            loader.dispose()
        for key in _repeated_keys(self._root):
            raise self._error(key.start_mark.line + 1, key.value, "stands there twice")

    def jobs(self, settings: Settings, tasks: TaskRegistry) -> list[NewJob]:
        """The jobs, in the order of the file."""
        if not isinstance(self._data, Mapping) or not isinstance(self._data.get(LIST_KEY), list):
            raise self._error(self._line([LIST_KEY]), LIST_KEY, "accepted: a list of jobs")
        for key in self._data:
            if key != LIST_KEY:
                raise self._error(self._line([key]), str(key), f"unknown field; accepted: {LIST_KEY}")
        found: dict[str, NewJob] = {}
        for index, content in enumerate(self._data[LIST_KEY]):
            job = self._job([LIST_KEY, index], content, settings, tasks)
            if job.id in found:
                raise self._refused([LIST_KEY, index, "id"], job.id, "an id that no other entry has")
            found[job.id] = job
        return list(found.values())

    def _job(self, where: list[str | int], content: Any, settings: Settings, tasks: TaskRegistry) -> NewJob:
        try:
            entry = DefaultJobEntry.model_validate(content)
        except PydanticError as error:
            first = error.errors(include_url=False)[0]
            held = None if first["type"] == "missing" else first["input"]
            raise self._refused([*where, *first["loc"]], held, first["msg"]) from error
        try:
            check_time_limits(entry.soft_time_limit, entry.time_limit)
            check_executor(entry.executor, settings.celery_broker_url)
        except ValidationError as error:
            line = self._line([*where, str(error.field)])
            raise self._error(line, f"job {entry.id}", english(error.message, error.params)) from error
        task = entry.task or entry.id
        return NewJob(
            id=entry.id,
            task=task,
            trigger=self._trigger(where, entry, settings.scheduler_timezone),
            kwargs=self._kwargs(where, entry, task, tasks),
            name=entry.name,
            description=entry.description,
            misfire_grace_time=entry.misfire_grace_time,
            coalesce=entry.coalesce,
            max_instances=entry.max_instances,
            priority=entry.priority,
            executor=entry.executor,
            retry_on_loss=entry.retry_on_loss,
            max_attempts=entry.max_attempts,
            retry_delay=entry.retry_delay,
            soft_time_limit=entry.soft_time_limit,
            time_limit=entry.time_limit,
            ping_url=entry.ping_url,
            is_enabled=entry.enabled and entry.is_enabled,
            source="builtin" if entry.id in BUILTIN_TASK_IDS else "default",
        )

    def _trigger(self, where: list[str | int], entry: DefaultJobEntry, timezone: str) -> dict[str, Any]:
        if entry.trigger_type not in TRIGGER_TYPES:
            raise self._refused([*where, "trigger_type"], entry.trigger_type, ", ".join(TRIGGER_TYPES))
        params = {name: _as_text(value) for name, value in entry.trigger_params.items()}
        for name, value in params.items():
            if name not in TRIGGER_FIELDS or name == "trigger_type":
                accepted = ", ".join(sorted(TRIGGER_FIELDS - {"trigger_type"}))
                raise self._refused([*where, "trigger_params", name], value, accepted)
        try:
            parsed = parse_trigger(
                {**params, "trigger_type": entry.trigger_type},
                default_timezone=timezone,
                misfire_grace_s=entry.misfire_grace_time,
                allow_past=True,
            )
        except ValidationError as error:
            field = [error.field] if error.field in params else []
            accepted = error.accepted if isinstance(error.accepted, str) else error.message
            raise self._refused(
                [*where, "trigger_params", *field], error.value, english(accepted, error.params)
            ) from error
        for message, values in parsed.warnings:
            line = self._line([*where, "trigger_params"])
            logger.warning("%s, line %s: job %s: %s", self._path, line, entry.id, english(message, values))
        return parsed.spec

    def _kwargs(self, where: list[str | int], entry: DefaultJobEntry, task: str, tasks: TaskRegistry) -> dict[str, Any]:
        for name, value in entry.kwargs.items():
            try:
                json.dumps(storable({name: value}))
            except (TypeError, ValueError, RecursionError) as error:
                raise self._refused([*where, "kwargs", name], value, "a value that JSON can hold") from error
        try:
            return tasks.check_kwargs(task, entry.kwargs)
        except ValidationError as error:
            line = self._line([*where, "kwargs" if entry.kwargs else "id"])
            reason = english(error.message, error.params)
            logger.error("%s, line %s: job %s will fail: %s", self._path, line, entry.id, reason)
            return dict(entry.kwargs)

    def _refused(self, where: Sequence[str | int], value: Any, accepted: str) -> DefaultJobsError:
        field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).lstrip(".")
        held = "is missing" if value is None else f"holds {shown_value(value)!r}"
        return self._error(self._line(where), field, f"{held}; accepted: {accepted}")

    def _error(self, line: int, field: str, reason: str) -> DefaultJobsError:
        return DefaultJobsError(": ".join(part for part in (f"{self._path}, line {line}", field, reason) if part))

    def _line(self, where: Sequence[str | int]) -> int:
        """The line of the deepest part of `where` that is there."""
        node, line = self._root, 1
        for step in where:
            found = _inside(node, step)
            if found is None:
                break
            mark, node = found
            line = mark.start_mark.line + 1
        return line


def _inside(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """Of a mapping the key and value of `step`, of a list the entry; None where there is no such thing."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _repeated_keys(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Keys that stand twice in their mapping: YAML would silently keep the last."""
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in visited:  # an alias may lead back
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        seen: set[str] = set()
        for key, value in node.value:
            nodes.append(value)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)


def _as_text(value: Any) -> Any:
    """YAML reads 2030-01-31 08:30:00 as a time; the trigger parser wants it as it was written."""
    return value.isoformat() if isinstance(value, date) else value
