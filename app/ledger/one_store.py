"""All processes on one volume use one job store: two stores would both fire the same jobs.

Each process that starts runs holds a lock file (see LockFile) whose text names its store. A newcomer that finds a
living one of another store does not start.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.db.reach import StoreUnusable
from app.ledger.nodes import LockFile, is_proof_of_death

_DOOR = ".starting"


def lock_for(folder: Path, node_id: str, store: str) -> LockFile:
    """The lock file of a process that starts runs of `store`; StoreUnusable where another store is in use.

    store: the name that app.db.reach.store_name gives it.
    """
    with _door(folder):  # of two that start at once, one sees the other's file
        _look_for_others(folder, store)
        return LockFile(folder / f"{node_id}.lock", store)


def refuse_other_store(folder: Path, store: str) -> None:
    """StoreUnusable when a living process on this volume uses another store than `store`."""
    with _door(folder):
        _look_for_others(folder, store)


def _look_for_others(folder: Path, store: str) -> None:
    for path in sorted(folder.glob("*.lock")):
        try:
            other = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # removed since it was listed
            continue
        if other and other != store and not is_proof_of_death(str(path)) and path.exists():
            raise StoreUnusable(
                f"JOBSTORE_URL: this process would use {store}, but another one on the same volume is alive and uses"
                f" {other}, and both would fire the same jobs. Stop one of the two stacks; nothing was changed"
            )


@contextmanager
def _door(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / _DOOR, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreUnusable(f"USERDATA_DIR: no lock file can be made in {folder}: {error.strerror or error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
