"""`flask jobs ...` and `flask db ...`: what the scripts call in a container, and what an operator types.

Results go to standard output, as text or, with --json, as one line of JSON; progress and errors go to standard
error. A command that fails says why in one line and exits with 1. No command starts a scheduler.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
from flask import Flask
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import DamagedDatabase
from app.db.migrate import Store
from app.default_jobs import DefaultJobsError, load_default_jobs
from app.errors import DomainError
from app.i18n import english
from app.ledger import EXECUTORS, failpoints
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime, current_runtime
from app.services.operations import backups, drill, exports, history, set_aside, store_state
from app.services.operations.drill_verdict import Verdict
from app.services.operations.failure import OperationFailed
from app.services.operations.store_files import STORE_NAMES
from app.services.scheduler.job_views import job_state
from app.services.scheduler.scheduler_runs_read_service import SchedulerRunsReadService
from app.services.scheduler.scheduler_status_read_service import SchedulerStatusReadService

NOT_PROVEN = 4
"""Exit code of `flask jobs drill-verdict` that tells a finding from a failure of the command itself."""
DAMAGED = 3
"""Exit code of `flask db check` that tells a finding from a failure of the command itself."""

_F = TypeVar("_F", bound=Callable[..., Any])

jobs = AppGroup("jobs", help="Jobs and their store: list, export, back up, verify, reset.")
db = AppGroup("db", help="The databases.")

as_json = click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of text.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would change; change nothing.")


def init_cli(app: Flask) -> None:
    """Adds the commands to the app's `flask` command."""
    app.cli.add_command(jobs)
    app.cli.add_command(db)


