"""Logging in: the password check behind a limit that all processes count together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sqlalchemy import Connection

from app.db.clock import now_us
from app.db.engines import read_transaction, write_transaction
from app.errors import _N, InvalidCredentials, RateLimited
from app.repositories import accounts_repository as accounts
from app.runtime import Runtime, current_runtime
from app.services.accounts.passwords import hash_of_nobody, password_matches
from app.services.accounts.principal import PERMISSIONS_OF_ROLE, Principal

WINDOW_S = 300
# Failed logins within the window after which more are refused. The pair's limit stops one who guesses, the
# address's one who tries many accounts, the account's one who guesses from many addresses. The last is the
# highest, so that a single stranger cannot lock the admin out.
PAIR_LIMIT = 5
ADDRESS_LIMIT = 30
ACCOUNT_LIMIT = 100

_SECOND = 1_000_000


@dataclass(frozen=True)
class Login:
    """A login that succeeded, and the stamp that its session must carry."""

    principal: Principal
    session_stamp: str


class LoginService:
    """Checks passwords and sessions against the users table."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._database = (runtime or current_runtime()).database

    def log_in(self, username: str, password: str, address: str) -> Login:
        """The user of this name and password.

        Raises RateLimited (with `retry_after`) after too many failures, else InvalidCredentials when the name
        or the password is wrong: which of the two shows neither in the answer nor in its time.
        """
        with read_transaction(self._database) as connection:
            self._refuse_when_limited(connection, username, address)
            user = accounts.user_by_name(connection, username)
        # Outside any transaction: argon2 takes its time on purpose.
        matches = password_matches(user.password_hash if user else hash_of_nobody(), password)
        now = now_us()
        if user is None or not matches or not user.is_active:
            with write_transaction(self._database) as connection:
                accounts.forget_failures_until(connection, now - WINDOW_S * _SECOND)
                accounts.add_failure(connection, address, username, now)
            raise InvalidCredentials
        with read_transaction(self._database) as connection:
            failed = accounts.failures_of_pair(connection, address, username, since=0).count
        if failed:
            with write_transaction(self._database) as connection:
                accounts.forget_failures(connection, address, username)
        return Login(_principal_of(user), user.session_stamp)

    def principal_of_session(self, user_id: int, session_stamp: str) -> Principal | None:
        """The user of a session, unless it ended: another password, a user who is no longer active."""
        with read_transaction(self._database) as connection:
            user = accounts.user_by_id(connection, user_id)
        if user is None or not user.is_active or user.session_stamp != session_stamp:
            return None
        return _principal_of(user)

    def _refuse_when_limited(self, connection: Connection, username: str, address: str) -> None:
        now = now_us()
        since = now - WINDOW_S * _SECOND
        for found, limit in (
            (accounts.failures_of_pair(connection, address, username, since), PAIR_LIMIT),
            (accounts.failures_of_address(connection, address, since), ADDRESS_LIMIT),
            (accounts.failures_of_account(connection, username, since), ACCOUNT_LIMIT),
        ):
            if found.count >= limit and found.first_at is not None:
                wait = max(1, math.ceil((found.first_at - since) / _SECOND))
                raise RateLimited(
                    _N("登录失败次数过多，请在 %(seconds)s 秒后重试"),
                    params={"seconds": wait},
                    retry_after=wait,
                )


def _principal_of(user: accounts.User) -> Principal:
    return Principal(user.id, user.username, PERMISSIONS_OF_ROLE.get(user.role, frozenset()))
