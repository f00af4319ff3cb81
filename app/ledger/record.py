"""Start by compare-and-set, and the end of a run: the two entries that follow a claim, in batches.

Many starts and ends share one commit, because a commit waits for the disk and a statement does not.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Text, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.jobstore_tables import run_logs, runs
from app.ledger.runs import Outcome, Ticket

logger = logging.getLogger(__name__)

ERROR_LENGTH = 8 * 1024
"""Characters of an error that a row keeps; the log of the run has the traceback."""

_DOOR = (
    runs.c.run_id == bindparam("b_run_id"),
    runs.c.outcome == "pending",
    runs.c.owner == bindparam("b_owner"),
    runs.c.epoch == bindparam("b_epoch"),
)
_START = update(runs).where(*_DOOR).values(outcome="running", started_at=bindparam("b_now"), node=bindparam("b_node"))
_MISS = (
    update(runs).where(*_DOOR).values(outcome="missed", finished_at=bindparam("b_now"), reason=bindparam("b_reason"))
)
_REASON = bindparam("b_reason", type_=Text())
_END_VALUES = {
    "outcome": bindparam("b_outcome"),
    "reason": _REASON,
    "error": bindparam("b_error"),
    "finished_at": runs.c.started_at + bindparam("b_duration"),
}
_OWN_RUN = (
    runs.c.run_id == bindparam("b_run_id"),
    runs.c.owner == bindparam("b_owner"),
    runs.c.epoch == bindparam("b_epoch"),
)
_FINISH = update(runs).where(*_OWN_RUN, runs.c.outcome == "running").values(**_END_VALUES)
_retry = runs.alias()  # not orm.aliased: the ORM costs every process 6 MB and 80 ms
_FINISH_LOST = (
    update(runs)
    .where(
        *_OWN_RUN,
        runs.c.outcome == "lost",
        ~select(_retry.c.run_id)
        .where(
            _retry.c.job_id == runs.c.job_id,
            _retry.c.kind == runs.c.kind,
            _retry.c.scheduled_for == runs.c.scheduled_for,
            _retry.c.attempt > runs.c.attempt,
        )
        .exists(),
    )
    .values(
        **{
            **_END_VALUES,
            "reason": func.coalesce(_REASON + "; ", "") + "it was presumed lost and finished after all",
        }
    )
)


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a run: what it came to, how long it took (microseconds) and what it wrote."""

    ticket: Ticket
    outcome: Outcome
    duration: int
    reason: str | None = None
    error: str | None = None
    log: str = ""


def record_starts(
    connection: Connection, tickets: Sequence[Ticket], *, owner: str, node: str, now: int
) -> Collection[str]:
    """Opens the door for those of `tickets` that are still pending and this node's: gives their run ids.

    The caller starts these, and only these, after the commit. A ticket may be tried again when it is not known
    whether an earlier commit came through.
    """
    if not tickets:
        return ()
    result = connection.execute(
        _START,
        [{"b_run_id": t.run_id, "b_owner": owner, "b_epoch": t.epoch, "b_now": now, "b_node": node} for t in tickets],
    )
    if result.rowcount == len(tickets):
        return {ticket.run_id for ticket in tickets}
    return _on_record_as_started(connection, tickets, owner)


def record_missed(connection: Connection, tickets: Sequence[Ticket], *, owner: str, now: int) -> Collection[str]:
    """Records claimed runs that could not be started within their grace time.

    Gives the run ids of those whose start is on record after all, by an earlier commit of unknown fate: the caller
    starts them, as nobody else will.
    """
    rows = [
        {
            "b_run_id": ticket.run_id,
            "b_owner": owner,
            "b_epoch": ticket.epoch,
            "b_now": now,
            "b_reason": f"claimed, but not started within the grace time of {ticket.misfire_grace_time} s",
        }
        for ticket in tickets
    ]
    if not rows or connection.execute(_MISS, rows).rowcount == len(rows):
        return ()
    return _on_record_as_started(connection, tickets, owner)


def _on_record_as_started(connection: Connection, tickets: Iterable[Ticket], owner: str) -> Collection[str]:
    epochs = {ticket.run_id: ticket.epoch for ticket in tickets}
    query = select(runs.c.run_id, runs.c.epoch).where(
        runs.c.run_id.in_(epochs), runs.c.owner == owner, runs.c.outcome == "running"
    )
    return {run_id for run_id, epoch in connection.execute(query) if epochs[run_id] == epoch}


def record_finishes(connection: Connection, finishes: Sequence[Finish], *, owner: str) -> None:
    """Records ends. One that comes twice, because a commit's fate was unknown, changes nothing.

    A run that was presumed lost meanwhile keeps its real end, with a remark, unless it was run again.
    """
    if not finishes:
        return
    rows = [_end_row(finish, owner) for finish in finishes]
    logs = [{"run_id": finish.ticket.run_id, "log": _storable(finish.log)} for finish in finishes if finish.log]
    result = connection.execute(_FINISH, rows)
    if result.rowcount != len(rows):
        connection.execute(_FINISH_LOST, rows)
    if logs:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(run_logs).on_conflict_do_nothing(), logs)


def _end_row(finish: Finish, owner: str) -> dict[str, object]:
    error = None if finish.error is None else _storable(finish.error)
    if error is not None and len(error) > ERROR_LENGTH:
        error = f"{error[:ERROR_LENGTH]}… ({len(error) - ERROR_LENGTH} characters more)"
    return {
        "b_run_id": finish.ticket.run_id,
        "b_owner": owner,
        "b_epoch": finish.ticket.epoch,
        "b_outcome": finish.outcome,
        "b_reason": finish.reason,
        "b_error": error,
        "b_duration": finish.duration,
    }


def _storable(text: str) -> str:
    """`text` with what a database refuses written out: an end that cannot be stored would be tried for ever, and
    with it all starts and ends of this node."""
    # PostgreSQL has no NUL in a text; half of a surrogate pair (an undecodable file name) has no UTF-8 form.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
