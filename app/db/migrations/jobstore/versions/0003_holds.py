"""Holds; and the note for older releases that they can work with this schema."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "holds",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_holds"),
    )
    note = op.create_table(
        "jobstore_schema_compatibility", sa.Column("usable_from", sa.String(32), primary_key=True, nullable=False)
    )
    op.bulk_insert(note, [{"usable_from": "0002"}])
