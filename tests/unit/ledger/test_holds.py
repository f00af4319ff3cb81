"""A hold: nothing fires by its trigger meanwhile, and every moment that fell into it gets its outcome at the end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest

from app.db.clock import from_us, to_us
from app.db.engines import write_transaction
from app.ledger import CatchUp, CaughtUp, LedgerScheduler, TooMuchToCatchUp
from app.ledger.holds import RUN_ALL_LIMIT, due_moments, end_hold, put_hold
from tests.unit.ledger.conftest import START, SampleTask, Store, seconds, wait_until

EVERY_MINUTE = {"type": "cron", "second": "0", "timezone": "UTC"}


def hold(store: Store, at: datetime = START) -> None:
    with write_transaction(store.engine) as connection:
        put_hold(connection, reason="a restore", by="test", now=to_us(at))


def release(store: Store, catch_up: CatchUp, now: datetime) -> CaughtUp | None:
    with write_transaction(store.engine) as connection:
        return end_hold(connection, catch_up=catch_up, now=to_us(now))


def outcomes(store: Store) -> list[tuple[str, int, datetime]]:
    return [(run["outcome"], run["count"], from_us(run["scheduled_for"])) for run in store.runs()]


def test_nothing_is_claimed_while_all_is_held(store: Store) -> None:
    store.add(trigger=EVERY_MINUTE)
    store.due_at(START)
    hold(store)
    assert store.claim(START).tickets == []
    assert store.runs() == []
    assert release(store, "skip", START - seconds(1)) == CaughtUp()
    assert len(store.claim(START).tickets) == 1


def test_a_hold_that_is_there_stays(store: Store) -> None:
    first = store.ledger.hold("the first", by="one")
    assert store.ledger.hold("the second", by="two") == first == store.ledger.held()
    assert store.ledger.release_hold("skip") == CaughtUp()
    assert store.ledger.held() is None
    assert store.ledger.release_hold("skip") is None


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ("skip", [("missed", 4, START + seconds(180))]),
        ("run-latest", [("coalesced", 3, START + seconds(120)), ("pending", 1, START + seconds(180))]),
        ("run-all", [("pending", 1, START + seconds(60 * n)) for n in range(4)]),
    ],
)
def test_every_moment_gets_its_outcome(
    store: Store, catch_up: CatchUp, expected: list[tuple[str, int, datetime]]
) -> None:
    store.add(trigger=EVERY_MINUTE, misfire_grace_time=1, coalesce=True)
    store.due_at(START)
    hold(store)
    now = START + seconds(200)
    caught = release(store, catch_up, now)
    assert caught is not None
    assert caught.started + caught.coalesced + caught.missed == 4
    assert outcomes(store) == expected
    assert store.job()["next_run_time"] == to_us(START + seconds(240))
    assert store.claim(now).tickets == []


@pytest.mark.parametrize("catch_up", ["skip", "run-latest", "run-all"])
def test_what_is_on_record_is_not_caught_up(store: Store, catch_up: CatchUp) -> None:
    """As after a restore, when the history of the replaced store was carried over and the job is set back."""
    store.add(trigger=EVERY_MINUTE)
    store.due_at(START)
    for n in range(2):
        store.claim(START + seconds(60 * n))
    before = outcomes(store)
    store.due_at(START)
    hold(store)
    with store.engine.connect() as connection:
        (due,) = due_moments(connection, now=to_us(START + seconds(125)))
    assert (due.first, due.count) == (START + seconds(120), 1)
    release(store, catch_up, START + seconds(125))
    assert outcomes(store)[: len(before)] == before
    assert [at for _, _, at in outcomes(store)[len(before) :]] == [START + seconds(120)]


def test_an_edit_while_all_is_held_starts_nothing(store: Store) -> None:
    store.add(trigger=EVERY_MINUTE)
    store.ledger.hold("a restore", by="test")
    store.due_at(from_us(to_us(store.ledger.now()) // 60_000_000 * 60_000_000))
    store.ledger.pause_job("job", by="test")
    assert [(run["outcome"], run["reason"]) for run in store.runs()] == [
        ("missed", "the job was changed while all jobs were held")
    ]


def test_too_much_to_catch_up_is_refused_and_the_hold_goes_on(store: Store) -> None:
    store.add()
    store.due_at(START)
    hold(store)
    with pytest.raises(TooMuchToCatchUp, match="run-latest, skip"):
        release(store, "run-all", START + seconds(RUN_ALL_LIMIT + 10))
    assert store.ledger.held() is not None
    assert store.runs() == []


def test_a_job_that_cannot_be_read_is_left_to_the_next_claim(store: Store) -> None:
    store.add(trigger=EVERY_MINUTE)
    store.add("sound", trigger=EVERY_MINUTE)
    store.due_at(START)
    store.due_at(START, "sound")
    store.set_job("job", trigger="{")
    hold(store)
    assert release(store, "skip", START) == CaughtUp(missed=1)
    store.claim(START)
    assert store.job()["problem"]


def test_a_scheduler_waits_and_then_runs_what_was_chosen(
    store: Store, start_node: Callable[..., LedgerScheduler]
) -> None:
    ran: list[str] = []
    store.tasks["sample"] = SampleTask(lambda run: ran.append(run.kind), wants_run=True)
    store.add(misfire_grace_time=1)
    store.ledger.hold("a restore", by="test")
    store.due_at(store.ledger.now() - seconds(30))
    node = start_node()
    store.ledger.request_run("job", "somebody")
    wait_until(lambda: ran, "the run that somebody asked for")
    assert ran == ["manual"], "the due moment of the job still waits for a decision"
    assert node.health().problem is None
    assert [due.job_id for due in store.ledger.due_moments()] == ["job"]
    store.set_job("job", trigger='{"type": "interval", "seconds": 3600, "timezone": "UTC"}')
    caught = store.ledger.release_hold("run-latest")
    assert caught is not None
    assert caught.started == 1
    wait_until(lambda: ran == ["manual", "schedule"], "the last moment of the hold")
