"""Every way in which a job fires, or does not, has its sentence; it rests on what is on record."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from sqlalchemy import insert, update
from sqlalchemy.dialects import sqlite

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import jobs, runs
from app.ledger import NewJob, Ticket
from app.ledger.claim import Claimed, claim
from app.ledger.nodes import beat
from app.ledger.record import Finish, record_finishes, record_starts
from app.ledger.recover import Suspects, recover
from app.ledger.runs import Outcome
from app.repositories.accounts_repository import add_audit
from app.runtime import Runtime
from app.services.operations.explain.job import Explanation, explain
from app.services.operations.failure import OperationFailed
from tests.unit.ledger.run_rows import run_row

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
HOURLY = {"type": "cron", "minute": "0", "timezone": "UTC"}


@dataclasses.dataclass
class World:
    """A store whose past a test writes, with the ledger's own claims, starts and ends. `due` is a full hour, 3 ago."""

    runtime: Runtime
    due: datetime

    def add(self, job_id: str = "job", **fields: Any) -> None:
        """A job that was there long before `due`."""
        self.runtime.ledger.add_job(NewJob(**{"id": job_id, "task": "sample", "trigger": HOURLY, **fields}), by="1")
        self.write(job_id, created_at=to_us(self.due - 30 * HOUR), updated_at=to_us(self.due - 30 * HOUR))
        self.write(job_id, next_run_time=to_us(self.due))

    def write(self, job_id: str = "job", **values: Any) -> None:
        with write_transaction(self.runtime.jobstore) as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))

    def node(self, name: str, began: datetime, heard: datetime, state: Any = "running") -> None:
        with write_transaction(self.runtime.jobstore) as connection:
            beat(
                connection,
                node_id=name,
                name=name,
                version="1",
                state=state,
                started_at=to_us(began),
                lock_file=None,
                stats={},
                now=to_us(heard),
            )

    def claim(self, at: datetime, job_id: str | None = "job") -> Claimed:
        with write_transaction(self.runtime.jobstore) as connection:
            return claim(connection, owner="a", now=to_us(at), only=job_id)

    def start(self, tickets: list[Ticket], at: datetime) -> None:
        with write_transaction(self.runtime.jobstore) as connection:
            assert record_starts(connection, tickets, owner="a", node="a", now=to_us(at))

    def finish(self, tickets: list[Ticket], took: timedelta = SECOND, **fields: Any) -> None:
        values = {"outcome": "success", "duration": took // timedelta(microseconds=1), **fields}
        with write_transaction(self.runtime.jobstore) as connection:
            ends = [Finish(ticket, **values) for ticket in tickets]
            record_finishes(connection, ends, owner="a", now=to_us(self.due + HOUR))

    def run(self, claimed: datetime, started: datetime | None = None, **fields: Any) -> list[Ticket]:
        """A fire from its claim to its end; its moments lie behind."""
        tickets = self.claim(claimed).tickets
        self.start(tickets, started or claimed)
        self.finish(tickets, **fields)
        return tickets

    def audit(self, action: str, at: datetime, job_id: str = "job", actor: str = "lin", status: int = 200) -> None:
        suffixes = {"change_job": "", "delete_job": "", "disable_job": "/action", "enable_job": "/action"}
        suffix = suffixes.get(action, f"/actions/{action.partition('_')[0]}")
        target = "actions/reload" if action == "reload_jobs" else f"{job_id}{suffix}"
        with write_transaction(self.runtime.database) as connection:
            add_audit(
                connection,
                at=to_us(at),
                actor=actor,
                action=f"scheduler.{action}",
                target=f"/api/v1/scheduler/jobs/{target}",
                status=status,
                address="",
                request_id="",
            )

    def ask(self, moment: datetime | str | None = None, job_id: str = "job", language: str = "en") -> Explanation:
        text = moment.isoformat() if isinstance(moment, datetime) else moment
        return explain(self.runtime, job_id, text, language=language)


@pytest.fixture
def world(runtime: Runtime) -> World:
    now = datetime.now(UTC)
    return World(runtime, now.replace(minute=0, second=0, microsecond=0) - 3 * HOUR)


def says(found: Explanation, *parts: str) -> None:
    text = "\n".join((found.sentence, *found.details))
    assert "%(" not in text
    for part in parts:
        assert part in text, text


def test_a_fire_on_time(world: World) -> None:
    world.add()
    [ticket] = world.run(world.due + SECOND / 10)
    world.write(next_run_time=to_us(world.due + 5 * HOUR))
    found = world.ask(world.due)
    assert (found.verdict, found.run_ids) == ("success", (ticket.run_id,))
    says(found, "on node a (on time) and succeeded after 1.0 s", "Next fire:")


def test_to_the_minute_and_by_the_clock_alone(world: World) -> None:
    world.add()
    world.run(world.due)
    assert world.ask(f"{world.due:%H:%M}").verdict == "success"
    assert world.ask(f"{world.due:%Y-%m-%d %H:%M}").verdict == "success"


def test_late_because_no_scheduler_was_alive(world: World) -> None:
    world.add()
    world.node("old", world.due - 5 * HOUR, world.due - 40 * SECOND, "stopped")
    world.node("new", world.due + 100 * SECOND, world.due + 4 * HOUR)
    world.run(world.due + 101 * SECOND)
    found = world.ask(world.due)
    assert found.verdict == "success"
    says(found, "(1 min 41 s late)", "No scheduler was alive: old was last heard of", "and new began at")


def test_late_because_the_store_was_out_of_reach(world: World) -> None:
    world.add()
    world.node("a", world.due - 5 * HOUR, world.due + 4 * HOUR)
    world.run(world.due + 30 * SECOND)
    says(world.ask(world.due), "30.0 s late", "Schedulers ran (a), but claimed nothing from", "out of reach")


def test_late_because_every_place_was_taken(world: World) -> None:
    world.add()
    world.add("other", trigger={"type": "cron", "minute": "0", "second": "*/5", "timezone": "UTC"}, coalesce=False)
    world.node("a", world.due - 5 * HOUR, world.due + 4 * HOUR)
    world.start(world.claim(world.due + 10 * SECOND, "other").tickets, world.due + 10 * SECOND)
    world.run(world.due + 20 * SECOND)
    says(world.ask(world.due), "no place free", "3 runs were going on (other 3)")


def test_late_because_it_queued_after_its_claim(world: World) -> None:
    world.add()
    world.add("other")
    world.start(world.claim(world.due, "other").tickets, world.due)
    world.run(world.due, world.due + 40 * SECOND)
    says(world.ask(world.due), "40.0 s late", "1 runs were going on (other 1)")


def test_late_because_of_an_instance_of_its_own(world: World) -> None:
    world.add(coalesce=False, misfire_grace_time=9000)
    first, second = world.claim(world.due + HOUR).tickets
    world.start([first], world.due + HOUR)
    world.start([second], world.due + HOUR + 60 * SECOND)
    says(
        world.ask(world.due + HOUR),
        "1 min late",
        f"wait for instances of the same job (max_instances 1): {first.run_id}",
    )


def test_late_because_its_node_fell_silent(world: World) -> None:
    world.add()
    tickets = world.claim(world.due).tickets
    with write_transaction(world.runtime.jobstore) as connection:
        handed = recover(connection, me="a2", suspects=Suspects(silent={"a"}), now=to_us(world.due))
        assert record_starts(connection, handed.tickets, owner="a2", node="a2", now=to_us(world.due + 9 * SECOND))
    assert [ticket.run_id for ticket in handed.tickets] == [ticket.run_id for ticket in tickets]
    says(world.ask(world.due), "9.0 s late", "fell silent before it began, and another one took it over")


def test_late_because_of_a_restart_and_then_of_the_queue(world: World) -> None:
    world.add()
    world.add("other")
    world.node("old", world.due - 5 * HOUR, world.due - SECOND, "stopped")
    world.node("new", world.due + 30 * SECOND, world.due + 4 * HOUR)
    world.start(world.claim(world.due + 31 * SECOND, "other").tickets, world.due + 31 * SECOND)
    world.run(world.due + 50 * SECOND)
    says(
        world.ask(world.due),
        "50.0 s late",
        "No scheduler was alive: old was last heard of",
        "and it queued",
        "(other 1)",
    )


def test_a_fire_that_its_trigger_delays(world: World) -> None:
    world.add(trigger={**HOURLY, "jitter": 900})
    world.write(next_run_time=to_us(world.due + 600 * SECOND))
    [ticket] = world.run(world.due + 600 * SECOND)
    found = world.ask(world.due)
    assert (found.verdict, found.run_ids) == ("success", (ticket.run_id,))
    world.add("delayed", trigger={"type": "cron", "second": "*", "timezone": "UTC", "jitter": 900})
    world.write("delayed", next_run_time=to_us(datetime.now(UTC) + 800 * SECOND))
    just_now = (datetime.now(UTC) - SECOND).replace(microsecond=0)
    says(world.ask(just_now, "delayed"), "The trigger delays its fires at random")


def test_missed(world: World) -> None:
    world.add(misfire_grace_time=60)
    world.node("new", world.due + 10 * 60 * SECOND, world.due + 4 * HOUR)
    world.claim(world.due + 10 * 60 * SECOND)
    found = world.ask(world.due)
    assert found.verdict == "missed"
    says(found, "10 min late, past the grace time of 60 s (misfire_grace_time)", "new began only at")


def test_coalesced(world: World) -> None:
    world.add(misfire_grace_time=9000)
    world.run(world.due + 2 * HOUR)
    found = world.ask(world.due)
    assert found.verdict == "coalesced"
    says(found, f"The fires from {world.due:%Y-%m-%d %H}:00:00+00:00 to", "2 of them", "whose outcome is success")


def test_skipped(world: World) -> None:
    world.add()
    [first] = world.claim(world.due).tickets
    world.start([first], world.due)
    world.claim(world.due + HOUR)
    found = world.ask(world.due + HOUR)
    assert found.verdict == "skipped"
    says(found, "max_instances (1) of its job were running already", first.run_id, "not ended yet")


def test_failed_and_tried_again(world: World) -> None:
    world.add(max_attempts=2)
    tickets = world.claim(world.due).tickets
    world.start(tickets, world.due)
    world.finish(tickets, outcome="failed", error="Traceback\nValueError: no such file")
    found = world.ask(world.due)
    assert found.verdict == "pending"  # the second attempt, which says how it ended
    says(found, "attempt 2", "failed after 1.0 s: ValueError: no such file", "tried up to 2 times; this was attempt 1")


def test_lost(world: World) -> None:
    world.add()
    world.start(world.claim(world.due).tickets, world.due)
    with write_transaction(world.runtime.jobstore) as connection:
        recover(connection, me="b", suspects=Suspects(silent={"a"}, gone={"a"}), now=to_us(world.due + HOUR))
    found = world.ask(world.due)
    assert found.verdict == "lost"
    says(found, "did not end: the process that ran it is gone")


def test_claimed_and_waiting_without_a_scheduler(world: World) -> None:
    world.add()
    world.node("a", world.due - HOUR, world.due + SECOND, "stopped")
    world.claim(world.due)
    found = world.ask(world.due)
    assert found.verdict == "pending"
    says(found, "is claimed and has not begun", "No scheduler is alive: the last one, a, was last heard of")


def test_a_run_that_somebody_asked_for(world: World) -> None:
    world.add()
    world.write(next_run_time=to_us(datetime.now(UTC) + HOUR))
    run = world.runtime.ledger.request_run("job", "api-token")
    world.runtime.ledger.cancel_run(run.run_id, "7")
    found = world.ask(f"{run.scheduled_for:%Y-%m-%d %H:%M:%S}")
    assert found.verdict == "cancelled"
    says(found, "The run that api-token asked for", "was cancelled by user 7 before it began")


def test_not_a_moment_of_the_trigger(world: World) -> None:
    world.add()
    found = world.ask(world.due + timedelta(minutes=17))
    assert found.verdict == "not_a_moment"
    says(
        found,
        "is no moment of job job",
        "Nearest moment before: ",
        f"Nearest moment after: {world.due + HOUR:%Y-%m-%d %H}:00",
    )


def test_a_time_meant_in_utc(world: World) -> None:
    world.add(trigger={"type": "cron", "hour": "2", "minute": "0", "timezone": "Asia/Shanghai"})
    found = world.ask(f"{world.due - 24 * HOUR:%Y-%m-%d} 12:00")
    says(found, "is no moment", "time zone Asia/Shanghai")
    assert not any("UTC was meant" in text for text in found.details)
    world.add("night", trigger={"type": "cron", "hour": "10", "minute": "0", "timezone": "Asia/Shanghai"})
    says(world.ask(f"{world.due - 24 * HOUR:%Y-%m-%d} 02:00", "night"), "If UTC was meant: ", "10:00:00+08:00")


def test_what_a_clock_change_leaves_out(world: World) -> None:
    trigger = {"type": "cron", "hour": "2", "minute": "*/10", "timezone": "America/New_York"}
    world.add(trigger=trigger)
    found = world.ask("2026-03-08 02:10")
    assert found.verdict == "dropped"
    says(found, "The clock change leaves out", "03:00:00-04:00")


@pytest.mark.parametrize(
    ("off", "on", "verdict"),
    [("pause", "resume", "paused"), ("disable", "enable", "disabled")],
    ids=["pause", "switch"],
)
def test_off_and_on_by_the_audit_log(world: World, off: str, on: str, verdict: str) -> None:
    world.add()
    world.audit(f"{off}_job", world.due - HOUR)
    world.audit(f"{on}_job", world.due + HOUR)
    world.write(next_run_time=to_us(world.due + 5 * HOUR), updated_at=to_us(world.due + HOUR))
    found = world.ask(world.due)
    assert found.verdict == verdict
    says(found, f"was {verdict} at", "by lin", f"was {on}d at", "is not made up for")
    assert world.ask(world.due + 2 * HOUR).verdict == "unknown"  # nothing explains that one, and it says so


def test_an_edit_may_have_enabled_it(world: World) -> None:
    """A PUT sets the switch too, and the audit log does not tell its fields."""
    world.add()
    world.audit("disable_job", world.due - 3 * HOUR)
    world.audit("change_job", world.due - 2 * HOUR)
    world.write(next_run_time=to_us(world.due + 5 * HOUR))
    assert world.ask(world.due).verdict == "unknown"


def test_who_disabled_it(world: World) -> None:
    world.add()
    world.claim(datetime.now(UTC))
    world.runtime.ledger.change_job("job", {"is_enabled": False}, "1")
    world.audit("disable_job", datetime.now(UTC))
    found = world.ask()
    assert found.verdict == "disabled"
    says(found, "was disabled at", "by lin")


def test_a_reload_ends_a_pause(world: World) -> None:
    world.add()
    world.audit("pause_job", world.due - 3 * HOUR)
    world.audit("reload_jobs", world.due - 2 * HOUR)
    world.write(next_run_time=to_us(world.due + 5 * HOUR))
    assert world.ask(world.due).verdict == "unknown"


def test_the_moment_before_may_be_long_ago(world: World) -> None:
    world.add(trigger={"type": "cron", "month": "2", "day": "29", "minute": "*", "timezone": "UTC"})
    says(world.ask("2026-06-01 12:00"), "before: 2024-02-29 23:59:00+00:00", "after: 2028-02-29 00:00:00+00:00")


def test_refused_requests_paused_nothing(world: World) -> None:
    world.add()
    world.audit("pause_job", world.due - HOUR, status=403)
    world.write(next_run_time=to_us(world.due + 5 * HOUR))
    assert world.ask(world.due).verdict == "unknown"


@pytest.mark.parametrize(
    ("change", "verdict", "part"),
    [
        (lambda ledger: ledger.pause_job("job", "1"), "paused", "is paused (last changed at"),
        (lambda ledger: ledger.change_job("job", {"is_enabled": False}, "1"), "disabled", "is disabled"),
        (lambda ledger: ledger.delete_job("job", "1"), "deleted", "was deleted at"),
        (lambda ledger: ledger.hold("restored", "restore"), "held", "All jobs are held since"),
    ],
)
def test_why_it_does_not_fire_now(world: World, change: Callable[[Any], Any], verdict: str, part: str) -> None:
    world.add()
    world.claim(datetime.now(UTC))
    change(world.runtime.ledger)
    if verdict == "held":
        world.write(next_run_time=to_us(world.due + 2 * HOUR))
    found = world.ask()
    assert found.verdict == verdict
    says(found, part)


def test_a_trigger_that_has_ended(world: World) -> None:
    world.add(trigger={"type": "date", "run_date": world.due.isoformat(), "timezone": "UTC"})
    world.run(world.due)
    found = world.ask()
    assert found.verdict == "finished"
    says(found, "has no further moment", "succeeded")


def test_a_row_that_cannot_be_read(world: World) -> None:
    world.add()
    world.write(trigger="{", problem="column trigger holds no JSON", next_run_time=None)
    found = world.ask(world.due)
    assert found.verdict == "unreadable"
    says(found, "cannot be read and is set aside: column trigger holds no JSON")


def test_a_trigger_that_cannot_be_built(world: World) -> None:
    world.add()
    world.write(trigger='{"type": "cron"}', next_run_time=None)
    assert world.ask(world.due).verdict == "unreadable"
    assert world.ask().verdict == "unreadable"


def test_due_and_no_scheduler_has_ever_been_here(world: World) -> None:
    world.add()
    found = world.ask()
    assert found.verdict == "no_scheduler"
    says(found, "no scheduler has claimed it", "ENABLE_SCHEDULER")
    assert world.ask(world.due).verdict == "no_scheduler"


def test_due_while_a_scheduler_is_alive(world: World) -> None:
    world.add()
    world.node("a", world.due, datetime.now(UTC) + HOUR)
    found = world.ask()
    assert found.verdict == "unclaimed"
    says(found, "claimed nothing at all")


def test_a_hold_that_ended_tells_of_itself(world: World) -> None:
    world.add()
    world.add("other")
    world.runtime.ledger.hold("restored from a backup", "restore")
    world.runtime.ledger.release_hold("run-latest")
    assert world.ask(world.due).verdict == "coalesced"
    says(world.ask(world.due), "All jobs were held then")
    latest = world.ask()
    says(latest, "is claimed and has not begun")


def test_what_a_hold_skipped(world: World) -> None:
    world.add()
    world.runtime.ledger.hold("restored from a backup", "restore")
    world.runtime.ledger.release_hold("skip")
    found = world.ask(world.due)
    assert found.verdict == "missed"
    says(found, "all jobs were held, and it was not caught up with")


def test_before_the_job_was_there(world: World) -> None:
    world.add()
    found = world.ask(world.due - 100 * HOUR)
    assert found.verdict == "before_creation"
    says(found, "is in the job store only since", "added by user 1")


def test_older_than_what_is_kept(world: World) -> None:
    world.add()
    world.write(created_at=to_us(world.due - timedelta(days=400)))
    found = world.ask(world.due - timedelta(days=200))
    assert found.verdict == "purged"
    says(found, "90 days")


def test_ahead(world: World) -> None:
    world.add()
    world.claim(datetime.now(UTC))
    found = world.ask(world.due + 24 * HOUR)
    assert found.verdict == "ahead"
    says(found, "has not come yet")


def test_changed_since(world: World) -> None:
    world.add()
    world.audit("change_job", world.due + HOUR)
    world.write(next_run_time=to_us(world.due + 5 * HOUR), updated_at=to_us(world.due + HOUR))
    found = world.ask(world.due)
    assert found.verdict == "edited"
    says(found, "was changed after it", "by lin", "another trigger")


def test_a_day_with_a_gap(world: World) -> None:
    day = (world.due - 24 * HOUR).replace(hour=0)
    world.add(trigger={"type": "cron", "hour": "6,12,18", "timezone": "UTC"}, max_instances=1)
    world.write(created_at=to_us(day - HOUR), updated_at=to_us(day - HOUR))
    for hour in (6, 18):
        world.write(next_run_time=to_us(day + hour * HOUR))
        world.run(day + hour * HOUR)
    world.audit("pause_job", day + 8 * HOUR)
    world.audit("resume_job", day + 14 * HOUR)
    found = world.ask(f"{day:%Y-%m-%d}")
    assert found.verdict == "several"
    says(
        found,
        "2 moments on record: success 2",
        f"The moment {day:%Y-%m-%d} 12:00:00+00:00 is not on record",
        "paused at",
    )


def test_a_long_stretch_tells_of_what_is_out_of_the_ordinary(world: World) -> None:
    world.add(trigger={"type": "cron", "minute": "*", "timezone": "UTC"})
    tickets = []
    for minute in range(20):
        moment = world.due + timedelta(minutes=minute)
        tickets += world.run(moment, outcome="failed" if minute % 2 else "success", error="boom")
    day = world.ask(f"{world.due:%Y-%m-%d}")
    assert day.run_ids == tuple(ticket.run_id for ticket in tickets[1:10:2])
    says(day, "5 more rows are out of the ordinary", "failed 10, success 10")


def test_a_job_that_is_gone_but_for_its_runs(world: World) -> None:
    with write_transaction(world.runtime.jobstore) as connection:
        late = {"outcome": "missed", "misfire_grace_time": 5, "claimed_at": to_us(world.due + HOUR)}
        connection.execute(insert(runs).values(run_row("gone", to_us(world.due), **late)))
    found = world.ask(job_id="gone")
    assert found.verdict == "deleted"
    says(found, "only its runs are on record", "missed")


def test_in_chinese(world: World) -> None:
    world.add(misfire_grace_time=60)
    world.claim(world.due + 10 * 60 * SECOND)
    says(world.ask(world.due, language="zh"), "的触发没有运行", "超过宽限 60 秒")


def test_for_programs(world: World) -> None:
    world.add()
    world.run(world.due)
    found = world.ask(world.due).as_json()
    assert found["verdict"] == "success"
    assert found["asked_from"] == world.due.isoformat()
    assert len(found["run_ids"]) == 1


@pytest.mark.parametrize("job_id", ["jop", "nothing like it", "a\0b"])
def test_a_job_that_nobody_knows(world: World, job_id: str) -> None:
    world.add()
    with pytest.raises(OperationFailed, match="there is no job") as refused:
        world.ask(job_id=job_id)
    assert ("did you mean job?" in str(refused.value)) == (job_id == "jop")


def test_whatever_is_on_record_is_told_in_whole_sentences(world: World) -> None:
    """Stores made up by chance: no state of rows, nodes and edits is without words, and none is left untranslated."""
    chance = random.Random(20261121)
    for number in range(15):
        job_id = f"job-{number}"
        world.add(job_id, trigger={"type": "cron", "minute": "*/20", "timezone": "America/New_York"}, max_attempts=3)
        for _ in range(6):
            _row_by_chance(world, job_id, chance)
        for action in chance.choices(
            ("pause_job", "resume_job", "change_job", "delete_job", "disable_job", "enable_job"), k=2
        ):
            world.audit(action, world.due + chance.uniform(-9, 3) * HOUR, job_id)
        flags = {name: chance.random() < 0.2 for name in ("is_paused", "problem")}
        problem = "made up" if flags["problem"] else None
        world.write(job_id, is_paused=flags["is_paused"], problem=problem, updated_at=to_us(world.due - HOUR))
        world.node(f"node-{number}", world.due - chance.uniform(0, 9) * HOUR, world.due + chance.uniform(-2, 3) * HOUR)
        for asked in (None, f"{world.due - chance.uniform(-4, 9) * HOUR:%Y-%m-%d %H:%M}Z", f"{world.due:%Y-%m-%d}"):
            for language in ("en", "zh"):
                found = world.ask(asked, job_id, language)
                text = "\n".join((found.sentence, *found.details))
                assert found.sentence
                assert "%(" not in text.replace("100 %(", "")
                assert language == "zh" or not re.search("[\u4e00-\u9fff]", text), text


def _row_by_chance(world: World, job_id: str, chance: random.Random) -> None:
    moment = world.due - chance.randrange(-6, 27) * HOUR / 3
    claimed = moment + chance.choice((0, 0, 3, 600)) * SECOND
    outcome = chance.choice(get_args(Outcome))
    started = outcome in ("running", "success", "failed", "lost") or (outcome == "cancelled" and chance.random() < 0.5)
    values: dict[str, Any] = {
        **{"outcome": outcome, "claimed_at": to_us(claimed), "misfire_grace_time": 5},
        **{"kind": chance.choice(("schedule", "schedule", "manual")), "attempt": chance.choice((1, 1, 2))},
        **{"created_by": chance.choice(("schedule", "5"))},
        **{"reason": chance.choice((None, "100 %(x)s", "fell into a hold (x) that ended with skip"))},
        **{"error": chance.choice((None, "Traceback\n100 %(x)s", "\n")), "owner": chance.choice(("", "node-0"))},
        **{"epoch": chance.choice((1, 2)), "max_attempts": 3},
    }
    if started:
        values |= {"started_at": to_us(claimed + chance.choice((0, 40)) * SECOND), "node": "node-0"}
    if outcome not in ("pending", "running"):
        values |= {"finished_at": to_us(claimed + 90 * SECOND)}
    if outcome in ("missed", "coalesced"):
        values |= {"count": 3, "scheduled_from": to_us(moment - 2 * HOUR / 3)}
    with write_transaction(world.runtime.jobstore) as connection:
        row = run_row(job_id, to_us(moment), **values)
        connection.execute(sqlite.insert(runs).on_conflict_do_nothing(), [row])
