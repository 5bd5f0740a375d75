"""A Journal of your own, over Cloudflare's D1: it promises all that a built-in store does, to a Worker.

    storage = D1Storage(env.DB)
    await storage.create_schema()

Each method is one batch, which is one request, and which D1 runs as one transaction.  A statement in a batch cannot be
left out because of what another one has found.  So the first one of a write compares the stamp and puts the new one in
its place; each of the others asks by itself whether the new one is there, which nobody else can have written.

No value of D1's has more than 2 MB: the core cuts what is larger into parts of `part_size`.  For how it is used, see
cloudflare_worker.py.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from sequential.errors import StorageError
from sequential.journal import Journal
from sequential.record import Entry, Record

TABLES = (
    """CREATE TABLE IF NOT EXISTS records (
        id TEXT PRIMARY KEY, run TEXT, stamp TEXT, step INTEGER, workflow TEXT, status TEXT, due REAL, changed REAL,
        state TEXT
    )""",
    "CREATE INDEX IF NOT EXISTS records_due ON records (due)",
    """CREATE TABLE IF NOT EXISTS entries (
        id TEXT, run TEXT, place INTEGER, part INTEGER, about TEXT, data TEXT, PRIMARY KEY (id, run, place, part)
    )""",
)
COLUMNS = ", ".join(Record._fields[:-1])
READ = "SELECT * FROM records WHERE id = ?1"
PAGE = """
    SELECT run, place, part, about, data FROM entries JOIN (
        SELECT rowid AS row, SUM(LENGTH(data)) OVER (ORDER BY place, part) - LENGTH(data) AS before FROM entries
        WHERE id = ?1 AND run = (SELECT run FROM records WHERE id = ?1) AND (place, part) >= (?2, ?3) AND place < ?4
        ORDER BY place, part LIMIT 1000
    ) ON rowid = row WHERE before < 1000000 ORDER BY place, part
"""
CREATE = "INSERT OR IGNORE INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
CHANGE = f"UPDATE records SET ({COLUMNS}) = (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) WHERE id = ?1 AND stamp = ?10"
REMOVE = "DELETE FROM records WHERE id = ?1 AND stamp = ?2"
IS_THERE = "EXISTS (SELECT 1 FROM records WHERE id = ?1 AND stamp = ?2)"
KEEP = f"REPLACE INTO entries SELECT ?1, ?3, ?4, ?5, ?6, ?7 WHERE {IS_THERE}"
REMOVE_RUN = f"DELETE FROM entries WHERE id = ?1 AND run = ?3 AND {IS_THERE}"
REMOVE_ENTRIES = f"DELETE FROM entries WHERE id = ?1 AND {IS_THERE}"
DUE = "SELECT * FROM records WHERE due <= ?1 ORDER BY due LIMIT ?2"
FIND = """
    SELECT * FROM records WHERE id > ?1 AND (?3 IS NULL OR status = ?3) AND (?4 IS NULL OR workflow = ?4)
    AND (?5 IS NULL OR changed <= ?5) ORDER BY id LIMIT ?2
"""


class D1Storage(Journal):
    """Executions in two tables of D1.

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

    async def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> tuple[Record | None, list[Entry]]:
        """Read a record and a page of entries."""
        found, page = await self._batch((READ, id), (PAGE, id, *start, stop))
        entries = [Entry(**{**row, "data": b64decode(row["data"])}) for row in page["results"]]
        return next(iter(_records(found)), None), entries

    async def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> bool:
        """Compare, and write."""
        if new is None:
            assert old is not None
            *_, done = await self._batch((REMOVE_ENTRIES, old.id, old.stamp), (REMOVE, old.id, old.stamp))
            return bool(done["meta"]["changes"])
        statements: list[tuple[Any, ...]] = [(CHANGE, *new[:-1], old.stamp) if old else (CREATE, *new[:-1])]
        statements += [(KEEP, new.id, new.stamp, *entry[:-1], b64encode(entry.data).decode()) for entry in entries]
        if old is not None and old.run != new.run:
            statements.append((REMOVE_RUN, new.id, new.stamp, old.run))
        done, *_ = await self._batch(*statements)
        return bool(done["meta"]["changes"])

    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should look at."""
        (found,) = await self._batch((DUE, now, limit))
        return _records(found)

    async def find(
        self,
        after: str,
        limit: int,
        status: str | None = None,
        workflow: str | None = None,
        before: float | None = None,
    ) -> list[Record]:
        """List records."""
        (found,) = await self._batch((FIND, after, limit, status, workflow, before))
        return _records(found)

    async def _batch(self, *statements: tuple[Any, ...]) -> Any:
        """Run statements as one transaction, and return what D1 says of each."""
        try:
            return await self.db.batch([self.db.prepare(sql).bind(*values) for sql, *values in statements])
        except Exception as error:
            raise StorageError(f"D1: {error}") from error


def _records(found: Any) -> list[Record]:
    return [Record(**{**row, "due": _float(row["due"]), "changed": float(row["changed"])}) for row in found["results"]]


def _float(number: Any) -> float | None:
    return None if number is None else float(number)  # JavaScript has made 1 of 1.0
