"""Executions in an object store, through obstore: S3, Google Cloud Storage, Azure Blob Storage, a folder, memory.

An execution is the folder ``{prefix}{id}/``.  Its object ``record`` is replaced by compare-and-swap, and with it all
that changes in one step: the record, the signals, and the latest results as long as they are small together.  When
they no longer are, they move into a segment, an object of its own that never changes.  What is large is kept beside
them, and written before the record that refers to it.  Names have a nonce: no writer ever overwrites another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..codec import Codec
from ..errors import Fenced, StorageError
from ..storage import CLOSED, Record, Result, as_record, refuses, settle
from .bucket import Bucket, Damaged, nonce
from .bucket_requests import explained
from .clients import ClientJournal, extra, plain_or_async
from .objects_record import State, Value, check_held
from .objects_removal import is_abandoned, outlive, remove
from .objects_states import Keep, States, add

with extra("objects"):
    from obstore.store import from_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class ObjectStorage(ClientJournal):
    """A Journal in an object store that honours conditional writes.

    One object serves any number of threads and tasks.  Where an event loop runs, its methods are to be awaited; without
    one, or in a folder, they answer at once.  Make it after a fork, never before: a process forked from one that has
    used obstore, if only for the check below, waits for ever.

    `due` and `find` list all executions and read the record of each: a sweep costs more, the more there are.  Google
    allows one write a second of the same object, and so one step a second of the same execution.

    What a process leaves behind that dies while it writes is removed with its execution; or, when it was about to begin
    one, or was fenced off before, with an execution of that id which is removed a day later or more.

    A folder is for one machine: its file system must have locks (Windows has others) and tell ``a`` from ``A``, or the
    two ids would be one execution.  Nothing waits for the disk: when the process is killed, a write is whole or not
    there, but a power cut may lose what was written last, or leave it empty.  SQLiteStorage does wait.

    Args:
        store: A store of obstore's, which is plain and ``async`` alike.
        prefix: What all keys begin with: names with a ``/`` behind each, or nothing.
        check: Whether to find out at once, by a few requests, that the store honours conditions: many that speak the
            protocol of S3 accept and ignore them, and then two writers at once would both win.
        codec: How values become bytes; strict JSON when left out.

    Raises:
        StorageError: When conditions are ignored; and from every method, saying what failed, and the remedy.
        ValueError: When `prefix` cannot begin a key.
    """

    def __init__(
        self, store: ObjectStore, *, prefix: str = "exec/", check: bool = True, codec: Codec | None = None
    ) -> None:
        super().__init__(codec)
        self._bucket = Bucket(store, prefix)
        self._states = States(self._bucket)
        if check:
            self._bucket.requests.check(f"{prefix}.check-{nonce()}")

    @classmethod
    def from_url(
        cls, url: str, *, prefix: str = "exec/", check: bool = True, codec: Codec | None = None, **options: Any
    ) -> ObjectStorage:
        """Return a storage in the store at a URL.

        Credentials come from the environment, where obstore looks for them: ``AWS_ACCESS_KEY_ID`` and so on,
        ``GOOGLE_SERVICE_ACCOUNT``, ``AZURE_STORAGE_ACCOUNT_NAME`` and ``AZURE_STORAGE_ACCOUNT_KEY``.  S3 needs
        ``AWS_REGION`` too; another server than Amazon's ``AWS_ENDPOINT_URL``, and without TLS ``AWS_ALLOW_HTTP=true``.

        Args:
            url: ``s3://bucket/path``, ``gs://bucket/path``, ``az://container/path``, ``file:///folder``, ``memory:///``.
            prefix: As for the class; it comes behind the URL's path.
            check: As for the class.
            codec: As for the class.
            options: Of `obstore.store.from_url`, instead of the environment: ``endpoint="..."``, ``region="..."``.
        """
        if url.startswith("file:"):
            if not url.removeprefix("file://").startswith("/") or not url.removeprefix("file://").strip("/"):
                raise StorageError(f"object store: {url!r} names no folder: write file:///path/of/folder")
            known = {"mkdir": True, "automatic_cleanup": True}
            if unknown := ", ".join(options.keys() - known.keys()):  # obstore would pass over it
                raise StorageError(f"object store: a folder has no option {unknown}: it has {' and '.join(known)}")
            options = {**known, **options}
        elif not url.partition("://")[2]:
            raise StorageError(f"object store: {url!r} names no bucket: write {url}bucket/path")
        with explained():
            store = from_url(url, **options)
        return cls(store, prefix=prefix, check=check, codec=codec)

    def is_async(self) -> bool:
        """Whether methods are to be awaited: where an event loop runs, unless the store is a folder."""
        return self._bucket.requests.is_async()

    def close(self) -> None:
        """Do nothing: obstore closes its connections by itself."""

    @plain_or_async
    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""

        async def change(state: State, keep: Keep) -> State | None:
            record = state.record
            if record is None:
                if not create:
                    return None
                await outlive(self._bucket, wanted.id, state)
                return State(wanted, await keep(f"{wanted.run}/input", wanted.input), gone=state.gone)
            if record.lease > now or refuses(record, wanted, create):
                return None
            return state._replace(record=record._replace(token=record.token + 1, lease=wanted.lease))

        state, done = await self._states.change(wanted.id, change)
        record = wanted if done and state.record == wanted else await self._states.whole(state)
        return record, done and record is not None

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        async def change(state: State, keep: Keep) -> State | None:
            stored = check_held(state, record, token)
            signals = dict(state.signals)
            if absent is not None and signals.pop(absent, None) is not None:
                raise Fenced(record.id, token)
            if taken is not None:
                signals[taken] = None
            changed = state._replace(record=as_record((*stored[:6], *record[6:])), signals=signals)
            return changed if result is None else await add(changed, record.run, result, keep)

        await self._states.change(record.id, change, (record.run, token))

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""

        async def change(state: State, keep: Keep) -> State | None:
            check_held(state, record, record.token)
            return await add(state, record.run, result, keep)

        await self._states.change(record.id, change, (record.run, record.token))

    async def _restart(self, record: Record, held: Record) -> None:
        doomed: list[str] = []

        async def change(state: State, keep: Keep) -> State | None:
            check_held(state, held, held.token)
            gone = (held.run, *state.gone)
            doomed[:] = await self._bucket.remains(held.id, gone, "record")
            signals: dict[str, Value | None] = {}
            for name, data in state.signals.items():
                if data is not None:  # a large one moves on to the folder of the new run
                    signals[name] = await keep(f"{record.run}/signal-{name}", await self._states.load(held.id, data))
            return State(record, await keep(f"{record.run}/input", record.input), signals, gone=gone)

        state, _ = await self._states.change(record.id, change, (held.run, held.token))
        await self._bucket.delete(doomed)
        self._states.known.put(record.id, state._replace(gone=()))

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:  # noqa: ARG002
        """Read a page of results."""
        state = self._states.known.get(record.id) or State()
        # Whoever holds this token has written, through here, all that there is.
        if state.record is None or (state.record.run, state.record.token) != (record.run, record.token):
            state = await self._states.read(record.id)
            if state.record is None or state.record.run != record.run:
                return []
            self._states.known.put(record.id, state)
        try:
            return await self._states.page(record.id, state, start, stop)
        except FileNotFoundError as error:
            await self._states.read_after(record, error)
            return []

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        state = await self._states.read(id)
        if state.record is not None:
            self._states.known.put(id, state)
        return await self._states.whole(state)

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring, and finish the removals that others have left half done."""

        async def look(id: str) -> Record | None:
            try:
                state = await self._states.read(id)
            except Damaged:  # nobody can go on with it, and it is not to be in the way of others
                return None
            if is_abandoned(state):
                await settle(self.remove(id))
            at = state.record.rings_at if state.record else None
            return await self._states.whole(state) if at is not None and at <= now else None

        found = await self._bucket.requests.together(look, await self._bucket.folders())
        return sorted(filter(None, found), key=lambda record: record.rings_at or 0.0)[:limit]

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""

        async def look(id: str) -> Record | None:
            state = await self._states.read(id)
            record = state.record
            if record is None or status not in {None, record.status} or workflow not in {None, record.workflow}:
                return None
            return await self._states.whole(state)

        found: list[Record] = []
        ids = [id for id in await self._bucket.folders() if id > after]
        while ids and len(found) < limit:
            found += filter(None, await self._bucket.requests.together(look, ids[:limit]))
            ids = ids[limit:]
        return found[:limit]

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""

        async def change(state: State, keep: Keep) -> State | None:
            record = state.record
            if record is None or record.status in CLOSED or name in state.signals:
                return None
            if record.waits == name and not record.lease:
                record = record._replace(due=now)
            value = await keep(f"{record.run}/signal-{name}", data)
            return state._replace(record=record, signals={**state.signals, name: value})

        state, done = await self._states.change(id, change)
        return await self._states.whole(state), done

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        state = await self._states.read(record.id)
        data = state.signals.get(name)
        if state.record is None or data is None:
            return None
        try:
            return await self._states.load(record.id, data)
        except FileNotFoundError as error:
            await self._states.read_after(state.record, error)
            return None

    async def _remove(self, id: str, held: Record | None) -> None:
        await remove(self._bucket, self._states, id, held)
