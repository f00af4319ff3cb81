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
    SchedulerDashboard,
)

ALARMS_COUNTED = 200
ALARMS_SHOWN = 10
ACTIVE_SHOWN = 15
JOBS_SHOWN = 10
FIRES_DRAWN = 300

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
    live_nodes: int
    active: list[RunView]
    alarms: list[RunView]
    late_before: datetime
    due: list[SchedulerJobListItem]
    nodes: list[NodeView]
    task_problems: list[dict[str, str]]


def board_of(state: SchedulerDashboard) -> Board:
    """The board of one reading of the store."""
    status = state.status
    late_before = status.at - OVERDUE_AFTER
    waiting = [run for run in state.running if run.outcome == "pending" and run.scheduled_for < late_before]
    late_ids = {job.id for job in state.late}
    due = [*state.late, *(job for job in state.upcoming if job.id not in late_ids)]
    return Board(
        running=status.queue.running,
        pending=status.queue.pending,
        failed=sum(run.outcome in _FAILURES for run in state.alarms),
        missed=sum(run.count for run in state.alarms if run.outcome not in _FAILURES),
        late=len(state.late) + len(waiting),
        live_nodes=sum(node.is_alive for node in status.nodes),
        active=state.running[:ACTIVE_SHOWN],
        alarms=state.alarms[:ALARMS_SHOWN],
        late_before=late_before,
        due=due[:JOBS_SHOWN],
        nodes=sorted(status.nodes, key=lambda node: (not node.is_alive, -node.started_at.timestamp())),
        task_problems=status.task_problems,
    )


def node_health(node: NodeView) -> NodeHealth:
    """How a node is doing, in one word."""
    if node.is_alive:
        return "stopping" if node.state == "stopping" else "working"
    return "stopped" if node.state in ("stopped", "dead") else "silent"
