"""The long one: three schedulers, 200 jobs a second, ten minutes of faults by chance; none doubled, none absent."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from docker.models.containers import Container

from e2e.harness.faults import (
    DATABASE_SERVICE,
    SCHEDULER_SERVICE,
    disconnected,
    kill_and_start,
    node_of,
    packets_dropped,
    paused,
    wait_until_node,
)
from e2e.harness.measurements import Measurement, measure
from e2e.harness.oracle import Verdict
from e2e.harness.probes import Probes, Watch, let_pass
from e2e.harness.stack import Stack, running_stack

JOBS = 200
SCHEDULERS = 3
#: The seed of a run is printed; SOAK_SEED repeats it. SOAK_SECONDS makes it shorter while one looks for a fault.
SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
#: From one fault's end, with every node back, to the next fault, in seconds.
CALM = (4.0, 10.0)


@pytest.fixture
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    scale = {"scheduler": SCHEDULERS, "web": 1, "worker": 0}
    with running_stack(tmp_path_factory, shape="ha", scale=scale) as stack:
        yield stack


def kill(stack: Stack, victim: Container, dice: random.Random) -> None:
    if dice.random() < 0.5:
        stack.signal(signal.SIGKILL, "scheduler", "worker", container=victim)
    else:
        kill_and_start(victim)


def freeze(_stack: Stack, victim: Container, dice: random.Random) -> None:
    with paused(victim):
        let_pass(dice.uniform(2, 20))


def cut_off(stack: Stack, victim: Container, dice: random.Random) -> None:
    with disconnected(stack, victim):
        let_pass(dice.uniform(2, 20))


def drop_packets(_stack: Stack, victim: Container, dice: random.Random) -> None:
    with packets_dropped(victim):
        let_pass(dice.uniform(2, 20))


def restart_database(stack: Stack, _victim: Container, _dice: random.Random) -> None:
    stack.container(DATABASE_SERVICE).restart(timeout=30)


#: How late the next fire may be, as the project's goals say.
GOALS = {
    "kill": "1 s (goal)",
    "pause": "3 s (goal)",
    "disconnect": "3 s (goal)",
    "packets dropped": "3 s (goal)",
}
FAULTS: dict[str, Callable[[Stack, Container, random.Random], None]] = {
    "kill": kill,
    "pause": freeze,
    "disconnect": cut_off,
    "packets dropped": drop_packets,
    "database restart": restart_database,
}


@pytest.mark.faults_long
@pytest.mark.timeout(3600)
def test_soak_under_faults_by_chance(soaked: Stack) -> None:
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 1_000_000))
    dice = random.Random(seed)
    probes = Probes(soaked, JOBS, per_second=True, prefix="soak")
    probes.start()
    how = f"{SCHEDULERS} schedulers, {JOBS} jobs a second, {SECONDS / 60:g} min, random faults (seed {seed})"
    print(f"\nsoak: {how}")
    struck: list[tuple[str, float, float, str]] = []
    with probes.watch("soak", how, limit="0 doubled, 0 absent", within=180, at_rest_within=600) as watch:
        watch.strike()
        end = time.time() + SECONDS
        while time.time() < end:
            name = dice.choice(list(FAULTS))
            victim = dice.choice(soaked.containers_of(SCHEDULER_SERVICE))
            began = time.time()
            FAULTS[name](soaked, victim, dice)
            victim_node = "" if name == "database restart" else node_of(victim)
            struck.append((name, began, time.time(), victim_node))
            for container in soaked.containers_of(SCHEDULER_SERVICE):
                wait_until_node(soaked, container, within=90)
            let_pass(dice.uniform(*CALM))
        watch.heal()
    keep_by_fault(watch, struck)
    assert watch.verdict.clean, watch.verdict
    assert watch.verdict.outcomes["success"] >= 0.5 * watch.verdict.expected, watch.verdict
    assert watch.verdict.outcomes["missed"] == 0, watch.verdict


def keep_by_fault(watch: Watch, struck: list[tuple[str, float, float, str]]) -> None:
    """Prints, for every fault, how late the next fires were; keeps, for every kind of fault, the latest of them.

    What the victim itself started is left out: a run that was under way in it when it froze tells so when it wakes.
    """
    by_kind: dict[str, list[Measurement]] = {}
    for name, began, ended, victim in struck:
        around = [s for s in watch.starts if began - 1 <= s.scheduled_for.timestamp() < ended + 5 and s.node != victim]
        is_outage = name == "database restart"
        one = measure(
            "soak, by fault",
            name,
            verdict=Verdict(),
            starts=around,
            struck=began,
            healed=ended,
            outage=is_outage,
            limit="outage + 1 s (goal)" if is_outage else GOALS[name],
        )
        by_kind.setdefault(name, []).append(one)
        print(f"  {began - struck[0][1]:6.1f} s  {name:16}  {ended - began:5.1f} s long  {one.lateness}  {one}")
    for name, found in by_kind.items():
        merged = replace(
            found[0],
            how=f"{name}, {len(found)} times",
            due=sum(int(ended + 5 - began + 1) * JOBS for kind, began, ended, _ in struck if kind == name),
            lateness={key: max(one.lateness.get(key, 0.0) for one in found) for key in ("p50", "p99", "max")},
            next_fire_late=max((one.next_fire_late or 0.0) for one in found),
            recovery=max((one.recovery or 0.0) for one in found),
            outage=max((one.outage or 0.0) for one in found) or None,
            duplicates=len(watch.verdict.duplicates),
            absent=len(watch.verdict.absent),
        )
        merged.keep()
