#!/usr/bin/env python3
"""How fast are lists over a large store? Pages of our API beside APScheduler's get_jobs, in one run.

Measured is the whole answer of the app (routes, login by token, services, JSON), without network and nginx:

  GET /api/v1/scheduler/jobs?limit=50                 first page, and one from the middle
  GET /api/v1/scheduler/jobs/{id}/history?limit=50    the same, of a job with a million runs

and for comparison APScheduler's `get_jobs()` over as many jobs, from its SQLAlchemyJobStore and from memory. A
page must be one query to the job store, or the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import create_engine, event

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import create_app
from app.db.jobstore_tables import runs
from app.ledger import NewJob
from app.ledger.run_ids import new_run_id
from app.runtime import Runtime, runtime_of
from app.scheduler import stop_scheduler
from app.settings import Settings

PAGE = 50
GOAL_MS = 30.0  # of a page of jobs
TOKEN = "bench" * 8
NEVER_SOON = {"type": "cron", "month": "1", "day": "1", "hour": "0", "timezone": "Asia/Shanghai"}
HISTORY_JOB = "job-00000"


@dataclass(frozen=True)
class Figures:
    """Of one list. Times in milliseconds; queries to the job store for one page, None where they are not counted."""

    what: str
    rows: int
    p50: float
    max: float
    queries: int | None = None


def job_id(number: int) -> str:
    """Ids in the order of their numbers."""
    return f"job-{number:05}"


# --- The stores ----------------------------------------------------------------------------------------------


def settings_for(folder: Path) -> Settings:
    """Settings of an app whose stores lie in the folder and which has no job yet."""
    defaults = folder / "no_default_jobs.yaml"
    defaults.write_text("default_tasks: []\n", encoding="utf-8")
    return Settings.load(
        {
            "USERDATA_DIR": str(folder),
            "SCHEDULER_TASKS_FILE": str(defaults),
            "SECRET_KEY": TOKEN,
            "ADMIN_PASSWORD": TOKEN,
            "API_TOKEN": TOKEN,
            "LOG_LEVEL": "WARNING",
        }
    )


def fill_store(runtime: Runtime, jobs: int, history: int) -> None:
    """Jobs that do not fire meanwhile; one with a long history, each other one with a run."""
    with runtime.ledger.together() as ledger:
        for number in range(jobs):
            ledger.add_job(NewJob(id=job_id(number), task="purge_run_history", trigger=NEVER_SOON), by="bench")
    path = runtime.jobstore.url.database
    assert path is not None
    names = [column.name for column in runs.columns]
    insert = f"INSERT INTO runs ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous=OFF")  # filling is not what is measured
        with connection:
            connection.executemany(insert, past_runs(jobs, history))
        connection.execute("ANALYZE")


def past_runs(jobs: int, history: int) -> Iterator[dict[str, Any]]:
    """Rows of `runs`: a second apart, the other jobs' among those of the job with the history."""
    at = int(time.time() - history - jobs - 3600) * 1_000_000
    every = max(1, history // max(1, jobs - 1))
    others = iter(range(1, jobs))
    for number in range(history):
        at += 1_000_000
        yield past_run(HISTORY_JOB, at)
        if number % every == 0 and (other := next(others, None)) is not None:
            yield past_run(job_id(other), at)
    for other in others:
        yield past_run(job_id(other), at)


def past_run(job: str, due: int) -> dict[str, Any]:
    """A run that succeeded. due: microseconds since the epoch."""
    row: dict[str, Any] = {column.name: None for column in runs.columns}
    return row | {
        "run_id": new_run_id(due + 4_000),
        "job_id": job,
        "task": "purge_run_history",
        "kind": "schedule",
        "scheduled_for": due,
        "count": 1,
        "attempt": 1,
        "outcome": "success",
        "owner": "",
        "epoch": 1,
        "priority": 0,
        "executor": "default",
        "max_instances": 1,
        "misfire_grace_time": 300,
        "retry_on_loss": 0,
        "kwargs": "{}",
        "node": "bench",
        "created_by": "system",
        "claimed_at": due + 4_000,
        "started_at": due + 6_000,
        "finished_at": due + 9_000,
    }


# --- The measurements ----------------------------------------------------------------------------------------


@contextmanager
def counted_queries(engine: Any) -> Iterator[list[str]]:
    """The statements that the block sends to this engine (the scheduler's loop has another one)."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def timed(what: str, rows: int, rounds: int, call: Callable[[], object]) -> Figures:
    """The median and the worst of some rounds, after one to warm up."""
    call()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1000)
    return Figures(what, rows, round(statistics.median(taken), 2), round(max(taken), 2))


def measure_whalefall(folder: Path, jobs: int, history: int, rounds: int) -> list[Figures]:
    """Our pages."""
    settings = settings_for(folder)
    fill_store(runtime_of(create_app(settings, init_scheduler_on_start=False)), jobs, history)
    app = create_app(settings)
    runtime = runtime_of(app)
    try:
        client = app.test_client()

        def get(path: str) -> Any:
            answer = client.get(f"/api/v1/scheduler/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 200, answer.text
            assert len(answer.json["data"]) == PAGE, "a full page"
            return answer.json

        with runtime.jobstore.connect() as connection:
            middle = connection.exec_driver_sql(
                "SELECT run_id FROM runs WHERE job_id = ? ORDER BY run_id LIMIT 1 OFFSET ?", (HISTORY_JOB, history // 2)
            ).scalar_one()
        pages = [
            ("jobs, first page", jobs, f"jobs?limit={PAGE}"),
            ("jobs, page from the middle", jobs, f"jobs?limit={PAGE}&cursor={job_id(jobs // 2)}"),
            ("history, first page", history, f"jobs/{HISTORY_JOB}/history?limit={PAGE}"),
            ("history, page from the middle", history, f"jobs/{HISTORY_JOB}/history?limit={PAGE}&cursor={middle}"),
        ]
        results = []
        for what, rows, path in pages:
            figures = timed(what, rows, rounds, lambda path=path: get(path))
            with counted_queries(runtime.jobstore) as statements:
                get(path)
            # BEGIN goes through the same hook
            queries = sum(not statement.lstrip().upper().startswith("BEGIN") for statement in statements)
            results.append(Figures(what, rows, figures.p50, figures.max, queries=queries))
        return results
    finally:
        stop_scheduler()


def never() -> None:
    """The task of APScheduler's jobs; at module level, because its store keeps it by name."""


def measure_apscheduler(folder: Path, jobs: int, rounds: int) -> list[Figures]:
    """APScheduler's get_jobs, which has no pages."""
    engine = create_engine(f"sqlite:///{folder}/apscheduler.db")

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # filling is not what is measured

    results = []
    for what, store in (
        ("APScheduler get_jobs, SQLAlchemyJobStore", SQLAlchemyJobStore(engine=engine)),
        ("APScheduler get_jobs, memory", MemoryJobStore()),
    ):
        scheduler = BackgroundScheduler(timezone="Asia/Shanghai", jobstores={"default": store})
        for number in range(jobs):
            scheduler.add_job(never, "cron", month="1", day="1", hour="0", id=job_id(number))
        scheduler.start(paused=True)
        results.append(timed(what, jobs, max(3, rounds // 10), scheduler.get_jobs))
        scheduler.shutdown()
    engine.dispose()
    return results


# --- The report ----------------------------------------------------------------------------------------------


def table(results: Sequence[Figures]) -> str:
    """The results as text."""
    lines = [f"{'list':<42} {'rows':>9} {'p50 ms':>9} {'max ms':>9} {'queries':>8}"]
    for row in results:
        queries = "-" if row.queries is None else row.queries
        lines.append(f"{row.what:<42} {row.rows:>9} {row.p50:9.1f} {row.max:9.1f} {queries:>8}")
    jobs_page = results[0]
    verdict = "met" if jobs_page.p50 <= GOAL_MS else "missed"
    lines.append(f"goal, {jobs_page.what}: {GOAL_MS:g} ms or less: {verdict}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 when a page takes more than one query."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs in the store (default: 10000)")
    parser.add_argument("--history", type=int, default=1_000_000, help="runs of one job (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=100, help="requests for each page (default: 100)")
    parser.add_argument("--quick", action="store_true", help="2,000 jobs, 50,000 runs, 20 rounds")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON; - for standard output")
    parser.add_argument("--dir", help="where the databases lie (default: the system's temporary folder)")
    args = parser.parse_args(argv)
    if args.quick:
        args.jobs, args.history, args.rounds = min(args.jobs, 2_000), min(args.history, 50_000), min(args.rounds, 20)
    if args.jobs < 3 * PAGE or args.history < 3 * PAGE or args.rounds < 1:
        parser.error(f"--jobs and --history must be at least {3 * PAGE}, --rounds at least 1")
    with tempfile.TemporaryDirectory(prefix="whalefall-bench-", dir=args.dir) as folder:
        print("filling the stores ...", file=sys.stderr)
        results = measure_whalefall(Path(folder), args.jobs, args.history, args.rounds)
        results += measure_apscheduler(Path(folder), args.jobs, args.rounds)
    print(table(results))
    if args.json:
        report = {
            "benchmark": "listing",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "page": PAGE,
            "results": [asdict(row) for row in results],
        }
        text = json.dumps(report, indent=2)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0 if all(row.queries in (None, 1) for row in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
