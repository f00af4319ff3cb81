"""The database jobs against a real PostgreSQL and a real MariaDB, run through the API.

The test makes accounts and tables; what the stack stores must be exactly that. Then one server stops, or freezes:
the run fails with a report on each instance, and what it read from the others is stored all the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import FINAL
from e2e.harness.stack import ROOT, Stack
from e2e.harness.waiting import wait_until

PASSWORDS = {"postgresql": "read-postgres-1", "mariadb": "读-maria-2"}

MAKE_POSTGRESQL = f"""
CREATE ROLE monitor LOGIN PASSWORD '{PASSWORDS["postgresql"]}';
CREATE ROLE readers;
CREATE ROLE alice LOGIN CREATEDB CONNECTION LIMIT 7;
CREATE ROLE retired LOGIN VALID UNTIL '2020-01-01 00:00+00';
CREATE ROLE "o'brien 数据" LOGIN;
GRANT readers TO alice WITH ADMIN OPTION;
CREATE DATABASE shop OWNER alice;
GRANT CONNECT ON DATABASE shop TO retired WITH GRANT OPTION;
\\connect shop
CREATE SCHEMA sales;
CREATE TABLE sales.items (id int PRIMARY KEY, name text);
INSERT INTO sales.items SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i;
GRANT USAGE ON SCHEMA sales TO readers;
GRANT SELECT, INSERT ON sales.items TO readers;
GRANT SELECT (name) ON sales.items TO "o'brien 数据";
"""

MAKE_MARIADB = f"""
CREATE USER monitor@'%' IDENTIFIED BY '{PASSWORDS["mariadb"]}';
GRANT SELECT ON *.* TO monitor@'%';
CREATE DATABASE shop;
CREATE DATABASE empty;
CREATE TABLE shop.items (id int PRIMARY KEY, name varchar(300));
USE shop;
INSERT INTO items SELECT seq, repeat('x', 200) FROM seq_1_to_5000;
ANALYZE TABLE items;
CREATE ROLE readers;
GRANT SELECT, INSERT ON shop.* TO readers;
CREATE USER alice@'10.%' IDENTIFIED BY 'a';
CREATE USER alice@'%' IDENTIFIED BY 'b' PASSWORD EXPIRE;
GRANT readers TO alice@'10.%';
GRANT UPDATE ON shop.items TO alice@'10.%' WITH GRANT OPTION;
GRANT SELECT (name) ON shop.items TO alice@'%';
CREATE USER locked@'%' IDENTIFIED BY 'c' ACCOUNT LOCK;
CREATE USER boss@localhost IDENTIFIED BY 'd';
GRANT SUPER ON *.* TO boss@localhost;
"""

INSTANCES = f"""
instances:
  - name: pg
    kind: postgresql
    host: postgresql
    user: monitor
    password_file: pg.password
  - name: maria
    kind: mariadb
    host: mariadb
    user: monitor
    password: {PASSWORDS["mariadb"]}
  - name: file
    kind: sqlite
    path: made.db
"""

#: Runs in the stack's container, beside databases.yaml.
MAKE_SQLITE = """
import sqlite3
with sqlite3.connect("/app/userdata/made.db") as made:
    made.execute("CREATE TABLE t (x)")
    made.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
