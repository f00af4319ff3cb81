"""A backup of each kind, restored by the script into a stack of each shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from e2e.harness.oracle import STARTED
from e2e.harness.scripts import run_on
from e2e.harness.stack import Shape, Stack, running_stack
from e2e.test_restore import LOAD, SCRIPT, archive_of, begin_to_fire, definitions, hold_of, wait_for_fires

Archives = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """A backup of a SQLite and of a PostgreSQL stack, with the jobs that each holds."""
    found: Archives = {}
    shapes: tuple[tuple[str, Shape], ...] = (("sqlite", "prod"), ("postgres", "ha"))
    for kind, shape in shapes:
        with running_stack(tmp_path_factory, shape=shape) as stack:
            begin_to_fire(stack)
            stack.bearer().create_job(f"of_{kind}", "oracle_fire", {"trigger_type": "interval", "days": 1})
            file = tmp_path_factory.mktemp(kind) / "backup.tar"
            found[kind] = archive_of(stack, file), definitions(stack)
    return found


@pytest.mark.faults_long
@pytest.mark.parametrize("shape", ["prod", "split", "ha"])
def test_each_kind_into_a_shape(archives: Archives, tmp_path_factory: pytest.TempPathFactory, shape: Shape) -> None:
    with running_stack(tmp_path_factory, shape=shape) as stack:
        begin_to_fire(stack)
        for archive, wanted in archives.values():
            run_on(stack, SCRIPT, str(archive), "--yes", "--catch-up=run-latest")
            assert definitions(stack) == wanted
            assert not hold_of(stack)
            wait_for_fires(stack, 2 * len(LOAD))
            assert_nothing_twice(stack)
        run_on(stack, SCRIPT, "--undo", "--yes", "--catch-up=skip")
        first, _ = archives.values()
        assert definitions(stack) == first[1]
        wait_for_fires(stack, 2 * len(LOAD))
        assert_nothing_twice(stack)


def assert_nothing_twice(stack: Stack) -> None:
    """Every start of this stack is on record, and no moment was started twice."""
    client = stack.bearer()
    starts = [start for start in stack.starts() if start.kind == "schedule" and start.job_id in LOAD]
    moments = [(start.job_id, start.scheduled_for) for start in starts]
    assert len(set(moments)) == len(moments), "a fire was started twice"
    outcomes = {row["run_id"]: row["outcome"] for job_id in LOAD for row in client.history(job_id)}
    assert {outcomes.get(start.run_id) for start in starts} <= STARTED, "a start is not on record"
