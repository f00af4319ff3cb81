"""`python -m app.cli.migrate`: the migration of an upgrade, in a container of its own.

No `flask` command, because such a one builds the app, which migrates the stores as every start does: here it is
decided first whether the release that is running could go on.
"""

from __future__ import annotations

import sys

import click
from sqlalchemy.exc import SQLAlchemyError

from app.cli.console import as_json, one_line_errors, print_json
from app.db.migrate import NewerSchema
from app.db.reach import StoreUnusable
from app.logging_setup import configure_logging
from app.services.operations import migration
from app.services.operations.failure import OperationFailed
from app.settings import Settings, SettingsError


@click.command()
@click.option(
    "--usable-for",
    required=True,
    help="What the running release knows, such as jobstore=0002,app=0001; refused when it could not go on.",
)
@click.option("--check", is_flag=True, help="Only say whether that release can work with the stores as they are.")
@as_json
@one_line_errors
def migrate(*, usable_for: str, check: bool, as_json: bool) -> None:
    """Bring both stores to this release's schema, in one transaction each, and check that no row got lost."""
    try:
        settings = Settings.load()
        configure_logging("cli", settings.log_level, sys.stderr, log_format="text")
        revisions = migration.parse_revisions(usable_for)
        reason = migration.unusable_reason(settings, revisions) if check else None
        found = [] if check else migration.migrate_stores(settings, usable_for=revisions)
    except (SettingsError, NewerSchema, StoreUnusable) as error:
        raise OperationFailed(str(error)) from error
    except SQLAlchemyError as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        raise OperationFailed(f"the migration failed: {cause}; nothing was changed") from error
    if reason is not None:
        raise OperationFailed(f"that release cannot work with the present stores: {reason}")
    if as_json:
        print_json([each.as_json() for each in found])
        return
    for each in found:
        if each.before == each.after:
            click.echo(f"{each.store}: at schema {each.after} already")
        else:
            rows = sum(each.rows.values())
            click.echo(f"{each.store}: schema {each.before} to {each.after}, all {rows} rows kept")


if __name__ == "__main__":
    migrate()
