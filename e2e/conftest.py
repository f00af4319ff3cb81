"""The stacks that the end-to-end tests share, and the evidence that a failing one leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.harness.client import Client
from e2e.harness.postgres_server import PostgresServer, postgres_server
from e2e.harness.stack import Stack, running_stack

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The hook sees the whole session's items, also those of tests/unit.
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack that most tests share. Leave it as you found it: healthy, and without your jobs."""
    with running_stack(tmp_path_factory) as shared:
        yield shared


@pytest.fixture
def private_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Make a started stack of the test's own: `private_stack(shape="ha", scale={"web": 1}, WEB_CONCURRENCY="4")`."""
    with ExitStack() as made:
        yield lambda **options: made.enter_context(running_stack(tmp_path_factory, **options))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the file's own."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def api(stack: Stack) -> Client:
    """The shared stack as a script sees it."""
    return stack.bearer()


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Client:
    """The shared stack as the admin sees it. One login a session: the login is rate-limited."""
    return stack.admin()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.path.is_relative_to(HERE):
        since = time.time() - (call.stop - call.start) - 5
        for one in Stack.alive:
            report.sections.extend(one.evidence(since))
    return report
