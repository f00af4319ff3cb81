"""Attempts, time limits, cancellation, workers, messages on their way out, keys of repeated requests."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for table in ("jobs", "runs"):
        op.add_column(table, sa.Column("max_attempts", sa.Integer(), server_default=sa.text("1"), nullable=False))
        op.add_column(table, sa.Column("retry_delay", sa.Integer(), server_default=sa.text("60"), nullable=False))
        op.add_column(table, sa.Column("soft_time_limit", sa.Integer()))
        op.add_column(table, sa.Column("time_limit", sa.Integer()))
    op.add_column("jobs", sa.Column("ping_url", sa.Text()))
    op.add_column("jobs", sa.Column("is_alarming", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("runs", sa.Column("first_run_id", sa.String(32)))
    op.add_column("runs", sa.Column("not_before", sa.BigInteger()))
    op.add_column("runs", sa.Column("cancel_requested_at", sa.BigInteger()))
    op.add_column("runs", sa.Column("cancel_requested_by", sa.String(64)))
    op.add_column("nodes", sa.Column("kind", sa.String(16), server_default="scheduler", nullable=False))
    unusual = sa.text("outcome IN ('failed', 'lost', 'cancelled', 'missed', 'coalesced', 'skipped')")
    op.create_index(
        "ix_runs_unusual",
        "runs",
        ["job_id", "outcome", "run_id"],
        sqlite_where=unusual,
        postgresql_where=unusual,
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_try_at", sa.BigInteger(), nullable=False),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_next_try_at", "outbox", ["next_try_at"])
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.String(160), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("resource", sa.String(128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
