"""How the schedulers are doing, and what an operator looks at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, get_args
from zoneinfo import ZoneInfo

from pydantic import BaseModel, Field

from app.errors import _N
from app.i18n import english
from app.ledger import Node
from app.ledger.nodes import LIVING, NodeKind
from app.repositories.jobs_repository import JobsRepository
from app.repositories.runs_repository import RunsRepository
from app.runtime import Runtime, current_runtime
from app.services.health_service import HEARTBEAT_FRESH_S
from app.services.scheduler.cluster_problems import cluster_problems
from app.services.scheduler.job_views import SchedulerJobListItem, job_list_item
from app.services.scheduler.run_views import RunView, run_view
from app.services.scheduler.store_failures import store_failures

WINDOW = timedelta(hours=1)
"""What lateness and counters look back on."""
LATENESS_SAMPLE = 1000
"""Lateness is told of at most so many of the newest runs, so that a busy hour costs no more than a quiet one."""
OVERDUE_AFTER = timedelta(seconds=3)
"""A due job that nobody has claimed for so long is called late: a scheduler looks once a second."""
ALARMS_SINCE = timedelta(days=1)


class NodeView(BaseModel):
    """A scheduler process, or a worker of the fleet. `stats` is what it last told of itself: what it is running, how
    many places it has free, how far its clock is from the database's."""

    node_id: str
    kind: NodeKind
    name: str
    version: str
    state: str
    is_alive: bool
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_age_s: float
    stats: dict[str, Any]


class QueueView(BaseModel):
    """Runs that were claimed and have not ended. Ages are seconds since the oldest was due."""

    pending: int
    running: int
    oldest_pending_age_s: float | None
    oldest_running_age_s: float | None


class LatenessView(BaseModel):
    """Milliseconds from due to start of the newest scheduled runs in the window; null without any."""

    window_s: int
    sample: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class CountersView(BaseModel):
    """Moments by outcome in the window, and jobs as they stand."""

    window_s: int
    outcomes: dict[str, int]
    jobs: dict[str, int] = Field(description="total, scheduled, paused, disabled, with_problem, deleted")
    nodes: dict[str, int] = Field(description="Living ones: scheduler, worker")


class ProblemView(BaseModel):
    """Something that an operator should mend. `code` is for programs, `message` for people, `nodes` are names."""

    code: str = Field(description="held, versions_differ, code_differs, clock_off, task_unknown, no_worker")
    message: str
    nodes: list[str]


class SchedulerStatus(BaseModel):
    """All schedulers of this store at one moment."""

    at: datetime
    timezone: str
    nodes: list[NodeView]
    queue: QueueView
    lateness: LatenessView
    counters: CountersView
    problems: list[ProblemView]
    task_problems: list[dict[str, str]] = Field(description="Drop-in modules that this process could not use")


class SchedulerDashboard(BaseModel):
    """What runs, failed, is late, comes next, and the last fires. Runs are newest first.

    It leaves out what has to be counted over the whole window: the page is asked for all the time.
    """

    at: datetime
    nodes: list[NodeView]
    queue: QueueView
    problems: list[ProblemView]
    task_problems: list[dict[str, str]]
    running: list[RunView] = Field(description="Pending ones too")
    alarms: list[RunView] = Field(description="Of the last day")
    late: list[SchedulerJobListItem]
    upcoming: list[SchedulerJobListItem]
    recent: list[RunView]


