"""APScheduler 3.11 on the ledger: the only file that knows its private methods.

Kept: triggers, jobs, executors, events and the job API. Replaced, because of what their source does (see
docs/architecture.md): the main loop, `_process_jobs`, the executors' submission, and the job store. REPLACED
and RELIED_ON name all that this file stands on; a test compares their source with what it was written for.
"""

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from apscheduler import events
from apscheduler.executors.pool import BasePoolExecutor, ThreadPoolExecutor
from apscheduler.job import Job as APSchedulerJob
from apscheduler.jobstores.base import BaseJobStore, ConflictingIdError, JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import (
    STATE_RUNNING,
    STATE_STOPPED,
    BaseScheduler,
    SchedulerNotRunningError,
)
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import Connection, Engine, func, select

from app.db.clock import from_us, now_us
from app.db.engines import LOOP_BUSY_TIMEOUT_S, create_engine_for, database_now_us, write_transaction
from app.db.jobstore_tables import jobs
from app.db.reach import store_name
from app.errors import NotFound, ValidationError
from app.ledger import capture, failpoints
from app.ledger.claim import JOBS_PER_LOOK, Claimed, claim, find_crowded, is_due, is_held
from app.ledger.dispatch import Dispatcher
from app.ledger.execution import (
    ContextFactory,
    Ending,
    RunnableTask,
    TaskResolver,
    execute,
    killed_ending,
    prepare_process,
    yield_to_others,
)
from app.ledger.fleet import Fleet
from app.ledger.jobs import Job, NewJob, job_from_row
from app.ledger.ledger import Ledger
from app.ledger.nodes import LockFile, Node, NodeState, beat, forget_gone_nodes, remove_lock_file
from app.ledger.one_store import lock_for
from app.ledger.record import cancellations, record_finishes, record_missed
from app.ledger.recover import Silence, find_suspects, hand_back, hand_over, own_pending, recover, release
from app.ledger.run_ids import new_run_id
from app.ledger.runs import Ticket, is_too_late
from app.ledger.stopping import StopReason, StopSignal
from app.ledger.watchdog import Watchdog
from app.triggers import CRON_FIELD_NAMES, build_trigger, known_timezone

logger = logging.getLogger(__name__)

REPLACED = (
    BlockingScheduler._main_loop,
    BaseScheduler._process_jobs,
    BackgroundScheduler.start,
    BackgroundScheduler.shutdown,
    BaseScheduler.pause_job,
    BaseScheduler.resume_job,
    BaseScheduler.remove_job,
)
RELIED_ON = (
    BaseScheduler.start,
    BaseScheduler.shutdown,
    BaseScheduler._dispatch_event,
    BaseScheduler._lookup_job,
    BaseScheduler._real_add_job,
    BaseScheduler.modify_job,
    APSchedulerJob.__setstate__,
    APSchedulerJob._modify,
    ThreadPoolExecutor.__init__,
    BasePoolExecutor.__init__,
    BasePoolExecutor.shutdown,
)

LOOK_S = 0.5
"""The loop looks at least this often, so that another process's edit is obeyed within a second."""
BEAT_S = 0.5
LONE_BEAT_S = 0.9
"""Between two heartbeats; a scheduler that sees no other writes fewer."""
LATEST_BEAT_S = 0.9
"""Well below the silence after which another node takes over what this one has not started."""
REAP_S = 0.4
"""With the time above and PENDING_AFTER_S: what a node claimed and left is started elsewhere within 3 s."""
FLEET_EXECUTOR = "celery"
_PURGE_NODES_S = 3600.0
_WITHHELD_S = 0.02
_COMPLAIN_S = 30.0
_STALLED_AFTER_S = 15.0
_READY_WITHIN_S = 30.0
"""A child of the executor `process` has so long to come up before the time limit of its run counts all the same."""
_RUNNING_SHOWN = 50


@dataclass(frozen=True, slots=True)
class LoopHealth:
    """How the loop is doing: seconds since its last turn and since it last reached the store."""

    last_turn_age_s: float
    last_store_age_s: float
    problem: str | None

    @property
    def alive(self) -> bool:
        """Whether the loop turns."""
        return self.last_turn_age_s < _STALLED_AFTER_S

    @property
    def ready(self) -> bool:
        """Whether the loop turns and reaches its store."""
        return self.alive and self.last_store_age_s < _STALLED_AFTER_S


