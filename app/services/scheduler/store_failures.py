"""A store that fails, as the error that its reader is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from app.db.reach import is_out_of_reach
from app.errors import InternalError, ServiceUnavailable

logger = logging.getLogger(__name__)


@contextmanager
def store_failures(message: str | None = None) -> Iterator[None]:
    """Turns a failure of the store into ServiceUnavailable, or InternalError where waiting does not help.

    `message` is what the reader is told; the log has the rest.
    """
    try:
        yield
    except SQLAlchemyError as error:
        if is_out_of_reach(error):
            logger.error("the store is out of reach: %s", error)
            raise ServiceUnavailable(message) from error
        logger.exception("the store failed")
        raise InternalError(message) from error
