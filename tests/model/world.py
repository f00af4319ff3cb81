"""The world of one history: real schedulers on a real store, a clock that the search moves, and faults at any step.

A node here is a real LedgerScheduler with its Dispatcher and Ledger. Only what would start threads of its own is done
by hand: the frames of the loop, of the dispatcher's thread and of the orderly stop (`Node.loop`, `Node.dispatch`,
`Node.stop`), and the executors, in whose place the world notes every start and ends the tasks when the history says
so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

from apscheduler.schedulers.base import STATE_RUNNING, STATE_STOPPED
from sqlalchemy import select

from app.db.engines import read_transaction
from app.db.jobstore_tables import IS_ACTIVE, jobs, nodes, runs
from app.errors import DomainError
from app.ledger import Ending, Ledger, LedgerScheduler, NewJob, Ticket, retries
from app.ledger import apscheduler_overrides as overrides
from app.ledger.nodes import LIVING
from app.ledger.one_store import lock_for
from app.ledger.recover import Silence, release
from app.ledger.runs import Outcome
from tests.model.steps import Actor, SteppedLock, Stepper
from tests.model.stores import SQLiteStore, Store
from tests.model.timeline import Timeline, as_us

LOST_AFTER_S = 3.0
START_US = as_us(0.25)
"""Between two moments: nothing that a history does at a quarter past falls on one."""
_MOST_TICKS = 40
"""Seconds of the model in which a healed world comes to rest; the longest that it waits for is LOST_AFTER_S."""
_MOST_STEPS = 4000

_IDLE = ("look", "dispatch", "read")
"""Points at which a thread has nothing open, and nothing to lose that it did not have one point earlier."""

# Made once: they are asked at every commit and every second.
_JOBS = select(jobs)
_LOST = (
    select(runs.c.run_id, runs.c.job_id, runs.c.owner, nodes.c.heartbeat_at, nodes.c.state)
    .outerjoin(nodes, nodes.c.node_id == runs.c.owner)
    .where(runs.c.outcome == "lost")
)
_BEATS = select(nodes.c.node_id, nodes.c.heartbeat_at)
_ENDED = select(runs.c.run_id).where(runs.c.outcome.in_(("success", "failed", "cancelled")))
_ACTIVE = select(runs.c.run_id).where(IS_ACTIVE).limit(1)
_DUE = select(jobs.c.id).where(jobs.c.next_run_time.is_not(None), jobs.c.problem.is_(None)).limit(1)

Move = Literal["switch", "crash", "freeze", "thaw", "error", "tick", "edit", "stop", "join", "lose"]


_Candidate = tuple[str, Callable[[], None]]
_MOST_NODES = 3


class Violation(AssertionError):
    """The protocol broke a promise."""


@dataclass(frozen=True)
class Deviation:
    """After `after` ordinary steps: a move, and which of its candidates it is made with."""

    after: int
    move: Move
    pick: int = 0


@dataclass(frozen=True)
class JobModel:
    """A job, what its task takes in seconds, and which of its attempts fail."""

    new: NewJob
    lasts_s: float = 0.0
    failing_attempts: frozenset[int] = frozenset()


Edit = Callable[[Ledger], Any]


@dataclass(frozen=True)
class Scenario:
    """Jobs, edits that a history may make, and whether the nodes share a volume with lock files."""

    name: str
    jobs: tuple[JobModel, ...]
    edits: tuple[tuple[str, Edit], ...] = ()
    has_lock_files: bool = False
    places: int = 2
    nodes: int = 2
    begins_s: int = 0  # so long after the jobs were added the nodes begin


@dataclass(eq=False)
class Clock:
    """The one clock, of the database and of every machine."""

    us: int = START_US

    def monotonic(self) -> float:
        return self.us / 1_000_000

    def monotonic_ns(self) -> int:
        return self.us * 1000


@dataclass(eq=False)
class Execution:
    """A task that runs on a node."""

    node: Node
    ticket: Ticket
    end: Callable[[Ending], None]
    ends_at: int
    outcome: Outcome


@dataclass(eq=False)
class Start:
    """The task function of a run was called."""

    ticket: Ticket
    node: str
    at: int
    ended: str | None = None


class Node:
    """One scheduler process."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.alive, self.frozen = True, False
        locks = world.locks if world.scenario.has_lock_files else None
        self.scheduler = LedgerScheduler(
            Ledger(world.store.engine),
            resolve=lambda _name: None,
            context=nullcontext,
            node_name=name,
            version="0",
            timezone="UTC",
            threads=world.scenario.places,
            processes=1,
            lost_after_s=LOST_AFTER_S,
            locks_dir=locks,
            run_in_child=_refuse,
        )
        scheduler = self.scheduler
        if locks is not None:
            scheduler._lock_file = lock_for(locks, scheduler.node_id, "model")
        scheduler._store_lock = SteppedLock(world.stepper)  # type: ignore[assignment]
        scheduler._silence = Silence(clock=world.clock.monotonic)
        scheduler.state = STATE_RUNNING
        scheduler._event = _Flag()
        scheduler._ledger.attach(scheduler.node_id, scheduler._on_change)
        self.dispatcher = scheduler._dispatcher
        for lane in self.dispatcher._lanes.values():
            lane.submit, lane.stop = self.submit, world.ask_to_stop
        self.dispatcher._complain = self._check_outage  # type: ignore[method-assign,assignment]
        self.looked_at = -1
        self.actors = [Actor(f"{name}.loop", name), Actor(f"{name}.dispatcher", name)]
        self.world.stepper.spawn(self.actors[0], self.loop)
        self.world.stepper.spawn(self.actors[1], self.dispatch)

    @property
    def node_id(self) -> str:
        return self.scheduler.node_id

    @property
    def is_up(self) -> bool:
        return self.alive and not self.frozen

    @property
    def is_stopping(self) -> bool:
        return len(self.actors) > 2

    # What the scheduler's own threads would do

    def loop(self) -> None:
        """BlockingScheduler's thread, as LedgerScheduler._main_loop has it."""
        scheduler = self.scheduler
        while scheduler.state != STATE_STOPPED:
            self.world.stepper.point("look", ready=self._wants_to_look)
            self.looked_at = self.world.clock.us
            scheduler._event.clear()
            try:
                if scheduler._process_jobs() == 0.0:
                    scheduler._event.set()
            except self.world.store.outages:
                scheduler._adopt = True

    def _wants_to_look(self) -> bool:
        stopped = self.scheduler.state == STATE_STOPPED
        return stopped or self.looked_at != self.world.clock.us or self.scheduler._event.is_set()

    def dispatch(self) -> None:
        """The dispatcher's thread, as Dispatcher._work has it."""
        dispatcher = self.dispatcher
        while True:
            self.world.stepper.point("dispatch", ready=self._has_a_batch)
            with dispatcher._changed:
                batch = dispatcher._next_batch()
                dispatcher._recording = batch is not None
            if batch is None:
                self._idle_at = self._dispatcher_state()
            else:
                dispatcher._process(batch)

    def _check_outage(self, _batch: object, error: BaseException) -> None:
        """In the place of the dispatcher's complaint: it lives with any error, the model only with outages."""
        if not isinstance(error, self.world.store.outages):
            raise error

    _idle_at: object = None

    def _dispatcher_state(self) -> object:
        dispatcher = self.dispatcher
        lengths = (len(dispatcher._ends), len(dispatcher._in_progress), len(dispatcher._postponed))
        return (self.world.clock.us, dispatcher.queued(), *lengths)

    def _has_a_batch(self) -> bool:
        dispatcher, now = self.dispatcher, self.world.clock.monotonic()
        postponed = bool(dispatcher._postponed) and dispatcher._postponed[0][0] <= now
        if not (dispatcher.queued() or dispatcher._ends or postponed) or now < dispatcher._retry_at:
            return False
        return self._idle_at != self._dispatcher_state()  # nothing has changed since it had nothing to do

    def stop(self) -> None:
        """The thread that stops the process in order, as LedgerScheduler.stop does; the task gets no time to end."""
        scheduler, dispatcher = self.scheduler, self.dispatcher
        scheduler.begin_stop()
        scheduler._ledger.detach()
        scheduler._node_state = "stopping"
        dispatcher.close()
        scheduler._on_change()
        asked_at = self.world.clock.us
        self.world.stepper.point(
            "drain",
            ready=lambda: (
                self.world.clock.us > asked_at
                or not (dispatcher._in_progress or dispatcher._ends or dispatcher._recording)
            ),
        )
        dispatcher._stopped = True
        scheduler.state = STATE_STOPPED
        self.world.stepper.point("join", ready=lambda: self.actors[0].state == "done")
        try:
            with scheduler._write() as connection:
                now = self.world.clock.us
                release(connection, me=self.node_id, now=now)
                scheduler._beat(connection, now, "stopped")
        except self.world.store.outages:
            pass  # another node finds out
        if scheduler._lock_file is not None:
            scheduler._lock_file.release()
            scheduler._lock_file = None
        self.world.leaving.append(self)

    def submit(self, ticket: Ticket, end: Callable[[Ending], None]) -> None:
        self.world.task_starts(self, ticket, end)

    def free_lock_file(self) -> None:
        """What the kernel does with the lock of a process that is gone: the file stays."""
        if self.scheduler._lock_file is not None:
            os.close(self.scheduler._lock_file._fd)
            self.scheduler._lock_file = None


