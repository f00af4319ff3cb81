"""This process's scheduler: whether it runs one, its start and stop, and the default jobs that it loads."""

from __future__ import annotations

import atexit
import logging
import os
from functools import partial

from flask import Flask, has_app_context
from sqlalchemy import Engine, inspect

from app.alerts import Delivery
from app.default_jobs import load_default_jobs
from app.fleet.sender import Sender, open_broker
from app.ledger import Ending, LedgerScheduler, ReloadReport, Ticket, capture, execute, failpoints
from app.logging_setup import configure_logging
from app.repositories.run_totals_repository import RunTotalsRepository
from app.runtime import Runtime, current_runtime, runtime_of
from app.settings import Settings
from app.tasks import BUILTIN_TASK_IDS
from app.version import VERSION, code_fingerprint

__all__ = ["BUILTIN_TASK_IDS", "get_scheduler", "start_scheduler", "stop_scheduler"]

OLD_STORE_TABLE = "apscheduler_jobs"
"""APScheduler's own table, where the app before this one kept its jobs, pickled."""

logger = logging.getLogger(__name__)

_process_runtime: Runtime | None = None
"""The runtime whose scheduler runs in this process: for whoever asks outside an application context."""
_process_delivery: Delivery | None = None
"""What this process's scheduler sends to the outside."""


def get_scheduler() -> LedgerScheduler | None:
    """The scheduler of the current app, or, outside its context, of this process; None where none runs."""
    runtime = current_runtime() if has_app_context() else _process_runtime
    return None if runtime is None else runtime.scheduler


def _should_start_scheduler(settings: Settings | None = None) -> bool:
    """Whether this process runs a scheduler: not when ENABLE_SCHEDULER says no, not under a `flask` command,
    not in the parent of Flask's reloader; its child, which serves the requests, does."""
    settings = settings or Settings.load()
    if not settings.enable_scheduler:
        return False
    # `flask run` starts the reloader, so its parent is a flask command like any other.
    return settings.werkzeug_run_main or not settings.flask_run_from_cli


def start_scheduler(app: Flask) -> LedgerScheduler:
    """Loads the default jobs and starts the scheduler of `app`; it stops with the process.

    Raises DefaultJobsError for an invalid file, and what the store raises: a process that should run a
    scheduler and cannot must not go on without.
    """
    global _process_runtime, _process_delivery  # noqa: PLW0603 - a process has one scheduler
    runtime = runtime_of(app)
    settings = runtime.settings
    failpoints.arm(settings.fail_points)
    _report_old_store(runtime.jobstore)
    report = runtime.ledger.load_defaults(load_default_jobs(settings, runtime.tasks))
    RunTotalsRepository(runtime.jobstore).begin()  # so that nothing that this scheduler runs is left out
    logger.info("default jobs: %s added, %s updated, %s kept", len(report.added), len(report.updated), len(report.kept))
    for job_id in report.unknown:
        logger.warning("job %s is no longer in %s; it stays until a reload", job_id, settings.scheduler_tasks_file)
    fleet = Sender(partial(open_broker, settings.celery_broker_url)) if settings.celery_broker_url else None
    scheduler = LedgerScheduler(
        runtime.ledger,
        resolve=runtime.tasks.get,
        context=app.app_context,
        node_name=settings.node_name,
        version=VERSION,
        timezone=settings.scheduler_timezone,
        threads=settings.scheduler_threads,
        processes=os.cpu_count() or 1,
        lost_after_s=settings.lost_after_s,
        locks_dir=settings.locks_dir,
        run_in_child=partial(_run_in_child, settings),
        prepare_child=partial(_prepare_child, settings),
        fleet=fleet,
        code=code_fingerprint(task.name for task in runtime.tasks.all()),
    )
    if fleet is not None:
        fleet.start(scheduler.node_id)
    scheduler.start()
    runtime.scheduler = scheduler
    _process_runtime = runtime
    _process_delivery = Delivery(
        runtime.jobstore,
        webhook_url=settings.alert_webhook_url,
        life_sign_url=settings.scheduler_ping_url,
        health=scheduler.health,
        node=settings.node_name,
    )
    _process_delivery.start()
    atexit.register(stop_scheduler)
    return scheduler


def stop_scheduler() -> bool:
    """The orderly stop of this process's scheduler: drains up to DRAIN_SECONDS. Does nothing where none runs.

    Whether all that ran has ended.
    """
    global _process_runtime, _process_delivery
    runtime, _process_runtime = _process_runtime, None
    delivery, _process_delivery = _process_delivery, None
    if runtime is None or runtime.scheduler is None:
        return True
    atexit.unregister(stop_scheduler)
    # It stays in the runtime: a request that is still served must not be told that this process runs none.
    drained = runtime.scheduler.stop(runtime.settings.drain_s)
    if not drained:
        logger.warning("some runs did not end within %s s and are called lost", runtime.settings.drain_s)
    if delivery is not None:  # after the drain, whose runs have alerts and pings of their own
        delivery.stop()
    return drained


def _reload_all_jobs(runtime: Runtime | None = None, by: str = "system") -> ReloadReport:
    """Deletes every job and registers the default jobs anew; DefaultJobsError, and no change, for an invalid
    file."""
    runtime = runtime or current_runtime()
    return runtime.ledger.reload_defaults(load_default_jobs(runtime.settings, runtime.tasks), by)


def _report_old_store(jobstore: Engine) -> None:
    if inspect(jobstore).has_table(OLD_STORE_TABLE):
        logger.warning(
            "the job store holds the table %s of an older app: it is left as it is, its jobs do not run here; "
            "scripts/import_legacy_jobstore.sh --from-store takes them over",
            OLD_STORE_TABLE,
        )


# In a child process of the executor `process`

_child_app: Flask | None = None


def _prepare_child(settings: Settings) -> None:
    """Builds the app of a child process, once."""
    _app_of_child(settings)


def _run_in_child(settings: Settings, ticket: Ticket) -> Ending:
    """Runs a started run in a child process."""
    app = _app_of_child(settings)  # again, where it could not be built before: then this says why
    runtime = runtime_of(app)
    return execute(
        ticket, node=runtime.settings.node_name, resolve=runtime.tasks.get, context=app.app_context, alarm=True
    )


def _app_of_child(settings: Settings) -> Flask:
    global _child_app  # noqa: PLW0603 - the process keeps its app over many runs
    if _child_app is None:
        from app import create_app  # noqa: PLC0415 - create_app starts the scheduler, so it imports this module

        _child_app = create_app(settings, init_scheduler_on_start=False)
        # An app without a scheduler is the web elsewhere; this one's lines are the scheduler's.
        configure_logging("scheduler", settings.log_level, log_format=settings.log_format, node=settings.node_name)
        capture.install()
    return _child_app
