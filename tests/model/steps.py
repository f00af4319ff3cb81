"""One step at a time: the threads of all nodes run under a baton that the search hands to one of them.

A thread runs until its next point (before a statement, before and after a commit, between two turns) and waits there
for the baton. So a history is a list of choices, and the same choices give the same history again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

Order = Literal["go", "error", "crash"]
"""What becomes of a thread at its point: it goes on, its statement fails, or its process is gone."""

_GUARD_S = 60.0
"""No step takes that long: whatever waits longer hangs, and a test must say so."""


class Crash(BaseException):
    """Raised in a thread whose process is gone: nothing of it may run any more."""


_WAITS = "waits for its node's store lock"
_NO_STORE = ("look", "dispatch", "drain", "join", "edit", _WAITS)
"""Points at which an actor is about to do something else than to speak to the store."""


def _closed_gate() -> threading.Lock:
    """A lock used as a gate: whoever waits acquires it, another thread's release lets it pass."""
    gate = threading.Lock()
    gate.acquire()
    return gate


@dataclass(eq=False)
class Actor:
    """One thread of one node, or an operator's edit."""

    name: str
    node: str
    state: Literal["new", "parked", "running", "blocked", "done"] = "new"
    label: str = ""
    ready: Callable[[], bool] = lambda: True
    order: Order = "go"
    crashed: bool = False
    backend: int | None = None  # the server process of its open PostgreSQL transaction
    began: int = 0  # the step at which its open transaction began
    error: BaseException | None = None
    go: threading.Lock = field(default_factory=_closed_gate)
    arrived: threading.Lock = field(default_factory=_closed_gate)

    @property
    def meets_store(self) -> bool:
        """Whether its next step is the store's, so that it can fail."""
        return self.label not in _NO_STORE


class Stepper:
    """Holds the baton. `is_blocked` says whether a running actor waits for a lock of the database."""

    def __init__(self, is_blocked: Callable[[Actor], bool] | None = None) -> None:
        self._is_blocked = is_blocked
        self.steps = 0
        """Steps that were taken: the order of what happened."""
        self._here = threading.local()

    @property
    def actor(self) -> Actor | None:
        """The actor that the calling thread is; None for the search itself, which takes no steps."""
        found: Actor | None = getattr(self._here, "actor", None)
        return found

    def spawn(self, actor: Actor, work: Callable[[], None]) -> None:
        """Makes the actor's thread and lets it come to its first point."""

        def run() -> None:
            self._here.actor = actor
            actor.go.acquire()
            try:
                work()
            except Crash:
                pass
            except BaseException as error:  # told by the search, in the main thread
                actor.error = error
            actor.state = "done"
            actor.arrived.release()

        threading.Thread(target=run, name=actor.name, daemon=True).start()
        self.resume(actor)

    def point(self, label: str, ready: Callable[[], bool] = lambda: True) -> Order:
        """Waits here for the baton; "error" asks the caller to fail. Outside of an actor it does nothing."""
        actor = self.actor
        if actor is None:
            return "go"
        if actor.crashed:  # a clean-up on the way out: a process that is gone does none
            raise Crash
        actor.label, actor.ready, actor.state = label, ready, "parked"
        actor.arrived.release()
        actor.go.acquire()
        if actor.order == "crash":
            actor.crashed = True
            raise Crash
        return actor.order

    def resume(self, actor: Actor, order: Order = "go") -> None:
        """Lets the actor take one step: returns when it is at its next point, at its end, or blocked."""
        self.steps += 1
        actor.order, actor.state = order, "running"
        actor.go.release()
        self.settle(actor)

    def settle(self, actor: Actor) -> None:
        """Waits until a running actor has come to a point, unless the database lets it wait for another one."""
        if self._is_blocked is None:
            if not actor.arrived.acquire(timeout=_GUARD_S):
                raise TimeoutError(f"{actor.name} hangs after {actor.label}")
            return
        for _ in range(int(_GUARD_S / 0.003)):
            if actor.arrived.acquire(timeout=0.003):
                return
            if self._is_blocked(actor):
                actor.state = "blocked"
                return
        raise TimeoutError(f"{actor.name} hangs after {actor.label}")

    def settle_blocked(self, actor: Actor) -> None:
        """Looks again after an actor that was blocked: another one's commit may have let it go on."""
        if actor.arrived.acquire(blocking=False):
            return  # its thread has noted its new state
        actor.state = "running"
        self.settle(actor)


class SteppedLock:
    """A lock between threads of one node, at which a thread waits with its baton handed back."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._held = False

    def __enter__(self) -> None:
        while self._held:
            self._stepper.point(_WAITS, ready=lambda: not self._held)
        self._held = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._held = False
