"""Exports of jobs, and applying them."""

from __future__ import annotations

import sys

import click

from app.cli.console import as_json, dry_run_option, jobs, one_line_errors, print_json
from app.runtime import current_runtime
from app.services.operations import exports, imports
from app.services.operations.failure import OperationFailed

_SECTIONS = ("default_jobs", "own_jobs", "deleted_own_jobs", "unreadable_jobs")


@jobs.command()
@click.option("--reason", default="manual", show_default=True, help="A word for the file's name.")
@click.option("--all", "in_full", is_flag=True, help="Every job in full, not only what the API changed.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Print it, and write no file.")
@as_json
@one_line_errors
def export(*, reason: str, in_full: bool, to_stdout: bool, as_json: bool) -> None:
    """Write what the API changed and all own jobs to userdata/exports/."""
    runtime = current_runtime()
    document = exports.collect(runtime.ledger, reason, in_full=in_full)
    for job in document.unreadable_jobs:
        click.echo(f"job {job.id} cannot be read and is not in it: {job.problem}", err=True)
    if to_stdout:
        if as_json:
            print_json(document.model_dump(mode="json", exclude_none=True))
        else:
            click.echo(exports.as_yaml(document, "FILE", in_full=in_full), nl=False)
        return
    path = exports.write_export(exports.exports_folder(runtime.settings), document, in_full=in_full)
    if as_json:
        print_json({"path": str(path), **{name: len(getattr(document, name)) for name in _SECTIONS}})
        return
    click.echo(path)


@jobs.command("apply-export")
@click.argument("file")
@click.option("--diff", is_flag=True, help="Show as a unified diff of every job what would change; change nothing.")
@click.option("--prune", is_flag=True, help="Delete own jobs that it does not name; they can be restored for 30 days.")
@click.option("--plan", help="Only when the change is exactly the one that --diff showed under this name.")
@click.option("--onto-defaults", is_flag=True, help="Only check whether a fresh store could take it; change nothing.")
@dry_run_option
@as_json
@one_line_errors
def apply_export(
    *, file: str, diff: bool, prune: bool, plan: str | None, onto_defaults: bool, dry_run: bool, as_json: bool
) -> None:
    """Apply an export: all of it, or nothing.

    FILE is a path, a name in userdata/exports/, `latest`, or `-` for standard input.
    """
    runtime = current_runtime()
    if file == "-":
        name, export = "standard input", exports.parse_export(_standard_input(), "standard input")
    else:
        path = exports.find_export(runtime.settings, file)
        name, export = str(path), exports.read_export(path)
    if onto_defaults:
        imports.check_onto_defaults(runtime, export, name=name)
        if as_json:
            print_json({"path": name, "own_jobs": len(export.own_jobs), "default_jobs": len(export.default_jobs)})
        else:
            click.echo(name)
        return
    nothing_done = dry_run or diff
    applied = imports.apply_export(
        runtime, export, name=name, by="apply-export", dry_run=nothing_done, prune=prune, expected_plan=plan
    )
    for warning in applied.warnings:
        click.echo(warning, err=True)
    if as_json:
        print_json({"path": name, "dry_run": nothing_done, **applied.as_json()})
        return
    if diff:
        click.echo(applied.diff, nl=False)
        click.echo(_summary(applied))
        click.echo(f"plan: {applied.plan}")
        return
    if not (applied.changes or applied.unchanged):
        click.echo("the export names no job; nothing to change")
    would = "would be " if dry_run else ""
    for action in ("added", "restored", "changed", "removed", "unchanged"):
        for job_id in getattr(applied, action):
            click.echo(f"{'' if action == 'unchanged' else would}{action}: {job_id}")


def _summary(applied: imports.Applied) -> str:
    return (
        f"{len(applied.added)} to add, {len(applied.restored)} to restore, {len(applied.changed)} to change,"
        f" {len(applied.removed)} to delete, {len(applied.unchanged)} unchanged"
    )


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise OperationFailed(f"standard input cannot be read: {error}") from error
