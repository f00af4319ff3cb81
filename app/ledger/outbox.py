"""The outbox: messages to the outside, written in the transaction of the event that they tell of.

So none is lost and none tells of what did not happen. app.alerts delivers them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, insert, select, update

from app.db.clock import from_us
from app.db.jobstore_tables import Row, jobs, outbox
from app.ledger.run_ids import new_run_id
from app.ledger.runs import Ticket

LOG_TAIL = 10_000
"""Characters of a run's log that its ping carries, the last ones."""

EventKind = Literal["start", "success", "failed", "lost", "missed"]
_SIGNALS: dict[EventKind, str] = {"start": "start", "success": "success", "failed": "fail", "lost": "fail"}
"""What a dead-man ping is told. A missed moment sends none: that is what it waits for."""
_ALARMS = ("failed", "lost", "missed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a run. A run that failed and will be tried again is none."""

    kind: EventKind
    job_id: str
    run_id: str | None
    task: str
    scheduled_for: int  # microseconds since the epoch
    attempt: int = 1
    count: int = 1
    node: str | None = None
    reason: str | None = None
    error: str | None = None
    log: str = ""


def announce(connection: Connection, events: Iterable[Event], *, alerts: bool, now: int) -> None:
    """Writes the messages of `events`: pings of jobs that have a ping URL, and, where `alerts` is set, alerts.

    A success of a job whose last alert was an alarm is told as "job.recovered".
    """
    events = list(events)
    if not events:
        return
    by_id = _jobs(connection, {event.job_id for event in events}, alerts=alerts)
    rows: list[dict[str, Any]] = []
    alarming: dict[str, bool] = {}
    for event in events:
        job = by_id.get(event.job_id)
        if job is None:
            continue
        signal = _SIGNALS.get(event.kind)
        if job["ping_url"] and signal is not None:
            payload = {"signal": signal, "run_id": event.run_id, "job_id": event.job_id, "log": event.log[-LOG_TAIL:]}
            rows.append(_row("ping", payload, now, url=job["ping_url"]))
        if alerts and event.kind in _ALARMS:
            rows.append(_row("alert", _alert(f"run.{event.kind}", event, job, now), now))
            alarming[event.job_id] = True
        elif alerts and event.kind == "success" and alarming.get(event.job_id, job["is_alarming"]):
            rows.append(_row("alert", _alert("job.recovered", event, job, now), now))
            alarming[event.job_id] = False
    if rows:
        connection.execute(insert(outbox), rows)
    changed = {job_id: new for job_id, new in alarming.items() if new != by_id[job_id]["is_alarming"]}
    if not changed:
        return
    # One order for all, so that two nodes do not wait for each other's rows.
    connection.execute(select(jobs.c.id).where(jobs.c.id.in_(changed)).order_by(jobs.c.id).with_for_update())
    for value in (True, False):
        ids = [job_id for job_id, new in changed.items() if new == value]
        if ids:
            connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(is_alarming=value))


def _jobs(connection: Connection, ids: set[str], *, alerts: bool) -> dict[str, Row]:
    query = select(jobs.c.id, jobs.c.name, jobs.c.ping_url, jobs.c.is_alarming).where(jobs.c.id.in_(ids))
    if not alerts:
        query = query.where(jobs.c.ping_url.is_not(None))
    return {row["id"]: row for row in connection.execute(query).mappings()}


def _alert(name: str, event: Event, job: Row, now: int) -> dict[str, Any]:
    return {
        "event": name,
        "at": from_us(now).isoformat(),
        "job_id": event.job_id,
        "job_name": job["name"],
        "task": event.task,
        "run_id": event.run_id,
        "scheduled_for": from_us(event.scheduled_for).isoformat(),
        "attempt": event.attempt,
        "count": event.count,
        "node": event.node,
        "reason": event.reason,
        "error": event.error,
    }


def _row(kind: str, payload: dict[str, Any], now: int, *, url: str | None = None) -> dict[str, Any]:
    return {
        "id": new_run_id(now),
        "kind": kind,
        "url": url,
        "payload": json.dumps(payload, ensure_ascii=False),
        "created_at": now,
        "next_try_at": now,
    }


def ticket_event(
    kind: EventKind,
    ticket: Ticket,
    *,
    node: str | None = None,
    reason: str | None = None,
    error: str | None = None,
    log: str = "",
) -> Event:
    """An event of the run in `ticket`."""
    return Event(
        kind=kind,
        job_id=ticket.job_id,
        run_id=ticket.run_id,
        task=ticket.task,
        scheduled_for=ticket.scheduled_for,
        attempt=ticket.attempt,
        node=node,
        reason=reason,
        error=error,
        log=log,
    )


def lost_events(rows: Sequence[Row], *, reason: str) -> list[Event]:
    """The events of runs that are called lost, from their rows."""
    return [
        Event(
            kind="lost",
            job_id=row["job_id"],
            run_id=row["run_id"],
            task=row["task"],
            scheduled_for=row["scheduled_for"],
            attempt=row["attempt"],
            node=row["node"],
            reason=reason,
        )
        for row in rows
    ]
