"""The board: memory that a worker and its children share, in which each child says what it is doing.

The parent must know it without Celery's help, whose loop stands still while the broker is away: limits, cancellations
and dead children are its affair (app.fleet.supervisor). And two children must not work on one run: its message may
have come twice, and the ledger sees one node.
"""

import ctypes
import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum


class State(IntEnum):
    """What the child of a slot is doing; written last, in one byte, so that a child that is killed while it writes
    leaves no slot half changed."""

    FREE = 0
    OPENING = 1
    """It asks for the ledger's door; the run may be on record as started or not."""
    RUNNING = 2
    ENDED = 3
    """The task is over; its end may be on record or not."""
    GIVEN_UP = 4
    """Its child turned away while it was not known whether the door had opened."""


class _Slot(ctypes.Structure):
    _fields_ = (
        ("state", ctypes.c_uint8),
        ("pid", ctypes.c_int32),
        ("run_id", ctypes.c_char * 33),
        ("job_id", ctypes.c_char * 513),  # 128 characters of up to four bytes
        ("since", ctypes.c_double),
        ("deadline", ctypes.c_double),
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A slot that is taken, as it was when it was read. Moments are of the monotonic clock; 0: none."""

    index: int
    state: State
    pid: int
    run_id: str
    job_id: str
    since: float
    deadline: float


class Board:
    """Made by the parent before it forks. More slots than children: one is free again only when its run's end is on
    record, and a child that died leaves that to the parent, while its successor already works."""

    def __init__(self, children: int) -> None:
        self._count = 4 * children + 16
        size = ctypes.sizeof(_Slot) * self._count
        self._fd = os.memfd_create("whalefall-board", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size)
        self._slots = (_Slot * self._count).from_buffer(mmap.mmap(self._fd, size))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A lock of the process, which the kernel takes back from one that is killed.
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def claim(self, run_id: str) -> int | None:
        """A slot for this process to work on a run; None when the run is here already, or no slot is left."""
        wanted = run_id.encode()
        with self._locked():
            free = None
            for index, slot in enumerate(self._slots):
                if slot.state == State.FREE:
                    free = index if free is None else free
                elif slot.run_id == wanted:
                    return None
            if free is None:
                return None
            slot = self._slots[free]
            slot.pid, slot.run_id, slot.job_id, slot.deadline = os.getpid(), wanted, b"", 0.0
            slot.since = time.monotonic()
            slot.state = State.OPENING
            return free

    def running(self, index: int, *, job_id: str, time_limit: int | None) -> None:
        """The door is open: the task begins, and must end within `time_limit` seconds."""
        slot = self._slots[index]
        slot.job_id = job_id.encode()
        slot.since = time.monotonic()
        slot.deadline = 0.0 if time_limit is None else slot.since + time_limit
        slot.state = State.RUNNING

    def ended(self, index: int) -> None:
        """The task is over: no limit and no cancellation concerns it any more."""
        self._slots[index].state = State.ENDED

    def give_up(self, index: int) -> None:
        """Leaves it to the parent to find out whether the run is on record as started."""
        self._slots[index].state = State.GIVEN_UP

    def free(self, index: int) -> None:
        """What became of the run is on record, or it never began."""
        self._slots[index].state = State.FREE

    def clear(self, place: Place) -> None:
        """Frees the slot of a child that is gone, if it is still as it was when it was read."""
        with self._locked():
            slot = self._slots[place.index]
            if (slot.pid, slot.run_id.decode()) == (place.pid, place.run_id):
                slot.state = State.FREE

    def place(self, index: int) -> Place:
        """What a slot holds now."""
        slot = self._slots[index]
        return Place(
            index=index,
            state=State(slot.state),
            pid=slot.pid,
            run_id=slot.run_id.decode(),
            job_id=slot.job_id.decode(),
            since=slot.since,
            deadline=slot.deadline,
        )

    def taken(self) -> list[Place]:
        """All slots that are taken, also those of children that are gone."""
        with self._locked():
            return [self.place(index) for index, slot in enumerate(self._slots) if slot.state != State.FREE]
