"""Logs: what the app's modules log goes to standard output, one record a line (app/log_lines.py).

Modules log with `structlog.get_logger(__name__)` or with the standard library; both take this way. Values that are
bound to the work of a thread (`structlog.contextvars`: the request's id, the run's) are in every record of it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import TextIO

import structlog

from app.log_lines import STRUCTURED, as_details, formatter

HANDLER_NAME = "whalefall"


def _as_plain_record(
    _logger: object, _method: str, event: MutableMapping[str, object]
) -> tuple[tuple[str], dict[str, object]]:
    """A structlog event as a record that any handler can write, also the one that keeps a run's log."""
    passed: dict[str, object] = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    text = str(event.pop("event", ""))
    passed["extra"] = {STRUCTURED: (text, dict(event))}
    return (text + as_details(event),), passed


def configure_logging(
    program: str, level: str, stream: TextIO | None = None, *, log_format: str = "json", node: str = ""
) -> None:
    """Send all records of this process to `stream` (standard output), as lines of `program` on `node`.

    `log_format`: json or text. Safe to call again: the handler of an earlier call is replaced, those of others stay.
    """
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _as_plain_record,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # tests configure more than once in a process
    )
    handler = logging.StreamHandler(sys.stdout if stream is None else stream)
    handler.name = HANDLER_NAME
    handler.setFormatter(formatter(program, log_format, node, structlog.contextvars.get_contextvars))
    root = logging.getLogger()
    for old in [present for present in root.handlers if present.name == HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    handler.setLevel(level)
    # What a task logs at INFO belongs to its run's log, however little this process prints.
    root.setLevel(min(logging.INFO, logging.getLevelName(level)))
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # what it could do, not what it does
    # The executor reports every start and end of a job at INFO; the ledger has them already.
    logging.getLogger("apscheduler").setLevel(max(logging.WARNING, logging.getLevelName(level)))


def log_what_nobody_catches() -> None:
    """Makes records of warnings and of exceptions that end a process or a thread, which would else be bare text."""
    logging.captureWarnings(True)
    log = logging.getLogger("app.uncaught")

    def ending(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.critical("the process ends: %s", kind.__name__, exc_info=(kind, error, trace))

    def ending_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread else "?"
            log.error(
                "thread %s ends: %s",
                name,
                args.exc_type.__name__,
                exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
            )

    sys.excepthook = ending
    threading.excepthook = ending_thread