class _Flag:
    """A threading.Event that nobody waits for."""

    def __init__(self) -> None:
        self._set = True

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set


class World:
    """Runs one history on `store`, and checks after every step and at its end that no promise was broken."""

    def __init__(self, store: Store, scenario: Scenario, locks: Path) -> None:
        self.store, self.scenario, self.locks = store, scenario, locks
        self.stepper: Stepper = store.stepper
        self.clock = Clock()
        self.timeline = Timeline()
        self.models = {model.new.id: model for model in scenario.jobs}
        self.nodes: list[Node] = []
        self.editors: list[Actor] = []
        self.leaving: list[Node] = []
        self.executions: list[Execution] = []
        self.starts: list[Start] = []
        self.trace: list[str] = []
        self.telling: list[bool] = []
        """Of each ordinary step: whether a fault after it can tell more than one after the step before."""
        self.working: list[int] = []
        """The ordinary steps after which a task is at work."""
        self.seconds: list[int] = []
        """The ordinary steps after which a second has passed and nobody has looked yet."""
        self.violation: str | None = None
        self.steps = self.ticks = 0
        self._turn = 0
        self._steps_before_tick = -1
        self._current: Actor | None = None
        self._lost: set[str] = set()
        self._ended: set[str] = set()
        self._beats: dict[str, tuple[int, int]] = {}  # of each node: its heartbeat, and the step of its commit

    def play(self, history: tuple[Deviation, ...]) -> None:
        """Plays the history to its end, heals, and runs on until nothing is left to do. Raises Violation."""
        with (
            _time_by(self.clock),
            patch.object(overrides, "create_engine_for", lambda *_args, **_named: self.store.engine),
            patch.object(retries, "JITTER", 0.0),
        ):
            self.store.clear()
            self.store.committed = self._on_commit
            try:
                self._set_up()
                for deviation in history:
                    for _ in range(deviation.after):
                        if not self._ordinary_step():
                            break
                    self._deviate(deviation)
                self._run_to_quiescence()
                self._check_at_the_end()
            finally:
                self.store.committed = lambda _actor: None
                self._tear_down()

    # Steps

    def _set_up(self) -> None:
        ledger = Ledger(self.store.engine)
        for model in self.scenario.jobs:
            ledger.add_job(model.new, by="model")
            self.timeline.set_trigger(model.new.id, model.new.trigger, now=self.clock.us, at=self.clock.us)
        self.clock.us += self.scenario.begins_s * 1_000_000
        for number in range(self.scenario.nodes):
            self._join(f"n{number + 1}")

    def _join(self, name: str) -> None:
        self.nodes.append(Node(self, name))

    def _actors(self) -> list[Actor]:
        of_nodes = [actor for node in self.nodes if node.alive for actor in node.actors]
        return [*of_nodes, *self.editors]

    def _node_of(self, actor: Actor) -> Node | None:
        return next((node for node in self.nodes if node.name == actor.node), None)

    def _can_run(self, actor: Actor) -> bool:
        if actor.state == "blocked":
            self.stepper.settle_blocked(actor)
        node = self._node_of(actor)
        return actor.state == "parked" and (node is None or node.is_up) and actor.ready()

    def _ordinary_step(self) -> bool:
        """One step of the ordinary course; False when nothing is left to be done."""
        running, second = len(self.executions), self.clock.us
        if not self._take_step():
            return False
        if self.executions:
            self.working.append(len(self.telling) + 1)
        if self.clock.us != second:
            self.seconds.append(len(self.telling) + 1)
        actor = self._current
        changes = actor is not None and actor.state != "done" and actor.label not in _IDLE
        self.telling.append(changes or len(self.executions) != running)
        return True

    def _take_step(self) -> bool:
        self._guard()
        current = self._current
        if current is not None and current.label not in ("look", "dispatch") and self._can_run(current):
            self._step(current)
            return True
        actors = self._actors()
        for offset in range(len(actors)):
            actor = actors[(self._turn + offset) % len(actors)]
            if self._can_run(actor):
                self._turn = (self._turn + offset + 1) % len(actors)
                self._step(actor)
                return True
        for execution in self.executions:
            if execution.node.is_up and execution.ends_at <= self.clock.us:
                self._end_task(execution)
                return True
        if self._is_quiescent() or not any(node.is_up for node in self.nodes):
            return False
        if self._steps_before_tick == self.steps - 1:
            self._let_go()  # for a whole second nobody could do anything
        self._tick()
        self._steps_before_tick = self.steps
        return True

    def _guard(self) -> None:
        self.steps += 1
        if self.violation is not None:
            raise Violation(self.violation)
        if self.steps > _MOST_STEPS or self.ticks > _MOST_TICKS:
            raise Violation(f"no rest after {self.ticks} s: {self._open()}")

    def _step(self, actor: Actor) -> None:
        self._current = actor
        self._note(f"{actor.name}: {actor.label}")
        self._resume(actor)

    def _resume(self, actor: Actor, order: Literal["go", "error", "crash"] = "go") -> None:
        self.stepper.resume(actor, order)
        if actor.error is not None:
            raise actor.error
        for node in self.leaving:
            self._gone(node)
        self.leaving.clear()

    def _tick(self) -> None:
        self.ticks += 1
        self.clock.us += 1_000_000
        self._note(f"--- {self.clock.us - START_US + 250_000:,} us")

    def _note(self, line: str) -> None:
        self.trace.append(line)

    # Deviations

    def _deviate(self, deviation: Deviation) -> None:
        self.ticks = 0
        self._guard()
        candidates = self._candidates(deviation.move)
        if candidates:
            what, act = candidates[deviation.pick % len(candidates)]
            self._note(f"*** {deviation.move}: {what}")
            act()

    def _candidates(self, move: Move) -> list[_Candidate]:
        """What the move can be made with now: its name, and how. What the history stands at comes first."""
        if move == "tick":
            return [("1 s", self._tick)]
        if move == "edit":
            free = all(actor.state == "done" for actor in self.editors)
            return [(edit[0], partial(self._edit, edit)) for edit in self.scenario.edits if free]
        if move == "join":
            few = sum(node.alive for node in self.nodes) < _MOST_NODES
            return [("a new node", partial(self._join, f"n{len(self.nodes) + 1}"))] if few else []
        if move == "lose":
            at_work = (one for one in self.executions if one.node.is_up)
            return [(_name(one.ticket), partial(self._end_task, one, "lost")) for one in at_work]
        if move in ("switch", "error"):
            return self._candidate_actors(move)
        return self._candidate_nodes(move)

    def _candidate_actors(self, move: Move) -> list[_Candidate]:
        current = self._current
        if move == "switch":
            others = (actor for actor in self._actors() if actor is not current and self._can_run(actor))
            return [(actor.name, partial(self._step, actor)) for actor in others]
        actors = sorted(self._actors(), key=lambda actor: actor is not current)
        return [
            (f"{actor.name}: {actor.label}", partial(self._resume, actor, "error"))
            for actor in actors
            if actor.state == "parked" and actor.meets_store and ((node := self._node_of(actor)) is None or node.is_up)
        ]

    def _candidate_nodes(self, move: Move) -> list[_Candidate]:
        if move == "thaw":
            frozen = (node for node in self.nodes if node.alive and node.frozen)
            return [(node.name, partial(self._thaw, node)) for node in frozen]
        up = [node for node in self.nodes if node.is_up]
        if (current := self._current) is not None:
            up.sort(key=lambda node: node.name != current.node)
        if move == "stop":
            return [(node.name, partial(self._stop, node)) for node in up if not node.is_stopping]
        act = self._crash if move == "crash" else self._freeze
        return [(node.name, partial(act, node)) for node in up]

    def _crash(self, node: Node) -> None:
        for actor in node.actors:
            if actor.state == "blocked":
                actor.crashed = True
                self.store.evict(actor)
                self.stepper.settle_blocked(actor)
            elif actor.state == "parked":
                self.stepper.resume(actor, "crash")
        self._gone(node)

    def _gone(self, node: Node) -> None:
        """The process has ended, and with it its tasks."""
        node.alive = False
        for actor in node.actors:
            if actor.state == "parked":
                self.stepper.resume(actor, "crash")
        node.free_lock_file()
        self.executions = [one for one in self.executions if one.node is not node]

    def _freeze(self, node: Node) -> None:
        node.frozen = True

    def _thaw(self, node: Node) -> None:
        node.frozen = False
        for job_id in self.models:
            self._check_instances(job_id)

    def _stop(self, node: Node) -> None:
        actor = Actor(f"{node.name}.stop", node.name)
        node.actors.append(actor)
        self.stepper.spawn(actor, node.stop)

    def _edit(self, edit: tuple[str, Edit]) -> None:
        what, change = edit
        self.editors = [Actor(f"editor ({what})", "")]

        def work() -> None:
            self.stepper.point("edit")
            try:
                change(Ledger(self.store.engine))
            except (DomainError, *self.store.outages):
                pass  # refused, or the store was away: the user is told

        self.stepper.spawn(self.editors[0], work)

    def _end_task(self, execution: Execution, outcome: Outcome | None = None) -> None:
        self.executions.remove(execution)
        ticket = execution.ticket
        outcome = outcome or execution.outcome
        ending = Ending(outcome, 1, "made to fail" if outcome == "failed" else None, "")
        self._note(f"task of {_name(ticket)} ends on {execution.node.name}: {ending.outcome}")
        next(start for start in self.starts if start.ticket.run_id == ticket.run_id).ended = ending.outcome
        execution.end(ending)

    # Healing

    def _run_to_quiescence(self) -> None:
        while True:
            self.ticks = 0
            self._someone_lives()
            while self._ordinary_step():
                self._someone_lives()
            frozen = [node for node in self.nodes if node.alive and node.frozen]
            if not frozen:
                return
            for node in frozen:  # with a view that is as old as can be
                self._note(f"*** thaw: {node.name}")
                self._thaw(node)

    def _someone_lives(self) -> None:
        """Healing: whoever holds up all others wakes, and there is one live node at least."""
        self._let_go()
        if not any(node.is_up and node.scheduler.state == STATE_RUNNING for node in self.nodes):
            self._note("*** a new node")
            self._join(f"n{len(self.nodes) + 1}")

    def _let_go(self) -> None:
        for node in self.nodes:
            if not (node.alive and node.frozen):
                continue
            if isinstance(self.store, SQLiteStore):
                if self.store.writer in node.actors:  # nobody can evict a holder of SQLite's lock
                    self._note(f"*** thaw: {node.name}")
                    self._thaw(node)
            else:
                for actor in node.actors:  # its idle transaction is ended by the server
                    if actor.state == "parked":
                        self.store.evict(actor)

    # What is checked

    def task_starts(self, node: Node, ticket: Ticket, end: Callable[[Ending], None]) -> None:
        model = self.models[ticket.job_id]
        self._note(f"task of {_name(ticket)} starts on {node.name}")
        for start in self.starts:
            if start.ticket.run_id == ticket.run_id:
                self._break(f"run {_name(ticket)} was started twice: on {start.node} and on {node.name}")
            elif _fire(start.ticket) == _fire(ticket):
                self._break(f"the fire {_name(ticket)} was started twice: on {start.node} and on {node.name}")
        self.starts.append(Start(ticket, node.name, self.clock.us))
        outcome: Outcome = "failed" if ticket.attempt in model.failing_attempts else "success"
        ends_at = self.clock.us + round(model.lasts_s * 1_000_000)
        self.executions.append(Execution(node, ticket, end, ends_at, outcome))
        self._check_instances(ticket.job_id)

    def _check_instances(self, job_id: str) -> None:
        """No more of a job's runs than may be are at work on nodes that live, but for those that were presumed lost."""
        limit = self.models[job_id].new.max_instances
        together = [one for one in self.executions if one.ticket.job_id == job_id and one.node.is_up]
        living = [one for one in together if one.ticket.run_id not in self._lost]
        if len(living) > limit:
            self._break(f"{len(living)} instances of {job_id} run together, {limit} may")

    def ask_to_stop(self, ticket: Ticket, reason: str) -> None:
        """The task obeys, soon."""
        for execution in self.executions:
            if execution.ticket.run_id == ticket.run_id:
                self._note(f"task of {_name(ticket)} is asked to stop: {reason}")
                execution.ends_at, execution.outcome = self.clock.us, "cancelled"

    def _on_commit(self, actor: Actor) -> None:
        """In the actor's thread, right after its commit."""
        if actor in self.editors:
            with self._looking(actor), read_transaction(self.store.engine) as connection:
                for row in connection.execute(_JOBS).mappings():
                    self.timeline.see(row, at=self.clock.us)
        elif actor.name.endswith(".dispatcher"):
            with self._looking(actor), read_transaction(self.store.engine) as connection:
                self._ended.update(connection.execute(_ENDED).scalars())
        elif actor.name.endswith(".loop"):
            with self._looking(actor), read_transaction(self.store.engine) as connection:
                beats = {
                    node_id: beat
                    for node_id, beat in connection.execute(_BEATS)
                    if self._beats.get(node_id, (0,))[0] != beat
                }
                lost = connection.execute(_LOST).mappings().all()
            self._beats.update({node_id: (beat, self.stepper.steps) for node_id, beat in beats.items()})
            for row in lost:
                if row["run_id"] not in self._lost:
                    self._lost.add(row["run_id"])
                    self._check_loss(row, actor)

    def _check_loss(self, row: Any, reaper: Actor) -> None:
        """A run that is at work may be called lost only after its node's silence; one that has ended, never."""
        if row["run_id"] in self._ended:
            self._break(f"the end of a run of {row['job_id']} was on record, and it was called lost")
        owner = next((one for one in self.nodes if one.node_id == row["owner"]), None)
        if owner is None or not owner.is_up or row["heartbeat_at"] is None:
            return
        if self._beats[row["owner"]][1] > reaper.began:
            return  # side by side with the reaper's transaction, which the server does not leave open for long
        silent_s = (self.clock.us - row["heartbeat_at"]) / 1_000_000
        at_work = any(one.ticket.run_id == row["run_id"] for one in self.executions)
        if row["state"] in LIVING and silent_s < LOST_AFTER_S and at_work:
            self._break(f"a run of {row['job_id']} was called lost on {owner.name}, which beat {silent_s} s ago")

    @contextmanager
    def _looking(self, actor: Actor) -> Iterator[None]:
        """Statements in here are the world's own look into the store: no steps."""
        here = self.stepper._here
        here.actor = None
        try:
            yield
        finally:
            here.actor = actor

    def _break(self, what: str) -> None:
        # Raised by the search, not here: the code under test would catch it.
        self.violation = self.violation or what
        self._note(f"!!! {what}")

    def _open(self) -> str:
        with self.store.engine.connect() as connection:
            active = connection.execute(select(runs).where(IS_ACTIVE)).mappings().all()
            due = connection.execute(select(jobs.c.id).where(jobs.c.next_run_time.is_not(None))).scalars().all()
        names = {node.node_id: node.name for node in self.nodes}
        told = [
            f"{row['job_id']}@{row['scheduled_for']}#{row['attempt']} is {row['outcome']},"
            f" owner {names.get(row['owner'], row['owner'])!r}"
            for row in active
        ]
        return "; ".join([*told, *(f"{job_id} has a next moment" for job_id in due)]) or "threads go on"

    def _is_quiescent(self) -> bool:
        if self.executions and any(one.node.is_up for one in self.executions):
            return False
        if any(actor.state != "done" for actor in self.editors):
            return False
        if any(actor.state != "done" for node in self.nodes if node.is_up for actor in node.actors[2:]):
            return False
        with self.store.engine.connect() as connection:
            if connection.execute(_ACTIVE).first() is not None or connection.execute(_DUE).first() is not None:
                return False
        return not any(node.is_up and (node.dispatcher._ends or node.dispatcher._in_progress) for node in self.nodes)

    def _check_at_the_end(self) -> None:
        if self.violation is not None:
            raise Violation(self.violation)
        with self.store.engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(select(runs)).mappings()]
        problem = self.timeline.problem(rows) or self._problem_of_chains(rows) or self._problem_of_ends(rows)
        if problem:
            raise Violation(problem)

    def _problem_of_chains(self, rows: list[dict[str, Any]]) -> str | None:
        """Later attempts: one after the other, each because of its predecessor's end."""
        by_fire: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
        for row in rows:
            attempts = by_fire.setdefault((row["job_id"], row["kind"], row["scheduled_for"]), {})
            if row["attempt"] in attempts:
                return f"{row['job_id']}@{row['scheduled_for']} has attempt {row['attempt']} twice"
            attempts[row["attempt"]] = row
        for fire, attempts in by_fire.items():
            if sorted(attempts) != list(range(1, len(attempts) + 1)):
                return f"{fire} has the attempts {sorted(attempts)}"
            for number, row in attempts.items():
                again = number + 1 in attempts
                if again != _may_run_again(row):
                    return f"{fire}: attempt {number} is {row['outcome']} and was {'' if again else 'not '}run again"
        return None

    def _problem_of_ends(self, rows: list[dict[str, Any]]) -> str | None:
        """What the rows say of the tasks is what the tasks did."""
        starts = {start.ticket.run_id: start for start in self.starts}
        chained = {(row["job_id"], row["kind"], row["scheduled_for"], row["attempt"]) for row in rows}
        for row in rows:
            start = starts.get(row["run_id"])
            name = f"{row['job_id']}@{row['scheduled_for']}#{row['attempt']}"
            if start is None and row["outcome"] in ("success", "failed"):
                return f"{name} is {row['outcome']} and was never started"
            if start is None:
                continue
            if row["outcome"] in ("missed", "coalesced", "skipped"):
                return f"{name} is {row['outcome']} and was started"
            node = next(one for one in self.nodes if one.name == start.node)
            followed = (row["job_id"], row["kind"], row["scheduled_for"], row["attempt"] + 1) in chained
            kept = start.ended is not None and node.alive and not followed
            if kept and row["outcome"] != start.ended:
                return f"{name} ended as {start.ended} on a node that lived on, and is {row['outcome']} on record"
            if row["outcome"] in ("success", "failed") and start.ended != row["outcome"]:
                return f"{name} is {row['outcome']} on record and ended as {start.ended}"
        return None

    def _tear_down(self) -> None:
        for node in self.nodes:
            if node.alive:
                self._crash(node)
        for actor in self.editors:
            if actor.state == "blocked":
                actor.crashed = True
                self.store.evict(actor)
                self.stepper.settle_blocked(actor)
            if actor.state == "parked":
                self.stepper.resume(actor, "crash")
        for file in self.locks.glob("*.lock"):
            file.unlink()


