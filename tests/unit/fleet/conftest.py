"""A real SQLite store with runs that wait for a worker, and a worker's children, forked for real."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from app.db.clock import from_us, now_us
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import runs
from app.db.migrate import ensure_schema
from app.fleet import health
from app.fleet.board import Board
from app.fleet.child import Worker
from app.fleet.supervisor import Supervisor
from app.ledger import Ledger, NewJob

SCHEDULER = "scheduler1"
WORKER = "worker1"


@dataclass
class SampleTask:
    """A task as the ledger sees one."""

    function: Callable[..., Any]
    func_ref: str = "tests.unit.fleet.conftest:SampleTask"
    cpu_bound: bool = False

    def call(self, kwargs: Mapping[str, Any], run: Any) -> Any:
        return self.function(**kwargs)


def quick() -> None:
    print("written by the task")


def slow() -> None:
    time.sleep(60)


def failing() -> None:
    raise RuntimeError("on purpose")


TASKS = {task.__name__: SampleTask(task) for task in (quick, slow, failing)}


@dataclass
class Fleet:
    """A store, a worker on it, and shorthands."""

    engine: Engine
    worker: Worker
    board: Board
    children: list[ForkProcess] = field(default_factory=list)

    def pending(self, task: str, **fields: Any) -> str:
        """A run of a new job of the executor `celery`, claimed by the scheduler; its id."""
        ledger = Ledger(self.engine)
        ledger.attach(SCHEDULER, lambda: None)
        trigger = {"type": "date", "run_date": "2199-01-01T00:00:00", "timezone": "UTC"}
        job_id = f"{task}-{now_us()}"
        ledger.add_job(NewJob(id=job_id, task=task, trigger=trigger, executor="celery", **fields), by="test")
        return ledger.request_run(job_id, created_by="test").run_id

    def scheduled(self, run_id: str, *, late_s: float) -> None:
        """Makes a run one of the schedule's, due some seconds ago."""
        with write_transaction(self.engine) as connection:
            due = now_us() - round(late_s * 1_000_000)
            connection.execute(update(runs).where(runs.c.run_id == run_id).values(kind="schedule", scheduled_for=due))

    def run(self, run_id: str) -> dict[str, Any]:
        with self.engine.connect() as connection:
            return dict(connection.execute(select(runs).where(runs.c.run_id == run_id)).mappings().one())

    def runs_of(self, job_id: str) -> list[dict[str, Any]]:
        query = select(runs).where(runs.c.job_id == job_id).order_by(runs.c.attempt)
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def cancel(self, run_id: str) -> None:
        Ledger(self.engine).cancel_run(run_id, by="test")

    def fork(self, run_id: str, epoch: int = 1) -> ForkProcess:
        """A child that works on a run's message."""

        def work() -> None:
            self.worker.prepare_child()
            self.worker.work_on(run_id, SCHEDULER, epoch)

        child = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        child.start()
        self.children.append(child)
        return child

    def wait_for(self, run_id: str, outcome: str) -> dict[str, Any]:
        found: dict[str, Any] = wait_until(
            lambda: (row := self.run(run_id))["outcome"] == outcome and row, f"{outcome} run"
        )
        return found


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    engine = create_engine_for(f"sqlite:///{tmp_path}/scheduler.db", busy_timeout_s=5)
    ensure_schema(engine, "jobstore")
    board = Board(2)
    worker = Worker(
        node_id=WORKER,
        node_name="w1",
        jobstore_url=engine.url,
        alerts=False,
        board=board,
        resolve=TASKS.get,
        context=nullcontext,
        inherited=(engine,),
    )
    made = Fleet(engine, worker, board)
    yield made
    for child in made.children:
        child.kill()  # also one that a test has stopped: it would never end, and nor would who waits for it
        child.join()
    engine.dispose()


@pytest.fixture
def supervisor(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A supervisor at work."""
    monkeypatch.setattr(health, "FOLDER", tmp_path)
    started = Supervisor(
        node_id=WORKER,
        node_name="w1",
        version="0",
        code="",
        jobstore_url=fleet.engine.url,
        board=fleet.board,
        places=2,
        locks_dir=tmp_path / "locks",
        alerts=False,
        loop_age=lambda: 0.0,
    )
    started.start()
    yield started
    if started._thread.is_alive():  # a test may have stopped it
        started.stop()


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """The first truthy value of `condition`; fails with the last one seen after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: still {value!r} after {timeout_s} s, at {from_us(now_us())}")
        pause.wait(0.02)
    return value
