"""The protocol with one of its rules taken away. The search must find a broken promise in each of them.

Each is a context in which the ledger's own code runs with one statement or function replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection, bindparam, select, update

from app.db.jobstore_tables import IS_ACTIVE, runs
from app.ledger import Ledger, retries
from app.ledger import apscheduler_overrides as overrides
from app.ledger import claim as claim_module
from app.ledger import dispatch as dispatch_module
from app.ledger import ledger as ledger_module
from app.ledger import record as record_module
from app.ledger import recover as recover_module
from app.ledger.claim import Claimed
from app.ledger.dispatch import Dispatcher
from tests.model.histories import Search
from tests.model.scenarios import ALONE, BACKLOG, EDITED, LOCK_FILES, LONG, PLAIN, WAITING


@dataclass(frozen=True)
class Mutant:
    """A rule taken away: `applied()` is the context without it; `unique_fires` False has no unique key either.

    `seek` is the search that finds what it `breaks`. Each is sought where it shows soonest; the whole search
    finds all of them too, in up to two minutes each.
    """

    name: str
    applied: Callable[[], AbstractContextManager[Any]]
    seek: Callable[[Search], None]
    breaks: str
    unique_fires: bool = True


def _by_faults(search: Search) -> None:
    search.sweep((PLAIN,))


def _by_retries(search: Search) -> None:
    search.sweep((ALONE,))


def _by_full_lanes(search: Search) -> None:
    search.sweep((LOCK_FILES,), ("error",))


def _by_stale_views(search: Search) -> None:
    search.overlap((LONG,))


def _by_edits(search: Search) -> None:
    search.edit((EDITED,))


def _by_chains(search: Search) -> None:
    search.chain((WAITING,), gaps=(25,))


def _by_backlogs(search: Search) -> None:
    search.chain((BACKLOG,), gaps=(25,))


def _by_overlaps(search: Search) -> None:
    search.overlap((PLAIN,))


def _by_races(search: Search) -> None:
    search.race((EDITED,))


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _door_without_epoch() -> Iterator[None]:
    """A run that came back to its first owner may be started with the old ticket."""
    with _door(runs.c.run_id == bindparam("b_run_id"), runs.c.outcome == "pending", _OWNER):
        yield


@contextmanager
def _door_without_owner() -> Iterator[None]:
    """Whoever has a ticket may start it while it is pending, and starts what is running too when in doubt."""
    with _door(runs.c.run_id == bindparam("b_run_id"), runs.c.outcome == "pending"):
        yield


@contextmanager
def _door_always_open() -> Iterator[None]:
    """The start is on record, and nobody asks whether it had been before."""
    real = record_module.record_starts

    def record_starts(connection: Connection, tickets: Any, **named: Any) -> Any:
        real(connection, tickets, **named)
        return {ticket.run_id for ticket in tickets}

    with patch.object(dispatch_module, "record_starts", record_starts):
        yield


_OWNER = runs.c.owner == bindparam("b_owner")


@contextmanager
def _door(*conditions: Any) -> Iterator[None]:
    start = (
        update(runs)
        .where(*conditions)
        .values(outcome="running", started_at=bindparam("b_now"), node=bindparam("b_node"))
    )
    with patch.object(record_module, "_START", start):
        yield


@contextmanager
def _claim_in_two_transactions() -> Iterator[None]:
    """The next run time is advanced and committed; then the run is inserted."""
    real_claim, real_insert = claim_module.claim, claim_module.insert_runs
    here = threading.local()

    def insert_runs(connection: Connection, rows: Any) -> Any:
        put_off = getattr(here, "put_off", None)
        if put_off is None:
            return real_insert(connection, rows)
        put_off.extend(rows)
        return []

    def claim(connection: Connection, **named: Any) -> Claimed:
        rows: list[Any] = []
        here.put_off = rows
        try:
            claimed = real_claim(connection, **named)
        finally:
            here.put_off = None
        if rows:
            _commit_between(connection)
            claimed.tickets = real_insert(connection, rows)
        return claimed

    with ExitStack() as stack:
        stack.enter_context(patch.object(claim_module, "insert_runs", insert_runs))
        for module in (overrides, ledger_module):
            stack.enter_context(patch.object(module, "claim", claim))
        yield


def _commit_between(connection: Connection) -> None:
    connection.dialect.do_commit(connection.connection)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _run_without_advance() -> Iterator[None]:
    """APScheduler's own order: the fire is handed on, and only a later transaction advances the job."""
    real = claim_module.insert_runs

    def insert_runs(connection: Connection, rows: Any) -> Any:
        tickets = real(connection, rows)
        if rows:
            _commit_between(connection)
        return tickets

    with patch.object(claim_module, "insert_runs", insert_runs):
        yield


@contextmanager
def _finish_of_anybody() -> Iterator[None]:
    """An end counts for its run whatever became of it meanwhile: one that was lost and run again succeeds too."""
    whose = (runs.c.run_id == bindparam("b_run_id"), runs.c.outcome.in_(("running", "lost")))
    finish = update(runs).where(*whose).values(**record_module._END_VALUES)
    with patch.object(record_module, "_FINISH", finish):
        yield


@contextmanager
def _takeover_of_running() -> Iterator[None]:
    """The reaper takes running runs over with the pending ones, and has them started again."""

    def take_over(connection: Connection, *, me: str, owners: set[str]) -> None:
        statement = update(runs).where(IS_ACTIVE, runs.c.owner.in_(owners))
        connection.execute(statement.values(owner=me, epoch=runs.c.epoch + 1, outcome="pending"))

    with patch.object(recover_module, "_take_over", take_over):
        yield


