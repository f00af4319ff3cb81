"""Totals of the runs on record, for the metrics. Older releases neither read nor write them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "run_totals",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("labels", sa.String(512), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name="pk_run_totals"),
    )
    op.create_table(
        "uncounted_runs",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_uncounted_runs"),
    )
