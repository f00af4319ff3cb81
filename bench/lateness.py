#!/usr/bin/env python3
"""How late do jobs start that are due in the same second? Ours beside plain APScheduler, in one run.

Lateness is taken at the first line of the task function, against the moment that was due. Each measurement runs
in a process of its own, one after the other:

  whalefall               the app's own scheduler (create_app) on SQLite, WAL, synchronous=FULL
  apscheduler             APScheduler's BackgroundScheduler, jobs in memory
  apscheduler+sqlalchemy  the same with its SQLAlchemyJobStore on SQLite, WAL, synchronous=FULL

All have the same trigger, the same number of threads, and a task that does nothing but note the time. Of ours,
every fire must be claimed, started and finished on record, once, or the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WHALEFALL = "whalefall"
MEMORY = "apscheduler"
SQLALCHEMY = "apscheduler+sqlalchemy"
SYSTEMS = (WHALEFALL, MEMORY, SQLALCHEMY)
GOALS_MS = {1: ("p50", 5.0), 1000: ("p99", 250.0)}  # jobs -> which figure of ours, and its goal

TASK_MODULE = """
import time

from app.tasks import task

ARRIVALS = []


@task("note_arrival", description="Notes when it was called")
def note_arrival(*, run):
    now = time.time()
    ARRIVALS.append((now, run.job_id, run.scheduled_for.timestamp(), run.id))
