"""The steps of a reset: the store set aside, the default jobs awaited, the history carried over."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
from sqlalchemy.exc import SQLAlchemyError

from app.cli.console import as_json, dry_run_option, jobs, one_line_errors, print_json
from app.db.engines import sqlite_path
from app.default_jobs import load_default_jobs
from app.ledger import failpoints
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime, current_runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.reset import history, reload, set_aside
from app.services.operations.stores import state as store_state


@jobs.command("set-aside")
@click.option("--reason", default="manual", show_default=True, help="Goes into the note beside the file.")
@click.option("--backup", help="The backup that was made of it before, for the note.")
@dry_run_option
@as_json
@one_line_errors
def set_aside_store(*, reason: str, backup: str | None, dry_run: bool, as_json: bool) -> None:
    """Move the job store to userdata/backups/aside-*/; one in PostgreSQL is copied there and emptied.

    Refused while any process uses it, while it is held, and where no scheduler would fill a fresh one at its start.
    """
    runtime = current_runtime()
    _refuse_while_held(runtime)
    if sqlite_path(runtime.settings.jobstore_url) is None:
        # It brings PostgreSQL's driver, which a stack on SQLite never needs.
        from app.services.operations.reset import set_aside_tables  # noqa: PLC0415

        if dry_run:
            where = set_aside_tables.check_tables_can_be_set_aside(runtime)
            click.echo(json.dumps({"store": where}) if as_json else where)
            return
        failpoints.arm(runtime.settings.fail_points)
        aside = set_aside_tables.set_aside_tables(runtime, reason=reason, backup=backup)
    else:
        if dry_run:
            file = set_aside.check_can_be_set_aside(runtime.settings)
            click.echo(json.dumps({"file": str(file)}) if as_json else file)
            return
        runtime.jobstore.dispose()  # a connection of this very process would hide the others' locks
        aside = set_aside.set_aside(runtime.settings, reason=reason, backup=backup)
    if as_json:
        print_json(aside.as_json())
        return
    click.echo(aside.path)


@jobs.command("reload")
@dry_run_option
@as_json
@one_line_errors
def reload_jobs(*, dry_run: bool, as_json: bool) -> None:
    """Delete every job and register the default jobs again, through the API of the running scheduler.

    What the API had changed is exported first, to userdata/exports/; own jobs can be restored for 30 days.
    """
    runtime = current_runtime()
    if dry_run:
        deleted = [reading.job.id for reading in JobsRepository(runtime.jobstore).page(JobFilter())]
        reloaded = [new.id for new in load_default_jobs(runtime.settings, runtime.tasks)]
        if as_json:
            print_json({"deleted": deleted, "reloaded": reloaded})
        else:
            click.echo(f"would be deleted: {', '.join(deleted)}\nwould be registered: {', '.join(reloaded)}")
        return
    done = reload.reload_through_api(runtime.settings)
    for job_id, why in done["failed"].items():
        click.echo(f"job {job_id} could not be removed and stays: {why}", err=True)
    if as_json:
        print_json(done)
    else:
        click.echo(done["export"])
    if done["failed"]:
        sys.exit(1)


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
        print_json([result.as_json() for result in results])
    else:
        for result in results:
            if not result.failed:
                click.echo(
                    f"{result.source}: {result.runs} runs carried over ({result.runs_there_already} were there"
                    f" already), {result.logs} logs, {result.messages} undelivered messages, {result.repeats} keys of"
                    f" requests; {result.cancelled} had not started and are cancelled, {result.lost} had not ended and"
                    f" are lost, {result.missed} moments are missed"
                )
    if any(result.failed for result in results):
        sys.exit(1)


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
        state = store_state.defaults_state(
            runtime, [new.id for new in load_default_jobs(runtime.settings, runtime.tasks)]
        )
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
        print_json({"jobs": list(state.present), "node": state.node, "waited_s": round(elapsed, 1)})
        return
    click.echo(f"{len(state.present)} default jobs are in the store; scheduler {state.node} is turning")


def _refuse_while_held(runtime: Runtime) -> None:
    """A fresh store would know of no hold, and fire."""
    try:
        hold = runtime.ledger.held()
    except SQLAlchemyError:  # damaged: what it says cannot be asked
        return
    if hold is not None:
        raise OperationFailed(
            f"the job store is held ({hold.reason}), and a fresh one would not be; release it first:"
            " flask jobs release-hold --catch-up skip. Nothing was changed"
        )


def _not_carried(result: history.Carried) -> list[str]:
    if result.failed:
        return [str(result.damage)]
    if result.gaps:
        return [f"{result.source}: {gap}" for gap in result.gaps]
    return [f"{result.source}: {result.damage}"] if result.damage else []
