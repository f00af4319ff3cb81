"""The request id: taken from the header `X-Request-ID` or made here, logged with every record, sent back."""

from __future__ import annotations

import re
from uuid import uuid4

import structlog
from flask import Flask, Response, g, request

HEADER = "X-Request-ID"

# What logs, the audit log and answers can carry: UUIDs, base64 and what load balancers make.
_ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}")


def init_request_id(app: Flask) -> None:
    """Give every request of this app its id, in `g.request_id`."""
    app.before_request(_take)
    app.after_request(_send_back)
    app.teardown_request(_forget)


def _take() -> None:
    given = request.headers.get(HEADER, "")
    g.request_id = given if _ACCEPTED.fullmatch(given) else uuid4().hex
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _send_back(response: Response) -> Response:
    response.headers[HEADER] = g.request_id
    return response


def _forget(_error: BaseException | None) -> None:
    # Threads serve one request after the other, and other work in between.
    structlog.contextvars.unbind_contextvars("request_id")
