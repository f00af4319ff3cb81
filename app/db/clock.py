"""Times in the databases: whole microseconds since the epoch, UTC.

An integer compares, sorts and round-trips exactly in SQLite and PostgreSQL alike, and the claim is keyed by
equality with a stored time.
"""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: datetime) -> int:
    """The microseconds since the epoch of an aware `moment`; ValueError for a naive one."""
    if moment.tzinfo is None:
        raise ValueError(f"a moment needs a time zone to be stored: {moment!r}")
    return (moment - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The aware UTC datetime of `us` microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=us)


def now_us() -> int:
    """This machine's present time in microseconds since the epoch."""
    return to_us(datetime.now(UTC))
