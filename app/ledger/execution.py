"""From a started run to its end: calls the task function, in this process or in one of its own."""

import ctypes
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from structlog.contextvars import bound_contextvars

from app.db.clock import from_us
from app.ledger import capture
from app.ledger.runs import Outcome, RunContext, Ticket
from app.ledger.stopping import RunStopped, StopReason, StopSignal, soft_alarm

logger = logging.getLogger(__name__)

NICENESS = 5
"""Of tasks: a third of the processor's time that others get, where both want all of it."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RunnableTask(Protocol):
    """What the ledger needs to know of a task; app.tasks.Task is one."""

    @property
    def func_ref(self) -> str:
        """Where the function is: `module:function`."""

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""

    @property
    def cpu_bound(self) -> bool:
        """Whether it would hold the interpreter lock of its process, and needs one of its own."""

    def call(self, kwargs: Mapping[str, Any], run: Any) -> Any:
        """Runs it with a job's keyword arguments, as they are stored, and with `run` when it asks for that."""


TaskResolver = Callable[[str], RunnableTask | None]
ContextFactory = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: outcome, microseconds, error in a line or a few, and what it wrote."""

    outcome: Outcome
    duration: int
    error: str | None
    log: str
    reason: str | None = None


def execute(
    ticket: Ticket,
    *,
    node: str,
    resolve: TaskResolver,
    context: ContextFactory,
    stop: StopSignal | None = None,
    alarm: bool = False,
) -> Ending:
    """Runs the task of a run that was started on record, and never raises: whatever happens is in the ending.

    `stop` is how the run is asked to stop. `alarm`: this is the main thread of a process that runs nothing else, and
    the soft time limit is raised in the task.
    """
    began = time.monotonic_ns()
    stop = stop or StopSignal()
    # In every record of this thread meanwhile, the task's own too.
    with bound_contextvars(job_id=ticket.job_id, run_id=ticket.run_id):
        logger.info(
            "%s starts, due %s, attempt %d", ticket.task, from_us(ticket.scheduled_for).isoformat(), ticket.attempt
        )
        error, text = _call(ticket, node, resolve, context, stop, alarm=alarm)
        ending = _ending(ticket, stop.reason, error, (time.monotonic_ns() - began) // 1000, text)
        logger.info("%s ended after %.3f s: %s", ticket.task, ending.duration / 1_000_000, ending.outcome)
    return ending


def _call(
    ticket: Ticket, node: str, resolve: TaskResolver, context: ContextFactory, stop: StopSignal, *, alarm: bool
) -> tuple[str | None, str]:
    """What went wrong, None where nothing did, and what the task wrote."""
    error: str | None = None
    with capture.captured() as log:
        try:
            task = resolve(ticket.task)
            if task is None:
                error = f"task {ticket.task!r} is not known to this process; the job stays in the store"
            else:
                with context(), soft_alarm(ticket.soft_time_limit if alarm else None, stop):
                    task.call(json.loads(ticket.kwargs), _run_context(ticket, node, stop))
        except RunStopped:
            error = stop_message(stop.reason, ticket)
            logger.warning("run %s of job %s stopped: %s", ticket.run_id, ticket.job_id, error)
        except BaseException as raised:  # SystemExit too: a task must not end its scheduler
            error = "".join(traceback.format_exception_only(raised)).strip() or type(raised).__name__
            logger.exception("run %s of job %s failed", ticket.run_id, ticket.job_id)
    return error, log.text()


def _ending(ticket: Ticket, stopped: StopReason | None, error: str | None, duration: int, log: str) -> Ending:
    if stopped == "cancel" and error is not None:
        return Ending("cancelled", duration, None, log, CANCELLED)
    if stopped == "cancel":
        return Ending("success", duration, None, log, "it was to be cancelled and finished all the same")
    if stopped == "hard" and error is None:
        # Whoever set the limit must hear of it, though the task came to its end.
        error = (
            f"{stop_message(stopped, ticket)}; it went on to its end, because a thread can only be asked to stop "
            "(the executors process and celery can be killed)"
        )
    return Ending("success" if error is None else "failed", duration, error, log)


def stop_message(reason: StopReason | None, ticket: Ticket) -> str:
    """What is on record of a run that stopped for `reason`; None: of its own accord."""
    if reason == "cancel":
        return CANCELLED
    if reason == "soft":
        return f"it reached its soft time limit of {ticket.soft_time_limit} s"
    if reason == "hard":
        return f"it reached its time limit of {ticket.time_limit} s"
    return "it stopped although nobody asked it to"


CANCELLED = "it was cancelled"


def killed_ending(ticket: Ticket, reason: StopReason, duration: int, *, came_up: bool = True) -> Ending:
    """How a run ended whose process was killed for `reason` after `duration` microseconds. `came_up`: the process could
    begin with the task."""
    killed = "its process was killed" if came_up else "its process was killed before it had come up"
    if reason == "cancel":
        return Ending("cancelled", duration, None, "", f"{CANCELLED}; {killed}")
    return Ending("failed", duration, f"{stop_message(reason, ticket)}; {killed}", "")


def yield_to_others() -> None:
    """Makes this thread give way to pages and to the loop when processors are scarce: a task can wait, they cannot.

    Linux keeps a niceness for every thread. A machine that does not allow it runs tasks at the usual one.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def prepare_process(parent: int) -> None:
    """The beginning of a child process that runs tasks: captures their output, and dies with its parent.

    A child of a scheduler that was killed would otherwise wait for work for ever; its run is called lost.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    yield_to_others()
    capture.install()


def _run_context(ticket: Ticket, node: str, stop: StopSignal) -> RunContext:
    return RunContext(
        id=ticket.run_id,
        job_id=ticket.job_id,
        scheduled_for=from_us(ticket.scheduled_for),
        node=node,
        kind=ticket.kind,
        attempt=ticket.attempt,
        created_by=ticket.created_by,
        stop=stop,
    )
