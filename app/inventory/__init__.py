"""The databases that the built-in tasks read: which they are, and how each kind is asked."""

from app.inventory.connectors import connect
from app.inventory.instances import InstancesFileError, ServerInstance, SqliteInstance, load_instances
from app.inventory.readings import Account, Connector, DatabaseSize, InstanceError, Reading

__all__ = [
    "Account",
    "Connector",
    "DatabaseSize",
    "InstanceError",
    "InstancesFileError",
    "Reading",
    "ServerInstance",
    "SqliteInstance",
    "connect",
    "load_instances",
]
