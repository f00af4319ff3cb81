"""The busiest scheduler comes first; the dead and the workers are left out."""

from __future__ import annotations

from sqlalchemy import insert

from app.db.clock import now_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import nodes, runs
from app.runtime import Runtime
from app.services.operations.drill.busy_nodes import BusyNode, busy_nodes
from tests.unit.ledger.run_rows import run_row

SECOND = 1_000_000


def add_node(runtime: Runtime, name: str, *, kind: str = "scheduler", silent_s: int = 0) -> None:
    at = now_us() - silent_s * SECOND
    row = {"node_id": name, "kind": kind, "name": name, "version": "1", "state": "running"}
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(insert(nodes).values(started_at=at, heartbeat_at=at, **row))


def add_runs(runtime: Runtime, node: str, outcome: str, count: int, *, age_s: int) -> None:
    at = now_us() - age_s * SECOND
    at_node = {"outcome": outcome, "started_at": at, "node": node, "owner": node}
    rows = [run_row(f"{node}-{outcome}-{age_s}-{index}", at, **at_node) for index in range(count)]
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(insert(runs), rows)


def test_the_busiest_comes_first(runtime: Runtime) -> None:
    for name in ("idle", "starting", "running"):
        add_node(runtime, name)
    add_node(runtime, "dead", silent_s=60)
    add_node(runtime, "hand", kind="worker")
    add_runs(runtime, "starting", "success", 3, age_s=5)
    add_runs(runtime, "starting", "success", 9, age_s=100)  # too long ago
    add_runs(runtime, "running", "running", 4, age_s=100)
    for name in ("dead", "hand"):
        add_runs(runtime, name, "success", 20, age_s=1)
    assert busy_nodes(runtime, window_s=30) == [
        BusyNode("running", 4, 0),
        BusyNode("starting", 0, 3),
        BusyNode("idle", 0, 0),
    ]


def test_nobody(runtime: Runtime) -> None:
    assert busy_nodes(runtime, window_s=30) == []
