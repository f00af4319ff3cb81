"""CSRF: every write of a session carries the token in the header `X-CSRFToken`, and nowhere else."""

from __future__ import annotations

from flask import Flask, request
from flask_wtf.csrf import generate_csrf, validate_csrf
from wtforms import ValidationError as WrongToken

from app.errors import CsrfInvalid
from app.services.accounts import current_principal

HEADER = "X-CSRFToken"
BODY_FIELD = "csrf_token"
LOGIN_ENDPOINT = "auth.log_in"  # judges the token itself, because there may be no session yet
WRITING_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def init_csrf(app: Flask) -> None:
    """Check every write of a session in this app, also of routes that forget to ask for a permission."""
    app.config["WTF_CSRF_TIME_LIMIT"] = None  # as long as the session that it belongs to
    app.jinja_env.globals["csrf_token"] = generate_csrf
    app.before_request(_check_session_write)


def csrf_token() -> str:
    """The token of this session."""
    token: str = generate_csrf()
    return token


def check_csrf_token() -> None:
    """Raise CsrfInvalid unless the header holds this session's token."""
    try:
        validate_csrf(request.headers.get(HEADER))
    except WrongToken:
        raise CsrfInvalid from None


def refuse_token_in_body() -> None:
    """Raise CsrfInvalid for a token inside a JSON body: it must not become a second way."""
    body = request.get_json(silent=True) if request.is_json else None
    if isinstance(body, dict) and BODY_FIELD in body:
        raise CsrfInvalid


def _check_session_write() -> None:
    if request.method not in WRITING_METHODS or request.routing_exception is not None:
        return
    if request.endpoint == LOGIN_ENDPOINT:
        return
    principal = current_principal()
    # The API token's holder has no cookie that a foreign page could use; nobody at all is asked to log in.
    if principal is None or principal.user_id is None:
        return
    refuse_token_in_body()
    check_csrf_token()
