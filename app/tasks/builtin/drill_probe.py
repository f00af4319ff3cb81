"""`drill_probe`: what the jobs of a drill (scripts/prove_once.sh) run: one line a start, outside the store."""

from __future__ import annotations

import json
import os
import time
from typing import Annotated

from pydantic import Field

from app.ledger import RunContext
from app.runtime import current_runtime
from app.services.operations.drill.log import DRILL_PATTERN, fires_file
from app.tasks import task


@task("drill_probe", description="Writes down that it was started, for scripts/prove_once.sh")
def drill_probe(drill: Annotated[str, Field(pattern=DRILL_PATTERN)], *, run: RunContext) -> None:
    """Adds a line to the drill's log, whole or not at all. A run that a person asked for is no fire."""
    if run.kind == "manual":
        return
    line = {
        "run_id": run.id,
        "job_id": run.job_id,
        "scheduled_for": run.scheduled_for.timestamp(),
        "attempt": run.attempt,
        "node": run.node,
        "time": time.time(),
    }
    file = fires_file(current_runtime().settings.userdata_dir, drill)
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(log, (json.dumps(line) + "\n").encode())
    finally:
        os.close(log)
