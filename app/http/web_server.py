"""What stands between the socket and the routes: the proxy's headers, the session cookie, the body limit."""

from __future__ import annotations

from datetime import timedelta

from flask import Flask, request
from flask.sessions import SecureCookieSessionInterface
from werkzeug.middleware.proxy_fix import ProxyFix

from app.errors import PayloadTooLarge

BODY_LIMIT = 1024 * 1024  # bytes; nginx has the same, but is not in front of everything that tests run
SESSION_LIFETIME = timedelta(hours=12)  # since the login


class _SessionInterface(SecureCookieSessionInterface):
    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - the signature is Flask's
        # Secure under https; plain http, behind which a closed network may well be, keeps working.
        return request.is_secure


def init_web_server(app: Flask) -> None:
    """Bind the above to the app."""
    app.config.update(
        MAX_CONTENT_LENGTH=BODY_LIMIT,
        PERMANENT_SESSION_LIFETIME=SESSION_LIFETIME,
        # An answer that sets the cookie anew could arrive after the one that ended the session.
        SESSION_REFRESH_EACH_REQUEST=False,
        SESSION_COOKIE_NAME="session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    app.session_interface = _SessionInterface()
    # One hop: only nginx reaches this process, and it decides itself whom it believes (TRUSTED_PROXIES).
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]
    app.before_request(_refuse_large_body)


def _refuse_large_body() -> None:
    # Flask itself refuses it only once a route reads the body.
    if request.content_length is not None and request.content_length > BODY_LIMIT:
        raise PayloadTooLarge
