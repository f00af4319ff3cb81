"""Runs of the worker fleet, as a test asks for them and finds the processes that run them."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from typing import Any

from docker.models.containers import Container

from e2e.harness.faults import node_of
from e2e.harness.oracle import FINAL
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

WORKER_SERVICE = "worker"
BROKER_SERVICE = "valkey"
NEVER = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}

_SIGNAL_ONE = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"


@dataclass(frozen=True)
class FleetRun:
    """A manual run of a new job of the executor `celery`."""

    stack: Stack
    job_id: str
    run_id: str

    def rows(self) -> list[dict[str, Any]]:
        """The job's attempts in the ledger, the first one first."""
        return sorted(self.stack.bearer().history(self.job_id), key=lambda row: int(row["attempt"]))

    def row(self) -> dict[str, Any]:
        return next(row for row in self.rows() if row["run_id"] == self.run_id)

    def traces(self) -> list[dict[str, Any]]:
        """What the run itself wrote outside."""
        file = self.stack.oracle_folder / "fires.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["job_id"] == self.job_id]

    def begun(self, within: float = 20.0) -> dict[str, Any]:
        """Waits until the task has begun; its trace, with the node and the process that runs it."""
        traces = wait_until(f"{self.job_id} has begun", self.traces, within=within)
        return traces[0]

    def ended(self, within: float = 20.0) -> dict[str, Any]:
        """Waits until it is on record as ended; the row."""
        return wait_until(f"{self.job_id} has ended", self.row, lambda row: row["outcome"] in FINAL, within=within)

    def worker(self) -> Container:
        """The container that runs it."""
        name = self.begun()["node"]
        return next(found for found in self.stack.containers_of(WORKER_SERVICE) if node_of(found) == name)

    def signal_child(self, number: signal.Signals) -> None:
        """A signal to the very process that runs the task."""
        pid = self.begun()["pid"]
        self.stack.execute("python3", "-c", _SIGNAL_ONE, str(pid), str(int(number)), container=self.worker())


def run_on_fleet(stack: Stack, task: str = "oracle_fire", **fields: Any) -> FleetRun:
    """Has a worker run a task now."""
    client = stack.bearer()
    job_id = f"fleet-{task}-{time.time_ns()}"
    client.create_job(job_id, task, NEVER, executor="celery", **fields)
    return FleetRun(stack, job_id, client.run_now(job_id)["run_id"])
