"""A real SQLite store, and nodes on it that a test steps by hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from app.db.clock import to_us
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import jobs, runs
from app.db.migrate import ensure_schema
from app.ledger import Ledger, LedgerScheduler, NewJob, Ticket
from app.ledger.claim import Claimed, claim

EVERY_SECOND = {"type": "cron", "second": "*", "timezone": "UTC"}
START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@dataclass
class SampleTask:
    """A task as the ledger sees one."""

    function: Callable[..., Any]
    wants_run: bool = False
    func_ref: str = "tests.unit.ledger.conftest:SampleTask"
    cpu_bound: bool = False

    def call(self, kwargs: Mapping[str, Any], run: Any) -> Any:
        return self.function(**kwargs, **({"run": run} if self.wants_run else {}))


@dataclass
class Store:
    """The store under test, and shorthands to look into it."""

    engine: Engine
    ledger: Ledger
    tasks: dict[str, SampleTask] = field(default_factory=dict)

    def add(self, job_id: str = "job", **fields: Any) -> None:
        fields = {"task": "sample", "trigger": EVERY_SECOND, **fields}
        self.ledger.add_job(NewJob(id=job_id, **fields), by="test")

    def set_job(self, job_id: str, **values: Any) -> None:
        """Writes columns of a job behind the ledger's back."""
        with write_transaction(self.engine) as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))

    def due_at(self, moment: datetime, job_id: str = "job") -> None:
        self.set_job(job_id, next_run_time=to_us(moment))

    def claim(self, now: datetime, owner: str = "n1", only: str | None = None) -> Claimed:
        with write_transaction(self.engine) as connection:
            return claim(connection, owner=owner, now=to_us(now), only=only)

    def runs(self, **where: Any) -> list[dict[str, Any]]:
        query = select(runs).order_by(runs.c.run_id)
        for name, value in where.items():
            query = query.where(runs.c[name] == value)
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def job(self, job_id: str = "job") -> dict[str, Any]:
        with self.engine.connect() as connection:
            return dict(connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    engine = create_engine_for(f"sqlite:///{tmp_path}/scheduler.db", busy_timeout_s=5)
    ensure_schema(engine, "jobstore")
    yield Store(engine, Ledger(engine))
    engine.dispose()


@pytest.fixture
def start_node(store: Store, tmp_path: Path) -> Iterator[Callable[..., LedgerScheduler]]:
    """Starts a real scheduler on the store; all are stopped at the end."""
    started: list[LedgerScheduler] = []

    def start(name: str = "n1", **options: Any) -> LedgerScheduler:
        values: dict[str, Any] = {
            "resolve": store.tasks.get,
            "context": nullcontext,
            "node_name": name,
            "version": "0",
            "timezone": "UTC",
            "threads": 8,
            "processes": 1,
            "lost_after_s": 3.0,
            "locks_dir": tmp_path / "locks",
            "run_in_child": _refuse,
        }
        paused = options.pop("paused", False)
        scheduler = LedgerScheduler(Ledger(store.engine), **{**values, **options})
        scheduler.start(paused=paused)
        started.append(scheduler)
        return scheduler

    yield start
    for scheduler in started:
        if scheduler.running:
            scheduler.stop(2)


def _refuse(ticket: Ticket) -> Any:
    raise AssertionError(f"no child process expected for {ticket}")


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """The first truthy value of `condition`; fails with the last one seen after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    event = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: still {value!r} after {timeout_s} s")
        event.wait(0.01)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def as_json(value: Any) -> str:
    return json.dumps(value)
