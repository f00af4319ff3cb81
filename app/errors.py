"""Domain errors, and the one table that says what each of them answers.

A message is written in Chinese: that text is the message id of the translation catalogues. It may hold
`%(name)s` placeholders, filled from `params`. Nothing is translated here: `app.i18n.translate_error` does
that at the edge, where the reader's language is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHOWN_VALUE_LIMIT = 256  # characters of a refused value that an answer repeats


def _N(message: str) -> str:  # noqa: N802, RUF100 - the marker's name is the gettext keyword that extraction looks for
    """Mark a message for the translation catalogues; it is translated later, at the edge."""
    return message


class DomainError(Exception):
    """Something the user or the environment did, with a message that may be shown.

    message: Chinese text, which is also its message id; the class's own message when left out.
    params: values of the message's `%(name)s` placeholders.
    context: details for programs, shown in the envelope's `context`; must be JSON.
    retry_after: whole seconds for the header `Retry-After`, where waiting helps.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.message = message if message is not None else answer_for(self).message
        self.params = dict(params or {})
        self.context = dict(context or {})
        self.retry_after = retry_after
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message % self.params if self.params else self.message


class ValidationError(DomainError):
    """Input that cannot be accepted. Says which field, what it held and what would be accepted.

    accepted is a list of values, or words (then translated like a message).
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        field: str | None = None,
        value: Any = None,
        accepted: Any = None,
        params: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.field = field
        self.value = value
        self.accepted = accepted
        details = dict(context or {})
        if field is not None:
            details |= {"field": field, "value": shown_value(value)}
        if accepted is not None:
            details["accepted"] = accepted
        super().__init__(message, params=params, context=details)


class AuthenticationRequired(DomainError):
    """Nobody is logged in, or the token is not known."""


class InvalidCredentials(DomainError):
    """User name or password is wrong; which of the two is never told."""


class CsrfInvalid(DomainError):
    """The CSRF token is missing or wrong."""


class Forbidden(DomainError):
    """Logged in, but not allowed to do this."""


class NotFound(DomainError):
    """The named thing does not exist."""


class SchedulerNotRunning(DomainError):
    """This process runs no scheduler, on purpose."""


class MethodNotAllowed(DomainError):
    """The path exists, but not with this method."""


class PreconditionFailed(DomainError):
    """The thing was changed by somebody else since it was read."""


class PayloadTooLarge(DomainError):
    """The request body is above the limit."""


class RateLimited(DomainError):
    """Too many requests."""


class ServiceUnavailable(DomainError):
    """A store or an upstream is out of reach; trying again later helps."""

    def __init__(
        self,
        message: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        retry_after: int = 5,
    ) -> None:
        super().__init__(message, params=params, context=context, retry_after=retry_after)


class InternalError(DomainError):
    """Anything unforeseen. Its message tells nothing of the inside."""


@dataclass(frozen=True)
class ErrorAnswer:
    """What an error answers: HTTP status, the code for programs, and the message when none was given."""

    status: int
    message_code: str
    message: str


ERROR_ANSWERS: Mapping[type[DomainError], ErrorAnswer] = {
    ValidationError: ErrorAnswer(400, "VALIDATION_ERROR", _N("请求参数无效")),
    AuthenticationRequired: ErrorAnswer(401, "AUTHENTICATION_REQUIRED", _N("请先登录")),
    InvalidCredentials: ErrorAnswer(401, "INVALID_CREDENTIALS", _N("用户名或密码错误")),
    CsrfInvalid: ErrorAnswer(403, "CSRF_INVALID", _N("CSRF 令牌缺失或无效，请刷新页面后重试")),
    Forbidden: ErrorAnswer(403, "FORBIDDEN", _N("没有权限执行此操作")),
    NotFound: ErrorAnswer(404, "NOT_FOUND", _N("请求的资源不存在")),
    MethodNotAllowed: ErrorAnswer(405, "METHOD_NOT_ALLOWED", _N("此地址不支持该请求方法")),
    SchedulerNotRunning: ErrorAnswer(409, "CONSTRAINT_VIOLATION", _N("调度器未启动")),
    PreconditionFailed: ErrorAnswer(412, "PRECONDITION_FAILED", _N("内容已被他人修改，请刷新后重试")),
    PayloadTooLarge: ErrorAnswer(413, "PAYLOAD_TOO_LARGE", _N("请求内容过大")),
    RateLimited: ErrorAnswer(429, "RATE_LIMIT_EXCEEDED", _N("请求过于频繁，请稍后重试")),
    ServiceUnavailable: ErrorAnswer(503, "SERVICE_UNAVAILABLE", _N("服务暂时不可用，请稍后重试")),
    InternalError: ErrorAnswer(500, "INTERNAL_ERROR", _N("服务器内部错误，请联系管理员")),
}


def answer_for(error: DomainError) -> ErrorAnswer:
    """Status, message code and default message of an error; a subclass answers as its nearest parent."""
    for kind in type(error).__mro__:
        if kind in ERROR_ANSWERS:
            return ERROR_ANSWERS[kind]
    return ERROR_ANSWERS[InternalError]


def shown_value(value: Any) -> Any:
    """A refused value in a form that fits an answer: JSON scalars as they are, the rest as short text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        text = value
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=repr)
        except (ValueError, RecursionError):  # self-referring, or nested beyond what Python walks
            text = type(value).__name__
    return text if len(text) <= SHOWN_VALUE_LIMIT else text[:SHOWN_VALUE_LIMIT] + "…"
