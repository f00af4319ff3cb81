"""Tables of the job store: jobs, runs with their logs, nodes, outgoing messages, keys of repeated requests, holds.

Times are microseconds since the epoch, UTC (app.db.clock). JSON is kept as text, so that a row whose JSON is
damaged can still be selected, shown and set aside. Columns that only some rows use are nullable.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal,
    text,
)

from app.db.metadata import jobstore_metadata

Row = Mapping[Any, Any]
"""A selected row by column name, as `.mappings()` gives it."""

JOB_ID_LENGTH = 128
ACTIVE = ("pending", "running")
"""Outcomes of runs that still count against `max_instances`."""
ALARMING = ("failed", "lost", "missed", "skipped")
"""Outcomes that an operator wants to hear of."""
UNUSUAL = ("failed", "lost", "cancelled", "missed", "coalesced", "skipped")
"""Outcomes that few runs of a job have: whoever looks for them must not read all the others."""

jobs = Table(
    "jobs",
    jobstore_metadata,
    Column("id", String(JOB_ID_LENGTH), primary_key=True),
    Column("task", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("source", String(16), nullable=False),  # builtin, default (of the YAML file), own
    Column("trigger", Text, nullable=False),  # JSON, app.triggers' spec
    Column("kwargs", Text, nullable=False),  # JSON object
    Column("next_run_time", BigInteger),
    Column("misfire_grace_time", Integer, nullable=False),  # seconds
    Column("coalesce", Boolean, nullable=False),
    Column("max_instances", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("executor", String(32), nullable=False),
    Column("retry_on_loss", Boolean, nullable=False),
    Column("max_attempts", Integer, nullable=False, server_default=text("1")),
    Column("retry_delay", Integer, nullable=False, server_default=text("60")),  # seconds before the second attempt
    Column("soft_time_limit", Integer),  # seconds after which a run is asked to stop
    Column("time_limit", Integer),  # seconds after which it is made to
    Column("ping_url", Text),  # dead-man ping: told of every start and end
    Column("is_alarming", Boolean, nullable=False, server_default=text("false")),  # alerted, and no success since
    Column("is_enabled", Boolean, nullable=False),
    Column("is_paused", Boolean, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("overrides", Text, nullable=False, server_default="[]"),  # JSON: fields that the API changed
    Column("problem", Text),  # why the row was set aside; null while it can be read
    Column("revision", Integer, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_by", String(64), nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
)
Index(
    "ix_jobs_due",
    jobs.c.next_run_time,
    sqlite_where=jobs.c.next_run_time.is_not(None),
    postgresql_where=jobs.c.next_run_time.is_not(None),
)

runs = Table(
    "runs",
    jobstore_metadata,
    Column("run_id", String(32), primary_key=True),  # UUIDv7 in hex: sorts by the time of the claim
    Column("job_id", String(JOB_ID_LENGTH), nullable=False),
    Column("task", String(255), nullable=False),
    Column("kind", String(16), nullable=False),  # schedule, manual
    Column("scheduled_for", BigInteger, nullable=False),
    Column("scheduled_from", BigInteger),  # first of `count` folded moments
    Column("count", Integer, nullable=False, server_default=text("1")),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text),
    Column("error", Text),
    Column("owner", String(32), nullable=False, server_default=""),  # nodes.node_id; empty: anyone's
    Column("epoch", Integer, nullable=False, server_default=text("1")),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("executor", String(32), nullable=False),
    Column("max_instances", Integer, nullable=False),
    Column("misfire_grace_time", Integer, nullable=False),  # seconds
    Column("retry_on_loss", Boolean, nullable=False),
    Column("max_attempts", Integer, nullable=False, server_default=text("1")),
    Column("retry_delay", Integer, nullable=False, server_default=text("60")),  # seconds
    Column("soft_time_limit", Integer),  # seconds
    Column("time_limit", Integer),  # seconds
    Column("kwargs", Text, nullable=False),  # JSON object, as it stood at the claim
    Column("node", String(255)),  # name of the node that started it
    Column("created_by", String(64), nullable=False),
    Column("claimed_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("first_run_id", String(32)),  # of a later attempt: the run that it repeats
    Column("not_before", BigInteger),  # of a later attempt: when it may start
    Column("cancel_requested_at", BigInteger),
    Column("cancel_requested_by", String(64)),
    UniqueConstraint("job_id", "kind", "scheduled_for", "attempt", name="uq_runs_fire"),
    sqlite_with_rowid=False,  # rows lie in the order of their ids: history pages and purges are range scans
)
Index("ix_runs_job_id_run_id", runs.c.job_id, runs.c.run_id)


def _outcome_in(outcomes: tuple[str, ...]) -> ColumnElement[bool]:
    # Written out, not bound: a planner uses a partial index only where it sees the index's own condition.
    return runs.c.outcome.in_([literal(outcome, literal_execute=True) for outcome in outcomes])


IS_ACTIVE = _outcome_in(ACTIVE)
"""Condition for runs that are pending or running; an index backs it, unlike a comparison with one outcome."""
IS_ALARMING = _outcome_in(ALARMING)
"""Condition for runs with an alarming outcome; backed by an index."""
IS_UNUSUAL = _outcome_in(UNUSUAL)
"""Condition for runs with an unusual outcome; backed by an index of each job's, which a usual run never touches."""
Index("ix_runs_active", runs.c.owner, runs.c.job_id, sqlite_where=IS_ACTIVE, postgresql_where=IS_ACTIVE)
Index("ix_runs_alarming", runs.c.run_id, sqlite_where=IS_ALARMING, postgresql_where=IS_ALARMING)
Index(
    "ix_runs_unusual",
    *(runs.c.job_id, runs.c.outcome, runs.c.run_id),
    sqlite_where=IS_UNUSUAL,
    postgresql_where=IS_UNUSUAL,
)

