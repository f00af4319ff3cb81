"""What keeps jobs from firing, as the job store, the broker and nginx tell it."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import requests
from sqlalchemy import func, inspect, select

from app.db.clock import from_us, to_us
from app.db.engines import read_transaction
from app.db.jobstore_tables import IS_ALARMING, jobs, nodes, outbox, runs
from app.default_jobs import DefaultJobsError, load_default_jobs
from app.ledger import Job
from app.ledger.run_ids import run_id_floor
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime
from app.scheduler import OLD_STORE_TABLE
from app.services.operations.backup.backups import list_backups
from app.services.operations.certificate import CertificateUnknown, served_certificate
from app.services.operations.doctor.findings import Finding, Place, make_finding
from app.services.scheduler.scheduler_status_read_service import SchedulerStatus, SchedulerStatusReadService

OVERDUE_AFTER = timedelta(seconds=15)
"""A scheduler looks once a second; one that restarts takes some seconds."""
LATE_MS = 3000.0
LATE_SAMPLE = 20
"""Fewer runs say little of how late runs are."""
WAITING_S = 30.0
CLOCK_BACK = timedelta(seconds=5)
LOOK_BACK = timedelta(days=1)
BACKUP_AGE = timedelta(days=2)
STUCK_AFTER = timedelta(minutes=10)
ASK_S = 5.0
ASKED = 8
"""So often is nginx asked where it takes one of several containers at random, and perhaps one that is well."""
_SHOWN = 8

_PROBLEMS = {
    "held": "jobs-held",
    "versions_differ": "versions-differ",
    "code_differs": "versions-differ",
    "clock_off": "clock-off",
    "task_unknown": "task-unknown",
    "no_worker": "no-worker",
}
"""Problems of the status, and what the doctor calls them."""


def job_findings(runtime: Runtime, place: Place) -> Iterator[Finding]:
    """What the store tells of schedulers, jobs and runs. Raises what the store raises."""
    now = runtime.ledger.now()
    status = SchedulerStatusReadService(runtime, language="en").status()
    readings = JobsRepository(runtime.jobstore).page(JobFilter())
    stored = [reading.job for reading in readings]
    is_alive = status.counters.nodes.get("scheduler", 0) > 0
    yield from _defaults(runtime, {job.id for job in stored}, place)
    yield from _schedulers(status, place)
    yield from _clock(runtime, now, place)
    for problem in status.problems:
        if problem.code in _PROBLEMS:
            yield make_finding(_PROBLEMS[problem.code], problem.message, place)
    for module in status.task_problems:
        yield make_finding("task-module", f"{module['module']}: {module['error']}", place)
    for job in stored:
        if job.problem:
            yield make_finding("job-unreadable", f"{job.id}: {job.problem}", place, job=job.id)
    if is_alive and not any(problem.code == "held" for problem in status.problems):
        yield from _overdue(runtime, now, place)
    yield from _lateness(status, place)
    yield from _alarms(runtime, now, place)
    yield from _alike(stored, place)
    yield from _switched_off(stored, place)
    yield from _alerts(runtime, now, place)
    yield from _backups(runtime, now, place)
    if inspect(runtime.jobstore).has_table(OLD_STORE_TABLE):
        yield make_finding("legacy-jobs", f"the job store holds the table {OLD_STORE_TABLE}", place)


def broker_findings(runtime: Runtime, place: Place) -> Iterator[Finding]:
    """Whether the broker of the worker fleet answers, where there is one."""
    if not runtime.settings.celery_broker_url:
        return
    from kombu import Connection  # noqa: PLC0415 - only a stack with a fleet loads Celery's transport

    try:
        with Connection(runtime.settings.celery_broker_url, connect_timeout=ASK_S) as connection:
            connection.connect()
    except Exception as error:  # of whatever client its scheme takes
        yield make_finding("broker-unreachable", " ".join(str(error).split())[:200], place)


def way_in_findings(runtime: Runtime, place: Place) -> Iterator[Finding]:
    """What a script that calls the scheduler API through nginx is answered, and the certificate that it is shown."""
    address = runtime.settings.tls_address
    if place.url is not None:
        # Where https is on, http only leads there.
        yield from _answer(f"https://{address}" if address else place.url, runtime.settings.api_token or "", place)
    if address is None:
        return
    try:
        certificate = served_certificate(address)
    except CertificateUnknown as error:
        if place.url is not None:  # else nginx is not running, which is a finding of its own
            yield make_finding("api-unreachable", str(error), place)
        return
    if problem := certificate.problem():
        is_over = certificate.time_left() <= timedelta(0) or "not valid before" in problem
        kind = "certificate-expired" if is_over else "certificate-expires-soon"
        yield make_finding(kind, f"the certificate of {certificate.subject}: {problem}", place)


def _answer(url: str, token: str, place: Place) -> Iterator[Finding]:
    path = "/api/v1/scheduler/jobs?limit=1"
    with requests.Session() as session, warnings.catch_warnings():
        session.trust_env = False  # nginx is next door, whatever proxy the environment names
        session.verify = False  # by an address that no certificate names; its dates are looked at below
        warnings.simplefilter("ignore")
        session.headers["Authorization"] = f"Bearer {token}"
        try:
            for _ in range(1 if place.shape == "prod" else ASKED):
                answer = session.get(url + path, timeout=ASK_S, allow_redirects=False)
                if answer.status_code >= 400:
                    break
        except requests.RequestException as error:
            yield make_finding("api-unreachable", f"{url} does not answer: {type(error).__name__}", place)
            return
    told = f"GET {path} answers {answer.status_code}"
    if answer.status_code == 409:
        yield make_finding("api-409", told, place)
    elif answer.status_code == 401:
        yield make_finding("token-refused", told, place)
    elif answer.status_code >= 400:
        yield make_finding("api-unreachable", told, place)


def _defaults(runtime: Runtime, there: set[str], place: Place) -> Iterator[Finding]:
    try:
        wanted = [new.id for new in load_default_jobs(runtime.settings, runtime.tasks)]
    except DefaultJobsError as error:
        yield make_finding("defaults-invalid", str(error), place)
        return
    if missing := [job_id for job_id in wanted if job_id not in there]:
        what = f"{len(missing)} of {len(wanted)} default jobs are missing: {_listed(missing)}"
        yield make_finding("store-without-jobs", what, place)


def _schedulers(status: SchedulerStatus, place: Place) -> Iterator[Finding]:
    living = [node for node in status.nodes if node.is_alive]
    if not any(node.kind == "scheduler" for node in living):
        last = next((node for node in status.nodes if node.kind == "scheduler"), None)
        heard = "none has ever used this store"
        if last is not None:
            heard = f"the last one, {last.name}, was heard {last.heartbeat_age_s:.0f} s ago ({last.state})"
        yield make_finding("no-scheduler", f"no scheduler is turning: {heard}", place)
    if place.nodes is not None:
        for node in living:
            if node.name not in place.nodes:
                what = f"the {node.kind} {node.name}, since {node.started_at.isoformat(timespec='seconds')}"
                yield make_finding("unknown-node", what, place)


def _clock(runtime: Runtime, now: datetime, place: Place) -> Iterator[Finding]:
    with read_transaction(runtime.jobstore) as connection:
        newest = connection.execute(select(runs.c.claimed_at).order_by(runs.c.run_id.desc()).limit(1)).scalar()
        beat = connection.execute(select(func.max(nodes.c.heartbeat_at))).scalar()
    latest = max((from_us(moment) for moment in (newest, beat) if moment is not None), default=now)
    if latest - now > CLOCK_BACK:
        ahead = (latest - now).total_seconds()
        what = f"the newest entry of the job store is {ahead:.0f} s ahead of the clock ({now.isoformat()})"
        yield make_finding("clock-went-back", what, place)


def _overdue(runtime: Runtime, now: datetime, place: Place) -> Iterator[Finding]:
    found = JobsRepository(runtime.jobstore).overdue(now - OVERDUE_AFTER, limit=_SHOWN)
    late = [reading.job.id for reading in found if reading.job.next_run_time is not None]
    if late:
        yield make_finding("jobs-overdue", f"due and not claimed: {_listed(late)}", place, job=late[0])


def _lateness(status: SchedulerStatus, place: Place) -> Iterator[Finding]:
    late, queue = status.lateness, status.queue
    if late.sample >= LATE_SAMPLE and late.p95_ms is not None and late.p95_ms > LATE_MS:
        what = f"of the last {late.sample} runs, one in twenty started more than {late.p95_ms / 1000:.1f} s late"
        yield make_finding("jobs-late", what, place)
    if queue.oldest_pending_age_s is not None and queue.oldest_pending_age_s > WAITING_S:
        what = f"{queue.pending} runs wait, the oldest for {queue.oldest_pending_age_s:.0f} s; {queue.running} run"
        yield make_finding("queue-waits", what, place)


def _alarms(runtime: Runtime, now: datetime, place: Place) -> Iterator[Finding]:
    query = (
        select(runs.c.job_id, runs.c.outcome, func.sum(runs.c.count).label("moments"))
        .where(IS_ALARMING, runs.c.run_id >= run_id_floor(to_us(now - LOOK_BACK)))
        .group_by(runs.c.job_id, runs.c.outcome)
        .order_by(func.sum(runs.c.count).desc(), runs.c.job_id)
    )
    kinds: Mapping[str, str] = {
        "missed": "runs-missed",
        "skipped": "runs-missed",
        "lost": "runs-lost",
        "failed": "runs-failed",
    }
    told: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    with read_transaction(runtime.jobstore) as connection:
        for job_id, outcome, moments in connection.execute(query):
            told[kinds[outcome]].append((job_id, f"{job_id} ({int(moments)} {outcome})"))
    for kind, found in told.items():
        what = f"in the last day: {_listed([words for _job, words in found])}"
        yield make_finding(kind, what, place, job=found[0][0])


def _alike(stored: Sequence[Job], place: Place) -> Iterator[Finding]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for job in stored:
        if job.problem is None and job.next_run_time is not None:
            groups[json.dumps([job.task, dict(job.trigger), dict(job.kwargs)], sort_keys=True)].append(job.id)
    for ids in groups.values():
        if len(ids) > 1:
            yield make_finding("jobs-alike", _listed(ids), place)


def _switched_off(stored: Sequence[Job], place: Place) -> Iterator[Finding]:
    off = [f"{job.id} ({'disabled' if not job.is_enabled else 'paused'})" for job in stored if not _is_on(job)]
    if off:
        yield make_finding("jobs-paused", _listed(off), place)


def _is_on(job: Job) -> bool:
    return job.is_enabled and not job.is_paused


def _alerts(runtime: Runtime, now: datetime, place: Place) -> Iterator[Finding]:
    query = select(func.count(), func.max(outbox.c.attempts)).where(
        outbox.c.attempts > 0, outbox.c.created_at < to_us(now - STUCK_AFTER)
    )
    with read_transaction(runtime.jobstore) as connection:
        count, attempts = connection.execute(query).one()
    if count:
        yield make_finding("alerts-stuck", f"{count} messages, tried up to {attempts} times", place)


def _backups(runtime: Runtime, now: datetime, place: Place) -> Iterator[Finding]:
    known = list_backups(runtime.settings)
    newest = max((backup.manifest.created_at for backup in known), default=None)
    if newest is None:
        with read_transaction(runtime.jobstore) as connection:
            first = connection.execute(select(func.min(jobs.c.created_at))).scalar()
        if first is not None and now - from_us(first) > BACKUP_AGE:
            yield make_finding("backup-old", "there is none in userdata/backups", place)
    elif now - newest > BACKUP_AGE:
        age = (now - newest).days
        yield make_finding("backup-old", f"the newest in userdata/backups is {age} days old", place)


def _listed(names: Iterable[Any]) -> str:
    words = [str(name) for name in names]
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
