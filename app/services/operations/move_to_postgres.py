"""Moves everything that the SQLite stores hold into PostgreSQL, and checks it before it says so.

Each PostgreSQL database gets its rows in one transaction, which is committed only when row counts and checksums agree:
whoever is interrupted has changed nothing, or all of it. With the rows it gets a record of what came from where
(`moved_from_sqlite`), so that a repeated move knows its own earlier work from somebody else's data. The old files are
only read, and locked meanwhile; at the end a note beside them keeps schedulers off (see moved_note).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
)

from app.db import inventory_tables  # noqa: F401 - so that the metadata below knows all tables
from app.db.account_tables import users
from app.db.clock import to_us
from app.db.engines import create_engine_for, read_transaction, sqlite_path, write_transaction
from app.db.jobstore_tables import IS_ACTIVE, nodes, runs
from app.db.migrate import (
    HEADS,
    METADATA,
    VERSION_TABLES,
    NewerSchema,
    Store,
    current_revision,
    ensure_schema,
    is_newer_and_usable,
)
from app.db.reach import StoreUnusable, public_url, wait_for_server
from app.ledger import failpoints
from app.ledger.nodes import LockFile
from app.ledger.one_store import refuse_other_store
from app.services.accounts.admin_sync import ADMIN_NAME
from app.services.operations.failure import OperationFailed
from app.services.operations.moved_note import MovedNote, read_note, write_note
from app.services.operations.store_files import STORE_NAMES, finding_of, is_open_elsewhere, open_database, utc_now
from app.settings import Settings

NOT_MOVED = frozenset({nodes.name})
"""Tables that say what lives now: the schedulers on PostgreSQL write their own rows."""
DEFAULT_FILES: Mapping[Store, str] = {"jobstore": "scheduler.db", "app": "whalefall.db"}
VARIABLES: Mapping[Store, str] = {"jobstore": "JOBSTORE_URL", "app": "DATABASE_URL"}

_LOCK = "move-to-postgres"
_ROWS_AT_ONCE = 2000
_TOLD_EVERY = 100_000  # rows
_SHOWN_MISFITS = 5
_ADVISORY_LOCK = 0x4D4F5645  # "MOVE"

records = Table(
    "moved_from_sqlite",
    MetaData(),
    Column("store", String(16), primary_key=True),
    Column("source", Text, nullable=False),
    Column("moved_at", BigInteger, nullable=False),
    Column("sums", Text, nullable=False),  # JSON: table -> [rows, checksum]
)
"""In the target: what was moved there, committed together with the rows themselves."""

Tell = Callable[[str], None]
Values = tuple[Any, ...]


@dataclass(frozen=True)
class Sum:
    """How many rows a table has, and a checksum over all of them that does not depend on their order."""

    rows: int
    checksum: str


@dataclass(frozen=True)
class Moved:
    """What was moved, or would be. `already`: it had been moved before, whole and checked.

    sums: by store and table. not_ended: runs that a scheduler left pending or running; the ones on PostgreSQL take
    them over or call them lost.
    """

    sources: dict[str, str]
    targets: dict[str, str]
    sums: dict[str, dict[str, Sum]]
    not_ended: int
    already: bool = False

    def tables(self) -> Iterator[tuple[str, str, Sum]]:
        """(store, table, sum) of all that is moved."""
        for store, sums in self.sums.items():
            for table, found in sums.items():
                yield store, table, found

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "sources": self.sources,
            "targets": self.targets,
            "tables": {
                table: {"store": store, "rows": found.rows, "checksum": found.checksum}
                for store, table, found in self.tables()
            },
            "not_ended": self.not_ended,
            "already": self.already,
        }


@dataclass
class _Source:
    """A SQLite store that is read, locked against writers until the move is over."""

    store: Store
    file: Path
    connection: Connection
    sums: dict[str, Sum] = field(default_factory=dict)


def tables_of(store: Store) -> list[Table]:
    """Every table of a store that is moved, in an order in which rows may refer to rows before them."""
    return [table for table in METADATA[store].sorted_tables if table.name not in NOT_MOVED]


def move(settings: Settings, *, files: Mapping[Store, Path] | None = None, tell: Tell, dry_run: bool = False) -> Moved:
    """Moves the rows of the SQLite `files` (those of this userdata when left out) to where JOBSTORE_URL and
    DATABASE_URL point. `tell` takes lines of progress.

    dry_run: only looks; the stack may be running. OperationFailed, with nothing changed, when a process has a file
    open, when the target holds other data, or when something does not fit. Safe to run again after any interruption.
    """
    sources = {store: (files or {}).get(store) or settings.userdata_dir / name for store, name in DEFAULT_FILES.items()}
    _check_targets(settings)
    for store, file in sources.items():
        if not file.is_file():
            raise OperationFailed(f"there is no {store} database at {file}, so there is nothing to move from it")
    with ExitStack() as held:
        if not dry_run:
            held.enter_context(_nobody_else(settings, sources))
        targets = {store: held.enter_context(_target(settings, store, dry_run=dry_run)) for store in STORE_NAMES}
        opened = [held.enter_context(_opened(store, file, dry_run=dry_run)) for store, file in sources.items()]
        for source in opened:
            tell(f"reading {source.file}")
            source.sums = {table.name: _checked_sum(source, table) for table in tables_of(source.store)}
            _tell_strangers(source, tell)
        # Stores in one database are moved in one transaction.
        groups: dict[str, list[_Source]] = {}
        for source in opened:
            groups.setdefault(str(targets[source.store].url), []).append(source)
        already = True
        for group in groups.values():
            target = targets[group[0].store]
            if dry_run and not _answers(target, VARIABLES[group[0].store]):
                tell(f"{public_url(target.url)} does not answer, so it was not looked at")
                already = False
                continue
            already &= _move_group(target, group, tell, dry_run=dry_run)
        moved = Moved(
            sources={source.store: str(source.file) for source in opened},
            targets={store: public_url(engine.url) for store, engine in targets.items()},
            sums={source.store: source.sums for source in opened},
            not_ended=_not_ended(opened[0]),
            already=already,
        )
        if not dry_run:
            _note(settings, moved)
            failpoints.reach("move.noted")
        return moved


# What has to be so


def _check_targets(settings: Settings) -> None:
    for store, variable in VARIABLES.items():
        url = settings.jobstore_url if store == "jobstore" else settings.database_url
        if sqlite_path(url) is not None:
            raise OperationFailed(
                f"{variable} names the SQLite file {sqlite_path(url)}; accepted: postgresql+psycopg://user@host/name,"
                " as in the shape ha"
            )


@contextmanager
def _nobody_else(settings: Settings, sources: Mapping[Store, Path]) -> Iterator[None]:
    """Keeps every process of this volume from starting meanwhile; OperationFailed when one is alive."""
    text = "the SQLite files, to move them to PostgreSQL"
    try:
        refuse_other_store(settings.locks_dir, text)
        lock = LockFile(settings.locks_dir / f"{_LOCK}.lock", text)
    except BlockingIOError as error:
        raise OperationFailed("another move is going on; wait for it") from error
    except StoreUnusable as error:
        raise OperationFailed(
            "a scheduler or a worker is alive on this volume; stop the stack in order, and try again"
        ) from error
    try:
        for file in sources.values():
            if is_open_elsewhere(file):
                raise OperationFailed(
                    f"{file} is open in another process; stop every web and scheduler process that uses it,"
                    " in other containers too, and try again"
                )
        yield
    finally:
        lock.release()


@contextmanager
def _target(settings: Settings, store: Store, *, dry_run: bool) -> Iterator[Engine]:
    """An engine of a PostgreSQL store at this release's schema."""
    engine = create_engine_for(settings.jobstore_url if store == "jobstore" else settings.database_url)
    try:
        if not dry_run:
            wait_for_server(engine, VARIABLES[store])
            ensure_schema(engine, store)
        yield engine
    except (StoreUnusable, NewerSchema) as error:
        raise OperationFailed(str(error)) from error
    finally:
        engine.dispose()


