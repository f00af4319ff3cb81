"""The small worlds that are searched: few jobs with few moments, so chosen that every rule is at work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import select

from app.db.jobstore_tables import IS_ACTIVE, runs
from app.ledger import Ledger, NewJob
from tests.model.timeline import every, once
from tests.model.world import Edit, JobModel, Scenario


def _job(job_id: str, trigger: dict[str, Any], **fields: Any) -> NewJob:
    return NewJob(id=job_id, task="model", trigger=trigger, **fields)


def _pause(job_id: str) -> Edit:
    return lambda ledger: ledger.pause_job(job_id, by="model")


def _resume(job_id: str) -> Edit:
    return lambda ledger: ledger.resume_job(job_id, by="model")


def _change(job_id: str, trigger: dict[str, Any]) -> Edit:
    return lambda ledger: ledger.change_job(job_id, {"trigger": trigger}, by="model")


def _run_now(job_id: str) -> Edit:
    return lambda ledger: ledger.request_run(job_id, created_by="model")


def _cancel_newest(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        newest = select(runs.c.run_id).where(IS_ACTIVE).order_by(runs.c.run_id.desc()).limit(1)
        run_id = connection.execute(newest).scalar_one_or_none()
    if run_id is not None:
        ledger.cancel_run(run_id, by="model")


PLAIN = Scenario(
    name="two jobs, two nodes",
    jobs=(
        JobModel(_job("fast", every(1, first=1, last=3))),
        JobModel(_job("slow", every(2, first=1, last=3), coalesce=False, retry_on_loss=True), lasts_s=1.5),
    ),
)
"""A quick job, and one whose runs take longer than its moments are apart, run again when lost."""

LOCK_FILES = Scenario(
    name="nodes with lock files, a short grace time",
    jobs=(
        JobModel(_job("fast", every(1, first=1, last=3), misfire_grace_time=1, coalesce=False)),
        JobModel(_job("slow", every(1, first=1, last=2), retry_on_loss=True), lasts_s=2.5),
    ),
    has_lock_files=True,
    places=1,
)
"""One place a node, so that claimed runs wait; a death is proved at once; what waits too long is missed."""

EDITED = Scenario(
    name="edits and manual runs",
    jobs=(
        JobModel(_job("fast", every(1, first=1, last=4))),
        JobModel(_job("once", once(1)), lasts_s=1.0),
    ),
    edits=(
        ("change fast", _change("fast", every(2, first=1.5, last=5.5))),
        ("set the date of once again", _change("once", once(1))),
        ("pause fast", _pause("fast")),
        ("run fast now", _run_now("fast")),
        ("resume fast", _resume("fast")),
        ("run once now", _run_now("once")),
    ),
)
"""Triggers change under the claims; a date that has fired is set again."""

RETRIED = Scenario(
    name="attempts and cancels",
    jobs=(
        JobModel(
            _job("flaky", every(2, first=1, last=3), max_attempts=3, retry_delay=1, retry_on_loss=True),
            lasts_s=0.5,
            failing_attempts=frozenset({1}),
        ),
        JobModel(
            _job("crowd", every(1, first=1, last=2), coalesce=False, max_instances=2, max_attempts=2, retry_delay=1),
            lasts_s=1.5,
            failing_attempts=frozenset({1, 2}),
        ),
    ),
    edits=(
        ("cancel the newest run", _cancel_newest),
        ("run flaky now", _run_now("flaky")),
        ("run crowd now", _run_now("crowd")),
    ),
)
"""Failed runs are tried again after a while; runs are cancelled while they wait, start, run and end."""

ALONE = replace(RETRIED, name="attempts on one node alone", nodes=1)
"""Nobody else sees to what the only node forgets."""

WAITING = Scenario(
    name="an attempt that waits",
    jobs=(
        JobModel(
            _job("flaky", every(1, first=1, last=1), max_attempts=2, retry_delay=6), failing_attempts=frozenset({1})
        ),
    ),
    has_lock_files=True,
)
"""A run that its node keeps in hand for seconds: time enough for others to take it, die, and give it back."""

BACKLOG = Scenario(
    name="moments that were due while nobody was there",
    jobs=(JobModel(_job("crowd", every(1, first=1, last=3), coalesce=False), lasts_s=1.5),),
    begins_s=3,
)
"""One look claims several runs of a job of which only one may run at a time."""

LONG = Scenario(
    name="a long run",
    jobs=(JobModel(_job("slow", every(1, first=1, last=1), retry_on_loss=True), lasts_s=9),),
)
"""A run that outlasts every silence."""

SCENARIOS = (PLAIN, LOCK_FILES, EDITED, RETRIED, ALONE, WAITING, BACKLOG, LONG)
