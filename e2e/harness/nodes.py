"""Scheduler processes as the ledger knows them: each start is a node of its own, whatever its container is called."""

from __future__ import annotations

from e2e.harness.client import SCHEDULER
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until


def running_nodes(stack: Stack) -> set[str]:
    """The ids of the running nodes; none while nobody answers."""
    answer = stack.bearer().get(f"{SCHEDULER}/status", timeout=5)
    nodes = answer.json()["data"]["nodes"] if answer.ok else []
    return {node["node_id"] for node in nodes if node["state"] == "running"}


def wait_for_new_node(stack: Stack, known: set[str], *, within: float = 60.0) -> None:
    """Wait until a node runs that is none of `known`.

    Readiness does not tell: a process whose master was killed answers it for a moment more.
    """
    wait_until("another scheduler process", lambda: running_nodes(stack) - known, within=within)
