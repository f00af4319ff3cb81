"""A worker of the fleet: `python -m app.fleet.worker`.

Celery brings the messages and keeps the children; what a message means is `child`'s affair, and what becomes of a run
`supervisor`'s.
"""

import gc
import logging
import signal
import sys
import time
import warnings
from typing import Any

from billiard.util import get_logger as get_billiard_logger
from celery import Celery, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.apps.worker import install_worker_term_handler
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from app import create_app
from app.db.clock import now_us
from app.db.engines import DamagedDatabase
from app.db.migrate import NewerSchema
from app.db.reach import StoreUnusable
from app.fleet.board import Board
from app.fleet.child import Worker
from app.fleet.messages import QUEUE, TASK, fleet_app
from app.fleet.supervisor import Supervisor
from app.ledger import failpoints
from app.ledger.run_ids import new_run_id
from app.log_lines import refuse
from app.logging_setup import configure_logging
from app.runtime import runtime_of
from app.settings import Settings, SettingsError
from app.version import VERSION, code_fingerprint

logger = logging.getLogger("app.fleet.worker")  # `python -m` would name it __main__

_RECONNECT_S = 2.0
"""The longest pause between two tries to reach the broker."""
_COMPLAIN_S = 30.0

_loop_turned_at = time.monotonic()


class FleetWorker(CeleryWorker):
    """Celery's worker, which does not print past the log that it is asked to stop."""

    def install_platform_tweaks(self, worker: Any) -> None:
        """Called at the start: its handlers of signals."""
        super().install_platform_tweaks(worker)
        install_worker_term_handler(worker, verbose=False)


class FleetConsumer(Consumer):
    """Celery's consumer, which comes back sooner to a broker that was away, and tells that its loop turns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.conninfo.transport.driver_type != "redis":
            # From Redis a worker asks for a message when a child is free; RabbitMQ gives it at least one ahead.
            self.initial_prefetch_count = 1

    def ensure_connected(self, conn: Any) -> Any:
        """Tries until there is a connection, or a stop."""
        complained_at = float("-inf")

        def complain(error: Exception, _pause_s: float) -> None:
            nonlocal complained_at
            if time.monotonic() - complained_at >= _COMPLAIN_S:
                complained_at = time.monotonic()
                logger.warning("no broker at %s: %s", conn.as_uri(), error)

        conn = conn.ensure_connection(
            complain, interval_start=0.5, interval_step=0.5, interval_max=_RECONNECT_S, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        return conn

    def register_with_event_loop(self, hub: Any) -> None:
        """Called for each connection."""
        super().register_with_event_loop(hub)
        _note_turn()
        hub.call_repeatedly(1.0, _note_turn)


def _note_turn() -> None:
    global _loop_turned_at  # noqa: PLW0603 - one loop in a process
    _loop_turned_at = time.monotonic()


def run_worker(settings: Settings) -> int:
    """Works until it is told to stop; the exit status. Raises SettingsError without a broker, and what create_app
    raises."""
    if not settings.celery_broker_url:
        raise SettingsError("CELERY_BROKER_URL", None, "the broker of the fleet, such as redis://valkey:6379/0")
    app = create_app(settings, init_scheduler_on_start=False)
    _log_as_worker(settings)  # create_app has taken this for the web
    failpoints.arm(settings.fail_points)
    runtime = runtime_of(app)
    node_id = new_run_id(now_us())
    board = Board(settings.worker_concurrency)
    alerts = bool(settings.alert_webhook_url)
    worker = Worker(
        node_id=node_id,
        node_name=settings.node_name,
        jobstore_url=runtime.jobstore.url,
        alerts=alerts,
        board=board,
        resolve=runtime.tasks.get,
        context=app.app_context,
        inherited=(runtime.jobstore, runtime.database),
    )
    supervisor = Supervisor(
        node_id=node_id,
        node_name=settings.node_name,
        version=VERSION,
        code=code_fingerprint(task.name for task in runtime.tasks.all()),
        jobstore_url=runtime.jobstore.url,
        board=board,
        places=settings.worker_concurrency,
        locks_dir=settings.locks_dir,
        alerts=alerts,
        loop_age=lambda: time.monotonic() - _loop_turned_at,
    )
    supervisor.start()
    try:
        return _consume(fleet_app(settings.celery_broker_url), worker, supervisor, settings)
    finally:
        supervisor.stop()
        logger.info("worker %s: stopped", settings.node_name)


def _consume(celery: Celery, worker: Worker, supervisor: Supervisor, settings: Settings) -> int:
    @celery.task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def run(run_id: str, owner: str, epoch: int) -> None:
        worker.work_on(run_id, owner, epoch)

    def prepare(**_: Any) -> None:
        worker.prepare_child()

    def begin_stop(**_: Any) -> None:
        supervisor.begin_stop(settings.drain_s)

    def keep_logging(**_: Any) -> None:
        """Who listens to this signal does what Celery would do: set up logging."""

    # Held here: Celery keeps weak references alone.
    for event, receiver in (
        (signals.worker_process_init, prepare),
        (signals.worker_shutting_down, begin_stop),
        (signals.setup_logging, keep_logging),
    ):
        event.connect(receiver, weak=False)
    # A line for every message received and done says nothing that the ledger does not; of a child that died with its
    # run, the supervisor tells.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("celery.worker.request").setLevel(logging.CRITICAL)
    consumer = FleetWorker(
        app=celery,
        hostname=f"{settings.node_name}@{QUEUE}",
        pool="prefork",
        concurrency=settings.worker_concurrency,
        optimization="fair",
        loglevel=settings.log_level,
        consumer_cls=FleetConsumer,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    # It tells at every lost connection what it may do in a future release.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    processes_logger = get_billiard_logger()  # Celery has just made it anew
    processes_logger.setLevel(logging.WARNING)
    processes_logger.propagate = True
    logger.info("worker %s: %d processes", settings.node_name, settings.worker_concurrency)
    # The collector's marks would copy what the children share with this process.
    gc.collect()
    gc.freeze()
    consumer.start()
    return int(consumer.exitcode or 0)


def main() -> int:
    """The entry: one line, and no traceback, for a mistake of whoever operates it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until Celery takes it over
    try:
        settings = Settings.load()
    except SettingsError as error:
        refuse({}, "worker", str(error), status=2)
    try:
        return run_worker(settings)
    except (SettingsError, DamagedDatabase, NewerSchema, StoreUnusable) as error:
        _log_as_worker(settings)
        logger.critical("%s", error)
        return 2


def _log_as_worker(settings: Settings) -> None:
    configure_logging("worker", settings.log_level, log_format=settings.log_format, node=settings.node_name)


if __name__ == "__main__":
    sys.exit(main())
