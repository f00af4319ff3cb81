"""Drills: probe jobs that fire while somebody harms the stack, and the verdict on what became of their fires.

A drill is started, stopped and concluded by commands of their own, because the containers in which they run come and
go meanwhile: all that they know of each other is in the drill's folder, userdata/drills/20260401-003000/.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import func, select

from app.db.clock import from_us
from app.db.jobstore_tables import ACTIVE, jobs, runs
from app.job_fields import check_executor
from app.ledger import NewJob
from app.runtime import Runtime
from app.services.operations.drill.log import DRILL_PATTERN, drill_folder, drills_folder, fires_file, read_starts
from app.services.operations.drill.report import write_report
from app.services.operations.drill.verdict import Fault, Row, Verdict, judge, moments
from app.services.operations.failure import OperationFailed

HEAD_START_S = 5
"""Between the making of the probes and their first moment."""
REST_BEYOND_LOSS_S = 90.0
"""How long the last runs may take to end after those of a dead node are lost (LOST_AFTER_SECONDS)."""
KEPT = 10
"""Drills whose folders stay, the new one among them; older ones are removed when one starts."""

_PLAN = "drill.json"
_TASK = "drill_probe"
_BY = "drill"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a drill consists of; times are seconds since the epoch.

    Each job fires every `period` seconds from its `first` moment to before the one in `until`, where it was deleted,
    and to before `ends`. Between `until` and `stopped`, when the deletion was committed, another scheduler may still
    have claimed a moment, or not. Both are None while the drill runs.
    """

    drill: str
    period: float
    ends: float
    first: dict[str, float]
    until: dict[str, float] | None = None
    stopped: float | None = None


def start_drill(runtime: Runtime, *, count: int, period: float, executor: str, minutes: int) -> Plan:
    """Makes `count` probes that fire every `period` seconds, spread over it, on `executor`.

    After so many minutes they fire no more, should nobody stop them. OperationFailed while another drill runs,
    ValidationError for an executor that is not there.
    """
    check_executor(executor, runtime.settings.celery_broker_url)
    now = runtime.ledger.now()
    drill = f"{now:%Y%m%d-%H%M%S}"
    begin = int(now.timestamp()) + HEAD_START_S
    ends = begin + minutes * 60.0
    first = {f"drill-{drill}-{index:03}": begin + index * period / count for index in range(count)}
    plan = Plan(drill=drill, period=period, ends=ends, first=first)
    folder = drill_folder(runtime.settings.userdata_dir, drill)
    _make_room(runtime)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise OperationFailed(f"the drill {drill} was started a moment ago; only one can run at a time") from error
    try:
        _write_plan(folder, plan)
        plan = replace(plan, first=_add_probes(runtime, plan, executor))
        _write_plan(folder, plan)
    except BaseException:
        shutil.rmtree(folder)
        raise
    _remove_old_drills(runtime.settings.userdata_dir)
    return plan


def stop_drill(runtime: Runtime, drill: str) -> None:
    """Deletes the probes: no moment after now fires. May be repeated. OperationFailed when there is no such drill."""
    plan = _plan(runtime, drill)
    if plan.until is not None:
        return
    _delete(runtime, [job_id for job_id in plan.first if runtime.ledger.get_job(job_id) is not None])
    until = {job_id: _deleted_at(runtime, job_id) for job_id in plan.first}
    stopped = runtime.ledger.now().timestamp()
    _write_plan(drill_folder(runtime.settings.userdata_dir, drill), replace(plan, until=until, stopped=stopped))


def conclude_drill(
    runtime: Runtime,
    drill: str,
    faults: Iterable[Fault] = (),
    *,
    rest_within_s: float | None = None,
    tell: Callable[[str], None],
) -> tuple[Verdict, Path]:
    """Waits until the probes' last runs have ended, compares, and writes the report: the verdict, and its folder.

    Runs that do not end in time are counted as `unfinished`. Then the deleted probes are dropped for good; their runs
    stay on record. May be repeated. `tell` gets lines about progress. OperationFailed when there is no such drill, when
    it is not stopped, and when its log cannot be read.
    """
    plan = _plan(runtime, drill)
    if plan.until is None or plan.stopped is None:
        raise OperationFailed(f"the drill {drill} is not stopped; flask jobs drill-stop {drill} stops it")
    if rest_within_s is None:
        rest_within_s = runtime.settings.lost_after_s + REST_BEYOND_LOSS_S
    _wait_for_rest(runtime, plan.first, rest_within_s, tell)
    folder = drill_folder(runtime.settings.userdata_dir, drill)
    starts = read_starts(fires_file(runtime.settings.userdata_dir, drill))
    rows = _rows(runtime, plan.first)
    claimed = {(row.job_id, round(row.last, 3)) for row in rows}
    expected = {
        job_id: [
            moment
            for moment in moments(first, plan.period, min(plan.ends, plan.stopped))
            if moment < plan.until[job_id] or (job_id, round(moment, 3)) in claimed
        ]
        for job_id, first in plan.first.items()
    }
    verdict = judge(expected, starts, rows, list(faults))
    write_report(folder, plan.first, verdict, starts, rows)
    if not verdict.unfinished:
        runtime.ledger.purge_deleted_jobs(0, only=plan.first)
    return verdict, folder


