"""`python3 -m app.cli.doctor`: what scripts/doctor.sh calls in a container.

No `flask` command, because those build the app first: the doctor must be able to look at what keeps it from starting,
and change nothing while it does.
"""

from __future__ import annotations

import json
import sys

import click

from app.services.operations.doctor import doctor
from app.services.operations.doctor.findings import Finding, Place

FOUND = 3
"""Exit code that tells findings from a failure of the command itself; notes alone are none."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: a list of findings.")
@click.option("--project", default="whalefall", help="The Compose project.")
@click.option("--service", default="whalefall", help="The service whose containers run the scheduler.")
@click.option("--shape", type=click.Choice(["prod", "split", "ha"]), default="prod")
@click.option("--url", help="Where nginx is, as this container reaches it; not asked when left out.")
@click.option("--node", "nodes", multiple=True, help="The name of one of the project's own nodes.")
@click.option("--stopped", is_flag=True, help="No container of the service runs; this one is beside it.")
def main(
    *, as_json: bool, project: str, service: str, shape: str, url: str | None, nodes: tuple[str, ...], stopped: bool
) -> None:
    """Look at stores, schedulers and jobs; print what is wrong. Exit code 3 when anything is."""
    known = frozenset(nodes) if nodes else None
    here = Place(project=project, service=service, shape=shape, url=url, nodes=known, is_running=not stopped)
    found = doctor.examine(here)
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in found], ensure_ascii=False))
    else:
        for finding in found:
            click.echo(finding_text(finding))
    if any(finding.severity != "note" for finding in found):
        sys.exit(FOUND)


def finding_text(finding: Finding) -> str:
    """A finding as people read it; scripts/lib/host_findings.sh prints its own in the same form."""
    return (
        f"{finding.severity.upper():<7} {finding.id}: {finding.what}\n"
        f"        means: {finding.means}\n"
        f"        next:  {finding.command}\n"
        f"        more:  {finding.runbook}"
    )


if __name__ == "__main__":
    main()
