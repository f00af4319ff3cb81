"""Opens the connector that fits an instance's kind."""

from __future__ import annotations

from app.inventory.instances import Instance, SqliteInstance
from app.inventory.readings import Connector


def connect(instance: Instance) -> Connector:
    """An open connector; InstanceError when the instance cannot be reached within 10 s, or refuses."""
    # A driver is loaded when an instance of its kind is read, not in every process for good.
    if isinstance(instance, SqliteInstance):
        from app.inventory.sqlite import SqliteConnector  # noqa: PLC0415

        return SqliteConnector(instance)
    if instance.kind == "postgresql":
        from app.inventory.postgresql import PostgresqlConnector  # noqa: PLC0415

        return PostgresqlConnector(instance)
    from app.inventory.mysql import MysqlConnector  # noqa: PLC0415

    return MysqlConnector(instance)
