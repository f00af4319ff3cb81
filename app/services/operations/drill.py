"""Drills: probe jobs that fire while somebody harms the stack, and the verdict on what became of their fires."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.db.clock import from_us
from app.db.jobstore_tables import ACTIVE, runs
from app.ledger import NewJob
from app.runtime import Runtime
from app.services.operations.drill_log import drill_folder, fires_file, read_starts
from app.services.operations.drill_report import write_report
from app.services.operations.drill_verdict import Fault, Row, Verdict, judge, moments
from app.services.operations.failure import OperationFailed

HEAD_START_S = 5
"""Between the making of the probes and their first moment."""
REST_WITHIN_S = 120.0
"""How long the last runs may take to end; those of a dead node are lost after LOST_AFTER_SECONDS."""

_PLAN = "drill.json"
_BY = "drill"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a drill consists of. Each job fires every `period` seconds from its own moment on."""

    drill: str
    period: float
    first: dict[str, float]


def start_drill(runtime: Runtime, *, jobs: int, period: float, executor: str) -> Plan:
    """Makes `jobs` probes that fire every `period` seconds, spread over it, on `executor`."""
    drill = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    begin = int(time.time()) + HEAD_START_S
    first = {f"drill-{drill}-{index:03}": begin + index * period / jobs for index in range(jobs)}
    folder = drill_folder(runtime.settings.userdata_dir, drill)
    folder.mkdir(parents=True)
    plan = Plan(drill=drill, period=period, first=first)
    (folder / _PLAN).write_text(json.dumps(asdict(plan)), encoding="utf-8")
    with runtime.ledger.together() as ledger:
        for index, (job_id, moment) in enumerate(first.items()):
            trigger = {
                "type": "interval",
                "seconds": period,
                "start_date": datetime.fromtimestamp(moment, UTC).isoformat(),
                "timezone": "UTC",
            }
            new = NewJob(
                id=job_id,
                task="drill_probe",
                name=f"Drill {drill}, probe {index}",
                description="A probe of scripts/prove_once.sh; it may be deleted.",
                trigger=trigger,
                kwargs={"drill": drill},
                max_instances=10,
                executor=executor,
            )
            ledger.add_job(new, by=_BY)
    return plan


def stop_drill(runtime: Runtime, drill: str) -> float:
    """Deletes the probes: no moment after now fires; their last moment, in seconds since the epoch.

    May be repeated. OperationFailed when there is no such drill.
    """
    plan = _plan(runtime, drill)
    for job_id in plan.first:
        if runtime.ledger.get_job(job_id) is not None:
            runtime.ledger.delete_job(job_id, by=_BY)
    return time.time()


def conclude_drill(
    runtime: Runtime, drill: str, faults: Iterable[Mapping[str, Any]], *, rest_within_s: float = REST_WITHIN_S
) -> tuple[Verdict, Path]:
    """Waits until the probes' last runs have ended, compares, and writes the report: the verdict, and its folder.

    `faults`: kind, target, begin, end of each. Runs that do not end in time are counted as `unfinished`.
    """
    plan = _plan(runtime, drill)
    deadline = time.monotonic() + rest_within_s
    while _open_runs(runtime, plan) and time.monotonic() < deadline:
        time.sleep(1)
    folder = drill_folder(runtime.settings.userdata_dir, drill)
    until = {job_id: _deleted_at(runtime, job_id) for job_id in plan.first}
    expected = {job_id: moments(first, plan.period, until[job_id]) for job_id, first in plan.first.items()}
    starts = read_starts(fires_file(runtime.settings.userdata_dir, drill))
    rows = _rows(runtime, plan)
    struck = [Fault(str(f["kind"]), str(f["target"]), float(f["begin"]), float(f["end"])) for f in faults]
    verdict = judge(expected, starts, rows, struck)
    write_report(folder, plan.first, verdict, starts, rows)
    return verdict, folder


def _plan(runtime: Runtime, drill: str) -> Plan:
    file = drill_folder(runtime.settings.userdata_dir, drill) / _PLAN
    try:
        return Plan(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise OperationFailed(f"there is no drill {drill} in {file.parent.parent}") from error


def _deleted_at(runtime: Runtime, job_id: str) -> float:
    job = runtime.ledger.get_job(job_id, include_deleted=True)
    if job is None or job.deleted_at is None:
        raise OperationFailed(f"the probe {job_id} is not stopped; flask jobs drill-stop stops the drill's probes")
    return job.deleted_at.timestamp()


def _open_runs(runtime: Runtime, plan: Plan) -> bool:
    query = select(runs.c.run_id).where(runs.c.job_id.in_(plan.first), runs.c.outcome.in_(ACTIVE)).limit(1)
    with runtime.jobstore.connect() as connection:
        return connection.execute(query).first() is not None


def _rows(runtime: Runtime, plan: Plan) -> list[Row]:
    columns = (runs.c.run_id, runs.c.job_id, runs.c.scheduled_for, runs.c.scheduled_from, runs.c.attempt)
    query = select(*columns, runs.c.outcome, runs.c.node).where(runs.c.job_id.in_(plan.first))
    with runtime.jobstore.connect() as connection:
        found = connection.execute(query.order_by(runs.c.run_id)).mappings().all()
    return [
        Row(
            run_id=row["run_id"],
            job_id=row["job_id"],
            first=from_us(row["scheduled_from"] or row["scheduled_for"]).timestamp(),
            last=from_us(row["scheduled_for"]).timestamp(),
            attempt=row["attempt"],
            outcome=row["outcome"],
            node=row["node"],
        )
        for row in found
    ]
