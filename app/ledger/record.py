"""Start by compare-and-set, and the end of a run: the two entries that follow a claim, in batches.

Many starts and ends share one commit, because a commit waits for the disk and a statement does not.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Text, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.jobstore_tables import IS_ACTIVE, run_logs, runs
from app.ledger.claim import find_crowded, insert_runs
from app.ledger.outbox import Event, EventKind, announce, ticket_event
from app.ledger.retries import IS_STOPPED, after_failure, after_loss
from app.ledger.runs import TICKET_COLUMNS, Outcome, Ticket, is_too_late
from app.ledger.stored_text import stored_text

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
_TAKE = (
    update(runs)
    .where(*_DOOR)
    .values(outcome="running", started_at=bindparam("b_now"), node=bindparam("b_node"), owner=bindparam("b_worker"))
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
    return _on_record(connection, tickets, owner, "running")


class Late(NamedTuple):
    """What became of runs that came too late, by run id. `started`: their start is on record after all, by an earlier
    commit of unknown fate, and the caller starts them, as nobody else will. Neither: somebody else's by now."""

    started: Collection[str]
    missed: Collection[str]


def record_missed(
    connection: Connection, tickets: Sequence[Ticket], *, owner: str, now: int, alerts: bool = False
) -> Late:
    """Records claimed runs that could not be started within their grace time; `alerts`: and announces them."""
    rows = [
        {
            "b_run_id": ticket.run_id,
            "b_owner": owner,
            "b_epoch": ticket.epoch,
            "b_now": now,
            "b_reason": _late_reason(ticket),
        }
        for ticket in tickets
    ]
    if not rows:
        return Late((), ())
    late = Late((), {ticket.run_id for ticket in tickets})
    if connection.execute(_MISS, rows).rowcount != len(rows):
        late = Late(*(_on_record(connection, tickets, owner, outcome) for outcome in ("running", "missed")))
    missed = (ticket for ticket in tickets if ticket.run_id in late.missed)
    announce(connection, [ticket_event("missed", t, reason=_late_reason(t)) for t in missed], alerts=alerts, now=now)
    return late


def _late_reason(ticket: Ticket) -> str:
    return f"claimed, but not started within the grace time of {ticket.misfire_grace_time} s"


def take(
    connection: Connection,
    *,
    run_id: str,
    owner: str,
    epoch: int,
    worker: str,
    node: str,
    now: int,
    alerts: bool = False,
) -> Ticket | None:
    """Opens the door for a worker: the run, pending and `owner`'s at `epoch`, becomes the node `worker`'s, running.

    None when it may not be started: it was taken, handed on or cancelled before, an instance of its job must end
    first, or it is later than its grace time, which is then on record. A run that is on record as this worker's own
    at `epoch` is given again: the commit of an earlier try was of unknown fate.
    """
    columns = [runs.c[name] for name in TICKET_COLUMNS]
    row = connection.execute(select(*columns, runs.c.owner, runs.c.outcome).where(runs.c.run_id == run_id)).mappings()
    found = row.one_or_none()
    if found is None or found["epoch"] != epoch:
        return None
    ticket = Ticket(**{name: found[name] for name in TICKET_COLUMNS})
    if found["outcome"] == "running" and found["owner"] == worker:
        return ticket
    if found["outcome"] != "pending" or found["owner"] != owner or find_crowded(connection, [ticket]):
        return None
    if is_too_late(ticket, now):
        record_missed(connection, [ticket], owner=owner, now=now, alerts=alerts)
        return None
    door = {"b_run_id": run_id, "b_owner": owner, "b_epoch": epoch}
    opened = connection.execute(_TAKE, {**door, "b_now": now, "b_node": node, "b_worker": worker})
    if opened.rowcount != 1:
        return None
    announce(connection, [ticket_event("start", ticket, node=node)], alerts=alerts, now=now)
    return ticket


def cancellations(connection: Connection, *, owner: str) -> set[str]:
    """The running runs of `owner` that somebody wants cancelled."""
    query = select(runs.c.run_id).where(
        IS_ACTIVE, runs.c.owner == owner, runs.c.outcome == "running", runs.c.cancel_requested_at.is_not(None)
    )
    return set(connection.execute(query).scalars())


def _on_record(connection: Connection, tickets: Iterable[Ticket], owner: str, outcome: Outcome) -> Collection[str]:
    """The run ids of those tickets whose run is `owner`'s, at the ticket's epoch, with that outcome."""
    epochs = {ticket.run_id: ticket.epoch for ticket in tickets}
    query = select(runs.c.run_id, runs.c.epoch).where(
        runs.c.run_id.in_(epochs), runs.c.owner == owner, runs.c.outcome == outcome
    )
    return {run_id for run_id, epoch in connection.execute(query) if epochs[run_id] == epoch}


