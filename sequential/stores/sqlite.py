"""Executions in one SQLite file: durable, and safe with many threads and processes of one host."""

from __future__ import annotations

import os
import sqlite3
from _thread import allocate_lock
from _weakrefset import WeakSet  # `weakref` itself takes half a millisecond more to import
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, Literal, TypeVar

from ..codec import Codec, JSONCodec
from ..errors import Fenced, StorageError
from ..storage import CLOSED, FRESH, Journal, Record, Result, as_result, refuses
from .owner import describe_process, is_dead

T = TypeVar("T")

SCHEMA = 1
"""The version of the tables below; a file with a newer one is refused."""

_TABLES = """
CREATE TABLE IF NOT EXISTS sequential_schema (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sequential_executions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE, run TEXT NOT NULL, workflow TEXT NOT NULL, version INTEGER, first_input INTEGER,
    token INTEGER NOT NULL, step INTEGER NOT NULL, status TEXT NOT NULL, due REAL, lease REAL NOT NULL,
    attempts INTEGER NOT NULL, error TEXT, wake REAL, waits TEXT, changed REAL NOT NULL, owner TEXT, rings REAL
);
CREATE INDEX IF NOT EXISTS sequential_due ON sequential_executions (rings) WHERE rings IS NOT NULL;
CREATE TABLE IF NOT EXISTS sequential_results (
    position INTEGER PRIMARY KEY, asked TEXT NOT NULL, fingerprint INTEGER, started REAL, ended REAL, error TEXT,
    data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sequential_signals (
    execution INTEGER NOT NULL, name TEXT NOT NULL, data BLOB, PRIMARY KEY (execution, name)
);
CREATE VIEW IF NOT EXISTS sequential_steps AS
    SELECT id, run, token AS held_token, token, e.step, status, due, lease, attempts, e.error AS record_error, wake,
        waits, changed, (position & 4294967295) - 1 AS result_step, asked, fingerprint, data, started, ended, r.error
    FROM sequential_executions AS e JOIN sequential_results AS r
    ON r.position > e.key << 32 AND r.position < (e.key + 1) << 32;
CREATE TRIGGER IF NOT EXISTS sequential_commit INSTEAD OF INSERT ON sequential_steps BEGIN
    UPDATE sequential_executions
        SET token = NEW.token, step = NEW.step, status = NEW.status, lease = NEW.lease, attempts = NEW.attempts,
            error = NEW.record_error, wake = NEW.wake, waits = NEW.waits, changed = NEW.changed
        WHERE id = NEW.id AND run = NEW.run AND token = NEW.held_token AND rings = -1 AND due IS NEW.due;
    SELECT RAISE(ABORT, 'fenced') WHERE changes() = 0;
    INSERT OR REPLACE INTO sequential_results (position, asked, fingerprint, data, started, ended, error) VALUES (
        ((SELECT key FROM sequential_executions WHERE id = NEW.id) << 32) + 1 + NEW.result_step,
        NEW.asked, NEW.fingerprint, NEW.data, NEW.started, NEW.ended, NEW.error
    );
END
"""
# A result's position is its execution's key shifted left by 32 bits, plus its step plus 1: the results of an execution
# lie side by side in one tree, where a key of several columns would need a second one and could not be read piecewise.
# Position 0 keeps the execution's input, out of the row that every commit writes anew.  The data comes last in the
# table, or SQLite would build all of a large one in memory before a piece of it is written.
#
# An execution rings at -1 while it is held, for only its owner's death, or the end of a lease that every commit moves,
# makes it late; then when it is due.
#
# The trigger makes one statement, and so one transaction without BEGIN and COMMIT, of a commit that goes on with the
# next step: no index changes then, and not to mention indexed columns is what keeps SQLite from writing them.

