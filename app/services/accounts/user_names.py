"""Who it was: the ledger holds a user's id, people read a name."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Engine

from app.db.engines import read_transaction
from app.repositories.accounts_repository import usernames

ID_DIGITS = 18  # what a database's integers hold


def names_of(database: Engine, creators: Iterable[str | None]) -> dict[str, str]:
    """The user names of those `creators` that are a user's id; others, and users that are gone, are left out."""
    ids = {int(creator) for creator in creators if creator and creator.isdecimal() and len(creator) <= ID_DIGITS}
    if not ids:
        return {}
    with read_transaction(database) as connection:
        return {str(user_id): name for user_id, name in usernames(connection, ids).items()}
