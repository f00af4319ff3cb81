"""scripts/doctor.sh asked about a stack: its findings by their ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from e2e.harness.scripts import Outcome, environment_of, run_script
from e2e.harness.stack import ROOT, Stack
from e2e.harness.waiting import wait_until

SCRIPT = "doctor.sh"
FOUND = 3
#: What other stacks of a test session, a container that has just begun, or a machine that is nearly full may add at any
#: time.
ALWAYS_POSSIBLE = frozenset({"other-stack", "container-starting", "host-disk-low"})

Findings = dict[str, dict[str, Any]]


def doctor(stack: Stack, *arguments: str, **environment: str) -> Outcome:
    return run_script(SCRIPT, *arguments, environment=environment_of(stack) | environment)


def found_by(outcome: Outcome, *, but: Collection[str] = ALWAYS_POSSIBLE) -> Findings:
    """The findings by their ids, `but` for those that say nothing of the stack. Each is complete, and the exit code
    fits them."""
    assert outcome.code in (0, FOUND), outcome
    (line,) = outcome.stdout.splitlines()
    found = json.loads(line)["findings"]
    worse = [finding for finding in found if finding["severity"] != "note"]
    assert (outcome.code == FOUND) == bool(worse), outcome
    for finding in found:
        assert set(finding) == {"id", "severity", "what", "means", "command", "runbook"}
        assert all(finding.values()), finding
        assert (ROOT / finding["runbook"]).is_file(), finding
    return {finding["id"]: finding for finding in found if finding["id"] not in but}


def findings(stack: Stack, **environment: str) -> Findings:
    return found_by(doctor(stack, "--json", **environment))


def wait_until_found(stack: Stack, finding: str, *, within: float = 30) -> dict[str, Any]:
    """The finding, once the doctor tells of it."""
    return wait_until(f"{finding} to be found", lambda: findings(stack), _holds(finding), within=within)[finding]


def wait_until_gone(stack: Stack, finding: str, *, within: float = 30) -> Findings:
    """What is still found, once the doctor no longer tells of that finding."""
    holds = _holds(finding)
    return wait_until(f"{finding} to go", lambda: findings(stack), lambda found: not holds(found), within=within)


def _holds(finding: str) -> Callable[[Findings], bool]:
    return lambda found: finding in found
