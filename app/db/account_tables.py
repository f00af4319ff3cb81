"""Tables of the app database: users, failed logins, audit log.

Times are microseconds since the epoch, UTC (app.db.clock).
"""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, String, Table, Text

from app.db.metadata import app_metadata

USERNAME_LENGTH = 64

users = Table(
    "users",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("username", String(USERNAME_LENGTH), nullable=False, unique=True),
    Column("password_hash", String(255), nullable=False),  # argon2id, with its parameters
    # Keyed digest of the secret that the hash was made of, so that a start sees an unchanged one without
    # paying for argon2; null for users whose password no secret sets.
    Column("secret_digest", String(64)),
    Column("session_stamp", String(32), nullable=False),  # part of every session; a new one ends them all
    Column("role", String(16), nullable=False),  # view, admin
    Column("is_active", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

failed_logins = Table(
    "failed_logins",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("address", String(64), nullable=False),
    Column("account", String(USERNAME_LENGTH), nullable=False),
    Column("failed_at", BigInteger, nullable=False),
)
Index("ix_failed_logins_failed_at", failed_logins.c.failed_at)

audit_log = Table(
    "audit_log",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", String(64), nullable=False),  # user name, api-token, system, or empty: nobody logged in
    Column("action", String(128), nullable=False),
    Column("target", String(255), nullable=False),
    Column("status", Integer, nullable=False),  # HTTP status of the answer; 0 where no request was involved
    Column("address", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("detail", Text),
)
Index("ix_audit_log_at", audit_log.c.at)