"""


@dataclass(frozen=True)
class Figures:
    """Of one system and number of jobs. Times in milliseconds. record: "ok", or what is wrong; None for peers."""

    system: str
    jobs: int
    ticks: int
    expected: int
    started: int
    p50: float
    p99: float
    max: float
    record: str | None = None


@dataclass(frozen=True)
class Plan:
    """What one process measures: `jobs` jobs, all due every `period_s` seconds, `ticks` times."""

    jobs: int
    ticks: int
    period_s: float
    threads: int
    folder: Path

    def first_tick(self) -> datetime:
        """The coming first tick: a whole second, with time to settle."""
        return datetime.fromtimestamp(math.ceil(time.time() + 2), UTC)

    def last_tick(self, first: datetime) -> datetime:
        """The tick after which nothing is due any more."""
        return first + timedelta(seconds=self.period_s * (self.ticks - 1))


def figures(system: str, plan: Plan, lateness_s: Sequence[float], record: str | None = None) -> Figures:
    """Percentiles by nearest rank."""
    ordered = sorted(lateness_s)

    def rank(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000, 2) if ordered else math.nan

    expected = plan.jobs * plan.ticks
    return Figures(
        system, plan.jobs, plan.ticks, expected, len(ordered), rank(0.5), rank(0.99), rank(1.0), record=record
    )


# --- One process, one measurement ----------------------------------------------------------------------------


def measure_whalefall(plan: Plan) -> Figures:
    """Our scheduler, as the product starts it, with the ledger checked afterwards."""
    from app import create_app
    from app.ledger import NewJob
    from app.runtime import runtime_of
    from app.scheduler import stop_scheduler
    from app.settings import Settings

    tasks = plan.folder / "tasks"
    tasks.mkdir()
    (tasks / "note_arrival.py").write_text(TASK_MODULE, encoding="utf-8")
    defaults = plan.folder / "no_default_jobs.yaml"
    defaults.write_text("default_tasks: []\n", encoding="utf-8")
    settings = Settings.load(
        {
            "USERDATA_DIR": str(plan.folder),
            "SCHEDULER_TASKS_FILE": str(defaults),
            "SCHEDULER_THREADS": str(plan.threads),
            "SECRET_KEY": "bench" * 8,
            "ADMIN_PASSWORD": "bench" * 8,
            "API_TOKEN": "bench" * 8,
            "LOG_LEVEL": "WARNING",
        }
    )
    app = create_app(settings)
    runtime = runtime_of(app)
    task = runtime.tasks.get("note_arrival")
    assert task is not None, runtime.tasks.problems
    arrivals = task.function.__globals__["ARRIVALS"]
    try:
        first = plan.first_tick() + timedelta(seconds=plan.jobs // 250)
        trigger = interval_spec(plan, first)
        with runtime.ledger.together() as ledger:
            for number in range(plan.jobs):
                ledger.add_job(NewJob(id=f"job-{number:05}", task="note_arrival", trigger=trigger), by="bench")
        assert datetime.now(UTC) < first, "adding the jobs took longer than expected"
        wait_until(plan, first, lambda: len(arrivals) >= plan.jobs * plan.ticks)
    finally:
        stop_scheduler()
    record = check_record(runtime.jobstore, plan, first, arrivals)
    return figures(WHALEFALL, plan, [now - due for now, _, due, _ in arrivals], record=record)


def interval_spec(plan: Plan, first: datetime) -> dict[str, Any]:
    """The trigger of all of our jobs."""
    return {
        "type": "interval",
        "seconds": plan.period_s,
        "start_date": first.isoformat(),
        "end_date": plan.last_tick(first).isoformat(),
        "timezone": "UTC",
    }


def check_record(engine: Any, plan: Plan, first: datetime, arrivals: Sequence[tuple[Any, ...]]) -> str:
    """The word "ok" when every fire is on record as claimed, started and finished, once, and nothing else is."""
    from sqlalchemy import select

    from app.db.jobstore_tables import runs

    ticks = [round((first.timestamp() + plan.period_s * n) * 1_000_000) for n in range(plan.ticks)]
    expected = {(f"job-{number:05}", tick) for number in range(plan.jobs) for tick in ticks}
    calls = Counter(run_id for *_, run_id in arrivals)
    problems = Counter({"started twice": sum(count > 1 for count in calls.values())})
    with engine.connect() as connection:
        for row in connection.execute(select(runs)).mappings():
            fire = (row["job_id"], row["scheduled_for"])
            problems["not expected, or twice"] += fire not in expected
            expected.discard(fire)
            complete = row["claimed_at"] and row["started_at"] and row["finished_at"]
            problems["not finished on record"] += not complete or row["outcome"] != "success"
            problems["on record, but not called"] += row["run_id"] not in calls
    problems["absent"] = len(expected)
    found = [f"{count} {problem}" for problem, count in problems.items() if count]
    return ", ".join(found) or "ok"


PEER_ARRIVALS: list[tuple[float, int]] = []


def note_peer_arrival(number: int) -> None:
    """The task of APScheduler's jobs; at module level, because its store keeps it by name."""
    now = time.time()
    PEER_ARRIVALS.append((now, number))


