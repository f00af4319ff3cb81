"""The databases themselves."""

from __future__ import annotations

import sys

import click

from app.cli.console import as_json, db, one_line_errors, print_json
from app.db.migrate import Store
from app.runtime import current_runtime
from app.services.operations.stores import state as store_state
from app.services.operations.stores.files import STORE_NAMES

DAMAGED = 3
"""Exit code of `flask db check` that tells a finding from a failure of the command itself."""


@db.command()
@click.option("--store", type=click.Choice(STORE_NAMES), help="Only this one; both when left out.")
@as_json
@one_line_errors
def check(*, store: Store | None, as_json: bool) -> None:
    """Open the databases and check them (SQLite: integrity_check). Exit code 3 when one is damaged or out of reach."""
    states = store_state.check_databases(current_runtime().settings, (store,) if store else STORE_NAMES)
    if as_json:
        print_json([state.as_json() for state in states])
    else:
        for state in states:
            finding = state.problem or f"ok, schema {state.schema_version or '-'}"
            click.echo(f"{state.store}: {state.file}: {finding}")
    if any(state.problem for state in states):
        sys.exit(DAMAGED)