class SchedulerStatusReadService:
    """Reads the state of all schedulers from the store, in whatever process."""

    def __init__(self, runtime: Runtime | None = None, *, language: str = "zh") -> None:
        self._runtime = runtime or current_runtime()
        self._language = language  # that triggers and problems are described in: zh or en
        self._jobs = JobsRepository(self._runtime.jobstore)
        self._runs = RunsRepository(self._runtime.jobstore)

    def status(self) -> SchedulerStatus:
        """Nodes, queue, lateness, counters; ServiceUnavailable when the store is out of reach."""
        with store_failures(_N("获取调度器状态失败")):
            return self._status(self._runtime.ledger.now())

    def dashboard(
        self, *, recent: int = 300, running: int = 50, alarms: int = 20, upcoming: int = 10, late: int = 20
    ) -> SchedulerDashboard:
        """The rows that an operator looks at first; the numbers are the longest lists."""
        with store_failures(_N("获取调度器状态失败")):
            now = self._runtime.ledger.now()  # the store's clock: this process's own may be the one that is wrong
            nodes = self._runtime.ledger.nodes()
            problems = self._problems(nodes, now)
            queue = _queue(self._runs.queue(), now)
            active = self._runs.active(limit=running)
            alarming = self._runs.alarming(now - ALARMS_SINCE, limit=alarms)
            newest = self._runs.newest(limit=recent)
            overdue = self._jobs.overdue(now - OVERDUE_AFTER, limit=late)
            following = self._jobs.upcoming(limit=upcoming)
        zone = self._zone
        return SchedulerDashboard(
            at=now.astimezone(zone),
            nodes=[self._node(node, now) for node in nodes],
            queue=queue,
            problems=problems,
            task_problems=self._task_problems(),
            running=[run_view(run, zone) for run in active],
            alarms=[run_view(run, zone) for run in alarming],
            late=[job_list_item(reading, self._runtime, self._language) for reading in overdue],
            upcoming=[job_list_item(reading, self._runtime, self._language) for reading in following],
            recent=[run_view(run, zone) for run in newest],
        )

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self._runtime.settings.scheduler_timezone)

    def _status(self, now: datetime) -> SchedulerStatus:
        since = now - WINDOW
        window_s = int(WINDOW.total_seconds())
        nodes = self._runtime.ledger.nodes()
        return SchedulerStatus(
            at=now.astimezone(self._zone),
            timezone=self._runtime.settings.scheduler_timezone,
            nodes=[self._node(node, now) for node in nodes],
            queue=_queue(self._runs.queue(), now),
            lateness=_lateness(self._runs.lateness(since, limit=LATENESS_SAMPLE), window_s),
            counters=CountersView(
                window_s=window_s,
                outcomes=self._runs.outcome_counts(since),
                jobs=asdict(self._jobs.counts()),
                nodes={
                    kind: sum(node.kind == kind and _is_alive(node, now) for node in nodes)
                    for kind in get_args(NodeKind)
                },
            ),
            problems=self._problems(nodes, now),
            task_problems=self._task_problems(),
        )

    def _problems(self, nodes: Sequence[Node], now: datetime) -> list[ProblemView]:
        found = cluster_problems(
            [node for node in nodes if _is_alive(node, now)],
            hold=self._runtime.ledger.held(),
            tasks_in_use=self._jobs.tasks_in_use(),
            known_tasks={task.name for task in self._runtime.tasks.all()},
            me=self._runtime.settings.node_name,
        )
        return [
            ProblemView(
                code=problem.code,
                message=english(problem.message, problem.params)
                if self._language == "en"
                else problem.message % problem.params,
                nodes=list(problem.nodes),
            )
            for problem in found
        ]

    def _task_problems(self) -> list[dict[str, str]]:
        return [{"module": problem.module, "error": problem.error} for problem in self._runtime.tasks.problems]

    def _node(self, node: Node, now: datetime) -> NodeView:
        age = now - node.heartbeat_at
        return NodeView(
            node_id=node.node_id,
            kind=node.kind,
            name=node.name,
            version=node.version,
            state=node.state,
            is_alive=_is_alive(node, now),
            started_at=node.started_at.astimezone(self._zone),
            heartbeat_at=node.heartbeat_at.astimezone(self._zone),
            heartbeat_age_s=round(age.total_seconds(), 3),
            stats=dict(node.stats),
        )


def _is_alive(node: Node, now: datetime) -> bool:
    return node.state in LIVING and (now - node.heartbeat_at).total_seconds() <= HEARTBEAT_FRESH_S


def _queue(found: Mapping[str, tuple[int, datetime | None]], now: datetime) -> QueueView:
    def age(outcome: str) -> float | None:
        oldest = found.get(outcome, (0, None))[1]
        # Below zero: all of them are later attempts that wait on purpose.
        return None if oldest is None else max(round((now - oldest).total_seconds(), 3), 0.0)

    return QueueView(
        pending=found.get("pending", (0, None))[0],
        running=found.get("running", (0, None))[0],
        oldest_pending_age_s=age("pending"),
        oldest_running_age_s=age("running"),
    )


def _lateness(sample: Sequence[float], window_s: int) -> LatenessView:
    ordered = sorted(sample)

    def percentile(share: float) -> float | None:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None

    return LatenessView(
        window_s=window_s,
        sample=len(ordered),
        p50_ms=percentile(0.50),
        p95_ms=percentile(0.95),
        p99_ms=percentile(0.99),
        max_ms=percentile(1.0),
    )
