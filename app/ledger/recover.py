"""The reaper: what becomes of the runs of a node that no longer answers.

Two thresholds. A silent node's pending runs go to a live one after PENDING_AFTER_S: safe at any time, because
the higher epoch shuts the old owner's door. Its running runs are called lost only after the longer `lost_after_s`,
because a task that holds the interpreter lock silences its node too, or at once when the node's lock file
proves it dead.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, select, update

from app.db.clock import to_us
from app.db.jobstore_tables import IS_ACTIVE, Row, nodes, runs
from app.ledger.claim import insert_runs
from app.ledger.nodes import LIVING, Node, is_proof_of_death, list_nodes, mark_dead
from app.ledger.outbox import announce, lost_events
from app.ledger.retries import IS_STOPPED, after_loss
from app.ledger.runs import TICKET_COLUMNS, Ticket

logger = logging.getLogger(__name__)

PENDING_AFTER_S = 1.6
_LONGEST_GAP_S = 2.0
"""Between two looks of the reaper: after a longer gap it was the reaper who was away, or the store that is slow."""
_GAP_COUNTS_S = 0.8
"""What counts of a longer gap: by itself too little for a suspicion, yet enough that one grows where every look takes
so long."""


@dataclass(slots=True)
class _Watch:
    heartbeat: object
    silent_s: float = 0.0


@dataclass(slots=True)
class Silence:
    """How long each other node has been silent, by this process's monotonic clock.

    Only time in which the reaper itself reached the store counts, and no two clocks are compared: a node is
    silent while its heartbeat does not change.
    """

    clock: Callable[[], float] = time.monotonic
    _watched: dict[str, _Watch] = field(default_factory=dict)
    _looked_at: float | None = None

    def observe(self, nodes: Iterable[Node]) -> dict[str, float]:
        """The silence of each node in seconds, after one more look that reached the store."""
        now = self.clock()
        gap = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        counted = gap if gap <= _LONGEST_GAP_S else _GAP_COUNTS_S
        watched: dict[str, _Watch] = {}
        for node in nodes:
            known = self._watched.get(node.node_id)
            if known is None or known.heartbeat != node.heartbeat_at:
                watched[node.node_id] = _Watch(node.heartbeat_at)
            else:
                known.silent_s += counted
                watched[node.node_id] = known
        self._watched = watched
        return {node_id: watch.silent_s for node_id, watch in watched.items()}


@dataclass(slots=True)
class Recovered:
    """What one look of the reaper found: runs for this node to start, and runs that are lost."""

    tickets: list[Ticket] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Suspects:
    """Owners whose pending runs may be taken over, those of them whose running runs are lost, and the nodes
    that are proved dead."""

    silent: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    dead: list[Node] = field(default_factory=list)
    beats: dict[str, int] = field(default_factory=dict)
    """The heartbeats that the silent ones were seen with: one that has beaten since is no suspect any more."""
    peers: list[Node] = field(default_factory=list)
    """The other schedulers that answer: not suspects, but who is left to share the work with."""

    def __bool__(self) -> bool:
        return bool(self.silent or self.dead)


def find_suspects(connection: Connection, *, me: str, silence: Silence, lost_after_s: float) -> Suspects:
    """Looks at every other node and at every owner of an active run. Reads only."""
    # The owners first: whoever owns a run has had its row in `nodes` before, so that one without it is really gone.
    # The other way round, a node that begins between the two would seem so.
    owners = connection.execute(select(runs.c.owner).where(IS_ACTIVE, runs.c.owner != me).distinct()).scalars().all()
    known = {node.node_id: node for node in list_nodes(connection, living_or=owners) if node.node_id != me}
    silent_s = silence.observe(known.values())
    suspects = Suspects(
        dead=[node for node in known.values() if node.state in LIVING and is_proof_of_death(node.lock_file)]
    )
    dead = {node.node_id for node in suspects.dead}
    suspects.peers = [
        node
        for node in known.values()
        if node.kind == "scheduler"
        and node.state == "running"
        and node.node_id not in dead
        and silent_s[node.node_id] < PENDING_AFTER_S
    ]
    for owner in owners:
        node = known.get(owner)
        if node is None or node.state not in LIVING or owner in dead or silent_s[owner] >= lost_after_s:
            suspects.gone.add(owner)
        if owner in suspects.gone or silent_s[owner] >= PENDING_AFTER_S:
            suspects.silent.add(owner)
        if node is not None and node.state in LIVING and owner not in dead:
            suspects.beats[owner] = to_us(node.heartbeat_at)
    return suspects


def recover(connection: Connection, *, me: str, suspects: Suspects, now: int, alerts: bool = False) -> Recovered:
    """Takes over the pending runs of the silent owners and calls the running runs of those gone lost.

    A lost run of a job with `retry_on_loss` gets another attempt, a row of its own, owned by this node. `alerts`: lost
    runs are announced.
    """
    found = Recovered()
    suspects = _still_suspect(connection, suspects)
    if suspects.silent:
        _take_over(connection, me=me, owners=suspects.silent)
    if suspects.dead:
        mark_dead(connection, [node.node_id for node in suspects.dead])
    if suspects.gone:
        reason = "its process died or fell silent in the middle"
        lost = _call_lost(connection, suspects.gone, reason=reason, now=now)
        found.lost = [row["run_id"] for row in lost]
        for row in lost:
            logger.error("run %s of job %s is lost: its node %s is gone", row["run_id"], row["job_id"], row["node"])
        _run_again(connection, lost, owner=me, now=now)
        announce(connection, lost_events(lost, reason=reason), alerts=alerts, now=now)
    found.tickets = own_pending(connection, me=me)
    return found


def _still_suspect(connection: Connection, suspects: Suspects) -> Suspects:
    """Without the nodes that have beaten since they were looked at: this process may have been away in between."""
    if not suspects.beats:
        return suspects
    query = select(nodes.c.node_id, nodes.c.heartbeat_at).where(nodes.c.node_id.in_(suspects.beats))
    back = {node_id for node_id, heartbeat_at in connection.execute(query) if heartbeat_at != suspects.beats[node_id]}
    return replace(suspects, silent=suspects.silent - back, gone=suspects.gone - back)


def own_pending(connection: Connection, *, me: str) -> list[Ticket]:
    """Every pending run of this node: what it was handed, and what a commit of unknown fate may have left it."""
    columns = [runs.c[name] for name in TICKET_COLUMNS]
    query = select(*columns).where(IS_ACTIVE, runs.c.outcome == "pending", runs.c.owner == me)
    return [Ticket(**row) for row in connection.execute(query).mappings()]


def hand_back(connection: Connection, *, me: str) -> None:
    """Gives up what this node claimed and never started: the next node that looks takes it over at once."""
    connection.execute(
        update(runs)
        .where(IS_ACTIVE, runs.c.outcome == "pending", runs.c.owner == me)
        .values(owner="", epoch=runs.c.epoch + 1)
    )


def hand_over(connection: Connection, run_ids: Collection[str], *, me: str, to: str) -> None:
    """Gives pending runs of this node to the node `to`, which has a place for them and looks for such gifts."""
    connection.execute(
        update(runs)
        .where(runs.c.run_id.in_(run_ids), runs.c.outcome == "pending", runs.c.owner == me)
        .values(owner=to, epoch=runs.c.epoch + 1)
    )


def release(connection: Connection, *, me: str, now: int, alerts: bool = False) -> None:
    """The end of an orderly stop: hands back what never started, calls lost what could not finish.

    The next attempt of a lost run, where its job wants one, is for the next node that looks.
    """
    hand_back(connection, me=me)
    reason = "its node was stopped before it ended"
    lost = _call_lost(connection, {me}, reason=reason, now=now)
    _run_again(connection, lost, owner="", now=now)
    announce(connection, lost_events(lost, reason=reason), alerts=alerts, now=now)


def _call_lost(connection: Connection, owners: Collection[str], *, reason: str, now: int) -> Sequence[Row]:
    """Ends the running runs of `owners` as lost: their rows, as they were."""
    running = select(runs).where(IS_ACTIVE, runs.c.outcome == "running", runs.c.owner.in_(owners))
    # Locked: one that ends between the two statements would be a success that runs again.
    lost = connection.execute(running.with_for_update()).mappings().all()
    if lost:
        ids = [row["run_id"] for row in lost]
        ended = update(runs).where(runs.c.run_id.in_(ids))
        connection.execute(ended.values(outcome="lost", finished_at=now, reason=reason))
    return lost


def _run_again(connection: Connection, lost: Iterable[Row], *, owner: str, now: int) -> None:
    attempts = {
        row["run_id"]: attempt for row in lost if (attempt := after_loss(row, owner=owner, now=now)) is not None
    }
    if attempts:
        query = select(runs.c.run_id).where(runs.c.run_id.in_(attempts), IS_STOPPED)
        stopped = set(connection.execute(query).scalars())
        insert_runs(connection, [attempt for run_id, attempt in attempts.items() if run_id not in stopped])


def _take_over(connection: Connection, *, me: str, owners: set[str]) -> None:
    pending = update(runs).where(IS_ACTIVE, runs.c.outcome == "pending")
    mine = {"owner": me, "epoch": runs.c.epoch + 1}
    # What belongs to nobody was left for whoever looks: no news.
    connection.execute(pending.where(runs.c.owner.in_(owners & {""})).values(mine))
    taken = connection.execute(pending.where(runs.c.owner.in_(owners - {""})).values(mine))
    if taken.rowcount:
        logger.warning("took over %d pending runs of nodes that do not answer", taken.rowcount)
