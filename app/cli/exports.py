"""Exports of jobs, and applying them."""

from __future__ import annotations

import click

from app.cli.console import as_json, dry_run_option, jobs, one_line_errors, print_json
from app.runtime import current_runtime
from app.services.operations import exports


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
        print_json({"path": str(path), **counts})
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
        print_json({"path": str(path), "dry_run": dry_run, **applied.as_json()})
        return
    if not any(applied.as_json().values()):
        click.echo("the export names no job; nothing to change")
    would = "would be " if dry_run else ""
    for name in ("added", "restored", "changed", "unchanged"):
        for job_id in getattr(applied, name):
            click.echo(f"{'' if name == 'unchanged' else would}{name}: {job_id}")
