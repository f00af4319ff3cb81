"""How busy each scheduler is: what it runs, and what it started lately."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select

from app.db.clock import to_us
from app.db.engines import read_transaction
from app.db.jobstore_tables import IS_ACTIVE, runs
from app.ledger.nodes import LIVING
from app.ledger.run_ids import run_id_floor
from app.runtime import Runtime
from app.services.health_service import HEARTBEAT_FRESH_S


@dataclass(frozen=True)
class BusyNode:
    """A living scheduler by its name; `running` counts runs at this moment, `started` those begun in the window."""

    name: str
    running: int
    started: int


def busy_nodes(runtime: Runtime, *, window_s: float) -> list[BusyNode]:
    """The living schedulers, the busiest first: by what they started in the last `window_s` seconds and what they are
    still running."""
    now = runtime.ledger.now()
    fresh = timedelta(seconds=HEARTBEAT_FRESH_S)
    living = {
        node.name
        for node in runtime.ledger.nodes()
        if node.kind == "scheduler" and node.state in LIVING and now - node.heartbeat_at <= fresh
    }
    since = to_us(now) - round(window_s * 1_000_000)
    begun = (
        select(runs.c.node, func.count())
        .where(runs.c.run_id >= run_id_floor(since), runs.c.started_at >= since)
        .group_by(runs.c.node)
    )
    still = select(runs.c.node, func.count()).where(IS_ACTIVE, runs.c.outcome == "running").group_by(runs.c.node)
    with read_transaction(runtime.jobstore) as connection:
        started = {name: int(count) for name, count in connection.execute(begun)}
        running = {name: int(count) for name, count in connection.execute(still)}
    found = [BusyNode(name, running.get(name, 0), started.get(name, 0)) for name in living]
    return sorted(found, key=lambda node: (-node.started - node.running, node.name))
