"""What every command shares: the groups, the common options, and how results and errors are printed."""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import click
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import DamagedDatabase
from app.default_jobs import DefaultJobsError
from app.errors import DomainError
from app.i18n import english
from app.services.operations.failure import OperationFailed

_F = TypeVar("_F", bound=Callable[..., Any])

jobs = AppGroup("jobs", help="Jobs and their store: list, export, back up, verify, reset.")
db = AppGroup("db", help="The databases.")

as_json = click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of text.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would change; change nothing.")


def one_line_errors(command: _F) -> _F:
    """Turns what an operator can be told into one line on standard error and exit code 1."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DomainError as error:
            raise click.ClickException(_one_line(english(error.message, error.params))) from error
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise click.ClickException(_one_line(f"the database cannot be used: {cause}")) from error
        except (OperationFailed, DefaultJobsError, DamagedDatabase, sqlite3.Error, OSError) as error:
            raise click.ClickException(_one_line(str(error))) from error

    return guarded  # type: ignore[return-value]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def iso(moment: Any) -> str:
    """A moment to the second, with its offset; nothing for none."""
    return "" if moment is None else moment.isoformat(timespec="seconds")


def print_json(value: Any) -> None:
    """A command's result for programs: one line on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    """Rows under their headings, each column as wide as its widest cell."""
    table = [list(columns), *rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
