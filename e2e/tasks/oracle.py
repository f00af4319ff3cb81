"""Drop-in tasks that leave their trace outside the system: one line a start, in a log the app never reads.

The line is written with one `write` on a descriptor opened with O_APPEND, so that lines of several
processes, one of them possibly killed in the middle, never mix.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from app.tasks import task

#: Mounted by compose/docker-compose.e2e.yml; on no volume that the app uses.
LOG = "/oracle/fires.jsonl"


def record(run: Any, event: str) -> None:
    line = {
        "event": event,
        "run_id": run.id,
        "job_id": run.job_id,
        "scheduled_for": run.scheduled_for.isoformat(),
        "kind": run.kind,
        "attempt": run.attempt,
        "node": run.node,
        "pid": os.getpid(),
        "time": time.time(),
        # The machine's own, which no container's wall clock changes: for tests that step that one.
        "uptime": time.monotonic(),
    }
    descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


@task("oracle_fire", description="Writes its start to the outside log")
def oracle_fire(*, run: Any) -> None:
    record(run, "start")


@task("oracle_sleep", description="Writes its start, sleeps, writes its end")
def oracle_sleep(seconds: float = 5.0, *, run: Any) -> None:
    record(run, "start")
    time.sleep(seconds)
    record(run, "end")


@task("oracle_until", description="Writes its start, and lasts until a file is in the folder of the outside log")
def oracle_until(file: str, *, run: Any) -> None:
    record(run, "start")
    while not (Path(LOG).parent / file).exists():
        time.sleep(0.1)


@task("oracle_fail", description="Writes its start and raises")
def oracle_fail(message: str = "failed on purpose", *, run: Any) -> None:
    record(run, "start")
    raise RuntimeError(message)


@task("oracle_burn", description="Burns a CPU for some seconds in C calls that hold the interpreter lock")
def oracle_burn(seconds: float = 10.0, call_seconds: float = 1.0, *, run: Any) -> None:
    """Raise big integers to a power modulo another: pow() holds the lock for the whole of a call.

    `call_seconds` is how long one call should take; the size of the exponent that does it is found out first.
    """
    record(run, "start")
    end = time.monotonic() + seconds
    modulus = (1 << 4096) - int(hashlib.sha256(b"oracle").hexdigest(), 16)
    bits = 4096
    while True:
        began = time.monotonic()
        pow(3, (1 << bits) - 1, modulus)
        took = time.monotonic() - began
        if began + took >= end:
            break
        bits = max(4096, int(bits * min(4.0, call_seconds / max(took, 1e-6))))
    record(run, "end")


@task("oracle_hoard", description="Takes ever more memory, until it is killed")
def oracle_hoard(chunk_mib: int = 8, *, run: Any) -> None:
    record(run, "start")
    hoard = []
    while True:
        # Written to, so that it is really taken; in steps, so that others can run in between.
        hoard.append(b"\xa5" * (chunk_mib << 20))
        time.sleep(0.02)