def _may_run_again(row: dict[str, Any]) -> bool:
    if row["cancel_requested_at"] is not None:
        return False
    if row["outcome"] == "lost":
        return bool(row["retry_on_loss"] and row["attempt"] < max(2, row["max_attempts"]))
    return bool(row["outcome"] == "failed" and row["attempt"] < row["max_attempts"])


def _fire(ticket: Ticket) -> tuple[str, str, int, int]:
    return ticket.job_id, ticket.kind, ticket.scheduled_for, ticket.attempt


def _name(ticket: Ticket) -> str:
    return f"{ticket.job_id}@{(ticket.scheduled_for - START_US + 250_000) / 1_000_000:g}#{ticket.attempt}"


def _refuse(ticket: Ticket) -> Ending:
    raise AssertionError(f"no child process expected for {ticket}")


@contextmanager
def _time_by(clock: Clock) -> Iterator[None]:
    """All of the ledger goes by the history's clock."""

    def database_now_us(_connection: Any) -> int:
        return clock.us

    substitutes = {
        "database_now_us": database_now_us,
        "now_us": lambda: clock.us,
        "time": SimpleNamespace(monotonic=clock.monotonic, monotonic_ns=clock.monotonic_ns, sleep=_refuse),
    }
    saved: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if not name.startswith("app.ledger."):
            continue
        for attribute, substitute in substitutes.items():
            found = getattr(module, attribute, None)
            if found is not None and (attribute != "time" or found is time):
                saved.append((module, attribute, found))
                setattr(module, attribute, substitute)
    try:
        yield
    finally:
        for module, attribute, found in saved:
            setattr(module, attribute, found)
