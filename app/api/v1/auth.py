"""Logging in and out, and the permission that a route asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec, TypeVar

import pydantic
import structlog
from apiflask import APIBlueprint
from flask import Flask, Response, request, session
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from pydantic import BaseModel, ConfigDict, StringConstraints

from app.api.v1 import csrf
from app.api.v1.envelope import NOT_AN_OBJECT, success
from app.db.account_tables import USERNAME_LENGTH
from app.errors import _N, AuthenticationRequired, Forbidden, ValidationError
from app.http.audit_trail import audit_as
from app.runtime import current_runtime
from app.secret_files import present_secret
from app.services.accounts import Permission, Principal, current_principal
from app.services.accounts.login_service import LoginService
from app.services.accounts.principal import identify_with, token_principal

MAX_ID_DIGITS = 18  # what a database's integers hold
PERMISSION_ATTRIBUTE = "required_permission"

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)
auth = APIBlueprint("auth", __name__, url_prefix="/api/v1/auth", tag="auth")


class Credentials(BaseModel):
    """The body of a login."""

    model_config = ConfigDict(strict=True)

    username: Annotated[str, StringConstraints(min_length=1, max_length=USERNAME_LENGTH)]
    password: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class SessionUser(UserMixin):
    """What Flask-Login keeps of a user: the cookie holds the id and the session stamp."""

    def __init__(self, principal: Principal, session_stamp: str) -> None:
        self.principal = principal
        self._session_stamp = session_stamp

    def get_id(self) -> str:
        return f"{self.principal.user_id}.{self._session_stamp}"


def init_auth(app: Flask) -> None:
    """Bind Flask-Login, and find out who asks, once a route wants to know."""
    manager = LoginManager()
    manager.session_protection = None  # it would end sessions when a laptop changes networks
    manager.user_loader(_load_user)
    manager.init_app(app)
    app.before_request(lambda: identify_with(_identify))


def _load_user(session_id: str) -> SessionUser | None:
    user_id, _, stamp = session_id.partition(".")
    if not user_id.isdecimal() or len(user_id) > MAX_ID_DIGITS:
        return None
    principal = LoginService().principal_of_session(int(user_id), stamp)
    return None if principal is None else SessionUser(principal, stamp)


def _identify() -> Principal | None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        # Whoever shows a token is judged by it alone, even when a session cookie comes along.
        settings = current_runtime().settings
        present = present_secret(settings.secret_files.get("API_TOKEN"), settings.api_token)
        return token_principal(given.strip(), present or "")
    return current_user.principal if current_user.is_authenticated else None


def require(permission: Permission) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let only those with this permission reach the view: 401 for nobody known, 403 for the others."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            principal = current_principal()
            if principal is None:
                raise AuthenticationRequired
            if not principal.may(permission):
                raise Forbidden
            return view(*args, **kwargs)

        setattr(guarded, PERMISSION_ATTRIBUTE, permission)
        return guarded

    return decorate


@auth.get("/csrf-token")
@auth.doc(summary="The CSRF token of this session", responses={200: "`data.csrf_token`"})
def get_csrf_token() -> Response:
    return success({"csrf_token": csrf.csrf_token()})


@auth.post("/login")
@auth.doc(summary="Log in; later writes carry the header X-CSRFToken")
def log_in() -> Response:
    csrf.refuse_token_in_body()
    # A foreign page cannot send JSON without asking first, so a login without a token is no risk; one with a
    # wrong token is a mistake worth telling.
    if csrf.HEADER in request.headers:
        csrf.check_csrf_token()
    credentials = _credentials(request.get_json())
    audit_as(credentials.username)
    login = LoginService().log_in(credentials.username, credentials.password, request.remote_addr or "")
    session.permanent = True  # ends by itself after SESSION_LIFETIME
    login_user(SessionUser(login.principal, login.session_stamp))
    log.info("logged in", account=login.principal.name, address=request.remote_addr)
    return success({"user": _shown(login.principal), "csrf_token": csrf.csrf_token()}, _N("登录成功"))


def _credentials(body: object) -> Credentials:
    if not isinstance(body, dict):
        raise ValidationError(NOT_AN_OBJECT)
    try:
        return Credentials.model_validate(body)
    except pydantic.ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        accepted = _N("1 到 64 个字符的字符串") if name == "username" else _N("1 到 1024 个字符的字符串")
        # A refused password is not repeated: answers end up in logs.
        value = body.get(name) if name == "username" else None
        raise ValidationError(field=name, value=value, accepted=accepted) from None


@auth.post("/logout")
@auth.doc(summary="End this session")
@require("view")
def log_out() -> Response:
    logout_user()
    session.clear()
    return success(message=_N("已退出登录"))


@auth.get("/me")
@auth.doc(summary="Who is logged in")
@require("view")
def me() -> Response:
    principal = current_principal()
    if principal is None:
        raise AuthenticationRequired
    return success(_shown(principal))


def _shown(principal: Principal) -> dict[str, object]:
    return {
        "id": principal.user_id,
        "username": principal.name,
        "permissions": sorted(principal.permissions),
    }
