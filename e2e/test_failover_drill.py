"""scripts/failover_drill.sh kills the busiest scheduler, says how long it took, and leaves a whole stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.harness.scripts import environment_of, run_on, run_script
from e2e.harness.stack import Stack, running_stack

SCRIPT = "failover_drill.sh"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory) as stack:
        yield stack


def started(stack: Stack) -> dict[str, str]:
    return {str(found.name): str(found.attrs["State"]["StartedAt"]) for found in stack.containers()}


def drill(stack: Stack) -> dict[str, Any]:
    outcome = run_on(stack, SCRIPT, "--yes", "--json", "--jobs", "10")
    (line,) = outcome.stdout.splitlines()
    verdict: dict[str, Any] = json.loads(line)
    assert verdict["proven"], verdict
    assert verdict["due"] > 100
    assert [job["id"] for job in stack.bearer().jobs() if job["id"].startswith("drill-")] == []
    return verdict


def test_the_one_container_comes_back_by_itself(one: Stack) -> None:
    before = started(one)
    (figures,) = drill(one)["faults"]
    assert figures["fault"]["target"] == "whalefall-1"
    assert figures["recovery"] is not None
    after = started(one)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
    one.wait_until_ready(within=5)


def test_a_dry_run_names_it_and_does_nothing(one: Stack) -> None:
    before = started(one)
    told = run_on(one, SCRIPT, "--dry-run")
    assert told.stdout.startswith("would kill whalefall-1 (")
    assert started(one) == before


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--jobs"], "--jobs is ''; accepted: a whole number from 1 to 200"),
        (["--jobs", "0"], "1 to 200"),
        (["--jobs", "201"], "1 to 200"),
        (["--jobs", "1e3"], "1 to 200"),
        (["scheduler-1"], "unknown argument 'scheduler-1'"),
    ],
)
def test_wrong_arguments(one: Stack, arguments: list[str], names: str) -> None:
    before = started(one)
    outcome = run_script(SCRIPT, *arguments, environment=environment_of(one))
    assert outcome.code == 2, outcome
    assert names in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert started(one) == before


@pytest.mark.faults_long
def test_of_two_schedulers_the_busier_one_is_killed_and_the_other_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_stack(tmp_path_factory, shape="ha", scale={"web": 1, "worker": 1}) as stack:
        before = started(stack)
        (figures,) = drill(stack)["faults"]
        killed = f"{stack.name}-{figures['fault']['target']}"
        after = started(stack)
        assert [name for name in before if after[name] != before[name]] == [killed]
        assert figures["next_fire_late"] < 3.0, figures
        assert figures["recovery"] < 5.0, figures
