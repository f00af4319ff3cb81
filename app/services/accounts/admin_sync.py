"""The one admin account, kept equal to the secret ADMIN_PASSWORD."""

from __future__ import annotations

import secrets

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from app.db.clock import now_us
from app.db.engines import read_transaction, write_transaction
from app.repositories import accounts_repository as accounts
from app.services.accounts.passwords import hash_password, password_matches, secret_digest

ADMIN_NAME = "admin"

log = structlog.get_logger(__name__)


def sync_admin(database: Engine, password: str, secret_key: str) -> None:
    """Make `admin` exist with this password; one query when that is so already.

    A password that changed ends every session of the admin. Any number of processes may do this at once.
    """
    try:
        _sync_admin(database, password, secret_key)
    except IntegrityError:  # PostgreSQL: another process added the account at the very same moment
        _sync_admin(database, password, secret_key)


def _sync_admin(database: Engine, password: str, secret_key: str) -> None:
    digest = secret_digest(password, secret_key, ADMIN_NAME)
    with read_transaction(database) as connection:
        user = accounts.user_by_name(connection, ADMIN_NAME)
    if user is not None and user.secret_digest == digest:
        return
    if user is not None and password_matches(user.password_hash, password):
        # Only the secret key is another one; its sessions ended with it.
        with write_transaction(database) as connection:
            accounts.change_user(connection, user.id, now=now_us(), secret_digest=digest)
        return
    changes = {
        "password_hash": hash_password(password),
        "secret_digest": digest,
        "session_stamp": secrets.token_hex(16),
    }
    with write_transaction(database) as connection:
        present = accounts.user_by_name(connection, ADMIN_NAME)
        if present is None:
            accounts.add_user(connection, now=now_us(), username=ADMIN_NAME, role="admin", **changes)
            log.info("account added", account=ADMIN_NAME)
        elif present.secret_digest != digest:  # else another process was first
            accounts.change_user(connection, present.id, now=now_us(), **changes)
            log.info("password changed, sessions ended", account=ADMIN_NAME)
