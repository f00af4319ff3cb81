"""Backups are taken while jobs fire, and opened again: each is whole, and tells what really happened."""

from __future__ import annotations

import json
from typing import Any

import pytest

from e2e.harness.oracle import SEEN_OUTSIDE, judge_backup, parse_moment
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack

#: Runs in the container: FOLDER; what a backup holds, opened as a restored store would be.
REOPEN = """
import json, shutil, sqlite3, sys, tempfile
with tempfile.TemporaryDirectory() as folder:
    shutil.copy(f"{sys.argv[1]}/scheduler.db", folder)
    connection = sqlite3.connect(f"{folder}/scheduler.db")
    connection.execute("PRAGMA journal_mode=WAL")
    print(json.dumps({
        "integrity": connection.execute("PRAGMA integrity_check").fetchone()[0],
        "runs": dict(connection.execute("SELECT run_id, outcome FROM runs WHERE task LIKE 'oracle%'")),
    }))
"""


def back_up(stack: Stack) -> dict[str, Any]:
    """The manifest of a new backup; older ones go."""
    command = "flask jobs backup --json --keep 1 2> /dev/null"  # without its log
    made: dict[str, Any] = json.loads(stack.execute("sh", "-c", command))
    return made


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.faults_long)])
def test_every_restored_claim_is_in_the_oracle(one_stack: Stack, probes: Probes, times: int) -> None:
    restored = 0
    with probes.watch("backup under writes", f"{times} times, each opened again", limit="integrity ok") as watch:
        watch.strike()
        for number in range(times):
            manifest = back_up(one_stack)
            opened = json.loads(one_stack.execute("python3", "-I", "-c", REOPEN, manifest["path"]))
            assert opened["integrity"] == "ok", f"backup {number}: {opened['integrity']}"
            taken_at = parse_moment(manifest["created_at"])
            assert judge_backup(opened["runs"], taken_at, one_stack.starts()) == [], f"backup {number}"
            restored += sum(outcome in SEEN_OUTSIDE for outcome in opened["runs"].values())
    watch.check()
    assert restored, "the backups were empty"
    print(f"{times} backups, {restored} ended runs in them, all of them in the outside log")
