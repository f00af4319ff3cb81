"""One stack for the quick faults: two schedulers on PostgreSQL, under probe jobs from the first fault to the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docker.models.containers import Container

from e2e.harness.faults import SCHEDULER_SERVICE, build_tools, wait_until_node
from e2e.harness.probes import Probes, judged_probes
from e2e.harness.stack import Stack, running_stack


@pytest.fixture(scope="package")
def ha_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack that the faults share. Leave it as you found it: two schedulers, healthy."""
    build_tools()
    with running_stack(tmp_path_factory, shape="ha", scale={"scheduler": 2, "web": 1}) as shared:
        yield shared


@pytest.fixture(scope="package")
def probes(ha_stack: Stack) -> Iterator[Probes]:
    with judged_probes(ha_stack) as running:
        yield running


@pytest.fixture
def schedulers(ha_stack: Stack) -> list[Container]:
    """The two schedulers, both running as nodes."""
    found = ha_stack.containers_of(SCHEDULER_SERVICE)
    assert len(found) == 2
    for container in found:
        wait_until_node(ha_stack, container)
    return found
