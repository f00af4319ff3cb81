"""Reads PostgreSQL: roles with their attributes, memberships and grants; database sizes.

An account's privileges are
    {"attributes": ["LOGIN", ...], "connection_limit": -1, "valid_until": null, "owned_databases": [...],
     "member_of": [...], "databases": {db: [...]}, "schemas": {db.schema: [...]},
     "tables": {db.schema.table: [...]}, "columns": {db.schema.table.column: [...]}}
with what was granted to the role itself: neither PUBLIC's rights nor those that ownership implies. A
privilege that may be passed on ends in " WITH GRANT OPTION", a membership in " WITH ADMIN OPTION".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg.rows import namedtuple_row

from app.inventory.deadline import SocketDeadline
from app.inventory.instances import ServerInstance
from app.inventory.readings import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
    Account,
    DatabaseSize,
    InstanceError,
    Reading,
)

_SSL_MODES = {"disable": "disable", "prefer": "prefer", "require": "require", "verify": "verify-full"}

_ROLES = r"""
SELECT r.rolname AS name, r.rolsuper AS is_superuser,
       NOT r.rolcanlogin OR coalesce(r.rolvaliduntil <= now(), false) AS is_locked,
       array_remove(ARRAY[
         CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END,
         CASE WHEN r.rolcreatedb THEN 'CREATEDB' END,
         CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
         CASE WHEN r.rolinherit THEN 'INHERIT' END,
         CASE WHEN r.rolcanlogin THEN 'LOGIN' END,
         CASE WHEN r.rolreplication THEN 'REPLICATION' END,
         CASE WHEN r.rolsuper THEN 'SUPERUSER' END], NULL) AS attributes,
       r.rolconnlimit AS connection_limit,
       CASE WHEN isfinite(r.rolvaliduntil)
            THEN to_char(r.rolvaliduntil AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') END AS valid_until
FROM pg_roles r WHERE r.rolname !~ '^pg_'
"""

_MEMBERSHIPS = """
SELECT member.rolname AS grantee,
       granted.rolname || CASE WHEN bool_or(m.admin_option) THEN ' WITH ADMIN OPTION' ELSE '' END AS role
FROM pg_auth_members m
JOIN pg_roles member ON member.oid = m.member
JOIN pg_roles granted ON granted.oid = m.roleid
GROUP BY member.rolname, granted.rolname
"""

_DATABASES = """
SELECT d.datname AS name, owner.rolname AS owner, d.datistemplate AS is_template,
       d.datallowconn AS is_open, has_database_privilege(d.oid, 'CONNECT') AS may_connect
FROM pg_database d LEFT JOIN pg_roles owner ON owner.oid = d.datdba ORDER BY d.datname
"""

_DATABASE_GRANTS = """
SELECT 'databases' AS level, d.datname AS object, grantee.rolname AS grantee,
       acl.privilege_type AS privilege, acl.is_grantable
FROM pg_database d
CROSS JOIN LATERAL aclexplode(d.datacl) acl JOIN pg_roles grantee ON grantee.oid = acl.grantee
WHERE acl.grantee <> d.datdba
"""

# In one database; pg_catalog and information_schema are the same everywhere.
_GRANTS_INSIDE = r"""
WITH own AS (
  SELECT oid, nspname, nspowner, nspacl FROM pg_namespace
  WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
SELECT 'schemas' AS level, n.nspname AS object, grantee.rolname AS grantee,
       acl.privilege_type AS privilege, acl.is_grantable
FROM own n CROSS JOIN LATERAL aclexplode(n.nspacl) acl JOIN pg_roles grantee ON grantee.oid = acl.grantee
WHERE acl.grantee <> n.nspowner
UNION ALL
SELECT 'tables', n.nspname || '.' || c.relname, grantee.rolname, acl.privilege_type, acl.is_grantable
FROM pg_class c JOIN own n ON n.oid = c.relnamespace
CROSS JOIN LATERAL aclexplode(c.relacl) acl JOIN pg_roles grantee ON grantee.oid = acl.grantee
WHERE acl.grantee <> c.relowner
UNION ALL
SELECT 'columns', n.nspname || '.' || c.relname || '.' || a.attname, grantee.rolname, acl.privilege_type,
       acl.is_grantable
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN own n ON n.oid = c.relnamespace
CROSS JOIN LATERAL aclexplode(a.attacl) acl JOIN pg_roles grantee ON grantee.oid = acl.grantee
WHERE acl.grantee <> c.relowner
"""

_MAY_READ_SIZE = """
SELECT may.read AS may_read, CASE WHEN may.read THEN pg_database_size(d.oid) END AS size
FROM pg_database d CROSS JOIN LATERAL (
  SELECT has_database_privilege(d.oid, 'CONNECT')
         OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS read) may
WHERE d.datname = %s
"""

_Grants = dict[str, dict[str, dict[str, set[str]]]]
"""grantee -> level -> object -> privileges"""


class PostgresqlConnector:
    """A connection to one PostgreSQL server that can only read."""

    has_accounts = True

    def __init__(self, instance: ServerInstance) -> None:
        self._instance = instance
        self._password = instance.read_password()
        self._connection, self._deadline = self._open(instance.database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline.cancel()
        self._connection.close()

    def accounts(self) -> Reading[Account]:
        """Every role but `pg_*`; one that cannot log in, or whose password is over, counts as locked."""
        grants: _Grants = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
        memberships = defaultdict(set)
        owned = defaultdict(list)
        unread = []
        with self._errors(self._deadline):
            roles = self._connection.execute(_ROLES).fetchall()
            for row in self._connection.execute(_MEMBERSHIPS):
                memberships[row.grantee].add(row.role)
            _collect(grants, self._connection.execute(_DATABASE_GRANTS))
            databases = self._connection.execute(_DATABASES).fetchall()
        for database in databases:
            owned[database.owner].append(database.name)
            if database.is_open and not database.may_connect:
                unread.append(database.name)
            elif database.is_open:
                self._read_grants_inside(database.name, grants)
        accounts = [
            Account(
                name=role.name,
                host="",
                is_locked=role.is_locked,
                is_superuser=role.is_superuser,
                privileges={
                    "attributes": role.attributes,
                    "connection_limit": role.connection_limit,
                    "valid_until": role.valid_until,
                    "member_of": sorted(memberships[role.name]),
                    "owned_databases": sorted(owned[role.name]),
                    **{level: _sorted(grants[role.name][level]) for level in _LEVELS},
                },
            )
            for role in roles
        ]
        return Reading(sorted(accounts, key=lambda account: account.name), unread)

    def sizes(self) -> Reading[DatabaseSize]:
        """Every database but templates, as `pg_database_size` gives it."""
        sizes, unread = [], []
        with self._errors(self._deadline):
            databases = self._connection.execute(_DATABASES).fetchall()
            for name in (database.name for database in databases if not database.is_template):
                row = self._connection.execute(_MAY_READ_SIZE, (name,)).fetchone()
                if row is not None and not row.may_read:
                    unread.append(name)
                elif row is not None and row.size is not None:  # else dropped a moment ago
                    sizes.append(DatabaseSize(name, row.size))
        return Reading(sorted(sizes, key=lambda size: size.database), unread)

    def _read_grants_inside(self, database: str, grants: _Grants) -> None:
        if database == self._instance.database:
            with self._errors(self._deadline):
                _collect(grants, self._connection.execute(_GRANTS_INSIDE), f"{database}.")
            return
        try:
            connection, deadline = self._open(database)
        except InstanceError as error:
            if isinstance(error.__cause__, psycopg.OperationalError) and not self._exists(database):
                return  # dropped a moment ago
            raise
        try:
            with self._errors(deadline):
                _collect(grants, connection.execute(_GRANTS_INSIDE), f"{database}.")
        finally:
            deadline.cancel()
            connection.close()

    def _exists(self, database: str) -> bool:
        with self._errors(self._deadline):
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            return self._connection.execute(query, (database,)).fetchone() is not None

    def _open(self, database: str) -> tuple[psycopg.Connection[Any], SocketDeadline]:
        instance = self._instance
        connection: psycopg.Connection[Any]
        with self._errors():
            connection = psycopg.connect(
                host=instance.host,
                port=instance.port,
                user=instance.user,
                password=self._password,
                dbname=database,
                connect_timeout=CONNECT_TIMEOUT_S,
                sslmode=_SSL_MODES[instance.tls],
                sslrootcert=str(instance.tls_ca) if instance.tls_ca else None,
                application_name="whalefall-scheduler",
                client_encoding="utf8",
                autocommit=True,
                row_factory=namedtuple_row,
            )
        deadline = SocketDeadline(connection.fileno(), READ_TIMEOUT_S)
        try:
            with self._errors(deadline):
                # Not as connection options: poolers such as PgBouncer refuse those.
                for setting, value in _SESSION.items():
                    connection.execute("SELECT set_config(%s, %s, false)", (setting, value))
        except InstanceError:
            deadline.cancel()
            connection.close()
            raise
        return connection, deadline

    @contextmanager
    def _errors(self, deadline: SocketDeadline | None = None) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, OSError) as error:
            if deadline is not None and deadline.expired:
                raise InstanceError(f"no answer within {deadline.seconds:g} s") from error
            text = " ".join(str(error).split()) or type(error).__name__
            raise InstanceError(text) from error


_LEVELS = ("databases", "schemas", "tables", "columns")

_SESSION: dict[LiteralString, str] = {
    "default_transaction_read_only": "on",
    "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
    "lock_timeout": f"{CONNECT_TIMEOUT_S}s",
}


def _collect(grants: _Grants, rows: psycopg.Cursor[Any], prefix: str = "") -> None:
    for row in rows:
        privilege = f"{row.privilege} WITH GRANT OPTION" if row.is_grantable else row.privilege
        grants[row.grantee][row.level][prefix + row.object].add(privilege)


def _sorted(objects: Mapping[str, set[str]]) -> dict[str, list[str]]:
    return {name: sorted(objects[name]) for name in sorted(objects)}
