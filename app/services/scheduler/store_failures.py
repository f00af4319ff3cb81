"""A store that fails, as the error that its reader is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import InternalError, ServiceUnavailable

logger = logging.getLogger(__name__)

OUT_OF_REACH = (OperationalError, InterfaceError, PoolTimeout)
"""Locked, full, disconnected, no free connection: trying again later helps."""


@contextmanager
def store_failures(message: str | None = None) -> Iterator[None]:
    """Turns a failure of the store into ServiceUnavailable, or InternalError where waiting does not help.

    `message` is what the reader is told; the log has the rest.
    """
    try:
        yield
    except OUT_OF_REACH as error:
        logger.error("the store is out of reach: %s", error)
        raise ServiceUnavailable(message) from error
    except SQLAlchemyError as error:
        logger.exception("the store failed")
        raise InternalError(message) from error
