"""What the ledger's fail points did (app/ledger/failpoints.py), as the log of their process tells."""

from __future__ import annotations

from docker.models.containers import Container

#: The three steps of a fire, and the fail points within them.
STEPS = {
    "claim": ("claim.inserted", "claim.written", "claim.committed"),
    "start": ("start.written", "start.committed"),
    "finish": ("finish.written", "finish.committed"),
}


def struck(container: Container, point: str, action: str) -> int:
    """How often a fail point has acted in a container since that was made; it says so right before."""
    line = f"fail point {point}: {action}"
    log: str = container.logs().decode(errors="replace")
    return log.count(line)


def deaths(container: Container, step: str) -> int:
    """How often a container's scheduler has died at a step."""
    return sum(struck(container, point, "exit") for point in STEPS[step])
