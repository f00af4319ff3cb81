"""The dispatcher: takes claimed runs through the start's door to an executor, and records their ends.

One thread. It opens the door only for as many runs as have a free place in their executor, and lets starts and
ends share commits. What it could not record it keeps, and tries again until the store is back. It also keeps the
time: of attempts that must wait, and of the time limits of what runs.
"""

import heapq
import itertools
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from app.db.engines import database_now_us
from app.ledger import failpoints
from app.ledger.claim import find_crowded
from app.ledger.execution import Ending
from app.ledger.outbox import announce, ticket_event
from app.ledger.record import Finish, record_finishes, record_missed, record_starts
from app.ledger.runs import Ticket, is_too_late
from app.ledger.stopping import StopReason
from app.ledger.watchdog import EXIT_STATUS

logger = logging.getLogger(__name__)

_ENDS_LINGER_S = 0.05
_ENDS_ENOUGH = 256
"""While starts wait for the store, ends wait behind them, but never longer or in greater number than this."""
_RETRY_S = 0.25
_CROWDED_S = 0.25
"""Between two looks whether an instance elsewhere has ended for which a run of the same job waits here."""
_LIMITS_SPARE = 256
_COMPLAIN_S = 30.0
_LATENESS_KEPT = 1000

Submit = Callable[[Ticket, Callable[[Ending], None]], None]
"""Hands a started run to an executor; the callback takes its ending, in any thread."""
Stop = Callable[[Ticket, StopReason], float | None]
"""Asks a run in the executor to stop, or makes it, as the executor can. Returns at once; of a time limit that is not
over by the executor's own count, which may begin after the start on record, after how many seconds to try again."""

_Entry = tuple[int, int, int, Ticket]
"""A claimed run in a heap: the most urgent first, then the earliest."""
_Held = tuple[str, _Entry]
"""One in the order of the run ids, in which the runs of a job get its instances (see find_crowded): when the first of
them must wait for an instance elsewhere, so must all."""


@dataclass(slots=True)
class _Lane:
    """One executor: its places, and the claimed runs that wait for one; `held` by job where they wait for an
    instance of it to end, here or elsewhere, so that a long queue of one job is not gone through at every look."""

    places: int
    submit: Submit
    stop: Stop
    taken: int = 0
    waiting: list[_Entry] = field(default_factory=list)
    held: dict[str, list[_Held]] = field(default_factory=dict)

    def entries(self) -> list[_Entry]:
        """All that wait here."""
        held = itertools.chain.from_iterable(self.held.values())
        return [*self.waiting, *(entry for _, entry in held)]

    def hold(self, entry: _Entry, *, ahead: bool = False) -> None:
        """Lays an entry aside until an instance of its job ends; `ahead` of all others, because it may have one."""
        ticket = entry[-1]
        heapq.heappush(self.held.setdefault(ticket.job_id, []), ("" if ahead else ticket.run_id, entry))

    def let_go(self, job_id: str) -> None:
        """Brings the first of a job's runs that are held back to those that wait for a place."""
        if held := self.held.get(job_id):
            heapq.heappush(self.waiting, heapq.heappop(held)[1])
            if not held:
                del self.held[job_id]


@dataclass(slots=True)
class _Batch:
    starts: list[Ticket]
    ends: list[Finish]


@dataclass(slots=True)
class _Recorded:
    """What a batch came to: doors that opened, starts that must wait until a moment of the monotonic clock, and starts
    that must wait for an instance elsewhere."""

    opened: Collection[str]
    postponed: dict[str, float] = field(default_factory=dict)
    crowded: Collection[str] = ()


