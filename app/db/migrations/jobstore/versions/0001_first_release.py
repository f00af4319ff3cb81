"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("task", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("kwargs", sa.Text(), nullable=False),
        sa.Column("next_run_time", sa.BigInteger(), nullable=True),
        sa.Column("misfire_grace_time", sa.Integer(), nullable=False),
        sa.Column("coalesce", sa.Boolean(), nullable=False),
        sa.Column("max_instances", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("executor", sa.String(length=32), nullable=False),
        sa.Column("retry_on_loss", sa.Boolean(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("is_paused", sa.Boolean(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("overrides", sa.Text(), server_default="[]", nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.String(length=64), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "ix_jobs_due",
        "jobs",
        ["next_run_time"],
        unique=False,
        sqlite_where=sa.text("next_run_time IS NOT NULL"),
        postgresql_where=sa.text("next_run_time IS NOT NULL"),
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger(), nullable=False),
        sa.Column("lock_file", sa.Text(), nullable=True),
        sa.Column("stats", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_nodes")),
    )
    op.create_table(
        "run_logs",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_logs")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("task", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("scheduled_for", sa.BigInteger(), nullable=False),
        sa.Column("scheduled_from", sa.BigInteger(), nullable=True),
        sa.Column("count", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("owner", sa.String(length=32), server_default="", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("executor", sa.String(length=32), nullable=False),
        sa.Column("max_instances", sa.Integer(), nullable=False),
        sa.Column("misfire_grace_time", sa.Integer(), nullable=False),
        sa.Column("retry_on_loss", sa.Boolean(), nullable=False),
        sa.Column("kwargs", sa.Text(), nullable=False),
        sa.Column("node", sa.String(length=255), nullable=True),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("claimed_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_runs")),
        sa.UniqueConstraint("job_id", "kind", "scheduled_for", "attempt", name="uq_runs_fire"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_runs_active",
        "runs",
        ["owner", "job_id"],
        unique=False,
        sqlite_where=sa.text("outcome IN ('pending', 'running')"),
        postgresql_where=sa.text("outcome IN ('pending', 'running')"),
    )
    op.create_index(
        "ix_runs_alarming",
        "runs",
        ["run_id"],
        unique=False,
        sqlite_where=sa.text("outcome IN ('failed', 'lost', 'missed', 'skipped')"),
        postgresql_where=sa.text("outcome IN ('failed', 'lost', 'missed', 'skipped')"),
    )
    op.create_index("ix_runs_job_id_run_id", "runs", ["job_id", "run_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_runs_job_id_run_id", table_name="runs")
    op.drop_index(
        "ix_runs_alarming",
        table_name="runs",
        sqlite_where=sa.text("outcome IN ('failed', 'lost', 'missed', 'skipped')"),
        postgresql_where=sa.text("outcome IN ('failed', 'lost', 'missed', 'skipped')"),
    )
    op.drop_index(
        "ix_runs_active",
        table_name="runs",
        sqlite_where=sa.text("outcome IN ('pending', 'running')"),
        postgresql_where=sa.text("outcome IN ('pending', 'running')"),
    )
    op.drop_table("runs")
    op.drop_table("run_logs")
    op.drop_table("nodes")
    op.drop_index(
        "ix_jobs_due",
        table_name="jobs",
        sqlite_where=sa.text("next_run_time IS NOT NULL"),
        postgresql_where=sa.text("next_run_time IS NOT NULL"),
    )
    op.drop_table("jobs")
