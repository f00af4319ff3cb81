"""The hold of all jobs, and what becomes of the fires that fell into it."""

from __future__ import annotations

from dataclasses import asdict

import click

from app.cli.console import as_json, iso, jobs, one_line_errors, print_json, print_table
from app.ledger import CATCH_UPS, CatchUp, TooMuchToCatchUp
from app.runtime import current_runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.restore.restore import note_released


@jobs.command()
@click.option("--reason", default="by hand", show_default=True, help="Shown wherever the hold is told of.")
@as_json
@one_line_errors
def hold(*, reason: str, as_json: bool) -> None:
    """Keep every job from firing by its trigger, on all nodes, until `release-hold`. Run now goes on working."""
    found = current_runtime().ledger.hold(reason, by="flask jobs hold")
    if as_json:
        print_json({"reason": found.reason, "by": found.by, "since": iso(found.since)})
        return
    click.echo(f"held since {iso(found.since)} by {found.by}: {found.reason}")


@jobs.command()
@as_json
@one_line_errors
def due(*, as_json: bool) -> None:
    """List the moments that are due and not on record: in a hold, what waits for a decision."""
    found = current_runtime().ledger.due_moments()
    rows = [{**asdict(each), "first": iso(each.first), "last": iso(each.last)} for each in found]
    if as_json:
        print_json(rows)
        return
    columns = ("job_id", "count", "first", "last")
    print_table(columns, [[str(row[name]) for name in columns] for row in rows])


@jobs.command("release-hold")
@click.option(
    "--catch-up", type=click.Choice(CATCH_UPS), required=True, help="What becomes of the moments that are due."
)
@as_json
@one_line_errors
def release_hold(*, catch_up: CatchUp, as_json: bool) -> None:
    """Let the jobs fire again.

    The moments that fell into the hold are all missed (skip), or the last one of each job runs and the others are
    coalesced into it (run-latest), or all of them run (run-all). Those that are on record already stay as they are.
    """
    note_released(current_runtime().settings)
    try:
        caught = current_runtime().ledger.release_hold(catch_up)
    except TooMuchToCatchUp as error:
        raise OperationFailed(str(error)) from error
    if as_json:
        print_json({"released": caught is not None, **(asdict(caught) if caught else {})})
    elif caught is None:
        click.echo("nothing is held")
    else:
        click.echo(f"released: {caught.started} moments run now, {caught.coalesced} coalesced, {caught.missed} missed")
