"""The admin is what the secret says, at the price of a query when nothing changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from app.db.account_tables import users
from app.db.engines import read_transaction, write_transaction
from app.runtime import Runtime
from app.services.accounts import admin_sync
from app.services.accounts.admin_sync import sync_admin
from app.services.accounts.passwords import password_matches
from tests.unit.conftest import ADMIN_PASSWORD

SECRET_KEY = "secret key of the tests"


def admin_row(runtime: Runtime) -> dict[str, object]:
    with read_transaction(runtime.database) as connection:
        return dict(connection.execute(select(users).where(users.c.username == "admin")).mappings().one())


@pytest.fixture
def no_argon2(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the admin was made."""

    def refuse(*_args: str) -> str:
        pytest.fail("argon2 ran")

    monkeypatch.setattr(admin_sync, "hash_password", refuse)
    monkeypatch.setattr(admin_sync, "password_matches", refuse)


@pytest.mark.usefixtures("no_argon2")
def test_an_unchanged_secret_costs_no_argon2_and_changes_nothing(runtime: Runtime) -> None:
    before = admin_row(runtime)
    sync_admin(runtime.database, ADMIN_PASSWORD, SECRET_KEY)
    assert admin_row(runtime) == before


def test_another_password_ends_the_sessions(runtime: Runtime) -> None:
    before = admin_row(runtime)
    sync_admin(runtime.database, "next", SECRET_KEY)
    after = admin_row(runtime)
    assert after["id"] == before["id"]
    assert after["session_stamp"] != before["session_stamp"]
    assert password_matches(str(after["password_hash"]), "next")


def test_another_secret_key_keeps_the_hash(runtime: Runtime) -> None:
    before = admin_row(runtime)
    sync_admin(runtime.database, ADMIN_PASSWORD, "another key")
    after = admin_row(runtime)
    assert after["password_hash"] == before["password_hash"]
    assert after["secret_digest"] != before["secret_digest"]


def test_the_digest_alone_says_nothing_about_the_password(runtime: Runtime) -> None:
    # A row whose hash was damaged, or copied from elsewhere, is made anew rather than believed.
    with write_transaction(runtime.database) as connection:
        connection.execute(update(users).values(password_hash="damaged", secret_digest=None))
    sync_admin(runtime.database, ADMIN_PASSWORD, SECRET_KEY)
    assert password_matches(str(admin_row(runtime)["password_hash"]), ADMIN_PASSWORD)


def test_processes_that_start_together_make_one_admin(runtime: Runtime) -> None:
    with write_transaction(runtime.database) as connection:
        connection.execute(users.delete())
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(sync_admin, runtime.database, "new", SECRET_KEY) for _ in range(4)]:
            done.result()
    assert password_matches(str(admin_row(runtime)["password_hash"]), "new")
