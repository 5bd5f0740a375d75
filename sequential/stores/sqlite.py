"""Executions in one SQLite file: durable, and safe with many threads and processes of one host."""

import os
import sqlite3
from collections.abc import Sequence
from typing import Any, Literal, Self

from ..checks import is_number
from ..codec import Codec, JSONCodec
from ..errors import Damaged, StorageError
from ..journal import Journal
from ..record import Entry, Record
from .sqlite_file import File

_PAGE = 1 << 20
"""Bytes after which a page of entries ends."""

_LARGE = _PAGE >> 3
"""Bytes from which a value only begins a page: the driver reads one row ahead, and would read it for nothing."""

_MOVING = ("running", "cancelling")
"""Statuses under which steps are made."""

_RESTING = f"status NOT IN {_MOVING}"
_TABLES = f"""
    CREATE TABLE IF NOT EXISTS sequential_records (
        id TEXT PRIMARY KEY, run TEXT NOT NULL, stamp TEXT NOT NULL, step INTEGER NOT NULL, workflow TEXT NOT NULL,
        status TEXT NOT NULL, due REAL, changed REAL NOT NULL, state TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS sequential_due ON sequential_records (due) WHERE due IS NOT NULL;
    CREATE INDEX IF NOT EXISTS sequential_status ON sequential_records (status) WHERE {_RESTING};
    CREATE INDEX IF NOT EXISTS sequential_changed ON sequential_records (status, changed) WHERE {_RESTING};
    CREATE TABLE IF NOT EXISTS sequential_entries (
        id TEXT, run TEXT, place INTEGER, part INTEGER, about TEXT NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (id, run, place, part)
    ) WITHOUT ROWID;
"""
# Without a rowid, a table is one tree in the order of its key: the entries of a run lie side by side, and a step writes
# one page of each table.

_COLUMNS = ", ".join(Record._fields[:-1])
_WHOLE = """(
    typeof(run) = 'text' AND typeof(stamp) = 'text' AND typeof(step) = 'integer' AND typeof(workflow) = 'text'
    AND typeof(status) = 'text' AND typeof(due) IN ('real', 'null') AND typeof(changed) = 'real'
    AND typeof(state) = 'text'
)"""
_READ = f"SELECT {_COLUMNS}, {_WHOLE} FROM sequential_records WHERE id = ?"
_LIST = f"SELECT {_COLUMNS} FROM sequential_records %s WHERE {_WHOLE} AND %s LIMIT ?"
_DUE = _LIST % ("", "due <= ? ORDER BY due")
_PAGE_OF = f"""
    SELECT run, place, part, about, CASE WHEN length(data) < {_LARGE} OR (place, part) = (?, ?) THEN data END
    FROM sequential_entries WHERE id = ? AND run = ? AND (place, part) >= (?, ?) AND place < ? ORDER BY place, part
"""
_HELD = "id = ? AND stamp = ?"
_CREATE = f"INSERT INTO sequential_records ({_COLUMNS}) VALUES ({'?, ' * 8}?) ON CONFLICT (id) DO NOTHING"
_UPDATE = "UPDATE sequential_records SET run = ?, stamp = ?, step = ?, changed = ?, state = ?"
# SQLite writes an index anew if a column of it is mentioned, whatever its value; so a step mentions none.
_STEP = f"{_UPDATE} WHERE workflow = ? AND status = ? AND due IS ? AND {_HELD}"
_CHANGE = f"{_UPDATE}, workflow = ?, status = ?, due = ? WHERE {_HELD}"
_REMOVE = f"DELETE FROM sequential_records WHERE {_HELD}"
_REMOVE_ENTRIES = f"DELETE FROM sequential_entries WHERE id = (SELECT id FROM sequential_records WHERE {_HELD})"
_REMOVE_RUNS = "DELETE FROM sequential_entries WHERE id = ? AND run <> ?"
_KEEP = "INSERT OR REPLACE INTO sequential_entries (id, run, place, part, about, data) VALUES (?, ?, ?, ?, ?, ?)"


