"""The lines of the log, one record a line. Standard library alone: Gunicorn's masters and Supervisor write them too.

    {"time": "2026-05-01T08:00:00.123+08:00", "level": "info", "program": "web", "node": "4f2a", "message": "logged in",
     "request_id": "…", "logger": "app.api.v1.auth", "account": "admin"}

That is LOG_FORMAT=json. `text` is for eyes, with the program in front so that `grep '^\\[web\\]'` filters:

    [web] 2026-05-01T08:00:00.123+08:00 INFO    app.api.v1.auth logged in account=admin request_id=4f2a…
"""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import NoReturn

IDS = ("request_id", "job_id", "run_id")
"""Fields by which lines of several containers are found together (app/services/operations/container_logs.py)."""

STRUCTURED = "structured"
"""The attribute of a record that holds a structlog event: its text, and its values by name."""

_MESSAGE_LIMIT, _VALUE_LIMIT, _TRACE_LIMIT = 4000, 1000, 6000
"""Characters. Docker cuts a line after 16 KiB, and what is cut is no JSON."""

_OF_EVERY_RECORD = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "exception", STRUCTURED}
)
_PLACE = re.compile(r"(?:\b(run|job) )?%[-#0 +]*[0-9]*(?:\.[0-9]+)?([a-zA-Z%])")
_NAMES = {"run": "run_id", "job": "job_id"}

Values = Mapping[str, object]


def _no_context() -> Values:
    return {}


class JSONLines(logging.Formatter):
    """A record as one line of JSON. `context`: values of the work that this thread is at, such as its request's id."""

    def __init__(self, program: str, node: str, context: Callable[[], Values] = _no_context) -> None:
        super().__init__()
        self._program, self._node, self._context = program, node, context

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        text, values = _event(record)
        line: dict[str, object] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "program": self._program,
            "node": self._node,
            "message": _bounded(text, _MESSAGE_LIMIT),
        }
        known = {**self._context(), **_ids_in(record), **values}
        line |= {name: _plain(known.pop(name)) for name in IDS if name in known}
        line["logger"] = record.name
        # What a caller names like a field of ours is not lost, and fakes none.
        line |= {f"{name}_" if name in line else name: _plain(value) for name, value in known.items()}
        if trace := _trace(self, record):
            line["exception"] = _bounded(trace, _TRACE_LIMIT)
        return as_line(line)


class TextLines(logging.Formatter):
    """A record as one readable line; a traceback follows it, each of its lines with the same prefix."""

    def __init__(self, program: str, node: str, context: Callable[[], Values] = _no_context) -> None:  # noqa: ARG002
        super().__init__()
        self._prefix, self._context = f"[{program}]", context

    def format(self, record: logging.LogRecord) -> str:
        """The lines, without the last one's end; line breaks in values cannot fake another record."""
        text, values = _event(record)
        details = as_details({**values, **self._context()})
        moment = _moment(record)
        lines = [f"{self._prefix} {moment} {record.levelname:<7} {record.name} {printable(text + details)}"]
        if trace := _trace(self, record):
            lines += [f"{self._prefix} | {printable(line)}" for line in trace.splitlines()]
        return "\n".join(lines)


def formatter(
    program: str, log_format: str, node: str, context: Callable[[], Values] = _no_context
) -> logging.Formatter:
    """The formatter of a program's lines: text where `log_format` says so, else JSON."""
    return (TextLines if log_format == "text" else JSONLines)(program, node, context)


def formatter_in(environment: Mapping[str, str], program: str) -> logging.Formatter:
    """The same by LOG_FORMAT and NODE_NAME, for a process that does not read the app's settings. What LOG_FORMAT may
    not hold is refused by those."""
    node = environment.get("NODE_NAME", "").strip() or socket.gethostname()
    return formatter(program, environment.get("LOG_FORMAT", "").strip().lower(), node)


def refuse(environment: Mapping[str, str], program: str, reason: str, *, status: int = 1) -> NoReturn:
    """Ends a process that cannot start with that exit status, and the reason as a line of its log."""
    record = logging.LogRecord(program, logging.CRITICAL, "", 0, reason, (), None)
    sys.stdout.write(formatter_in(environment, program).format(record) + "\n")
    sys.exit(status)


def as_line(values: Values) -> str:
    """One line of JSON that neither a break in a value nor half a character can spoil."""
    line = json.dumps(values, ensure_ascii=False, default=str)
    # JSON itself allows what some readers take for the end of a line, and half a surrogate pair.
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def as_details(values: Values) -> str:
    """Values as ` name=value`, behind one another."""
    return "".join(f" {name}={_detail(value)}" for name, value in values.items())


def printable(text: str) -> str:
    """The text with every character that is not printable in the form of an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _detail(value: object) -> str:
    text = str(value)
    return text if text and " " not in text and '"' not in text else repr(text)


def _event(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """A record's text, and the values that it was given beside it."""
    extra = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
    structured = getattr(record, STRUCTURED, None)
    if structured is not None:
        text, values = structured
        return text, {**values, **extra}
    return record.getMessage(), extra


def _ids_in(record: logging.LogRecord) -> dict[str, object]:
    """The ids that a message names: in `run %s of job %s is lost` those of a run and a job.

    So every such message can be found by its run, without each having to say the same twice.
    """
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple) or not record.args:
        return {}
    args = record.args
    return {name: str(args[index]) for index, name in _places_of_ids(record.msg) if index < len(args)}


@lru_cache(maxsize=512)
def _places_of_ids(message: str) -> tuple[tuple[int, str], ...]:
    found: dict[str, int] = {}
    places = [match for match in _PLACE.finditer(message) if match[2] != "%"]
    for index, match in enumerate(places):
        if match[1]:
            found.setdefault(_NAMES[match[1]], index)
    return tuple((index, name) for name, index in found.items())


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
    elif record.exc_text:
        parts.append(record.exc_text)
    if isinstance(told := getattr(record, "exception", None), str):
        parts.append(told)
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple, dict)):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return value if len(text) <= _VALUE_LIMIT else _bounded(text, _VALUE_LIMIT)
    return _bounded(str(value), _VALUE_LIMIT)


def _bounded(text: str, limit: int) -> str:
    """The text; of one that is too long its beginning and its end, which say most."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 3]} … {len(text) - limit} characters left out … {text[-(limit - limit // 3) :]}"
