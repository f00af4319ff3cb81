"""Jobs that fire every second, through whatever is done to their stack, judged from the first moment to the last."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Protocol

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import FINAL, Start, Verdict, every, judge, parse_moment
from e2e.harness.waiting import wait_until


class Observed(Protocol):
    """A stack that has the oracle's tasks."""

    def bearer(self) -> Client: ...

    def starts(self) -> list[Start]: ...


class EverySecond:
    """Two jobs that fire every second: one at each moment, one that folds what was due meanwhile into one run."""

    IDS = ("each-moment", "folded")

    def __init__(self, stack: Observed) -> None:
        """Creates them; the first moment is some seconds ahead."""
        self.stack = stack
        self.first = datetime.fromtimestamp(int(time.time()) + 4, tz=UTC)
        trigger = {"trigger_type": "interval", "seconds": 1, "start_date": self.first.isoformat()}
        for job_id in self.IDS:
            stack.bearer().create_job(job_id, "oracle_fire", trigger, coalesce=job_id == "folded", max_instances=10)

    def wait_for_fires(self, count: int = 3) -> None:
        """Until each job succeeded so often for moments from now on."""
        client, now = self.stack.bearer(), datetime.now(UTC)

        def later(job_id: str) -> int:
            rows = client.data("GET", f"{SCHEDULER}/jobs/{job_id}/history", params={"limit": "50"})
            return sum(row["outcome"] == "success" and parse_moment(row["scheduled_for"]) > now for row in rows)

        wait_until(
            f"{count} fires of each after {now}",
            lambda: min(later(job_id) for job_id in self.IDS),
            lambda least: least >= count,
            within=60,
        )

    def judge(self) -> Verdict:
        """Fails unless every moment so far has one outcome on record and none was started twice; they are paused for
        it."""
        client = self.stack.bearer()
        for job_id in self.IDS:
            client.data("POST", f"{SCHEDULER}/jobs/{job_id}/actions/pause")
        histories = wait_until("all runs to end", self.histories, _all_ended, within=60)
        lasts = {job_id: max(parse_moment(row["scheduled_for"]) for row in rows) for job_id, rows in histories.items()}
        expected = {job_id: every(1, self.first, lasts[job_id]) for job_id in self.IDS}
        verdict = judge(expected, self.stack.starts(), histories)
        print(f"\n{verdict}")
        assert verdict.clean, verdict
        for job_id in self.IDS:
            client.data("POST", f"{SCHEDULER}/jobs/{job_id}/actions/resume")
        return verdict

    def histories(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of both jobs, newest first."""
        client = self.stack.bearer()
        return {job_id: client.history(job_id) for job_id in self.IDS}


def _all_ended(histories: dict[str, list[dict[str, Any]]]) -> bool:
    return all(row["outcome"] in FINAL for rows in histories.values() for row in rows)


def start_load(stack: Observed, count: int) -> list[str]:
    """Further jobs that fire every second until they are deleted; their ids, once all have begun."""
    client = stack.bearer()
    ids = [f"load_{number}" for number in range(count)]
    for job_id in ids:
        client.create_job(job_id, "oracle_fire", {"trigger_type": "interval", "seconds": 1})
    wait_until("the first fires", stack.starts, lambda starts: len(starts) >= 2 * count, within=30)
    return ids
