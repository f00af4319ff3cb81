"""The tasks that this process knows: built-in ones, and drop-in modules from TASKS_DIR."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from app.errors import _N, ValidationError
from app.tasks.declaration import DECLARED_TASKS, Task

BUILTIN_TASK_IDS = frozenset(
    {
        "backup_jobstore",
        "calculate_database_size_aggregations",
        "collect_database_sizes",
        "purge_run_history",
        "sync_accounts",
    }
)
"""The tasks, and the default jobs of the same ids, that the product brings itself."""

DROP_IN_PACKAGE = "dropin_tasks"
"""Package of the drop-in modules: `from dropin_tasks._shared import x` reaches a neighbour's file."""

_BUILTIN_PACKAGE = "app.tasks.builtin"


@dataclass(frozen=True)
class LoadProblem:
    """A drop-in module of which something could not be used. module: its file's name; error: one line."""

    module: str
    error: str


class TaskRegistry:
    """Tasks by name. Filled at start, only read afterwards."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._problems: list[LoadProblem] = []

    @property
    def problems(self) -> tuple[LoadProblem, ...]:
        """What could not be loaded from any folder so far."""
        return tuple(self._problems)

    def get(self, name: str) -> Task | None:
        """The task `name`, or None when this process does not know it."""
        return self._tasks.get(name)

    def all(self) -> list[Task]:
        """Every task, sorted by name."""
        return [self._tasks[name] for name in sorted(self._tasks)]

    def describe(self) -> list[dict[str, Any]]:
        """Every task for the API and forms, sorted by name."""
        return [task.describe() for task in self.all()]

    def check_kwargs(self, task: Task | str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """`kwargs` checked against the task's parameters and coerced, in the JSON form that a job stores.

        ValidationError: field `task` for an unknown task, `kwargs.<name>` for a keyword that does not fit.
        """
        known = self._tasks.get(task) if isinstance(task, str) else task
        if known is None:
            raise ValidationError(
                _N("任务函数 %(task)s 不存在"),
                field="task",
                value=task,
                accepted=sorted(self._tasks),
                params={"task": task},
            )
        return known.stored_kwargs(kwargs)

    def load_builtin(self) -> None:
        """Register the built-in tasks. They are part of the product: an error in one of them is raised."""
        package = importlib.import_module(_BUILTIN_PACKAGE)
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{_BUILTIN_PACKAGE}.{found.name}")
            for task in _declared(module):
                self._tasks[task.name] = task

    def load_folder(self, folder: Path) -> list[LoadProblem]:
        """Register the tasks of every `*.py` in `folder`, in the order of their names.

        Files whose name begins with `_` or `.` are left to the others to import. A module that fails is
        reported, by name and with its error, and stops nothing. A name that is taken stays with whoever has
        it: a built-in task, or the module whose name sorts first. A missing folder holds no tasks.
        Returns the problems of this folder; they are kept in `problems` too.
        """
        problems: list[LoadProblem] = []
        _open_package(folder)
        try:
            paths = sorted(folder.iterdir())
        except FileNotFoundError:
            paths = []
        except OSError as error:
            paths = []
            problems.append(LoadProblem(str(folder), f"the folder cannot be read: {error.strerror or error}"))
        for path in paths:
            if path.suffix == ".py" and not path.name.startswith(("_", ".")) and not path.is_dir():
                problems.extend(self._load_file(path))
        self._problems.extend(problems)
        return problems

    def _load_file(self, path: Path) -> list[LoadProblem]:
        try:
            module = _import_file(path)
        except (Exception, SystemExit) as error:  # whatever its code does, it must not stop the start
            return [LoadProblem(path.name, _one_line(error, path))]
        declared = _declared(module)
        if not declared:
            hint = "declares no task; if other modules only import it, let its name begin with an underscore"
            return [LoadProblem(path.name, hint)]
        problems = []
        for task in declared:
            reason = self._why_refused(task)
            if reason is None:
                self._tasks[task.name] = task
            else:
                problems.append(LoadProblem(path.name, reason))
        return problems

    def _why_refused(self, task: Task) -> str | None:
        if task.name in BUILTIN_TASK_IDS:
            return f"the name {task.name!r} belongs to a built-in task"
        holder = self._tasks.get(task.name)
        if holder is not None:
            return f"the name {task.name!r} is already taken by {holder.func_ref}"
        return None


def _declared(module: ModuleType) -> list[Task]:
    return list(vars(module).get(DECLARED_TASKS, ()))


def _open_package(folder: Path) -> None:
    package = ModuleType(DROP_IN_PACKAGE, "Drop-in task modules of TASKS_DIR.")
    package.__path__ = [str(folder)]
    for name in [name for name in sys.modules if name.startswith(f"{DROP_IN_PACKAGE}.")]:
        del sys.modules[name]  # another folder's module of the same name
    sys.modules[DROP_IN_PACKAGE] = package
    importlib.invalidate_caches()


def _import_file(path: Path) -> ModuleType:
    name = f"{DROP_IN_PACKAGE}.{path.stem}"
    if name in sys.modules:  # a neighbour has imported it already
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _one_line(error: BaseException, path: Path) -> str:
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return said  # names its line itself
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{said} (line {lines[-1]})" if lines else said
