"""The health of a worker: `python -m app.fleet.health` exits 0 while it can take runs and record their ends.

A worker with a NODE_NAME of its own is asked for by it: `python -m app.fleet.health NAME`. Standard library alone,
because it runs every few seconds: the worker writes its signs of life into a file in memory, as moments of the
monotonic clock, which all processes of a machine share.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

SILENT_S = 15.0
"""A sign of life that is older is none."""

FOLDER = Path("/dev/shm")  # noqa: S108 - memory, and there in a read-only container; the user's id is in the name

_MEANING = {
    "turn": "its supervisor does not turn",
    "store": "it does not reach the store (JOBSTORE_URL)",
    "loop": "it does not reach the broker (CELERY_BROKER_URL), or its loop does not turn",
}


def signs_file(node_name: str) -> Path:
    """Where the worker of that name leaves its signs of life."""
    return FOLDER / f"whalefall-worker-{os.getuid()}-{node_name}.json"


def write_signs(node_name: str, *, turn: float, store: float, loop: float) -> None:
    """Notes when the supervisor turned, reached the store, and Celery's loop turned: moments of the monotonic clock."""
    file = signs_file(node_name)
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"turn": turn, "store": max(store, 0.0), "loop": max(loop, 0.0)}))
    new.replace(file)


def problems(node_name: str) -> list[str]:
    """What is wrong with the worker of that name; nothing: it is well."""
    try:
        signs = json.loads(signs_file(node_name).read_text())
    except (OSError, ValueError):
        return ["it has given no sign of life yet"]
    now = time.monotonic()
    return [text for name, text in _MEANING.items() if now - signs[name] > SILENT_S]


def main() -> int:
    """Says what is wrong, on standard error; the exit status: 0 where nothing is."""
    found = problems(sys.argv[1] if len(sys.argv) > 1 else socket.gethostname())
    for problem in found:
        sys.stderr.write(f"the worker is not well: {problem}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
