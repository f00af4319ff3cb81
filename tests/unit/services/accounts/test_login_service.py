"""Logging in: passwords, the limit on failures, sessions that end."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, update

from app.db.account_tables import failed_logins, users
from app.db.clock import now_us
from app.db.engines import create_engine_for, read_transaction, write_transaction
from app.errors import InvalidCredentials, RateLimited
from app.runtime import Runtime
from app.services.accounts import login_service
from app.services.accounts.admin_sync import sync_admin
from app.services.accounts.login_service import ADDRESS_LIMIT, PAIR_LIMIT, WINDOW_S, LoginService
from app.services.accounts.principal import token_principal
from tests.unit.conftest import ADMIN_PASSWORD

HERE = "192.0.2.1"


@pytest.fixture
def service(runtime: Runtime) -> LoginService:
    return LoginService(runtime)


def fail(service: LoginService, times: int, *, account: str = "admin", address: str = HERE) -> None:
    for _ in range(times):
        with pytest.raises(InvalidCredentials):
            service.log_in(account, "wrong", address)


def test_the_right_password_opens(service: LoginService) -> None:
    login = service.log_in("admin", ADMIN_PASSWORD, HERE)
    assert login.principal.name == "admin"
    assert login.principal.permissions == {"view", "admin"}
    assert login.principal.created_by == str(login.principal.user_id)


@pytest.mark.parametrize(
    ("name", "password"), [("admin", "wrong"), ("nobody", ADMIN_PASSWORD), ("Admin", ADMIN_PASSWORD)]
)
def test_the_rest_does_not(service: LoginService, name: str, password: str) -> None:
    with pytest.raises(InvalidCredentials):
        service.log_in(name, password, HERE)


def test_an_unknown_user_costs_a_hash_too(service: LoginService, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    real = login_service.password_matches
    monkeypatch.setattr(
        login_service, "password_matches", lambda hashed, password: checked.append(hashed) or real(hashed, password)
    )
    fail(service, 1, account="nobody")
    assert len(checked) == 1
    assert checked[0].startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_failures_close_the_door_even_to_the_right_password(service: LoginService) -> None:
    fail(service, PAIR_LIMIT)
    with pytest.raises(RateLimited) as caught:
        service.log_in("admin", ADMIN_PASSWORD, HERE)
    assert caught.value.retry_after is not None
    assert WINDOW_S - 30 <= caught.value.retry_after <= WINDOW_S


def test_another_address_is_not_locked_out(service: LoginService) -> None:
    fail(service, PAIR_LIMIT)
    assert service.log_in("admin", ADMIN_PASSWORD, "192.0.2.2").principal.name == "admin"


def test_one_address_cannot_try_account_after_account(service: LoginService) -> None:
    for number in range(ADDRESS_LIMIT):
        fail(service, 1, account=f"user{number}")
    with pytest.raises(RateLimited):
        service.log_in("admin", ADMIN_PASSWORD, HERE)


def test_many_addresses_together_are_limited_too(service: LoginService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_service, "ACCOUNT_LIMIT", 6)
    for number in range(6):
        fail(service, 1, address=f"192.0.2.{number + 10}")
    with pytest.raises(RateLimited):
        service.log_in("admin", ADMIN_PASSWORD, HERE)


def test_the_count_is_shared_by_all_processes(service: LoginService, runtime: Runtime) -> None:
    fail(service, PAIR_LIMIT)
    other = create_engine_for(runtime.settings.database_url)  # as another worker would have its own
    elsewhere = LoginService(Runtime(runtime.settings, runtime.jobstore, other, runtime.ledger, runtime.tasks))
    with pytest.raises(RateLimited):
        elsewhere.log_in("admin", ADMIN_PASSWORD, HERE)
    other.dispose()


def test_the_door_opens_again_and_old_failures_are_dropped(service: LoginService, runtime: Runtime) -> None:
    fail(service, PAIR_LIMIT)
    with write_transaction(runtime.database) as connection:
        connection.execute(update(failed_logins).values(failed_at=now_us() - (WINDOW_S + 1) * 1_000_000))
    fail(service, 1)
    with read_transaction(runtime.database) as connection:
        assert len(connection.execute(select(failed_logins)).all()) == 1


def test_a_success_forgets_the_failures_before_it(service: LoginService) -> None:
    for _ in range(3):
        fail(service, PAIR_LIMIT - 1)
        service.log_in("admin", ADMIN_PASSWORD, HERE)


def test_eight_at_once_get_in(service: LoginService) -> None:
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda: names.append(service.log_in("admin", ADMIN_PASSWORD, HERE).principal.name))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["admin"] * 8


def test_a_session_ends_with_another_password(service: LoginService, runtime: Runtime) -> None:
    login = service.log_in("admin", ADMIN_PASSWORD, HERE)
    user_id = login.principal.user_id
    assert user_id is not None
    assert service.principal_of_session(user_id, login.session_stamp) == login.principal

    sync_admin(runtime.database, "another password", "secret key of the tests")

    assert service.principal_of_session(user_id, login.session_stamp) is None
    with pytest.raises(InvalidCredentials):
        service.log_in("admin", ADMIN_PASSWORD, HERE)
    assert service.log_in("admin", "another password", HERE).principal.name == "admin"


def test_an_inactive_user_is_out(service: LoginService, runtime: Runtime) -> None:
    login = service.log_in("admin", ADMIN_PASSWORD, HERE)
    with write_transaction(runtime.database) as connection:
        connection.execute(update(users).values(is_active=False))

    assert login.principal.user_id is not None
    assert service.principal_of_session(login.principal.user_id, login.session_stamp) is None
    fail_with_right_password = pytest.raises(InvalidCredentials)
    with fail_with_right_password:
        service.log_in("admin", ADMIN_PASSWORD, HERE)


@pytest.mark.parametrize("given", ["", "token", "token-of-the-testS", "token-of-the-tests ", "\udcff"])
def test_only_the_token_is_the_token(given: str) -> None:
    assert token_principal(given, "token-of-the-tests") is None


def test_the_token_may_do_everything() -> None:
    principal = token_principal("sesame", "sesame")
    assert principal is not None
    assert principal.created_by == "api-token"
    assert principal.may("admin")
