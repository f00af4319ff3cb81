"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=128), nullable=False),
        sa.Column("target", sa.String(length=255), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"], unique=False)
    op.create_table(
        "database_instances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("address", sa.String(length=500), nullable=False),
        sa.Column("is_configured", sa.Boolean(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_database_instances")),
        sa.UniqueConstraint("name", name=op.f("uq_database_instances_name")),
    )
    op.create_table(
        "failed_logins",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("failed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_failed_logins")),
    )
    op.create_index("ix_failed_logins_failed_at", "failed_logins", ["failed_at"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("username", sa.String(length=64), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.Column("secret_digest", sa.String(length=64), nullable=True),
        sa.Column("session_stamp", sa.String(length=32), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
    )
    op.create_table(
        "database_accounts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("is_locked", sa.Boolean(), nullable=False),
        sa.Column("is_superuser", sa.Boolean(), nullable=False),
        sa.Column("privileges", sa.Text(), nullable=False),
        sa.Column("is_present", sa.Boolean(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["database_instances.id"], name=op.f("fk_database_accounts_instance_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_database_accounts")),
        sa.UniqueConstraint("instance_id", "name", "host", name=op.f("uq_database_accounts_instance_id_name_host")),
    )
    op.create_table(
        "database_size_aggregations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.Column("database_name", sa.String(length=255), nullable=False),
        sa.Column("period", sa.String(length=10), nullable=False),
        sa.Column("period_start", sa.String(length=10), nullable=False),
        sa.Column("period_end", sa.String(length=10), nullable=False),
        sa.Column("timezone", sa.String(length=100), nullable=False),
        sa.Column("readings", sa.Integer(), nullable=False),
        sa.Column("min_bytes", sa.BigInteger(), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("avg_bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_bytes", sa.BigInteger(), nullable=False),
        sa.Column("last_bytes", sa.BigInteger(), nullable=False),
        sa.Column("growth_bytes", sa.BigInteger(), nullable=False),
        sa.Column("growth_percent", sa.Float(), nullable=True),
        sa.Column("calculated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "period IN ('day', 'week', 'month', 'quarter')", name=op.f("ck_database_size_aggregations_period")
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["database_instances.id"], name=op.f("fk_database_size_aggregations_instance_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_database_size_aggregations")),
        sa.UniqueConstraint(
            "instance_id",
            "database_name",
            "period",
            "period_start",
            name=op.f("uq_database_size_aggregations_instance_id_database_name_period_period_start"),
        ),
    )
    op.create_table(
        "database_sizes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.Column("database_name", sa.String(length=255), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("collected_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["database_instances.id"], name=op.f("fk_database_sizes_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_database_sizes")),
        sa.UniqueConstraint(
            "instance_id", "database_name", "hour", name=op.f("uq_database_sizes_instance_id_database_name_hour")
        ),
    )
    op.create_index(
        op.f("ix_database_sizes_instance_id_collected_at"),
        "database_sizes",
        ["instance_id", "collected_at"],
        unique=False,
    )
    op.create_table(
        "database_account_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("change", sa.String(length=10), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("noticed_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "change IN ('added', 'changed', 'removed')", name=op.f("ck_database_account_changes_change")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["database_accounts.id"], name=op.f("fk_database_account_changes_account_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_database_account_changes")),
        sa.UniqueConstraint("account_id", "run_id", name=op.f("uq_database_account_changes_account_id_run_id")),
    )
    op.create_index(
        op.f("ix_database_account_changes_noticed_at"), "database_account_changes", ["noticed_at"], unique=False
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_database_account_changes_noticed_at"), table_name="database_account_changes")
    op.drop_table("database_account_changes")
    op.drop_index(op.f("ix_database_sizes_instance_id_collected_at"), table_name="database_sizes")
    op.drop_table("database_sizes")
    op.drop_table("database_size_aggregations")
    op.drop_table("database_accounts")
    op.drop_table("users")
    op.drop_index("ix_failed_logins_failed_at", table_name="failed_logins")
    op.drop_table("failed_logins")
    op.drop_table("database_instances")
    op.drop_index("ix_audit_log_at", table_name="audit_log")
    op.drop_table("audit_log")
