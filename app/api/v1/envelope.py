"""The envelope that every answer of the API comes in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response, g, jsonify

from app.errors import _N, DomainError, answer_for
from app.i18n import translate, translate_context, translate_error

NOT_AN_OBJECT = _N("请求体必须是 JSON 对象，且 Content-Type 为 application/json")


def success(
    data: Any = None,
    message: str = _N("操作成功"),
    *,
    params: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    status: int = 200,
) -> Response:
    """An answer that succeeded. `message` is a message id; `data` and `meta` are left out when None."""
    body: dict[str, Any] = {
        "success": True,
        "error": False,
        "message": translate(message, params),
        "timestamp": _now(),
    }
    if data is not None:
        body["data"] = data
    if meta is not None:
        body["meta"] = meta
    return _answer(body, status)


def error(failure: DomainError, *, status: int | None = None) -> Response:
    """The answer that a domain error makes; `status` overrides the table's."""
    answer = answer_for(failure)
    body: dict[str, Any] = {
        "success": False,
        "error": True,
        "message": translate_error(failure),
        "message_code": answer.message_code,
        "timestamp": _now(),
        "request_id": g.get("request_id", ""),
    }
    context = translate_context(failure)
    if context:
        body["context"] = context
    response = _answer(body, answer.status if status is None else status)
    if failure.retry_after is not None:
        response.headers["Retry-After"] = str(failure.retry_after)
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _answer(body: dict[str, Any], status: int) -> Response:
    response = jsonify(body)
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"  # answers are of one reader and one moment
    return response


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
