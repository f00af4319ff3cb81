"""The supervisor: a thread of a worker's parent process. It is the worker's node in the ledger, and sees to the runs of
the children: limits, cancellations, deaths. Celery has means for some of it, but its loop stands still while the broker
is away.
"""

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from app.db.clock import now_us
from app.db.engines import (
    LOOP_BUSY_TIMEOUT_S,
    SILENT_CONNECTION_S,
    create_engine_for,
    database_now_us,
    write_transaction,
)
from app.db.jobstore_tables import IS_ACTIVE, runs
from app.db.reach import cause_of, store_name
from app.fleet.board import Board, Place, State
from app.fleet.child import record_end
from app.fleet.health import write_signs
from app.ledger.execution import Ending, killed_ending
from app.ledger.nodes import NodeState, beat
from app.ledger.one_store import lock_for
from app.ledger.record import cancellations
from app.ledger.recover import release
from app.ledger.runs import TICKET_COLUMNS, Ticket
from app.ledger.stopping import StopReason

logger = logging.getLogger(__name__)

BEAT_S = 0.9
"""As a scheduler's: well below the silence after which a node is suspected."""
_LOOK_S = 0.25
"""Between two looks at the children: how late a limit or a death may be noticed."""
_COMPLAIN_S = 30.0
_EXIT_S = 5.0
"""So long Celery may take to come to its end after the last child was killed."""
_STOPPED_S = 0.5
"""At most so long it takes a process to stop."""

_fork_guard = threading.Lock()
"""Held by the supervisor while it talks to the store: a child that is forked just then would inherit locks that nobody
releases."""
os.register_at_fork(before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_fork_guard.release)


