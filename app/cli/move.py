"""The move from SQLite to PostgreSQL."""

from __future__ import annotations

import time
from pathlib import Path

import click

from app.cli.console import as_json, dry_run_option, jobs, one_line_errors, print_json, print_table
from app.db.migrate import Store
from app.ledger import failpoints
from app.runtime import current_runtime


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
    from app.services.operations.move import to_postgres  # noqa: PLC0415

    settings = current_runtime().settings
    failpoints.arm(settings.fail_points)
    named: dict[Store, Path | None] = {"jobstore": jobstore, "app": database}
    files = {store: path.absolute() for store, path in named.items() if path is not None}
    started = time.monotonic()

    def tell(line: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f}s] {line}", err=True)

    moved = to_postgres.move(settings, files=files, tell=tell, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **moved.as_json()})
        return
    rows = [[store, name, str(found.rows), found.checksum[:16]] for store, name, found in moved.tables()]
    print_table(("store", "table", "rows", "checksum"), rows)
    if moved.not_ended:
        click.echo(f"{moved.not_ended} runs have not ended; a scheduler on PostgreSQL takes over what had not started")
    state = (
        "would be moved" if dry_run else "was moved, and checked, before" if moved.already else "is moved and checked"
    )
    click.echo(f"everything {state}: {moved.sources['jobstore']} to {moved.targets['jobstore']}")
