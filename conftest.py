"""How the tests share one machine, when several workers run them at a time (scripts/test.sh).

Tests that share a stack go to one worker, one file after the other; tests that judge a pace (marker `alone`) come last,
and nothing else runs meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
#: Folders whose files share a stack.
SHARING = ("e2e/faults/ha", "e2e/faults/one")
ALONE = "alone"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_is_alone)  # stable: the order of the files stays
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker(ALONE) is not None


def _group(item: pytest.Item) -> str:
    if _is_alone(item):
        return ALONE
    path = item.path.relative_to(ROOT).as_posix()
    return next((folder for folder in SHARING if path.startswith(f"{folder}/")), path)


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
    with (lock.with_suffix(".door")).open("w") as door, lock.open("w") as inside:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(door, fcntl.LOCK_UN)
        yield
