"""Backups: making, listing, verifying."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from app.cli.console import as_json, dry_run_option, iso, jobs, one_line_errors, print_json, print_table
from app.runtime import current_runtime
from app.services.operations.backup import archive as backup_archive
from app.services.operations.backup import backups
from app.services.operations.failure import OperationFailed


@jobs.command()
@click.option("--reason", default="manual", show_default=True, help="Goes into the manifest.")
@click.option("--keep", type=click.IntRange(min=1), help="How many backups stay; BACKUP_KEEP when left out.")
@dry_run_option
@as_json
@one_line_errors
def backup(*, reason: str, keep: int | None, dry_run: bool, as_json: bool) -> None:
    """Copy both stores while they are in use to userdata/backups/, with a manifest."""
    if dry_run:
        _print_plan(backups.plan_backup(current_runtime().settings), as_json)
        return
    made = backups.back_up(current_runtime().settings, reason=reason, keep=keep)
    _print_backup(made, as_json)


@jobs.command("list-backups")
@as_json
@one_line_errors
def list_backups(*, as_json: bool) -> None:
    """List the backups, newest first."""
    found = backups.list_backups(current_runtime().settings)
    if as_json:
        print_json([each.as_json() for each in found])
        return
    rows = [
        [each.path.name, iso(each.manifest.created_at), each.manifest.reason, str(_total_bytes(each))] for each in found
    ]
    print_table(("name", "created_at", "reason", "bytes"), rows)


@jobs.command()
@click.argument("backup")
@as_json
@one_line_errors
def verify(*, backup: str, as_json: bool) -> None:
    """Re-open a backup: sha256, content, schema version, row counts.

    BACKUP is a folder, a name in userdata/backups/, `latest`, or - for a tar on standard input.
    """
    settings = current_runtime().settings
    if backup != "-":
        _print_backup(backups.verify_backup(backups.find_backup(settings, backup)), as_json)
        return
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as stream:
        received = backup_archive.receive_backup(settings, stream)
    shutil.rmtree(received.path)
    _print_backup(received, as_json)


@jobs.command("send-backup")
@click.argument("backup")
@one_line_errors
def send_backup(*, backup: str) -> None:
    """Write a verified backup to standard output, as a tar.

    BACKUP is a folder, a name in userdata/backups/, or `latest`.
    """
    if sys.stdout.isatty():
        raise click.UsageError("a tar archive goes to standard output; send it to a file or a pipe")
    verified = backups.verify_backup(backups.find_backup(current_runtime().settings, backup))
    try:
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as stream:
            backup_archive.send_backup(verified, stream)
    except BrokenPipeError as error:
        raise OperationFailed("whoever was to take the backup stopped reading") from error


@jobs.command("receive-backup")
@as_json
@one_line_errors
def receive_backup(*, as_json: bool) -> None:
    """Take a backup from standard input, as a tar, and check that it can be restored, for which it is kept."""
    from app.services.operations.restore.restore import check_restorable  # noqa: PLC0415 - rarely wanted, and brings much along

    settings = current_runtime().settings
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as stream:
        _print_backup(backup_archive.receive_backup(settings, stream, check=check_restorable), as_json)


@jobs.command("forget-received")
@click.argument("path", type=click.Path(path_type=Path))
@one_line_errors
def forget_received(*, path: Path) -> None:
    """Remove the backup at PATH, which was taken in and not restored."""
    backup_archive.forget_received(current_runtime().settings, path)


def _print_plan(plan: backups.Plan, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": True, **plan.as_json()})
        return
    for store, (where, size) in plan.stores.items():
        click.echo(f"{store}: {where}, {size} bytes")
    click.echo(f"would go to {plan.folder}, where {plan.free} bytes are free; the newest {plan.keep} are kept")


def _print_backup(made: backups.Backup, as_json: bool) -> None:
    if as_json:
        print_json(made.as_json())
        return
    click.echo(made.path)


def _total_bytes(made: backups.Backup) -> int:
    return sum(store.bytes for store in made.manifest.stores.values())
