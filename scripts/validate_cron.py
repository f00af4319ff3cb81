#!/usr/bin/env python3
"""Explains a cron expression and prints its next fires with their UTC offsets; clock changes are marked.

Where this host's Python has the app's packages (.venv, see CONTRIBUTING.md) nothing else is needed; elsewhere the
stack's container answers.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USAGE = """\
Usage: scripts/validate_cron.py EXPR [--timezone ZONE] [--count N] [--after MOMENT] [--lang zh|en] [--json]

Explains a cron expression and prints its next fires with their UTC offsets. What a clock change moves, doubles or
leaves out is marked. Changes nothing. EXPR is one argument, in quotes:
  5 parts   minute hour day month day_of_week
  6 parts   second minute hour day month day_of_week
  7 parts   second minute hour day month day_of_week year
Weekday numbers are crontab's: 0 and 7 are Sunday.

  --timezone ZONE  IANA name such as Asia/Shanghai; SCHEDULER_TIMEZONE of the stack when not given
  --count N        how many fires, 1 to 100; 10 when not given
  --after MOMENT   ISO 8601; fires after it instead of after now
  --lang zh|en     language of the words; that of this shell (LANG) when not given
  --json           one line of JSON
  --help           this text

Exit status: 0 valid, 1 not valid (one line says what is wrong and what is accepted), 2 wrong usage.
"""
#: In the stack's container. $1 is scripts/lib.sh; errors begin with this script's name, which is $0.
IN_STACK = """
set -Eeuo pipefail
source "$1"
shift
cd "$ROOT"
require_stack
if stack_runs; then in_stack "$@"; else beside_stack "$@"; fi
"""
VALUED = ("--timezone", "--count", "--after", "--lang")
FLAGS = ("--json",)


def usage_error(message: str) -> int:
    print(f"{Path(__file__).name}: {message}", file=sys.stderr)
    return 2


def main(arguments: list[str]) -> int:
    if "--help" in arguments:
        print(USAGE, end="")
        return 0
    accepted = f"EXPR, {', '.join((*VALUED, *FLAGS))}, --help"
    expression: str | None = None
    options: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in VALUED:
            value = next(rest, None)
            if not value or value.startswith("--"):
                return usage_error(f"{argument} needs a value (--help tells more)")
            options += [argument, value]
        elif argument in FLAGS:
            options.append(argument)
        elif argument.startswith("-") or expression is not None:
            return usage_error(f"unknown argument {argument!r}; accepted: {accepted}; EXPR is one argument, in quotes")
        else:
            expression = argument
    if expression is None:
        return usage_error(f"EXPR is missing; accepted: {accepted}")
    if "--lang" not in options:
        spoken = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
        options += ["--lang", "zh" if spoken.startswith("zh") else "en"]
    return answer([*options, "--", expression])


def answer(arguments: list[str]) -> int:
    """By this Python where it can, else by the stack's container."""
    sys.path.insert(0, str(ROOT))
    try:
        from app.cli.cron import validate_cron
    except (ImportError, SyntaxError):  # the packages are missing, or this Python is too old for them
        script = str(Path(__file__))
        command = ["bash", "-c", IN_STACK, script, str(ROOT / "scripts" / "lib.sh")]
        os.execvp("bash", [*command, "flask", "jobs", "validate-cron", *arguments])  # noqa: S606, S607
    if "--timezone" not in arguments and "SCHEDULER_TIMEZONE" not in os.environ:
        arguments = ["--timezone", stack_timezone(), *arguments]
    from click import ClickException

    try:
        validate_cron.main(arguments, prog_name=Path(__file__).name, standalone_mode=False)
    except ClickException as error:
        print(f"{Path(__file__).name}: {error.format_message()}", file=sys.stderr)
        return error.exit_code
    return 0


def stack_timezone() -> str:
    """SCHEDULER_TIMEZONE as the stack's .env has it."""
    try:
        lines = (ROOT / ".env").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = [match[1] for line in lines if (match := re.fullmatch(r"SCHEDULER_TIMEZONE=[\"']?([^\"']+)[\"']?", line))]
    return found[-1] if found else "Asia/Shanghai"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
