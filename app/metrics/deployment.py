"""What is true of the whole deployment, read from its stores, its volume and its certificate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, get_args

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sqlalchemy import URL, Engine, Table, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.db.account_tables import users
from app.db.engines import read_transaction, sqlite_path
from app.db.jobstore_tables import jobs
from app.db.reach import is_out_of_reach
from app.ledger import Node
from app.ledger.nodes import LIVING, NodeKind
from app.repositories.jobs_repository import JobsRepository
from app.repositories.run_totals_repository import (
    BEYOND,
    DURATION_BUCKETS_S,
    LATENESS_BUCKETS_S,
    Histogram,
    RunTotalsRepository,
)
from app.repositories.runs_repository import RunsRepository
from app.runtime import Runtime
from app.services.health_service import HEARTBEAT_FRESH_S
from app.services.operations.backup.backups import MANIFEST, backups_folder, read_manifest
from app.services.operations.certificate import CertificateUnknown, served_certificate
from app.services.operations.failure import OperationFailed
from app.services.scheduler.cluster_problems import cluster_problems
from app.version import VERSION

CERTIFICATE_ASKED_EVERY_S = 60.0
"""A handshake costs more than all the rest, and the answer changes every other month."""
EXPECTED_OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "schedule": ("success", "failed", "lost", "missed", "coalesced", "skipped", "cancelled"),
    "manual": ("success", "failed", "lost", "missed", "cancelled"),
    "retry": ("success", "failed", "lost", "missed", "cancelled"),
}
"""Told as 0 before the first of them: Prometheus cannot see a series rise that begins with 1."""
PROBLEM_CODES = ("held", "versions_differ", "code_differs", "clock_off", "task_unknown", "no_worker")

log = structlog.get_logger(__name__)


class Deployment:
    """Collects the metrics of the deployment that `runtime` belongs to; one look at a time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._jobs = JobsRepository(runtime.jobstore)
        self._runs = RunsRepository(runtime.jobstore)
        self._totals = RunTotalsRepository(runtime.jobstore)
        self._certificate: tuple[float, float | None] | None = None

    def collect(self) -> Iterator[Metric]:
        """All of it; what a store that does not answer would have told is left out."""
        yield _gauge("whalefall_build_info", "Release of the process that answers", ("version",), {(VERSION,): 1})
        answers = {}
        found: list[Metric] = []
        sizes = {}
        away: set[URL] = set()
        stores = (("jobstore", self._runtime.jobstore, jobs), ("app", self._runtime.database, users))
        for store, engine, table in stores:
            answers[store,] = 0
            if engine.url in away:  # waiting for it twice would take longer than Prometheus waits
                continue
            try:
                sizes[store,] = _size(engine, table)
                if store == "jobstore":
                    found = self._of_the_jobstore()
                answers[store,] = 1
            except SQLAlchemyError as error:
                log.warning("a store does not answer", store=store, error=str(error.__cause__ or error))
                if is_out_of_reach(error):
                    away.add(engine.url)
        yield _gauge("whalefall_store_up", "1 while the store answers", ("store",), answers)
        yield _gauge("whalefall_store_bytes", "Size of the store", ("store",), sizes)
        yield from found
        yield from self._of_the_volume()
        yield from self._of_the_certificate()

    def _of_the_jobstore(self) -> list[Metric]:
        runtime = self._runtime
        now = runtime.ledger.now()
        nodes = runtime.ledger.nodes()
        in_use = self._jobs.tasks_in_use()
        return [
            *self._runs_that_ended({task for task, _executor in in_use}),
            *self._queue(now),
            *self._jobs_there(now),
            *_nodes(nodes, now),
            self._problems([node for node in nodes if _is_alive(node, now)], in_use),
            *self._messages(now),
        ]

    def _runs_that_ended(self, tasks: Iterable[str]) -> Iterator[Metric]:
        totals = self._totals.read()
        fires = CounterMetricFamily(
            "whalefall_fires", "Moments by what became of them; each attempt counts", labels=("outcome", "kind", "task")
        )
        expected = {
            (outcome, kind, task): 0
            for task in tasks
            for kind, outcomes in EXPECTED_OUTCOMES.items()
            for outcome in outcomes
        }
        for labels, value in sorted({**expected, **totals.fires}.items()):
            fires.add_metric(labels, value)
        yield fires
        yield _histograms(
            "whalefall_fire_lateness_seconds",
            "Seconds from due to start, of scheduled runs that ended",
            "executor",
            totals.lateness,
            LATENESS_BUCKETS_S,
        )
        yield _histograms(
            "whalefall_run_duration_seconds",
            "Seconds from start to end, of runs that succeeded or failed",
            "task",
            totals.duration,
            DURATION_BUCKETS_S,
        )

    def _queue(self, now: datetime) -> Iterator[Metric]:
        queue = self._runs.queue()
        counts, ages = {}, {}
        for state in ("pending", "running"):
            count, oldest = queue.get(state, (0, None))
            counts[state,] = float(count)
            # Below zero: all of them are later attempts that wait on purpose.
            ages[state,] = 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)
        yield _gauge("whalefall_queue_runs", "Runs claimed that have not ended", ("state",), counts)
        yield _gauge("whalefall_queue_oldest_age_seconds", "Seconds since the oldest was due", ("state",), ages)

    def _jobs_there(self, now: datetime) -> Iterator[Metric]:
        counts = {(state,): float(number) for state, number in asdict(self._jobs.counts()).items()}
        yield _gauge("whalefall_jobs", "Jobs; the states overlap", ("state",), counts)
        first = next(iter(self._jobs.overdue(now, limit=1)), None)
        due = None if first is None else first.job.next_run_time
        overdue = 0.0 if due is None else max((now - due).total_seconds(), 0.0)
        yield _gauge(
            "whalefall_overdue_seconds", "Since the oldest due moment that no scheduler claimed", (), {(): overdue}
        )

    def _problems(self, living: list[Node], in_use: set[tuple[str, str]]) -> Metric:
        found = {
            problem.code
            for problem in cluster_problems(
                living,
                hold=self._runtime.ledger.held(),
                tasks_in_use=in_use,
                known_tasks={task.name for task in self._runtime.tasks.all()},
                me=self._runtime.settings.node_name,
            )
        }
        states = {(code,): float(code in found) for code in sorted({*PROBLEM_CODES, *found})}
        return _gauge("whalefall_problem", "1 while the status tells of this problem", ("code",), states)

    def _messages(self, now: datetime) -> Iterator[Metric]:
        waiting, oldest = self._runs.undelivered()
        age = 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)
        yield _gauge("whalefall_outbox_messages", "Alerts and pings not delivered yet", (), {(): waiting})
        yield _gauge("whalefall_outbox_oldest_age_seconds", "Age of the oldest of them", (), {(): age})

    def _of_the_volume(self) -> Iterator[Metric]:
        settings = self._runtime.settings
        try:
            disk = shutil.disk_usage(settings.userdata_dir)
        except OSError as error:
            log.warning("the volume does not answer", folder=str(settings.userdata_dir), error=str(error))
            return
        yield _gauge("whalefall_disk_free_bytes", "Free on the disk of the volume userdata", (), {(): disk.free})
        yield _gauge("whalefall_disk_size_bytes", "Size of that disk", (), {(): disk.total})
        newest, number = _backups(self._runtime)
        yield _gauge("whalefall_backups", "Backups on the volume", (), {(): number})
        if newest is not None:
            age = (datetime.now(UTC) - newest).total_seconds()
            yield _gauge("whalefall_backup_age_seconds", "Age of the newest backup", (), {(): max(age, 0.0)})

    def _of_the_certificate(self) -> Iterator[Metric]:
        if (expiry := self._certificate_expiry()) is not None:
            help_text = "When the certificate that nginx serves expires"
            yield _gauge("whalefall_certificate_expiry_timestamp_seconds", help_text, (), {(): expiry})

    def _certificate_expiry(self) -> float | None:
        address = self._runtime.settings.tls_address
        if not address:
            return None
        now = time.monotonic()
        if self._certificate is None or now - self._certificate[0] > CERTIFICATE_ASKED_EVERY_S:
            try:
                expiry = served_certificate(address).not_after.timestamp()
            except CertificateUnknown as error:
                log.warning("the certificate is not known", error=str(error))
                expiry = None
            self._certificate = (now, expiry)
        return self._certificate[1]


