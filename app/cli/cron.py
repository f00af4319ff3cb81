"""Checking a cron expression, in the stack and, by scripts/validate_cron.py, on a host that has the packages."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from app.cli.console import as_json, jobs, one_line_errors, print_json
from app.i18n import LANGUAGES
from app.services.operations.cron_check import MOST_FIRES, check_cron, cron_lines
from app.services.operations.failure import OperationFailed
from app.settings import Settings, SettingsError


@jobs.command("validate-cron", with_appcontext=False)
@click.argument("expression")
@click.option("--timezone", help="IANA name; SCHEDULER_TIMEZONE when left out.")
@click.option("--count", type=click.IntRange(1, MOST_FIRES), default=10, show_default=True, help="How many fires.")
@click.option("--after", help="ISO 8601 with an offset, or UTC: fires after this moment; now when left out.")
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of the words.")
@as_json
@one_line_errors
def validate_cron(
    *, expression: str, timezone: str | None, count: int, after: str | None, lang: str, as_json: bool
) -> None:
    """Explain a cron expression and print its next fires with their UTC offsets; clock changes are marked.

    EXPRESSION has 5 parts (minute hour day month day_of_week), 6 (second first) or 7 (year last). Weekday numbers are
    crontab's: 0 and 7 are Sunday.
    """
    zone = timezone or _own_timezone()
    check = check_cron(expression, timezone=zone, count=count, after=_moment(after), language=lang)
    if as_json:
        print_json(check.as_json())
        return
    for line in cron_lines(check, lang):
        click.echo(line)


def _own_timezone() -> str:
    try:
        return Settings.load().scheduler_timezone
    except SettingsError as error:
        raise OperationFailed(str(error)) from error


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        if not 1970 <= moment.year <= 2199:
            raise ValueError
    except ValueError:
        raise OperationFailed(f"--after is {text!r}; accepted: ISO 8601, 1970 to 2199") from None
    return moment