def _answers(target: Engine, variable: str) -> bool:
    try:
        wait_for_server(target, variable, patience_s=0)
    except StoreUnusable:
        return False
    return True


@contextmanager
def _opened(store: Store, file: Path, *, dry_run: bool) -> Iterator[_Source]:
    """A source that is sound and at this release's schema; nobody writes to it until it is closed."""
    with open_database(file) as plain:
        finding = finding_of(plain)
    if finding is not None:
        raise OperationFailed(f"{file} is damaged: {finding}; it is left as it is. See runbooks/reset-jobstore.md")
    engine = create_engine_for(f"sqlite:///{file}")
    try:
        with read_transaction(engine) as connection:
            revision = current_revision(connection, store)
        if revision is None:
            raise OperationFailed(f"{file} has no {VERSION_TABLES[store]}: it is no {store} database of this app")
        if revision != HEADS[store] and dry_run:
            raise OperationFailed(f"{file} is at schema {revision}, not {HEADS[store]}; scripts/up.sh migrates it")
        if not dry_run:
            ensure_schema(engine, store)  # as any start of this release does
        with read_transaction(engine) as connection:
            if is_newer_and_usable(connection, store):
                raise OperationFailed(f"{file} is of a newer release (schema {revision}); move it with that release")
        transaction = read_transaction if dry_run else write_transaction
        with transaction(engine) as connection:
            # Raw values, as the file holds them: the types that PostgreSQL would refuse must be seen.
            yield _Source(store, file, connection)
    except NewerSchema as error:
        raise OperationFailed(str(error)) from error
    finally:
        engine.dispose()


