"""Executions in Redis or Valkey: every method is one script, and so atomic.

The index by time may be too early for a record, never too late, so that a commit that renews a lease leaves it alone;
whoever lists puts right what it finds too early.

In a cluster all keys of an execution are in one slot, and the index of all executions is in another; no script writes
both.  There the index holds entries that are written once, under a fresh name, before the record that names them:

* A record names an entry whose time is not after its own.  A script that would make this untrue does nothing and says
  so; its caller offers a new entry to the index, and the script, called again, names it in the record.
* So an entry may be too early, never too late; and a crash leaves at most an entry that no record names.
* Whoever lists reads the records.  An entry that its record does not name is removed, but not before its name is void
  for this record, in the one script that has seen it: whoever was about to name it, in a claim or a signal say, is told
  to offer another.  An entry that is too early is replaced by an offer, and its name void, too.

A name stays void for an hour: only a process that stops for so long between its two requests could leave an execution
without an entry.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from io import BytesIO
from math import inf
from os import urandom
from typing import Any

from ..codec import Codec, prepare
from ..errors import Fenced, StorageError
from ..storage import Record, Result, as_result
from . import redis_lua as lua
from .clients import ClientJournal, extra, plain_or_async, split
from .redis_macros import CREATED, DONE, NEW, REFUSED
from .redis_scripts import Client, Scripts

_PART_SIZE = 1 << 22
"""Bytes of a result or an input that go in and out at once: a larger one is never in memory a second time."""

_MOST = 1 << 29
"""Bytes that a server takes at once unless its proto-max-bulk-len was changed; it hangs up on whoever sends more."""

_INPUT = -1
"""The step of an input that is in parts."""

_READERS: tuple[Callable[[str], Any], ...] = (
    *(int, int, int, int, str, float, float, int, json.loads, float, str, float),
)

_pieces = prepare(json.JSONEncoder(ensure_ascii=False))


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
        if not _is_prefix(prefix):
            raise ValueError(
                f"prefix= begins the names of keys; it is not empty and has no braces, NUL or lone surrogates: "
                f"not {prefix!r}"
            )
        if ttl is not None and not _is_time(ttl):
            raise ValueError(f"ttl= is a number of seconds, above 0, or left out for ever: not {ttl!r}")
        self._is_cluster = self._scripts.is_cluster
        self._prefix, self._ttl = prefix, b"" if ttl is None else repr(float(ttl)).encode()
        begin = f"{{{prefix}}}" if self._is_cluster else prefix
        self._due, self._ids = f"{begin}due".encode(), f"{begin}ids".encode()

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
            head = _joined(nonce, now, may_create, "" if create else wanted.run, parts, *_short(wanted))
            taken, found = await self._apply(lua.CLAIM, wanted.id, head, data=data or b"")
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
        head = _joined(record.run, token, absent, taken, step, parts, *_changing(record))
        await self._apply(lua.COMMIT, record.id, head, token, data)

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        step, parts, data = await self._prepare(record, record.token, result)
        begun = ""
        if result.error and result.ended is None:  # a call has begun; coming late, this must not replace its result
            begun = _text([record.run, *result[:3], result.started, 0])[:-2]
        head = _joined(record.run, record.token, step, parts, begun)
        await self._apply(lua.SAVE, record.id, head, record.token, data)

    async def _restart(self, record: Record, held: Record) -> None:
        parts, data = "", record.input
        if len(data) > _PART_SIZE:
            parts, data = await self._write_parts(held, held.token, _INPUT, data), b""
        await self._apply(lua.RESTART, held.id, _joined(held.run, held.token, parts, *_short(record)), held.token, data)

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:  # noqa: ARG002
        """Read a page of results."""
        begin = _text([record.run])[:-1]
        values = await self._run(lua.RESULTS, record.id, _joined(record.run, begin, start, stop))
        told = [value.partition(b"\n") for value in values]
        page: list[Result] = []
        for (_, step, asked, fingerprint, started, ended, error, *parts), (_, _, data) in zip(
            json.loads(b"[%b]" % b",".join([head for head, _, _ in told])), told, strict=True
        ):
            result = as_result((step, asked, fingerprint, data, started, ended, error))
            if parts:
                if page:
                    break
                whole = await self._read_parts(record.id, *parts)
                if whole is None:
                    raise Fenced(record.id, record.token)
                return [result._replace(data=whole)]
            page.append(result)
        return page

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        return await self._as_record(id, await self._run(lua.READ, id))

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        if not self._is_cluster:
            rows = await self._scripts.run(lua.DUE, (self._due, self._ids), _joined(self._prefix, now, limit)[1:])
            return [record for row in rows if (record := await self._as_record(row[0].decode(), row[1]))]
        bounds, looked = ("-inf", repr(now), "LIMIT", "0", str(limit)), dict[bytes, Record | None]()
        while True:
            entries = await self._scripts.run(lua.INDEX, (self._due,), "ZRANGEBYSCORE", *bounds)
            if looked.keys() >= set(entries):
                found = [record for entry in entries if (record := looked[entry])]
                return list({record.id: record for record in found}.values())
            for entry in entries:
                if entry not in looked:  # those that have moved make room for others
                    looked[entry] = await self._look(entry, "entry", self._due)

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        found: list[Record] = []
        # An entry's id ends with a space, which is before all that an id is made of.
        last: bytes | None = _joined(f"({after}{'!' * self._is_cluster}" if after else "-")[1:]
        while last is not None and len(found) < limit:
            if self._is_cluster:
                bounds = (last, "+", "LIMIT", "0", str(limit))
                entries = await self._scripts.run(lua.INDEX, (self._ids,), "ZRANGEBYLEX", *bounds)
                records = [await self._look(entry, "listed", self._ids) for entry in entries]
                last = b"(" + entries[-1] if entries else None
            else:
                values = (self._prefix, last.decode(), limit - len(found), status, workflow)
                more, rows = await self._scripts.run(lua.FIND, (self._due, self._ids), _joined(*values)[1:])
                records = [await self._as_record(id.decode(), row) for id, row in rows]
                last = b"(" + more if more else None
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
        kept, found = await self._apply(lua.SIGNAL, id, _joined(name, now, urandom(8).hex()), data=data)
        return await self._as_record(id, found), kept > 0

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        data: bytes | None = await self._run(lua.RECEIVED, record.id, _joined(record.run, name))
        return data

    async def _remove(self, id: str, held: Record | None) -> None:
        run, token = (held.run, held.token) if held else ("", 0)
        (listed,) = await self._apply(lua.REMOVE, id, _joined(run, token, urandom(8).hex()), token)
        if listed:
            with suppress(StorageError):
                await self._forget(self._ids, id, listed)

    async def _prepare(self, record: Record, token: int, result: Result) -> tuple[int, str | None, bytes]:
        """Return a result's step, the name of its parts, if it is in some, and what is kept of it otherwise."""
        step, asked, fingerprint, data, started, ended, error = result
        told = [record.run, step, asked, fingerprint, started, ended, error]
        if len(data) <= _PART_SIZE:
            return step, None, b"%b\n%b" % (_text(told).encode(), data)
        parts = await self._write_parts(record, token, step, data)
        return step, parts.split()[0], _text([*told, parts]).encode()

    async def _write_parts(self, record: Record, token: int, step: int, data: bytes) -> str:
        """Write what nobody reads before a commit has named it, and return its name and the number of its parts."""
        name, number = f"{step}:{urandom(8).hex()}", 0
        for number, part in enumerate(split(data, _PART_SIZE)):
            await self._apply(lua.PART, record.id, _joined(record.run, token, name, number), token, part)
        return f"{name} {number + 1}"

    async def _read_parts(self, id: str, parts: str) -> bytes | None:
        """Return what parts make, or `None` if they are gone."""
        whole = BytesIO()
        name, count = parts.split()
        for number in range(int(count)):
            part = await self._run(lua.PART_OF, id, _joined(name, number))
            if part is None:
                return None
            whole.write(part)
        return whole.getvalue()

    async def _as_record(self, id: str, found: list[bytes] | None) -> Record | None:
        """Return the record that was found, with its input if that is in parts."""
        while found:
            run, workflow, *values, parts = found[0].decode().split("\0")
            others: Any = (reader(value) if value else None for reader, value in zip(_READERS, values, strict=True))
            input = await self._read_parts(id, parts) if parts else found[1]
            if input is not None:
                return Record(id, run, workflow, input, *others)
            before, found = found, await self._run(lua.READ, id)
            if found == before:  # it was not removed or restarted meanwhile
                raise StorageError(
                    f"Redis: parts of the input of execution {id!r} are gone: let the server evict nothing"
                )
        return None

    async def _look(self, entry: bytes, field: str, index: bytes) -> Record | None:
        """Return the record of an entry; when the record does not name it there, or no longer, remove it."""
        id, _, name = entry.decode().rpartition(" ")
        (found,) = await self._apply(lua.LOOK, id, _joined(field, name))
        if found:
            return await self._as_record(id, found)
        await self._forget(index, id, name.encode())
        return None  # it has moved, or is gone

    async def _apply(self, script: str, id: str, head: bytes, token: int = 0, data: bytes = b"") -> list[Any]:
        """Run a script, after giving the index what the script asks for, and return what it answers.

        Raises:
            Fenced: When `token` is no longer the execution's.
        """
        offered = b""
        while True:
            answer = await self._run(script, id, head, data, offered)
            status, *others = answer if isinstance(answer, list) else (answer,)
            if status == REFUSED:
                raise Fenced(id, token)
            if status == DONE:
                break
            listed = ":listed" if status == NEW else ""
            offered = b"%b:%b" % (others[0], (urandom(8).hex() + listed).encode())
            offer = (others[0], b"%b %b" % (id.encode(), offered), listed)
            await self._scripts.run(lua.OFFER, (self._due, self._ids), *offer)
        if not others:
            return others
        superfluous, *others = others
        if superfluous:
            with suppress(StorageError):  # all is done that matters, and whoever lists does the rest
                await self._forget(self._due, id, superfluous)
                if superfluous == offered:
                    await self._forget(self._ids, id, superfluous)
        return others

    async def _forget(self, index: bytes, id: str, name: bytes) -> None:
        """Remove an entry that no record names, or will ever name."""
        await self._scripts.run(lua.INDEX, (index,), "ZREM", b"%b %b" % (id.encode(), name))

    def _run(self, script: str, id: str, head: bytes = b"", data: bytes = b"", offered: bytes = b"") -> Awaitable[Any]:
        """Run a script on the keys of one execution."""
        record = f"{self._prefix}{{{id}}}"
        # The key that never exists makes a cluster refuse the script while it moves the slot, key by key.
        others = (f"{record}:none".encode(),) if self._is_cluster else (self._due, self._ids)
        short = b"%b\0%b\0%b%b" % (id.encode(), offered, self._ttl, head)
        return self._scripts.run(script, (record.encode(), *others), short, data)