def measure_apscheduler(plan: Plan, *, with_store: bool) -> Figures:
    """Plain APScheduler. A call belongs to the last tick before it: the period is longer than any lateness."""
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    stores = {"default": sqlalchemy_store(plan)} if with_store else {}
    scheduler = BackgroundScheduler(
        timezone="UTC",
        jobstores=stores,
        executors={"default": ThreadPoolExecutor(plan.threads)},
        job_defaults={"misfire_grace_time": 300, "coalesce": True, "max_instances": 1},
    )
    scheduler.start(paused=True)
    first = plan.first_tick() + timedelta(seconds=plan.jobs // 100)
    for number in range(plan.jobs):
        scheduler.add_job(
            note_peer_arrival,
            "interval",
            args=(number,),
            seconds=plan.period_s,
            start_date=first,
            end_date=plan.last_tick(first),
            id=f"job-{number:05}",
        )
    assert datetime.now(UTC) < first, "adding the jobs took longer than expected"
    scheduler.resume()
    wait_until(plan, first, lambda: len(PEER_ARRIVALS) >= plan.jobs * plan.ticks)
    scheduler.shutdown()
    start = first.timestamp()
    lateness = [(now - start) % plan.period_s for now, _ in PEER_ARRIVALS]
    return figures(SQLALCHEMY if with_store else MEMORY, plan, lateness)


def sqlalchemy_store(plan: Plan) -> Any:
    """APScheduler's own store, with the same safety as ours."""
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from sqlalchemy import create_engine, event

    engine = create_engine(f"sqlite:///{plan.folder}/apscheduler.db")

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    return SQLAlchemyJobStore(engine=engine)


def wait_until(plan: Plan, first: datetime, done: Callable[[], bool]) -> None:
    """Until everything has arrived, or until that can no longer be expected."""
    deadline = plan.last_tick(first).timestamp() + max(20.0, 5 * plan.period_s)
    while not done() and time.time() < deadline:
        time.sleep(0.2)


def measure(system: str, plan: Plan) -> Figures:
    """The measurement of this process."""
    logging.basicConfig(level=logging.ERROR)
    if system == WHALEFALL:
        return measure_whalefall(plan)
    return measure_apscheduler(plan, with_store=system == SQLALCHEMY)


# --- All of them, side by side -------------------------------------------------------------------------------


def measure_in_process(system: str, jobs: int, args: argparse.Namespace) -> Figures:
    """Runs this file once more for one measurement, in an empty folder of its own."""
    with tempfile.TemporaryDirectory(prefix="whalefall-bench-", dir=args.dir) as folder:
        command = [sys.executable, __file__, "--measure", system, "--jobs", str(jobs), "--dir", folder]
        command += ["--ticks", str(args.ticks), "--period", str(args.period), "--threads", str(args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"bench/lateness.py: {system} with {jobs} jobs ended with status {done.returncode}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def table(results: Sequence[Figures]) -> str:
    """The results as text."""
    lines = [f"{'jobs':>5}  {'system':<23} {'fires':>13} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9}  on record"]
    for row in results:
        fires = f"{row.started}/{row.expected}"
        figures_ms = f"{row.p50:9.1f} {row.p99:9.1f} {row.max:9.1f}"
        lines.append(f"{row.jobs:>5}  {row.system:<23} {fires:>13} {figures_ms}  {row.record or '-'}")
    for row in results:
        if row.system == WHALEFALL and row.jobs in GOALS_MS:
            name, goal = GOALS_MS[row.jobs]
            verdict = "met" if getattr(row, name) <= goal else "missed"
            lines.append(f"goal, {row.jobs} jobs: {name} of {goal:g} ms or less: {verdict}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 when a fire of ours is not on record as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 100, 1000], help="jobs due together")
    parser.add_argument("--ticks", type=int, default=30, help="how often they are due (default: 30)")
    parser.add_argument("--period", type=float, default=3.0, help="seconds between ticks (default: 3)")
    parser.add_argument("--threads", type=int, default=64, help="threads of every executor (default: 64)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="what to measure")
    parser.add_argument("--quick", action="store_true", help="5 ticks: about two minutes instead of fifteen")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON; - for standard output")
    parser.add_argument("--dir", help="where the databases lie (default: the system's temporary folder)")
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if min(*args.jobs, args.ticks, args.threads, 1) < 1 or args.period < 1:
        parser.error("--jobs, --ticks, --threads and --period must be at least 1")
    if args.quick:
        args.ticks = min(args.ticks, 5)
    if args.measure:
        plan = Plan(args.jobs[0], args.ticks, args.period, args.threads, Path(args.dir))
        print(json.dumps(asdict(measure(args.measure, plan))))
        return 0
    results = []
    for jobs in args.jobs:
        for system in args.systems:
            print(f"measuring {system}, {jobs} jobs, {args.ticks} ticks ...", file=sys.stderr)
            results.append(measure_in_process(system, jobs, args))
    print(table(results))
    if args.json:
        report = {
            "benchmark": "lateness",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "period_s": args.period,
            "threads": args.threads,
            "results": [asdict(row) for row in results],
        }
        text = json.dumps(report, indent=2)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0 if all(row.record in (None, "ok") for row in results) else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