def one_line_errors(command: _F) -> _F:
    """Turns what an operator can be told into one line on standard error and exit code 1."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DomainError as error:
            raise click.ClickException(_one_line(english(error.message, error.params))) from error
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise click.ClickException(_one_line(f"the database cannot be used: {cause}")) from error
        except (OperationFailed, DefaultJobsError, DamagedDatabase, sqlite3.Error, OSError) as error:
            raise click.ClickException(_one_line(str(error))) from error

    return guarded  # type: ignore[return-value]


@jobs.command("list")
@click.option("--deleted", is_flag=True, help="Deleted jobs that can be restored, too.")
@as_json
@one_line_errors
def list_jobs(*, deleted: bool, as_json: bool) -> None:
    """List the jobs of the store."""
    wanted = JobFilter(is_active=None if deleted else True)
    found = JobsRepository(current_runtime().jobstore).page(wanted)
    rows = [
        {
            "id": reading.job.id,
            "task": reading.job.task,
            "source": reading.job.source,
            "state": job_state(reading.job),
            "next_run_time": _iso(reading.job.next_run_time),
            "last_run_time": _iso(reading.last_run_time),
            "last_outcome": reading.last_outcome,
            "trigger": dict(reading.job.trigger),
            "overrides": list(reading.job.overrides),
            "problem": reading.job.problem,
        }
        for reading in found
    ]
    if as_json:
        _print_json(rows)
        return
    columns = ("id", "source", "state", "next_run_time", "last_outcome")
    _print_table(columns, [[str(row[name] or "-") for name in columns] for row in rows])


@jobs.command()
@as_json
@one_line_errors
def status(*, as_json: bool) -> None:
    """Tell which schedulers are alive, what runs and waits, and how the last hour went."""
    found = SchedulerStatusReadService(language="en").status()
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    for node in found.nodes:
        life = "alive" if node.is_alive else "silent"
        click.echo(f"{node.kind} {node.name}: {node.state}, {life}, heartbeat {node.heartbeat_age_s:.1f} s ago")
    if not found.nodes:
        click.echo("scheduler: none has ever used this store")
    click.echo(f"queue: {found.queue.pending} pending, {found.queue.running} running")
    late = found.lateness
    if late.sample:
        click.echo(f"lateness of the last {late.sample} runs: p50 {late.p50_ms} ms, p99 {late.p99_ms} ms")
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.counters.outcomes.items()))
    click.echo(f"last hour: {outcomes or 'no runs'}")
    click.echo(f"jobs: {', '.join(f'{count} {kind}' for kind, count in found.counters.jobs.items())}")
    for warning in found.problems:
        click.echo(f"problem: {warning.message}")
    for problem in found.task_problems:
        click.echo(f"task module {problem['module']}: {problem['error']}")


@jobs.command("history")
@click.argument("job_id")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many rows.")
@as_json
@one_line_errors
def show_history(*, job_id: str, limit: int, as_json: bool) -> None:
    """List the runs of a job, newest first."""
    page = SchedulerRunsReadService().history(job_id, limit=limit)
    if as_json:
        _print_json([run.model_dump(mode="json") for run in page.items])
        return
    columns = ("scheduled_for", "kind", "outcome", "count", "started_at", "node", "reason")
    rows = []
    for run in page.items:
        why = run.error.partition("\n")[0] if run.error else run.reason
        times = (_iso(run.scheduled_for), _iso(run.started_at) or "-")
        rows.append([times[0], run.kind, run.outcome, str(run.count), times[1], run.node or "-", why or ""])
    _print_table(columns, rows)


@jobs.command()
@click.option("--reason", default="manual", show_default=True, help="A word for the file's name.")
@as_json
@one_line_errors
def export(*, reason: str, as_json: bool) -> None:
    """Write what the API changed and all own jobs to userdata/exports/."""
    path = exports.export_changes(current_runtime(), reason)
    document = exports.read_export(path)
    if as_json:
        counts = {
            name: len(getattr(document, name))
            for name in ("default_jobs", "own_jobs", "deleted_own_jobs", "unreadable_jobs")
        }
        _print_json({"path": str(path), **counts})
        return
    click.echo(path)
    for job in document.unreadable_jobs:
        click.echo(f"job {job.id} cannot be read and is not in it: {job.problem}", err=True)


@jobs.command("apply-export")
@click.argument("file")
@dry_run_option
@as_json
@one_line_errors
def apply_export(*, file: str, dry_run: bool, as_json: bool) -> None:
    """Apply an export: all of it, or nothing.

    FILE is a path, a name in userdata/exports/, or `latest`.
    """
    runtime = current_runtime()
    path = exports.find_export(runtime.settings, file)
    applied = exports.apply_export(runtime, path, by="apply-export", dry_run=dry_run)
    for warning in applied.warnings:
        click.echo(warning, err=True)
    if as_json:
        _print_json({"path": str(path), "dry_run": dry_run, **applied.as_json()})
        return
    if not any(applied.as_json().values()):
        click.echo("the export names no job; nothing to change")
    would = "would be " if dry_run else ""
    for name in ("added", "restored", "changed", "unchanged"):
        for job_id in getattr(applied, name):
            click.echo(f"{'' if name == 'unchanged' else would}{name}: {job_id}")


@jobs.command()
@click.option("--reason", default="manual", show_default=True, help="Goes into the manifest.")
@click.option("--keep", type=click.IntRange(min=1), help="How many backups stay; BACKUP_KEEP when left out.")
@as_json
@one_line_errors
def backup(*, reason: str, keep: int | None, as_json: bool) -> None:
    """Copy both databases while they are in use to userdata/backups/, with a manifest."""
    made = backups.back_up(current_runtime().settings, reason=reason, keep=keep)
    _print_backup(made, as_json)


@jobs.command("list-backups")
@as_json
@one_line_errors
def list_backups(*, as_json: bool) -> None:
    """List the backups, newest first."""
    found = backups.list_backups(current_runtime().settings)
    if as_json:
        _print_json([each.as_json() for each in found])
        return
    rows = [
        [each.path.name, _iso(each.manifest.created_at), each.manifest.reason, str(_total_bytes(each))]
        for each in found
    ]
    _print_table(("name", "created_at", "reason", "bytes"), rows)


@jobs.command()
@click.argument("backup")
@as_json
@one_line_errors
def verify(*, backup: str, as_json: bool) -> None:
    """Re-open a backup: sha256, integrity_check, schema version, row counts.

    BACKUP is a folder, a name in userdata/backups/, or `latest`.
    """
    path = backups.find_backup(current_runtime().settings, backup)
    _print_backup(backups.verify_backup(path), as_json)


@jobs.command("set-aside")
@click.option("--reason", default="manual", show_default=True, help="Goes into the note beside the file.")
@click.option("--backup", help="The backup that was made of it before, for the note.")
@dry_run_option
@as_json
@one_line_errors
def set_aside_store(*, reason: str, backup: str | None, dry_run: bool, as_json: bool) -> None:
    """Move the job store, with its -wal and -shm, to userdata/backups/aside-*/.

    Refused while any process has it open, and where no scheduler would make a fresh one at the next start.
    """
    runtime = current_runtime()
    if dry_run:
        file = set_aside.check_can_be_set_aside(runtime.settings)
        click.echo(json.dumps({"file": str(file)}) if as_json else file)
        return
    runtime.jobstore.dispose()  # a connection of this very process would hide the others' locks
    aside = set_aside.set_aside(runtime.settings, reason=reason, backup=backup)
    if as_json:
        _print_json(aside.as_json())
        return
    click.echo(aside.path)


@jobs.command("carry-history")
@click.argument("sources", nargs=-1)
@as_json
@one_line_errors
def carry_history(*, sources: tuple[str, ...], as_json: bool) -> None:
    """Carry the run history of older job stores into the present one.

    SOURCES are database files or folders of backups and asides; without any, every store that was set aside
    and not carried yet. What cannot be read is told, on standard error; the exit code is 1 when nothing of a
    source could be carried.
    """
    runtime = current_runtime()
    results = history.carry_from(runtime, [Path(source) for source in sources])
    for result in results:
        for line in _not_carried(result):
            click.echo(f"not carried over: {line}", err=True)
    if as_json:
        _print_json([result.as_json() for result in results])
    else:
        for result in results:
            if not result.failed:
                click.echo(
                    f"{result.source}: {result.runs} runs carried over ({result.runs_there_already} were there"
                    f" already), {result.logs} logs, {result.messages} undelivered messages; {result.cancelled} had not"
                    f" started and are cancelled, {result.lost} had not ended and are lost, {result.missed} moments are"
                    " missed"
                )
    if any(result.failed for result in results):
        sys.exit(1)


@jobs.command("move-to-postgres")
@click.option("--jobstore", type=click.Path(path_type=Path), help="SQLite file of the jobs; scheduler.db in userdata.")
@click.option("--database", type=click.Path(path_type=Path), help="SQLite file of the users; whalefall.db in userdata.")
@dry_run_option
@as_json
@one_line_errors
def move_stores(*, jobstore: Path | None, database: Path | None, dry_run: bool, as_json: bool) -> None:
    """Move everything from the SQLite files to where JOBSTORE_URL and DATABASE_URL point, and check it.

    Refused while any process has the files open, and where the target holds other data. Safe to run again.
    """
    # It brings PostgreSQL's driver, which a stack on SQLite never needs.
    from app.services.operations import move_to_postgres  # noqa: PLC0415

    settings = current_runtime().settings
    failpoints.arm(settings.fail_points)
    named: dict[Store, Path | None] = {"jobstore": jobstore, "app": database}
    files = {store: path.absolute() for store, path in named.items() if path is not None}
    started = time.monotonic()

    def tell(line: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f}s] {line}", err=True)

    moved = move_to_postgres.move(settings, files=files, tell=tell, dry_run=dry_run)
    if as_json:
        _print_json({"dry_run": dry_run, **moved.as_json()})
        return
    rows = [[store, name, str(found.rows), found.checksum[:16]] for store, name, found in moved.tables()]
    _print_table(("store", "table", "rows", "checksum"), rows)
    if moved.not_ended:
        click.echo(f"{moved.not_ended} runs have not ended; a scheduler on PostgreSQL takes over what had not started")
    state = (
        "would be moved" if dry_run else "was moved, and checked, before" if moved.already else "is moved and checked"
    )
    click.echo(f"everything {state}: {moved.sources['jobstore']} to {moved.targets['jobstore']}")


@jobs.command("drill-start")
@click.option("--jobs", "count", type=click.IntRange(1, 500), default=20, show_default=True, help="How many probes.")
@click.option(
    "--period",
    type=click.FloatRange(1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two fires of each.",
)
@click.option("--executor", type=click.Choice(EXECUTORS), default="default", show_default=True)
@click.option(
    "--minutes",
    type=click.IntRange(1, 1440),
    default=60,
    show_default=True,
    help="After so long the probes fire no more, should nobody stop them.",
)
@as_json
@one_line_errors
def start_drill(*, count: int, period: float, executor: str, minutes: int, as_json: bool) -> None:
    """Make the probe jobs of a drill (scripts/prove_once.sh); prints its name. The newest ten drills are kept."""
    plan = drill.start_drill(current_runtime(), count=count, period=period, executor=executor, minutes=minutes)
    if as_json:
        _print_json({"drill": plan.drill, "jobs": len(plan.first), "begin": min(plan.first.values())})
    else:
        click.echo(plan.drill)


@jobs.command("drill-stop")
@click.argument("name")
@one_line_errors
def stop_drill(*, name: str) -> None:
    """Delete the probe jobs of a drill; may be repeated."""
    drill.stop_drill(current_runtime(), name)


@jobs.command("drill-verdict")
@click.argument("name")
@click.option("--faults", type=click.File("rb"), help="One line of JSON a fault: kind, target, begin, end.")
@as_json
@one_line_errors
def conclude_drill(*, name: str, faults: BinaryIO | None, as_json: bool) -> None:
    """Wait for the end of a stopped drill's runs, compare, write report.html and report.json; exit 4 unless proven.

    May be repeated. The first time, the deleted probes are dropped for good; their runs stay on record.
    """
    struck = drill.parse_faults(faults.read()) if faults is not None else []
    verdict, folder = drill.conclude_drill(
        current_runtime(), name, struck, tell=lambda line: click.echo(line, err=True)
    )
    if as_json:
        _print_json({"proven": verdict.proven, "folder": str(folder), **asdict(verdict)})
    else:
        click.echo(_verdict_text(verdict))
        click.echo(f"report: {folder}/report.html")
    if not verdict.proven:
        sys.exit(NOT_PROVEN)


def _verdict_text(verdict: Verdict) -> str:
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in verdict.outcomes.items()) or "none"
    late = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in verdict.lateness.items()) or "-"
    lines = [
        f"{'proven' if verdict.proven else 'NOT PROVEN'}: {verdict.due} fires due, {verdict.starts} starts seen",
        f"doubled {len(verdict.duplicates)}, absent {len(verdict.absent)}, contradictions"
        f" {len(verdict.contradictions)}, unfinished {verdict.unfinished}",
        f"outcomes: {outcomes}",
        f"lateness: {late}",
    ]
    for figures in verdict.faults:
        seconds = "-" if figures.next_fire_late is None else f"{figures.next_fire_late:.2f} s"
        recovery = "not within the drill" if figures.recovery is None else f"{figures.recovery:.2f} s"
        fault = figures.fault
        lines.append(
            f"{fault.kind} {fault.target}: next fire at most {seconds} late, every job fired again after {recovery}"
        )
    findings = [*verdict.duplicates, *verdict.absent, *verdict.contradictions]
    lines += [f"  {sentence}" for sentence in findings[:20]]
    if len(findings) > 20:
        lines.append(f"  and {len(findings) - 20} more, all in report.json")
    return "\n".join(lines)


@jobs.command("wait-defaults")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, type=click.FloatRange(min=0), help="Seconds.")
@as_json
@one_line_errors
def wait_defaults(*, timeout_s: float, as_json: bool) -> None:
    """Wait until every default job is in the store and a scheduler is turning."""
    runtime = current_runtime()
    started = time.monotonic()
    told = ""
    while True:
        state = store_state.defaults_state(runtime, [new.id for new in _defaults(runtime)])
        elapsed = time.monotonic() - started
        if state.complete:
            break
        if elapsed >= timeout_s:
            raise OperationFailed(f"not within {timeout_s:g} s: {state.missing_text()}")
        if state.missing_text() != told:
            told = state.missing_text()
            click.echo(f"[{elapsed:4.0f}s] waiting: {told}", err=True)
        time.sleep(0.2)
    if as_json:
        _print_json({"jobs": list(state.present), "node": state.node, "waited_s": round(elapsed, 1)})
        return
    click.echo(f"{len(state.present)} default jobs are in the store; scheduler {state.node} is turning")


@db.command()
@click.option("--store", type=click.Choice(STORE_NAMES), help="Only this one; both when left out.")
@as_json
@one_line_errors
def check(*, store: Store | None, as_json: bool) -> None:
    """Open the databases and check them (SQLite: integrity_check). Exit code 3 when one is damaged or out of reach."""
    states = store_state.check_databases(current_runtime().settings, (store,) if store else STORE_NAMES)
    if as_json:
        _print_json([state.as_json() for state in states])
    else:
        for state in states:
            finding = state.problem or f"ok, schema {state.schema_version or '-'}"
            click.echo(f"{state.store}: {state.file}: {finding}")
    if any(state.problem for state in states):
        sys.exit(DAMAGED)


def _not_carried(result: history.Carried) -> list[str]:
    if result.failed:
        return [str(result.damage)]
    if result.gaps:
        return [f"{result.source}: {gap}" for gap in result.gaps]
    return [f"{result.source}: {result.damage}"] if result.damage else []


def _defaults(runtime: Runtime) -> Any:
    return load_default_jobs(runtime.settings, runtime.tasks)


def _print_backup(made: backups.Backup, as_json: bool) -> None:
    if as_json:
        _print_json(made.as_json())
        return
    click.echo(made.path)


def _total_bytes(made: backups.Backup) -> int:
    return sum(store.bytes for store in made.manifest.stores.values())


def _iso(moment: Any) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def _print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = [list(columns), *rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
