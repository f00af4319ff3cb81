"""The schema of the stores, as another release sees it."""

from __future__ import annotations

import click

from app.cli.console import db, one_line_errors
from app.runtime import current_runtime
from app.services.operations import migration
from app.services.operations.failure import OperationFailed


@db.command("usable-for")
@click.argument("revisions")
@one_line_errors
def usable_for(*, revisions: str) -> None:
    """Say whether a release that knows REVISIONS (such as jobstore=0002,app=0001) can work with the present stores.

    Exit code 1, and why, when it cannot.
    """
    reason = migration.unusable_reason(current_runtime().settings, migration.parse_revisions(revisions))
    if reason is not None:
        raise OperationFailed(f"that release cannot work with the present stores: {reason}")
    click.echo("usable")