@contextmanager
def _nobody_takes_over() -> Iterator[None]:
    """Pending runs stay with the node that claimed them."""
    with patch.object(recover_module, "_take_over", lambda *_args, **_named: None):
        yield


@contextmanager
def _lost_runs_always_again() -> Iterator[None]:
    """A lost run is run again whatever its job says."""
    real = retries.after_loss

    def after_loss(row: Any, **named: Any) -> Any:
        return real({**row, "retry_on_loss": True}, **named)

    with patch.object(recover_module, "after_loss", after_loss):
        yield


@contextmanager
def _lost_at_once() -> Iterator[None]:
    """Running runs are called lost after the silence that is enough for pending ones."""
    real = recover_module.find_suspects

    def find_suspects(*args: Any, **named: Any) -> Any:
        return real(*args, **{**named, "lost_after_s": 1.0})

    with patch.object(overrides, "find_suspects", find_suspects):
        yield


@contextmanager
def _edits_forget_what_is_due() -> Iterator[None]:
    """An edit changes the trigger without a claim of the moments that are due."""
    with patch.object(Ledger, "_settle", lambda *_args: None):
        yield


@contextmanager
def _no_adoption() -> Iterator[None]:
    """What a commit of unknown fate left to a node is not looked for."""
    with patch.object(overrides, "own_pending", lambda *_args, **_named: []):
        yield


@contextmanager
def _unlocked_losses() -> Iterator[None]:
    """Runs are called lost from what was read, not from what is locked: one may end in between (PostgreSQL)."""

    def call_lost(connection: Connection, owners: Any, *, reason: str, now: int) -> Any:
        running = select(runs).where(IS_ACTIVE, runs.c.outcome == "running", runs.c.owner.in_(owners))
        lost = connection.execute(running).mappings().all()
        if lost:
            ended = update(runs).where(runs.c.run_id.in_([row["run_id"] for row in lost]))
            connection.execute(ended.values(outcome="lost", finished_at=now, reason=reason))
        return lost

    with patch.object(recover_module, "_call_lost", call_lost):
        yield


@contextmanager
def _no_instances_over_the_cluster() -> Iterator[None]:
    """A start counts the instances of its own node alone."""
    with patch.object(dispatch_module, "find_crowded", lambda *_args: set()):
        yield


@contextmanager
def _unlocked_claims() -> Iterator[None]:
    """Due jobs are read without their row locks (PostgreSQL)."""
    real = claim_module.due_jobs

    def due_jobs(*args: Any, **named: Any) -> Any:
        statement = real(*args, **named)
        statement._for_update_arg = None
        return statement

    with patch.object(claim_module, "due_jobs", due_jobs):
        yield


@contextmanager
def _reaper_with_an_old_view() -> Iterator[None]:
    """What a look found is carried out, however long ago it was."""
    with patch.object(recover_module, "_still_suspect", lambda _connection, suspects: suspects):
        yield


@contextmanager
def _gives_away_what_may_have_started() -> Iterator[None]:
    """A run whose start is of unknown fate is given to another node like one that waits."""
    real = Dispatcher.give_up

    def give_up(dispatcher: Dispatcher, *args: Any) -> Any:
        dispatcher._uncertain.clear()
        return real(dispatcher, *args)

    with patch.object(Dispatcher, "give_up", give_up):
        yield


MUTANTS = (
    Mutant("no unique key on the fires", _as_it_is, _by_edits, "twice", unique_fires=False),
    Mutant("no unique key on the attempts", _as_it_is, _by_retries, "twice", unique_fires=False),
    Mutant("no epoch in the start's door", _door_without_epoch, _by_chains, "is running"),
    Mutant("no owner and no epoch in the start's door", _door_without_owner, _by_chains, "is running"),
    Mutant("the start's door is always open", _door_always_open, _by_faults, "started twice"),
    Mutant("advance, commit, insert", _claim_in_two_transactions, _by_faults, "vanished"),
    Mutant(
        "insert, commit, advance, without the unique key", _run_without_advance, _by_faults, "twice", unique_fires=False
    ),
    Mutant("an end counts for a run that was run again", _finish_of_anybody, _by_faults, "run again"),
    Mutant("running runs are taken over like pending ones", _takeover_of_running, _by_faults, "started twice"),
    Mutant("nobody takes over", _nobody_takes_over, _by_faults, "is pending"),
    Mutant("lost runs are always run again", _lost_runs_always_again, _by_faults, "run again"),
    Mutant("lost after a short silence", _lost_at_once, _by_faults, "was called lost"),
    Mutant("a reaper that was away does not look again", _reaper_with_an_old_view, _by_stale_views, "was called lost"),
    Mutant("what may have started is given away", _gives_away_what_may_have_started, _by_full_lanes, "is running"),
    Mutant("edits forget what is due", _edits_forget_what_is_due, _by_edits, "vanished"),
    Mutant("no adoption after a commit of unknown fate", _no_adoption, _by_faults, "is pending"),
    Mutant("instances are counted on one node alone", _no_instances_over_the_cluster, _by_backlogs, "instances"),
)
"""Found on every store."""

CORE_MUTANTS = tuple(
    mutant
    for mutant in MUTANTS
    if mutant.name in ("no unique key on the fires", "no epoch in the start's door", "advance, commit, insert")
)
"""The rules that the promise rests on: sought on PostgreSQL too."""

CONCURRENT_MUTANTS = (
    Mutant("runs are called lost without a lock", _unlocked_losses, _by_overlaps, "was on record"),
    Mutant(
        "claims without row locks and without the unique key", _unlocked_claims, _by_races, "twice", unique_fires=False
    ),
)
"""Rules that only transactions side by side need: found on PostgreSQL."""
