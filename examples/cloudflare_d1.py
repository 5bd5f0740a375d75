"""A Journal of your own, over Cloudflare's D1: it promises all that a built-in store does, to a Worker.

    storage = D1Storage(env.DB)
    await storage.create_schema()

Each method is one batch, which is one request, and which D1 runs as one transaction.  A statement in a batch cannot be
left out because of what another one has found; so each asks by itself whether the writer still holds the execution,
and the last one, which changes what they ask about, tells whether he did.

A result, an input or the payload of a signal has at most 2 MB, which is D1's limit, and the codec must make text, as
JSON is.  For how it is used, see cloudflare_worker.py.
"""

from __future__ import annotations

from typing import Any

from sequential.errors import Fenced, StorageError
from sequential.storage import CLOSED, Journal, Record, Result

RINGS = "COALESCE(NULLIF(lease, 0), due)"
TABLES = (
    """CREATE TABLE IF NOT EXISTS executions (
        id TEXT PRIMARY KEY, run TEXT, workflow TEXT, input TEXT, version INTEGER, first_input INTEGER, token INTEGER,
        step INTEGER, status TEXT, due REAL, lease REAL, attempts INTEGER, error TEXT, wake REAL, waits TEXT,
        changed REAL
    )""",
    """CREATE TABLE IF NOT EXISTS results (
        id TEXT, run TEXT, step INTEGER, asked TEXT, fingerprint INTEGER, data TEXT, started REAL, ended REAL,
        error TEXT, PRIMARY KEY (id, run, step)
    )""",
    "CREATE TABLE IF NOT EXISTS signals (id TEXT, name TEXT, data TEXT, PRIMARY KEY (id, name))",
    f"CREATE INDEX IF NOT EXISTS executions_rings ON executions ({RINGS})",
)
OPEN = f"status NOT IN {tuple(sorted(CLOSED))}"
HELD = "EXISTS (SELECT 1 FROM executions WHERE id = ?1 AND run = ?2 AND token = ?3)"
HELD_AND_ABSENT = f"{HELD} AND NOT EXISTS (SELECT 1 FROM signals WHERE id = ?1 AND name = ?4 AND data IS NOT NULL)"
READ = "SELECT * FROM executions WHERE id = ?1"
PAGE = 1_000_000
"""Characters of results that are read together."""

Statement = tuple[Any, ...]
"""SQL, and what ``?1``, ``?2`` and so on stand for in it."""


