"""A scheduler on SQLite freezes and goes on later: alone, beside another one, and with the store's lock in its hand."""

from __future__ import annotations

import json
import signal
from contextlib import AbstractContextManager

import pytest
from docker.models.containers import Container

from e2e.harness.fail_points import struck
from e2e.harness.faults import extra_scheduler, node_of, paused, stopped_worker
from e2e.harness.probes import Probes, Watch, let_pass
from e2e.harness.sqlite_lock import JOB_STORE, is_locked
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
SECONDS = [4, pytest.param(30, marks=pytest.mark.faults_long)]
WITH_THE_LOCK = [
    (4, "start.written", "wakes"),
    (4, "claim.written", "dies"),
    *(
        pytest.param(30, point, end, marks=pytest.mark.faults_long)
        for point in ("claim.written", "start.written", "finish.written")
        for end in ("wakes", "dies")
    ),
]


#: Runs in a container: the runs that the node of that name has claimed and not started.
PENDING = """
import json, sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
query = "SELECT run_id FROM runs JOIN nodes ON owner = node_id WHERE outcome = 'pending' AND name = ?"
print(json.dumps([run_id for run_id, in connection.execute(query, sys.argv[2:])]))
"""


def pending_runs(stack: Stack, node: str) -> set[str]:
    return set(json.loads(stack.execute("python3", "-I", "-c", PENDING, JOB_STORE, node)))


def freeze_with_claimed_runs(stack: Stack, frozen: Container, point: str) -> set[str]:
    """Wake the scheduler up until it freezes with runs in its hand, which it claimed and has not started."""
    name = node_of(frozen)
    times = 1

    def held() -> set[str]:
        nonlocal times
        wait_until(f"freezes at {point}", lambda: struck(frozen, point, "freeze") >= times, within=60, every=0.05)
        runs = pending_runs(stack, name)
        if not runs:
            times += 1
            stack.signal(signal.SIGCONT, "scheduler", "worker", container=frozen)
        return runs

    return wait_until("it freezes with runs", held, within=60, every=0.0)


def wake_for_a_fire(stack: Stack, frozen: Container, point: str, watch: Watch) -> None:
    """Wake the scheduler up, and wait for the next fire; again where it froze anew before that."""

    def fire_or_frost() -> str:
        if any(start.time >= healed for start in stack.starts()):
            return "fire"
        return "frost" if struck(frozen, point, "freeze") > times else ""

    seen = ""
    while seen != "fire":
        times = struck(frozen, point, "freeze")
        stack.signal(signal.SIGCONT, "scheduler", "worker", container=frozen)
        healed = watch.heal()
        seen = wait_until("a fire", fire_or_frost, within=30, every=0.05)


def wait_until_frozen(container: Container, point: str) -> None:
    wait_until(f"freezes at {point}", lambda: struck(container, point, "freeze"), within=60, every=0.05)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ("SIGSTOP", 4),
        pytest.param("SIGSTOP", 30, marks=pytest.mark.faults_long),
        pytest.param("docker pause", 30, marks=pytest.mark.faults_long),
    ],
)
def test_the_only_one_goes_on_when_it_wakes(one_stack: Stack, probes: Probes, how: str, seconds: int) -> None:
    with probes.watch(
        "scheduler frozen", f"{how}, {seconds} s, the only one", outage=True, limit="3 s after it wakes"
    ) as watch:
        freeze: AbstractContextManager[None] = (
            paused(one_stack.container()) if how == "docker pause" else stopped_worker(one_stack, one_stack.container())
        )
        watch.strike()
        with freeze:
            let_pass(seconds)
        watch.heal()
        one_stack.wait_until_ready()
    watch.check()
    assert watch.recovery <= LIMIT_S, watch.measurement
    assert watch.verdict.outcomes["lost"] == 0, watch.verdict


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", SECONDS)
def test_another_one_goes_on_and_stale_starts_are_refused(one_stack: Stack, probes: Probes, seconds: int) -> None:
    """A second scheduler stops itself between its claim and the starts."""
    how = f"SIGSTOP after a claim, {seconds} s, one of two schedulers"
    point = "claim.committed"
    with (
        probes.watch("scheduler frozen", how, limit="3 s") as watch,
        extra_scheduler(one_stack, {"FAIL_POINTS": f"{point}=freeze@1"}, is_doomed=True) as frozen,
    ):
        held = freeze_with_claimed_runs(one_stack, frozen, point)
        watch.strike()
        wait_until("the lock is free", lambda: not is_locked(one_stack), within=3)
        let_pass(seconds)
        # Awake again, it finds its doors shut.
        one_stack.signal(signal.SIGCONT, "scheduler", "worker", container=frozen)
        watch.heal()
        let_pass(1)
        name = node_of(frozen)
    watch.check()
    started = [start for start in watch.starts if start.run_id in held]
    assert {start.run_id for start in started} == held, "what it held was not started"
    assert name not in {start.node for start in started}, "a stale start was not refused"
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness(not_by=name)) <= LIMIT_S, watch.measurement


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("seconds", "point", "end"), WITH_THE_LOCK)
def test_all_goes_on_when_who_froze_with_the_lock_wakes_or_dies(
    one_stack: Stack, probes: Probes, seconds: int, point: str, end: str
) -> None:
    """A second scheduler stops itself between its last statement and the commit: SQLite cannot evict it."""
    how = f"SIGSTOP at {point}, {seconds} s, one of two schedulers, which then {end}"
    limit = f"3 s after it {end}"
    with (
        probes.watch("scheduler frozen inside a transaction, SQLite", how, outage=True, limit=limit) as watch,
        # Not each time: awake again, it shall get through the rest of its turn.
        extra_scheduler(one_stack, {"FAIL_POINTS": f"{point}=freeze@0.2"}, is_doomed=True) as frozen,
    ):
        wait_until_frozen(frozen, point)
        watch.strike()
        wait_until("it holds the lock", lambda: is_locked(one_stack), within=3)
        let_pass(seconds)
        assert is_locked(one_stack), "it froze without the lock"
        # Pages do not wait for a writer.
        assert one_stack.bearer().get("/api/v1/scheduler/jobs", timeout=10).status_code == 200
        if end == "wakes":
            wake_for_a_fire(one_stack, frozen, point, watch)
        frozen.kill()
        if end == "dies":
            watch.heal()
    watch.check()
    assert watch.recovery <= LIMIT_S, watch.measurement
