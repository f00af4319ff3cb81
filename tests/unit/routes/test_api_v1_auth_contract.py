"""Logging in and out over HTTP: session, CSRF, bearer token."""

from __future__ import annotations

import json

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from app.db.account_tables import audit_log
from app.db.engines import read_transaction
from app.runtime import Runtime
from app.services.accounts.admin_sync import sync_admin
from app.services.accounts.login_service import PAIR_LIMIT
from tests.unit.conftest import ADMIN_PASSWORD, API_TOKEN

LOGIN = "/api/v1/auth/login"
LOGOUT = "/api/v1/auth/logout"
ME = "/api/v1/auth/me"
CSRF_TOKEN = "/api/v1/auth/csrf-token"
RIGHT = {"username": "admin", "password": ADMIN_PASSWORD}


def code(answer: object) -> tuple[int, str | None]:
    return answer.status_code, answer.get_json().get("message_code")  # type: ignore[attr-defined]


def csrf_of(client: FlaskClient) -> dict[str, str]:
    answer = client.get(CSRF_TOKEN)
    assert answer.status_code == 200
    return {"X-CSRFToken": answer.get_json()["data"]["csrf_token"]}


def test_a_session_from_login_to_logout(client: FlaskClient) -> None:
    assert code(client.get(ME)) == (401, "AUTHENTICATION_REQUIRED")
    token = csrf_of(client)

    answer = client.post(LOGIN, json=RIGHT, headers=token)
    assert answer.status_code == 200
    user = answer.get_json()["data"]["user"]
    assert (user["username"], user["permissions"]) == ("admin", ["admin", "view"])

    assert client.get(ME).get_json()["data"] == user
    assert code(client.post(LOGOUT)) == (403, "CSRF_INVALID")
    assert client.post(LOGOUT, headers=token).status_code == 200, "the token from before the login still holds"
    assert code(client.get(ME)) == (401, "AUTHENTICATION_REQUIRED")


def test_the_session_cookie_is_closed_to_scripts_and_foreign_pages(client: FlaskClient) -> None:
    plain = client.post(LOGIN, json=RIGHT).headers["Set-Cookie"]
    assert plain.startswith("session=")
    assert "HttpOnly" in plain
    assert "SameSite=Lax" in plain
    assert "Secure" not in plain
    secure = client.post(LOGIN, json=RIGHT, headers={"X-Forwarded-Proto": "https"}).headers["Set-Cookie"]
    assert "Secure" in secure


@pytest.mark.parametrize("token", ["", "wrong", "IjEi.ZZ.x"])
def test_a_write_needs_this_sessions_token(admin_client: FlaskClient, token: str) -> None:
    del admin_client.environ_base["HTTP_X_CSRFTOKEN"]
    assert code(admin_client.post(LOGOUT, headers={"X-CSRFToken": token})) == (403, "CSRF_INVALID")
    assert admin_client.get(ME).status_code == 200


def test_the_token_of_another_session_is_no_good(app: Flask, admin_client: FlaskClient) -> None:
    del admin_client.environ_base["HTTP_X_CSRFTOKEN"]
    assert code(admin_client.post(LOGOUT, headers=csrf_of(app.test_client()))) == (403, "CSRF_INVALID")


@pytest.mark.parametrize("with_header", [True, False])
def test_a_token_inside_the_body_is_refused(admin_client: FlaskClient, with_header: bool) -> None:
    token = admin_client.environ_base.pop("HTTP_X_CSRFTOKEN")
    headers = {"X-CSRFToken": token} if with_header else {}
    assert code(admin_client.post(LOGOUT, json={"csrf_token": token}, headers=headers)) == (403, "CSRF_INVALID")
    assert code(admin_client.post(LOGIN, json={**RIGHT, "csrf_token": token}, headers=headers)) == (403, "CSRF_INVALID")


def test_a_form_field_is_no_token(admin_client: FlaskClient) -> None:
    token = admin_client.environ_base.pop("HTTP_X_CSRFTOKEN")
    assert code(admin_client.post(LOGOUT, data={"csrf_token": token})) == (403, "CSRF_INVALID")


def test_a_wrong_token_stops_a_login(client: FlaskClient) -> None:
    assert code(client.post(LOGIN, json=RIGHT, headers={"X-CSRFToken": "wrong"})) == (403, "CSRF_INVALID")


def test_a_write_of_nobody_asks_for_a_login_first(client: FlaskClient) -> None:
    assert code(client.post(LOGOUT)) == (401, "AUTHENTICATION_REQUIRED")