_INPUT = -1
_LAST = (1 << 32) - 1
_KEY = "(SELECT key FROM sequential_executions WHERE id = ? AND run = ?)"
_HELD_BY = " WHERE id = ? AND run = ? AND token = ?"
_SELECT = (
    "SELECT id, run, workflow, (SELECT data FROM sequential_results WHERE position = key << 32), version, first_input, "
    "token, step, status, due, lease, attempts, error, wake, waits, changed, owner FROM sequential_executions"
)
_CHANGING = (*Record._fields[6:], "owner", "rings")
_ALL = ("id", "run", "workflow", "version", "first_input", *_CHANGING)
_INSERT = f"INSERT INTO sequential_executions ({', '.join(_ALL)}) VALUES ({', '.join('?' * len(_ALL))})"
_UPDATE = f"UPDATE sequential_executions SET {' = ?, '.join(_CHANGING)} = ?{_HELD_BY}"
_REPLACE = f"UPDATE sequential_executions SET {' = ?, '.join(_ALL)} = ? WHERE key = ?"
_STEPS = f"INSERT INTO sequential_steps VALUES ({'?, ' * 5}'running', ?, ?, 0, NULL, NULL, NULL, {'?, ' * 7}%s)"
_STEP, _FAILED_STEP = _STEPS % "NULL", _STEPS % "?"
_RESULT = (
    "INSERT OR REPLACE INTO sequential_results (position, asked, fingerprint, data, started, ended, error) "
    f"VALUES (({_KEY} << 32) + 1 + ?, ?, ?, %s, ?, ?, ?)"
)
_SMALL, _LARGE = _RESULT % "?", _RESULT % "zeroblob(?)"
_HELD = f"SELECT key FROM sequential_executions{_HELD_BY}"
_SIGNAL = f"INSERT OR IGNORE INTO sequential_signals VALUES ({_KEY}, ?, ?)"
_NAMED = f" WHERE execution = {_KEY} AND name = ?"
_PENDING = f"SELECT data FROM sequential_signals{_NAMED}"
_OPEN = f"DELETE FROM sequential_signals{_NAMED}"
_TAKE = f"UPDATE sequential_signals SET data = NULL{_NAMED}"
_RESULTS = (
    "SELECT (position & 4294967295) - 1, asked, fingerprint, CASE WHEN length(data) <= ? THEN data END%s "
    f"FROM sequential_results WHERE position > ({_KEY} << 32) + ? AND position <= ({_KEY} << 32) + ? ORDER BY position"
)
_BRIEF, _WHOLE = _RESULTS % "", _RESULTS % ", started, ended, error"

_MEMORY = ":memory:"

_PAGE = 1 << 20
"""Bytes after which a page of results ends; a larger result goes in and out by itself, without a second copy."""

_REMEDIES = {
    "SQLITE_BUSY": "another process holds it locked: try again, or give a longer timeout=",
    "SQLITE_LOCKED": "another process holds it locked: try again, or give a longer timeout=",
    "SQLITE_READONLY": "it cannot be written: check the permissions of the file and of its directory",
    "SQLITE_CANTOPEN": "it cannot be opened: check that its directory exists and may be written",
    "SQLITE_FULL": "the disk is full: make room, nothing was recorded",
    "SQLITE_TOOBIG": "the value is larger than SQLite allows (a gigabyte): keep it elsewhere and return where",
    "SQLITE_NOTADB": "it is not a SQLite database: give another path",
    "SQLITE_CORRUPT": "it is damaged: restore it from a backup",
    "SQLITE_IOERR": "the disk failed to read or write: nothing was recorded",
    "SQLITE_PERM": "it cannot be accessed: check the permissions of the file and of its directory",
}


