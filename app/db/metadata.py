"""One `MetaData` a database, with one naming convention so that migrations can name every constraint."""

from sqlalchemy import MetaData

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

jobstore_metadata = MetaData(naming_convention=_NAMES)
"""Jobs, runs, nodes: what `JOBSTORE_URL` points at."""

app_metadata = MetaData(naming_convention=_NAMES)
"""Users, audit log, database inventory: what `DATABASE_URL` points at."""
