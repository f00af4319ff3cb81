"""One stack for the faults of the one-container shape, under probe jobs from the first fault to the last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from e2e.harness.overlay import overlaid_stack
from e2e.harness.probes import Probes, judged_probes
from e2e.harness.stack import ROOT, Stack

#: Long enough for the runs of the test of a killed master to end, and short enough to wait for.
DRAIN_S = 6
#: The task modules lie where a test can take one away.
OWN_TASKS = """
services:
  whalefall:
    environment:
      TASKS_DIR: /oracle/tasks
"""
VANISHING = '''"""A task whose module a test takes away."""

from app.tasks import task


@task("vanishing", description="Does nothing")
def vanishing():
    pass
'''


def copy_tasks(stack: Stack) -> None:
    tasks = stack.oracle_folder / "tasks"
    shutil.copytree(ROOT / "e2e" / "tasks", tasks, ignore=shutil.ignore_patterns("__pycache__"))
    (tasks / "vanishing.py").write_text(VANISHING)


@pytest.fixture(scope="package")
def one_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack that the faults share. Leave it as you found it: healthy, and without your jobs."""
    folder = tmp_path_factory.mktemp("one")
    settings = {"DRAIN_SECONDS": f"{DRAIN_S}"}
    with overlaid_stack(folder, "one", OWN_TASKS, settings, prepare=copy_tasks) as shared:
        yield shared


@pytest.fixture(scope="package")
def probes(one_stack: Stack) -> Iterator[Probes]:
    with judged_probes(one_stack) as running:
        yield running
