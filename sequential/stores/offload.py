"""Large values in an object store, beside another Journal which keeps everything else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from ..blocking import is_async, usable_loop
from ..errors import Fenced
from ..storage import Journal, Record, Result, is_number, settle
from .bucket import Bucket, Kept, check_missing, nonce
from .clients import ClientJournal, Recent, plain_or_async

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_SIGNALS = "signals/"
"""Signals outlive the run that they were sent to, so they are not in its folder."""

_REFERENCE = b'{"__offloaded":'
"""What a reference begins with; a value that does is kept in the object store, however small."""

_PAGE = 1 << 20
_KNOWN = 256
"""Of how many runs it is remembered where the input is, so that a commit need not look."""


class Offload(ClientJournal):
    """A Journal that keeps large results, inputs and signals in an object store, and the rest in another Journal.

    There, the data of a large value is a short reference in JSON.  What is large is written before what refers to it,
    and deleted after that.  What is left by a process that dies in between is removed with its execution, or, after it
    has been removed, with the next execution of that id, a day later or more.

    Args:
        storage: The Journal for everything else, plain or ``async``; its codec is used.
        objects: A store of obstore's, which need not honour conditional writes.
        above: How many bytes of a value are kept in `storage` at most.
        prefix: What all keys in `objects` begin with: names with a ``/`` behind each, or nothing.  No other storage may
            have the same.

    Raises:
        StorageError: From every method, saying what failed, and the remedy.
        TypeError: When `storage` is not a Journal.
        ValueError: When `above` is negative, or `prefix` cannot begin a key.
    """

    def __init__(
        self, storage: Journal, objects: ObjectStore, *, above: int = 256 * 1024, prefix: str = "large/"
    ) -> None:
        if not isinstance(storage, Journal):
            raise TypeError(f"Offload needs a Journal to keep the rest, such as PostgresStorage: not {storage!r:.100}")
        if not is_number(above, 0):
            raise ValueError(f"above= is a number of bytes, 0 or more: not {above!r}")
        super().__init__(storage.codec)
        self._inner = storage
        self._bucket = Bucket(objects, prefix)
        self._above = above
        self._inputs = Recent[bytes](_KNOWN)

    def is_async(self) -> bool:
        """Whether methods are to be awaited: where an event loop runs, or when those of the other Journal are."""
        inner = self._inner
        waits = inner.is_async() if isinstance(inner, ClientJournal) else is_async(inner.read)
        return waits or usable_loop() is not None

    @plain_or_async
    async def close(self) -> None:
        """Close the other Journal."""
        await settle(self._inner.close())

    @plain_or_async
    async def create_schema(self) -> None:
        """Make the tables of the other Journal."""
        await settle(self._inner.create_schema())

    @plain_or_async
    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        large = self._is_large(wanted.input)
        first = wanted._replace(run="") if create and large else wanted  # for whichever step, as when it creates
        record, done = await settle(self._inner.claim(first, now, create and not large))
        if record is not None or not create or not large:
            return await self._whole(record), done
        reference = await self._keep(wanted.id, f"{wanted.run}/input", wanted.input)
        record, done = await settle(self._inner.claim(wanted._replace(input=reference), now, True))
        if record is not None and record.input == reference:
            self._inputs.put(record.run, reference)
            return record._replace(input=wanted.input), done
        await self._discard(wanted.id, reference)
        return await self._whole(record), done

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        inner = await self._inside(record)
        if result is not None:
            result = result._replace(data=await self._keep(record.id, f"{record.run}/{result.step}", result.data))
        try:
            await settle(self._inner.commit(inner, token, result, absent=absent, taken=taken))
        except Fenced:
            if result is not None:
                await self._discard_unused(record, result)
            raise

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        result = result._replace(data=await self._keep(record.id, f"{record.run}/{result.step}", result.data))
        try:
            await settle(self._inner.save(await self._inside(record), result))
        except Fenced:
            await self._discard_unused(record, result)
            raise

    async def _restart(self, record: Record, held: Record) -> None:
        doomed = await self._bucket.remains(record.id, [held.run], _SIGNALS)
        inner = record._replace(input=await self._keep(record.id, f"{record.run}/input", record.input))
        try:
            await settle(self._inner.restart(inner, await self._inside(held)))
        except Fenced:
            stored = await settle(self._inner.read(record.id))
            if stored is None or stored.input != inner.input:
                await self._discard(record.id, inner.input)
            raise
        self._inputs.put(record.run, inner.input)
        await self._bucket.delete(doomed)

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        """Read a page of results."""
        page: list[Result] = []
        size = 0
        for result in await settle(self._inner.results(record, start, stop, brief)):
            kept = _parse(result.data)
            size += kept.size if kept else len(result.data)
            if page and kept and size > _PAGE:
                break
            page.append(result)

        async def load(result: Result) -> Result:
            return result._replace(data=await self._load(record.id, result.data))

        try:
            return await self._bucket.requests.together(load, page)
        except FileNotFoundError as error:
            await self._read_after(record, error)
            return []

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        return await self._whole(await settle(self._inner.read(id)))

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        return await self._all(await settle(self._inner.due(now, limit)))

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        return await self._all(await settle(self._inner.find(after, limit, status, workflow)))

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        reference = data
        if self._is_large(data):
            reference = await self._keep(id, f"{_SIGNALS}{name}", data)
        record, kept = await settle(self._inner.signal(id, name, reference, now))
        large = _parse(reference)
        if large and not kept:
            await self._bucket.discard(id, [large])
        elif large and not await self._bucket.exists(id, large):
            # Its execution was removed meanwhile, and this with it, and then it has come to the next of that id.
            await self._bucket.keep(id, large, data)
        return await self._whole(record), kept

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        data = await settle(self._inner.received(record, name))
        try:
            return None if data is None else await self._load(record.id, data)
        except FileNotFoundError as error:
            await self._read_after(record, error)
            return None

    async def _remove(self, id: str, held: Record | None) -> None:
        record = held or await settle(self._inner.read(id))
        dead = ["signals"] if record is None else ["signals", record.run]
        doomed = await self._bucket.remains(id, dead, _SIGNALS)
        await settle(self._inner.remove(id, held))
        await self._bucket.delete(doomed)

    def _is_large(self, data: bytes) -> bool:
        return len(data) > self._above or data.startswith(_REFERENCE)

    async def _keep(self, id: str, name: str, data: bytes) -> bytes:
        """Return what the other Journal is to keep."""
        if not self._is_large(data):
            return data
        kept = Kept(f"{name}-{nonce()}", len(data))
        await self._bucket.keep(id, kept, data)
        return json.dumps({"__offloaded": kept.name, "size": kept.size}, separators=(",", ":")).encode()

    async def _load(self, id: str, data: bytes) -> bytes:
        kept = _parse(data)
        return await self._bucket.load(id, kept) if kept else data

    async def _discard(self, id: str, data: bytes) -> None:
        kept = _parse(data)
        if kept:
            await self._bucket.discard(id, [kept])

    async def _discard_unused(self, record: Record, result: Result) -> None:
        """Delete what was kept for a result, unless that was written and only the answer lost."""
        if _parse(result.data):
            stored = await settle(self._inner.results(record, result.step, result.step + 1))
            if result.data not in [saved.data for saved in stored]:
                await self._discard(record.id, result.data)

    async def _inside(self, record: Record) -> Record:
        """Return a record as the other Journal has it."""
        if not self._is_large(record.input):
            return record
        reference = self._inputs.get(record.run)
        if reference is None:
            stored = await settle(self._inner.read(record.id))
            if stored is None or stored.run != record.run:
                raise Fenced(record.id, record.token)
            reference = stored.input
            self._inputs.put(record.run, reference)
        return record._replace(input=reference)

    async def _whole(self, record: Record | None) -> Record | None:
        """Return a record of the other Journal's with its input."""
        while record is not None and _parse(record.input):
            try:
                data = await self._load(record.id, record.input)
            except FileNotFoundError as error:
                record = await self._read_after(record, error)
            else:
                self._inputs.put(record.run, record.input)
                return record._replace(input=data)
        return record

    async def _all(self, records: list[Record]) -> list[Record]:
        return [record for record in await self._bucket.requests.together(self._whole, records) if record]

    async def _read_after(self, record: Record, error: FileNotFoundError) -> Record | None:
        """Return the record as it is now that something was missed."""
        stored = await settle(self._inner.read(record.id))
        check_missing(record, stored, error)
        return stored


def _parse(data: bytes) -> Kept | None:
    if not data.startswith(_REFERENCE):
        return None
    with suppress(ValueError):
        match json.loads(data):
            case {"__offloaded": str(name), "size": int(size), **rest} if not rest:
                return Kept(name, size)
    return None  # a value from before, when there was no Offload
