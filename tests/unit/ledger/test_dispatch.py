"""The dispatcher: order, instances, and a store that does not answer. Its lanes run nothing; a test ends the runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, update

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import runs
from app.ledger import Ending, Ticket
from app.ledger.dispatch import Dispatcher
from app.ledger.stopping import StopReason

from .conftest import START, Store, wait_until

NOW = to_us(datetime.now(UTC))


def ticket(number: int, job_id: str = "job", *, max_instances: int = 1) -> Ticket:
    return Ticket(
        run_id=f"{job_id}-{number}",
        job_id=job_id,
        task="sample",
        kind="manual",
        scheduled_for=number,
        attempt=1,
        epoch=1,
        priority=0,
        executor="default",
        max_instances=max_instances,
        misfire_grace_time=300,
        kwargs="{}",
        created_by="test",
    )


@dataclass
class Bench:
    """A dispatcher on a store, and what it did."""

    store: Store
    submitted: list[Ticket] = field(default_factory=list)
    ends: dict[str, Callable[[Ending], None]] = field(default_factory=dict)
    adoptions: int = 0
    failures: list[Exception] = field(default_factory=list)
    outage: bool = False
    stops: list[tuple[str, StopReason]] = field(default_factory=list)
    more_time: list[float] = field(default_factory=list)  # what the executor answers to the next requests to stop
    transactions: int = 0

    def dispatcher(self, places: int = 64) -> Dispatcher:
        return Dispatcher(
            node_id="n1",
            node_name="n1",
            lanes={"default": (places, self._submit, self._stop)},
            lane_of=lambda ticket: ticket.executor,
            transaction=self._transaction,
            started=lambda _ticket: None,
            ended=lambda _ticket, _ending: None,
            adopt=self._adopt,
            alerts=False,
        )

    def end(self, run_id: str, outcome: str = "success") -> None:
        self.ends.pop(run_id)(Ending(outcome, 1, None, ""))  # type: ignore[arg-type]

    def _submit(self, given: Ticket, end: Callable[[Ending], None]) -> None:
        self.ends[given.run_id] = end
        self.submitted.append(given)

    def _stop(self, given: Ticket, reason: StopReason) -> float | None:
        self.stops.append((given.run_id, reason))
        return self.more_time.pop() if self.more_time else None

    def _adopt(self) -> None:
        self.adoptions += 1

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        self.transactions += 1
        if self.outage:
            raise OSError("no space left on device")
        with write_transaction(self.store.engine) as connection:
            yield connection
        if self.failures:
            raise self.failures.pop()


@pytest.fixture
def bench(store: Store) -> Bench:
    return Bench(store)


@pytest.fixture
def dispatcher(bench: Bench) -> Iterator[Dispatcher]:
    made = bench.dispatcher()
    made.start()
    yield made
    made.close()
    bench.outage = False
    made.drain(time.monotonic())


def claimed(store: Store, job_id: str = "job", **fields: object) -> Ticket:
    store.add(job_id, **fields)
    store.due_at(datetime.now(UTC), job_id)
    (taken,) = store.claim(datetime.now(UTC), only=job_id).tickets
    return taken


def test_a_start_on_record_is_carried_out_though_its_commit_seemed_to_fail_and_it_is_too_late_now(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    taken = claimed(store)
    with write_transaction(store.engine) as connection:
        connection.execute(update(runs).values(outcome="running", started_at=0))  # the commit that came through
    late = replace(taken, scheduled_for=taken.scheduled_for - 400_000_000)
    dispatcher.add([late], now=NOW)
    wait_until(lambda: bench.submitted, "the task")
    assert [run["outcome"] for run in store.runs()] == ["running"]


def test_a_failed_commit_of_unknown_fate_starts_a_run_once(store: Store, bench: Bench, dispatcher: Dispatcher) -> None:
    bench.failures = [OSError("the connection broke after the commit")]
    dispatcher.add([claimed(store)], now=NOW)
    wait_until(lambda: bench.submitted, "the task")
    assert len(bench.submitted) == 1


def test_a_shut_door_makes_the_node_look_for_what_it_owns(store: Store, bench: Bench, dispatcher: Dispatcher) -> None:
    taken = claimed(store)
    with write_transaction(store.engine) as connection:
        connection.execute(update(runs).values(epoch=3))  # taken over, and taken back
    dispatcher.add([taken], now=NOW)
    wait_until(lambda: bench.adoptions, "the look")
    dispatcher.add([replace(taken, epoch=3)], now=NOW)
    wait_until(lambda: bench.submitted, "the task")


def test_a_run_whose_process_died_is_run_again_once_where_its_job_says_so(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    first = claimed(store, retry_on_loss=True)
    dispatcher.add([first], now=NOW)
    wait_until(lambda: bench.ends, "the task")
    bench.end(first.run_id, "lost")
    wait_until(lambda: bench.adoptions, "the look for the second attempt")
    (second,) = store.runs(attempt=2)
    assert (second["outcome"], second["owner"]) == ("pending", "n1")
    again = replace(first, run_id=second["run_id"], attempt=2)
    dispatcher.add([again], now=NOW)
    wait_until(lambda: bench.ends, "the second attempt")
    bench.end(again.run_id, "lost")
    wait_until(lambda: len(store.runs(outcome="lost")) == 2, "its end")
    assert len(store.runs()) == 2


def test_an_outage_is_told_of_once_not_at_every_try(
    store: Store, bench: Bench, dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    bench.outage = True
    tries: list[float] = []
    with caplog.at_level(logging.WARNING, "app.ledger.dispatch"):
        dispatcher.add([claimed(store)], now=NOW)
        for _ in range(4):
            wait_until(lambda: dispatcher._retry_at not in {*tries, 0.0}, "one more try")
            tries.append(dispatcher._retry_at)
    assert len(caplog.records) == 1
    assert "no space left" in caplog.text
    bench.outage = False
    wait_until(lambda: bench.submitted, "the task")


def test_a_long_queue_of_one_job_costs_nothing_at_the_next_look_and_runs_in_order(bench: Bench) -> None:
    dispatcher = bench.dispatcher(places=3)
    dispatcher.add((ticket(number) for number in reversed(range(2000))), now=NOW)
    dispatcher.add([ticket(5000, "other")], now=NOW)
    assert [taken.run_id for taken in dispatcher._take(dispatcher._lanes["default"])] == ["job-0", "other-5000"]
    assert dispatcher._lanes["default"].waiting == []
    assert dispatcher.queued() == 1999
    dispatcher._leave(ticket(0))
    assert [taken.run_id for taken in dispatcher._take(dispatcher._lanes["default"])] == ["job-1"]
    assert dispatcher._lanes["default"].waiting == []
    dispatcher.close()
    assert dispatcher.queued() == 0
    assert dispatcher._known == {"job-1", "other-5000"}


def test_more_instances_become_free_one_by_one(bench: Bench) -> None:
    dispatcher = bench.dispatcher()
    lane = dispatcher._lanes["default"]
    dispatcher.add((ticket(number, max_instances=2) for number in range(5)), now=NOW)
    assert [taken.scheduled_for for taken in dispatcher._take(lane)] == [0, 1]
    dispatcher._leave(ticket(1))
    dispatcher._leave(ticket(0))
    assert [taken.scheduled_for for taken in dispatcher._take(lane)] == [2, 3]


def test_a_run_whose_start_may_be_on_record_is_not_given_away(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    uncertain, free = claimed(store, "uncertain"), claimed(store, "free")
    small = bench.dispatcher(places=1)
    small.start()
    bench.failures = [OSError("the connection broke after the commit")]
    small.add([uncertain], now=NOW)
    wait_until(lambda: not bench.failures, "the commit of unknown fate")
    with small._changed:  # before the next try
        small._lanes["default"].taken += 1  # another run has the only place
        small._known.add(free.run_id)
        small._enqueue(free)
    assert small.give_up({"default": 5}) == [free]
    with small._changed:
        small._lanes["default"].taken -= 1
        small._changed.notify_all()
    wait_until(lambda: bench.submitted == [uncertain], "the start that is on record")
    small.close()
    small.drain(time.monotonic())


def test_an_end_of_unknown_fate_makes_the_node_look_for_the_next_attempt(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    first = claimed(store, max_attempts=2, retry_delay=60)
    dispatcher.add([first], now=NOW)
    wait_until(lambda: bench.ends, "the task")
    bench.failures = [OSError("the connection broke after the commit")]
    adoptions = bench.adoptions
    bench.end(first.run_id, "failed")
    wait_until(lambda: len(store.runs()) == 2 and bench.adoptions > adoptions, "the look")


def test_an_attempt_waits_by_the_databases_clock(bench: Bench) -> None:
    dispatcher = bench.dispatcher()
    hour_us = 3_600_000_000
    # This machine's clock is an hour behind the database's.
    dispatcher.add([replace(ticket(1), not_before=NOW + hour_us + 5_000_000)], now=NOW + hour_us)
    ((until, _, _),) = dispatcher._postponed
    assert 0 < until - time.monotonic() <= 5


def test_a_limit_that_the_executor_finds_not_over_is_tried_again_when_it_says(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    bench.more_time = [0.6]
    taken = claimed(store, time_limit=1)
    dispatcher.add([taken], now=NOW)
    wait_until(lambda: bench.stops, "the first request")
    asked_at = time.monotonic()
    wait_until(lambda: len(bench.stops) > 1, "the second request")
    assert time.monotonic() - asked_at > 0.5
    assert bench.stops == [(taken.run_id, "hard")] * 2
    time.sleep(0.1)
    assert len(bench.stops) == 2, "the executor did not ask for a third"


def test_limits_of_runs_that_ended_long_before_are_not_kept(bench: Bench) -> None:
    dispatcher = bench.dispatcher()
    count = 1000
    for number in range(count):
        limited = replace(ticket(number, "job"), time_limit=86_400)
        dispatcher._in_progress[limited.run_id] = limited
        dispatcher._set_limits(limited, time.monotonic())
        del dispatcher._in_progress[limited.run_id]
    assert len(dispatcher._limits) < count / 2


def backlog(store: Store, count: int, **fields: object) -> list[Ticket]:
    store.add(coalesce=False, **fields)
    store.due_at(START)
    return sorted(store.claim(START + timedelta(seconds=count - 1)).tickets, key=lambda taken: taken.run_id)


def test_a_queue_behind_an_instance_elsewhere_is_not_gone_through_again_and_again(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    first, *others = (replace(taken, kind="manual") for taken in backlog(store, 100))
    with write_transaction(store.engine) as connection:
        this = runs.c.run_id == first.run_id
        connection.execute(update(runs).where(this).values(outcome="running", owner="n2", started_at=0))
    dispatcher.add(others, now=NOW)
    looks = bench.transactions
    wait_until(lambda: bench.transactions >= looks + 4, "four looks")
    assert len(dispatcher._lanes["default"].held["job"]) >= 98
    with write_transaction(store.engine) as connection:
        connection.execute(update(runs).where(this).values(outcome="success"))
    for number, taken in enumerate(others[:5]):
        wait_until(lambda number=number: len(bench.submitted) > number, "the next run")
        assert bench.submitted[number] == taken
        bench.end(taken.run_id)


def test_a_later_attempt_does_not_block_those_that_come_before_it(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    first, second, attempt = (replace(taken, kind="manual") for taken in backlog(store, 3))
    # Its moment is older than theirs, its run id is younger.
    attempt = replace(attempt, scheduled_for=first.scheduled_for - 1)
    dispatcher.add([attempt, second, first], now=NOW)
    for number, taken in enumerate((first, second, attempt)):
        wait_until(lambda number=number: len(bench.submitted) > number, "the next run")
        assert bench.submitted[number] == taken
        bench.end(taken.run_id)


def test_what_is_held_behind_a_run_that_is_given_away_is_not_forgotten(bench: Bench) -> None:
    dispatcher = bench.dispatcher(places=2)
    lane = dispatcher._lanes["default"]
    first, second, third = (ticket(number) for number in range(3))
    dispatcher.add([first, second, third], now=NOW)
    assert dispatcher._take(lane) == [first]
    dispatcher.add((replace(ticket(number, f"urgent-{number}"), priority=1) for number in range(2)), now=NOW)
    dispatcher._take(lane)
    dispatcher._leave(first)
    dispatcher._take(lane)  # the node is full again
    assert dispatcher.give_up({"default": 1}) == [second]
    assert dispatcher.give_up({"default": 1}) == [third]


def test_a_start_that_may_be_on_record_is_not_held_behind_a_run_that_waits_for_its_end(
    store: Store, bench: Bench, dispatcher: Dispatcher
) -> None:
    first, second = (replace(taken, kind="manual") for taken in backlog(store, 2))
    bench.failures = [OSError("the connection broke after the commit")]
    # The other one is more urgent by its moment, and comes before it by its run id.
    dispatcher.add([second], now=NOW)
    wait_until(lambda: dispatcher._uncertain, "the commit of unknown fate")
    with write_transaction(store.engine) as connection:
        connection.execute(update(runs).where(runs.c.run_id == second.run_id).values(outcome="running", started_at=0))
    dispatcher.add([first], now=NOW)
    wait_until(lambda: bench.submitted, "the start that is on record")
    assert bench.submitted == [second]