def _nodes(nodes: list[Node], now: datetime) -> Iterator[Metric]:
    alive = dict.fromkeys(get_args(NodeKind), 0)
    ages: dict[tuple[str, str], float] = {}
    runs, places, offsets = {}, {}, {}
    for node in nodes:
        alive[node.kind] += _is_alive(node, now)
        if node.state not in LIVING:
            continue
        labels = (node.name, node.kind)
        age = max((now - node.heartbeat_at).total_seconds(), 0.0)
        if labels in ages and ages[labels] <= age:
            continue  # of several lives under one name the youngest counts
        ages[labels] = age
        runs[labels] = float(node.stats.get("running_count", 0))
        offsets[labels] = float(node.stats.get("clock_offset_ms", 0)) / 1000
        for executor, free in node.stats.get("free", {}).items():
            places[(*labels, executor)] = float(free)
    by_node = ("node", "kind")
    counts = {(kind,): float(count) for kind, count in alive.items()}
    yield _gauge("whalefall_nodes", "Schedulers and workers alive", ("kind",), counts)
    yield _gauge("whalefall_loop_age_seconds", "Since the loop's last sign of life", by_node, ages)
    yield _gauge("whalefall_node_runs", "Runs that the node has going", by_node, runs)
    yield _gauge("whalefall_node_free_places", "Runs that it could take", (*by_node, "executor"), places)
    yield _gauge("whalefall_clock_offset_seconds", "Its clock minus the database's", by_node, offsets)


