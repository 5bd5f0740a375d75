"""Executions in Redis or Valkey: every method is one script, and so atomic."""

from __future__ import annotations

from io import BytesIO
from os import urandom

from ..codec import Codec
from ..errors import Fenced, StorageError
from ..storage import Record, Result
from . import redis_lua as lua
from .clients import ClientJournal, extra, plain_or_async, split
from .redis_keys import Keys
from .redis_macros import CREATED
from .redis_records import beginning, changing, decode_record, decode_results, encode_result, fields_of, joined
from .redis_scripts import Client, Scripts

_PART_SIZE = 1 << 22
"""Bytes of a result or an input that go in and out at once: a larger one is never in memory a second time."""

_MOST = 1 << 29
"""Bytes that a server takes at once unless its proto-max-bulk-len was changed; it hangs up on whoever sends more."""

_INPUT = -1
"""The step of an input that is in parts."""


class RedisStorage(ClientJournal):
    """A Journal in Redis 6.2 or later, or in Valkey.

    Execution ``order-1`` is the hash ``exec:{order-1}``; its results are ``exec:{order-1}:0`` and so on, a line that
    tells what was asked and then the data.  What the server acknowledges and loses nevertheless is lost: let it write
    to its disk (``appendonly yes``, ``appendfsync always``) and evict nothing (``maxmemory-policy noeviction``).

    Args:
        client: A client of redis-py, plain or ``async``, of a server or of a cluster; one of valkey-py's will do.
        prefix: What the names of keys begin with.
        ttl: Seconds after which an execution expires to which nothing has happened and that is not to go on; left out,
            never.  All storages of one prefix must have the same.
        codec: How values become bytes; strict JSON when left out.

    Raises:
        StorageError: From every method, with what the server said, and the remedy.
        TypeError: When `client` is none.
        ValueError: When it decodes what it reads, `prefix` is no such text, or `ttl` is not above 0.
    """

    def __init__(
        self, client: Client, *, prefix: str = "exec:", ttl: float | None = None, codec: Codec | None = None
    ) -> None:
        super().__init__(codec)
        self._scripts = Scripts(client)
        self._keys = Keys(self._scripts, prefix, ttl)

    @classmethod
    def from_url(
        cls, url: str, *, prefix: str = "exec:", ttl: float | None = None, codec: Codec | None = None
    ) -> RedisStorage:
        """Return a storage over a new client, which asks once more when its connection has gone.

        Args:
            url: What redis-py understands, ``redis://user:password@host:6379/0``.
            prefix: As for the class.
            ttl: As for the class.
            codec: As for the class.

        Raises:
            NotInstalled: When redis-py is missing.
            StorageError: When the URL is none of Redis.
        """
        with extra("redis"):
            import redis  # noqa: PLC0415 - only those need it who bring no client
            from redis.backoff import NoBackoff  # noqa: PLC0415
            from redis.retry import Retry  # noqa: PLC0415
        try:
            client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 1))
            pool = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # else an option that it does not know is met at first use
        except (TypeError, ValueError) as error:
            raise StorageError(f"Redis: {error}: write a URL like redis://user:password@host:6379/0") from error
        return cls(client, prefix=prefix, ttl=ttl, codec=codec)

    def is_async(self) -> bool:
        """Whether the client is one of the ``async`` ones."""
        return self._scripts.is_async

    @plain_or_async
    async def close(self) -> None:
        """Close the client."""
        await self._scripts.close()

    @plain_or_async
    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        nonce, parts, data = urandom(8).hex(), "", wanted.input if len(wanted.input) <= _PART_SIZE else None
        while True:
            may_create = "1" if create and (parts or data is not None) else ""
            head = joined(nonce, now, may_create, "" if create else wanted.run, parts, *fields_of(wanted))
            taken, found = await self._keys.apply(lua.CLAIM, wanted.id, head, data=data or b"")
            if taken == CREATED:
                return wanted, True
            if found or not create:
                return await self._as_record(wanted.id, found), taken > 0
            # If another creates it meanwhile, nobody names these parts, and they expire.
            parts = await self._write_parts(wanted._replace(run=""), 0, _INPUT, wanted.input)

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        step, parts, data = (None, None, b"") if result is None else await self._prepare(record, token, result)
        head = joined(record.run, token, absent, taken, step, parts, *changing(record))
        await self._keys.apply(lua.COMMIT, record.id, head, token, data)

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        step, parts, data = await self._prepare(record, record.token, result)
        begun = ""
        if result.error and result.ended is None:  # a call has begun; coming late, this must not replace its result
            begun = beginning(record.run, *result[:3], result.started)
        head = joined(record.run, record.token, step, parts, begun)
        await self._keys.apply(lua.SAVE, record.id, head, record.token, data)

    async def _restart(self, record: Record, held: Record) -> None:
        parts, data = "", record.input
        if len(data) > _PART_SIZE:
            parts, data = await self._write_parts(held, held.token, _INPUT, data), b""
        head = joined(held.run, held.token, parts, *fields_of(record))
        await self._keys.apply(lua.RESTART, held.id, head, held.token, data)

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:  # noqa: ARG002
        """Read a page of results."""
        head = joined(record.run, beginning(record.run), start, stop)
        page: list[Result] = []
        for result, parts in decode_results(await self._keys.run(lua.RESULTS, record.id, head)):
            if parts:
                if page:
                    break
                whole = await self._read_parts(record.id, parts)
                if whole is None:
                    raise Fenced(record.id, record.token)
                return [result._replace(data=whole)]
            page.append(result)
        return page

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        return await self._as_record(id, await self._keys.run(lua.READ, id))

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        rows = await self._keys.due(now, limit)
        return [record for row in rows if (record := await self._as_record(*row))]

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        found: list[Record] = []
        start: bytes | None = self._keys.behind(after)
        while start is not None and len(found) < limit:
            start, rows = await self._keys.page(start, limit, limit - len(found), status, workflow)
            records = [await self._as_record(*row) for row in rows]
            found += [r for r in records if r and status in {None, r.status} and workflow in {None, r.workflow}]
        return found[:limit]

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        if len(data) > _MOST:
            raise StorageError(
                f"Redis: signal {name!r} has {len(data)} bytes, and a server takes {_MOST} at once: "
                f"keep them elsewhere, and signal where"
            )
        kept, found = await self._keys.apply(lua.SIGNAL, id, joined(name, now, urandom(8).hex()), data=data)
        return await self._as_record(id, found), kept > 0

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        data: bytes | None = await self._keys.run(lua.RECEIVED, record.id, joined(record.run, name))
        return data

    async def _remove(self, id: str, held: Record | None) -> None:
        run, token = (held.run, held.token) if held else ("", 0)
        (listed,) = await self._keys.apply(lua.REMOVE, id, joined(run, token, urandom(8).hex()), token)
        if listed:
            await self._keys.unlist(id, listed)

    async def _prepare(self, record: Record, token: int, result: Result) -> tuple[int, str | None, bytes]:
        """Return a result's step, the name of its parts, if it is in some, and what is kept of it otherwise."""
        if len(result.data) <= _PART_SIZE:
            return result.step, None, encode_result(record.run, result)
        parts = await self._write_parts(record, token, result.step, result.data)
        return result.step, parts.split()[0], encode_result(record.run, result, parts)

    async def _write_parts(self, record: Record, token: int, step: int, data: bytes) -> str:
        """Write what nobody reads before a commit has named it, and return its name and the number of its parts."""
        name, number = f"{step}:{urandom(8).hex()}", 0
        for number, part in enumerate(split(data, _PART_SIZE)):
            await self._keys.apply(lua.PART, record.id, joined(record.run, token, name, number), token, part)
        return f"{name} {number + 1}"

    async def _read_parts(self, id: str, parts: str) -> bytes | None:
        """Return what parts make, or `None` if they are gone."""
        whole = BytesIO()
        name, count = parts.split()
        for number in range(int(count)):
            part = await self._keys.run(lua.PART_OF, id, joined(name, number))
            if part is None:
                return None
            whole.write(part)
        return whole.getvalue()

    async def _as_record(self, id: str, found: list[bytes] | None) -> Record | None:
        """Return the record that was found, with its input if that is in parts."""
        while found:
            record, parts = decode_record(id, found)
            if not parts:
                return record
            input = await self._read_parts(id, parts)
            if input is not None:
                return record._replace(input=input)
            before, found = found, await self._keys.run(lua.READ, id)
            if found == before:  # it was not removed or restarted meanwhile
                raise StorageError(
                    f"Redis: parts of the input of execution {id!r} are gone: let the server evict nothing"
                )
        return None