def _tell_strangers(source: _Source, tell: Tell) -> None:
    ours = {*METADATA[source.store].tables, VERSION_TABLES[source.store]}
    for name in sorted(set(inspect(source.connection).get_table_names()) - ours):
        tell(f"{source.file}: the table {name} is none of this app's and stays where it is")


def _not_ended(jobstore: _Source) -> int:
    found: int = jobstore.connection.execute(select(func.count()).select_from(runs).where(IS_ACTIVE)).scalar_one()
    return found


# Rows and checksums


def _rows(connection: Connection, table: Table) -> Iterator[Values]:
    """The rows of a table as the driver gives them, in the table's order of columns, without holding all of them."""
    quote = connection.dialect.identifier_preparer.quote
    columns = ", ".join(quote(column.name) for column in table.columns)
    statement = f"SELECT {columns} FROM {quote(table.name)}"  # noqa: S608 - names of our own tables
    options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
    for row in connection.exec_driver_sql(statement, execution_options=options):
        yield tuple(row)


def _canonical(table: Table) -> Callable[[Values], Values]:
    """Turns a row of either database into what PostgreSQL holds.

    SQLite has no booleans, and its texts may hold a NUL, which PostgreSQL cannot store: it is written out.
    """
    flags = [index for index, column in enumerate(table.columns) if isinstance(column.type, Boolean)]
    texts = [index for index, column in enumerate(table.columns) if isinstance(column.type, String)]

    def canonical(row: Values) -> Values:
        values = list(row)
        for index in flags:
            if values[index] in (0, 1):
                values[index] = bool(values[index])
        for index in texts:
            if isinstance(values[index], str) and "\0" in values[index]:
                values[index] = values[index].replace("\0", "\\x00")
        return tuple(values)

    return canonical


class _Summing:
    """Adds rows up: the sum of their SHA-256, so that no order is needed; each row has its key, so none is twice."""

    def __init__(self) -> None:
        self.rows = 0
        self._total = 0

    def add(self, row: Values) -> None:
        digest = hashlib.sha256(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())
        self._total = (self._total + int.from_bytes(digest.digest())) % 2**256
        self.rows += 1

    def result(self) -> Sum:
        return Sum(self.rows, f"{self._total:064x}")


def sum_of(connection: Connection, table: Table) -> Sum:
    """The sum of a table, in either database, from its rows as they are read now."""
    canonical, summing = _canonical(table), _Summing()
    for row in _rows(connection, table):
        summing.add(canonical(row))
    return summing.result()