def _is_alive(node: Node, now: datetime) -> bool:
    return node.state in LIVING and (now - node.heartbeat_at).total_seconds() <= HEARTBEAT_FRESH_S


def _size(engine: Engine, table: Table) -> float:
    """Bytes of the store that holds `table`, which is asked for a row, so that one without our tables has failed."""
    path = sqlite_path(engine.url)
    with read_transaction(engine) as connection:
        connection.execute(select(table).limit(1)).first()
        if path is None:
            return float(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    files = (path, path.with_name(f"{path.name}-wal"))
    return float(sum(file.stat().st_size for file in files if file.exists()))


def _backups(runtime: Runtime) -> tuple[datetime | None, int]:
    """When the newest backup was made, and how many there are."""
    try:
        folders = sorted(path.parent for path in backups_folder(runtime.settings).glob(f"[!.]*/{MANIFEST}"))
    except OSError:
        folders = []
    for folder in reversed(folders):  # their names are times
        with suppress(OperationFailed):
            return read_manifest(folder).created_at, len(folders)
    return None, len(folders)


def _gauge(name: str, help_text: str, labels: tuple[str, ...], samples: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def _histograms(
    name: str, help_text: str, label: str, found: Mapping[str, Histogram], bounds: tuple[float, ...]
) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=(label,))
    for value, histogram in sorted(found.items()):
        # An older release may have had other bounds; its counts stay where they were.
        steps = sorted({*map(repr, bounds), *histogram.buckets, BEYOND}, key=float)
        total, buckets = 0, []
        for step in steps:
            total += histogram.buckets.get(step, 0)
            buckets.append((step, total))
        family.add_metric((value,), buckets, histogram.sum_s)
    return family
