"""Reads whose connection was ended in the middle are done once more; nothing else is."""

from __future__ import annotations

import sqlite3

import pytest
from flask import Flask, request
from sqlalchemy import exc

from app.api.v1.repeats import repeatable
from app.errors import ServiceUnavailable
from app.http.error_handlers import init_error_handlers
from app.http.request_id import init_request_id
from app.http.store_outage import init_store_outage
from app.i18n import init_i18n

GONE = exc.OperationalError("SELECT", None, Exception("terminating connection"), connection_invalidated=True)
LOCKED = exc.OperationalError("SELECT", None, sqlite3.OperationalError("database is locked"))


class Views:
    """Fails with the given errors, one a call, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0
        app = Flask("app")
        init_request_id(app)
        init_i18n(app)
        init_store_outage(app)
        init_error_handlers(app)
        app.add_url_rule("/api/x", view_func=self.view, methods=["GET", "POST"])
        app.add_url_rule("/api/wrapped", view_func=self.wrapped, endpoint="wrapped")

        @repeatable
        def keyed() -> dict[str, object]:
            return {**self.view(), "body": request.get_json()}

        app.add_url_rule("/api/keyed", view_func=keyed, methods=["POST"])
        self.client = app.test_client()

    def view(self) -> dict[str, int]:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return {"calls": self.calls}

    def wrapped(self) -> dict[str, int]:
        try:
            return self.view()
        except exc.SQLAlchemyError as error:
            raise ServiceUnavailable from error


@pytest.mark.parametrize("path", ["/api/x", "/api/wrapped"])
def test_a_read_is_done_once_more(path: str) -> None:
    views = Views(GONE)
    answer = views.client.get(path)
    assert (answer.status_code, answer.json) == (200, {"calls": 2})


def test_a_second_failure_is_answered() -> None:
    views = Views(GONE, GONE)
    assert views.client.get("/api/x").status_code == 503
    assert views.calls == 2


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k1"}])
def test_a_write_is_not_repeated_where_nothing_heeds_its_key(headers: dict[str, str]) -> None:
    views = Views(GONE)
    assert views.client.post("/api/x", json={"a": 1}, headers=headers).status_code == 503
    assert views.calls == 1


def test_a_write_with_a_key_is_repeated_with_its_body() -> None:
    views = Views(GONE)
    answer = views.client.post("/api/keyed", json={"a": 1}, headers={"Idempotency-Key": "k1"})
    assert (answer.status_code, answer.json) == (200, {"calls": 2, "body": {"a": 1}})


def test_a_write_without_a_key_is_not_repeated() -> None:
    views = Views(GONE)
    assert views.client.post("/api/keyed", json={"a": 1}).status_code == 503
    assert views.calls == 1


@pytest.mark.parametrize(("error", "status"), [(LOCKED, 503), (ServiceUnavailable(), 503), (ValueError(), 500)])
def test_what_waiting_does_not_mend_is_not_repeated(error: Exception, status: int) -> None:
    views = Views(error)
    assert views.client.get("/api/x").status_code == status
    assert views.calls == 1