def _checked_sum(source: _Source, table: Table) -> Sum:
    """The same of a SQLite table; OperationFailed where a value would not fit into PostgreSQL's column."""
    canonical, summing, misfits = _canonical(table), _Summing(), []
    checks = [(index, column, _fits(column)) for index, column in enumerate(table.columns)]
    keys = [index for index, column in enumerate(table.columns) if column.primary_key]
    for raw in _rows(source.connection, table):
        row = canonical(raw)
        for index, column, fits in checks:
            value = row[index]
            if not (column.nullable if value is None else fits(value)):
                key = ", ".join(str(row[index]) for index in keys)
                misfits.append(f"{table.name}.{column.name} of {key!r} ({_described(value)})")
        if misfits:
            continue
        summing.add(row)
    if misfits:
        shown = "; ".join(misfits[:_SHOWN_MISFITS])
        more = f"; and {len(misfits) - _SHOWN_MISFITS} more" if len(misfits) > _SHOWN_MISFITS else ""
        raise OperationFailed(
            f"{source.file} holds values that do not fit into PostgreSQL's columns: {shown}{more}. Nothing was changed;"
            " correct them, or delete these rows, and try again"
        )
    return summing.result()


def _fits(column: Column[Any]) -> Callable[[Any], bool]:
    kind = column.type
    if isinstance(kind, Boolean):
        return lambda value: isinstance(value, bool)
    if isinstance(kind, Integer):
        bits = 63 if isinstance(kind, BigInteger) else 31
        return lambda value: isinstance(value, int) and -(2**bits) <= value < 2**bits
    if isinstance(kind, Float):
        return lambda value: isinstance(value, float | int)
    if isinstance(kind, String):
        limit = kind.length
        return lambda value: isinstance(value, str) and (limit is None or len(value) <= limit)
    raise TypeError(f"{column}: how {kind!r} is moved is not known; tell it here")


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"{len(value)} characters"
    return f"{type(value).__name__} {value!r}"[:80]


# The move itself


def _move_group(target: Engine, sources: Sequence[_Source], tell: Tell, *, dry_run: bool) -> bool:
    """Moves the stores that go into one database, in one transaction; True when it was done before."""
    where = public_url(target.url)
    transaction = read_transaction if dry_run else write_transaction
    with transaction(target) as connection:
        for limit in ("idle_in_transaction_session_timeout", "statement_timeout"):
            connection.execute(text(f"SET LOCAL {limit} = 0"))
        # A move that was killed may still be undone by the server.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        known = _recorded(connection)
        if all(known.get(source.store) == source.sums for source in sources):
            tell(f"{where}: everything is there already, and was checked")
            return True
        _check_free(connection, where, sources, known)
        if dry_run:
            return False
        failpoints.reach("move.begun")
        for source in sources:
            _copy_store(connection, source, tell)
        failpoints.reach("move.copied")
        for source in sources:
            _verify_store(connection, source, tell)
        _record(connection, sources)
        failpoints.reach("move.verified")
    tell(f"{where}: committed")
    failpoints.reach("move.committed")
    return False


def _recorded(connection: Connection) -> dict[str, dict[str, Sum]]:
    """What earlier moves left on record in this database, by store."""
    if not inspect(connection).has_table(records.name):
        return {}
    return {
        row.store: {table: Sum(*found) for table, found in json.loads(row.sums).items()}
        for row in connection.execute(select(records))
    }


def _record(connection: Connection, sources: Sequence[_Source]) -> None:
    records.create(connection, checkfirst=True)
    for source in sources:
        sums = {table: [found.rows, found.checksum] for table, found in source.sums.items()}
        connection.execute(delete(records).where(records.c.store == source.store))
        connection.execute(
            insert(records).values(
                store=source.store, source=str(source.file), moved_at=to_us(utc_now()), sums=json.dumps(sums)
            )
        )


