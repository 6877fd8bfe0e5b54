"""One connection to SQLite or PostgreSQL, and the little SQL that both understand.

Statements take `?` for parameters and hold no other `?` or `%`. Types in tables: TEXT, BIGINT, DOUBLE PRECISION. Whatever a
driver raises becomes StorageError; after one, `close` and open anew.

SQLite runs in WAL mode with synchronous=NORMAL: a commit survives the end of the process at any moment, kill -9 included; the end
of the machine (a power cut) may take the last commits, and never damages the file (https://sqlite.org/wal.html, section 3.1).
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

POSTGRES = ("postgresql://", "postgres://")

BUSY_SECONDS = 5.0
"""How long a writer waits for another process's transaction."""
CONNECT_SECONDS = 5
STATEMENT_SECONDS = 30

_ROWS = 100
"""Of one statement of SQLite, which takes 32,766 parameters."""
_PLACES = re.compile(r"VALUES (\(\?(?:, \?)*\))")

Row = tuple[Any, ...]

_UNFIT = (OverflowError, UnicodeError)
"""What drivers raise before they ask: a number of more than 64 bits, a text that no encoding has."""


class StorageError(Exception):
    """The database can't be reached, is full, or refused a statement. Its text is for the log and the terminal, not for clients."""


class Unfit(StorageError):
    """A value that the database does not take, however often it is asked."""


class Database(Protocol):
    """A connection. Used by one thread at a time."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """One statement; its rows, if it has any."""
        ...

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a query, without holding all of them where the driver can do that."""
        ...

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement for every row: an INSERT with `VALUES (?, …)`."""
        ...

    def transaction(self, alone: bool = False) -> contextlib.AbstractContextManager[None]:
        """All or nothing of what is written inside. alone: no other such transaction runs beside it, in any process."""
        ...

    def changes(self) -> int | None:
        """A number that differs after another connection has written; None where that can't be known cheaply."""
        ...

    def close(self) -> None:
        """Never raises."""
        ...


def open_database(target: str, migrations: Sequence[str] = (), part: str = "") -> Database:
    """Connect, and bring the tables of `part` up to date: every migration that has not run here yet, in order.

    target: a path, or a PostgreSQL URL. Raises StorageError.
    """
    database: Database = _Postgres(target) if target.startswith(POSTGRES) else _SQLite(Path(target))
    try:
        _migrate(database, migrations, part)
    except BaseException:
        database.close()
        raise
    return database


def _migrate(database: Database, migrations: Sequence[str], part: str) -> None:
    if not migrations or _version(database, part) == len(migrations):
        return  # nothing is written, so who may only read, or comes for every request, may open it
    with database.transaction(alone=True):
        database.run("CREATE TABLE IF NOT EXISTS schema_version (part TEXT PRIMARY KEY, version BIGINT NOT NULL)")
        version = _version(database, part) or 0
        if version > len(migrations):
            raise StorageError(f"the database is of a later version of the gateway ({part} {version})")
        for migration in migrations[version:]:
            for statement in filter(None, (text.strip() for text in migration.split(";"))):
                database.run(statement)
        database.run(
            "INSERT INTO schema_version (part, version) VALUES (?, ?)"
            " ON CONFLICT (part) DO UPDATE SET version = excluded.version",
            (part, len(migrations)),
        )


def _version(database: Database, part: str) -> int | None:
    """Of the tables of a part; None where there is nothing that could be asked."""
    try:
        found = database.run("SELECT version FROM schema_version WHERE part = ?", (part,))
    except StorageError:
        return None
    return int(found[0][0]) if found else 0


class _SQLite:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            # Autocommit: transactions begin where we say so.
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            if new:
                os.chmod(path, 0o600)  # noqa: PTH101 - what it holds is nobody else's on this machine
            _patiently(self._connection, "PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._file = _identity(path)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{path}: {error}") from error

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        with _told(sqlite3.Error, _UNFIT):
            return self._connection.execute(sql, values).fetchall()

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        with _told(sqlite3.Error):
            yield from self._connection.execute(sql, values)

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        # Not executemany: it gives the interpreter away and asks for it back at every row, and beside a busy event loop gets it only
        # after a switch interval, 5 ms each time. 500 rows took 4 s so, and the file was locked all the while; this takes 0.05 s.
        found = list(rows)
        with _told(sqlite3.Error, _UNFIT):
            for at in range(0, len(found), _ROWS):
                part = found[at : at + _ROWS]
                self._connection.execute(_for_rows(sql, len(part)), [value for row in part for value in row])

    @contextlib.contextmanager
    def transaction(self, alone: bool = False) -> Iterator[None]:
        with _told(sqlite3.Error):  # SQLite has one writer anyway
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it already
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise
        self._check_place()

    def changes(self) -> int | None:
        self._check_place()
        return int(self.run("PRAGMA data_version")[0][0])

    def _check_place(self) -> None:
        """What is written to a file that was moved or deleted meanwhile, SQLite takes without a word, and nobody finds it."""
        if _identity(self._path) != self._file:
            raise StorageError(f"{self._path}: the file was moved, replaced or deleted")

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is, whatever its name; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _for_rows(sql: str, count: int) -> str:
    """The INSERT of one row, for so many."""
    return _PLACES.sub(lambda found: "VALUES " + ", ".join([found[1]] * count), sql, count=1)


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """SQLite does not wait for others where a file changes its journal mode: it says at once that the file is locked, as when two
    connections open a new file at the same moment (https://sqlite.org/c3ref/busy_handler.html). So the waiting is done here."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


class _Postgres:
    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise StorageError("PostgreSQL needs psycopg: pip install 'modelnet-gateway[postgres]'") from error
        self._errors = psycopg.Error
        self._unfit = (psycopg.DataError, *_UNFIT)
        try:
            self._connection = psycopg.connect(
                url,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                options=f"-c statement_timeout={STATEMENT_SECONDS * 1000}",
                application_name="modelnet",
                # A server that is gone without a word is noticed within seconds, not when TCP gives up.
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=STATEMENT_SECONDS * 1000,
            )
        except psycopg.Error as error:
            # Only the kind: the text may repeat parts of the URL, and the URL may hold a password.
            raise StorageError(f"PostgreSQL can't be reached ({type(error).__name__})") from error

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        with _told(self._errors, self._unfit):
            cursor = self._connection.execute(_translated(sql), values)
            return cursor.fetchall() if cursor.description is not None else []

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        with _told(self._errors), self._connection.transaction(), self._connection.cursor(name="modelnet") as cursor:
            cursor.itersize = 5000
            cursor.execute(_translated(sql), values)
            yield from cursor

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with _told(self._errors, self._unfit), self._connection.cursor() as cursor:
            cursor.executemany(_translated(sql), rows)

    @contextlib.contextmanager
    def transaction(self, alone: bool = False) -> Iterator[None]:
        with _told(self._errors), self._connection.transaction():
            if alone:  # IF NOT EXISTS does not save two processes that make the same table from each other
                self._connection.execute("SELECT pg_advisory_xact_lock(727283)")
            yield

    def changes(self) -> int | None:
        return None

    def close(self) -> None:
        with contextlib.suppress(self._errors, OSError):
            self._connection.close()


def _translated(sql: str) -> Any:
    return sql.replace("?", "%s")


@contextlib.contextmanager
def _told(kinds: type[Exception], unfit: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    try:
        yield
    except unfit as error:
        raise Unfit(f"{type(error).__name__}: {error}") from error
    except kinds as error:
        raise StorageError(f"{type(error).__name__}: {error}") from error
