"""Reads MySQL and MariaDB: accounts with their roles and grants; database sizes.

An account's privileges are
    {"attributes": ["PASSWORD EXPIRED", "ROLE"], "roles": [...], "global": [...], "schemas": {db: [...]},
     "tables": {db.table: [...]}, "columns": {db.table.column: [...]}}
The right to pass on what is granted on a level shows there as "GRANT OPTION".
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import pymysql
from pymysql.cursors import DictCursor

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

# One query a level; each grantee is written 'user'@'host'.
_GRANTS = {
    "global": "SELECT grantee AS grantee, '' AS object, privilege_type AS privilege,"
    " is_grantable AS grantable FROM information_schema.user_privileges",
    "schemas": "SELECT grantee AS grantee, table_schema AS object, privilege_type AS privilege,"
    " is_grantable AS grantable FROM information_schema.schema_privileges",
    "tables": "SELECT grantee AS grantee, concat(table_schema, '.', table_name) AS object,"
    " privilege_type AS privilege, is_grantable AS grantable FROM information_schema.table_privileges",
    "columns": "SELECT grantee AS grantee, concat(table_schema, '.', table_name, '.', column_name) AS object,"
    " privilege_type AS privilege, is_grantable AS grantable FROM information_schema.column_privileges",
}

_SIZES = """
SELECT s.schema_name AS name, coalesce(sum(t.data_length + t.index_length), 0) AS size
FROM information_schema.schemata s LEFT JOIN information_schema.tables t ON t.table_schema = s.schema_name
WHERE s.schema_name NOT IN ('information_schema', 'performance_schema')
GROUP BY s.schema_name ORDER BY s.schema_name
"""


class MysqlConnector:
    """A connection to one MySQL or MariaDB server that only reads."""

    has_accounts = True

    def __init__(self, instance: ServerInstance) -> None:
        self._instance = instance
        self._password = instance.read_password()
        self._deadline: SocketDeadline | None = None
        self._connection = self._open()
        try:
            self._prepare_session()
        except InstanceError:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def accounts(self) -> Reading[Account]:
        """Every account and role. A role, which cannot log in, counts as locked."""
        grants: dict[str, dict[str, dict[str, set[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
        users = self._users()
        roles = self._roles()
        for level, query in _GRANTS.items():
            for row in self._rows(query):
                held = grants[row["grantee"]][level][row["object"]]
                if row["privilege"] != "USAGE":  # MySQL's word for "nothing"
                    held.add(row["privilege"])
                if row["grantable"] == "YES":
                    held.add("GRANT OPTION")
        accounts = []
        for user in users:
            levels = grants[_grantee(user["name"], user["host"])]
            accounts.append(
                Account(
                    name=user["name"],
                    host=user["host"],
                    is_locked=user["is_locked"],
                    is_superuser=user["is_superuser"],
                    privileges={
                        "attributes": user["attributes"],
                        "roles": sorted(roles[(user["name"], user["host"])]),
                        "global": sorted(levels["global"][""]),
                        **{level: _sorted(levels[level]) for level in ("schemas", "tables", "columns")},
                    },
                )
            )
        return Reading(sorted(accounts, key=lambda account: (account.name, account.host)))

    def sizes(self) -> Reading[DatabaseSize]:
        """Data and indexes of every database, as the server accounts for them; an empty one has size 0."""
        return Reading([DatabaseSize(row["name"], int(row["size"])) for row in self._rows(_SIZES)])

    def _users(self) -> list[dict[str, Any]]:
        # Columns differ by server and version, and some hold password hashes: only what is needed is asked.
        query = (
            "SELECT column_name AS name FROM information_schema.columns"
            " WHERE table_schema = 'mysql' AND table_name = 'user'"
        )
        present = {row["name"].lower() for row in self._rows(query)}
        wanted = [c for c in ("super_priv", "account_locked", "password_expired", "is_role") if c in present]
        columns = ", ".join(["User AS name", "Host AS host", *(f"{c} AS {c}" for c in wanted)])
        locked = self._locked_in_mariadb()
        users = []
        for row in self._rows(f"SELECT {columns} FROM mysql.user"):  # noqa: S608 - names from the list above
            name, host = row["name"], row["host"]
            is_role = row.get("is_role") == "Y"
            expired = row.get("password_expired") == "Y"
            marks = [mark for mark, holds in (("PASSWORD EXPIRED", expired), ("ROLE", is_role)) if holds]
            users.append(
                {
                    "name": name,
                    "host": host,
                    "is_locked": is_role or row.get("account_locked") == "Y" or (name, host) in locked,
                    "is_superuser": row.get("super_priv") == "Y",
                    "attributes": marks,
                }
            )
        return users

    def _locked_in_mariadb(self) -> set[tuple[str, str]]:
        # MariaDB keeps locks in a JSON column that its view mysql.user does not show; the column holds
        # password hashes as well, so only the one value is taken out of it.
        if not self._has_table("global_priv"):
            return set()
        query = (
            "SELECT User AS name, Host AS host FROM mysql.global_priv"
            " WHERE json_value(Priv, '$.account_locked') IN ('1', 'true')"
        )
        return {(row["name"], row["host"]) for row in self._rows(query)}

    def _roles(self) -> Mapping[tuple[str, str], set[str]]:
        roles: dict[tuple[str, str], set[str]] = defaultdict(set)
        if self._has_table("roles_mapping"):  # MariaDB
            query = "SELECT User AS name, Host AS host, Role AS role, Admin_option AS admin FROM mysql.roles_mapping"
        elif self._has_table("role_edges"):  # MySQL 8
            query = (
                "SELECT to_user AS name, to_host AS host, concat(from_user, '@', from_host) AS role,"
                " with_admin_option AS admin FROM mysql.role_edges"
            )
        else:
            return roles
        for row in self._rows(query):
            suffix = " WITH ADMIN OPTION" if row["admin"] == "Y" else ""
            roles[(row["name"], row["host"])].add(row["role"] + suffix)
        return roles

    def _has_table(self, name: str) -> bool:
        query = "SELECT 1 FROM information_schema.tables WHERE table_schema = 'mysql' AND table_name = %s"
        return bool(self._rows(query, (name,)))

    def _rows(self, query: str, arguments: Sequence[Any] = ()) -> Sequence[dict[str, Any]]:
        with self._errors(), self._connection.cursor() as cursor:
            cursor.execute(query, arguments or None)
            return [{key.lower(): _as_text(value) for key, value in row.items()} for row in cursor.fetchall()]

    def _open(self) -> pymysql.connections.Connection[DictCursor]:
        instance = self._instance
        verify = instance.tls == "verify"
        with self._errors():
            connection = pymysql.connect(
                host=instance.host,
                port=instance.port,
                user=instance.user,
                password=self._password.encode(),  # the driver would take a str for Latin-1
                charset="utf8mb4",
                autocommit=True,
                cursorclass=DictCursor,
                read_timeout=STATEMENT_TIMEOUT_S + 5,  # the server's own timeout comes first
                write_timeout=STATEMENT_TIMEOUT_S,
                program_name="whalefall-scheduler",
                ssl_disabled=instance.tls == "disable",
                ssl={"verify_mode": False} if instance.tls == "require" else None,
                ssl_ca=str(instance.tls_ca) if verify else None,
                ssl_verify_cert=True if verify else None,
                ssl_verify_identity=True if verify else None,
                defer_connect=True,
            )
            # The driver's own connect timeout ends with the TCP handshake; a server that accepts and then
            # says nothing must be given up just as soon.
            sock = socket.create_connection((instance.host, instance.port), CONNECT_TIMEOUT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._deadline = SocketDeadline(sock.fileno(), CONNECT_TIMEOUT_S)
            try:
                connection.connect(sock)
            except BaseException:
                self._deadline.cancel()
                sock.close()
                raise
            self._deadline.restart(READ_TIMEOUT_S)  # not a new one: TLS has taken `sock` over
        return connection

    def _prepare_session(self) -> None:
        self._rows("SET SESSION TRANSACTION READ ONLY")
        (server,) = self._rows("SELECT version() AS version")
        if "mariadb" in server["version"].lower():
            self._rows("SET SESSION max_statement_time = %s", (STATEMENT_TIMEOUT_S,))
        else:
            self._rows("SET SESSION max_execution_time = %s", (STATEMENT_TIMEOUT_S * 1000,))
            if self._rows("SHOW VARIABLES LIKE 'information_schema_stats_expiry'"):
                self._rows("SET SESSION information_schema_stats_expiry = 0")  # else sizes are a day old

    def _close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._connection.open:
            self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (pymysql.MySQLError, OSError) as error:
            if self._deadline is not None and self._deadline.expired:
                raise InstanceError(f"no answer within {self._deadline.seconds:g} s") from error
            detail = error.args[-1] if isinstance(error, pymysql.MySQLError) and error.args else error
            text = " ".join(str(detail).split()) or type(error).__name__
            raise InstanceError(text) from error


def _grantee(name: str, host: str) -> str:
    return f"'{name}'@'{host}'"


def _as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _sorted(objects: Mapping[str, set[str]]) -> dict[str, list[str]]:
    return {name: sorted(objects[name]) for name in sorted(objects) if objects[name]}
