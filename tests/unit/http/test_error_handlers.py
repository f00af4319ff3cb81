"""Whatever a route raises: an envelope under /api, a page elsewhere, and nothing of the inside."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable

import pydantic
import pytest
from flask import Flask, abort, redirect, request
from flask.testing import FlaskClient
from sqlalchemy import exc
from werkzeug.exceptions import HTTPException

from app.errors import InternalError, NotFound, RateLimited, ServiceUnavailable, ValidationError
from app.http.web_server import BODY_LIMIT
from app.logging_setup import configure_logging

SECRET = "the inside: /app/userdata, SELECT, password"


def raising(error: Exception) -> Callable[[], str]:
    def view() -> str:
        raise error

    return view


class Model(pydantic.BaseModel):
    hours: int


def refused_by_a_model() -> str:
    Model.model_validate({"hours": "soon"})
    return ""


def reading_json() -> dict[str, object]:
    return {"read": request.get_json()}


VIEWS: dict[str, Callable[..., object]] = {
    "domain": raising(NotFound("没有 %(id)s", params={"id": "x"})),
    "limited": raising(RateLimited(retry_after=7)),
    "unavailable": raising(ServiceUnavailable()),
    "internal": raising(InternalError()),
    "unforeseen": raising(RuntimeError(SECRET)),
    "locked": raising(exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked"))),
    "pool": raising(exc.TimeoutError("QueuePool limit")),
    "broken-sql": raising(exc.ProgrammingError(f"SELECT {SECRET}", {}, Exception("no such column"))),
    "model": refused_by_a_model,
    "teapot": lambda: abort(418),
    "gone": lambda: abort(410),
    "gateway": lambda: abort(502),
    "moved": lambda: redirect("/somewhere"),
    "json": reading_json,
}

EXPECTED = {
    "domain": (404, "NOT_FOUND"),
    "limited": (429, "RATE_LIMIT_EXCEEDED"),
    "unavailable": (503, "SERVICE_UNAVAILABLE"),
    "internal": (500, "INTERNAL_ERROR"),
    "unforeseen": (500, "INTERNAL_ERROR"),
    "locked": (503, "SERVICE_UNAVAILABLE"),
    "pool": (503, "SERVICE_UNAVAILABLE"),
    "broken-sql": (500, "INTERNAL_ERROR"),
    "model": (400, "VALIDATION_ERROR"),
    "teapot": (418, "VALIDATION_ERROR"),
    "gone": (410, "VALIDATION_ERROR"),
    "gateway": (502, "INTERNAL_ERROR"),
}


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    for name, view in VIEWS.items():
        for prefix in ("/api/test", "/test"):
            app.add_url_rule(f"{prefix}/{name}", f"{prefix}/{name}", view, methods=["GET", "POST"])  # type: ignore[arg-type]
    return app.test_client()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_api_answers_an_envelope(client: FlaskClient, name: str) -> None:
    answer = client.get(f"/api/test/{name}", headers={"X-Request-ID": "r-1"})
    body = answer.get_json()

    assert (answer.status_code, body["message_code"]) == EXPECTED[name]
    assert (body["success"], body["error"], body["request_id"]) == (False, True, "r-1")
    assert body["message"]
    assert body["timestamp"].endswith("+00:00")
    assert "inside" not in answer.get_data(as_text=True)
    assert ("Retry-After" in answer.headers) == (answer.status_code in {429, 503})


@pytest.mark.parametrize("name", EXPECTED)
def test_a_page_answers_html(client: FlaskClient, name: str) -> None:
    answer = client.get(f"/test/{name}")
    assert answer.status_code == EXPECTED[name][0]
    assert answer.mimetype == "text/html"
    assert "inside" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("name", ["unforeseen", "locked", "broken-sql", "internal"])
def test_the_log_has_what_the_answer_has_not(client: FlaskClient, name: str) -> None:
    stream = io.StringIO()
    configure_logging("web", "INFO", stream)
    client.get(f"/api/test/{name}", headers={"X-Request-ID": "find-me"})
    log = stream.getvalue()
    assert '"request_id": "find-me"' in log
    assert "Traceback" in log


def test_what_flask_itself_refuses(client: FlaskClient) -> None:
    assert client.get("/api/nothing").get_json()["message_code"] == "NOT_FOUND"
    assert client.get("/api").get_json()["message_code"] == "NOT_FOUND"
    wrong_method = client.delete("/api/test/json")
    assert (wrong_method.status_code, wrong_method.get_json()["message_code"]) == (405, "METHOD_NOT_ALLOWED")
    assert "POST" in wrong_method.headers["Allow"]
    for body, kind in (("{", "application/json"), ("{}", "text/plain"), ("", "")):
        answer = client.post("/api/test/json", data=body, content_type=kind)
        assert (answer.status_code, answer.get_json()["message_code"]) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize("path", ["/api/test/json", "/api/test/moved"])
def test_a_body_above_the_limit_is_413_whether_read_or_not(client: FlaskClient, path: str) -> None:
    answer = client.post(path, data=b"x" * (BODY_LIMIT + 1), content_type="application/json")
    assert (answer.status_code, answer.get_json()["message_code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_body_at_the_limit_is_read(client: FlaskClient) -> None:
    body = b'"' + b"x" * (BODY_LIMIT - 2) + b'"'
    assert client.post("/api/test/json", data=body, content_type="application/json").status_code == 200


def test_a_redirect_is_no_error(client: FlaskClient) -> None:
    answer = client.get("/api/test/moved")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/somewhere")


def test_a_page_without_its_template_still_says_what_happened(client: FlaskClient, app: Flask) -> None:
    app.jinja_env.loader = None
    answer = client.get("/test/domain")
    assert answer.status_code == 404
    assert "没有 x" in answer.get_data(as_text=True)


def test_input_errors_name_the_field(client: FlaskClient) -> None:
    context = client.get("/api/test/model").get_json()["context"]
    assert (context["field"], context["value"]) == ("hours", "soon")


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("en", "Too many requests; try again later"),
        ("zh-CN", "请求过于频繁，请稍后重试"),
        ("en-US,zh;q=0.5", "Too many requests; try again later"),
        ("fr", "请求过于频繁，请稍后重试"),
        ("", "请求过于频繁，请稍后重试"),
        (";;q=,", "请求过于频繁，请稍后重试"),
    ],
)
def test_the_message_is_in_the_readers_language(client: FlaskClient, language: str, message: str) -> None:
    answer = client.get("/api/test/limited", headers={"Accept-Language": language})
    assert answer.get_json()["message"] == message
    assert answer.get_json()["message_code"] == "RATE_LIMIT_EXCEEDED"


@pytest.mark.parametrize("given", ["r-1", "0f" * 16, "A.b_c-9"])
def test_a_good_request_id_is_kept(client: FlaskClient, given: str) -> None:
    assert client.get("/api/v1/health/basic", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 65, "ä", "a;b", "<script>", "%0a"])
def test_any_other_is_replaced(client: FlaskClient, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    ids = [client.get("/api/v1/health/basic", headers=headers).headers["X-Request-ID"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(len(made) == 32 for made in ids)


def test_every_http_exception_of_werkzeug_answers_its_own_class_of_status(client: FlaskClient, app: Flask) -> None:
    kinds = [kind for kind in HTTPException.__subclasses__() if kind.code and kind.code >= 400]
    for kind in kinds:
        app.view_functions["/api/test/teapot"] = raising(kind())
        answer = client.get("/api/test/teapot")
        assert answer.get_json()["error"] is True, kind
        assert answer.status_code // 100 == (kind.code or 0) // 100, kind


def test_validation_errors_show_what_was_accepted_in_the_readers_language(client: FlaskClient, app: Flask) -> None:
    app.view_functions["/api/test/domain"] = raising(
        ValidationError(field="username", value="", accepted="1 到 64 个字符的字符串")
    )
    answer = client.get("/api/test/domain", headers={"Accept-Language": "en"})
    assert answer.get_json()["context"]["accepted"] == "a string of 1 to 64 characters"
