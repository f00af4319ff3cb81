"""Turns every exception of a request into an answer: the envelope under /api, an HTML page elsewhere."""

from __future__ import annotations

import pydantic
import structlog
from apiflask.exceptions import HTTPError
from flask import Flask, Response, make_response, render_template, request
from markupsafe import escape
from sqlalchemy import exc
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    RequestEntityTooLarge,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from werkzeug.exceptions import (
    Forbidden as WerkzeugForbidden,
)
from werkzeug.exceptions import (
    MethodNotAllowed as WerkzeugMethodNotAllowed,
)
from werkzeug.exceptions import (
    NotFound as WerkzeugNotFound,
)
from werkzeug.exceptions import (
    PreconditionFailed as WerkzeugPreconditionFailed,
)
from werkzeug.exceptions import (
    ServiceUnavailable as WerkzeugServiceUnavailable,
)

from app.api.v1 import envelope
from app.db.reach import is_out_of_reach
from app.errors import (
    _N,
    AuthenticationRequired,
    DomainError,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    RateLimited,
    ServiceUnavailable,
    ValidationError,
    answer_for,
)
from app.http.store_outage import note_outage
from app.i18n import translate_error
from app.input_errors import refused_input

API_PREFIX = "/api/"

# What Flask and Werkzeug raise themselves, as the contract's errors; the first match counts.
_DOMAIN_OF_HTTP: tuple[tuple[type[HTTPException], type[DomainError]], ...] = (
    (WerkzeugNotFound, NotFound),
    (WerkzeugMethodNotAllowed, MethodNotAllowed),
    (RequestEntityTooLarge, PayloadTooLarge),
    (Unauthorized, AuthenticationRequired),
    (WerkzeugForbidden, Forbidden),
    (WerkzeugPreconditionFailed, PreconditionFailed),
    (TooManyRequests, RateLimited),
    (WerkzeugServiceUnavailable, ServiceUnavailable),
)

log = structlog.get_logger(__name__)


def init_error_handlers(app: Flask) -> None:
    """Register the handlers of this app."""
    app.register_error_handler(DomainError, _on_domain_error)
    app.register_error_handler(HTTPError, _on_input_error)
    app.register_error_handler(pydantic.ValidationError, _on_pydantic_error)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(exc.SQLAlchemyError, _on_store_error)
    app.register_error_handler(Exception, _on_unforeseen)


def _on_domain_error(failure: DomainError) -> Response:
    if isinstance(failure, ServiceUnavailable):
        note_outage(failure)
    if isinstance(failure, InternalError):
        log.error("request failed", path=request.path, exc_info=failure)
    return _answer(failure)


def _on_input_error(error: HTTPError) -> Response:
    """APIFlask's refusal: of input that a route declared it keeps the reason as the cause."""
    if isinstance(error.__cause__, pydantic.ValidationError):
        return _on_pydantic_error(error.__cause__)
    return _answer(ValidationError(), status=error.status_code)


def _on_pydantic_error(error: pydantic.ValidationError) -> Response:
    return _answer(refused_input(error))


def _on_http_exception(error: HTTPException) -> Response:
    if error.response is not None or error.code is None or error.code < 400:  # a redirect, or a made answer
        return make_response(error.get_response())
    failure, status = _as_domain_error(error)
    response = _answer(failure, status=status)
    if isinstance(error, WerkzeugMethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def _as_domain_error(error: HTTPException) -> tuple[DomainError, int | None]:
    for kind, domain in _DOMAIN_OF_HTTP:
        if isinstance(error, kind):
            return domain(), None
    if isinstance(error, UnsupportedMediaType):  # a body that is not JSON is a bad body, says the contract
        return ValidationError(envelope.NOT_AN_OBJECT), None
    if isinstance(error, BadRequest):
        return ValidationError(_N("请求无法解析，请检查请求体是否为合法的 JSON")), None
    code = error.code or 500
    return (ValidationError(), code) if code < 500 else (InternalError(), code)


def _on_store_error(error: exc.SQLAlchemyError) -> Response:
    note_outage(error)
    if not is_out_of_reach(error):
        return _on_unforeseen(error)
    log.error("store out of reach", path=request.path, exc_info=error)
    return _answer(ServiceUnavailable(_N("数据库暂时不可用，请稍后重试")))


def _on_unforeseen(error: Exception) -> Response:
    log.error("request failed", path=request.path, exc_info=error)
    return _answer(InternalError())


def _answer(failure: DomainError, *, status: int | None = None) -> Response:
    if request.path.startswith(API_PREFIX) or request.path == API_PREFIX.rstrip("/"):
        return envelope.error(failure, status=status)
    return _page(failure, answer_for(failure).status if status is None else status)


def _page(failure: DomainError, status: int) -> Response:
    message = translate_error(failure)
    try:
        body = render_template("error.html", status=status, message=message)
    except Exception:
        # The page itself may need what just failed; the reader must still learn what happened.
        log.exception("error page not rendered", path=request.path)
        body = f"<!doctype html><meta charset=utf-8><title>{status}</title><p>{status}: {escape(message)}</p>"
    response = make_response(body, status)
    if failure.retry_after is not None:
        response.headers["Retry-After"] = str(failure.retry_after)
    return response
