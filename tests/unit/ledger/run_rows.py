"""Rows of the ledger for tests that write its past themselves, behind its back."""

from __future__ import annotations

from typing import Any

from app.ledger.run_ids import new_run_id


def run_row(job_id: str, moment: int, **values: Any) -> dict[str, Any]:
    """A row of `runs`: what the schedule asked for at `moment` (microseconds), claimed then, and a success.

    The task has the job's name. `values`: other columns, or other values of these.
    """
    claimed_at = values.get("claimed_at", moment)
    return {
        "run_id": new_run_id(claimed_at),
        "job_id": job_id,
        "task": job_id,
        "kind": "schedule",
        "scheduled_for": moment,
        "outcome": "success",
        "executor": "default",
        "max_instances": 1,
        "misfire_grace_time": 300,
        "retry_on_loss": False,
        "kwargs": "{}",
        "created_by": "schedule",
        "claimed_at": claimed_at,
        **values,
    }
