"""The dashboard's figures, taken from the scheduler's state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from app.services.scheduler.job_views import SchedulerJobListItem
from app.services.scheduler.run_views import RunView
from app.services.scheduler.scheduler_status_read_service import (
    OVERDUE_AFTER,
    NodeView,
    ProblemView,
    SchedulerDashboard,
)

ALARMS_COUNTED = 100
ALARMS_SHOWN = 10
ACTIVE_SHOWN = 15
JOBS_SHOWN = 10
FIRES_DRAWN = 300
STOPPED_NODES_SHOWN = 2
RUNS_OF_NODE_SHOWN = 4

NodeHealth = Literal["working", "stopping", "silent", "stopped"]

_FAILURES = ("failed", "lost")


@dataclass(frozen=True)
class Board:
    """What the dashboard tells beside its timeline. Counts of alarms are exact up to ALARMS_COUNTED."""

    running: int
    pending: int
    failed: int
    missed: int
    late: int
    schedulers: int
    workers: int
    active: list[RunView]
    alarms: list[RunView]
    late_before: datetime
    due: list[SchedulerJobListItem]
    nodes: list[NodeView]
    problems: list[ProblemView]
    task_problems: list[dict[str, str]]


def board_of(state: SchedulerDashboard) -> Board:
    """The board of one reading of the store."""
    late_before = state.at - OVERDUE_AFTER
    waiting = [run for run in state.running if run.outcome == "pending" and due_moment(run) < late_before]
    late_ids = {job.id for job in state.late}
    due = [*state.late, *(job for job in state.upcoming if job.id not in late_ids)]
    return Board(
        running=state.queue.running,
        pending=state.queue.pending,
        failed=sum(run.outcome in _FAILURES for run in state.alarms),
        missed=sum(run.count for run in state.alarms if run.outcome not in _FAILURES),
        late=len(state.late) + len(waiting),
        schedulers=sum(node.is_alive and node.kind == "scheduler" for node in state.nodes),
        workers=sum(node.is_alive and node.kind == "worker" for node in state.nodes),
        active=state.running[:ACTIVE_SHOWN],
        alarms=state.alarms[:ALARMS_SHOWN],
        late_before=late_before,
        due=due[:JOBS_SHOWN],
        nodes=_nodes_shown(state.nodes),
        problems=state.problems,
        task_problems=state.task_problems,
    )


def due_moment(run: RunView) -> datetime:
    """When a run may start: a later attempt waits before it does."""
    return run.not_before or run.scheduled_for


def _nodes_shown(nodes: list[NodeView]) -> list[NodeView]:
    """The living first, then the silent; of those that stopped in order only the newest."""
    rank = {"working": 0, "stopping": 1, "silent": 2, "stopped": 3}
    ordered = sorted(nodes, key=lambda node: (rank[node_health(node)], node.kind, -node.started_at.timestamp()))
    stopped = [node for node in ordered if node_health(node) == "stopped"]
    return [node for node in ordered if node_health(node) != "stopped"] + stopped[:STOPPED_NODES_SHOWN]


@dataclass(frozen=True)
class NodeWork:
    """What a node said it is running: some of its runs as (run id, job id), how many more, and its free places."""

    runs: list[tuple[str, str]]
    more: int
    free: int | None


def node_work(node: NodeView) -> NodeWork:
    """What a node is doing, from its last heartbeat; of a release that tells less, less."""
    running = node.stats.get("running") or []
    runs = [(run["run_id"], run["job_id"]) for run in running[:RUNS_OF_NODE_SHOWN]]
    free = node.stats.get("free")
    return NodeWork(
        runs=runs,
        more=max(node.stats.get("running_count", len(running)) - len(runs), 0),
        free=sum(free.values()) if isinstance(free, dict) else None,
    )


def node_health(node: NodeView) -> NodeHealth:
    """How a node is doing, in one word."""
    if node.is_alive:
        return "stopping" if node.state == "stopping" else "working"
    return "stopped" if node.state in ("stopped", "dead") else "silent"
