"""The drill: probe jobs, and the verdict on their fires."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import BinaryIO

import click

from app.cli.console import as_json, jobs, one_line_errors, print_json
from app.ledger import EXECUTORS
from app.runtime import current_runtime
from app.services.operations.drill import drill
from app.services.operations.drill.verdict import Verdict

NOT_PROVEN = 4
"""Exit code of `flask jobs drill-verdict` that tells a finding from a failure of the command itself."""


@jobs.command("drill-start")
@click.option("--jobs", "count", type=click.IntRange(1, 500), default=20, show_default=True, help="How many probes.")
@click.option(
    "--period",
    type=click.FloatRange(1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two fires of each.",
)
@click.option("--executor", type=click.Choice(EXECUTORS), default="default", show_default=True)
@click.option(
    "--minutes",
    type=click.IntRange(1, 1440),
    default=60,
    show_default=True,
    help="After so long the probes fire no more, should nobody stop them.",
)
@as_json
@one_line_errors
def start_drill(*, count: int, period: float, executor: str, minutes: int, as_json: bool) -> None:
    """Make the probe jobs of a drill (scripts/prove_once.sh); prints its name. The newest ten drills are kept."""
    plan = drill.start_drill(current_runtime(), count=count, period=period, executor=executor, minutes=minutes)
    if as_json:
        print_json({"drill": plan.drill, "jobs": len(plan.first), "begin": min(plan.first.values())})
    else:
        click.echo(plan.drill)


@jobs.command("drill-stop")
@click.argument("name")
@one_line_errors
def stop_drill(*, name: str) -> None:
    """Delete the probe jobs of a drill; may be repeated."""
    drill.stop_drill(current_runtime(), name)


@jobs.command("drill-verdict")
@click.argument("name")
@click.option("--faults", type=click.File("rb"), help="One line of JSON a fault: kind, target, begin, end.")
@as_json
@one_line_errors
def conclude_drill(*, name: str, faults: BinaryIO | None, as_json: bool) -> None:
    """Wait for the end of a stopped drill's runs, compare, write report.html and report.json; exit 4 unless proven.

    May be repeated. The first time, the deleted probes are dropped for good; their runs stay on record.
    """
    struck = drill.parse_faults(faults.read()) if faults is not None else []
    verdict, folder = drill.conclude_drill(
        current_runtime(), name, struck, tell=lambda line: click.echo(line, err=True)
    )
    if as_json:
        print_json({"proven": verdict.proven, "folder": str(folder), **asdict(verdict)})
    else:
        click.echo(_verdict_text(verdict))
        click.echo(f"report: {folder}/report.html")
    if not verdict.proven:
        sys.exit(NOT_PROVEN)


def _verdict_text(verdict: Verdict) -> str:
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in verdict.outcomes.items()) or "none"
    late = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in verdict.lateness.items()) or "-"
    lines = [
        f"{'proven' if verdict.proven else 'NOT PROVEN'}: {verdict.due} fires due, {verdict.starts} starts seen",
        f"doubled {len(verdict.duplicates)}, absent {len(verdict.absent)}, contradictions"
        f" {len(verdict.contradictions)}, unfinished {verdict.unfinished}",
        f"outcomes: {outcomes}",
        f"lateness: {late}",
    ]
    for figures in verdict.faults:
        seconds = "-" if figures.next_fire_late is None else f"{figures.next_fire_late:.2f} s"
        recovery = "not within the drill" if figures.recovery is None else f"{figures.recovery:.2f} s"
        fault = figures.fault
        lines.append(
            f"{fault.kind} {fault.target}: next fire at most {seconds} late, every job fired again after {recovery}"
        )
    findings = [*verdict.duplicates, *verdict.absent, *verdict.contradictions]
    lines += [f"  {sentence}" for sentence in findings[:20]]
    if len(findings) > 20:
        lines.append(f"  and {len(findings) - 20} more, all in report.json")
    return "\n".join(lines)
