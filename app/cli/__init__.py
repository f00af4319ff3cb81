"""`flask jobs ...` and `flask db ...`: what the scripts call in a container, and what an operator types.

Results go to standard output, as text or, with --json, as one line of JSON; progress and errors go to standard
error. A command that fails says why in one line and exits with 1. No command starts a scheduler.
"""

from flask import Flask

from app.cli import (  # noqa: F401 - each adds its commands
    backups,
    busy_nodes,
    certificate,
    cron,
    databases,
    drill,
    explain,
    exports,
    hold,
    legacy,
    look,
    move,
    reset,
    restore,
)
from app.cli.console import db, jobs


def init_cli(app: Flask) -> None:
    """Adds the commands to the app's `flask` command."""
    app.cli.add_command(jobs)
    app.cli.add_command(db)
