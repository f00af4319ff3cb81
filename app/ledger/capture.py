"""What a task writes (logging and standard output) is kept with its run, and with no other."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TextIO

LOG_LIMIT = 64 * 1024
"""Bytes of UTF-8 that a run's log may have. The beginning and the end are kept, the middle is left out."""

_NOTICE_ROOM = 128
_HEAD = LOG_LIMIT // 2
_TAIL = LOG_LIMIT - _HEAD - _NOTICE_ROOM


class RunLog:
    """The output of one run, bounded: its first and its last bytes."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def write(self, text: str) -> None:
        """Appends `text`."""
        data = text.encode("utf-8", "replace")
        room = _HEAD - len(self._head)
        if room > 0 and not self._tail:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        excess = len(self._tail) - _TAIL
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess

    def text(self) -> str:
        """All that was kept; a line says how many bytes were left out, if any."""
        notice = f"\n… {self._dropped} bytes left out …\n".encode() if self._dropped else b""
        return (bytes(self._head) + notice + bytes(self._tail)).decode("utf-8", "ignore")


_current: ContextVar[RunLog | None] = ContextVar("whalefall_run_log", default=None)


@contextmanager
def captured() -> Iterator[RunLog]:
    """Collects what this thread logs and prints meanwhile; needs `install()` to have been called."""
    log = RunLog()
    token = _current.set(log)
    try:
        yield log
    finally:
        _current.reset(token)


class _RunLogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log = _current.get()
        if log is None:
            return
        try:
            log.write(self.format(record) + "\n")
        except Exception:  # a message that does not fit its arguments must not fail the task that logs it
            self.handleError(record)


class _RunLogFormatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802, RUF100
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


class _Stdout(io.TextIOBase):
    """Standard output: a running task's prints go to its run, all else where it went before."""

    def __init__(self, original: TextIO) -> None:
        self.original = original

    def write(self, text: str) -> int:
        log = _current.get()
        if log is None:
            return self.original.write(text)
        log.write(text)
        return len(text)

    def flush(self) -> None:
        self.original.flush()

    def fileno(self) -> int:
        return self.original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.original.encoding

    def isatty(self) -> bool:
        return self.original.isatty()


_handler = _RunLogHandler()
_handler.setFormatter(_RunLogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def install() -> None:
    """Puts the capture in place for this process; once is enough, more does no harm."""
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)
    if not isinstance(sys.stdout, _Stdout):
        sys.stdout = _Stdout(sys.stdout)


def uninstall() -> None:
    """Takes the capture away again."""
    logging.getLogger().removeHandler(_handler)
    if isinstance(sys.stdout, _Stdout):
        sys.stdout = sys.stdout.original