class SQLiteStorage(Journal):
    """A Journal in one SQLite file.

    The file is opened at the first use and its tables are created then.  One object serves any number of
    threads, and may be used on both sides of a fork.

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
        self._file = File(path, timeout, _TABLES)
        self._synchronous = synchronous

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
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

    def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> tuple[Record | None, list[Entry]]:
        """Read both in one transaction."""

        def read(connection: sqlite3.Connection) -> tuple[Record | None, list[Entry]]:
            rows = _rows(connection, _READ, (id,))
            if not rows:
                return None, []
            *fields, whole = rows[0]
            record = Record(*fields)
            if not whole:  # without a state, nobody can do more with it than remove it
                return record._replace(state=""), []
            return record, _page(connection, record, start, stop)

        return self._file.run(read)

    def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> bool:
        """Compare and write in one transaction."""

        def write(connection: sqlite3.Connection) -> bool:
            if not _swap(connection, old, new):
                return False
            if new is not None:
                for run, place, part, about, data in entries:
                    # For bytes the driver looks for an adapter first, which takes as long as all the rest.
                    connection.execute(_KEEP, (new.id, run, place, part, about, bytearray(data)))
                if old is not None and new.run != old.run:
                    connection.execute(_REMOVE_RUNS, (new.id, new.run))
            return True

        return self._file.run(write, self._synchronous if flush else "NORMAL")

    def due(self, now: float, limit: int) -> list[Record]:
        """List by an index."""
        return self._list(_DUE, now, limit)

    def find(
        self,
        after: str,
        limit: int,
        status: str | None = None,
        workflow: str | None = None,
        before: float | None = None,
    ) -> list[Record]:
        """List by an index if there is one."""
        wanted = {"id > ?": after, "status = ?": status, "workflow = ?": workflow, "changed <= ?": before}
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where, index = " AND ".join(given), ""
        if status is not None and status not in _MOVING:
            where += f" AND {_RESTING}"
            index = f"INDEXED BY sequential_{'status' if before is None else 'changed'}"
        return self._list(_LIST % (index, f"{where} ORDER BY id"), *given.values(), limit)

    def _list(self, statement: str, *values: object) -> list[Record]:
        return [Record(*row) for row in self._file.run(lambda connection: _rows(connection, statement, values))]


def _rows(connection: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> list[Any]:
    """Return rows of records; a damaged text keeps nobody from the others."""
    connection.text_factory = lambda text: text.decode(errors="replace")
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.text_factory = str


def _page(connection: sqlite3.Connection, record: Record, start: tuple[int, int], stop: int) -> list[Entry]:
    """Return the first entries of a range."""
    page, size = list[Entry](), 0
    for row in connection.execute(_PAGE_OF, (*start, record.id, record.run, *start, stop)):
        if type(row[4]) is not bytes or type(row[3]) is not str:
            if row[4] is None and row[1:3] != start:
                return page or _page(connection, record, row[1:3], stop)
            raise Damaged(record.id, row[1])
        page.append(tuple.__new__(Entry, row))
        size += len(row[4])
        if size >= _PAGE:
            break
    return page


def _swap(connection: sqlite3.Connection, old: Record | None, new: Record | None) -> bool:
    """Put a record in the place of another, and return whether that was there."""
    if old is None:
        assert new is not None
        return connection.execute(_CREATE, new[:-1]).rowcount > 0
    if new is None:
        connection.execute(_REMOVE_ENTRIES, (old.id, old.stamp))
        return connection.execute(_REMOVE, (old.id, old.stamp)).rowcount > 0
    moved = (new.run, new.stamp, new.step, new.changed, new.state)
    values = (*moved, new.workflow, new.status, new.due, old.id, old.stamp)
    return connection.execute(_STEP, values).rowcount > 0 or connection.execute(_CHANGE, values).rowcount > 0
