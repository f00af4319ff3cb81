"""Logs: one readable line a record, with the program's name in front so that `grep '^\\[web\\]'` filters.

    [web] 2026-05-01T08:00:00.123+08:00 INFO    app.api.v1.auth logged in account=admin request_id=4f2a…

Modules log with `structlog.get_logger(__name__)` or with the standard library; both take this way. A
traceback follows its record, each line with the same prefix.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from typing import TextIO

import structlog

HANDLER_NAME = "whalefall"


class _LineRenderer:
    """Turns an event into its line; line breaks in values cannot fake another record."""

    def __init__(self, program: str) -> None:
        self._prefix = f"[{program}]"

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, object]) -> str:
        for made_by_other_handlers in ("message", "asctime"):
            event.pop(made_by_other_handlers, None)
        exception = event.pop("exception", None)
        at = event.pop("timestamp", "")
        level = str(event.pop("level", "info")).upper()
        name = event.pop("logger", "")
        text = _printable(f"{event.pop('event', '')}{_details(event)}")
        lines = [f"{self._prefix} {at} {level:<7} {name} {text}"]
        if exception:
            lines += [f"{self._prefix} | {_printable(line)}" for line in str(exception).splitlines()]
        return "\n".join(lines)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _details(values: Mapping[str, object]) -> str:
    return "".join(f" {key}={_detail(value)}" for key, value in values.items())


def _detail(value: object) -> str:
    text = str(value)
    return text if text and " " not in text and '"' not in text else repr(text)


def _as_plain_record(
    _logger: object, _method: str, event: MutableMapping[str, object]
) -> tuple[tuple[str], dict[str, object]]:
    """A structlog event as a record that any handler can write, also the one that keeps a run's log."""
    passed = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    text = str(event.pop("event", ""))
    return (text + _details(event),), passed


def _add_time(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    record = event.get("_record")
    at = datetime.fromtimestamp(record.created) if isinstance(record, logging.LogRecord) else datetime.now()
    event["timestamp"] = at.astimezone().isoformat(timespec="milliseconds")
    return event


def configure_logging(program: str, level: str, stream: TextIO | None = None) -> None:
    """Send all records of this process to `stream` (standard output) with `[program]` in front.

    Safe to call again: the handler of an earlier call is replaced, those of others stay.
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
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.stdlib.ExtraAdder(),
                _add_time,
                structlog.processors.format_exc_info,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _LineRenderer(program)],
        )
    )
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
