"""A stack whose data volume is small, so that a test can fill it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.harness.overlay import overlaid_stack
from e2e.harness.sqlite_lock import APP_DATABASE, JOB_STORE
from e2e.harness.stack import Stack

#: The volume is in memory and as large as it says; it goes when no container uses it any more.
SMALL_VOLUME = """
volumes:
  userdata:
    driver: local
    driver_opts:
      type: tmpfs
      device: tmpfs
      o: size={mib}m,mode=0750,uid=10001,gid=10001
"""
FILLER = "/app/userdata/filler"

#: Runs in the container: FILE DATABASE...; fills the file system of FILE to its last block, then empties the databases'
#: write-ahead logs, which have room left in them, and fills what that gave.
FILL = """
import os, sqlite3, sys
name, *databases = sys.argv[1:]

def fill():
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for size in (1 << 20, 4096):
        try:
            while True:
                os.write(file, b"\\0" * size)
        except OSError:
            pass
    os.close(file)

fill()
for database in databases:
    try:
        sqlite3.connect(database, timeout=5).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as error:  # as full as it can be
        print(error)
fill()
"""


@contextmanager
def small_stack(folder: Path, *, mib: int, **environment: str) -> Iterator[Stack]:
    """A started stack on a data volume of `mib` MiB."""
    with overlaid_stack(folder, "small", SMALL_VOLUME.format(mib=mib), environment) as stack:
        yield stack


@contextmanager
def full_volume(stack: Stack) -> Iterator[None]:
    """Not a block of the data volume is free in here."""
    try:
        stack.execute("python3", "-I", "-c", FILL, FILLER, JOB_STORE, APP_DATABASE)
        yield
    finally:
        stack.execute("rm", "-f", FILLER)
