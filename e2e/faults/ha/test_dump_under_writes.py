"""Dumps of PostgreSQL are taken while jobs fire, and read again: each is whole, and tells what really happened."""

from __future__ import annotations

import json
from typing import Any

import pytest

from e2e.harness.faults import SCHEDULER_SERVICE
from e2e.harness.oracle import SEEN_OUTSIDE, judge_backup, parse_moment
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack

#: Runs in the container: FOLDER; the runs of the oracle's tasks that a backup holds, read as a restore reads them.
REOPEN = """
import json, pathlib, sys
from app.services.operations.backup.postgres_dump import read_dump
found = {}
for table in read_dump(pathlib.Path(sys.argv[1]) / "jobstore.dump"):
    if table.name == "runs":
        for cells in table.rows:
            row = dict(zip(table.columns, cells))
            if row["task"].startswith("oracle"):
                found[row["run_id"]] = row["outcome"]
print(json.dumps(found))
"""


def back_up(stack: Stack) -> dict[str, Any]:
    """The manifest of a new backup, verified; older ones go."""
    command = "flask jobs verify --json $(flask jobs backup --keep 1 2> /dev/null) 2> /dev/null"  # without their logs
    container = stack.container(SCHEDULER_SERVICE)
    made: dict[str, Any] = json.loads(stack.execute("sh", "-c", command, container=container))
    return made


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [3, pytest.param(100, marks=pytest.mark.faults_long)])
def test_every_dumped_claim_is_in_the_oracle(ha_stack: Stack, probes: Probes, times: int) -> None:
    dumped = 0
    with probes.watch("dump under writes", f"{times} times, each read again", limit="every row there") as watch:
        watch.strike()
        for number in range(times):
            manifest = back_up(ha_stack)
            runs: dict[str, str] = json.loads(
                ha_stack.execute(
                    *("python3", "-c", REOPEN, manifest["path"]), container=ha_stack.container(SCHEDULER_SERVICE)
                )
            )
            taken_at = parse_moment(manifest["created_at"])
            assert judge_backup(runs, taken_at, ha_stack.starts()) == [], f"backup {number}"
            dumped += sum(outcome in SEEN_OUTSIDE for outcome in runs.values())
    watch.check()
    assert dumped, "the backups were empty"
    print(f"{times} backups, {dumped} ended runs in them, all of them in the outside log")