def record_finishes(
    connection: Connection,
    finishes: Sequence[Finish],
    *,
    owner: str,
    now: int,
    node: str | None = None,
    next_owner: str | None = None,
    alerts: bool = False,
) -> list[Ticket]:
    """Records ends of runs of the node `owner`, whose name is `node`. One that comes twice, because a commit's fate
    was unknown, changes nothing.

    A run that was presumed lost meanwhile keeps its real end, with a remark, unless it was run again. One that failed
    or was lost and has an attempt left gets its next one, in the same transaction: gives the tickets of these, which
    are `next_owner`'s (`owner`'s when left out; empty: anybody's).
    """
    if not finishes:
        return []
    rows = [_end_row(finish, owner) for finish in finishes]
    logs = [{"run_id": finish.ticket.run_id, "log": stored_text(finish.log)} for finish in finishes if finish.log]
    result = connection.execute(_FINISH, rows)
    told = finishes
    if result.rowcount != len(rows):
        connection.execute(_FINISH_LOST, rows)
        # Not told of: the end of one that was presumed lost and run again meanwhile.
        told = _as_recorded(connection, finishes, owner)
    if logs:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(run_logs).on_conflict_do_nothing(), logs)
    again = _next_attempts(connection, finishes, owner, owner if next_owner is None else next_owner, now)
    tickets = insert_runs(connection, list(again.values()))
    announce(connection, _end_events(told, again, node), alerts=alerts, now=now)
    return tickets


def _as_recorded(connection: Connection, finishes: Sequence[Finish], owner: str) -> list[Finish]:
    """Those of `finishes` that are on record as they say."""
    outcomes = {finish.outcome for finish in finishes}
    there = {
        outcome: _on_record(connection, [finish.ticket for finish in finishes], owner, outcome) for outcome in outcomes
    }
    return [finish for finish in finishes if finish.ticket.run_id in there[finish.outcome]]


def _next_attempts(
    connection: Connection, finishes: Sequence[Finish], owner: str, next_owner: str, now: int
) -> dict[str, dict[str, Any]]:
    """The rows of the attempts that follow, by the id of the run that each repeats."""
    wanted = [
        finish.ticket.run_id
        for finish in finishes
        if finish.outcome == "lost"
        or (finish.outcome == "failed" and finish.ticket.attempt < finish.ticket.max_attempts)
    ]
    if not wanted:
        return {}
    found: dict[str, dict[str, Any]] = {}
    # As they are on record: one that was lost long ago and run again is none of ours to repeat.
    ended = select(runs).where(
        runs.c.run_id.in_(wanted),
        runs.c.owner == owner,
        runs.c.outcome.in_(("failed", "lost")),
        runs.c.cancel_requested_at.is_(None),
    )
    for row in connection.execute(ended.where(~IS_STOPPED)).mappings():
        after = after_failure if row["outcome"] == "failed" else after_loss
        if (again := after(row, owner=next_owner, now=now)) is not None:
            found[row["run_id"]] = again
    return found


_EVENT_KINDS: dict[str, EventKind] = {"success": "success", "failed": "failed", "lost": "lost"}


def _end_events(finishes: Sequence[Finish], again: Collection[str], node: str | None) -> list[Event]:
    return [
        ticket_event(
            _EVENT_KINDS[finish.outcome],
            finish.ticket,
            node=node,
            reason=finish.reason,
            error=None if finish.error is None else stored_text(finish.error[:ERROR_LENGTH]),
            log=stored_text(finish.log),
        )
        for finish in finishes
        if finish.outcome in _EVENT_KINDS and not (finish.outcome == "failed" and finish.ticket.run_id in again)
    ]


def _end_row(finish: Finish, owner: str) -> dict[str, object]:
    error = None if finish.error is None else stored_text(finish.error)
    if error is not None and len(error) > ERROR_LENGTH:
        error = f"{error[:ERROR_LENGTH]}… ({len(error) - ERROR_LENGTH} characters more)"
    return {
        "b_run_id": finish.ticket.run_id,
        "b_owner": owner,
        "b_epoch": finish.ticket.epoch,
        "b_outcome": finish.outcome,
        "b_reason": None if finish.reason is None else stored_text(finish.reason),
        "b_error": error,
        "b_duration": finish.duration,
    }
