"""Fails when a release of APScheduler changes what app/ledger/apscheduler_overrides.py replaces or relies on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from app.ledger.apscheduler_overrides import RELIED_ON, REPLACED, spec_of
from app.triggers import build_trigger

# When one differs: read the change, adapt the overrides, then put the new digest here.
DIGESTS: dict[str, str] = {
    "BlockingScheduler._main_loop": "e21b0684f3caa8f3",
    "BaseScheduler._process_jobs": "efd3944de4e2c69e",
    "BackgroundScheduler.start": "2767bdd39968aa57",
    "BackgroundScheduler.shutdown": "e002a9867a3afaf5",
    "BaseScheduler.pause_job": "c4eda49c8fb7e644",
    "BaseScheduler.resume_job": "e524187d4b3b467c",
    "BaseScheduler.remove_job": "3bbe875a9900db55",
    "BaseScheduler.start": "d340ef5e45032490",
    "BaseScheduler.shutdown": "ef18d868a76d8e0f",
    "BaseScheduler._dispatch_event": "7531aec39aecb774",
    "BaseScheduler._lookup_job": "ea6e36863d323a05",
    "BaseScheduler._real_add_job": "062c57317a039fb5",
    "BaseScheduler.modify_job": "b3e92f12da6dc69c",
    "Job.__setstate__": "d06f31a6c88e92db",
    "Job._modify": "e222f8aad3cd688a",
    "ThreadPoolExecutor.__init__": "ca19648d583f5207",
    "BasePoolExecutor.__init__": "70cdf2b54b8d2d74",
    "BasePoolExecutor.shutdown": "c04b65ec8e10d8b1",
}


def digest(function: Callable[..., Any]) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


@pytest.mark.parametrize("function", [*REPLACED, *RELIED_ON], ids=lambda function: function.__qualname__)
def test_apschedulers_source_is_what_the_overrides_were_written_for(function: Callable[..., Any]) -> None:
    assert digest(function) == DIGESTS[function.__qualname__]


EIGHT = timezone(timedelta(hours=8))
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "trigger",
    [
        CronTrigger(day_of_week="mon-fri", hour=3, timezone="Asia/Shanghai", jitter=5),
        CronTrigger.from_crontab("*/5 1-3 * * *", timezone="UTC"),
        IntervalTrigger(minutes=7, start_date=NOON, end_date=NOON + timedelta(days=1), timezone=UTC),
        DateTrigger(NOON.astimezone(EIGHT)),
        DateTrigger(NOON, timezone="Asia/Shanghai"),
    ],
)
def test_a_triggers_spec_makes_the_same_fires(trigger: BaseTrigger) -> None:
    rebuilt = build_trigger(spec_of(trigger))
    ours = rebuilt.get_next_fire_time(None, NOON)
    theirs = trigger.get_next_fire_time(None, NOON)
    assert abs(ours - theirs) <= timedelta(seconds=getattr(trigger, "jitter", None) or 0)


@pytest.mark.parametrize(
    "trigger", [AndTrigger([IntervalTrigger(minutes=1)]), IntervalTrigger(minutes=1, timezone=EIGHT)]
)
def test_a_trigger_that_no_spec_can_hold_is_refused(trigger: BaseTrigger) -> None:
    with pytest.raises(ValueError, match="trigger"):
        spec_of(trigger)
