"""A SQLite file: opened when it is first used, with its tables, and closed around a fork; whose errors name it."""

import os
import sqlite3
from _thread import allocate_lock
from _weakrefset import WeakSet  # `weakref` itself takes half a millisecond more to import
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from ..errors import StorageError

T = TypeVar("T")

SCHEMA = 2
"""The version of the tables; a file with another one is refused."""

MEMORY = ":memory:"

_LARGE = "a text or a number is larger than SQLite allows: keep it elsewhere and return where"
_DAMAGED = "it is damaged: restore it from a backup"
_REMEDIES = {
    "SQLITE_BUSY": "another process holds it locked: try again, or give a longer timeout=",
    "SQLITE_READONLY": "it cannot be written: check the permissions of the file and of its directory",
    "SQLITE_PERM": "it cannot be accessed: check the permissions of the file and of its directory",
    "SQLITE_CANTOPEN": "it cannot be opened: check that its directory exists and may be written",
    "SQLITE_FULL": "the disk is full: make room, nothing was recorded",
    "SQLITE_IOERR": "the disk failed to read or write: check it, and try again",
    "SQLITE_NOTADB": "it is not a SQLite database: give another path",
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_TOOBIG": _LARGE,
    "OverflowError": _LARGE,
    "OperationalError": _DAMAGED,  # the driver's own, about text that is not UTF-8
}


class File:
    """A file, and the one connection to it, which threads use in turn.

    Args:
        path: The file, or ``":memory:"``.
        timeout: Seconds to wait for another process's transaction.
        tables: The SQL that makes the tables that are not there.
    """

    connection: sqlite3.Connection | None = None

    def __init__(self, path: str | os.PathLike[str], timeout: float, tables: str) -> None:
        self.path = MEMORY if path == MEMORY else os.path.abspath(path)  # wherever it is opened again
        self._timeout = timeout
        self._tables = tables
        self.lock = allocate_lock()
        self.level = ""
        """Whether the end of a transaction waits for the disk at this moment, as ``synchronous`` has it."""
        _files.add(self)

    def __del__(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self.lock:
            self.disconnect()

    def run(self, work: Callable[[sqlite3.Connection], T], level: str = "") -> T:
        """Do `work` in a transaction, which any exception undoes; what SQLite raises then names file and remedy.

        Args:
            work: What to do.
            level: For what writes, whether its end waits for the disk; left out, nothing is written.
        """
        with self.lock:
            try:
                connection = self.connection or self._open()
                if level and level != self.level:
                    connection.execute(f"PRAGMA synchronous = {level}")
                    self.level = level
                try:
                    connection.execute("BEGIN IMMEDIATE" if level else "BEGIN")
                    done = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # SQLite itself has ended it when the disk is full
                        connection.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OverflowError, UnicodeError) as error:
                raise _explain(self.path, error) from error
            return done

    def disconnect(self) -> None:
        """Close the file for who has the lock."""
        if self.connection is not None:
            self.connection.close()
            self.connection, self.level = None, ""

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            _switch_to_wal(connection, self._timeout)
            self._create_tables(connection)
        except BaseException:
            connection.close()
            raise
        self.connection = connection
        return connection

    def _create_tables(self, connection: sqlite3.Connection) -> None:
        """Create the tables unless they are there; refuse those of another version of this library."""
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sequential_schema'").fetchone() is None:
            connection.executescript(f"""
                BEGIN IMMEDIATE;
                CREATE TABLE IF NOT EXISTS sequential_schema (version INTEGER NOT NULL);
                INSERT INTO sequential_schema SELECT {SCHEMA} WHERE NOT EXISTS (SELECT * FROM sequential_schema);
                {self._tables}
                COMMIT;
            """)
        (found,) = connection.execute("SELECT version FROM sequential_schema").fetchone()
        if found != SCHEMA:
            earlier = "an earlier release wrote it: let that one finish what is in it, and give this one another path"
            remedy = earlier if found < SCHEMA else "upgrade sequential-flow"
            raise StorageError(f"{self.path}: its tables are of version {found}, this release knows {SCHEMA}: {remedy}")


_files: WeakSet[File] = WeakSet()
_forking: list[File] = []


def _before_fork() -> None:
    """Close every file: SQLite's own account of its locks must not be copied into another process."""
    for file in list(_files):
        file.lock.acquire()
        _forking.append(file)
        if file.path != MEMORY:
            file.disconnect()


def _after_fork() -> None:
    while _forking:
        _forking.pop().lock.release()


# See https://www.sqlite.org/howtocorrupt.html, section 2.6; where there is no fork, there is no need.
getattr(os, "register_at_fork", lambda **_: None)(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
)


def _switch_to_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Wait by ourselves: at this pragma SQLite gives up at once when another process does the same."""
    deadline = monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() >= deadline:
                raise
            sleep(0.005)
        else:
            return


def _explain(path: str, error: Exception) -> StorageError:
    code = getattr(error, "sqlite_errorname", type(error).__name__)
    remedy = _REMEDIES.get("_".join(code.split("_")[:2]), "nothing was recorded")
    told = str(error).partition(" with text ")[0]  # behind it the driver quotes what is stored
    return StorageError(f"{path}: {told} ({code}): {remedy}")
