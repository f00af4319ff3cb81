"""A page answers as fast while a job burns a CPU as it does when nothing runs.

`/dashboard` is asked 20 times a second, each call at its own planned moment, whether or not the one before
has answered; a latency counts from the planned moment, so that a stall cannot hide the calls behind it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest

from e2e.harness.client import Client
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_for_clock, wait_until

PER_SECOND = 20
SECONDS = 10
ROUNDS = 5
LIMIT = 1.5
BURNER = "burner"


@pytest.fixture
def burner(api: Client) -> Iterator[str]:
    api.create_job(
        BURNER,
        "oracle_burn",
        {"trigger_type": "cron", "cron_expression": "0 0 1 1 *"},
        # Longer than a round: it burns from before the first call until after the last one.
        kwargs={"seconds": SECONDS + 2.0, "call_seconds": 2.0},
    )
    yield BURNER
    api.delete_job(BURNER)


def ask(client: Client, moment: float) -> float:
    """Latency in seconds of one page asked for at `moment`."""
    wait_for_clock(moment)
    answer = client.get("/dashboard")
    assert answer.status_code == 200, answer.text[:500]
    return time.time() - moment


@dataclass(frozen=True)
class Round:
    """The p99 latency of one round's pages, in seconds, and when the last of them was asked for."""

    p99: float
    asked_until: float


def ask_for_a_round(pool: ThreadPoolExecutor, client: Client) -> Round:
    begin = time.time() + 0.2
    moments = [begin + index / PER_SECOND for index in range(PER_SECOND * SECONDS)]
    latencies = sorted(pool.map(partial(ask, client), moments))
    return Round(latencies[int(0.99 * len(latencies))], moments[-1])


@pytest.mark.timeout(300)
def test_dashboard_keeps_its_pace_while_a_job_burns(stack: Stack, api: Client, admin: Client, burner: str) -> None:
    ratios = []
    with ThreadPoolExecutor(PER_SECOND) as pool:
        ask_for_a_round(pool, admin)  # connections opened, templates compiled
        for _ in range(ROUNDS):
            idle = ask_for_a_round(pool, admin)
            run_id = api.run_now(burner)["run_id"]
            wait_until("the start of the job", partial(stack.logged, run_id), within=10, every=0.05)
            busy = ask_for_a_round(pool, admin)
            ended = wait_until("the end of the job", partial(stack.logged, run_id, "end"), within=30)
            ratios.append(busy.p99 / idle.p99)
            print(
                f"\np99 idle {idle.p99 * 1000:.1f} ms, burning {busy.p99 * 1000:.1f} ms, ratio {ratios[-1]:.2f}",
                end="",
            )
            assert ended is not None
            assert ended >= busy.asked_until, "the job did not burn for the whole round"
    wait_until(
        "every run on record as a success",
        lambda: [row["outcome"] for row in api.history(burner)],
        lambda outcomes: outcomes == ["success"] * ROUNDS,
        within=20,
    )
    print(f"\nmedian ratio {statistics.median(ratios):.2f}, limit {LIMIT}")
    assert statistics.median(ratios) <= LIMIT, ratios