def parse_faults(document: bytes) -> list[Fault]:
    """The faults of a drill: a JSON object a line. OperationFailed, naming the line, for anything else."""
    faults = []
    for number, line in enumerate(document.splitlines(), 1):
        try:
            fault = _FAULT.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{name}: " for name in first["loc"])
            raise OperationFailed(f"faults, line {number}: {where}{first['msg']}; {_ACCEPTED}") from error
        if not 0 <= fault.begin <= fault.end <= time.time() + _CLOCKS_APART_S:
            raise OperationFailed(f"faults, line {number}: {fault.begin} to {fault.end} is no time; {_ACCEPTED}")
        faults.append(fault)
    return faults


_FAULT = TypeAdapter(Fault)
_ACCEPTED = (
    'accepted: {"kind": "kill", "target": "name", "begin": seconds since the epoch, "end": the same, not in the future}'
)
_CLOCKS_APART_S = 3600.0
"""Who struck may have another clock than the stack."""


def _make_room(runtime: Runtime) -> None:
    """Refuses a second drill at a time: the two would blame each other's faults. Clears up after earlier drills that
    nobody concluded: their deleted probes are dropped, those that fire no more are deleted."""
    columns = (jobs.c.id, jobs.c.kwargs, jobs.c.is_active, jobs.c.next_run_time)
    query = select(*columns).where(jobs.c.task == _TASK, jobs.c.created_by == _BY)
    with runtime.jobstore.connect() as connection:
        found = connection.execute(query).all()
    for probe in found:
        if probe.next_run_time is not None:
            drill = json.loads(probe.kwargs)["drill"]
            raise OperationFailed(
                f"the drill {drill} is running; wait for it, or stop it: flask jobs drill-stop {drill}"
            )
    runtime.ledger.purge_deleted_jobs(0, only=[probe.id for probe in found if not probe.is_active])
    _delete(runtime, [probe.id for probe in found if probe.is_active])


def _delete(runtime: Runtime, job_ids: Iterable[str]) -> None:
    with runtime.ledger.together() as ledger:
        for job_id in job_ids:
            ledger.delete_job(job_id, by=_BY)


def _add_probes(runtime: Runtime, plan: Plan, executor: str) -> dict[str, float]:
    """Their first moments: those of the plan, or later ones where the store kept the transaction waiting."""
    first = {}
    last = datetime.fromtimestamp(plan.ends - 0.001, UTC).isoformat()
    with runtime.ledger.together() as ledger:
        for index, (job_id, moment) in enumerate(plan.first.items()):
            trigger = {
                "type": "interval",
                "seconds": plan.period,
                "start_date": datetime.fromtimestamp(moment, UTC).isoformat(),
                "end_date": last,
                "timezone": "UTC",
            }
            new = NewJob(
                id=job_id,
                task=_TASK,
                name=f"Drill {plan.drill}, probe {index}",
                description="A probe of scripts/prove_once.sh; it may be deleted.",
                trigger=trigger,
                kwargs={"drill": plan.drill},
                max_instances=10,
                executor=executor,
            )
            due = ledger.add_job(new, by=_BY).next_run_time
            first[job_id] = moment if due is None else due.timestamp()
    return first


def _remove_old_drills(userdata: Path) -> None:
    names = sorted(each.name for each in drills_folder(userdata).iterdir() if re.fullmatch(DRILL_PATTERN, each.name))
    for name in names[:-KEPT]:
        shutil.rmtree(drill_folder(userdata, name))


def _plan(runtime: Runtime, drill: str) -> Plan:
    file = drill_folder(runtime.settings.userdata_dir, drill) / _PLAN
    if not re.fullmatch(DRILL_PATTERN, drill) or not file.exists():
        raise OperationFailed(f"there is no drill {drill!r} in {drills_folder(runtime.settings.userdata_dir)}")
    try:
        return Plan(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise OperationFailed(f"{file} cannot be read: {error}") from error


def _write_plan(folder: Path, plan: Plan) -> None:
    written = folder / f"{_PLAN}.new"
    written.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    written.replace(folder / _PLAN)


def _deleted_at(runtime: Runtime, job_id: str) -> float:
    job = runtime.ledger.get_job(job_id, include_deleted=True)
    if job is None or job.deleted_at is None:
        raise OperationFailed(f"the probe {job_id} is gone from the job store; nobody knows when it stopped firing")
    return job.deleted_at.timestamp()


def _wait_for_rest(runtime: Runtime, job_ids: Collection[str], within_s: float, tell: Callable[[str], None]) -> None:
    deadline = time.monotonic() + within_s
    query = select(func.count()).where(runs.c.job_id.in_(job_ids), runs.c.outcome.in_(ACTIVE))
    told = 0
    while True:
        with runtime.jobstore.connect() as connection:
            still = connection.execute(query).scalar_one()
        left = deadline - time.monotonic()
        if not still or left <= 0:
            return
        if still != told:
            tell(f"waiting at most {left:.0f} s for {still} runs that have not ended")
            told = still
        time.sleep(min(1.0, left))


def _rows(runtime: Runtime, job_ids: Collection[str]) -> list[Row]:
    names = ("run_id", "job_id", "scheduled_for", "scheduled_from", "count", "attempt", "outcome")
    query = select(*(runs.c[name] for name in names)).where(runs.c.job_id.in_(job_ids), runs.c.kind == "schedule")
    with runtime.jobstore.connect() as connection:
        found = connection.execute(query.order_by(runs.c.run_id)).mappings().all()
    return [
        Row(
            run_id=row["run_id"],
            job_id=row["job_id"],
            first=from_us(row["scheduled_from"] or row["scheduled_for"]).timestamp(),
            last=from_us(row["scheduled_for"]).timestamp(),
            count=row["count"],
            attempt=row["attempt"],
            outcome=row["outcome"],
        )
        for row in found
    ]
