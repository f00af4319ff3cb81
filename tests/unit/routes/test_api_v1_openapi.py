"""The description of the API covers the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

OPEN_TO_ALL = {
    "/api/v1/auth/csrf-token",
    "/api/v1/auth/login",
    "/api/v1/health/basic",
    "/api/v1/health/live",
    "/api/v1/health/ready",
    "/api/v1/scheduler/health/live",
    "/api/v1/scheduler/health/ready",
    "/api/v1/openapi.json",
}


@pytest.fixture
def spec(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/api/v1/openapi.json")
    assert answer.status_code == 200
    described: dict[str, Any] = answer.get_json()
    return described


def api_routes(app: Flask) -> Iterator[tuple[str, str]]:
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/"):
            path = re.sub(r"<(?:[^<>:]*:)?([^<>]+)>", r"{\1}", rule.rule)
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                yield path, method.lower()


def test_it_is_openapi_3_1(spec: dict[str, Any]) -> None:
    assert spec["openapi"].startswith("3.1.")


def test_every_route_is_described(app: Flask, spec: dict[str, Any]) -> None:
    described = {(path, method) for path, methods in spec["paths"].items() for method in methods}
    missing = set(api_routes(app)) - described - {("/api/v1/openapi.json", "get")}
    assert missing == set()
    assert all(path.startswith("/api/") for path in spec["paths"])


def test_every_route_asks_for_a_permission_or_is_known_to_be_open(spec: dict[str, Any]) -> None:
    unguarded = {path for path, methods in spec["paths"].items() for op in methods.values() if "security" not in op}
    assert unguarded <= OPEN_TO_ALL


def test_writes_are_for_admins(spec: dict[str, Any]) -> None:
    needed = {
        (path, method): operation.get("x-permission")
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/api/v1/scheduler/") and method != "get"
    }
    assert needed.pop(("/api/v1/scheduler/triggers/preview", "post")) == "view"  # it changes nothing
    assert set(needed.values()) == {"admin"}


def test_writes_ask_a_session_for_the_csrf_header(spec: dict[str, Any]) -> None:
    assert spec["paths"]["/api/v1/auth/logout"]["post"]["security"] == [{"session": [], "csrf": []}, {"bearer": []}]
    assert spec["paths"]["/api/v1/auth/me"]["get"]["security"] == [{"session": []}, {"bearer": []}]


def test_every_reference_leads_somewhere(spec: dict[str, Any]) -> None:
    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for value in part.values():
                yield from references(value)
        elif isinstance(part, list):
            for value in part:
                yield from references(value)

    for reference in set(references(spec)):
        found: Any = spec
        for name in reference.removeprefix("#/").split("/"):
            assert name in found, reference
            found = found[name]


def test_every_operation_has_an_envelope_for_errors(spec: dict[str, Any]) -> None:
    for methods in spec["paths"].values():
        for operation in methods.values():
            schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Error"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nobody_can_write_anything(app: Flask, client: FlaskClient, method: str) -> None:
    for path, allowed in api_routes(app):
        if allowed.upper() == method and path not in OPEN_TO_ALL:
            answer = client.open(re.sub(r"{\w+}", "x", path), method=method, json={})
            assert (answer.status_code, answer.get_json()["message_code"]) == (401, "AUTHENTICATION_REQUIRED"), path


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_session_without_csrf_can_write_nothing(app: Flask, admin_client: FlaskClient, method: str) -> None:
    del admin_client.environ_base["HTTP_X_CSRFTOKEN"]
    for path, allowed in api_routes(app):
        if allowed.upper() == method and path not in OPEN_TO_ALL:
            answer = admin_client.open(re.sub(r"{\w+}", "x", path), method=method, json={})
            assert (answer.status_code, answer.get_json()["message_code"]) == (403, "CSRF_INVALID"), path
