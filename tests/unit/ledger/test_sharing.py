"""Several schedulers on one store: who takes what, and what holds over all of them together."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, update

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import jobs, runs
from app.ledger import LedgerScheduler, RunContext, Ticket
from app.ledger.claim import LEFT_TO_OTHERS_US, claim, find_crowded
from app.ledger.nodes import beat
from app.ledger.record import cancellations, record_starts, take
from app.ledger.recover import Silence, find_suspects, hand_over, own_pending

from .conftest import START, SampleTask, Store, wait_until

NOW = to_us(START)
Start = Callable[..., LedgerScheduler]


def claim_with_room(store: Store, room: dict[str, int] | None, *, after_s: float = 0) -> list[str]:
    with write_transaction(store.engine) as connection:
        claimed = claim(connection, owner="n1", now=NOW + round(after_s * 1_000_000), room=room)
    return sorted(ticket.job_id for ticket in claimed.tickets)


def due_jobs(store: Store, *ids: str, **job: Any) -> None:
    for job_id in ids:
        store.add(job_id, **job)
        store.due_at(START, job_id)


class TestRoom:
    def test_a_node_that_is_alone_takes_all(self, store: Store) -> None:
        due_jobs(store, "a", "b", "c")
        assert claim_with_room(store, None) == ["a", "b", "c"]

    def test_a_node_takes_as_many_as_it_has_places(self, store: Store) -> None:
        due_jobs(store, "a", "b", "c")
        assert claim_with_room(store, {"default": 2}) == ["a", "b"]

    def test_the_places_of_one_executor_are_none_of_anothers(self, store: Store) -> None:
        due_jobs(store, "a", "b", "c")
        due_jobs(store, "fleet-1", "fleet-2", executor="celery")
        assert claim_with_room(store, {"default": 1, "process": 7, "celery": 5000}) == ["a", "fleet-1", "fleet-2"]

    def test_a_full_executor_is_left_to_others_for_a_while_only(self, store: Store) -> None:
        due_jobs(store, "a")
        due_jobs(store, "b", executor="process")
        room = {"default": 0, "process": 3}
        assert claim_with_room(store, room) == ["b"]
        assert claim_with_room(store, room, after_s=LEFT_TO_OTHERS_US / 1_000_000) == []
        assert claim_with_room(store, room, after_s=LEFT_TO_OTHERS_US / 1_000_000 + 0.01) == ["a"]


class TestCrowd:
    """A job that does not coalesce has more runs pending than instances: they go one after the other, wherever."""

    def tickets(self, store: Store, max_instances: int) -> list[Ticket]:
        store.add(coalesce=False, max_instances=max_instances)
        store.due_at(START)
        return sorted(store.claim(START + timedelta(seconds=3)).tickets, key=lambda ticket: ticket.run_id)

    def crowded(self, store: Store, *tickets: Ticket) -> set[str]:
        with store.engine.connect() as connection:
            return find_crowded(connection, tickets)

    def set_run(self, store: Store, ticket: Ticket, **values: Any) -> None:
        with write_transaction(store.engine) as connection:
            connection.execute(update(runs).where(runs.c.run_id == ticket.run_id).values(**values))

    def test_only_the_first_ones_may_start(self, store: Store) -> None:
        tickets = self.tickets(store, 2)
        assert self.crowded(store, *tickets) == {ticket.run_id for ticket in tickets[2:]}

    def test_one_that_runs_anywhere_counts(self, store: Store) -> None:
        first, second, third, _ = self.tickets(store, 1)
        self.set_run(store, third, outcome="running", owner="n2")
        assert self.crowded(store, first, second) == {first.run_id, second.run_id}
        self.set_run(store, third, outcome="success")
        assert self.crowded(store, first, second) == {second.run_id}

    def test_one_whose_start_is_on_record_waits_for_nobody(self, store: Store) -> None:
        first, second, *_ = self.tickets(store, 1)
        self.set_run(store, second, outcome="running")
        assert self.crowded(store, first, second) == {first.run_id}

    def test_a_long_queue_is_looked_through_once(self, store: Store) -> None:
        store.add(coalesce=False, misfire_grace_time=2000)
        store.due_at(START)
        tickets = store.claim(START + timedelta(seconds=1000)).tickets
        template = next(iter(store.runs()))
        with write_transaction(store.engine) as connection:
            rows = [
                {**template, "run_id": f"{n:032x}", "job_id": f"job-{n % 10}", "scheduled_for": n}
                for n in range(20_000)
            ]
            connection.execute(insert(runs), rows)
        tickets += [replace(tickets[0], run_id=row["run_id"], job_id=row["job_id"]) for row in rows]
        began = time.monotonic()
        crowded = self.crowded(store, *tickets)
        assert len(crowded) == len(tickets) - 11
        assert time.monotonic() - began < 5

    def test_a_worker_does_not_take_one_that_must_wait(self, store: Store) -> None:
        first, second, *_ = self.tickets(store, 1)
        with write_transaction(store.engine) as connection:
            at = {"owner": "n1", "epoch": 1, "worker": "w1", "node": "worker-1", "now": NOW}
            assert take(connection, run_id=second.run_id, **at) is None
            assert take(connection, run_id=first.run_id, **at) == first


class TestWorkersDoor:
    def ticket(self, store: Store, **job: Any) -> Ticket:
        store.add(executor="celery", **job)
        store.due_at(START)
        (ticket,) = store.claim(START).tickets
        return ticket

    def take(self, store: Store, ticket: Ticket, **changes: Any) -> Ticket | None:
        at = {"owner": "n1", "epoch": ticket.epoch, "worker": "w1", "node": "worker-1", "now": NOW, **changes}
        with write_transaction(store.engine) as connection:
            return take(connection, run_id=ticket.run_id, **at)

    def test_it_opens_once(self, store: Store) -> None:
        ticket = self.ticket(store, time_limit=7)
        assert self.take(store, ticket) == ticket
        assert ticket.time_limit == 7
        (run,) = store.runs()
        assert (run["outcome"], run["owner"], run["node"]) == ("running", "w1", "worker-1")
        assert self.take(store, ticket, worker="w2") is None

    def test_the_same_worker_may_ask_again_when_its_commits_fate_was_unknown(self, store: Store) -> None:
        ticket = self.ticket(store)
        assert self.take(store, ticket) == self.take(store, ticket)

    def test_a_message_of_an_older_epoch_or_owner_finds_it_shut(self, store: Store) -> None:
        ticket = self.ticket(store)
        assert self.take(store, ticket, epoch=2) is None
        assert self.take(store, ticket, owner="n9") is None
        assert [run["outcome"] for run in store.runs()] == ["pending"]

    def test_one_that_comes_too_late_is_missed(self, store: Store) -> None:
        ticket = self.ticket(store, misfire_grace_time=5)
        assert self.take(store, ticket, now=NOW + 6_000_000) is None
        assert [run["outcome"] for run in store.runs()] == ["missed"]

    def test_who_is_to_stop_is_told(self, store: Store) -> None:
        ticket = self.ticket(store)
        self.take(store, ticket)
        with store.engine.connect() as connection:
            assert cancellations(connection, owner="w1") == set()
        store.ledger.cancel_run(ticket.run_id, "alice")
        with store.engine.connect() as connection:
            assert cancellations(connection, owner="w1") == {ticket.run_id}


def test_peers_are_the_other_schedulers_that_answer(store: Store) -> None:
    silence = Silence()
    with write_transaction(store.engine) as connection:
        for node_id, kind, state in (
            ("n1", "scheduler", "running"),
            ("n2", "scheduler", "running"),
            ("n3", "scheduler", "stopping"),
            ("w1", "worker", "running"),
        ):
            beat(
                connection,
                node_id=node_id,
                kind=kind,  # type: ignore[arg-type]
                name=node_id,
                version="0",
                state=state,  # type: ignore[arg-type]
                started_at=NOW,
                lock_file=None,
                stats={},
                now=NOW,
            )
        suspects = find_suspects(connection, me="n1", silence=silence, lost_after_s=30)
    assert [node.node_id for node in suspects.peers] == ["n2"]


def test_a_run_that_was_handed_over_is_the_others_and_its_old_door_is_shut(store: Store) -> None:
    store.add()
    store.due_at(START)
    (ticket,) = store.claim(START).tickets
    with write_transaction(store.engine) as connection:
        hand_over(connection, [ticket.run_id], me="n1", to="n2")
        (given,) = own_pending(connection, me="n2")
        assert given.epoch == ticket.epoch + 1
        assert not record_starts(connection, [ticket], owner="n1", node="n1", now=NOW)
        assert record_starts(connection, [given], owner="n2", node="n2", now=NOW)


def test_two_schedulers_share_a_burst(store: Store, start_node: Start) -> None:
    release = threading.Event()
    store.tasks["sample"] = SampleTask(lambda: release.wait(20))
    for name in ("a", "b"):
        start_node(name, threads=4)
    wait_until(lambda: len(store.ledger.nodes()) == 2, "both nodes")
    assert {node.kind for node in store.ledger.nodes()} == {"scheduler"}
    due = datetime.now(UTC) + timedelta(seconds=2.5)
    for number in range(8):
        store.add(f"job-{number}")
        store.due_at(due, f"job-{number}")
    counted = wait_until(lambda: _running_by_node(store) if _running(store) == 8 else None, "all of them running")
    release.set()
    assert counted == {"a": 4, "b": 4}


def test_a_full_node_hands_what_waits_to_one_that_has_room(store: Store, start_node: Start) -> None:
    release = threading.Event()
    store.tasks["sample"] = SampleTask(lambda: release.wait(20))
    for number in range(6):
        store.add(f"job-{number}", is_enabled=False)
    full = start_node("full", threads=2)
    for number in range(6):
        full._ledger.request_run(f"job-{number}", "7")
    wait_until(lambda: _running(store) == 2, "a full node")
    start_node("idle", threads=4)
    counted = wait_until(lambda: _running_by_node(store) if _running(store) == 6 else None, "the others' start")
    release.set()
    assert counted == {"full": 2, "idle": 4}


def test_what_a_node_that_is_gone_by_now_gave_is_found(store: Store, start_node: Start) -> None:
    """The giver may have stopped before the other has ever seen it as its neighbour."""
    store.tasks["sample"] = SampleTask(lambda: None)
    store.add(trigger={"type": "interval", "weeks": 50, "start_date": "2026-01-01T00:00:00+00:00", "timezone": "UTC"})
    node = start_node("a")
    turn = node._clocks.turn
    wait_until(lambda: node._clocks.turn > turn, "the turn in which it adopts what it was left at its start")
    assert node._peers == []
    now = to_us(datetime.now(UTC))
    with write_transaction(store.engine) as connection:
        connection.execute(update(jobs).values(next_run_time=now))
        (ticket,) = claim(connection, owner="gone", now=now).tickets
        hand_over(connection, [ticket.run_id], me="gone", to=node.node_id)
    wait_until(lambda: store.runs(run_id=ticket.run_id, node="a", outcome="success"), "its run")


def test_instances_are_counted_over_all_nodes(store: Store, start_node: Start) -> None:
    going = Counter[str]()
    most: list[int] = []
    lock = threading.Lock()

    def work(run: RunContext) -> None:
        with lock:
            going["now"] += 1
            most.append(going["now"])
        threading.Event().wait(0.05)
        with lock:
            going["now"] -= 1

    store.tasks["sample"] = SampleTask(work, wants_run=True)
    store.add(coalesce=False, max_instances=2, misfire_grace_time=300)
    store.due_at(datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=30))
    for name in ("a", "b", "c"):
        start_node(name, threads=8)
    wait_until(lambda: len(store.runs(outcome="success")) >= 30, "the backlog's end", timeout_s=40)
    assert max(most) <= 2


def _running(store: Store) -> int:
    return len(store.runs(outcome="running"))


def _running_by_node(store: Store) -> dict[str, int]:
    return dict(Counter(run["node"] for run in store.runs(outcome="running")))
