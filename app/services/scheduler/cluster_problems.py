"""What is wrong among the processes that share one store, as far as their heartbeats and the jobs tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import _N
from app.ledger import Hold, Node

CLOCK_OFF_AFTER_S = 2.0
"""A node's clock may be so far from the database's: what a busy machine adds to the measurement stays below it."""
_SHOWN_TASKS = 10


@dataclass(frozen=True)
class ClusterProblem:
    """One thing that an operator should mend. `message` is a message id with `%(name)s` placeholders for `params`;
    `nodes` are the names of the processes it is about."""

    code: str
    message: str
    nodes: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


def cluster_problems(
    living: Sequence[Node],
    *,
    hold: Hold | None,
    tasks_in_use: Collection[tuple[str, str]],
    known_tasks: Collection[str],
    me: str,
) -> list[ClusterProblem]:
    """Problems of the `living` nodes and of the jobs.

    tasks_in_use: (task, executor) of the jobs that are on. known_tasks: what this process, named `me`, could run.
    """
    return [
        *_held(hold),
        *_different_code(living),
        *_clocks_off(living),
        *_unknown_tasks(tasks_in_use, known_tasks, me),
        *_nobody_for_celery(living, tasks_in_use),
    ]


def _held(hold: Hold | None) -> list[ClusterProblem]:
    if hold is None:
        return []
    told = {"by": hold.by, "since": hold.since.isoformat(timespec="seconds"), "reason": hold.reason}
    message = _N(
        "所有任务的调度已被 %(by)s 暂停，自 %(since)s 起（%(reason)s）；手动运行不受影响。"
        "解除：flask jobs release-hold --catch-up skip|run-latest|run-all"
    )
    return [ClusterProblem("held", message, (), told)]


def _different_code(living: Sequence[Node]) -> list[ClusterProblem]:
    """Nodes of different releases; or, of one release, of different source or drop-in tasks."""
    if len(versions := _by(living, lambda node: node.version)) > 1:
        told = {"versions": "; ".join(f"{version}: {', '.join(names)}" for version, names in sorted(versions.items()))}
        message = _N("正在运行的节点版本不同（%(versions)s）。请让所有节点使用同一版本；滚动升级期间可忽略")
        return [ClusterProblem("versions_differ", message, _names(living), told)]
    codes = _by(living, lambda node: node.stats.get("code"))
    codes.pop(None, None)
    if len(codes) > 1:
        told = {"groups": " | ".join(", ".join(names) for names in sorted(codes.values()))}
        message = _N(
            "正在运行的节点版本相同，但代码或任务模块不同（%(groups)s）。"
            "请检查镜像和 TASKS_DIR 是否一致；滚动升级期间可忽略"
        )
        return [ClusterProblem("code_differs", message, _names(living), told)]
    return []


def _clocks_off(living: Sequence[Node]) -> list[ClusterProblem]:
    found = []
    for node in living:
        offset = node.stats.get("clock_offset_ms")
        if not isinstance(offset, int | float) or abs(offset) <= CLOCK_OFF_AFTER_S * 1000:
            continue
        told = {"node": node.name, "seconds": f"{offset / 1000:+.1f}"}
        message = _N("节点 %(node)s 的时钟与数据库相差 %(seconds)s 秒。触发以数据库时间为准；请校准该机器的时钟（NTP）")
        found.append(ClusterProblem("clock_off", message, (node.name,), told))
    return found


def _unknown_tasks(
    tasks_in_use: Collection[tuple[str, str]], known_tasks: Collection[str], me: str
) -> list[ClusterProblem]:
    unknown = sorted({task for task, _executor in tasks_in_use} - set(known_tasks))
    if not unknown:
        return []
    told = {"node": me, "tasks": ", ".join(unknown[:_SHOWN_TASKS]), "count": len(unknown)}
    message = _N(
        "有任务引用了节点 %(node)s 不认识的任务函数（共 %(count)s 个）：%(tasks)s。它们的运行会失败；请检查 TASKS_DIR"
    )
    return [ClusterProblem("task_unknown", message, (me,), told)]


def _nobody_for_celery(living: Sequence[Node], tasks_in_use: Collection[tuple[str, str]]) -> list[ClusterProblem]:
    waiting = sorted({task for task, executor in tasks_in_use if executor == "celery"})
    if not waiting or any(node.kind == "worker" for node in living):
        return []
    message = _N("有任务由 Celery 执行，但没有存活的工作节点：%(tasks)s。请启动 worker，并检查 CELERY_BROKER_URL")
    return [ClusterProblem("no_worker", message, (), {"tasks": ", ".join(waiting[:_SHOWN_TASKS])})]


def _by(living: Sequence[Node], value: Any) -> dict[Any, list[str]]:
    groups: defaultdict[Any, set[str]] = defaultdict(set)
    for node in living:
        groups[value(node)].add(node.name)
    return {key: sorted(names) for key, names in groups.items()}


def _names(living: Sequence[Node]) -> tuple[str, ...]:
    return tuple(sorted({node.name for node in living}))
