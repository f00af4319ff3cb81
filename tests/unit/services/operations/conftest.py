"""What the operations work on: a store with jobs that the API changed, and runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import insert

from app.db.clock import now_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import run_logs, runs
from app.ledger import NewJob
from app.runtime import Runtime
from app.triggers import parse_trigger
from tests.unit.ledger.run_rows import run_row

EVERY_NIGHT = parse_trigger({"trigger_type": "cron", "cron_expression": "0 1 * * *"}, default_timezone="UTC").spec
EVERY_MORNING = parse_trigger({"trigger_type": "cron", "cron_expression": "30 6 * * mon"}, default_timezone="UTC").spec

DEFAULTS = (
    NewJob(id="sync_accounts", task="sync_accounts", trigger=EVERY_NIGHT, source="builtin"),
    NewJob(id="purge_run_history", task="purge_run_history", trigger=EVERY_NIGHT, source="builtin"),
    NewJob(id="copy_report", task="no_such_task", trigger=EVERY_NIGHT, source="default"),
)


@pytest.fixture
def with_defaults(runtime: Runtime) -> Runtime:
    """The runtime of a store that holds the default jobs, unchanged."""
    runtime.ledger.load_defaults(DEFAULTS)
    return runtime


@pytest.fixture
def add_runs(runtime: Runtime) -> Callable[..., list[str]]:
    """Writes `count` rows of history, with a log each; their ids, oldest first."""

    def add(count: int, *, job_id: str = "sync_accounts", outcome: str = "success", pad: str = "") -> list[str]:
        first = now_us() - count * 1_000_000
        moments = [first + index * 1_000_000 for index in range(count)]
        rows = [run_row(job_id, moment, outcome=outcome) for moment in moments]
        ids = [str(row["run_id"]) for row in rows]
        with write_transaction(runtime.jobstore) as connection:
            connection.execute(insert(runs), rows)
            connection.execute(insert(run_logs), [{"run_id": run_id, "log": f"log {run_id}{pad}"} for run_id in ids])
        return ids

    return add
