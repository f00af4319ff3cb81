from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.i18n import english
from app.ledger import Hold, Node
from app.services.scheduler.cluster_problems import ClusterProblem, cluster_problems

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def node(name: str, *, version: str = "1.0", kind: Any = "scheduler", **stats: Any) -> Node:
    return Node(
        node_id=f"id-{name}",
        kind=kind,
        name=name,
        version=version,
        state="running",
        started_at=NOW,
        heartbeat_at=NOW,
        lock_file=None,
        stats=stats,
    )


def found(
    *living: Node,
    hold: Hold | None = None,
    tasks: tuple[tuple[str, str], ...] = (),
    known: tuple[str, ...] = (),
) -> list[ClusterProblem]:
    return cluster_problems(living, hold=hold, tasks_in_use=tasks, known_tasks=known, me="here")


def test_nodes_alike_have_no_problem() -> None:
    alike = [node(name, code="c", clock_offset_ms=offset) for name, offset in (("a", 0.4), ("b", -1900))]
    assert found(*alike, tasks=(("t", "default"),), known=("t", "other")) == []
    assert found() == []


def test_a_hold_is_told_with_its_reason_and_its_end() -> None:
    (problem,) = found(node("a"), hold=Hold("a restore", "somebody", NOW))
    told = english(problem.message, problem.params)
    assert problem.code == "held"
    assert "a restore" in told
    assert "flask jobs release-hold --catch-up" in told


def test_different_releases_are_told_once() -> None:
    problems = found(node("b", version="1.1", code="y"), node("a", code="x"), node("c", code="x"))
    assert [(problem.code, problem.nodes) for problem in problems] == [("versions_differ", ("a", "b", "c"))]
    assert "1.0: a, c; 1.1: b" in english(problems[0].message, problems[0].params)


def test_different_code_of_one_release() -> None:
    problems = found(node("a", code="x"), node("b", code="y"), node("w", kind="worker", code="y"), node("old"))
    assert [problem.code for problem in problems] == ["code_differs"]
    assert "a | b, w" in english(problems[0].message, problems[0].params)


@pytest.mark.parametrize(("offset", "told"), [(3_600_000, "+3600.0"), (-2_500.0, "-2.5")])
def test_a_clock_that_is_off(offset: float, told: str) -> None:
    problems = found(node("a", code="x", clock_offset_ms=offset), node("b", code="x", clock_offset_ms=3))
    assert [(problem.code, problem.nodes) for problem in problems] == [("clock_off", ("a",))]
    assert told in english(problems[0].message, problems[0].params)


def test_stats_of_another_release_do_no_harm() -> None:
    assert found(node("a", clock_offset_ms="soon", code=None), node("b")) == []


def test_a_task_that_is_not_known_here() -> None:
    problems = found(tasks=(("gone", "default"), ("gone", "process"), ("t", "default")), known=("t",))
    assert [(problem.code, problem.nodes) for problem in problems] == [("task_unknown", ("here",))]
    assert "gone" in english(problems[0].message, problems[0].params)


def test_celery_jobs_without_a_worker() -> None:
    tasks = (("t", "celery"),)
    assert [problem.code for problem in found(node("a"), tasks=tasks, known=("t",))] == ["no_worker"]
    assert found(node("a"), node("w", kind="worker"), tasks=tasks, known=("t",)) == []


def test_every_message_is_in_both_languages() -> None:
    everything = found(
        node("a", code="x"), node("b", code="y", clock_offset_ms=9_000), tasks=(("g", "celery"),)
    ) + found(node("a"), node("b", version="2"))
    assert len({problem.code for problem in everything}) == 5
    for problem in everything:
        assert problem.message % problem.params != english(problem.message, problem.params)
