"""The three tasks of the inventory in a real app, on SQLite files and servers that cannot be reached."""

from __future__ import annotations

import logging
import socket
import sqlite3
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from app import create_app
from app.db.engines import read_transaction
from app.db.inventory_tables import database_instances, database_size_aggregations, database_sizes
from app.inventory import InstancesFileError
from app.inventory.survey import InstancesFailed, report_line
from app.runtime import current_runtime
from app.settings import Settings


@dataclass
class RunStandIn:
    """As much of a run as the tasks look at."""

    id: str


@pytest.fixture
def userdata(tmp_path):
    """An app's userdata folder, the app's context active."""
    secrets = {"SECRET_KEY": "k" * 40, "ADMIN_PASSWORD": "p" * 20, "API_TOKEN": "t" * 40}
    app = create_app(Settings.load({"USERDATA_DIR": str(tmp_path), **secrets}), init_scheduler_on_start=False)
    with app.app_context():
        yield tmp_path


@pytest.fixture
def run_task(userdata, caplog):
    """Run a built-in task by name as the ledger does; what it logged, a line each."""
    caplog.set_level(logging.INFO)

    def run(name: str, **kwargs) -> list[str]:
        caplog.clear()
        current_runtime().tasks.get(name).call(kwargs, RunStandIn("run1"))
        return [record.getMessage() for record in caplog.records if record.name.startswith("app.")]

    return run


def make_database(path, rows: int) -> int:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * rows)
    connection.close()
    return int(path.stat().st_size)


def stored(table):
    with read_transaction(current_runtime().database) as connection:
        return [dict(row) for row in connection.execute(select(table).order_by(table.c.id)).mappings()]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("name", ["sync_accounts", "collect_database_sizes"])
def test_nothing_configured_is_a_success_with_a_clear_line(run_task, userdata, name):
    assert run_task(name) == [f"no database instances are configured in {userdata}/databases.yaml: nothing to do"]


def test_nothing_recorded_is_a_success_with_a_clear_line(run_task):
    assert run_task("calculate_database_size_aggregations") == [
        "no database sizes are recorded yet: nothing to calculate"
    ]


def test_who_asked_for_a_manual_run_is_logged(run_task):
    for name in ("sync_accounts", "calculate_database_size_aggregations"):
        assert run_task(name, manual_run=True, created_by=7)[0] == "manual run, asked for by 7"


def test_sizes_are_recorded_and_aggregated(run_task, userdata):
    (userdata / "databases.yaml").write_text("instances: [{name: one, kind: sqlite, path: one.db}]")
    size = make_database(userdata / "one.db", 10)
    lines = run_task("collect_database_sizes")
    assert f"instance=one database=main size_bytes={size}" in lines
    assert f"outcome=success databases=1 total_bytes={size} duration_ms=" in lines[-1]
    assert [row["size_bytes"] for row in stored(database_sizes)] == [size]

    (line,) = run_task("calculate_database_size_aggregations")
    assert line == "instance=one outcome=success databases=1 periods=4 timezone=Asia/Shanghai"
    assert {(row["period"], row["max_bytes"]) for row in stored(database_size_aggregations)} == {
        (period, size) for period in ("day", "week", "month", "quarter")
    }


def test_running_twice_adds_no_rows(run_task, userdata):
    (userdata / "databases.yaml").write_text("instances: [{name: one, kind: sqlite, path: one.db}]")
    make_database(userdata / "one.db", 10)
    run_task("collect_database_sizes")
    run_task("calculate_database_size_aggregations")
    hours = {row["hour"] for row in stored(database_sizes)}
    grown = make_database(userdata / "one.db", 500)
    run_task("collect_database_sizes")
    run_task("calculate_database_size_aggregations")
    sizes = stored(database_sizes)
    hours |= {row["hour"] for row in sizes}
    assert len(sizes) == len(hours)  # one, but for a test that saw the clock strike
    assert sizes[-1]["size_bytes"] == grown
    periods = [(row["period"], row["period_start"]) for row in stored(database_size_aggregations)]
    assert len(periods) == len(set(periods))
    assert {period for period, _ in periods} == {"day", "week", "month", "quarter"}


def test_one_broken_instance_fails_the_run_and_not_the_others(run_task, userdata, caplog):
    (userdata / "databases.yaml").write_text(
        f"""
        instances:
          - {{name: down, kind: postgresql, host: 127.0.0.1, port: {closed_port()}, user: u, password: hunter2}}
          - {{name: absent, kind: sqlite, path: absent.db}}
          - {{name: one, kind: sqlite, path: one.db}}
          - {{name: nopass, kind: mysql, host: 127.0.0.1, user: u, password_file: absent}}
        """
    )
    size = make_database(userdata / "one.db", 10)
    with pytest.raises(InstancesFailed) as caught:
        run_task("collect_database_sizes")
    report = str(caught.value).splitlines()
    assert report[0] == "3 of 4 instances failed"
    assert [line.split()[0] for line in report[1:]] == [
        "instance=down",
        "instance=absent",
        "instance=one",
        "instance=nopass",
    ]
    assert ["outcome=failed" in line for line in report[1:]] == [True, True, False, True]
    assert f"no such file: {userdata}/absent.db" in report[2]
    assert f"databases=1 total_bytes={size}" in report[3]
    assert "password_file" in report[4]
    assert [row["size_bytes"] for row in stored(database_sizes)] == [size]
    assert "hunter2" not in caplog.text
    assert "hunter2" not in str(caught.value)
    for line in report[1:]:
        assert line in caplog.text

    with pytest.raises(InstancesFailed, match="3 of 4 instances failed"):
        run_task("sync_accounts")


def test_a_wrong_file_fails_the_run_and_says_where(run_task, userdata):
    (userdata / "databases.yaml").write_text("instances:\n  - {name: a, kind: oracle}\n")
    with pytest.raises(InstancesFileError, match=r"databases\.yaml:2: instances\[1\]\.kind: "):
        run_task("sync_accounts")
    assert stored(database_instances) == []


def test_the_file_is_read_anew_at_each_run(run_task, userdata):
    make_database(userdata / "one.db", 1)
    for name in ("first", "second"):
        (userdata / "databases.yaml").write_text(f"instances: [{{name: {name}, kind: sqlite, path: one.db}}]")
        run_task("sync_accounts")
    assert [(row["name"], row["is_configured"]) for row in stored(database_instances)] == [
        ("first", False),
        ("second", True),
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ('say "x"', '"say \\"x\\""'),
        ("a=b", '"a=b"'),
        ("line\nbreak", '"line\\nbreak"'),
        ("", '""'),
        ("数据库", "数据库"),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (["a", "b c"], '"a,b c"'),
    ],
)
def test_report_lines_can_be_split_again(value, shown):
    assert report_line({"key": value}) == f"key={shown}"
