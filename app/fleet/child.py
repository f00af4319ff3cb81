"""What a child process of a worker does: opens the ledger's door to the run of a message, runs the task, records its
end. All of it without the parent, whose loop stands still while the broker is away."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import LOOP_BUSY_TIMEOUT_S, create_engine_for, database_now_us, write_transaction
from app.db.reach import cause_of
from app.fleet.board import Board
from app.ledger import failpoints
from app.ledger.execution import Ending, TaskResolver, execute, prepare_process
from app.ledger.record import Finish, record_finishes, take
from app.ledger.runs import Ticket

logger = logging.getLogger(__name__)

_RETRY_S = 0.25
_DOOR_PATIENCE_S = 60.0
"""So long a child waits for a store that is away before it gives a message up; the sender repeats it."""
_COMPLAIN_S = 30.0

_Result = TypeVar("_Result")


@dataclass(kw_only=True)
class Worker:
    """What the children of a worker know of it. `node_id` is the one node that all of them are in the ledger."""

    node_id: str
    node_name: str
    jobstore_url: Any
    alerts: bool
    board: Board
    resolve: TaskResolver
    context: Callable[[], AbstractContextManager[Any]]
    inherited: tuple[Engine, ...] = ()
    _engine: Engine | None = field(default=None, init=False)

    def prepare_child(self) -> None:
        """The beginning of a forked child."""
        for engine in self.inherited:
            engine.dispose(close=False)  # its connections are the parent's
        self._engine = create_engine_for(self.jobstore_url, busy_timeout_s=LOOP_BUSY_TIMEOUT_S)
        prepare_process(os.getppid())

    def work_on(self, run_id: str, owner: str, epoch: int) -> None:
        """Does what a message says, if the ledger agrees. Never raises: the message is done with in any case."""
        slot = self.board.claim(run_id)
        if slot is None:
            logger.debug("run %s is in work here already", run_id)
            return
        try:
            ticket = self._open(run_id, owner, epoch)
        except Exception as error:
            self.board.give_up(slot)
            logger.warning("run %s could not be started: %s", run_id, error)
            return
        if ticket is None:
            self.board.free(slot)
            return
        self.board.running(slot, job_id=ticket.job_id, time_limit=ticket.time_limit)
        ending = execute(ticket, node=self.node_name, resolve=self.resolve, context=self.context, alarm=True)
        self.board.ended(slot)
        self._repeat(partial(self._finish, ticket, ending), f"the end of run {run_id}")
        self.board.free(slot)

    def _open(self, run_id: str, owner: str, epoch: int) -> Ticket | None:
        def try_once() -> Ticket | None:
            with write_transaction(self._store()) as connection:
                ticket = take(
                    connection,
                    run_id=run_id,
                    owner=owner,
                    epoch=epoch,
                    worker=self.node_id,
                    node=self.node_name,
                    now=database_now_us(connection),
                    alerts=self.alerts,
                )
                if ticket is not None:
                    failpoints.reach("start.written")
            if ticket is not None:
                failpoints.reach("start.committed")
            return ticket

        return self._repeat(try_once, f"the start of run {run_id}", patience_s=_DOOR_PATIENCE_S)

    def _finish(self, ticket: Ticket, ending: Ending) -> None:
        with write_transaction(self._store()) as connection:
            record_end(connection, ticket, ending, owner=self.node_id, alerts=self.alerts)
            failpoints.reach("finish.written")
        failpoints.reach("finish.committed")

    def _store(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the child was not prepared")
        return self._engine

    def _repeat(self, act: Callable[[], _Result], what: str, *, patience_s: float = float("inf")) -> _Result:
        """Tries until the store takes it, which may be away, locked or full."""
        give_up = time.monotonic() + patience_s
        complain_at = float("-inf")
        while True:
            try:
                return act()
            except SQLAlchemyError as error:
                now = time.monotonic()
                if now >= give_up:
                    raise
                if now >= complain_at:
                    complain_at = now + _COMPLAIN_S
                    logger.warning("%s waits for the store: %s", what, cause_of(error))
                time.sleep(_RETRY_S)


def record_end(connection: Connection, ticket: Ticket, ending: Ending, *, owner: str, alerts: bool) -> None:
    """Records how a worker's run ended; an attempt that follows is for whichever scheduler looks first."""
    finish = Finish(ticket, ending.outcome, ending.duration, ending.reason, ending.error, ending.log)
    now = database_now_us(connection)
    record_finishes(connection, [finish], owner=owner, now=now, next_owner="", alerts=alerts)