"""
WRITE_FILE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
REMOVE_FILES = "import pathlib, sys\nfor name in sys.argv[1:]: pathlib.Path(name).unlink()"
QUERY = """
import json, sqlite3, sys
inventory = sqlite3.connect("file:/app/userdata/whalefall.db?mode=ro", uri=True)
inventory.row_factory = sqlite3.Row
print(json.dumps([dict(row) for row in inventory.execute(sys.argv[1])]))
"""

NO_GRANTS_PG: dict[str, Any] = {"databases": {}, "schemas": {}, "tables": {}, "columns": {}}
NO_GRANTS_MARIA: dict[str, Any] = {
    "attributes": [],
    "roles": [],
    "global": [],
    "schemas": {},
    "tables": {},
    "columns": {},
}


def postgresql_account(**told: Any) -> dict[str, Any]:
    """What is stored for a role, where it differs from a plain login role without any grant."""
    privileges = {
        "attributes": ["INHERIT", "LOGIN"],
        "connection_limit": -1,
        "valid_until": None,
        "member_of": [],
        "owned_databases": [],
        **NO_GRANTS_PG,
    }
    state = {"is_locked": False, "is_superuser": False}
    return (
        state
        | {key: value for key, value in told.items() if key in state}
        | {"privileges": privileges | {key: value for key, value in told.items() if key not in state}}
    )


def mariadb_account(**told: Any) -> dict[str, Any]:
    state = {"is_locked": False, "is_superuser": False}
    return (
        state
        | {key: value for key, value in told.items() if key in state}
        | {"privileges": NO_GRANTS_MARIA | {key: value for key, value in told.items() if key not in state}}
    )


EXPECTED_POSTGRESQL = {
    "monitor": postgresql_account(),
    "readers": postgresql_account(
        is_locked=True,
        attributes=["INHERIT"],
        schemas={"shop.sales": ["USAGE"]},
        tables={"shop.sales.items": ["INSERT", "SELECT"]},
    ),
    "alice": postgresql_account(
        attributes=["CREATEDB", "INHERIT", "LOGIN"],
        connection_limit=7,
        member_of=["readers WITH ADMIN OPTION"],
        owned_databases=["shop"],
    ),
    "retired": postgresql_account(
        is_locked=True,
        valid_until="2020-01-01T00:00:00Z",
        databases={"shop": ["CONNECT WITH GRANT OPTION"]},
    ),
    "o'brien 数据": postgresql_account(columns={"shop.sales.items.name": ["SELECT"]}),
    "postgres": postgresql_account(
        is_superuser=True,
        attributes=["BYPASSRLS", "CREATEDB", "CREATEROLE", "INHERIT", "LOGIN", "REPLICATION", "SUPERUSER"],
        owned_databases=["postgres", "template0", "template1"],
    ),
}

EXPECTED_MARIADB = {
    "monitor@%": mariadb_account(**{"global": ["SELECT"]}),
    "readers@": mariadb_account(is_locked=True, attributes=["ROLE"], schemas={"shop": ["INSERT", "SELECT"]}),
    "alice@10.%": mariadb_account(roles=["readers"], tables={"shop.items": ["GRANT OPTION", "UPDATE"]}),
    "alice@%": mariadb_account(attributes=["PASSWORD EXPIRED"], columns={"shop.items.name": ["SELECT"]}),
    "locked@%": mariadb_account(is_locked=True),
    "boss@localhost": mariadb_account(is_superuser=True, **{"global": ["SUPER"]}),
}
#: Accounts that the server brings; their privileges are its own affair.
MARIADB_OWN = {"mariadb.sys@localhost", "root@localhost", "server@localhost"}


class Databases:
    """The two servers, in the network of a stack that reads them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.environment = {
            "STACK_NETWORK": f"{stack.name}_default",
            **{key: value for key, value in os.environ.items() if key in PASSED_ON},
        }

    def compose(self, *arguments: str, timeout: float = 300.0) -> str:
        command = ["docker", "compose", "--project-name", f"{self.stack.name}-databases"]
        # The folder from which the stack's own files count their paths, with the machine's .env.
        command += ["--project-directory", "compose", "--file", "e2e/databases/docker-compose.yml"]
        if (ROOT / ".env").exists():
            command += ["--env-file", ".env"]
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *services: str) -> None:
        self.compose("up", "--detach", "--no-build", "--wait", *services)

    def postgresql(self, script: str, database: str = "postgres") -> str:
        return self._run(script, "postgresql", "psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", database)

    def mariadb(self, script: str) -> str:
        return self._run(script, "mariadb", "mariadb", "--batch", "--skip-column-names")

    def _run(self, script: str, service: str, *client: str) -> str:
        done = subprocess.run(
            ["docker", "exec", "-i", f"{self.stack.name}-databases-{service}-1", *client],
            input=script,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{service}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def postgresql_sizes(self) -> dict[str, int]:
        query = "SELECT datname, pg_database_size(oid) FROM pg_database WHERE NOT datistemplate;"
        lines = self.postgresql(query).splitlines()
        return {name: int(size) for name, size in (line.split("|") for line in lines)}

    def mariadb_sizes(self) -> dict[str, int]:
        query = (
            "SELECT schema_name, coalesce((SELECT sum(data_length + index_length) FROM"
            " information_schema.tables WHERE table_schema = schema_name), 0)"
            " FROM information_schema.schemata"
            " WHERE schema_name NOT IN ('information_schema', 'performance_schema');"
        )
        lines = self.mariadb(query).splitlines()
        return {name: int(size) for name, size in (line.split("\t") for line in lines)}


#: What finds the engine, the base image and the build's settings, as the stack's own build got them.
PASSED_ON = ("PATH", "HOME", "DOCKER_HOST", "WHALEFALL_TAG", "BASE_IMAGE", "BUILD_SETTINGS_DIR")


@pytest.fixture(scope="module")
def databases(stack: Stack) -> Iterator[Databases]:
    """Both servers with what the test makes in them, declared in the shared stack's databases.yaml."""
    made = Databases(stack)
    made.compose("build", timeout=600)
    userdata = Path("/app/userdata")
    try:
        made.start()
        made.postgresql(MAKE_POSTGRESQL)
        made.mariadb(MAKE_MARIADB)
        stack.execute("python3", "-c", MAKE_SQLITE)
        files = {"databases.yaml": INSTANCES, "pg.password": PASSWORDS["postgresql"] + "\n"}
        for name, text in files.items():
            stack.execute("python3", "-c", WRITE_FILE, str(userdata / name), text)
        yield made
        stack.execute("python3", "-c", REMOVE_FILES, *(str(userdata / name) for name in (*files, "made.db")))
    finally:
        made.compose("down", "--volumes", "--timeout", "1")


def run(api: Client, job_id: str, *, within: float = 60.0) -> dict[str, Any]:
    """Run a job now; its run with the log, once it has ended."""
    run_id = api.run_now(job_id)["run_id"]
    ended: dict[str, Any] = wait_until(
        f"the end of {job_id}",
        lambda: api.data("GET", f"{SCHEDULER}/runs/{run_id}"),
        lambda found: found["outcome"] in FINAL,
        within=within,
    )
    for password in PASSWORDS.values():
        assert password not in json.dumps(ended, ensure_ascii=False)
    return ended


def stored(stack: Stack, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(stack.execute("python3", "-c", QUERY, query))
    return rows


def stored_accounts(stack: Stack, instance: str) -> dict[str, dict[str, Any]]:
    """The present accounts of an instance, by `name@host`, or by name where hosts do not count."""
    rows = stored(
        stack,
        "SELECT a.name, a.host, a.is_locked, a.is_superuser, a.privileges FROM database_accounts a"
        f" JOIN database_instances i ON i.id = a.instance_id WHERE i.name = '{instance}' AND a.is_present",
    )
    return {
        row["name"] if instance == "pg" else f"{row['name']}@{row['host']}": {
            "is_locked": bool(row["is_locked"]),
            "is_superuser": bool(row["is_superuser"]),
            "privileges": json.loads(row["privileges"]),
        }
        for row in rows
    }


def stored_sizes(stack: Stack, instance: str) -> dict[str, int]:
    """The newest size of every database of an instance."""
    rows = stored(
        stack,
        "SELECT s.database_name, s.size_bytes, max(s.hour) FROM database_sizes s"
        f" JOIN database_instances i ON i.id = s.instance_id WHERE i.name = '{instance}'"
        " GROUP BY s.database_name",
    )
    return {row["database_name"]: row["size_bytes"] for row in rows}


def lines_of(text: str) -> dict[str, str]:
    """The report's line on each instance."""
    found = {}
    for line in text.splitlines():
        _, marker, rest = line.partition("instance=")
        name, _, facts = rest.partition(" ")
        if marker and "outcome=" in facts:
            found[name] = facts
    return found


@pytest.mark.timeout(600)
def test_accounts_are_stored_exactly(stack: Stack, api: Client, databases: Databases) -> None:
    first = run(api, "sync_accounts")
    assert first["outcome"] == "success", first
    report = lines_of(first["log"])
    expected_maria = len(EXPECTED_MARIADB) + len(MARIADB_OWN)
    for instance, facts in {
        "pg": f"outcome=success accounts={len(EXPECTED_POSTGRESQL)} added={len(EXPECTED_POSTGRESQL)}",
        "maria": f"outcome=success accounts={expected_maria} added={expected_maria}",
        "file": "outcome=success accounts=0",
    }.items():
        assert facts in report[instance]
    assert stored_accounts(stack, "pg") == EXPECTED_POSTGRESQL
    maria = stored_accounts(stack, "maria")
    assert {name: maria[name] for name in maria if name not in MARIADB_OWN} == EXPECTED_MARIADB
    assert set(maria) >= MARIADB_OWN

    second = run(api, "sync_accounts")
    assert second["outcome"] == "success", second
    assert "added=0 changed=0 removed=0" in lines_of(second["log"])["pg"]
    assert "added=0 changed=0 removed=0" in lines_of(second["log"])["maria"]
    assert stored(stack, "SELECT count(*) AS n FROM database_account_changes") == [
        {"n": len(EXPECTED_POSTGRESQL) + expected_maria}
    ]


@pytest.mark.timeout(300)
def test_sizes_are_stored_exactly_and_aggregated(stack: Stack, api: Client, databases: Databases) -> None:
    collected = run(api, "collect_database_sizes")
    assert collected["outcome"] == "success", collected
    sizes = {"pg": databases.postgresql_sizes(), "maria": databases.mariadb_sizes()}
    assert sizes["pg"]["shop"] - sizes["pg"]["postgres"] > 5000 * 200
    assert sizes["maria"]["shop"] > 5000 * 200
    assert sizes["maria"]["empty"] == 0
    for instance, expected in sizes.items():
        assert stored_sizes(stack, instance) == expected
    size = int(stack.execute("python3", "-c", "import os; print(os.path.getsize('/app/userdata/made.db'))"))
    assert stored_sizes(stack, "file") == {"main": size}

    readings = stored(stack, "SELECT count(*) AS n FROM database_sizes")
    hours = stored(stack, "SELECT DISTINCT hour FROM database_sizes")
    assert run(api, "collect_database_sizes")["outcome"] == "success"
    if stored(stack, "SELECT DISTINCT hour FROM database_sizes") == hours:  # the clock did not strike meanwhile
        assert stored(stack, "SELECT count(*) AS n FROM database_sizes") == readings

    for _ in range(2):
        calculated = run(api, "calculate_database_size_aggregations")
        assert calculated["outcome"] == "success", calculated
        rows = stored(
            stack,
            "SELECT i.name AS instance, a.* FROM database_size_aggregations a"
            " JOIN database_instances i ON i.id = a.instance_id",
        )
        keys = [(row["instance"], row["database_name"], row["period"], row["period_start"]) for row in rows]
        assert len(keys) == len(set(keys))
        assert {(key[0], key[1], key[2]) for key in keys} == {
            (instance, database, period)
            for instance, expected in (sizes | {"file": {"main": size}}).items()
            for database in expected
            for period in ("day", "week", "month", "quarter")
        }
    shop = next(row for row in rows if row["instance"] == "pg" and row["database_name"] == "shop")
    assert (shop["min_bytes"], shop["max_bytes"], shop["last_bytes"]) == (sizes["pg"]["shop"],) * 3
    assert (shop["growth_bytes"], shop["growth_percent"]) == (0, 0.0)
    assert shop["timezone"] == "Asia/Shanghai"


@pytest.mark.timeout(300)
def test_a_stopped_instance_fails_the_run_and_the_others_are_refreshed(
    stack: Stack, api: Client, databases: Databases
) -> None:
    run(api, "sync_accounts")
    before = stored_accounts(stack, "pg")
    databases.compose("stop", "--timeout", "10", "postgresql")
    databases.mariadb("CREATE USER newcomer@'%'; DROP USER locked@'%'; ALTER USER alice@'%' ACCOUNT LOCK;")
    failed = run(api, "sync_accounts")
    assert failed["outcome"] == "failed"
    assert "1 of 3 instances failed" in failed["error"]
    for text in (failed["error"], failed["log"]):
        report = lines_of(text)
        assert set(report) == {"pg", "maria", "file"}
        assert "outcome=failed error=" in report["pg"]
        assert "outcome=success" in report["maria"]
        assert "added=1 changed=1 removed=1" in report["maria"]
        assert "outcome=success" in report["file"]
    maria = stored_accounts(stack, "maria")
    assert "newcomer@%" in maria
    assert "locked@%" not in maria
    assert maria["alice@%"]["is_locked"]
    assert stored_accounts(stack, "pg") == before

    sizes = run(api, "collect_database_sizes")
    assert sizes["outcome"] == "failed"
    assert "outcome=success databases=" in lines_of(sizes["error"])["maria"]
    assert stored_sizes(stack, "maria") == databases.mariadb_sizes()

    databases.start("postgresql")
    recovered = run(api, "sync_accounts")
    assert recovered["outcome"] == "success", recovered
    assert "added=0 changed=0 removed=0" in lines_of(recovered["log"])["pg"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("service", "instance"), [("postgresql", "pg"), ("mariadb", "maria")])
def test_a_frozen_instance_is_given_up_after_ten_seconds(
    stack: Stack, api: Client, databases: Databases, service: str, instance: str
) -> None:
    databases.compose("pause", service)  # its kernel still accepts connections; nobody answers them
    try:
        began = time.monotonic()
        failed = run(api, "sync_accounts")
        took = time.monotonic() - began
    finally:
        databases.compose("unpause", service)
    assert failed["outcome"] == "failed"
    assert 9 < took < 20
    report = lines_of(failed["error"])
    assert {name for name, facts in report.items() if "outcome=failed" in facts} == {instance}