class LedgerThreads(ThreadPoolExecutor):
    """The executor `default`: threads of this process."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers, pool_kwargs={"initializer": yield_to_others})
        self._signals: dict[str, StopSignal] = {}

    def submit_run(
        self, ticket: Ticket, run: Callable[[Ticket, StopSignal], Ending], end: Callable[[Ending], None]
    ) -> None:
        """Runs a started run in a thread; `end` takes how it ended. What raises does not run, now or later."""
        door = threading.Lock()
        stop = self._signals[ticket.run_id] = StopSignal()

        def work() -> None:
            if door.acquire(blocking=False):
                try:
                    ending = run(ticket, stop)
                finally:
                    self._signals.pop(ticket.run_id, None)
                end(ending)

        try:
            self._pool.submit(work)
        except RuntimeError:
            # No new thread could be had, yet the work is in the pool's queue already, for any thread that comes free.
            if door.acquire(blocking=False):
                self._signals.pop(ticket.run_id, None)
                raise

    def stop_run(self, ticket: Ticket, reason: StopReason) -> None:
        """Asks a run to stop; a thread cannot be made to."""
        stop = self._signals.get(ticket.run_id)
        if stop is not None:
            stop.request(reason)


class _Cell:
    """One place of the executor `process`: a child process for one run at a time, kept for the next.

    `prepare` is called in the child before its first run.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        # "spawn": a fork would copy the locks of this process's threads as they happen to stand.
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=partial(prepare_process, os.getpid()))
        self._ready_at = math.inf
        # Not in the initializer: one that raises breaks the pool, and the run could not say what was wrong.
        self.pool.submit(prepare).add_done_callback(self._note_ready)
        # Private, but the only way to a child that hangs before it could tell its process id.
        (self._child,) = self.pool._processes.values()
        self.handed_at = time.monotonic()
        self.killed_for: StopReason | None = None

    def _note_ready(self, ready: Future[object]) -> None:
        if not isinstance(ready.exception(), BrokenProcessPool):
            self._ready_at = time.monotonic()

    @property
    def came_up(self) -> bool:
        """Whether the child is, or was, ready for runs."""
        return self._ready_at < math.inf

    def seconds_left(self, limit_s: int) -> float:
        """How much longer the run in it may take, at least: its time counts from when the child can begin with it, at
        the latest from _READY_WITHIN_S after the hand-over."""
        begins = min(max(self.handed_at, self._ready_at), self.handed_at + _READY_WITHIN_S)
        # A child that is not ready may be so the next moment.
        return min(limit_s, begins + limit_s - time.monotonic())

    def kill(self) -> None:
        """Ends the child; the run in it is told of by its future. Returns at once, also while the child begins."""
        self._child.kill()


