"""Logs: one readable line a record, with the program's name in front so that `grep '^\\[web\\]'` filters.

    [web] 2026-05-01T08:00:00.123+08:00 INFO    app.api.v1.auth logged in account=admin request_id=4f2a…

Modules log with `structlog.get_logger(__name__)` or with the standard library; both take this way. A
traceback follows its record, each line with the same prefix.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from datetime import datetime
from typing import TextIO

import structlog

HANDLER_NAME = "whalefall"


class _LineRenderer:
    """Turns an event into its line; line breaks in values cannot fake another record."""

    def __init__(self, program: str) -> None:
        self._prefix = f"[{program}]"

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, object]) -> str:
        exception = event.pop("exception", None)
        at = event.pop("timestamp", "")
        level = str(event.pop("level", "info")).upper()
        name = event.pop("logger", "")
        text = _one_line(str(event.pop("event", "")))
        details = "".join(f" {key}={_detail(value)}" for key, value in event.items())
        lines = [f"{self._prefix} {at} {level:<7} {name} {text}{details}"]
        if exception:
            lines += [f"{self._prefix} | {line}" for line in str(exception).splitlines()]
        return "\n".join(lines)


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").encode("unicode_escape").decode() if not text.isprintable() else text


def _detail(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and " " not in text and '"' not in text else repr(text)


def _add_time(
    _logger: object, _method: str, event: MutableMapping[str, object]
) -> MutableMapping[str, object]:
    record = event.get("_record")
    at = datetime.fromtimestamp(record.created) if isinstance(record, logging.LogRecord) else datetime.now()
    event["timestamp"] = at.astimezone().isoformat(timespec="milliseconds")
    return event


def configure_logging(program: str, level: str, stream: TextIO | None = None) -> None:
    """Send all records of this process to `stream` (standard output) with `[program]` in front.

    Safe to call again: the handler of an earlier call is replaced, those of others stay.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        _add_time,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # tests configure more than once in a process
    )
    handler = logging.StreamHandler(sys.stdout if stream is None else stream)
    handler.name = HANDLER_NAME
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _LineRenderer(program),
            ],
        )
    )
    root = logging.getLogger()
    for old in [present for present in root.handlers if present.name == HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("alembic.runtime.plugins").setLevel(
        logging.WARNING
    )  # what it could do, not what it does
    # The executor reports every start and end of a job at INFO; the ledger has them already.
    logging.getLogger("apscheduler").setLevel(max(logging.WARNING, logging.getLevelName(level)))
