"""Restoring a backup."""

from __future__ import annotations

import time

import click

from app.cli.console import as_json, dry_run_option, iso, jobs, one_line_errors, print_json, print_table
from app.ledger import failpoints
from app.runtime import current_runtime


@jobs.command()
@click.argument("backup", required=False)
@click.option("--undo", is_flag=True, help="Bring back what was there before the last restore.")
@click.option("--check", "only_check", is_flag=True, help="Only verify it, and that this release can restore it.")
@dry_run_option
@as_json
@one_line_errors
def restore(*, backup: str | None, undo: bool, only_check: bool, dry_run: bool, as_json: bool) -> None:
    """Put a backup of either kind into the place of the present stores, held until `release-hold`.

    BACKUP is a folder, a name in userdata/backups/, or `latest` (of those that no restore made). Refused while any
    process uses the stores; scripts/restore_jobstore.sh stops the stack for it. What is there is backed up first; runs
    since the backup stay on record and are not run again. With --dry-run the stack may be running.
    """
    if undo == (backup is not None):
        raise click.UsageError("say which backup, or --undo")
    # Rarely wanted, and it brings much along.
    from app.services.operations.restore import restore as operation  # noqa: PLC0415

    runtime = current_runtime()
    settings = runtime.settings
    failpoints.arm(settings.fail_points)
    path = operation.backup_to_undo(settings) if backup is None else operation.find_restorable(settings, backup)
    if only_check:
        checked = operation.check_restorable(path)
        if as_json:
            print_json(checked.as_json())
        else:
            click.echo(checked.path)
        return
    # A connection of this very process would hide the others' locks.
    runtime.jobstore.dispose()
    runtime.database.dispose()
    started = time.monotonic()

    def tell(line: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f}s] {line}", err=True)

    found = operation.preview(settings, path) if dry_run else operation.restore(settings, path, tell=tell)
    if as_json:
        print_json({"dry_run": dry_run, **found.as_json()})
        return
    would = "would be restored" if dry_run else "was restored before" if found.already else "restored"
    counts = [f"{found.rows[store].get(name, 0)} {name}" for store, name in _TOLD]
    click.echo(f"{path.name} of {iso(found.created_at)} {would}: {', '.join(counts)}")
    if found.merged is not None:
        merged = found.merged
        click.echo(
            f"since then: {merged.runs} runs and {merged.audit} audit entries are kept; {merged.cancelled} runs had not"
            f" started and are cancelled, {merged.lost} have no end on record and are lost"
        )
    if found.due:
        click.echo("due and not on record:")
        print_table(
            ("job_id", "count", "first", "last"),
            [[each.job_id, str(each.count), iso(each.first), iso(each.last)] for each in found.due],
        )
    else:
        click.echo("nothing is due that is not on record")
    if found.before is not None:
        click.echo(f"before it: {found.before}")
    elif found.aside is not None:
        click.echo(f"the files that were there: {found.aside}")


_TOLD = (("jobstore", "jobs"), ("jobstore", "runs"), ("app", "users"))