def _check_free(
    connection: Connection, where: str, sources: Sequence[_Source], known: Mapping[str, dict[str, Sum]]
) -> None:
    """OperationFailed unless the stores are empty there, or hold an earlier copy that nobody has used since.

    Such a copy is replaced: it was interrupted, and the files may have gone on since.
    """
    is_unused_copy = bool(known) and not _rows_held(connection, [nodes])
    for source in sources:
        held = _rows_held(connection, METADATA[source.store].sorted_tables)
        if held and not (is_unused_copy and source.store in known):
            raise OperationFailed(
                f"{where} holds data that is no unused copy of {source.file}: {held}. Nothing was changed; point"
                f" {VARIABLES[source.store]} at an empty database (runbooks/move-to-postgres.md)"
            )


def _rows_held(connection: Connection, tables: Sequence[Table]) -> str:
    """How many rows the tables hold, for people; empty when they are empty, or not there yet."""
    there = set(inspect(connection).get_table_names())
    counts = {table.name: _foreign(connection, table) for table in tables if table.name in there}
    return ", ".join(f"{count} rows in {name}" for name, count in counts.items() if count)


def _foreign(connection: Connection, table: Table) -> int:
    count = select(func.count()).select_from(table)
    if table is users:  # every start of the app, a command's too, makes the admin
        count = count.where(users.c.username != ADMIN_NAME)
    found: int = connection.execute(count).scalar_one()
    return found


def _copy_store(connection: Connection, source: _Source, tell: Tell) -> None:
    tables = tables_of(source.store)
    for table in reversed(tables):
        connection.execute(delete(table))
    for table in tables:
        _copy_table(connection, source, table, tell)


def _copy_table(connection: Connection, source: _Source, table: Table, tell: Tell) -> None:
    canonical = _canonical(table)
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    columns = SQL(", ").join(Identifier(column.name) for column in table.columns)
    rows = 0
    try:
        with driver.cursor() as cursor:
            with cursor.copy(SQL("COPY {} ({}) FROM STDIN").format(Identifier(table.name), columns)) as copy:
                for row in _rows(source.connection, table):
                    copy.write_row(canonical(row))
                    rows += 1
                    if rows % _TOLD_EVERY == 0:
                        tell(f"{table.name}: {rows} of {source.sums[table.name].rows} rows")
            # Or the first queries on a large table would be planned as if it were empty.
            cursor.execute(SQL("ANALYZE {}").format(Identifier(table.name)))
    except psycopg.Error as error:
        raise OperationFailed(
            f"{table.name}: PostgreSQL did not take the rows: {error}; nothing was committed"
        ) from error
    _set_sequence(connection, table)
    tell(f"{table.name}: {rows} rows copied")


def _set_sequence(connection: Connection, table: Table) -> None:
    """What PostgreSQL numbers by itself goes on behind the rows that brought their numbers along."""
    column = table.autoincrement_column
    if column is None:
        return
    highest = connection.execute(select(func.max(column))).scalar_one()
    connection.execute(
        text("SELECT setval(pg_get_serial_sequence(:table, :column), :value, :used)"),
        {"table": table.name, "column": column.name, "value": highest or 1, "used": highest is not None},
    )


def _verify_store(connection: Connection, source: _Source, tell: Tell) -> None:
    for table in tables_of(source.store):
        found, wanted = sum_of(connection, table), source.sums[table.name]
        if found != wanted:
            raise OperationFailed(
                f"{table.name}: {found.rows} rows with checksum {found.checksum[:16]} are in PostgreSQL,"
                f" {wanted.rows} with {wanted.checksum[:16]} in {source.file}; nothing was committed"
            )
    tell(f"{source.store}: row counts and checksums of {len(source.sums)} tables agree")


def _note(settings: Settings, moved: Moved) -> None:
    if moved.already and (present := _present_note(settings)) is not None and present.targets == moved.targets:
        return
    files = {store: Path(file) for store, file in moved.sources.items()}
    inside = settings.userdata_dir
    note = MovedNote(
        moved_at=utc_now(),
        sources={
            store: str(file.relative_to(inside) if file.is_relative_to(inside) else file)
            for store, file in files.items()
        },
        targets=moved.targets,
        rows={table: found.rows for _store, table, found in moved.tables()},
    )
    write_note(settings, note)


def _present_note(settings: Settings) -> MovedNote | None:
    try:
        return read_note(settings)
    except ValueError:  # it is written anew
        return None
