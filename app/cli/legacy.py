"""Taking over the jobs of an older app."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO

import click

from app.cli.console import as_json, dry_run_option, jobs, one_line_errors, print_json
from app.runtime import current_runtime
from app.scheduler import OLD_STORE_TABLE
from app.services.operations import exports, legacy

_WORDS: Mapping[str, tuple[str, str]] = {
    "add": ("added", "would be added"),
    "change": ("changed", "would be changed"),
    "unchanged": ("unchanged", "unchanged"),
    "kept": ("kept as it is here", "would be kept as it is here"),
}


@jobs.command("import-legacy")
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--from-store", is_flag=True, help="Instead of FILE: the table that an older app left in this job store.")
@click.option("--table", default=OLD_STORE_TABLE, show_default=True, help="Name of the table.")
@click.option(
    "--map", "pairs", multiple=True, metavar="FUNC=TASK", help="The task for a function or a job id. Repeatable."
)
@click.option("--overwrite", is_flag=True, help="Jobs that are here already, and differ, take the older definition.")
@dry_run_option
@as_json
@one_line_errors
def import_legacy(
    *,
    file: BinaryIO | None,
    from_store: bool,
    table: str,
    pairs: tuple[str, ...],
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take over triggers and pauses of an older app: APScheduler 3's job store.

    FILE is its SQLite file, or a tar of it with its -wal; `-` is standard input. Its pickles are read as data: nothing
    that they name is imported or called. What cannot be taken over is listed.
    """
    if (file is None) != from_store:
        raise click.UsageError("accepted: either FILE or --from-store")
    runtime = current_runtime()
    tasks = dict(_pair(pair) for pair in pairs)
    if file is None:
        rows = legacy.read_present_store(runtime.jobstore, table=table)
    else:
        rows = legacy.read_stream(file, runtime.settings.userdata_dir, table=table)
    if not dry_run:
        click.echo(f"what the API had changed before: {exports.export_changes(runtime, 'legacy')}", err=True)
    done = legacy.take_over(runtime, rows, tasks=tasks, overwrite=overwrite, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **done.as_json()})
        return
    for line in _lines(done, dry_run):
        click.echo(_printable(line))
    if not rows:
        click.echo("the table holds no job; nothing to take over")


def _lines(done: legacy.Takeover, dry_run: bool) -> Iterator[str]:
    for job in done.jobs:
        paused = ", paused" if job.paused else ""
        yield f"{_WORDS[job.action][dry_run]}: {job.id} (task {job.task}, {job.trigger}{paused})"
        yield from (f"  {note}" for note in job.notes)
    yield from (f"not taken over: {refused.id}: {refused.reason}" for refused in done.not_taken)


def _printable(line: str) -> str:
    """Names in a foreign store may hold what a terminal obeys."""
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in line)


def _pair(text: str) -> tuple[str, str]:
    name, separator, task = text.rpartition("=")
    if not separator or not name or not task:
        raise click.UsageError(f"--map is {text!r}; accepted: FUNC=TASK")
    return name, task
