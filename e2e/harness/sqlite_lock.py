"""SQLite's write lock, taken from outside: as a backup tool or a curious person with a shell does."""

from __future__ import annotations

import json
from collections.abc import Sequence

from docker.models.containers import Container

from e2e.harness.stack import Stack

JOB_STORE = "/app/userdata/scheduler.db"
APP_DATABASE = "/app/userdata/whalefall.db"

#: Runs in the container: SECONDS FILE...; prints from when to when it held the locks, in seconds since the epoch.
HOLD = """
import json, sqlite3, sys, time
held = [sqlite3.connect(file, timeout=20, isolation_level=None) for file in sys.argv[2:]]
for connection in held:
    connection.execute("BEGIN IMMEDIATE")
since = time.time()
time.sleep(float(sys.argv[1]))
for connection in held:
    connection.execute("ROLLBACK")
print(json.dumps([since, time.time()]))
"""

#: Runs in the container: whether a write lock can be had at once.
TRY = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
else:
    connection.execute("ROLLBACK")
    print("free")
"""


def hold_lock(stack: Stack, seconds: float, files: Sequence[str] = (JOB_STORE, APP_DATABASE)) -> tuple[float, float]:
    """Hold the write locks of database files; from when to when, in seconds since the epoch."""
    since, until = json.loads(stack.execute("python3", "-I", "-c", HOLD, str(seconds), *files))
    return since, until


def is_locked(stack: Stack, container: Container | None = None, file: str = JOB_STORE) -> bool:
    """Whether some process holds the write lock of a database file at this moment."""
    return stack.execute("python3", "-I", "-c", TRY, file, container=container).strip() != "free"