class LedgerProcesses(BasePoolExecutor):
    """The executor `process`: child processes, for tasks that would hold this one's interpreter lock, or that must be
    stopped whatever they do.

    A child is made for the first run that needs it. Each has a pool of its own, so that one that dies or is killed
    takes no other run with it.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        super().__init__(None)
        self._prepare = prepare
        self._idle: list[_Cell] = []
        self._busy: dict[str, _Cell] = {}
        self._changing = threading.Lock()

    def submit_run(self, ticket: Ticket, run: Callable[[Ticket], Ending], end: Callable[[Ending], None]) -> None:
        """Runs a started run in a child process; `run` must be picklable; `end` takes how it ended."""
        began = time.monotonic_ns()

        def done(future: Future[Ending]) -> None:
            error = future.exception()
            cell = self._release(ticket, error)
            duration = (time.monotonic_ns() - began) // 1000
            if error is None:
                end(future.result())
            elif not isinstance(error, BrokenProcessPool):
                end(Ending("failed", duration, f"{type(error).__name__}: {error}", ""))
            elif cell.killed_for is not None:
                end(killed_ending(ticket, cell.killed_for, duration, came_up=cell.came_up))
            else:
                end(Ending("lost", duration, None, "", "the process that ran it died"))

        self._submit(ticket, run).add_done_callback(done)

    def stop_run(self, ticket: Ticket, reason: StopReason) -> float | None:
        """Kills the child of a run; the soft limit is the child's own affair (app.ledger.stopping.soft_alarm). Of a
        time limit that is not over, because the child was not ready at once: after how many seconds to try again."""
        if reason == "soft":
            return None
        with self._changing:
            cell = self._busy.get(ticket.run_id)
            if cell is None:
                return None
            if reason == "hard" and ticket.time_limit is not None:
                left_s = cell.seconds_left(ticket.time_limit)
                if left_s > 0:
                    return left_s
            cell.killed_for = reason  # from here on no other run gets into this child
        cell.kill()
        return None

    def shutdown(self, wait: bool = True) -> None:
        """Ends the child processes; `wait` lets what runs in them end first."""
        with self._changing:
            cells = [*self._idle, *self._busy.values()]
        for cell in cells:
            cell.pool.shutdown(wait)

    def _submit(self, ticket: Ticket, run: Callable[[Ticket], Ending]) -> Future[Ending]:
        with self._changing:
            cell = self._idle.pop() if self._idle else _Cell(self._prepare)
        cell.handed_at = time.monotonic()
        try:
            future = cell.pool.submit(run, ticket)
        except BrokenProcessPool:  # it died while it was idle: the run never began, and a new child takes it
            cell = _Cell(self._prepare)
            future = cell.pool.submit(run, ticket)
        with self._changing:
            self._busy[ticket.run_id] = cell
        return future

    def _release(self, ticket: Ticket, error: BaseException | None) -> _Cell:
        with self._changing:
            cell = self._busy.pop(ticket.run_id)
            if error is None and cell.killed_for is None:
                self._idle.append(cell)
                return cell
        if not isinstance(error, BrokenProcessPool):
            # A broken pool ends by itself, and tells of it while it holds the lock that its shutdown() waits for (from
            # Python 3.12 on).
            cell.pool.shutdown(wait=False)
        return cell


class LedgerJobStore(BaseJobStore):
    """APScheduler's view of the ledger's jobs, for its job API; the loop does not use it."""

    def __init__(self, ledger: Ledger, resolve: TaskResolver) -> None:
        super().__init__()
        self._ledger, self._resolve = ledger, resolve

    def lookup_job(self, job_id: str) -> APSchedulerJob | None:
        """The job, None when there is none or it cannot be read."""
        job = self._ledger.get_job(job_id)
        return None if job is None or job.problem else self._as_apscheduler_job(job)

    def get_due_jobs(self, now: datetime) -> list[APSchedulerJob]:
        """The jobs whose next run time has come; only looks, claims nothing."""
        return self._select(jobs.c.next_run_time <= int(now.timestamp() * 1_000_000))

    def get_next_run_time(self) -> datetime | None:
        """The earliest next run time of all jobs, None when no job has one."""
        with self._ledger.engine.connect() as connection:
            earliest = connection.execute(select(func.min(jobs.c.next_run_time))).scalar_one()
        return None if earliest is None else from_us(earliest)

    def get_all_jobs(self) -> list[APSchedulerJob]:
        """Every job that can be read, by next run time, those without one last."""
        return self._select()

    def add_job(self, job: APSchedulerJob) -> None:
        """Adds a job whose function is a registered task's and has the task's name; ValueError for any other."""
        task = self._resolve(getattr(job.func, "__name__", ""))
        if task is None or task.function is not job.func or job.args:
            raise ValueError(
                f"job {job.id!r}: only the function of a registered task that has its name can be added here, "
                "with keyword arguments; the ledger's add_job takes any task by its name"
            )
        definition = NewJob(id=job.id, task=job.func.__name__, trigger=spec_of(job.trigger), **_settings(job))
        try:
            self._ledger.add_job(definition, by="apscheduler")
        except ValidationError as error:
            raise ConflictingIdError(job.id) from error

    def update_job(self, job: APSchedulerJob) -> None:
        """Takes over the settings and the trigger; the next run time follows from the trigger."""
        stored = self._ledger.get_job(job.id)
        if stored is None:
            raise JobLookupError(job.id)
        changes = {name: value for name, value in _settings(job).items() if getattr(stored, name) != value}
        if job.trigger is not build_trigger(stored.trigger):
            changes["trigger"] = spec_of(job.trigger)
        if changes:
            self._ledger.change_job(job.id, changes, by="apscheduler")

    def remove_job(self, job_id: str) -> None:
        """Deletes the job, restorably."""
        try:
            self._ledger.delete_job(job_id, by="apscheduler")
        except NotFound as error:
            raise JobLookupError(job_id) from error

    def remove_all_jobs(self) -> None:
        """Deletes every job, restorably."""
        for job in self.get_all_jobs():
            self.remove_job(job.id)

    def _select(self, *conditions: Any) -> list[APSchedulerJob]:
        query = select(jobs).where(jobs.c.is_active, jobs.c.problem.is_(None), *conditions)
        query = query.order_by(jobs.c.next_run_time.is_(None), jobs.c.next_run_time, jobs.c.id)
        with self._ledger.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [self._as_apscheduler_job(job_from_row(row)) for row in rows]

    def _as_apscheduler_job(self, job: Job) -> APSchedulerJob:
        task = self._resolve(job.task)
        view = APSchedulerJob.__new__(APSchedulerJob)
        view._scheduler, view._jobstore_alias = self._scheduler, self._alias
        for name in ("id", "name", "misfire_grace_time", "coalesce", "max_instances", "executor"):
            setattr(view, name, getattr(job, name))
        view.trigger = build_trigger(job.trigger)
        view.func = task.function if task is not None else unknown_task
        view.func_ref = task.func_ref if task is not None else f"{__name__}:unknown_task"
        view.args, view.kwargs = (), dict(job.kwargs)
        view.next_run_time = (
            None if job.next_run_time is None else job.next_run_time.astimezone(getattr(view.trigger, "timezone", None))
        )
        return view


def _settings(job: APSchedulerJob) -> dict[str, Any]:
    names = ("name", "misfire_grace_time", "coalesce", "max_instances", "executor")
    return {"kwargs": dict(job.kwargs), **{name: getattr(job, name) for name in names}}


def unknown_task(**_kwargs: Any) -> None:
    """Stands for a task that this process does not know."""
    raise LookupError("this task is not known to this process")


def spec_of(trigger: BaseTrigger) -> dict[str, Any]:
    """The spec (see app.triggers) of an APScheduler trigger; ValueError for a kind that a spec cannot hold."""
    if isinstance(trigger, DateTrigger):
        zone = str(trigger.run_date.tzinfo)  # a plain offset has no name to keep, and a date needs none
        zone = zone if known_timezone(zone) else "UTC"
        return {"type": "date", "run_date": trigger.run_date.isoformat(), "timezone": zone}
    if not isinstance(trigger, CronTrigger | IntervalTrigger):
        raise ValueError(f"a job's trigger is a cron, an interval or a date, not {type(trigger).__name__}")
    spec: dict[str, Any] = {"timezone": str(trigger.timezone)}
    if not known_timezone(spec["timezone"]):
        raise ValueError(f"a trigger needs a named time zone such as Asia/Shanghai, not {spec['timezone']}")
    if isinstance(trigger, CronTrigger):
        spec["type"] = "cron"
        spec |= {f.name: str(f) for f in trigger.fields if f.name in CRON_FIELD_NAMES and not f.is_default}
    else:
        spec |= {"type": "interval", "seconds": trigger.interval.total_seconds()}
    for name in ("start_date", "end_date"):
        if (moment := getattr(trigger, name)) is not None:
            spec[name] = moment.isoformat()
    if trigger.jitter:
        spec["jitter"] = trigger.jitter
    return spec


@dataclass(slots=True)
class _Clocks:
    """Moments of the monotonic clock at which the loop last did what it does from time to time."""

    turn: float = field(default_factory=time.monotonic)
    store: float = field(default_factory=time.monotonic)
    beat: float = float("-inf")
    reap: float = float("-inf")
    purge: float = float("-inf")
    complaint: float = float("-inf")


class LedgerScheduler(BackgroundScheduler):
    """APScheduler's BackgroundScheduler, with the ledger in the place of its claims, starts and job store.

    store_url: the job store; the loop has connections of its own, with shorter timeouts than a request's.
    resolve, context: name -> task, and what a task runs inside (the app's context).
    locks_dir: where the proof of life lies, on the volume that the nodes share; None where they share none.
    run_in_child: picklable, runs a ticket in a child process of the executor `process`; prepare_child: called in it
    before its first run.
    fleet: who carries runs of the executor `celery` to the workers; None where there are none.
    code: a fingerprint of this process's code, so that nodes that differ can be told.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        resolve: TaskResolver,
        context: ContextFactory,
        node_name: str,
        version: str,
        timezone: str,
        threads: int,
        processes: int,
        lost_after_s: float,
        locks_dir: Path | None,
        run_in_child: Callable[[Ticket], Ending],
        prepare_child: Callable[[], object] = os.getpid,
        fleet: Fleet | None = None,
        code: str = "",
    ) -> None:
        self._ledger = ledger
        self.node_id = new_run_id(now_us())
        self.node_name, self._version, self._code = node_name, version, code
        self._lost_after_s, self._locks_dir = lost_after_s, locks_dir
        self._resolve, self._context = resolve, context
        self._loop_engine: Engine = create_engine_for(ledger.engine.url, busy_timeout_s=LOOP_BUSY_TIMEOUT_S)
        self._store_lock = threading.Lock()
        self._clocks = _Clocks()
        self._silence = Silence()
        self._problem: str | None = None
        self._started_at = now_us()
        self._lock_file: LockFile | None = None
        self._node_state: NodeState = "running"
        self._adopt = True
        self._stopping = False
        self._awaited: int | None = None  # the moment that the loop sleeps towards
        self._peers: list[Node] = []
        self._clock_offset_us = 0  # of this machine's clock against the database's
        self._fleet, self._carry = fleet, False
        threads_executor = LedgerThreads(threads)
        processes_executor = LedgerProcesses(prepare_child)
        self._dispatcher = Dispatcher(
            node_id=self.node_id,
            node_name=node_name,
            lanes={
                "default": (
                    threads,
                    lambda ticket, end: threads_executor.submit_run(ticket, self._run, end),
                    threads_executor.stop_run,
                ),
                "process": (
                    processes,
                    lambda ticket, end: processes_executor.submit_run(ticket, run_in_child, end),
                    processes_executor.stop_run,
                ),
            },
            lane_of=self._lane_of,
            transaction=self._write,
            started=self._tell_started,
            ended=self._tell_ended,
            adopt=self._on_change,
            alerts=ledger.alerts,
        )
        self._watchdog = Watchdog(lambda: self._clocks.turn)
        super().__init__(
            timezone=timezone,
            jobstores={"default": LedgerJobStore(ledger, resolve)},
            executors={"default": threads_executor, "process": processes_executor},
        )

    # Life

    def start(self, paused: bool = False) -> None:
        """Starts the loop, the dispatcher and the watchdog; `paused` claims nothing until `resume()`."""
        if self._locks_dir is not None:
            store = store_name(self._ledger.engine.url, self._locks_dir.parent)
            self._lock_file = lock_for(self._locks_dir, self.node_id, store)
        capture.install()
        self._clocks.turn = time.monotonic()
        self._ledger.attach(self.node_id, self._on_change)
        self._dispatcher.start()
        super().start(paused)
        self._watchdog.start()

    def begin_stop(self) -> None:
        """Claims and starts nothing from now on. Only sets a flag: safe in a signal handler."""
        self._stopping = True

    def stop(self, drain_s: float) -> bool:
        """The orderly stop: claims nothing more, hands back what never started, waits up to `drain_s` seconds
        for what runs. What is not done by then is called lost. True when nothing was."""
        deadline = time.monotonic() + drain_s
        self.begin_stop()
        self._ledger.detach()
        self._node_state = "stopping"
        self._dispatcher.close()
        self._on_change()
        drained = self._dispatcher.drain(deadline)
        self.state = STATE_STOPPED
        self.wakeup()
        self._thread.join(timeout=LOOP_BUSY_TIMEOUT_S + 1)
        try:
            with self._write() as connection:
                now = database_now_us(connection)
                record_finishes(
                    connection,
                    self._dispatcher.unrecorded(),
                    owner=self.node_id,
                    now=now,
                    node=self.node_name,
                    next_owner="",
                    alerts=self._ledger.alerts,
                )
                release(connection, me=self.node_id, now=now, alerts=self._ledger.alerts)
                self._beat(connection, now, "stopped")
        except Exception:
            logger.exception("the stop is not on record: another node will find this one's lock file free")
            if self._lock_file is not None:
                self._lock_file.leave()
        else:
            if self._lock_file is not None:
                self._lock_file.release()
        self._watchdog.stop()
        if self._fleet is not None:
            self._fleet.close()
        capture.uninstall()
        for executor in self._executors.values():
            executor.shutdown(wait=drained)
        self._loop_engine.dispose()
        self._dispatch_event(events.SchedulerEvent(events.EVENT_SCHEDULER_SHUTDOWN))
        return drained

    def shutdown(self, wait: bool = True) -> None:
        """APScheduler's way to stop; `wait` gives running tasks as long as they need."""
        if self.state == STATE_STOPPED:
            raise SchedulerNotRunningError
        self.stop(threading.TIMEOUT_MAX / 2 if wait else 0.0)

    def health(self) -> LoopHealth:
        """How the loop is doing."""
        now = time.monotonic()
        return LoopHealth(now - self._clocks.turn, now - self._clocks.store, self._problem)

    def _run(self, ticket: Ticket, stop: StopSignal) -> Ending:
        return execute(ticket, node=self.node_name, resolve=self._resolve, context=self._context, stop=stop)

    def _lane_of(self, ticket: Ticket) -> str:
        if ticket.executor == "default":
            task: RunnableTask | None = self._resolve(ticket.task)
            if task is not None and task.cpu_bound:
                return "process"
        return ticket.executor

    # The loop

    def _main_loop(self) -> None:
        wait_s = 0.0
        while self.state != STATE_STOPPED:
            self._event.wait(wait_s)
            self._event.clear()
            try:
                wait_s = self._process_jobs()
            except BaseException as error:  # nothing ends the loop but a stop
                wait_s = LOOK_S / 2
                self._adopt = True  # a commit whose fate is unknown may have left this node runs
                self._complain(error)
            self._clocks.turn = time.monotonic()

    def _process_jobs(self) -> float:
        """One turn: claims what is due, tells that this node lives, sees to the others. Seconds to the next."""
        claimed = self._claim_and_beat()
        self._reap()
        if self._fleet is not None and self._carry:
            self._send_to_fleet(self._fleet)
        self._problem = None
        self._clocks.store = time.monotonic()
        if claimed.more_due:
            return 0.0
        # What is due and withheld is in another transaction's hands: asking without a pause frees it no sooner.
        return self._seconds_to_next_moment() or (_WITHHELD_S if claimed.withheld else 0.0)

    def _claim_and_beat(self) -> Claimed:
        started = time.monotonic()
        claims = self.state == STATE_RUNNING and not self._stopping
        due = claims and self._anything_due()
        # A heartbeat can wait a little, a fire cannot.
        every_s = LATEST_BEAT_S if due else BEAT_S if self._peers else LONE_BEAT_S
        beat_due = started - self._clocks.beat >= every_s
        # Other nodes leave runs to this one without telling it, also one that is gone by now. A paused loop adopts when
        # it is resumed.
        adopt = (self._adopt or beat_due) and (claims or self._stopping)
        if adopt:
            self._adopt = False  # before the look into the store: what sets it again comes after its own commit
        if not (beat_due or adopt or due):
            return Claimed()
        claimed = Claimed()
        given = self._gifts() if beat_due and claims else {}
        cancelled: set[str] = set()
        try:
            with self._write() as connection:
                now = database_now_us(connection)
                self._clock_offset_us = now_us() - now
                if claims:
                    claimed = claim(
                        connection, owner=self.node_id, now=now, room=self._room(), alerts=self._ledger.alerts
                    )
                    claimed.withheld = due and not (claimed.tickets or claimed.folded)
                for peer, tickets in given.items():
                    hand_over(connection, [ticket.run_id for ticket in tickets], me=self.node_id, to=peer)
                if adopt and claims:
                    claimed.tickets = own_pending(connection, me=self.node_id)
                if beat_due or adopt:
                    cancelled = cancellations(connection, owner=self.node_id)
                if self._stopping:
                    hand_back(connection, me=self.node_id)
                if beat_due:
                    self._beat(connection, now, self._node_state)
                # Not at a mere heartbeat: so a claim that is to fail is one.
                if claimed.tickets or claimed.folded:
                    failpoints.reach("claim.written")
        except BaseException:
            self._adopt = True  # a commit whose fate is unknown may have left this node runs
            raise
        if claimed.tickets or claimed.folded:
            failpoints.reach("claim.committed")
        self._dispatch(claimed.tickets, now)
        self._dispatcher.stop(cancelled, "cancel")
        if beat_due:
            self._clocks.beat = started
        self._tell_folded(claimed)
        return claimed

    def _dispatch(self, tickets: list[Ticket], now: int) -> None:
        """Starts them here, at `now` by the store's clock; those of the workers are carried there later in the turn."""
        if self._fleet is not None:
            here = [ticket for ticket in tickets if ticket.executor != FLEET_EXECUTOR]
            self._carry |= len(here) < len(tickets)
            tickets = here
        self._dispatcher.add(tickets, now=now)

    def _room(self) -> dict[str, int] | None:
        """Free places by executor; None for a scheduler that has nobody to leave anything to."""
        if not self._peers:
            return None
        fleet = {} if self._fleet is None else {FLEET_EXECUTOR: JOBS_PER_LOOK}
        return {**self._dispatcher.free(), **fleet}

    def _gifts(self) -> dict[str, list[Ticket]]:
        """Runs that wait here for a place, by the node that says it has one."""
        gifts: dict[str, list[Ticket]] = {}
        for peer in self._peers:
            if not peer.stats.get("queued"):
                tickets = self._dispatcher.give_up(peer.stats.get("free", {}))
                if tickets:
                    gifts[peer.node_id] = tickets
        return gifts

    def _anything_due(self) -> bool:
        if self._awaited is not None and self._awaited <= now_us():
            self._awaited = None
            return True
        with self._loop_engine.connect() as connection:
            due = select(jobs.c.id).where(is_due(database_now_us(connection)), ~is_held())
            return connection.execute(due.limit(1)).first() is not None

    def _seconds_to_next_moment(self) -> float:
        with self._loop_engine.connect() as connection:
            earliest: int | None = connection.execute(
                select(jobs.c.next_run_time)
                .where(jobs.c.next_run_time.is_not(None), jobs.c.problem.is_(None), ~is_held())
                .order_by(jobs.c.next_run_time)
                .limit(1)
            ).scalar_one_or_none()
            now = database_now_us(connection)
        self._awaited = earliest
        claims = self.state == STATE_RUNNING and not self._stopping
        if earliest is None or not claims:
            return LOOK_S
        return min(LOOK_S, max(0.0, (earliest - now) / 1_000_000))

    def _reap(self) -> None:
        now_s = time.monotonic()
        if now_s - self._clocks.reap < REAP_S or self._stopping:
            return
        self._clocks.reap = now_s
        with self._loop_engine.connect() as connection:
            suspects = find_suspects(
                connection, me=self.node_id, silence=self._silence, lost_after_s=self._lost_after_s
            )
        self._peers = suspects.peers
        if suspects:
            with self._write() as connection:
                now = database_now_us(connection)
                recovered = recover(connection, me=self.node_id, suspects=suspects, now=now, alerts=self._ledger.alerts)
            for node in suspects.dead:
                remove_lock_file(node)
            self._dispatch(recovered.tickets, now)
            self._dispatcher.outcomes["lost"] += len(recovered.lost)
        self._carry = True
        if now_s - self._clocks.purge >= _PURGE_NODES_S:
            self._clocks.purge = now_s
            with self._write() as connection:
                forget_gone_nodes(connection, now=database_now_us(connection))

    def _send_to_fleet(self, fleet: Fleet) -> None:
        """Has all that waits for a worker carried to one; what nobody took in its grace time is missed."""
        self._carry = False
        with self._loop_engine.connect() as connection:
            waiting = [t for t in own_pending(connection, me=self.node_id) if t.executor == FLEET_EXECUTOR]
            crowded = find_crowded(connection, waiting)
            now = database_now_us(connection)
        late = [ticket for ticket in waiting if is_too_late(ticket, now)]
        if late:
            with self._write() as connection:
                record_missed(connection, late, owner=self.node_id, now=now, alerts=self._ledger.alerts)
        fleet.send(
            [
                ticket
                for ticket in waiting
                if ticket.run_id not in crowded
                and not is_too_late(ticket, now)
                and (ticket.not_before is None or ticket.not_before <= now)
            ]
        )

    def _beat(self, connection: Connection, now: int, state: NodeState) -> None:
        beat(
            connection,
            node_id=self.node_id,
            name=self.node_name,
            version=self._version,
            state=state,
            started_at=self._started_at,
            lock_file=None if self._lock_file is None else str(self._lock_file.path),
            stats=self._stats(),
            now=now,
        )

    def _stats(self) -> dict[str, Any]:
        lateness = sorted(self._dispatcher.lateness_ms)
        running = self._dispatcher.running()
        return {
            "queued": self._dispatcher.queued(),
            "running": [{"run_id": ticket.run_id, "job_id": ticket.job_id} for ticket in running[:_RUNNING_SHOWN]],
            "running_count": len(running),
            "free": self._dispatcher.free(),
            "clock_offset_ms": round(self._clock_offset_us / 1000),
            "code": self._code,
            "outcomes": dict(self._dispatcher.outcomes),
            "lateness_ms": {
                name: lateness[int((len(lateness) - 1) * share)] if lateness else None
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
        }

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        # SQLite lets a second writer wait by sleeping ever longer; this process's own threads queue up here.
        with self._store_lock, write_transaction(self._loop_engine) as connection:
            yield connection

    def _on_change(self) -> None:
        self._adopt = True
        self.wakeup()

    def _complain(self, error: BaseException) -> None:
        problem = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if problem != self._problem or now - self._clocks.complaint >= _COMPLAIN_S:
            self._clocks.complaint = now
            logger.error("the scheduler's loop goes on after: %s", problem, exc_info=error)
        self._problem = problem

    # Events

    def _tell_started(self, ticket: Ticket) -> None:
        moments = [from_us(ticket.scheduled_for)]
        self._dispatch_event(events.JobSubmissionEvent(events.EVENT_JOB_SUBMITTED, ticket.job_id, "default", moments))

    def _tell_ended(self, ticket: Ticket, ending: Ending) -> None:
        code = events.EVENT_JOB_EXECUTED if ending.outcome == "success" else events.EVENT_JOB_ERROR
        error = None if ending.outcome == "success" else RuntimeError(ending.error or ending.reason)
        self._dispatch_event(
            events.JobExecutionEvent(code, ticket.job_id, "default", from_us(ticket.scheduled_for), exception=error)
        )

    def _tell_folded(self, claimed: Claimed) -> None:
        for job_id, fold in claimed.folded:
            self._dispatcher.outcomes[fold.fate] += fold.count
            moment = from_us(fold.last)
            if fold.fate == "missed":
                event: Any = events.JobExecutionEvent(events.EVENT_JOB_MISSED, job_id, "default", moment)
            elif fold.fate == "skipped":
                event = events.JobSubmissionEvent(events.EVENT_JOB_MAX_INSTANCES, job_id, "default", [moment])
            else:
                continue
            self._dispatch_event(event)

    # The job API: what APScheduler expresses by next_run_time alone, the ledger knows by name

    def pause_job(self, job_id: str, jobstore: str | None = None) -> APSchedulerJob:  # noqa: ARG002
        """No next run until the job is resumed; JobLookupError when there is no such job."""
        return self._edit(job_id, lambda: self._ledger.pause_job(job_id, by="apscheduler"))

    def resume_job(self, job_id: str, jobstore: str | None = None) -> APSchedulerJob:  # noqa: ARG002
        """Runs again from the trigger's next moment on; JobLookupError when there is no such job."""
        return self._edit(job_id, lambda: self._ledger.resume_job(job_id, by="apscheduler"))

    def remove_job(self, job_id: str, jobstore: str | None = None) -> None:  # noqa: ARG002
        """Deletes the job, restorably; JobLookupError when there is no such job."""
        self._lookup_jobstore("default").remove_job(job_id)
        self._dispatch_event(events.JobEvent(events.EVENT_JOB_REMOVED, job_id, "default"))

    def _edit(self, job_id: str, edit: Callable[[], Job]) -> APSchedulerJob:
        try:
            edit()
        except NotFound as error:
            raise JobLookupError(job_id) from error
        self._dispatch_event(events.JobEvent(events.EVENT_JOB_MODIFIED, job_id, "default"))
        return self.get_job(job_id)
