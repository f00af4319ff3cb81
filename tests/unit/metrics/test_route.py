"""Who may read /metrics, and what of it."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry

from app import create_app
from app.metrics import route
from app.metrics.route import GATE_HEADER
from app.settings import Settings

TOKEN = "token-of-the-monitoring"


@pytest.fixture
def guarded(environment: dict[str, str]) -> FlaskClient:
    """A stack with METRICS_TOKEN, asked through the published port."""
    made = create_app(Settings.load({**environment, "METRICS_TOKEN": TOKEN}), init_scheduler_on_start=False)
    client = made.test_client()
    client.environ_base["HTTP_X_METRICS_GATE"] = "closed"
    return client


def test_from_inside_they_are_open(client: FlaskClient) -> None:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")


def test_nginx_opens_them_for_networks(client: FlaskClient) -> None:
    assert client.get("/metrics", headers={GATE_HEADER: "open"}).status_code == 200


@pytest.mark.parametrize("gate", ["closed", "", "OPEN"])
def test_otherwise_they_are_shut(token_client: FlaskClient, gate: str) -> None:
    assert token_client.get("/metrics", headers={GATE_HEADER: gate}).status_code == 403


def test_their_own_token_opens_them(guarded: FlaskClient) -> None:
    assert guarded.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer token-of-the-tests"])
def test_another_token_does_not(guarded: FlaskClient, given: str) -> None:
    assert guarded.get("/metrics", headers={"Authorization": given}).status_code == 401


def test_a_part_alone(client: FlaskClient) -> None:
    deployment = client.get("/metrics?collect[]=deployment").text
    assert "whalefall_jobs{" in deployment
    assert "whalefall_http_" not in deployment
    requests = client.get("/metrics?collect[]=requests").text
    assert "whalefall_jobs{" not in requests
    assert "whalefall_http_" in requests


def test_a_part_that_is_none(client: FlaskClient) -> None:
    answer = client.get("/metrics?collect[]=jobs")
    assert answer.status_code == 400


def test_a_part_that_fails_leaves_the_others(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    registry = CollectorRegistry()
    registry.register(route._Part("broken", fail))  # type: ignore[arg-type]
    assert list(registry.collect()) == []


def test_they_are_no_part_of_the_api(client: FlaskClient) -> None:
    assert "/metrics" not in client.get("/api/v1/openapi.json").get_json()["paths"]
