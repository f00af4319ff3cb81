"""A read that the store's server ended in the middle is done once more, so that its restart fails no reader.

The second try finds no open connection, and its engine waits for the server (app.db.engines.RECONNECT_S). What
writes is not repeated: nobody knows whether its commit came through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, request

from app.db.reach import is_disconnect

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_READS = ("GET", "HEAD")
_STORE_WENT_AWAY = "whalefall.store_went_away"


def init_store_outage(app: Flask) -> None:
    """Bind it to the app."""
    app.wsgi_app = _RepeatedReads(app.wsgi_app)  # type: ignore[method-assign]


def note_outage(error: BaseException) -> None:
    """Told of every error that is answered: notes whether the request failed because its connection was ended."""
    cause: BaseException | None = error
    while cause is not None and not is_disconnect(cause):
        cause = cause.__cause__
    if cause is not None:
        request.environ[_STORE_WENT_AWAY] = True


class _RepeatedReads:
    def __init__(self, inner: WSGIApplication) -> None:
        self._inner = inner

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _READS:
            return self._inner(environ, start_response)
        first = _Answer(self._inner, dict(environ))
        if not first.environ.get(_STORE_WENT_AWAY):
            start_response(*first.head)
            return first.body
        first.close()
        return self._inner(environ, start_response)


class _Answer:
    """An answer whose head is not sent yet."""

    head: tuple[Any, ...]

    def __init__(self, inner: WSGIApplication, environ: WSGIEnvironment) -> None:
        self.environ = environ
        self.body = inner(environ, self._keep)

    def _keep(self, *head: Any) -> Callable[[bytes], object]:
        self.head = head
        return _write

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def _write(_data: bytes) -> object:
    raise NotImplementedError("answers are iterables here")
