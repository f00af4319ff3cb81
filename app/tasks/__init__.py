"""Tasks: registered Python functions that jobs name. The `task` decorator, typed parameters, the registry."""

from app.tasks.declaration import Parameter, Task, task
from app.tasks.registry import BUILTIN_TASK_IDS, LoadProblem, TaskRegistry

__all__ = ["BUILTIN_TASK_IDS", "LoadProblem", "Parameter", "Task", "TaskRegistry", "task"]
