"""A request that the store's server ended in the middle is done once more, where that is harmless, so that a restart of
the server fails nobody.

Harmless are reads, and writes that carry an `Idempotency-Key` to a view that heeds it. The second try finds no open
connection, and its engine waits for the server (app.db.engines.RECONNECT_S). Other writes are not repeated: nobody
knows whether their commit came through.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, request

from app.api.v1.repeats import REPEATABLE_ATTRIBUTE
from app.db.reach import is_disconnect
from app.http.web_server import BODY_LIMIT
from app.ledger.repeats import HEADER

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_READS = ("GET", "HEAD")
_KEY = f"HTTP_{HEADER.upper().replace('-', '_')}"
_STORE_WENT_AWAY = "whalefall.store_went_away"


def init_store_outage(app: Flask) -> None:
    """Bind it to the app."""
    app.wsgi_app = _Repeats(app.wsgi_app)  # type: ignore[method-assign]


def note_outage(error: BaseException) -> None:
    """Told of every error that is answered: notes whether the request may be repeated, because its connection to the
    store was ended."""
    cause: BaseException | None = error
    while cause is not None and not is_disconnect(cause):
        cause = cause.__cause__
    if cause is not None and _is_harmless():
        request.environ[_STORE_WENT_AWAY] = True


def _is_harmless() -> bool:
    if request.method in _READS:
        return True
    view = current_app.view_functions.get(request.endpoint or "")
    return HEADER in request.headers and getattr(view, REPEATABLE_ATTRIBUTE, False)


class _Repeats:
    def __init__(self, inner: WSGIApplication) -> None:
        self._inner = inner

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _READS and not _keep_body(environ):
            return self._inner(environ, start_response)
        first = _Answer(self._inner, dict(environ))
        if not first.environ.get(_STORE_WENT_AWAY):
            start_response(*first.head)
            return first.body
        first.close()
        if environ["REQUEST_METHOD"] not in _READS:
            environ["wsgi.input"].seek(0)
        return self._inner(environ, start_response)


def _keep_body(environ: WSGIEnvironment) -> bool:
    """Reads the body of a request with a key into memory, where it can be read twice; whether that was done."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if _KEY not in environ or "HTTP_TRANSFER_ENCODING" in environ or not length.isdigit() or int(length) > BODY_LIMIT:
        return False
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
    return True


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
