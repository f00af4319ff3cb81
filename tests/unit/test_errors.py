"""Domain errors: the contract's table, and texts that are safe to show."""

from __future__ import annotations

import json

import pytest

from app.errors import (
    ERROR_ANSWERS,
    SHOWN_VALUE_LIMIT,
    DomainError,
    NotFound,
    SchedulerNotRunning,
    ServiceUnavailable,
    ValidationError,
    answer_for,
    shown_value,
)

CONTRACT = {
    "ValidationError": (400, "VALIDATION_ERROR"),
    "AuthenticationRequired": (401, "AUTHENTICATION_REQUIRED"),
    "InvalidCredentials": (401, "INVALID_CREDENTIALS"),
    "CsrfInvalid": (403, "CSRF_INVALID"),
    "Forbidden": (403, "FORBIDDEN"),
    "NotFound": (404, "NOT_FOUND"),
    "SchedulerNotRunning": (409, "CONSTRAINT_VIOLATION"),
    "PayloadTooLarge": (413, "PAYLOAD_TOO_LARGE"),
    "RateLimited": (429, "RATE_LIMIT_EXCEEDED"),
    "InternalError": (500, "INTERNAL_ERROR"),
    "MethodNotAllowed": (405, "METHOD_NOT_ALLOWED"),
    "PreconditionFailed": (412, "PRECONDITION_FAILED"),
    "ServiceUnavailable": (503, "SERVICE_UNAVAILABLE"),
}


def test_the_table_is_the_contracts() -> None:
    assert {kind.__name__: (row.status, row.message_code) for kind, row in ERROR_ANSWERS.items()} == CONTRACT


def test_every_domain_error_is_in_the_table() -> None:
    assert set(DomainError.__subclasses__()) == set(ERROR_ANSWERS)


def test_the_409_says_what_the_contract_says() -> None:
    assert str(SchedulerNotRunning()) == "调度器未启动"


def test_a_subclass_answers_as_its_parent() -> None:
    class JobNotFound(NotFound):
        pass

    assert answer_for(JobNotFound()).status == 404


def test_params_fill_the_text_and_a_plain_percent_stays() -> None:
    assert str(NotFound("没有 %(id)s", params={"id": "x"})) == "没有 x"
    assert str(NotFound("100%")) == "100%"


def test_validation_says_field_value_and_what_is_accepted() -> None:
    error = ValidationError(field="hours", value="soon", accepted=["a number"])
    assert error.context == {"field": "hours", "value": "soon", "accepted": ["a number"]}


def test_unavailable_says_when_to_come_back() -> None:
    assert ServiceUnavailable().retry_after == 5
    assert ServiceUnavailable(retry_after=2).retry_after == 2


@pytest.mark.parametrize("value", [None, True, 0, 2**53 - 1, 1.5, "中文", ""])
def test_json_scalars_are_shown_as_they_are(value: object) -> None:
    assert shown_value(value) == value


def _nested() -> list[object]:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    "value",
    [10**5000, float("nan"), float("inf"), "x" * 10_000, [1] * 10_000, object(), _nested()],
    ids=["huge", "nan", "inf", "text", "list", "object", "nested"],  # pytest cannot print some of them either
)
def test_anything_else_is_shown_short(value: object) -> None:
    shown = shown_value(value)
    assert len(json.dumps(shown, ensure_ascii=False)) <= SHOWN_VALUE_LIMIT + 3
