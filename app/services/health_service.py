"""Whether the app can serve: its stores answer, and a scheduler is turning."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import database_now_us, read_transaction
from app.db.jobstore_tables import nodes
from app.runtime import Runtime, current_runtime

# A node beats about once a second; a task that holds the interpreter lock may silence it for ten.
HEARTBEAT_FRESH_S = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Readiness:
    """What was found; `heartbeat_age_s` is of the scheduler heard last, None when there is none."""

    jobstore: bool
    database: bool
    heartbeat_age_s: float | None

    @property
    def scheduler(self) -> bool:
        """Whether a scheduler beat lately."""
        return self.heartbeat_age_s is not None and self.heartbeat_age_s <= HEARTBEAT_FRESH_S

    @property
    def ready(self) -> bool:
        """Whether everything is in order."""
        return self.jobstore and self.database and self.scheduler


def readiness(runtime: Runtime | None = None) -> Readiness:
    """Ask the stores now; never raises for one that does not answer."""
    runtime = runtime or current_runtime()
    jobstore, age = True, None
    try:
        age = _heartbeat_age_s(runtime.jobstore)
    except SQLAlchemyError as error:
        log.warning("the job store does not answer", error=str(error.__cause__ or error))
        jobstore = False
    return Readiness(jobstore=jobstore, database=_answers(runtime.database), heartbeat_age_s=age)


def _heartbeat_age_s(jobstore: Engine) -> float | None:
    with read_transaction(jobstore) as connection:
        newest = connection.execute(
            select(func.max(nodes.c.heartbeat_at)).where(nodes.c.state == "running", nodes.c.kind == "scheduler")
        ).scalar_one()
        return None if newest is None else (database_now_us(connection) - newest) / 1_000_000


def _answers(database: Engine) -> bool:
    try:
        with read_transaction(database) as connection:
            connection.execute(text("SELECT 1 FROM users")).first()
    except SQLAlchemyError as error:
        log.warning("the app database does not answer", error=str(error.__cause__ or error))
        return False
    return True