class D1Storage(Journal):
    """Executions in three tables of D1.

    Args:
        db: The binding, as it is found in a Worker's ``env``.

    Raises:
        StorageError: From every method, when D1 does.
    """

    def __init__(self, db: Any) -> None:
        self.db = db

    async def create_schema(self) -> None:
        """Make the tables, unless they are there."""
        await self._batch(*((sql,) for sql in TABLES))

    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        free = f"lease <= ?3 AND (?4 = '' OR (run = ?4 AND step <= ?5)) AND {OPEN}"
        take = (
            f"UPDATE executions SET token = token + 1, lease = ?2 WHERE id = ?1 AND ?2 > 0 AND {free}",
            *(wanted.id, wanted.lease, now, "" if create else wanted.run, wanted.step),
        )
        new = (f"INSERT OR IGNORE INTO executions VALUES ({_marks(1, 16)})", *_row(wanted))
        *tried, found = await self._batch(take, *([new] if create else []), (READ, wanted.id))
        return _record(found), any(map(_changed, tried))

    async def commit(
        self,
        record: Record,
        token: int,
        result: Result | None = None,
        *,
        absent: str | None = None,
        taken: str | None = None,
    ) -> None:
        """Write a record and a result."""
        held, statements = (record.id, record.run, token, absent), list[Statement]()
        if result is not None:
            sql = f"REPLACE INTO results SELECT ?1, ?2, {_marks(5, 7)} WHERE {HELD_AND_ABSENT}"
            statements.append((sql, *held, *_row(result)))
        if absent is not None:
            statements.append((f"DELETE FROM signals WHERE id = ?1 AND name = ?4 AND {HELD_AND_ABSENT}", *held))
        if taken is not None:
            statements.append((f"REPLACE INTO signals SELECT ?1, ?5, NULL WHERE {HELD_AND_ABSENT}", *held, taken))
        fields = ", ".join(f"{name} = ?{number}" for number, name in enumerate(Record._fields[6:], 5))
        last = (f"UPDATE executions SET {fields} WHERE id = ?1 AND {HELD_AND_ABSENT}", *held, *record[6:])
        await self._hold(record.id, token, *statements, last)

    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        held = (record.id, record.run, record.token)
        sql = f"REPLACE INTO results SELECT ?1, ?2, {_marks(4, 7)} WHERE {HELD}"
        await self._hold(record.id, record.token, (sql, *held, *_row(result)))

    async def restart(self, record: Record, held: Record) -> None:
        """Replace a record and forget its results."""
        holder = (held.id, held.run, held.token)
        await self._hold(
            held.id,
            held.token,
            (f"DELETE FROM results WHERE id = ?1 AND {HELD}", *holder),
            (f"DELETE FROM signals WHERE id = ?1 AND data IS NULL AND {HELD}", *holder),
            (f"REPLACE INTO executions SELECT {_marks(4, 16)} WHERE {HELD}", *holder, *_row(record)),
        )

    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        """Read a page of results."""
        some = "SELECT * FROM results WHERE id = ?1 AND run = ?2 AND step >= ?3 AND step < ?4 ORDER BY step LIMIT 1000"
        sized = f"SELECT *, SUM(LENGTH(data)) OVER (ORDER BY step) - LENGTH(data) AS before FROM ({some})"
        sql = f"SELECT {', '.join(Result._fields)} FROM ({sized}) WHERE before < {PAGE} ORDER BY step"
        (found,) = await self._batch((sql, record.id, record.run, start, stop))
        return [Result(**{**row, "data": row["data"].encode()}) for row in found["results"]]

    async def read(self, id: str) -> Record | None:
        """Read a record."""
        (found,) = await self._batch((READ, id))
        return _record(found)

    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        sql = f"SELECT * FROM executions WHERE {RINGS} <= ?1 ORDER BY {RINGS} LIMIT ?2"
        (found,) = await self._batch((sql, now, limit))
        return _records(found)

    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        wanted = "(?3 IS NULL OR status = ?3) AND (?4 IS NULL OR workflow = ?4)"
        sql = f"SELECT * FROM executions WHERE id > ?1 AND {wanted} ORDER BY id LIMIT ?2"
        (found,) = await self._batch((sql, after, limit, status, workflow))
        return _records(found)

    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        first = f"{OPEN} AND NOT EXISTS (SELECT 1 FROM signals WHERE id = ?1 AND name = ?2)"
        wake = f"UPDATE executions SET due = ?3 WHERE id = ?1 AND waits = ?2 AND lease = 0 AND {first}"
        keep = f"INSERT INTO signals SELECT ?1, ?2, ?3 FROM executions WHERE id = ?1 AND {first}"
        woken, kept = (wake, id, name, now), (keep, id, name, data.decode())
        _, done, found = await self._batch(woken, kept, (READ, id))
        return _record(found), _changed(done)

    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        sql = "SELECT data FROM signals WHERE id = ?1 AND name = ?2 AND data IS NOT NULL"
        (found,) = await self._batch((sql, record.id, name))
        return found["results"][0]["data"].encode() if found["results"] else None

    async def remove(self, id: str, held: Record | None = None) -> None:
        """Remove an execution, its results and its signals."""
        tables = ("results", "signals", "executions")
        if held is None:
            await self._batch(*((f"DELETE FROM {table} WHERE id = ?1", id) for table in tables))
            return
        holder = (id, held.run, held.token)
        deletions = ((f"DELETE FROM {table} WHERE id = ?1 AND {HELD}", *holder) for table in tables)
        await self._hold(id, held.token, *deletions)

    async def _hold(self, id: str, token: int, *statements: Statement) -> None:
        """Run statements that change nothing unless the writer holds the execution, and the last one if he does."""
        *_, last = await self._batch(*statements)
        if not _changed(last):
            raise Fenced(id, token)

    async def _batch(self, *statements: Statement) -> Any:
        """Run statements as one transaction, and return what D1 says of each."""
        try:
            return await self.db.batch([self.db.prepare(sql).bind(*values) for sql, *values in statements])
        except Exception as error:
            raise StorageError(f"D1: {error}") from error


def _marks(first: int, count: int) -> str:
    return ", ".join(f"?{number}" for number in range(first, first + count))


def _row(fields: Record | Result) -> list[Any]:
    return [field.decode() if isinstance(field, bytes) else field for field in fields]


def _records(found: Any) -> list[Record]:
    return [Record(**{**row, "input": row["input"].encode()}) for row in found["results"]]


def _record(found: Any) -> Record | None:
    return next(iter(_records(found)), None)


def _changed(done: Any) -> bool:
    return bool(done["meta"]["changes"])
