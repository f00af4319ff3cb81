"""The reaper: silence, proofs of death, take-over, loss."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.clock import to_us
from app.db.engines import read_transaction, write_transaction
from app.ledger.nodes import LockFile, beat, is_proof_of_death, list_nodes
from app.ledger.record import record_starts
from app.ledger.recover import Recovered, Silence, find_suspects, hand_back, own_pending, recover, release

from .conftest import START, Store, seconds

NOW = to_us(START + seconds(60))
HOLD = """
import sys; from pathlib import Path; from app.ledger.nodes import LockFile
LockFile(Path(sys.argv[1])); print("held", flush=True); sys.stdin.read()
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def heartbeat(store: Store, node: str, at: int, *, state: str = "running", lock_file: str | None = None) -> None:
    with write_transaction(store.engine) as connection:
        beat(
            connection,
            node_id=node,
            name=node,
            version="0",
            state=state,  # type: ignore[arg-type]
            started_at=0,
            lock_file=lock_file,
            stats={},
            now=at,
        )


def claim_one(store: Store, owner: str, *, started: bool = False, retry: bool = False) -> str:
    store.add(retry_on_loss=retry)
    store.due_at(START)
    (ticket,) = store.claim(START, owner=owner).tickets
    if started:
        with write_transaction(store.engine) as connection:
            assert record_starts(connection, [ticket], owner=owner, node=owner, now=to_us(START))
    return ticket.run_id


def reap(store: Store, silence: Silence, me: str = "n2", lost_after_s: float = 30) -> Recovered:
    with read_transaction(store.engine) as connection:
        suspects = find_suspects(connection, me=me, silence=silence, lost_after_s=lost_after_s)
    with write_transaction(store.engine) as connection:
        return recover(connection, me=me, suspects=suspects, now=NOW)


def reap_for(store: Store, clock: Clock, silence: Silence, for_s: int) -> Recovered:
    found = reap(store, silence)
    for _ in range(for_s):
        clock.now += 1
        found = reap(store, silence)
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def silence(clock: Clock) -> Silence:
    return Silence(clock)


def test_a_silent_nodes_pending_run_is_taken_over_and_its_old_door_shut(
    store: Store, clock: Clock, silence: Silence
) -> None:
    run_id = claim_one(store, "n1")
    heartbeat(store, "n1", 1)
    assert reap_for(store, clock, silence, 1).tickets == []
    (ticket,) = reap_for(store, clock, silence, 1).tickets
    assert (ticket.run_id, ticket.epoch) == (run_id, 2)
    with write_transaction(store.engine) as connection:
        old = own_pending(connection, me="n1")
    assert old == []


def test_a_node_that_beats_keeps_its_runs(store: Store, clock: Clock, silence: Silence) -> None:
    claim_one(store, "n1")
    for turn in range(10):
        heartbeat(store, "n1", turn)
        assert reap(store, silence).tickets == []
        clock.now += 1


def test_running_runs_are_lost_only_after_the_longer_silence(store: Store, clock: Clock, silence: Silence) -> None:
    claim_one(store, "n1", started=True)
    heartbeat(store, "n1", 1)
    reap_for(store, clock, silence, 29)
    assert store.runs()[0]["outcome"] == "running"
    reap_for(store, clock, silence, 1)
    assert store.runs()[0]["outcome"] == "lost"


def test_silence_does_not_count_while_the_reaper_was_away(store: Store, clock: Clock, silence: Silence) -> None:
    claim_one(store, "n1", started=True)
    heartbeat(store, "n1", 1)
    reap(store, silence)
    clock.now += 3600
    reap(store, silence)
    assert store.runs()[0]["outcome"] == "running"


def test_silence_grows_where_every_look_takes_long(store: Store, clock: Clock, silence: Silence) -> None:
    """A network to the store on which a turn takes more than two seconds."""
    claim_one(store, "n1", started=True)
    heartbeat(store, "n1", 1)
    for _ in range(20):
        reap(store, silence)
        clock.now += 2.5
    assert store.runs()[0]["outcome"] == "running"
    for _ in range(30):
        reap(store, silence)
        clock.now += 2.5
    assert store.runs()[0]["outcome"] == "lost"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    path = tmp_path / "node.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.communicate()


