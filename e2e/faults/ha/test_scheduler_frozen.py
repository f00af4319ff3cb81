"""A scheduler freezes and goes on later: the others take over, and what it still wanted to start is refused."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from functools import partial

import pytest
from docker.models.containers import Container

from e2e.harness.faults import (
    claimed_by,
    extra_scheduler,
    node_of,
    oldest_open_transaction_s,
    paused,
    said_at,
    stopped_worker,
    wait_until_node,
)
from e2e.harness.probes import Probes, let_pass
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
#: PostgreSQL ends a transaction that is left open after less than this; then the row is free.
ROW_FREE_S = 3.0
CHANCE = 0.1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["docker pause", "SIGSTOP"])
@pytest.mark.parametrize("seconds", [6, pytest.param(30, marks=pytest.mark.faults_long)])
def test_others_go_on_and_stale_starts_are_refused(
    ha_stack: Stack, probes: Probes, schedulers: list[Container], how: str, seconds: int
) -> None:
    frozen = schedulers[0]
    with probes.watch("scheduler frozen", f"{how}, {seconds} s, one of two schedulers", limit="3 s") as watch:
        watch.strike()
        freeze: AbstractContextManager[None] = (
            paused(frozen) if how == "docker pause" else stopped_worker(ha_stack, frozen)
        )
        with freeze:
            let_pass(seconds)
        watch.heal()
        wait_until_node(ha_stack, frozen)
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness(not_by=node_of(frozen))) <= LIMIT_S, watch.measurement


@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", ["claim.inserted", "start.written", "finish.written"])
def test_frozen_inside_a_transaction_withholds_its_rows_no_longer_than_three_seconds(
    ha_stack: Stack, probes: Probes, schedulers: list[Container], point: str
) -> None:
    """A third scheduler stops itself between the last statement and the commit."""
    how = f"SIGSTOP at {point}, one of three schedulers"
    # Not the first time that it comes there: it is a node that others know by then.
    armed = {"FAIL_POINTS": f"{point}=freeze@{CHANCE}"}
    with (
        probes.watch("scheduler frozen inside a transaction", how, limit="3 s") as watch,
        extra_scheduler(ha_stack, armed, is_doomed=True) as frozen,
    ):
        words = f"fail point {point}: freeze"
        watch.struck = wait_until("it freezes", lambda: said_at(frozen, words), within=60, every=0.05)
        held = [oldest_open_transaction_s(ha_stack)]

        def oldest() -> float:
            held.append(oldest_open_transaction_s(ha_stack))
            return held[-1]

        wait_until("its transaction is ended", oldest, lambda seconds: seconds == 0.0, within=20, every=0.1)
        # What it had claimed must not wait until it is awake.
        let_pass(3)
        # Awake again, it finds its transaction gone and its doors shut.
        ha_stack.signal(signal.SIGCONT, "scheduler", "worker", container=frozen)
        watch.heal()
        let_pass(1)
    watch.check()
    assert max(held) > 0.2, f"it did not freeze inside a transaction: {held}"
    assert max(held) <= ROW_FREE_S, held
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness(not_by=node_of(frozen))) <= LIMIT_S, watch.measurement


@pytest.mark.timeout(180)
def test_frozen_between_claim_and_start_others_start_what_it_claimed(
    ha_stack: Stack, probes: Probes, schedulers: list[Container]
) -> None:
    """A third scheduler stops itself with claimed runs in its hands: they go to another one, and its door is shut."""
    words = "fail point claim.committed: freeze"
    with (
        probes.watch(
            "scheduler frozen", "SIGSTOP between claim and start, one of three schedulers", limit="3 s"
        ) as watch,
        extra_scheduler(ha_stack, {"FAIL_POINTS": f"claim.committed=freeze@{CHANCE}"}, is_doomed=True) as frozen,
    ):
        while True:
            since = watch.struck or 0.0
            watch.struck = wait_until("it freezes", partial(said_at, frozen, words, after=since), within=60, every=0.05)
            if claimed_by(ha_stack, frozen):
                break
            # There was nothing to claim, and it froze after a heartbeat alone.
            ha_stack.signal(signal.SIGCONT, "scheduler", "worker", container=frozen)
        let_pass(5)
        assert claimed_by(ha_stack, frozen) == 0
        ha_stack.signal(signal.SIGCONT, "scheduler", "worker", container=frozen)
        watch.heal()
        let_pass(1)
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness()) <= LIMIT_S, watch.measurement
