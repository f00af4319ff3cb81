"""Why a job fired, did not fire, or fired late."""

from __future__ import annotations

import click

from app.cli.console import as_json, jobs, one_line_errors, print_json
from app.i18n import LANGUAGES
from app.runtime import current_runtime
from app.services.operations.explain.job import explain


@jobs.command("explain")
@click.argument("job_id")
@click.argument("time", required=False)
@click.option(
    "--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of the sentences."
)
@as_json
@one_line_errors
def explain_fire(*, job_id: str, time: str | None, lang: str, as_json: bool) -> None:
    """Say why a job fired, did not fire, or fired late.

    TIME is HH:MM, HH:MM:SS (the latest one that has been), a day, or a day and a time, in the zone of the job's trigger
    unless it has an offset. Without it: the job's latest moment.
    """
    found = explain(current_runtime(), job_id, time, language=lang)
    if as_json:
        print_json(found.as_json())
        return
    for sentence in (found.sentence, *found.details):
        click.echo(sentence)