class Dispatcher:
    """Starts and ends of one node's runs.

    `lanes`: the executors by name, with their places. `lane_of` names the one that a run goes to. `transaction` opens
    a write transaction of the job store; `started` and `ended` are told, after the commit, of every run that began or
    ended here; `adopt` is called when the store may hold pending runs of this node that are not here. `alerts`: what
    happens is announced.
    """

    def __init__(
        self,
        *,
        node_id: str,
        node_name: str,
        lanes: Mapping[str, tuple[int, Submit, Stop]],
        lane_of: Callable[[Ticket], str],
        transaction: Callable[[], AbstractContextManager[Connection]],
        started: Callable[[Ticket], None],
        ended: Callable[[Ticket, Ending], None],
        adopt: Callable[[], None],
        alerts: bool,
    ) -> None:
        self._node_id, self._node_name, self._alerts = node_id, node_name, alerts
        self._lanes = {alias: _Lane(*lane) for alias, lane in lanes.items()}
        self._lane_of = lane_of
        self._transaction, self._started, self._ended, self._adopt = transaction, started, ended, adopt
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._known: set[str] = set()  # run ids that are here in any state
        self._uncertain: set[str] = set()  # those of which a start may be on record: its commit was of unknown fate
        self._in_progress: dict[str, Ticket] = {}
        self._instances: Counter[str] = Counter()
        self._ends: deque[tuple[float, Finish]] = deque()
        self._postponed: list[tuple[float, int, Ticket]] = []  # a heap by the moment (monotonic) of the next try
        self._crowded: dict[str, float] = {}  # by job, the moment of the next look for an instance that ended elsewhere
        self._limits: list[tuple[float, int, Ticket, StopReason]] = []  # a heap by the moment that a limit is over
        self._closing = self._stopped = self._recording = False
        self._retry_at = 0.0
        self._complained_at = float("-inf")
        self.outcomes: Counter[str] = Counter()
        self.lateness_ms: deque[float] = deque(maxlen=_LATENESS_KEPT)
        self._thread = threading.Thread(target=self._live, name="ledger-dispatcher", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def add(self, tickets: Iterable[Ticket], *, now: int) -> None:
        """Takes claimed runs in, at `now` (microseconds) of the database's clock, because this machine's may be an hour
        off. One that is here already stays as it is."""
        with self._changed:
            for ticket in tickets:
                if ticket.run_id not in self._known and not self._closing:
                    self._known.add(ticket.run_id)
                    if ticket.not_before is None:
                        self._enqueue(ticket)
                    else:
                        self._postpone(ticket, _moment(ticket.not_before, now))
            self._changed.notify_all()

    def close(self) -> None:
        """Starts nothing more, and forgets what waits: the caller hands it back to the store."""
        with self._changed:
            self._closing = True
            for lane in self._lanes.values():
                self._known.difference_update(ticket.run_id for *_, ticket in lane.entries())
                lane.waiting.clear()
                lane.held.clear()
            self._known.difference_update(ticket.run_id for *_, ticket in self._postponed)
            self._postponed.clear()
            self._crowded.clear()

    def drain(self, deadline: float) -> bool:
        """Waits until all that was started is on record as ended, at most until `deadline` (monotonic clock).

        True when it is. The thread ends in either case.
        """
        with self._changed:
            done = self._changed.wait_for(
                lambda: not (self._in_progress or self._ends or self._recording),
                max(0.0, deadline - time.monotonic()),
            )
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=5)
        return done

    def unrecorded(self) -> list[Finish]:
        """The ends that could not be recorded before `drain` gave up."""
        with self._changed:
            return [end for _, end in self._ends]

    def running(self) -> list[Ticket]:
        """The runs that are in progress here."""
        with self._changed:
            return list(self._in_progress.values())

    def queued(self) -> int:
        """How many claimed runs wait for a place."""
        with self._changed:
            return sum(len(lane.entries()) for lane in self._lanes.values())

    def free(self) -> dict[str, int]:
        """The places of each executor that nothing runs in and nothing waits for."""
        with self._changed:
            return {alias: max(0, lane.places - lane.taken - len(lane.waiting)) for alias, lane in self._lanes.items()}

    def give_up(self, room: Mapping[str, int]) -> list[Ticket]:
        """Takes runs out that wait for a place, the most urgent first, as many as `room` has places by executor."""
        given: list[Ticket] = []
        with self._changed:
            for alias, places in room.items():
                lane = self._lanes.get(alias)
                if lane is None or lane.taken < lane.places:
                    continue
                # One that may be running on record is started by nobody else.
                certain = [entry for entry in lane.waiting if entry[-1].run_id not in self._uncertain]
                leaving = heapq.nsmallest(places, certain)
                lane.waiting = [entry for entry in lane.waiting if entry not in leaving]
                heapq.heapify(lane.waiting)
                given.extend(entry[-1] for entry in leaving)
            self._known.difference_update(ticket.run_id for ticket in given)
            for ticket in given:
                self._let_go(ticket.job_id)  # those held may have waited for this one's end here
        return given

    def stop(self, run_ids: Collection[str], reason: StopReason) -> None:
        """Asks those of `run_ids` that are in progress here to stop."""
        with self._changed:
            tickets = [self._in_progress[run_id] for run_id in run_ids if run_id in self._in_progress]
        for ticket in tickets:
            self._stop_run(ticket, reason)

    def _stop_run(self, ticket: Ticket, reason: StopReason) -> float | None:
        lane = self._lanes.get(self._lane_of(ticket))
        return None if lane is None else lane.stop(ticket, reason)

    def _enforce(self, ticket: Ticket, reason: StopReason) -> None:
        left_s = self._stop_run(ticket, reason)
        if left_s is not None:
            with self._changed:
                heapq.heappush(self._limits, (time.monotonic() + left_s, next(self._order), ticket, reason))

    def _lane(self, ticket: Ticket) -> _Lane:
        # Without an executor of that name here, the default lane's run says so in its ending.
        return self._lanes.get(self._lane_of(ticket)) or self._lanes["default"]

    def _enqueue(self, ticket: Ticket) -> None:
        heapq.heappush(self._lane(ticket).waiting, self._entry(ticket))

    def _entry(self, ticket: Ticket) -> _Entry:
        return -ticket.priority, ticket.scheduled_for, next(self._order), ticket

    def _postpone(self, ticket: Ticket, until: float) -> None:
        heapq.heappush(self._postponed, (until, next(self._order), ticket))

    def _live(self) -> None:
        try:
            self._work()
        except BaseException:
            # A node without this thread would go on to claim and to say that it lives, and start nothing.
            logger.critical("the dispatcher failed: the process ends and is started anew", exc_info=True)
            os._exit(EXIT_STATUS)

    def _work(self) -> None:
        while True:
            with self._changed:
                while True:
                    overdue, batch = self._pop_limits(), self._next_batch()
                    if overdue or batch is not None:
                        break
                    if self._stopped:
                        return
                    self._changed.wait(self._patience())
                self._recording = batch is not None
            for ticket, reason in overdue:
                self._enforce(ticket, reason)
            if batch is not None:
                self._process(batch)

    def _process(self, batch: _Batch) -> None:
        try:
            recorded = self._record(batch)
        except Exception as error:  # the store is away, locked or full: nothing is forgotten
            self._complain(batch, error)
            self._put_back(batch)
        else:
            self._complained_at = float("-inf")
            self._hand_over(batch, recorded)

    def _complain(self, batch: _Batch, error: Exception) -> None:
        # Not at every try: a disk that is full may be the one that the logs are on.
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_S:
            self._complained_at = now
            logger.warning("%d starts and %d ends wait for the store: %s", len(batch.starts), len(batch.ends), error)

    def _patience(self) -> float | None:
        now = time.monotonic()
        moments = [self._limits[0][0]] if self._limits else []
        if now < self._retry_at:
            moments.append(self._retry_at)
        else:
            if self._postponed:
                moments.append(self._postponed[0][0])
            if self._crowded:
                moments.append(min(self._crowded.values()))
            if self._ends:
                moments.append(self._ends[0][0] + _ENDS_LINGER_S)
        return max(0.0, min(moments) - now) if moments else None

    def _pop_limits(self) -> list[tuple[Ticket, StopReason]]:
        """The runs in progress whose time limit is over by now."""
        now = time.monotonic()
        found: list[tuple[Ticket, StopReason]] = []
        while self._limits and self._limits[0][0] <= now:
            _, _, ticket, reason = heapq.heappop(self._limits)
            if ticket.run_id in self._in_progress:
                found.append((ticket, reason))
        return found

    def _next_batch(self) -> _Batch | None:
        now = time.monotonic()
        if now < self._retry_at:
            return None
        while self._postponed and self._postponed[0][0] <= now:
            self._enqueue(heapq.heappop(self._postponed)[-1])
        for job_id in [job_id for job_id, moment in self._crowded.items() if moment <= now]:
            del self._crowded[job_id]
            self._let_go(job_id)
        starts = [] if self._closing else [t for lane in self._lanes.values() for t in self._take(lane)]
        more_wait = any(lane.waiting for lane in self._lanes.values()) and not self._closing
        ends: list[Finish] = []
        if self._ends and (
            not (starts or more_wait)
            or len(self._ends) >= _ENDS_ENOUGH
            or time.monotonic() - self._ends[0][0] >= _ENDS_LINGER_S
        ):
            ends = [end for _, end in self._ends]
            self._ends.clear()
        return _Batch(starts, ends) if starts or ends else None

    def _take(self, lane: _Lane) -> list[Ticket]:
        """The next runs of a lane: as many as it has places, none beyond its job's instances."""
        taken: list[Ticket] = []
        while lane.waiting and lane.taken < lane.places:
            entry = heapq.heappop(lane.waiting)
            ticket = entry[-1]
            if self._instances[ticket.job_id] >= ticket.max_instances:
                lane.hold(entry, ahead=ticket.run_id in self._uncertain)
                continue
            lane.taken += 1
            self._instances[ticket.job_id] += 1
            self._in_progress[ticket.run_id] = ticket
            taken.append(ticket)
        return taken

    def _record(self, batch: _Batch) -> _Recorded:
        with self._transaction() as connection:
            now = database_now_us(connection)
            late: list[Ticket] = []
            timely: list[Ticket] = []
            postponed: dict[str, float] = {}
            crowded = find_crowded(connection, batch.starts)
            waits: list[str] = []
            for ticket in batch.starts:
                if is_too_late(ticket, now):
                    late.append(ticket)
                elif ticket.not_before is not None and ticket.not_before > now:
                    postponed[ticket.run_id] = _moment(ticket.not_before, now)
                elif ticket.run_id in crowded:
                    waits.append(ticket.run_id)
                else:
                    timely.append(ticket)
            opened = record_starts(connection, timely, owner=self._node_id, node=self._node_name, now=now)
            announce(
                connection,
                (ticket_event("start", t, node=self._node_name) for t in timely if t.run_id in opened),
                alerts=self._alerts,
                now=now,
            )
            too_late = record_missed(connection, late, owner=self._node_id, now=now, alerts=self._alerts)
            again = record_finishes(
                connection, batch.ends, owner=self._node_id, now=now, node=self._node_name, alerts=self._alerts
            )
            _reach(batch, "written")
        _reach(batch, "committed")
        self.lateness_ms.extend((now - ticket.scheduled_for) / 1000 for ticket in timely if ticket.attempt == 1)
        self.outcomes["missed"] += len(too_late.missed)
        settled = len(opened) + len(too_late.started) + len(too_late.missed) + len(postponed) + len(waits)
        if again or settled < len(batch.starts):  # next attempts; and a shut door may have a newer epoch's key
            self._adopt()
        return _Recorded({*opened, *too_late.started}, postponed, waits)

    def _hand_over(self, batch: _Batch, recorded: _Recorded) -> None:
        opened = recorded.opened
        now = time.monotonic()
        with self._changed:
            self._recording = False
            self._uncertain.difference_update(ticket.run_id for ticket in batch.starts)
            for ticket in batch.starts:
                if ticket.run_id in recorded.crowded:
                    self._leave(ticket, forget=self._closing, for_next=False)
                elif ticket.run_id in recorded.postponed:
                    self._leave(ticket, forget=self._closing)
                    if not self._closing:
                        self._postpone(ticket, recorded.postponed[ticket.run_id])
                elif ticket.run_id not in opened:
                    self._leave(ticket)
                else:
                    self._set_limits(ticket, now)
                    if self._instances[ticket.job_id] < ticket.max_instances:
                        self._let_go(ticket.job_id)
            if not self._closing:
                self._hold([ticket for ticket in batch.starts if ticket.run_id in recorded.crowded], now)
            self._known.difference_update(end.ticket.run_id for end in batch.ends)
            self._changed.notify_all()
        for ticket in batch.starts:
            if ticket.run_id in opened:
                self._submit(ticket)

    def _hold(self, crowded: Collection[Ticket], now: float) -> None:
        """Lays runs aside that wait for an instance elsewhere, until the next look at it."""
        for ticket in crowded:
            self._lane(ticket).hold(self._entry(ticket))
        tried = {ticket.run_id for ticket in crowded}
        for ticket in crowded:
            if any(run_id not in tried for run_id in self._first_held(ticket.job_id)):
                self._let_go(ticket.job_id)  # it comes before those that were tried, and may be whom they wait for
            else:
                self._crowded.setdefault(ticket.job_id, now + _CROWDED_S)

    def _first_held(self, job_id: str) -> list[str]:
        return [lane.held[job_id][0][0] for lane in self._lanes.values() if job_id in lane.held]

    def _let_go(self, job_id: str) -> None:
        for lane in self._lanes.values():
            lane.let_go(job_id)

    def _set_limits(self, ticket: Ticket, now: float) -> None:
        limits: tuple[tuple[StopReason, int | None], ...] = (
            ("soft", ticket.soft_time_limit),
            ("hard", ticket.time_limit),
        )
        for reason, seconds in limits:
            if seconds is not None:
                heapq.heappush(self._limits, (now + seconds, next(self._order), ticket, reason))
        if len(self._limits) > 4 * len(self._in_progress) + _LIMITS_SPARE:  # most are of runs that ended long before
            self._limits = [limit for limit in self._limits if limit[2].run_id in self._in_progress]
            heapq.heapify(self._limits)

    def _submit(self, ticket: Ticket) -> None:
        self._started(ticket)
        lane = self._lanes.get(self._lane_of(ticket))
        if lane is None:
            names = ", ".join(self._lanes)
            error = f"executor {ticket.executor!r} is not known to this process; it has: {names}"
            self._on_end(ticket, Ending("failed", 0, error, ""))
            return
        try:
            lane.submit(ticket, lambda ending: self._on_end(ticket, ending))
        except Exception as raised:
            logger.exception("run %s could not be handed to executor %s", ticket.run_id, ticket.executor)
            error = f"executor {ticket.executor!r} refused the run: {raised}"
            self._on_end(ticket, Ending("failed", 0, error, ""))

    def _on_end(self, ticket: Ticket, ending: Ending) -> None:
        finish = Finish(ticket, ending.outcome, ending.duration, ending.reason, ending.error, ending.log)
        with self._changed:
            self._leave(ticket, forget=False)
            self._ends.append((time.monotonic(), finish))
            self.outcomes[ending.outcome] += 1
            self._changed.notify_all()
        self._ended(ticket, ending)

    def _leave(self, ticket: Ticket, *, forget: bool = True, for_next: bool = True) -> None:
        """Gives the run's place free, and its instance, `for_next` to the next run of its job that is held here."""
        self._lane(ticket).taken -= 1
        del self._in_progress[ticket.run_id]
        self._instances[ticket.job_id] -= 1
        if not self._instances[ticket.job_id]:
            del self._instances[ticket.job_id]
        if for_next:
            self._let_go(ticket.job_id)
        if forget:
            self._known.discard(ticket.run_id)

    def _put_back(self, batch: _Batch) -> None:
        with self._changed:
            self._recording = False
            self._retry_at = time.monotonic() + _RETRY_S
            self._ends.extendleft((0.0, end) for end in reversed(batch.ends))
            for ticket in batch.starts:
                # Its start may be on record all the same; then the next try finds it so and hands it over.
                self._leave(ticket, forget=self._closing)
                if not self._closing:
                    self._uncertain.add(ticket.run_id)
                    self._enqueue(ticket)
        if batch.ends:  # they may be on record, and with them next attempts that are not here
            self._adopt()


def _moment(at_us: int, now: int) -> float:
    """A moment of the database's clock, which says `now`, on the monotonic one."""
    return time.monotonic() + (at_us - now) / 1_000_000


def _reach(batch: _Batch, step: str) -> None:
    if batch.starts:
        failpoints.reach(f"start.{step}")
    if batch.ends:
        failpoints.reach(f"finish.{step}")