def test_the_bearer_token_needs_no_csrf(token_client: FlaskClient) -> None:
    answer = token_client.get(ME)
    assert answer.get_json()["data"] == {"id": None, "username": "api-token", "permissions": ["admin", "view"]}
    assert "Set-Cookie" not in answer.headers
    assert token_client.post(LOGOUT).status_code == 200


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "Bearer ", "Bearer", f"Basic {API_TOKEN}", f"Bearer {API_TOKEN}x", "Bearer ÿ", API_TOKEN]
)
def test_another_token_opens_nothing(client: FlaskClient, header: str) -> None:
    answer = client.get(ME, headers={"Authorization": header})
    assert code(answer) == (401, "AUTHENTICATION_REQUIRED")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_wrong_token_is_not_saved_by_a_session(admin_client: FlaskClient) -> None:
    assert code(admin_client.get(ME, headers={"Authorization": "Bearer wrong"})) == (401, "AUTHENTICATION_REQUIRED")


def test_wrong_name_and_wrong_password_look_the_same(client: FlaskClient) -> None:
    answers = [
        client.post(LOGIN, json={"username": name, "password": "wrong"}).get_json() for name in ("admin", "nobody")
    ]
    assert {answer["message_code"] for answer in answers} == {"INVALID_CREDENTIALS"}
    assert {answer["message"] for answer in answers} == {"用户名或密码错误"}


def test_too_many_failures_are_told_when_to_come_back(client: FlaskClient) -> None:
    for _ in range(PAIR_LIMIT):
        assert code(client.post(LOGIN, json={**RIGHT, "password": "wrong"})) == (401, "INVALID_CREDENTIALS")
    answer = client.post(LOGIN, json=RIGHT)
    assert code(answer) == (429, "RATE_LIMIT_EXCEEDED")
    assert 1 <= int(answer.headers["Retry-After"]) <= 300
    # The reader behind another address, as nginx tells it, is not the one who guessed.
    assert client.post(LOGIN, json=RIGHT, headers={"X-Forwarded-For": "198.51.100.7"}).status_code == 200


def test_a_changed_password_ends_the_session(admin_client: FlaskClient, runtime: Runtime) -> None:
    assert admin_client.get(ME).status_code == 200
    sync_admin(runtime.database, "another password", "secret key of the tests")
    assert code(admin_client.get(ME)) == (401, "AUTHENTICATION_REQUIRED")


BAD_BODIES = [
    None,
    [],
    "text",
    1,
    {},
    {"username": "admin"},
    {"username": "", "password": ""},
    {"username": None, "password": None},
    {"username": 1, "password": 2},
    {"username": ["admin"], "password": {"a": 1}},
    {"username": True, "password": "x"},
    {"username": "x" * 65, "password": "x"},
    {"username": "admin", "password": "x" * 1025},
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: json.dumps(body)[:40])
def test_a_bad_body_is_400(client: FlaskClient, body: object) -> None:
    answer = client.post(LOGIN, data=json.dumps(body), content_type="application/json")
    assert code(answer) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "body",
    ["", "{", "NaN", '{"username": NaN}', "[" * 100_000, '{"username": "\\ud800"}', "\x00", "username=admin"],
    ids=range(8),
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_what_is_not_json_is_400(client: FlaskClient, body: str, content_type: str) -> None:
    assert code(client.post(LOGIN, data=body, content_type=content_type)) == (400, "VALIDATION_ERROR")


def test_a_refused_password_is_not_repeated(client: FlaskClient) -> None:
    answer = client.post(LOGIN, json={"username": "admin", "password": ["sesame"]})
    assert answer.status_code == 400
    assert answer.get_json()["context"]["field"] == "password"
    assert "sesame" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("name", ["管理员", "admin\x00", "' OR 1=1 --", "\U0001f40b" * 60])
def test_strange_names_are_only_unknown(client: FlaskClient, name: str) -> None:
    assert code(client.post(LOGIN, json={"username": name, "password": "x"})) == (401, "INVALID_CREDENTIALS")


@pytest.mark.parametrize("session_id", ["1.wrong", "1", "x.y", "", "99999999999999999999.a", "²."])
def test_a_session_that_names_no_user_is_nobody(client: FlaskClient, session_id: str) -> None:
    with client.session_transaction() as session:
        session["_user_id"] = session_id
    assert code(client.get(ME)) == (401, "AUTHENTICATION_REQUIRED")


def test_logins_and_writes_are_in_the_audit_log(client: FlaskClient, runtime: Runtime) -> None:
    client.post(LOGIN, json={**RIGHT, "password": "wrong"})
    token = client.post(LOGIN, json=RIGHT).get_json()["data"]["csrf_token"]
    client.get(ME)
    client.post(LOGOUT, headers={"X-CSRFToken": token, "X-Request-ID": "the-logout", "X-Forwarded-For": "198.51.100.7"})

    with read_transaction(runtime.database) as connection:
        rows = connection.execute(select(audit_log).order_by(audit_log.c.id)).mappings().all()
    assert [(row["actor"], row["action"], row["status"]) for row in rows] == [
        ("admin", "auth.log_in", 401),
        ("admin", "auth.log_in", 200),
        ("admin", "auth.log_out", 200),
    ]
    assert (rows[2]["request_id"], rows[2]["address"], rows[2]["target"]) == ("the-logout", "198.51.100.7", LOGOUT)
