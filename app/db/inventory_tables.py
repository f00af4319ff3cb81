"""Tables of the database inventory: instances, their accounts and sizes, and what is calculated from them.

Times are microseconds since the epoch, UTC (app.db.clock). Every table has a natural unique key, so that a
task that runs twice rewrites its rows instead of adding some.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from app.db.metadata import app_metadata

ACCOUNT_CHANGES = ("added", "changed", "removed")
AGGREGATION_PERIODS = ("day", "week", "month", "quarter")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


database_instances = Table(
    "database_instances",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("address", String(500), nullable=False),  # host:port or path, for people
    Column("is_configured", Boolean, nullable=False),  # databases.yaml names it
    Column("first_seen_at", BigInteger, nullable=False),
    UniqueConstraint("name"),
)

database_accounts = Table(
    "database_accounts",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("instance_id", ForeignKey("database_instances.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("host", String(255), nullable=False),  # MySQL's second half of an account; empty elsewhere
    Column("is_locked", Boolean, nullable=False),
    Column("is_superuser", Boolean, nullable=False),
    Column("privileges", Text, nullable=False),  # JSON with sorted keys: equal privileges are equal texts
    Column("is_present", Boolean, nullable=False),  # false: the instance no longer has it
    Column("first_seen_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger, nullable=False),
    UniqueConstraint("instance_id", "name", "host"),
)

database_account_changes = Table(
    "database_account_changes",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("account_id", ForeignKey("database_accounts.id"), nullable=False),
    Column("run_id", String(32), nullable=False),  # the run that noticed it
    Column("change", String(10), nullable=False),
    Column("before", Text),  # JSON of is_locked, is_superuser, privileges; null when added
    Column("after", Text),  # the same; null when removed
    Column("noticed_at", BigInteger, nullable=False),
    UniqueConstraint("account_id", "run_id"),
    CheckConstraint(_one_of("change", ACCOUNT_CHANGES), name="change"),
    Index(None, "noticed_at"),
)

database_sizes = Table(
    "database_sizes",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("instance_id", ForeignKey("database_instances.id"), nullable=False),
    Column("database_name", String(255), nullable=False),
    # One reading an hour is kept; a later one in the same hour replaces it, so a repeated run adds nothing.
    Column("hour", BigInteger, nullable=False),  # beginning of the UTC hour
    Column("size_bytes", BigInteger, nullable=False),
    Column("collected_at", BigInteger, nullable=False),
    UniqueConstraint("instance_id", "database_name", "hour"),
    Index(None, "instance_id", "collected_at"),
)

database_size_aggregations = Table(
    "database_size_aggregations",
    app_metadata,
    Column("id", Integer, primary_key=True),
    Column("instance_id", ForeignKey("database_instances.id"), nullable=False),
    Column("database_name", String(255), nullable=False),
    Column("period", String(10), nullable=False),
    Column("period_start", String(10), nullable=False),  # ISO date, in `timezone`
    Column("period_end", String(10), nullable=False),  # ISO date, the first day that is no longer in it
    Column("timezone", String(100), nullable=False),  # SCHEDULER_TIMEZONE when it was calculated
    Column("readings", Integer, nullable=False),
    Column("min_bytes", BigInteger, nullable=False),
    Column("max_bytes", BigInteger, nullable=False),
    Column("avg_bytes", BigInteger, nullable=False),  # mean of the readings, rounded to whole bytes
    Column("first_bytes", BigInteger, nullable=False),
    Column("last_bytes", BigInteger, nullable=False),
    Column("growth_bytes", BigInteger, nullable=False),  # last - first
    Column("growth_percent", Float),  # of first; null when first is 0
    Column("calculated_at", BigInteger, nullable=False),
    UniqueConstraint("instance_id", "database_name", "period", "period_start"),
    CheckConstraint(_one_of("period", AGGREGATION_PERIODS), name="period"),
)
