"""Everything below tests/unit is a unit test: no Docker, no network, seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.runtime import Runtime, runtime_of
from app.settings import Settings

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The hook sees the whole session's items, also those of e2e/.
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.unit)


# The real app on real SQLite files. Without a scheduler: tests that need one start it themselves.

ADMIN_PASSWORD = "correct horse battery staple"
API_TOKEN = "token-of-the-tests"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment that `settings` is loaded from; change it in an overriding fixture."""
    return {
        "USERDATA_DIR": str(tmp_path / "userdata"),
        "SECRET_KEY": "secret key of the tests",
        "ADMIN_PASSWORD": ADMIN_PASSWORD,
        "API_TOKEN": API_TOKEN,
        "NODE_NAME": "unit-test",
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    return Settings.load(environment)


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    built = create_app(settings, init_scheduler_on_start=False)
    yield built
    runtime = runtime_of(built)
    runtime.jobstore.dispose()
    runtime.database.dispose()


@pytest.fixture
def runtime(app: Flask) -> Runtime:
    return runtime_of(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Nobody: no session, no token."""
    return app.test_client()


@pytest.fixture
def token_client(app: Flask) -> FlaskClient:
    """A script with the API token."""
    made = app.test_client()
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {API_TOKEN}"
    return made


@pytest.fixture
def admin_client(app: Flask) -> FlaskClient:
    """A browser of the logged-in admin; every request carries the CSRF header."""
    made = app.test_client()
    answer = made.post("/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
    assert answer.status_code == 200, answer.get_data(as_text=True)
    made.environ_base["HTTP_X_CSRFTOKEN"] = answer.get_json()["data"]["csrf_token"]
    return made
