"""A deliberately naive scheduler app: what a team writes first, kept here to be caught.

Flask, APScheduler and its SQLAlchemyJobStore on one SQLite file, every Gunicorn worker with a scheduler of
its own. The oracle must report its duplicates; one that does not could not see ours either.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import datetime

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask

LOG = os.environ["NAIVE_LOG"]


def tick() -> None:
    """The job: nothing to do. Who ran it, and for which moment, is in the scheduler's own event."""


def record(event: JobExecutionEvent) -> None:
    line = {
        "event": "start",
        "run_id": uuid.uuid4().hex,
        "job_id": event.job_id,
        "scheduled_for": event.scheduled_run_time.isoformat(),
        "kind": "schedule",
        "attempt": 1,
        "node": f"worker-{os.getpid()}",
        "time": time.time(),
    }
    descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def create_app() -> Flask:
    """The app, with a running scheduler and NAIVE_JOBS one-second jobs from NAIVE_FIRST to NAIVE_LAST."""
    app = Flask(__name__)
    scheduler = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=os.environ["NAIVE_STORE"])}, timezone="UTC"
    )
    scheduler.add_listener(record, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    scheduler.start()
    for number in range(int(os.environ["NAIVE_JOBS"])):
        scheduler.add_job(
            tick,
            "interval",
            id=f"tick-{number:02}",
            seconds=1,
            start_date=datetime.fromisoformat(os.environ["NAIVE_FIRST"]),
            end_date=datetime.fromisoformat(os.environ["NAIVE_LAST"]),
            replace_existing=True,
        )

    @app.get("/")
    def state() -> dict[str, int]:
        return {"jobs": len(scheduler.get_jobs())}

    return app
