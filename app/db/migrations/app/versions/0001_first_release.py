"""The tables of the first release."""

from alembic import op

from app.db import account_tables, inventory_tables  # noqa: F401 - their tables join the metadata
from app.db.metadata import app_metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    app_metadata.create_all(op.get_bind())
