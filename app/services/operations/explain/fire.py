"""What one row of the ledger says, and why its fire was late: the part of an explanation that is about one fire."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from app.errors import _N
from app.ledger import Node, Run
from app.ledger.nodes import LIVING
from app.repositories.fires_repository import Fire, FiresRepository
from app.services.health_service import HEARTBEAT_FRESH_S
from app.services.operations.explain.words import Answer, Words

LATE_AFTER = timedelta(seconds=1)
"""A scheduler looks at least once a second: whatever is later has a cause worth telling."""
MARGIN = timedelta(seconds=2)
"""Between two heartbeats of a node that lives."""
SHOWN = 5
"""So many single fires of a longer stretch are told of."""
_HOLD = "fell into a hold ("


def _about(told: dict[str, str], run: Run) -> dict[str, str]:
    return {"what": told["what"], "outcome": run.outcome, "reason": run.reason or "?"}


_STARTED = {
    "success": _N("%(what)s于 %(started)s 在节点 %(node)s 开始（%(lateness)s），用时 %(duration)s，成功。"),
    "failed": _N("%(what)s于 %(started)s 在节点 %(node)s 开始（%(lateness)s），用时 %(duration)s，失败：%(error)s。"),
    "lost": _N(
        "%(what)s于 %(started)s 在节点 %(node)s 开始（%(lateness)s），"
        "但没有结束：执行它的进程已不在（%(reason)s），记为丢失。"
    ),
    "running": _N("%(what)s于 %(started)s 在节点 %(node)s 开始（%(lateness)s），仍在运行。"),
    "cancelled": _N("%(what)s于 %(started)s 在节点 %(node)s 开始（%(lateness)s），被 %(by)s 取消。"),
}
"""Of a run that began, by its outcome."""


class FireTeller:
    """Tells of single rows; `nodes` are those on record, `now` is the store's present time."""

    def __init__(self, words: Words, fires: FiresRepository, nodes: list[Node], now: datetime) -> None:
        self._words, self._fires, self._now = words, fires, now
        self._nodes = [node for node in nodes if node.kind == "scheduler"]

    @property
    def alive(self) -> list[Node]:
        return [
            node
            for node in self._nodes
            if node.state in LIVING and (self._now - node.heartbeat_at).total_seconds() <= HEARTBEAT_FRESH_S
        ]

    def no_scheduler(self) -> str:
        if not self._nodes:
            return self._words.say(_N("没有任何调度器在使用这个任务库：检查 ENABLE_SCHEDULER 和调度器进程。"))
        last = max(self._nodes, key=lambda node: node.heartbeat_at)
        what = _N("没有调度器在运行：最后一个 %(node)s 的最后心跳在 %(at)s（%(state)s）。")
        return self._words.say(what, node=last.name, at=self._words.at(last.heartbeat_at), state=last.state)

    def is_remarkable(self, run: Run) -> bool:
        late = (
            run.kind == "schedule"
            and run.lateness_ms is not None
            and run.lateness_ms > LATE_AFTER.total_seconds() * 1000
        )
        return run.outcome != "success" or late

    def of_fire(self, fire: Fire) -> Answer:
        run = fire.run
        told = {"what": self._what(run), "moment": self._words.at(run.scheduled_for)}
        match run.outcome:
            case "missed":
                sentences = self._missed(fire, told)
            case "coalesced":
                sentences = self._coalesced(run, told)
            case "skipped":
                sentences = self._skipped(fire, told)
            case "pending":
                sentences = self._pending(fire, told)
            case "cancelled" if run.started_at is None:
                cancelled = _N("%(what)s在开始之前被 %(by)s 取消。")
                sentences = [
                    self._words.say(cancelled, what=told["what"], by=self._words.by(run.cancel_requested_by or "?"))
                ]
            case _:
                sentences = self._started(fire, told)
        return Answer(run.outcome, tuple(sentences), (run.run_id,))

    def _what(self, run: Run) -> str:
        if run.kind == "manual":
            return self._words.say(
                _N("%(by)s 在 %(moment)s 手动发起的运行"),
                by=self._words.by(run.created_by),
                moment=self._words.at(run.scheduled_for),
            )
        if run.count > 1 and run.scheduled_from is not None:
            folded = _N("从 %(first)s 到 %(last)s 的 %(count)s 次触发")
            first, last = self._words.at(run.scheduled_from), self._words.at(run.scheduled_for)
            return self._words.say(folded, first=first, last=last, count=run.count)
        if run.attempt > 1:
            again = _N("%(moment)s 的触发的第 %(attempt)s 次尝试")
            return self._words.say(again, moment=self._words.at(run.scheduled_for), attempt=run.attempt)
        return self._words.say(_N("%(moment)s 的触发"), moment=self._words.at(run.scheduled_for))

    def _started(self, fire: Fire, told: dict[str, str]) -> list[str]:
        run = fire.run
        started = run.started_at
        if started is None:
            return [self._words.say(_N("%(what)s记为 %(outcome)s：%(reason)s。"), **_about(told, run))]
        late = started - (run.not_before or run.scheduled_for)
        values = {
            "what": told["what"],
            "started": self._words.at(started),
            "node": run.node or "?",
            "lateness": self._words.say(_N("迟 %(late)s"), late=self._words.span(late))
            if late > LATE_AFTER
            else self._words.say(_N("准时")),
        }
        sentences = [self._words.say(_STARTED[run.outcome], **values, **self._end_of(run))]
        if run.outcome in ("failed", "lost"):
            sentences += self._what_follows(run)
        if run.kind == "schedule" and late > LATE_AFTER:
            sentences += self._why_late(fire, started)
        return sentences

    def _end_of(self, run: Run) -> dict[str, str]:
        ended = run.finished_at
        error = (run.error or run.reason or "").strip().splitlines()
        return {
            "duration": self._words.span(ended - run.started_at) if ended and run.started_at else "?",
            "error": error[-1] if error else "?",
            "reason": run.reason or "?",
            "by": self._words.by(run.cancel_requested_by or "?"),
        }

    def _what_follows(self, run: Run) -> list[str]:
        if run.attempt < run.max_attempts:
            what = _N("它最多尝试 %(max)s 次，这是第 %(attempt)s 次。")
            return [self._words.say(what, max=run.max_attempts, attempt=run.attempt)]
        return []

    def _pending(self, fire: Fire, told: dict[str, str]) -> list[str]:
        run = fire.run
        if run.not_before is not None and run.not_before > self._now:
            what = _N("%(what)s最早在 %(at)s 开始。")
            return [self._words.say(what, what=told["what"], at=self._words.at(run.not_before))]
        late = self._words.span(self._now - (run.not_before or run.scheduled_for))
        sentence = self._words.say(_N("%(what)s已被认领，还没有开始，已等待 %(late)s。"), what=told["what"], late=late)
        owner = next((node for node in self._nodes if node.node_id == run.owner), None)
        if not self.alive:
            return [sentence, self.no_scheduler()]
        if owner is not None and owner not in self.alive:
            what = _N("它属于节点 %(node)s，该节点最后心跳在 %(at)s；别的节点会接手。")
            return [sentence, self._words.say(what, node=owner.name, at=self._words.at(owner.heartbeat_at))]
        return [sentence, *self._why_it_waits(fire)]

    def _missed(self, fire: Fire, told: dict[str, str]) -> list[str]:
        run = fire.run
        if run.reason and run.reason.startswith(_HOLD):
            what = _N("%(what)s没有运行：所有任务当时都被扣住，解除时没有补跑（%(reason)s）。")
            return [self._words.say(what, what=told["what"], reason=run.reason)]
        queued = run.finished_at is not None
        looked = run.finished_at or run.claimed_at
        late = looked - (run.scheduled_from or run.scheduled_for)
        values = {
            "what": told["what"],
            "at": self._words.at(looked),
            "late": self._words.span(late),
            "grace": fire.grace_s,
        }
        if queued:
            what = _N("%(what)s没有运行：它被认领后一直没有轮到，到 %(at)s 已超过宽限 %(grace)s 秒，记为错过。")
            return [self._words.say(what, **values), *self._why_it_waits(fire)]
        what = _N(
            "%(what)s没有运行：调度器到 %(at)s 才看到它，已迟 %(late)s，"
            "超过宽限 %(grace)s 秒（misfire_grace_time），记为错过。"
        )
        return [
            self._words.say(what, **values),
            *self._why_not_seen(run),
        ]

    def _coalesced(self, run: Run, told: dict[str, str]) -> list[str]:
        later = next(
            (other for other in self._fires.claimed_with(run) if other.scheduled_for > run.scheduled_for), None
        )
        values = {"what": told["what"], "at": self._words.at(run.claimed_at)}
        if later is None:
            what = _N("%(what)s没有单独运行：调度器在 %(at)s 看到时，后一个时刻也已到期，两者合并（coalesce）。")
            sentence = self._words.say(what, **values)
        else:
            what = _N(
                "%(what)s没有单独运行：调度器在 %(at)s 看到时，%(later)s 的时刻也已到期，"
                "前者合并到后者（coalesce），后者的结果是 %(outcome)s。"
            )
            sentence = self._words.say(what, **values, later=self._words.at(later.scheduled_for), outcome=later.outcome)
        if run.reason and run.reason.startswith(_HOLD):
            what = _N("所有任务当时都被扣住（%(reason)s）。")
            return [sentence, self._words.say(what, reason=run.reason)]
        return [sentence, *self._why_not_seen(run)]

    def _skipped(self, fire: Fire, told: dict[str, str]) -> list[str]:
        run = fire.run
        going = [each for each in self._fires.going_on(run.claimed_at, job_id=run.job_id) if each.run_id != run.run_id]
        what = _N("%(what)s没有运行：当时已有 max_instances（%(limit)s）个实例在运行。")
        sentences = [self._words.say(what, what=told["what"], limit=fire.max_instances)]
        for each in going[:SHOWN]:
            busy = _N("其中一个：%(run)s，%(started)s 在节点 %(node)s 开始，%(end)s。")
            end = (
                self._words.say(_N("至今未结束"))
                if each.finished_at is None
                else self._words.say(_N("%(at)s 结束"), at=self._words.at(each.finished_at))
            )
            started = self._words.at(each.started_at) if each.started_at else "?"
            sentences.append(self._words.say(busy, run=each.run_id, started=started, node=each.node or "?", end=end))
        return sentences

    # Why late

    def _why_late(self, fire: Fire, started: datetime) -> list[str]:
        run = fire.run
        if run.attempt > 1:
            return []
        sentences = []
        if run.claimed_at - run.scheduled_for > LATE_AFTER:
            sentences += self._why_not_seen(run)
        if started - max(run.claimed_at, run.scheduled_for) > LATE_AFTER:
            sentences += self._why_it_waits(fire)
        return sentences

    def _why_not_seen(self, run: Run) -> list[str]:
        """Why no scheduler claimed a moment when it was due."""
        due, looked = run.scheduled_from or run.scheduled_for, run.claimed_at
        if looked - due <= LATE_AFTER:
            return []
        if self._ended_a_hold(looked):
            return [self._words.say(_N("所有任务当时都被扣住；扣住在 %(at)s 解除。"), at=self._words.at(looked))]
        claims = self._fires.claims_around(due, looked)
        between = claims.first_between
        if between is None:
            return [self._why_nothing_was_claimed(due, looked, claims.last_before)]
        queued = [
            self._words.say(_N("这段时间调度器认领过其他任务：执行器没有空位，它在排队。")),
            *self._busy(looked, run),
        ]
        if between - due <= MARGIN:
            return queued
        return [self._why_nothing_was_claimed(due, between, claims.last_before), *queued]

    def _why_nothing_was_claimed(self, due: datetime, looked: datetime, last_claim: datetime | None) -> str:
        """Why no scheduler claimed anything at all from `due` to `looked`."""
        lived_through = [node for node in self._nodes if node.started_at <= due and node.heartbeat_at >= looked]
        if lived_through:
            names = ", ".join(sorted(node.name for node in lived_through))
            what = _N(
                "调度器 %(nodes)s 当时在运行，但从 %(due)s 到 %(looked)s 没有认领任何任务："
                "它够不到任务库（数据库断开、被锁住或磁盘已满），或者进程被冻结。"
            )
            return self._words.say(what, nodes=names, due=self._words.at(due), looked=self._words.at(looked))
        began = [node for node in self._nodes if due < node.started_at <= looked + MARGIN]
        gone = [node for node in self._nodes if node.started_at <= due and node.heartbeat_at < looked]
        last = max(gone, key=lambda node: node.heartbeat_at, default=None)
        first = min(began, key=lambda node: node.started_at, default=None)
        if first is not None and last is not None:
            what = _N("当时没有调度器在运行：%(last)s 的最后心跳在 %(stopped)s，%(first)s 在 %(began)s 启动。")
            values = {"stopped": self._words.at(last.heartbeat_at), "began": self._words.at(first.started_at)}
            return self._words.say(what, last=last.name, first=first.name, **values)
        before = "?" if last_claim is None else self._words.at(last_claim)
        if first is not None:
            what = _N("当时没有调度器在运行：%(first)s 在 %(began)s 才启动，之前最后一次认领在 %(before)s。")
            return self._words.say(what, first=first.name, began=self._words.at(first.started_at), before=before)
        what = _N("从 %(before)s 到 %(looked)s 没有调度器认领过任何任务；当时有哪些节点已无记录。")
        return self._words.say(what, before=before, looked=self._words.at(looked))

    def _ended_a_hold(self, at: datetime) -> bool:
        """Whether the look at that moment was the end of a hold: some moment that it put on record says so."""
        rows = self._fires.claimed_at(at)
        return any(run.reason is not None and run.reason.startswith(_HOLD) for run in rows)

    def _why_it_waits(self, fire: Fire) -> list[str]:
        """Why a claimed run did not begin at once."""
        run = fire.run
        if run.epoch > 1 and run.outcome != "pending":
            what = _N("认领它的节点在它开始之前停止或失去响应，另一个节点接手。")
            return [self._words.say(what)]
        at = run.claimed_at + LATE_AFTER
        others = [each for each in self._fires.going_on(at, job_id=run.job_id) if each.run_id != run.run_id]
        if len(others) >= fire.max_instances:
            what = _N("它要等同一任务的实例结束（max_instances %(limit)s）：%(runs)s。")
            return [
                self._words.say(what, limit=fire.max_instances, runs=", ".join(each.run_id for each in others[:SHOWN]))
            ]
        return self._busy(at, run)

    def _busy(self, at: datetime, run: Run) -> list[str]:
        """What else went on in the executor of a run."""
        going = [each for each in self._fires.going_on(at, executor=run.executor) if each.run_id != run.run_id]
        if not going:
            return []
        jobs = Counter(each.job_id for each in going).most_common(SHOWN)
        what = _N("%(at)s 正在运行 %(count)s 个任务（%(jobs)s）。")
        listed = ", ".join(f"{job_id} {count}" for job_id, count in jobs)
        return [self._words.say(what, at=self._words.at(at), count=len(going), jobs=listed)]
