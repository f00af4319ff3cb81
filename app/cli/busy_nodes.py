"""How busy the schedulers are."""

from __future__ import annotations

from dataclasses import asdict

import click

from app.cli.console import as_json, jobs, one_line_errors, print_json, print_table
from app.runtime import current_runtime
from app.services.operations.drill import busy_nodes


@jobs.command("busy-nodes")
@click.option("--window", type=click.FloatRange(1, 3600), default=60.0, show_default=True, help="Seconds to look back.")
@as_json
@one_line_errors
def show_busy_nodes(*, window: float, as_json: bool) -> None:
    """List the living schedulers, the busiest first: what each runs, and what it started in the last seconds."""
    found = busy_nodes.busy_nodes(current_runtime(), window_s=window)
    if as_json:
        print_json([asdict(node) for node in found])
        return
    print_table(("node", "running", "started"), [[node.name, str(node.running), str(node.started)] for node in found])
