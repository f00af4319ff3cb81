"""How the tests share one machine, when several workers run them at a time (scripts/test.sh).

Tests that share a stack go to one worker, one file after the other; those that judge a pace come last, and nothing else
runs meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# How long an example takes says nothing of the code where others use the machine too.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

#: Folders whose files share a stack.
SHARING = ("e2e/faults/ha", "e2e/faults/one")
#: Files that judge a pace; and the browser's, whose connections end when networks come and go with others' stacks.
ALONE = (
    "e2e/faults/ha/test_clock_stepped.py",
    "e2e/faults/ha/test_database_down.py",
    "e2e/faults/ha/test_scheduler_killed.py",
    "e2e/test_pages.py",
    "e2e/test_pages_do_not_stall.py",
)


def group_of(nodeid: str) -> str:
    """What a test must be run together with, in one worker."""
    path = nodeid.partition("::")[0]
    if path in ALONE:
        return "alone"
    return next((folder for folder in SHARING if path.startswith(f"{folder}/")), path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_is_alone)  # stable: the order of the files stays


def _is_alone(item: pytest.Item) -> bool:
    return group_of(item.nodeid) == "alone"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only where several workers are wanted

    class InGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return InGroups(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return (yield)
    with _machine(Path(tempfile.gettempdir()) / f"whalefall-tests-{run}", alone=_is_alone(item)):
        return (yield)


@contextmanager
def _machine(lock: Path, *, alone: bool) -> Iterator[None]:
    """Takes the machine, shared with the other workers or alone. Whoever wants it alone keeps newcomers out."""
    with lock.with_suffix(".door").open("w") as door, lock.open("w") as inside:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(door, fcntl.LOCK_UN)
        yield
