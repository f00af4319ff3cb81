"""Nodes: the processes that share a store, their heartbeats, and the lock files that prove a death at once."""

import fcntl
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.clock import from_us
from app.db.jobstore_tables import IS_ACTIVE, Row, nodes, runs

NodeKind = Literal["scheduler", "worker"]
NodeState = Literal["running", "stopping", "stopped", "dead"]
LIVING = ("running", "stopping")
"""States of nodes that should be sending heartbeats."""

KEEP_SILENT_S = 86_400
"""How long the row of a node that is gone stays listed, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A scheduler process, or a worker of the Celery fleet, as the store knows it; `stats` is what it last told
    of itself."""

    node_id: str
    kind: NodeKind
    name: str
    version: str
    state: NodeState
    started_at: datetime
    heartbeat_at: datetime
    lock_file: str | None
    stats: Mapping[str, Any]


def node_from_row(row: Row) -> Node:
    """The node in a row of the `nodes` table."""
    return Node(
        node_id=row["node_id"],
        kind=row["kind"],
        name=row["name"],
        version=row["version"],
        state=row["state"],
        started_at=from_us(row["started_at"]),
        heartbeat_at=from_us(row["heartbeat_at"]),
        lock_file=row["lock_file"],
        stats=json.loads(row["stats"]),
    )


class LockFile:
    """A file that this process holds locked for as long as it lives.

    The kernel frees the lock when the process dies, whatever killed it; process ids and boot ids prove
    nothing, because they repeat among containers that share a volume. `text` is for whoever reads the file.
    """

    def __init__(self, path: Path, text: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(self._fd, 0)
        os.write(self._fd, text.encode())

    def release(self) -> None:
        """Frees the lock and removes the file."""
        self.path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Frees the lock and leaves the file: whoever sees it knows that this process is gone."""
        os.close(self._fd)


def is_proof_of_death(lock_file: str | None) -> bool:
    """Whether `lock_file` is here and nobody holds it. A missing file proves nothing: it may be on another machine."""
    if lock_file is None:
        return False
    try:
        fd = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look at once are no proof of life
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def remove_lock_file(node: Node) -> None:
    """Clears away the lock file of a node that is on record as dead."""
    if node.lock_file is not None:
        Path(node.lock_file).unlink(missing_ok=True)


def beat(
    connection: Connection,
    *,
    node_id: str,
    name: str,
    version: str,
    state: NodeState,
    started_at: int,
    lock_file: str | None,
    stats: Mapping[str, Any],
    now: int,
    kind: NodeKind = "scheduler",
) -> None:
    """Writes the node's row: it lives, and this is how it is doing."""
    changing = {"state": state, "heartbeat_at": now, "stats": json.dumps(stats)}
    done = connection.execute(update(nodes).where(nodes.c.node_id == node_id).values(changing))
    if done.rowcount:
        return
    fixed = {
        "node_id": node_id,
        "kind": kind,
        "name": name,
        "version": version,
        "started_at": started_at,
        "lock_file": lock_file,
    }
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(nodes).values(**fixed, **changing).on_conflict_do_nothing())


def list_nodes(connection: Connection, *, living_or: Collection[str] | None = None) -> list[Node]:
    """All nodes on record, the newest first; with `living_or` only those that are not known to be gone, and these."""
    query = select(nodes).order_by(nodes.c.started_at.desc())
    if living_or is not None:
        query = query.where(or_(nodes.c.state.in_(LIVING), nodes.c.node_id.in_(living_or)))
    return [node_from_row(row) for row in connection.execute(query).mappings()]


def mark_dead(connection: Connection, node_ids: Sequence[str]) -> None:
    """Notes that the processes of these nodes are proved to be gone."""
    connection.execute(update(nodes).where(nodes.c.node_id.in_(node_ids)).values(state="dead"))


def forget_gone_nodes(connection: Connection, *, now: int) -> None:
    """Drops nodes that have been silent for KEEP_SILENT_S and own nothing that is active."""
    owners = select(runs.c.owner).where(IS_ACTIVE)
    connection.execute(
        delete(nodes).where(nodes.c.heartbeat_at < now - KEEP_SILENT_S * 1_000_000, nodes.c.node_id.not_in(owners))
    )