def _is_prefix(prefix: object) -> bool:
    return (
        isinstance(prefix, str)
        and prefix != ""
        and not any(character in "{}\0" or "\ud800" <= character <= "\udfff" for character in prefix)
    )


def _is_time(ttl: object) -> bool:
    return isinstance(ttl, (int, float)) and not isinstance(ttl, bool) and 0 < ttl < inf


def _text(value: Any) -> str:
    return "".join(_pieces(value, 0))


def _joined(*values: Any) -> bytes:
    """Return short values as one text, with a NUL before each."""
    texts = ["" if value is None else value if isinstance(value, str) else repr(value) for value in values]
    text = "\0".join(["", *texts])
    if text.count("\0") != len(values):
        raise StorageError(f"Redis: no text may have a NUL ({text!r:.100}): nothing was recorded")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"Redis: no text may have a lone surrogate ({error}): nothing was recorded") from error


def _short(record: Record) -> tuple[Any, ...]:
    """Return the short fields of a record but its id."""
    return (record.run, record.workflow, record.version, record.first_input, *_changing(record))


def _changing(record: Record) -> tuple[Any, ...]:
    """Return those fields that a commit may change; an error as JSON, which is never empty."""
    return (record if record.error is None else record._replace(error=_text(record.error)))[6:]
