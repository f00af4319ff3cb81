"""Words of the pages that depend on data: outcomes, states, and what the scripts say."""

from __future__ import annotations

from collections.abc import Mapping

from flask_babel import gettext as _

from app.errors import _N
from app.pages.timeline import Timeline
from app.services.scheduler.run_views import RunView

_OUTCOMES = {
    "pending": _N("等待开始"),
    "running": _N("运行中"),
    "success": _N("成功"),
    "failed": _N("失败"),
    "lost": _N("丢失"),
    "cancelled": _N("已取消"),
    "missed": _N("错过"),
    "coalesced": _N("已合并"),
    "skipped": _N("跳过"),
}


_EXECUTORS = {
    "default": _N("线程"),
    "process": _N("独立进程"),
    "celery": _N("Celery 工作节点"),
}


def outcome_name(outcome: str) -> str:
    """An outcome of the ledger in the page's language."""
    message = _OUTCOMES.get(outcome)
    return outcome if message is None else str(_(message))


def run_kind(run: RunView) -> str:
    """Whether a run was due or asked for."""
    return str(_("手动") if run.kind == "manual" else _("定时"))


def creator_name(created_by: str, names: Mapping[str, str]) -> str:
    """Who asked for a run or its end: the ledger holds a user's id, found in `names`, or the name of the token."""
    if created_by in names:
        return names[created_by]
    return str(_("用户 %(id)s", id=created_by)) if created_by.isdecimal() else created_by


def executor_name(executor: str) -> str:
    """Where a run is executed, in the page's language."""
    message = _EXECUTORS.get(executor)
    return executor if message is None else str(_(message))


def state_choices() -> list[tuple[str, str]]:
    """The states that the list of jobs can be narrowed to: (value of the query, name)."""
    return [
        ("", str(_("全部状态"))),
        ("scheduled", str(_("已排程"))),
        ("idle", str(_("没有下次运行"))),
        ("disabled", str(_("已停用"))),
    ]


def timeline_words(timeline: Timeline) -> str:
    """The picture in one sentence, for those who do not see it."""
    parts = ", ".join(f"{outcome_name(outcome)} {count}" for outcome, count in timeline.outcomes.items())
    return str(_("%(n)s 次触发：%(parts)s", n=timeline.fires, parts=parts))


def script_texts() -> dict[str, str]:
    """What the scripts say by themselves, by the key that they ask for."""
    return {
        "failed": str(_("请求没有成功")),
        "unreachable": str(_("无法连接服务器，请检查网络后重试")),
        "requestId": str(_("请求编号")),
        "field": str(_("字段")),
        "accepted": str(_("可接受")),
        "showRun": str(_("查看这次运行")),
        "reloaded": str(_("已重新加载：")),
        "removed": str(_("已删除：")),
        "notRemoved": str(_("未能删除")),
        "neverFires": str(_("这个触发器不会再触发")),
        "change_moved": str(_("因时钟调整而推移")),
        "change_doubled": str(_("因时钟调整而重复")),
        "change_dropped": str(_("因时钟调整而跳过")),
    }
