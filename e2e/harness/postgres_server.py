"""A PostgreSQL server of a test's own, from the stack's image, that the tests reach from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import docker
import psycopg
from docker.models.containers import Container

from e2e.harness.waiting import wait_until

IMAGE = f"whalefall/postgres:{os.environ.get('WHALEFALL_TAG', 'latest')}"
USER, PASSWORD = "whalefall", "password-of-the-tests"


@dataclass(frozen=True)
class PostgresServer:
    """A running server; `url(database)` is SQLAlchemy's URL of one of its databases."""

    container: Container
    host: str
    port: int

    def url(self, database: str = "whalefall", *, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://{user}:{password}@{self.host}:{self.port}/{database}"

    def connect(self, database: str = "whalefall") -> psycopg.Connection:
        """A connection of the test itself; every statement is committed at once."""
        return psycopg.connect(
            host=self.host, port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        )

    def new_database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Starts one and waits until it answers; its data is gone in the end."""
    container = docker.from_env().containers.run(
        IMAGE,
        ["postgres", "-c", "fsync=off"],
        detach=True,
        environment={"POSTGRES_USER": USER, "POSTGRES_PASSWORD": PASSWORD, "POSTGRES_DB": "whalefall"},
        ports={"5432/tcp": ("127.0.0.1", None)},
        labels={"whalefall.e2e": str(os.getpid())},
    )
    try:
        container.reload()
        (published,) = container.ports["5432/tcp"]
        server = PostgresServer(container, "127.0.0.1", int(published["HostPort"]))
        wait_until("PostgreSQL answers", lambda: _answers(server), within=60)
        yield server
    finally:
        container.remove(force=True, v=True)


def _answers(server: PostgresServer) -> bool:
    try:
        with server.connect():
            return True
    except psycopg.OperationalError:
        return False