class Supervisor:
    """One worker's. `loop_age` tells the seconds since Celery's loop last turned, for the health check."""

    def __init__(
        self,
        *,
        node_id: str,
        node_name: str,
        version: str,
        code: str,
        jobstore_url: URL,
        board: Board,
        places: int,
        locks_dir: Path,
        alerts: bool,
        loop_age: Callable[[], float],
    ) -> None:
        self._node_id, self._node_name, self._version, self._code = node_id, node_name, version, code
        self._board, self._places, self._alerts, self._loop_age = board, places, alerts, loop_age
        self._engine = create_engine_for(jobstore_url, busy_timeout_s=LOOP_BUSY_TIMEOUT_S)
        self._started_at = now_us()
        self._lock_file = lock_for(locks_dir, node_id, store_name(jobstore_url, locks_dir.parent))
        self._state: NodeState = "running"
        self._killed: dict[str, StopReason] = {}  # by run id
        self._orphans: set[str] = set()
        self._outcomes: Counter[str] = Counter()
        self._offset_us = 0
        self._store_at = self._beat_at = self._complained_at = float("-inf")
        self._drain_until = float("inf")
        self._stop_told = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fleet-supervisor", daemon=True)

    def start(self) -> None:
        """Makes the worker a node of the ledger, before the first run may begin, and begins to look after it.

        Raises what the store raises: a worker that cannot reach it has nothing to do.
        """
        self._look_into_store()
        self._thread.start()

    def begin_stop(self, drain_s: float) -> None:
        """What runs may go on for so many seconds, then it is killed. Only sets fields: safe in a signal handler."""
        self._drain_until = min(self._drain_until, time.monotonic() + drain_s)
        self._state = "stopping"

    def stop(self) -> None:
        """The end, when the children are gone: hands back what never started, calls lost what has no end."""
        self._stopped.set()
        self._thread.join(timeout=SILENT_CONNECTION_S)
        self._sign_off()

    def _sign_off(self) -> None:
        try:
            with write_transaction(self._engine) as connection:
                now = database_now_us(connection)
                self._close_gone(connection, self._board.taken())
                release(connection, me=self._node_id, now=now, alerts=self._alerts)
                self._beat(connection, now, "stopped")
        except SQLAlchemyError as error:
            logger.error("the stop is not on record: %s; a scheduler will find this lock file free", cause_of(error))
            return  # with the lock file in its place: free, it proves the death
        self._lock_file.release()

    # The thread

    def _work(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            try:
                self._look()
            except SQLAlchemyError as error:
                self._complain(cause_of(error))
            except Exception:  # nothing ends it: a worker without it would be silent, and its runs called lost
                logger.exception("the supervisor goes on after")
            self._write_signs()

    def _look(self) -> None:
        now = time.monotonic()
        taken = self._board.taken()
        for place in taken:
            if place.state == State.RUNNING and place.deadline and now >= place.deadline:
                self._stop_child(place, "hard")
        if self._state == "stopping" and not self._stop_told:
            self._stop_told = True
            logger.info("worker %s: stopping, %d runs still going", self._node_name, len(taken))
        if now >= self._drain_until + _EXIT_S:
            logger.error("the worker does not come to its end: it is ended")
            self._sign_off()
            os._exit(0)
        if now >= self._drain_until:
            for place in taken:
                _kill(place.pid)
        if any(_is_gone(place.pid) for place in taken) or now - self._beat_at >= BEAT_S:
            self._look_into_store()

    def _look_into_store(self) -> None:
        began = time.monotonic()
        with _fork_guard, write_transaction(self._engine) as connection:
            now = database_now_us(connection)
            self._offset_us = now_us() - now
            self._beat(connection, now, self._state)
            wanted = cancellations(connection, owner=self._node_id)
            # Before the board is read: what is on record as running here has its place there already.
            ours = set(connection.execute(_running_of(self._node_id)).scalars())
            taken = self._board.taken()
            self._close_orphans(connection, ours, taken)
            closed = self._close_gone(connection, taken)
        for place in closed:
            self._board.clear(place)
            self._killed.pop(place.run_id, None)
        self._beat_at = self._store_at = began
        self._complained_at = float("-inf")
        for place in taken:
            if place.run_id in wanted and place.state == State.RUNNING:
                self._stop_child(place, "cancel")

    def _close_gone(self, connection: Connection, taken: Collection[Place]) -> list[Place]:
        """Records what became of runs whose child is gone, or has given up; gives their places."""
        closed = [place for place in taken if place.state == State.GIVEN_UP or _is_gone(place.pid)]
        for place in closed:
            if place.state == State.GIVEN_UP:
                reason = "the store did not answer while it was started"
            elif time.monotonic() >= self._drain_until:
                reason = "its node was stopped before it ended"
            else:
                reason = "the process that ran it died"
            # Its end may be on record, or its door may never have opened: then this changes nothing.
            self._end(connection, place.run_id, self._killed.get(place.run_id), reason)
        return closed

    def _close_orphans(self, connection: Connection, ours: set[str], taken: Collection[Place]) -> None:
        """Calls lost what is on record as running here, for two looks in a row, while no place knows of it."""
        orphans = ours - {place.run_id for place in taken}
        for run_id in orphans & self._orphans:
            self._end(connection, run_id, None, "no process of its worker knows of it")
        self._orphans = orphans

    def _end(self, connection: Connection, run_id: str, killed: StopReason | None, reason: str) -> None:
        columns = [runs.c[name] for name in TICKET_COLUMNS]
        row = connection.execute(
            select(*columns, runs.c.started_at).where(
                runs.c.run_id == run_id, runs.c.owner == self._node_id, runs.c.outcome == "running"
            )
        ).one_or_none()
        if row is None:
            return
        ticket = Ticket(**{name: getattr(row, name) for name in TICKET_COLUMNS})
        duration = database_now_us(connection) - row.started_at
        if killed is None:
            ending = Ending("lost", duration, None, "", reason)
            logger.error("run %s of job %s is lost: %s", run_id, ticket.job_id, reason)
        else:
            ending = killed_ending(ticket, killed, duration)
        record_end(connection, ticket, ending, owner=self._node_id, alerts=self._alerts)
        self._outcomes[ending.outcome] += 1

    # Children

    def _stop_child(self, place: Place, why: StopReason) -> None:
        """Kills the child of a run that is still running. The child is stopped first and asked again: between the look
        and the kill it may have ended the run and begun another."""
        try:
            os.kill(place.pid, signal.SIGSTOP)
        except ProcessLookupError:
            return
        _wait_until_stopped(place.pid)
        at_rest = self._board.place(place.index)
        if (at_rest.state, at_rest.run_id, at_rest.pid) == (State.RUNNING, place.run_id, place.pid):
            logger.warning("run %s is killed: %s", place.run_id, "cancelled" if why == "cancel" else "time limit")
            self._killed[place.run_id] = why
            _kill(place.pid)
        else:
            os.kill(place.pid, signal.SIGCONT)

    # What others see

    def _beat(self, connection: Connection, now: int, state: NodeState) -> None:
        running = [place for place in self._board.taken() if place.state == State.RUNNING]
        stats: dict[str, Any] = {
            "queued": 0,
            "running": [{"run_id": place.run_id, "job_id": place.job_id} for place in running],
            "running_count": len(running),
            "outcomes": dict(self._outcomes),
            "free": {"celery": max(0, self._places - len(running))},
            "clock_offset_ms": round(self._offset_us / 1000),
            "code": self._code,
        }
        beat(
            connection,
            node_id=self._node_id,
            kind="worker",
            name=self._node_name,
            version=self._version,
            state=state,
            started_at=self._started_at,
            lock_file=str(self._lock_file.path),
            stats=stats,
            now=now,
        )

    def _write_signs(self) -> None:
        now = time.monotonic()
        write_signs(self._node_name, turn=now, store=self._store_at, loop=now - self._loop_age())

    def _complain(self, problem: str) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_S:
            self._complained_at = now
            logger.warning("the store is out of reach: %s", problem)


def _running_of(node_id: str) -> Any:
    return select(runs.c.run_id).where(IS_ACTIVE, runs.c.owner == node_id, runs.c.outcome == "running")


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_gone(pid: int) -> bool:
    """Whether a child has died; it may still wait for Celery to collect it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _wait_until_stopped(pid: int) -> None:
    give_up = time.monotonic() + _STOPPED_S
    while time.monotonic() < give_up:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return
        if state in "TtZX":
            return
        time.sleep(0.001)