class SQLiteStorage(Journal):
    """A Journal in one SQLite file.

    The file is opened at the first use and its tables are created then.  One object serves any number of
    threads, and may be used on both sides of a fork.  The lease of a process of this host that has died is void at
    once.

    Args:
        path: The file; ``":memory:"`` is a database of this object's own.
        synchronous: ``"FULL"`` waits for the disk at every commit; ``"NORMAL"`` is faster, and a power cut (not
            a crash of the process) may undo the last commits.
        timeout: Seconds to wait for another process's transaction.
        codec: How values become bytes; strict JSON when left out.

    Raises:
        StorageError: From every method, naming the file, what failed, and the remedy.
    """

    _connection: sqlite3.Connection | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        timeout: float = 10.0,
        codec: Codec | None = None,
    ) -> None:
        if synchronous not in {"FULL", "NORMAL"}:
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', got {synchronous!r}")
        self.codec = codec or JSONCodec()
        self._path = _MEMORY if path == _MEMORY else os.path.abspath(path)  # wherever it is opened again
        self._synchronous = synchronous
        self._timeout = timeout
        self._lock = allocate_lock()
        self._level = ""
        self._owner: str | None = None
        _storages.add(self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SQLiteStorage:
        """Return the storage for ``sqlite:///relative`` or ``sqlite:////absolute``, with the class's options."""
        path = url.removeprefix("sqlite:///")
        if path in {"", url}:
            raise StorageError(f"{url!r} names no file: write sqlite:///relative/path or sqlite:////absolute/path")
        return cls(path, **options)

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            self._disconnect()

    def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease without waiting for the disk, or create a record and wait for it."""

        def take(connection: sqlite3.Connection) -> tuple[Record, bool] | None:
            record, owner = _find(connection, wanted.id)
            if record is None:
                return None
            if refuses(record, wanted, create) or (record.lease > now and not is_dead(owner)):
                return record, False
            taken = record._replace(token=record.token + 1, lease=wanted.lease)
            self._update(connection, taken, record.token)
            return taken, True

        def take_or_create(connection: sqlite3.Connection) -> tuple[Record, bool]:
            found = take(connection)
            if found is not None:
                return found
            connection.execute(_INSERT, self._columns(wanted))
            self._insert(connection, wanted, Result(_INPUT, "input", data=wanted.input))
            return wanted, True

        # A power cut may undo the taking of a lease, at no harm, but not an execution once begun.
        return self._run(take, "NORMAL") or (self._run(take_or_create, self._synchronous) if create else (None, False))

    def commit(
        self,
        record: Record,
        token: int,
        result: Result | None = None,
        *,
        absent: str | None = None,
        taken: str | None = None,
    ) -> None:
        """Write a record and a result in one transaction."""
        if result is not None and absent is taken is None and self._step(record, token, result):
            return

        def write(connection: sqlite3.Connection) -> None:
            if not self._update(connection, record, token):
                raise Fenced(record.id, token)
            if result is not None:
                self._insert(connection, record, result)
            if absent is not None:
                if self._pending(connection, record, absent) is not None:
                    raise Fenced(record.id, token)
                connection.execute(_OPEN, (record.id, record.run, absent))
            if taken is not None:
                connection.execute(_TAKE, (record.id, record.run, taken))

        self._run(write, self._synchronous)

    def save(self, record: Record, result: Result) -> None:
        """Write a result in a transaction."""

        def write(connection: sqlite3.Connection) -> None:
            _key_held(connection, record)
            self._insert(connection, record, result)

        self._run(write, self._synchronous)

    def restart(self, record: Record, held: Record) -> None:
        """Replace a record and remove its results in one transaction."""

        def write(connection: sqlite3.Connection) -> None:
            key = _key_held(connection, held)
            connection.execute(_REPLACE, (*self._columns(record), key))
            _remove_results(connection, key)
            self._insert(connection, record, Result(_INPUT, "input", data=record.input))
            connection.execute("DELETE FROM sequential_signals WHERE execution = ? AND data IS NULL", (key,))

        self._run(write, self._synchronous)

    def _step(self, record: Record, token: int, result: Result) -> bool:
        """Commit in a single statement, and return whether that was enough: if not, the long way tells why."""
        usual = record.lease and record.status == "running" and record[11:15] == FRESH and len(result.data) <= _PAGE
        step, asked, fingerprint, data, started, ended, error = result
        held = (record.id, record.run, token, record.token, record.step, record.due, record.lease, record.changed)
        # To bind `None` or bytes takes as long as ten other values: the driver looks for adapters of theirs.
        sql, failed = (_STEP, ()) if error is None else (_FAILED_STEP, (error,))
        with self._lock:
            connection = self._connection
            if not usual or connection is None or self._level != self._synchronous:
                return False
            try:
                connection.execute(sql, (*held, step, asked, fingerprint, bytearray(data), started, ended, *failed))
            except sqlite3.Error:
                return False
        return True

    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        """Read a page of results."""
        page: list[Result] = []
        sql, unread = (_BRIEF, (None, None, None)) if brief else (_WHOLE, ())

        def read(connection: sqlite3.Connection) -> None:
            size, which = 0, (record.id, record.run)
            for row in connection.execute(sql, (_PAGE, *which, start, *which, stop)):
                if row[3] is None:
                    if page:
                        break
                    row = (*row[:3], self._read_large(connection, record, row[0]), *row[4:])  # noqa: PLW2901
                page.append(as_result(row + unread))
                size += len(row[3])
                if size >= _PAGE:
                    break

        self._run(read)
        return page

    def read(self, id: str) -> Record | None:
        """Read a record."""
        return self._run(lambda connection: _find(connection, id))[0]

    def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring, the executions of dead processes among it."""

        def read(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            held = connection.execute(f"{_SELECT} WHERE rings = -1").fetchall()
            ripe = f"{_SELECT} WHERE rings > -1 AND rings <= ? ORDER BY rings LIMIT ?"
            return held, connection.execute(ripe, (now, limit)).fetchall()

        held, ripe = self._run(read)
        abandoned = [record for *fields, owner in held if (record := Record(*fields)).lease <= now or is_dead(owner)]
        return (abandoned + [Record(*fields) for *fields, _ in ripe])[:limit]

    def find(self, after: str, limit: int, status: str | None = None, workflow: str | None = None) -> list[Record]:
        """List records."""
        wanted = [
            (column, value) for column, value in (("status", status), ("workflow", workflow)) if value is not None
        ]
        where = "".join(f" AND {column} = ?" for column, _ in wanted)
        sql = f"{_SELECT} WHERE id > ?{where} ORDER BY id LIMIT ?"
        values = (after, *(value for _, value in wanted), limit)
        rows = self._run(lambda connection: connection.execute(sql, values).fetchall())
        return [Record(*fields) for *fields, _ in rows]

    def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal, in one transaction with the record that waits for it."""

        def write(connection: sqlite3.Connection) -> tuple[Record | None, bool]:
            record, _ = _find(connection, id)
            if record is None:
                return None, False
            if record.status in CLOSED or not connection.execute(_SIGNAL, (id, record.run, name, data)).rowcount:
                return record, False
            if record.waits == name and not record.lease:
                record = record._replace(due=now)
                self._update(connection, record, record.token)
            return record, True

        return self._run(write, self._synchronous)

    def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        return self._run(lambda connection: self._pending(connection, record, name))

    def remove(self, id: str, held: Record | None = None) -> None:
        """Remove an execution, its results and its signals."""

        def write(connection: sqlite3.Connection) -> None:
            sql = "SELECT key, run, token FROM sequential_executions WHERE id = ?"
            found = connection.execute(sql, (id,)).fetchone()
            if held is not None and (found is None or found[1:] != (held.run, held.token)):
                raise Fenced(id, held.token)
            if found is not None:
                _remove_results(connection, found[0])
                connection.execute("DELETE FROM sequential_signals WHERE execution = ?", found[:1])
                connection.execute("DELETE FROM sequential_executions WHERE key = ?", found[:1])

        self._run(write, self._synchronous)

    def _run(self, work: Callable[[sqlite3.Connection], T], level: str = "") -> T:
        """Do `work` alone on the connection; what SQLite raises then names the file and the remedy.

        Args:
            work: What to do.
            level: Makes a transaction of it, which any exception undoes, and says whether its end waits for the
                disk; left out, nothing is written.
        """
        with self._lock:
            try:
                connection = self._connection or self._open()
                if not level:
                    return work(connection)
                if self._level != level:
                    connection.execute(f"PRAGMA synchronous = {level}")
                    self._level = level
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    done = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # SQLite itself has ended it when the disk is full
                        connection.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OverflowError) as error:
                raise _explain(self._path, error) from error
            return done

    def _update(self, connection: sqlite3.Connection, record: Record, token: int) -> bool:
        """Write what changes of a record within a run, if the stored one has this token."""
        which = (record.id, record.run, token)
        return bool(connection.execute(_UPDATE, (*self._changing(record), *which)).rowcount)

    def _insert(self, connection: sqlite3.Connection, record: Record, result: Result) -> None:
        if len(result.data) <= _PAGE:
            connection.execute(_SMALL, (record.id, record.run, *result))
            return
        sized = (*result[:3], len(result.data), *result[4:])
        row = connection.execute(_LARGE, (record.id, record.run, *sized)).lastrowid
        assert row is not None
        with connection.blobopen("sequential_results", "data", row) as blob:
            blob.write(result.data)

    def _read_large(self, connection: sqlite3.Connection, record: Record, step: int) -> bytes:
        (key,) = connection.execute(f"SELECT {_KEY}", (record.id, record.run)).fetchone()
        with connection.blobopen("sequential_results", "data", (key << 32) + 1 + step, readonly=True) as blob:
            return blob.read()

    def _pending(self, connection: sqlite3.Connection, record: Record, name: str) -> bytes | None:
        found: tuple[bytes | None] | None = connection.execute(_PENDING, (record.id, record.run, name)).fetchone()
        return found[0] if found else None

    def _columns(self, record: Record) -> tuple[object, ...]:
        fixed = (record.id, record.run, record.workflow, record.version, record.first_input)
        return (*fixed, *self._changing(record))

    def _changing(self, record: Record) -> tuple[object, ...]:
        owner, rings = (self._owner, -1) if record.lease else (None, record.due)
        return (*record[6:], owner, rings)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._level = None, ""

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            _switch_to_wal(connection, self._timeout)
            _create_tables(connection, self._path)
        except BaseException:
            connection.close()
            raise
        self._connection, self._level, self._owner = connection, "", describe_process()
        return connection


_storages: WeakSet[SQLiteStorage] = WeakSet()
_forking: list[SQLiteStorage] = []


def _before_fork() -> None:
    """Close every file: SQLite's own account of its locks must not be copied into another process."""
    for storage in list(_storages):
        storage._lock.acquire()
        _forking.append(storage)
        if storage._path != _MEMORY:
            storage._disconnect()


def _after_fork() -> None:
    while _forking:
        _forking.pop()._lock.release()


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


def _create_tables(connection: sqlite3.Connection, path: str) -> None:
    """Create the tables unless they are there; refuse those of a later version of this library."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sequential_schema'").fetchone() is None:
        connection.executescript(f"""
            BEGIN IMMEDIATE;
            {_TABLES};
            INSERT INTO sequential_schema SELECT {SCHEMA} WHERE NOT EXISTS (SELECT * FROM sequential_schema);
            COMMIT;
        """)
    (found,) = connection.execute("SELECT version FROM sequential_schema").fetchone()
    if found > SCHEMA:
        raise StorageError(
            f"{path}: its tables are of version {found}, this release knows {SCHEMA}: upgrade sequential-flow"
        )


def _find(connection: sqlite3.Connection, id: str) -> tuple[Record, str | None] | tuple[None, None]:
    """Return a record and the process that holds its lease."""
    row = connection.execute(f"{_SELECT} WHERE id = ?", (id,)).fetchone()
    return (Record(*row[:-1]), row[-1]) if row else (None, None)


def _key_held(connection: sqlite3.Connection, held: Record) -> int:
    """Return the key of an execution if the stored record has this run and token."""
    found: tuple[int] | None = connection.execute(_HELD, (held.id, held.run, held.token)).fetchone()
    if found is None:
        raise Fenced(held.id, held.token)
    return found[0]


def _remove_results(connection: sqlite3.Connection, key: int) -> None:
    """Remove all results of an execution, and its input."""
    bounds = (key << 32, (key << 32) + _LAST)
    connection.execute("DELETE FROM sequential_results WHERE position BETWEEN ? AND ?", bounds)


def _explain(path: str, error: Exception) -> StorageError:
    code = getattr(error, "sqlite_errorname", "SQLITE_TOOBIG" if isinstance(error, OverflowError) else "SQLITE_ERROR")
    remedy = _REMEDIES.get("_".join(code.split("_")[:2]), "nothing was recorded")
    return StorageError(f"{path}: {error} ({code}): {remedy}")
