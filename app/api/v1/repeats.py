"""The header `Idempotency-Key`: with it a request can be sent again, and is carried out once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from flask import Response, request

from app.errors import _N, ValidationError
from app.ledger.repeats import HEADER, RepeatKey
from app.services.accounts import Principal

REPLAYED = "Idempotency-Replayed"
REPEATABLE_ATTRIBUTE = "takes_idempotency_key"
KEY_PATTERN = r"^[\x21-\x7e]{1,255}$"

P = ParamSpec("P")
R = TypeVar("R")


def repeatable(view: Callable[P, R]) -> Callable[P, R]:
    """Mark a view that heeds the header, for the API's description."""
    setattr(view, REPEATABLE_ATTRIBUTE, True)
    return view


def repeat_key(principal: Principal) -> RepeatKey | None:
    """What the header of this request identifies; None without one. ValidationError for one that is no key.

    A key counts for one method, route and principal: two people's keys never meet.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not re.fullmatch(KEY_PATTERN, key):
        raise ValidationError(
            _N("请求头 Idempotency-Key 无效"), field=HEADER, value=key, accepted=_N("1 到 255 个可见的 ASCII 字符")
        )
    return RepeatKey(f"{request.method} {request.url_rule} {principal.created_by}", key, _fingerprint())


def mark_replayed(response: Response) -> Response:
    """Tell that this answer is that of an earlier request."""
    response.headers[REPLAYED] = "true"
    return response


def _fingerprint() -> str:
    """What the request says: two bodies that differ only in how they are written say the same."""
    body = request.get_data()
    if request.is_json and body:
        parsed = request.get_json(silent=True)
        if parsed is not None:
            body = json.dumps(parsed, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(request.path.encode() + b"\0" + body).hexdigest()


def describe_header(operation: dict[str, Any]) -> None:
    """Add the header to an operation of the API's description, and that of a repeat's answer."""
    operation.setdefault("parameters", []).append(
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "description": "A key of your own making, such as a UUID. The same request with the same key is carried out"
            " once within 24 hours; a repeat answers what the first one did.",
            "schema": {"type": "string", "pattern": KEY_PATTERN, "minLength": 1, "maxLength": 255},
        }
    )
    for status, answer in operation["responses"].items():
        if str(status).startswith("2"):
            answer["headers"] = {
                REPLAYED: {
                    "description": "Present when an earlier request with this key was carried out",
                    "schema": {"const": "true"},
                }
            }
