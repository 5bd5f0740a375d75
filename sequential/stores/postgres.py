"""Executions in PostgreSQL, through psycopg 3: every method is one statement, and so one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, TypeAlias

from ..codec import Codec
from ..errors import Fenced, StorageError
from ..storage import FRESH, Record, Result, as_record, as_result, refuses
from .clients import ClientJournal, extra, plain_or_async, split
from .postgres_connections import Client, Connections, explain
from .postgres_sql import SCHEMA, Statements

with extra("postgres"):
    import psycopg

Row: TypeAlias = tuple[Any, ...]

LOCK = 0x73657175
"""The advisory lock that is held while tables are made: one number for all who make them."""

LONGEST_PREFIX = 50
"""PostgreSQL cuts names off at 63 bytes, without an error."""

PART = 1 << 22
"""Bytes of a result that go in and out at once: a larger one is never in memory a second time."""

_SMALL = 1 << 14
"""Bytes of a result up to which an idle cursor may hold it: each connection has one."""


class PostgresStorage(ClientJournal):
    """A Journal in PostgreSQL 14 or later.

    Its tables are made by `create_schema`, or by your own migrations from `schema`.

    Args:
        client: A connection or a pool of psycopg, plain or ``async``, with ``autocommit=True``: what is committed here
            must not wait for a transaction of yours.
        prefix: What the tables' names begin with.
        codec: How values become bytes; strict JSON when left out.

    Raises:
        StorageError: From every method, naming the server, what failed, and the remedy.
        ValueError: When `prefix` is not a lower-case identifier.
    """

    def __init__(self, client: Client, *, prefix: str = "sequential_", codec: Codec | None = None) -> None:
        super().__init__(codec)
        self._connections = Connections(client)
        if not (prefix.isidentifier() and prefix.isascii() and prefix.islower() and len(prefix) <= LONGEST_PREFIX):
            raise ValueError(
                f"prefix= begins the names of tables, with up to {LONGEST_PREFIX} lower-case letters, digits and _: "
                f"not {prefix!r}"
            )
        self._sql = Statements(prefix)

    @classmethod
    def from_url(cls, url: str, *, pool: dict[str, Any] | None = None, **options: Any) -> PostgresStorage:
        """Return a storage over a new pool of connections.

        Args:
            url: What PostgreSQL's own library understands, ``postgresql://user:password@host/database``.
            pool: Options of psycopg's pool.
            options: As for the class.

        Raises:
            StorageError: When no connection can be made.
        """
        with extra("postgres"):
            from psycopg_pool import ConnectionPool  # noqa: PLC0415 - only those need it who bring no client
        try:
            # A pool keeps trying in threads of its own, and tells only its log why it does not succeed.
            psycopg.connect(url, autocommit=True).close()
        except psycopg.Error as error:
            raise explain(error) from error
        settings = {"min_size": 1, "kwargs": {"autocommit": True}, "open": True, **(pool or {})}
        return cls(ConnectionPool(url, **settings), **options)

    def is_async(self) -> bool:
        """Whether the client is one of psycopg's ``async`` ones."""
        return self._connections.is_async

    @plain_or_async
    async def close(self) -> None:
        """Close the client."""
        await self._connections.close()

    @property
    def schema(self) -> str:
        """The SQL that `create_schema` executes, for those who run migrations themselves."""
        return self._sql.tables

    @plain_or_async
    async def create_schema(self) -> None:
        """Create the tables unless they are there; any number of processes may do so at once.

        Raises:
            StorageError: When there are tables of a later release, or the database is not in UTF-8.
        """
        ((encoding, there),) = await self._rows(self._sql.there, None)
        if encoding != "UTF8":
            raise StorageError(f"PostgreSQL: the database's encoding is {encoding}: create one with ENCODING 'UTF8'")
        for (version,) in await self._rows(self._sql.version, None) if there else ():
            _check_version(version)
        await self._connections.execute(f"SELECT pg_advisory_xact_lock({LOCK}); {self._sql.tables}", None)

    @plain_or_async
    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        id, before = wanted.id, now if wanted.lease else -1.0  # no lease ends before the epoch
        for_step = (create or not wanted.run, wanted.run, wanted.step)
        while True:
            values = (wanted.lease, id, before, *for_step, *wanted, _rings(wanted), create, id, id)
            rows = await self._rows(self._sql.claim, values)
            if not rows:
                raise StorageError("PostgreSQL: the table of the schema's version is empty: call create_schema() once")
            ((version, taken, *fields, _),) = rows
            _check_version(version)
            record = None if taken is None else as_record(tuple(fields))
            if record is None and not create:
                return None, False
            # What a transaction under way hid from this statement, it waited for, and shows to the next.
            if record is not None and (taken or record.lease > before or refuses(record, wanted, create)):
                return record, bool(taken)

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        if result is not None and absent is taken is None and await self._step(record, token, result):
            return
        values = [*record[6:], _rings(record), record.id, record.run, token]
        if absent is not None:
            values[-3:-3] = [absent]
            values.append(absent)
        if taken is not None:
            values[-3:-3] = [taken, taken]
            values.append(taken)
        if result is not None:
            values += await self._write_parts(record, token, result)
        sql = self._sql.commit[result is not None, absent is not None, taken is not None]
        await self._change(record, token, sql, values)

    async def _step(self, record: Record, token: int, result: Result) -> bool:
        """Commit in the quick way, and return whether that was enough: if not, the other way tells why."""
        if not record.lease or record.status != "running" or record[11:15] != FRESH or len(result.data) > PART:
            return False
        values = (*record[6:8], *record[9:11], record.changed, record.id, record.run, token, *result)
        try:
            changed: int = await self._connections.execute(self._sql.step, values, again=len(result.data) <= _SMALL)
        except StorageError as error:
            if isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                return False
            raise
        return changed > 0

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        values = await self._write_parts(record, record.token, result)
        await self._change(record, record.token, self._sql.save, (record.id, record.run, record.token, *values))

    async def _restart(self, record: Record, held: Record) -> None:
        values = (*record, _rings(record), held.id, held.run, held.token)
        await self._change(held, held.token, self._sql.restart, values)

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        """Read a page of results."""
        sql = self._sql.brief_results if brief else self._sql.results
        page = list(map(as_result, await self._rows(sql, (record.id, record.run, start, stop))))
        for at, result in enumerate(page):
            if result.data is None:  # it is in parts
                return page[:at] or [await self._read_parts(record, result)]
        return page

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        rows = await self._rows(self._sql.read, (id,))
        return as_record(rows[0]) if rows else None

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        rows = await self._rows(self._sql.due, (now, limit, now, limit))
        return sorted(map(as_record, rows), key=lambda record: record.rings_at or 0.0)[:limit]

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        wanted = {"id > %s": after, "status = %s": status, "workflow = %s": workflow}
        wanted = {check: value for check, value in wanted.items() if value is not None}
        sql = self._sql.find % " AND ".join(wanted)
        return list(map(as_record, await self._rows(sql, (*wanted.values(), limit))))

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        rows = await self._rows(self._sql.signal, (name, name, now, name, now, id, name, name, data, id))
        return (as_record(rows[0][1:]), rows[0][0]) if rows else (None, False)

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        rows = await self._rows(self._sql.received, (record.id, record.run, name))
        return rows[0][0] if rows else None

    async def _remove(self, id: str, held: Record | None) -> None:
        if held is None:
            for key in await self._rows(self._sql.remove, (id,)):
                # What a writer has written whom the first statement had to wait for, only another one sees.
                await self._connections.execute(self._sql.remove_rest, key * 2)
        else:
            await self._change(held, held.token, self._sql.remove_held, (id, held.run, held.token))

    async def _write_parts(self, record: Record, token: int, result: Result) -> tuple[Any, ...]:
        """Write all parts of a result but the first, without which nobody reads them, and return that one's values."""
        data, count = result.data, 1
        if len(data) > PART:
            parts = split(data, PART)
            data = next(parts)
            for count, part in enumerate(parts, 2):
                values = (result.step, count - 1, None, None, None, part, None, None, None)
                await self._change(record, token, self._sql.save, (record.id, record.run, token, *values))
        return result.step, 0, count, result.asked, result.fingerprint, data, *result[4:]

    async def _read_parts(self, record: Record, result: Result) -> Result:
        """Return a result with what its parts make."""
        whole, part, count = BytesIO(), 0, 1
        while part < count:
            rows = await self._rows(self._sql.part, (record.id, record.run, result.step, part))
            if not rows:
                raise Fenced(record.id, record.token)
            data, parts = rows.pop()
            count = parts or count  # the first one tells
            whole.write(data)
            part += 1
        return result._replace(data=whole.getvalue())

    async def _change(self, record: Record, token: int, sql: str, values: Sequence[Any]) -> None:
        """Execute what changes no row unless the execution is still held."""
        if not await self._connections.execute(sql, values):
            raise Fenced(record.id, token)

    async def _rows(self, sql: str, values: Sequence[Any] | None) -> list[Row]:
        rows: list[Row] = await self._connections.execute(sql, values, reads=True)
        return rows


def _rings(record: Record) -> float | None:
    return -1.0 if record.lease else record.due


def _check_version(version: int) -> None:
    if version > SCHEMA:
        raise StorageError(
            f"PostgreSQL: the tables are of version {version}, this release knows {SCHEMA}: upgrade sequential-flow"
        )
