"""Why a job fired, did not fire, or fired late: in sentences, from the ledger and the audit log.

Every sentence rests on something that is on record. Where nothing is, the explanation says so instead of guessing.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.errors import _N
from app.ledger import Job
from app.repositories.fires_repository import Edit, Fire, FiresRepository
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime
from app.services.operations.explain.asked_time import AskedTime, asked_time
from app.services.operations.explain.fire import LATE_AFTER, MARGIN, SHOWN, FireTeller
from app.services.operations.explain.words import Answer, Words
from app.services.operations.failure import OperationFailed
from app.services.scheduler.job_views import UNREADABLE, job_zone
from app.triggers import PreviewFire, build_trigger, describe, fires_between, fold_fires, preview

ROWS_READ = 5000


@dataclass(frozen=True)
class _Switch:
    """Two edits, of which `off` keeps a job from firing until `on`; what is said of them, as message ids. known_after:
    the edits after which it is known how it stands."""

    verdict: str
    off: str
    on: str
    known_after: tuple[str, ...]
    stood_off: str
    off_by: str
    on_by: str


_PAUSE = _Switch(
    verdict="paused",
    off="pause",
    on="resume",
    known_after=("pause", "resume", "delete", "reload"),
    stood_off=_N("%(moment)s 时任务 %(job)s 处于暂停状态。"),
    off_by=_N("任务 %(job)s 在 %(at)s 被 %(by)s 暂停。"),
    on_by=_N("任务 %(job)s 在 %(at)s 被 %(by)s 恢复；暂停期间的时刻不会补跑。"),
)
_ENABLED = _Switch(
    verdict="disabled",
    off="disable",
    on="enable",
    known_after=("disable", "enable", "change"),
    stood_off=_N("%(moment)s 时任务 %(job)s 处于停用状态。"),
    off_by=_N("任务 %(job)s 在 %(at)s 被 %(by)s 停用。"),
    on_by=_N("任务 %(job)s 在 %(at)s 被 %(by)s 启用；停用期间的时刻不会补跑。"),
)


@dataclass(frozen=True)
class Explanation:
    """What became of the moments that were asked about.

    `verdict` is for programs: the outcome of the one fire (success, failed, lost, running, pending, missed, coalesced,
    skipped, cancelled), `several`, or why there is none: paused, disabled, deleted, unreadable, held, no_scheduler,
    unclaimed, not_a_moment, dropped, ahead, before_creation, edited, purged, finished, unknown. `details` are further
    sentences, `run_ids` the runs that they are about.
    """

    job_id: str
    asked_from: datetime | None
    asked_until: datetime | None
    verdict: str
    sentence: str
    details: tuple[str, ...]
    run_ids: tuple[str, ...]
    next_run_time: datetime | None

    def as_json(self) -> dict[str, Any]:
        """For programs."""

        def iso(moment: datetime | None) -> str | None:
            return None if moment is None else moment.isoformat()

        return {
            "job_id": self.job_id,
            "asked_from": iso(self.asked_from),
            "asked_until": iso(self.asked_until),
            "verdict": self.verdict,
            "sentence": self.sentence,
            "details": list(self.details),
            "run_ids": list(self.run_ids),
            "next_run_time": iso(self.next_run_time),
        }


def explain(runtime: Runtime, job_id: str, time: str | None = None, *, language: str = "en") -> Explanation:
    """Explains what became of a job's moments at `time`, or, without one, of its latest moment.

    time: see asked_time; in the zone of the job's trigger. language: `zh` or `en`. OperationFailed for a job of which
    nothing is known, and for a time that cannot be read.
    """
    job = runtime.ledger.get_job(job_id, include_deleted=True) if "\0" not in job_id else None
    fires = FiresRepository(runtime.jobstore, runtime.database)
    if job is None and ("\0" in job_id or not fires.has_runs(job_id)):
        raise OperationFailed(_no_such_job(runtime, job_id))
    return _Explainer(runtime, fires, job_id, job, language).explain(time)


def _no_such_job(runtime: Runtime, job_id: str) -> str:
    ids = [reading.job.id for reading in JobsRepository(runtime.jobstore).page(JobFilter(is_active=None))]
    close = difflib.get_close_matches(job_id, ids, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "flask jobs list shows those that there are"
    return f"there is no job {job_id!r}, and none is on record; {hint}"


def _readable_trigger(job: Job | None) -> dict[str, Any]:
    """The trigger of a job; empty where there is none that can be read."""
    trigger = dict(job.trigger) if job is not None else {}
    try:
        build_trigger(trigger)
    except UNREADABLE:
        return {}
    return trigger


class _Explainer:
    """One question about one job; times are shown in the zone of its trigger."""

    def __init__(self, runtime: Runtime, fires: FiresRepository, job_id: str, job: Job | None, language: str) -> None:
        self._runtime, self._fires, self._job_id, self._job = runtime, fires, job_id, job
        self._trigger = _readable_trigger(job)
        self._words = Words(language, job_zone(self._trigger, runtime.settings.scheduler_timezone))
        self._now = runtime.ledger.now()
        self._held = runtime.ledger.held()
        self._teller = FireTeller(self._words, fires, runtime.ledger.nodes(), self._now)
        self._edits = fires.edits(job_id)

    def explain(self, time: str | None) -> Explanation:
        asked = None if time is None else asked_time(time, self._words.zone, self._now)
        if asked is None:
            answer = self._latest()
        else:
            found = self._found(asked)
            answer = self._on_record(found, asked) if found else self._absent(asked)
        first, *others = answer.sentences
        # A sentence that holds for several fires is told once.
        details = dict.fromkeys([*others, *self._outlook(answer.verdict)])
        return Explanation(
            job_id=self._job_id,
            asked_from=None if asked is None else asked.start.astimezone(self._words.zone),
            asked_until=None if asked is None else asked.until.astimezone(self._words.zone),
            verdict=answer.verdict,
            sentence=first,
            details=tuple(text for text in details if text != first),
            run_ids=answer.run_ids,
            next_run_time=None
            if self._job is None or self._job.next_run_time is None
            else self._job.next_run_time.astimezone(self._words.zone),
        )

    # What was asked

    def _found(self, asked: AskedTime) -> list[Fire]:
        found = self._fires.rows_between(self._job_id, asked.start, asked.until, limit=ROWS_READ)
        if not found and self._jitter and self._moments(asked, limit=1):
            # It is on record with its delay; the next one of the trigger may be there as well.
            found = self._fires.rows_between(self._job_id, asked.start, asked.until + self._jitter, limit=1)
        return found

    @property
    def _jitter(self) -> timedelta:
        """By how much the trigger delays its moments at most."""
        return timedelta(seconds=float(self._trigger.get("jitter") or 0))

    def _latest(self) -> Answer:
        """The newest fire; or why there is none where the job should fire, or does not fire at all."""
        newest = self._fires.newest(self._job_id)
        told = self._teller.of_fire(newest) if newest is not None else None
        state = self._why_it_does_not_fire()
        if state is None and self._overdue is not None:
            state = self._unclaimed(self._overdue)
        if state is None and told is None:
            return Answer("ahead", (self._words.say(_N("任务 %(job)s 还没有触发过。"), job=self._job_id),))
        if state is None or told is None:
            return state or told or Answer("unknown", ("",))
        return Answer(state.verdict, (*state.sentences, *told.sentences), told.run_ids)

    def _on_record(self, found: Sequence[Fire], asked: AskedTime) -> Answer:
        answers = [self._teller.of_fire(fire) for fire in found] if len(found) <= SHOWN else []
        gaps = self._gaps(found, asked)
        if len(found) == 1 and not gaps:
            return answers[0]
        fires = {(run.kind, run.scheduled_for) for run in (fire.run for fire in found)}
        if answers and len(fires) == 1 and not gaps:  # the attempts of one fire, the last of which says how it ended
            last = answers[-1]
            sentences = [text for answer in [last, *answers[:-1]] for text in answer.sentences]
            return Answer(last.verdict, tuple(sentences), tuple(fire.run.run_id for fire in found))
        outcomes: Counter[str] = Counter()
        for fire in found:
            outcomes[fire.run.outcome] += fire.run.count
        summary = self._words.say(
            _N("从 %(start)s 到 %(until)s 有 %(count)s 个时刻在案：%(outcomes)s。"),
            start=self._words.at(asked.start),
            until=self._words.at(asked.until),
            count=f"{'≥ ' if len(found) == ROWS_READ else ''}{sum(outcomes.values())}",
            outcomes=", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items())),
        )
        shown = [fire for fire in found if len(found) <= SHOWN or self._teller.is_remarkable(fire.run)]
        sentences = [text for fire in shown[:SHOWN] for text in self._teller.of_fire(fire).sentences]
        if len(shown) > SHOWN:
            more = _N("另有 %(count)s 条不寻常的记录；flask jobs history %(job)s 全部列出。")
            sentences.append(self._words.say(more, count=len(shown) - SHOWN, job=self._job_id))
        return Answer("several", (summary, *gaps, *sentences), tuple(fire.run.run_id for fire in shown[:SHOWN]))

    def _absent(self, asked: AskedTime) -> Answer:
        """Nothing is on record of the moments that were asked for."""
        job = self._job
        if job is None:
            return self._gone()
        if not self._trigger:
            return self._why_it_does_not_fire() or self._unknown(asked.start)
        wanted = self._moments(asked, limit=1)
        if not wanted:
            return self._no_moment(job, asked)
        moment = wanted[0].astimezone(UTC)
        return self._why_absent(job, moment)

    def _why_absent(self, job: Job, moment: datetime) -> Answer:
        """Why one moment of the present trigger left no row."""
        if moment > self._now:
            return self._ahead(moment)
        # Before what edits tell: what was never there cannot have been paused.
        for answer in (self._before_creation(job, moment), self._purged(moment)):
            if answer is not None:
                return answer
        if job.next_run_time is not None and job.next_run_time <= moment:
            return self._unclaimed(moment)
        if job.next_run_time is not None and moment + self._jitter >= job.next_run_time > self._now:
            what = _N("%(moment)s 的触发被触发器随机延后（jitter），将在 %(at)s 进行。")
            delayed = self._words.say(what, moment=self._words.at(moment), at=self._words.at(job.next_run_time))
            return Answer("ahead", (delayed,))
        return (
            self._deleted_at(job, moment)
            or self._off_at(job, moment)
            or self._edited_since(job, moment)
            or self._unknown(moment)
        )

    def _gaps(self, found: Sequence[Fire], asked: AskedTime) -> list[str]:
        """Of moments of the present trigger that have no row beside those that have one: why the first has none."""
        job = self._job
        if job is None or not self._trigger or self._jitter or len(found) == ROWS_READ:
            return []
        runs = sorted((fire.run for fire in found), key=lambda run: run.scheduled_for)
        lasts = [run.scheduled_for for run in runs]
        for moment in self._moments(asked, limit=ROWS_READ):
            due = moment.astimezone(UTC)
            if due > self._now - LATE_AFTER:
                break
            at = bisect_left(lasts, due)
            if at == len(runs) or due < (runs[at].scheduled_from or runs[at].scheduled_for):
                answer = self._why_absent(job, due)
                if answer.verdict in ("edited", "unknown", "purged", "before_creation"):
                    break  # the trigger was another one then: its moments were others
                told = _N("时刻 %(moment)s 没有记录：%(why)s")
                return [
                    self._words.say(told, moment=self._words.at(due), why=answer.sentences[0]),
                    *answer.sentences[1:],
                ]
        return []

    def _moments(self, asked: AskedTime, *, limit: int) -> list[datetime]:
        job = self._job
        if job is None or not self._trigger:
            return []
        return fires_between(self._trigger, asked.start, asked.until, limit)

    # No row: why

    def _no_moment(self, job: Job, asked: AskedTime) -> Answer:
        words = describe(self._trigger, self._words.language)
        dropped = self._dropped(asked)
        if dropped is not None:
            what = _N("%(asked)s 这个钟点因时钟调整而不存在（%(trigger)s），没有触发。")
            sentence = self._words.say(what, asked=dropped.at, trigger=words)
            return Answer("dropped", (sentence, *self._nearest(asked)))
        what = _N("%(asked)s 不是任务 %(job)s 的触发时刻。它的触发器：%(trigger)s（时区 %(zone)s）。")
        asked_for = (
            f"{asked.start.astimezone(self._words.zone):%Y-%m-%d}" if asked.is_day else self._words.at(asked.start)
        )
        sentences = [
            self._words.say(what, asked=asked_for, job=job.id, trigger=words, zone=self._words.zone.key),
            *self._nearest(asked),
        ]
        if not asked.is_day and (utc := self._meant_utc(asked)):
            meant = _N("如果指的是 UTC：%(utc)s 是一个触发时刻，即 %(local)s。")
            sentences.append(self._words.say(meant, utc=f"{utc:%Y-%m-%d %H:%M:%S}+00:00", local=self._words.at(utc)))
        edits = [edit for edit in self._edits if edit.kind == "change" and edit.at > asked.start]
        if edits:
            changed = _N("任务在 %(at)s 被 %(by)s 修改过；当时的触发器可能不同。")
            sentences.append(
                self._words.say(changed, at=self._words.at(edits[0].at), by=self._words.by(edits[0].actor))
            )
        return Answer("not_a_moment", tuple(sentences))

    def _dropped(self, asked: AskedTime) -> PreviewFire | None:
        if not asked.is_left_out:
            return None
        rows = preview(self._trigger, 500, asked.start - timedelta(hours=3))
        near = (row for row in rows if abs(datetime.fromisoformat(row.at) - asked.start) <= timedelta(hours=2))
        return next((row for row in near if row.change == "dropped"), None)

    def _meant_utc(self, asked: AskedTime) -> datetime | None:
        clock = asked.start.astimezone(self._words.zone).replace(tzinfo=UTC)
        found = fires_between(self._trigger, clock, clock + (asked.until - asked.start), 1)
        return found[0].astimezone(UTC) if found else None

    def _nearest(self, asked: AskedTime) -> list[str]:
        """The moments of the trigger right before and after."""
        plain = {name: value for name, value in self._trigger.items() if name != "jitter"}
        after = fires_between(plain, asked.until, datetime(2199, 12, 31, tzinfo=UTC), 1)
        before: datetime | None = None
        # In ever longer stretches: the one before may be a second ago, or years.
        for days in (1, 32, 400, 3000):
            if found := fires_between(plain, asked.start - timedelta(days=days), asked.start, 1):
                before = fold_fires(plain, found[0], asked.start - timedelta(microseconds=1))[1]
                break
        sentences = []
        if before is not None:
            sentences.append(self._words.say(_N("之前最近的时刻：%(at)s。"), at=self._words.at(before)))
        if after:
            sentences.append(self._words.say(_N("之后最近的时刻：%(at)s。"), at=self._words.at(after[0])))
        return sentences

    def _ahead(self, moment: datetime) -> Answer:
        state = self._why_it_does_not_fire()
        if state is not None:
            return state
        return Answer("ahead", (self._words.say(_N("%(moment)s 还没有到。"), moment=self._words.at(moment)),))

    def _before_creation(self, job: Job, moment: datetime) -> Answer | None:
        if moment >= job.created_at:
            return None
        what = _N("任务 %(job)s 自 %(at)s 起才在任务库中（由 %(by)s 建立）；更早的这个时刻没有记录。")
        sentence = self._words.say(
            what, job=job.id, at=self._words.at(job.created_at), by=self._words.by(job.created_by)
        )
        return Answer("before_creation", (sentence,))

    def _purged(self, moment: datetime) -> Answer | None:
        days = self._runtime.settings.run_retention_days
        if moment > self._now - timedelta(days=days):
            return None
        what = _N("%(moment)s 的记录早于保留期 %(days)s 天（RUN_RETENTION_DAYS），已清除。")
        return Answer("purged", (self._words.say(what, moment=self._words.at(moment), days=days),))

    def _deleted_at(self, job: Job, moment: datetime) -> Answer | None:
        if job.is_active or job.deleted_at is None or moment < job.deleted_at:
            return None
        return self._why_it_does_not_fire()

    def _off_at(self, job: Job, moment: datetime) -> Answer | None:
        """By the audit log; where it knows nothing, by how the job stands."""
        for switch in (_PAUSE, _ENABLED):
            edits = self._edits_of(switch)
            before = next((edit for edit in reversed(edits) if edit.at <= moment), None)
            after = next((edit for edit in edits if edit.at > moment), None)
            on_again = [self._by(switch.on_by, after)] if after is not None and after.kind == switch.on else []
            if before is not None and before.kind == switch.off:
                return Answer(switch.verdict, (self._by(switch.off_by, before), *on_again))
            if before is None and on_again:
                stood = self._words.say(switch.stood_off, moment=self._words.at(moment), job=job.id)
                return Answer(switch.verdict, (stood, *on_again))
        state = self._why_it_does_not_fire()
        unchanged = job.updated_at <= moment
        return (
            state if state is not None and unchanged and state.verdict in ("paused", "disabled", "unreadable") else None
        )

    def _edited_since(self, job: Job, moment: datetime) -> Answer | None:
        if job.updated_at <= moment:
            return None
        later = [edit for edit in self._edits if edit.at > moment]
        at, by = (later[0].at, later[0].actor) if later else (job.updated_at, job.updated_by)
        what = _N(
            "%(moment)s 没有记录。任务 %(job)s 在那之后（%(at)s）被 %(by)s 修改过；"
            "在那之前它可能暂停、停用或用着另一个触发器。"
        )
        sentence = self._words.say(
            what, moment=self._words.at(moment), job=job.id, at=self._words.at(at), by=self._words.by(by)
        )
        state = self._why_it_does_not_fire()
        return Answer("edited", (sentence, *(state.sentences if state else ())))

    def _unknown(self, moment: datetime) -> Answer:
        what = _N("%(moment)s 应当触发，却没有任何记录，也找不到原因。请保留现场并查看调度器日志。")
        return Answer("unknown", (self._words.say(what, moment=self._words.at(moment)),))

    # How the job stands

    @property
    def _overdue(self) -> datetime | None:
        due = None if self._job is None else self._job.next_run_time
        return due if due is not None and due < self._now - LATE_AFTER - MARGIN else None

    def _why_it_does_not_fire(self) -> Answer | None:
        """Why the job has no next run; None when it has one."""
        job = self._job
        if job is None:
            return self._gone()
        told = {"job": job.id, "at": self._words.at(job.updated_at), "by": self._words.by(job.updated_by)}
        if not job.is_active:
            told["at"] = self._words.at(job.deleted_at or job.updated_at)
            return Answer("deleted", (self._words.say(_N("任务 %(job)s 在 %(at)s 被 %(by)s 删除。"), **told),))
        if job.problem is not None or not self._trigger:
            what = _N("任务 %(job)s 的记录无法读取，已搁置：%(problem)s。")
            problem = job.problem or "trigger"  # no scheduler has met it yet
            return Answer("unreadable", (self._words.say(what, job=job.id, problem=problem),))
        return self._why_it_is_off(job, told)

    def _gone(self) -> Answer:
        what = _N("任务 %(job)s 已不存在，只留有运行记录。")
        return Answer("deleted", (self._words.say(what, job=self._job_id),))

    def _why_it_is_off(self, job: Job, told: dict[str, str]) -> Answer | None:
        if not job.is_enabled:
            return self._is_off(_ENABLED, _N("任务 %(job)s 已停用（最后一次修改：%(at)s，%(by)s）。"), told)
        if job.is_paused:
            return self._is_off(_PAUSE, _N("任务 %(job)s 已暂停（最后一次修改：%(at)s，%(by)s）。"), told)
        if job.next_run_time is not None:
            return None
        what = _N("任务 %(job)s 的触发器（%(trigger)s）已经没有下一个时刻。")
        trigger = describe(self._trigger, self._words.language)
        return Answer("finished", (self._words.say(what, job=job.id, trigger=trigger),))

    def _is_off(self, switch: _Switch, what: str, told: dict[str, str]) -> Answer:
        """Who did it, where the audit log knows; else `what`, which tells of the job's last change."""
        edits = self._edits_of(switch)
        known = bool(edits) and edits[-1].kind == switch.off
        return Answer(switch.verdict, (self._by(switch.off_by, edits[-1]) if known else self._words.say(what, **told),))

    def _edits_of(self, switch: _Switch) -> list[Edit]:
        return [edit for edit in self._edits if edit.kind in switch.known_after]

    def _by(self, what: str, edit: Edit) -> str:
        return self._words.say(what, job=self._job_id, at=self._words.at(edit.at), by=self._words.by(edit.actor))

    def _outlook(self, verdict: str) -> list[str]:
        """When the job fires next."""
        job = self._job
        if job is None or job.next_run_time is None or verdict in ("unclaimed", "held", "no_scheduler"):
            state = None if verdict in ("paused", "disabled", "deleted", "finished") else self._why_it_does_not_fire()
            return list(state.sentences) if state else []
        sentences = []
        if job.next_run_time > self._now:
            sentences.append(self._words.say(_N("下一次触发：%(at)s。"), at=self._words.at(job.next_run_time)))
        if self._held is not None:
            sentences.append(self._hold_words())
        elif not self._teller.alive:
            sentences.append(self._teller.no_scheduler())
        return sentences

    # Due and not claimed

    def _unclaimed(self, moment: datetime) -> Answer:
        """It is due, and nobody has claimed it yet."""
        due = self._words.say(
            _N("%(moment)s 已到期 %(late)s，还没有调度器认领它。"),
            moment=self._words.at(moment),
            late=self._words.span(self._now - moment),
        )
        if self._held is not None:
            return Answer("held", (due, self._hold_words()))
        if not self._teller.alive:
            return Answer("no_scheduler", (due, self._teller.no_scheduler()))
        claims = self._fires.claims_around(moment, self._now)
        names = ", ".join(sorted(node.name for node in self._teller.alive))
        if claims.first_between is not None:
            why = self._words.say(
                _N("调度器 %(nodes)s 在运行，这段时间也认领了其他任务：执行器的位置都被占用，它在排队。"), nodes=names
            )
        else:
            why = self._words.say(
                _N("调度器 %(nodes)s 在运行，却没有认领任何任务：任务库可能被锁住、磁盘已满或过于繁忙。"), nodes=names
            )
        return Answer("unclaimed", (due, why))

    def _hold_words(self) -> str:
        if self._held is None:
            return ""
        what = _N("从 %(since)s 起所有任务都被 %(by)s 扣住（hold：%(reason)s），直到 flask jobs release-hold。")
        return self._words.say(
            what, since=self._words.at(self._held.since), by=self._words.by(self._held.by), reason=self._held.reason
        )