run_logs = Table(
    "run_logs",
    jobstore_metadata,
    Column("run_id", String(32), primary_key=True),
    Column("log", Text, nullable=False),
    sqlite_with_rowid=False,
)

nodes = Table(
    "nodes",
    jobstore_metadata,
    Column("node_id", String(32), primary_key=True),  # one a process start
    Column("kind", String(16), nullable=False, server_default="scheduler"),  # scheduler, worker (of the Celery fleet)
    Column("name", String(255), nullable=False),
    Column("version", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # running, stopping, stopped, dead
    Column("started_at", BigInteger, nullable=False),
    Column("heartbeat_at", BigInteger, nullable=False),
    Column("lock_file", Text),  # held locked while the process lives; null where there is no shared volume
    Column("stats", Text, nullable=False, server_default="{}"),  # JSON: queue, running, lateness, counters
)

outbox = Table(
    "outbox",
    jobstore_metadata,
    Column("id", String(32), primary_key=True),  # as a run id: sorts by the time of the event
    Column("kind", String(16), nullable=False),  # alert, ping
    Column("url", Text),  # of a ping; an alert goes where ALERT_WEBHOOK_URL says when it is sent
    Column("payload", Text, nullable=False),  # JSON
    Column("created_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_try_at", BigInteger, nullable=False),  # pushed ahead by whoever is sending it: its lease
    Column("last_error", Text),
)
Index("ix_outbox_next_try_at", outbox.c.next_try_at)

idempotency_keys = Table(
    "idempotency_keys",
    jobstore_metadata,
    Column("scope", String(160), primary_key=True),  # what was asked for, and by whom
    Column("key", String(255), primary_key=True),  # the header's value
    Column("fingerprint", String(64), nullable=False),  # SHA-256 of the request
    Column("resource", String(JOB_ID_LENGTH), nullable=False),  # what came of it: a run's or a job's id
    Column("created_at", BigInteger, nullable=False),
)
Index("ix_idempotency_keys_created_at", idempotency_keys.c.created_at)

holds = Table(
    "holds",
    jobstore_metadata,
    Column("name", String(16), primary_key=True),  # all: it holds every job
    Column("reason", Text, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

run_totals = Table(
    "run_totals",
    jobstore_metadata,
    Column("name", String(32), primary_key=True),
    Column("labels", String(512), primary_key=True),  # JSON array
    Column("value", BigInteger, nullable=False),
)
"""Counts of the runs that ended, for the metrics: they go on rising when old runs are purged."""

uncounted_runs = Table(
    "uncounted_runs",
    jobstore_metadata,
    Column("run_id", String(32), primary_key=True),
)
"""Runs that had not ended when those claimed at their time were added to the totals."""
