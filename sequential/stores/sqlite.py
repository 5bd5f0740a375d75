"""Executions in one SQLite file: durable, and safe with many threads and processes of one host."""

from __future__ import annotations

import os
import sqlite3
from typing import Any, Literal

from ..codec import Codec, JSONCodec
from ..errors import Fenced, StorageError
from ..storage import CLOSED, FRESH, Journal, Record, Result, as_result, is_number, refuses
from . import sqlite_sql as sql
from .owner import is_dead
from .sqlite_file import File

_PAGE = 1 << 20
"""Bytes after which a page of results ends; a larger result goes in and out by itself, without a second copy."""

_KNOWN = 1000
"""Runs of which the key is remembered."""


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
        TypeError: When `path` or `timeout` is something else.
        ValueError: When `path` is a URL, or `synchronous` neither of the two.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        timeout: float = 10.0,
        codec: Codec | None = None,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not is_number(timeout, 0):
            raise TypeError(f"path= is a file's, and timeout= a number of seconds: got {path!r:.100} and {timeout!r}")
        if str(path).startswith("sqlite:"):
            raise ValueError(f"path= is a file's, and {path!r} is a URL: write SQLiteStorage.from_url({path!r})")
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', got {synchronous!r}")
        self.codec = codec or JSONCodec()
        self._file = File(path, timeout)
        self._synchronous = synchronous
        self._keys: dict[str, int] = {}

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SQLiteStorage:
        """Return the storage for ``sqlite:///relative`` or ``sqlite:////absolute``, with the class's options."""
        path = url.removeprefix("sqlite:///")
        if path in {"", url} or "?" in path:
            raise StorageError(
                f"{url!r} names no file: write sqlite:///relative/path or sqlite:////absolute/path, and give options "
                f"like timeout= beside it"
            )
        return cls(path, **options)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file.close()

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
            connection.execute(sql.INSERT, self._columns(wanted))
            self._insert(connection, wanted, Result(sql.INPUT, "input", data=wanted.input))
            return wanted, True

        # A power cut may undo the taking of a lease, at no harm, but not an execution once begun.
        return self._file.run(take, "NORMAL") or (
            self._file.run(take_or_create, self._synchronous) if create else (None, False)
        )

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
                connection.execute(sql.OPEN, (record.id, record.run, absent))
            if taken is not None:
                connection.execute(sql.TAKE, (record.id, record.run, taken))

        self._file.run(write, self._synchronous)

    def save(self, record: Record, result: Result) -> None:
        """Write a result in a transaction."""

        def write(connection: sqlite3.Connection) -> None:
            _key_held(connection, record)
            self._insert(connection, record, result)

        self._file.run(write, self._synchronous)

    def restart(self, record: Record, held: Record) -> None:
        """Replace a record and remove its results in one transaction."""

        def write(connection: sqlite3.Connection) -> None:
            key = _key_held(connection, held)
            connection.execute(sql.REPLACE, (*self._columns(record), key))
            _remove_results(connection, key)
            self._insert(connection, record, Result(sql.INPUT, "input", data=record.input))
            connection.execute("DELETE FROM sequential_signals WHERE execution = ? AND data IS NULL", (key,))

        self._file.run(write, self._synchronous)

    def _step(self, record: Record, token: int, result: Result) -> bool:
        """Commit in a single statement, and return whether that was enough: if not, the long way tells why."""
        usual = record.lease and record.status == "running" and record[11:15] == FRESH and len(result.data) <= _PAGE
        step, asked, fingerprint, data, started, ended, error = result
        changes = (record.run, token, record.token, record.step, record.due, record.lease, record.changed)
        # To bind `None` or bytes takes as long as ten other values: the driver looks for adapters of theirs.
        insert, failed = (sql.STEP, ()) if error is None else (sql.FAILED_STEP, (error,))
        file = self._file
        with file.lock:
            connection = file.connection
            if not usual or connection is None or file.level != self._synchronous:
                return False
            try:
                key = self._keys.get(record.run) or self._learn_key(connection, record)
                values = (key, *changes, step, asked, fingerprint, bytearray(data), started, ended, *failed)
                connection.execute(insert, values)
            except sqlite3.Error:
                return False
        return True

    def _learn_key(self, connection: sqlite3.Connection, record: Record) -> int:
        """Return the key of an execution, which its steps find faster than by its id."""
        key: int = connection.execute(f"SELECT {sql.KEY}", (record.id, record.run)).fetchone()[0]
        if len(self._keys) >= _KNOWN:
            self._keys.clear()
        self._keys[record.run] = key
        return key

    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        """Read a page of results."""
        page: list[Result] = []
        statement, unread = (sql.BRIEF, (None, None, None)) if brief else (sql.WHOLE, ())

        def read(connection: sqlite3.Connection) -> None:
            size, which = 0, (record.id, record.run)
            for row in connection.execute(statement, (_PAGE, *which, start, *which, stop)):
                if row[3] is None:
                    if page:
                        break
                    row = (*row[:3], self._read_large(connection, record, row[0]), *row[4:])  # noqa: PLW2901
                page.append(as_result(row + unread))
                size += len(row[3])
                if size >= _PAGE:
                    break

        self._file.run(read)
        return page

    def read(self, id: str) -> Record | None:
        """Read a record."""
        return self._file.run(lambda connection: _find(connection, id))[0]

    def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring, the executions of dead processes among it."""

        def read(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            held = connection.execute(f"{sql.SELECT} WHERE rings = -1").fetchall()
            ripe = f"{sql.SELECT} WHERE rings > -1 AND rings <= ? ORDER BY rings LIMIT ?"
            return held, connection.execute(ripe, (now, limit)).fetchall()

        held, ripe = self._file.run(read)
        abandoned = [record for *fields, owner in held if (record := Record(*fields)).lease <= now or is_dead(owner)]
        return (abandoned + [Record(*fields) for *fields, _ in ripe])[:limit]

    def find(self, after: str, limit: int, status: str | None = None, workflow: str | None = None) -> list[Record]:
        """List records."""
        wanted = [
            (column, value) for column, value in (("status", status), ("workflow", workflow)) if value is not None
        ]
        where = "".join(f" AND {column} = ?" for column, _ in wanted)
        statement = f"{sql.SELECT} WHERE id > ?{where} ORDER BY id LIMIT ?"
        values = (after, *(value for _, value in wanted), limit)
        rows = self._file.run(lambda connection: connection.execute(statement, values).fetchall())
        return [Record(*fields) for *fields, _ in rows]

    def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal, in one transaction with the record that waits for it."""

        def write(connection: sqlite3.Connection) -> tuple[Record | None, bool]:
            record, _ = _find(connection, id)
            if record is None:
                return None, False
            if record.status in CLOSED or not connection.execute(sql.SIGNAL, (id, record.run, name, data)).rowcount:
                return record, False
            if record.waits == name and not record.lease:
                record = record._replace(due=now)
                self._update(connection, record, record.token)
            return record, True

        return self._file.run(write, self._synchronous)

    def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        return self._file.run(lambda connection: self._pending(connection, record, name))

    def remove(self, id: str, held: Record | None = None) -> None:
        """Remove an execution, its results and its signals."""

        def write(connection: sqlite3.Connection) -> None:
            statement = "SELECT key, run, token FROM sequential_executions WHERE id = ?"
            found = connection.execute(statement, (id,)).fetchone()
            if held is not None and (found is None or found[1:] != (held.run, held.token)):
                raise Fenced(id, held.token)
            if found is not None:
                _remove_results(connection, found[0])
                connection.execute("DELETE FROM sequential_signals WHERE execution = ?", found[:1])
                connection.execute("DELETE FROM sequential_executions WHERE key = ?", found[:1])

        self._file.run(write, self._synchronous)

    def _update(self, connection: sqlite3.Connection, record: Record, token: int) -> bool:
        """Write what changes of a record within a run, if the stored one has this token."""
        which = (record.id, record.run, token)
        return bool(connection.execute(sql.UPDATE, (*self._changing(record), *which)).rowcount)

    def _insert(self, connection: sqlite3.Connection, record: Record, result: Result) -> None:
        if len(result.data) <= _PAGE:
            connection.execute(sql.SMALL, (record.id, record.run, *result))
            return
        sized = (*result[:3], len(result.data), *result[4:])
        row = connection.execute(sql.LARGE, (record.id, record.run, *sized)).lastrowid
        assert row is not None
        with connection.blobopen("sequential_results", "data", row) as blob:
            blob.write(result.data)

    def _read_large(self, connection: sqlite3.Connection, record: Record, step: int) -> bytes:
        key = self._learn_key(connection, record)
        with connection.blobopen("sequential_results", "data", (key << 32) + 1 + step, readonly=True) as blob:
            return blob.read()

    def _pending(self, connection: sqlite3.Connection, record: Record, name: str) -> bytes | None:
        found: tuple[bytes | None] | None = connection.execute(sql.PENDING, (record.id, record.run, name)).fetchone()
        return found[0] if found else None

    def _columns(self, record: Record) -> tuple[object, ...]:
        fixed = (record.id, record.run, record.workflow, record.version, record.first_input)
        return (*fixed, *self._changing(record))

    def _changing(self, record: Record) -> tuple[object, ...]:
        owner, rings = (self._file.owner, -1) if record.lease else (None, record.due)
        return (*record[6:], owner, rings)


def _find(connection: sqlite3.Connection, id: str) -> tuple[Record, str | None] | tuple[None, None]:
    """Return a record and the process that holds its lease."""
    row = connection.execute(sql.FIND, (id,)).fetchone()
    return (Record(*row[:-1]), row[-1]) if row else (None, None)


def _key_held(connection: sqlite3.Connection, held: Record) -> int:
    """Return the key of an execution if the stored record has this run and token."""
    found: tuple[int] | None = connection.execute(sql.HELD, (held.id, held.run, held.token)).fetchone()
    if found is None:
        raise Fenced(held.id, held.token)
    return found[0]


def _remove_results(connection: sqlite3.Connection, key: int) -> None:
    """Remove all results of an execution, and its input."""
    bounds = (key << 32, (key << 32) + sql.LAST)
    connection.execute("DELETE FROM sequential_results WHERE position BETWEEN ? AND ?", bounds)