def test_a_free_lock_file_proves_the_death_at_once(
    store: Store, silence: Silence, holder: tuple[Path, subprocess.Popen[str]]
) -> None:
    path, process = holder
    claim_one(store, "n1", started=True)
    heartbeat(store, "n1", 1, lock_file=str(path))
    assert not is_proof_of_death(str(path))
    assert reap(store, silence).lost == []
    process.kill()
    process.wait()
    assert is_proof_of_death(str(path))
    assert len(reap(store, silence).lost) == 1
    with read_transaction(store.engine) as connection:
        assert [node.state for node in list_nodes(connection)] == ["dead"]


def test_a_missing_lock_file_proves_nothing(tmp_path: Path) -> None:
    assert not is_proof_of_death(str(tmp_path / "elsewhere.lock"))
    assert not is_proof_of_death(None)


def test_a_released_lock_file_is_gone(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "locks" / "a.lock")
    lock.release()
    assert not lock.path.exists()


def test_a_lock_file_that_is_left_proves_the_end(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "locks" / "a.lock")
    assert not is_proof_of_death(str(lock.path))
    lock.leave()
    assert is_proof_of_death(str(lock.path))


def test_a_lost_run_is_run_again_only_where_its_job_says_so(store: Store, silence: Silence) -> None:
    first = claim_one(store, "gone", started=True, retry=True)
    found = reap(store, silence)
    assert found.lost == [first]
    (again,) = found.tickets
    assert (again.attempt, again.job_id) == (2, "job")
    assert first in (store.runs(attempt=2)[0]["reason"] or "")


@pytest.mark.parametrize("stop", ["pause_job", "delete_job"])
def test_a_lost_run_of_a_job_that_was_stopped_is_not_run_again(store: Store, silence: Silence, stop: str) -> None:
    claim_one(store, "gone", started=True, retry=True)
    getattr(store.ledger, stop)("job", by="test")
    assert len(reap(store, silence).lost) == 1
    assert store.runs(attempt=2) == []


def test_runs_of_an_owner_without_a_row_are_nobodys(store: Store, silence: Silence) -> None:
    claim_one(store, "")
    assert len(reap(store, silence).tickets) == 1


def test_a_stop_hands_back_what_never_started(store: Store) -> None:
    claim_one(store, "n1")
    with write_transaction(store.engine) as connection:
        hand_back(connection, me="n1")
    (run,) = store.runs()
    assert (run["outcome"], run["owner"], run["epoch"]) == ("pending", "", 2)


def test_a_stop_calls_lost_what_it_could_not_finish(store: Store) -> None:
    claim_one(store, "n1", started=True)
    with write_transaction(store.engine) as connection:
        release(connection, me="n1", now=NOW)
    (run,) = store.runs()
    assert (run["outcome"], run["finished_at"]) == ("lost", NOW)
    assert "stopped" in run["reason"]


def test_a_stop_leaves_the_second_attempt_to_the_next_node(store: Store, silence: Silence) -> None:
    claim_one(store, "n1", started=True, retry=True)
    with write_transaction(store.engine) as connection:
        release(connection, me="n1", now=NOW)
    assert [(run["attempt"], run["outcome"], run["owner"]) for run in store.runs()] == [
        (1, "lost", "n1"),
        (2, "pending", ""),
    ]
    (again,) = reap(store, silence).tickets
    assert again.attempt == 2


def test_a_second_attempt_that_is_lost_too_is_not_run_again(store: Store, silence: Silence) -> None:
    claim_one(store, "gone", started=True, retry=True)
    (again,) = reap(store, silence, me="n2").tickets
    with write_transaction(store.engine) as connection:
        assert record_starts(connection, [again], owner="n2", node="n2", now=NOW)
    found = reap(store, silence, me="n3")
    assert found.lost == [again.run_id]
    assert found.tickets == []
