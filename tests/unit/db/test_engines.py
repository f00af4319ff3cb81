"""Engines and transactions on real SQLite files."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from app.db.engines import DamagedDatabase, check_integrity, create_engine_for, read_transaction, write_transaction


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = create_engine_for(f"sqlite:///{tmp_path}/new/folder/store.db", busy_timeout_s=0.2)
    with made.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
    return made


def count(engine: Engine) -> int:
    with read_transaction(engine) as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one())


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 200)]
)
def test_every_connection_is_set_up(engine: Engine, pragma: str, value: object) -> None:
    engine.dispose()
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value


def test_a_write_transaction_commits_or_leaves_nothing(engine: Engine) -> None:
    with write_transaction(engine) as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")

    def fail_half_way() -> None:
        with write_transaction(engine) as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (2)")
            connection.exec_driver_sql("INSERT INTO nowhere VALUES (2)")

    with pytest.raises(OperationalError):
        fail_half_way()
    assert count(engine) == 1


def test_a_writer_keeps_other_writers_out_and_lets_readers_in(engine: Engine) -> None:
    with write_transaction(engine) as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        assert count(engine) == 0
        with pytest.raises(OperationalError, match="locked"), write_transaction(engine):
            pytest.fail("two writers at once")
    assert count(engine) == 1


def test_what_reads_first_and_writes_later_never_fails_for_that(engine: Engine) -> None:
    patient = create_engine_for(engine.url, busy_timeout_s=10)

    def add_after_reading() -> None:
        for _ in range(20):
            with write_transaction(patient) as connection:
                number = connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one()
                connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))

    threads = [threading.Thread(target=add_after_reading) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with read_transaction(patient) as connection:
        assert connection.exec_driver_sql("SELECT count(DISTINCT n) FROM t").scalar_one() == 80


class TestIntegrity:
    def test_a_sound_file_passes(self, engine: Engine) -> None:
        check_integrity(engine)

    def test_a_file_that_is_not_there_yet_passes_and_is_not_made(self, tmp_path: Path) -> None:
        check_integrity(create_engine_for(f"sqlite:///{tmp_path}/none.db"))
        assert not (tmp_path / "none.db").exists()

    @pytest.mark.parametrize("damage", ["no database", "overwritten page"])
    def test_a_damaged_file_is_refused_and_kept(self, engine: Engine, damage: str) -> None:
        with write_transaction(engine) as connection:
            for number in range(5000):
                connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        engine.dispose()
        path = Path(str(engine.url.database))
        content = bytearray(path.read_bytes())
        if damage == "no database":
            content[:4096] = b"x" * 4096
        else:
            content[4096:12288] = b"\xff" * 8192
        path.write_bytes(content)
        with pytest.raises(DamagedDatabase, match="kept as it is"):
            check_integrity(engine)
        assert path.read_bytes() == bytes(content)


def test_bytes_that_are_no_text_are_read_all_the_same(engine: Engine) -> None:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT CAST(x'22ff22' AS TEXT) UNION ALL SELECT 'é'").scalars().all()
    assert rows == ['"\\xff"', "é"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"options": "-c idle_in_transaction_session_timeout=1500 -c lock_timeout=800 -c statement_timeout=60000"}),
        ("?options=-c%20lock_timeout%3D5", {"options": "statement_timeout=60000 -c lock_timeout=5"}),
        ("", {"connect_timeout": "10", "tcp_user_timeout": "10000", "keepalives_idle": "10"}),
        ("?connect_timeout=3", {"connect_timeout": "3"}),
    ],
)
def test_postgresql_does_not_wait_for_ever(query: str, expected: dict[str, str]) -> None:
    given: dict[str, str] = {}

    def note(_dialect: object, _record: object, _args: object, settings: dict[str, str]) -> None:
        given.update(settings)
        raise ConnectionRefusedError

    engine = create_engine_for(f"postgresql+psycopg://user@127.0.0.1:1/db{query}", busy_timeout_s=0.8)
    event.listen(Engine, "do_connect", note)  # those of the class come before the engine's own
    try:
        with pytest.raises(ConnectionRefusedError):
            engine.connect()
    finally:
        event.remove(Engine, "do_connect", note)
    for name, value in expected.items():
        assert given[name].endswith(value)
