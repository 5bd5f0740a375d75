"""Executions in an object store, through obstore: S3, Google Cloud Storage, Azure Blob Storage, a folder, memory.

An execution is the folder ``{prefix}{id}/``.  Its object ``record`` is replaced by compare-and-swap, and with it all
that changes in one step: the record, the signals, and the latest results as long as they are small together.  When
they no longer are, they move into a segment, an object of its own that never changes.  What is large is kept beside
them, and written before the record that refers to it.  Names have a nonce: no writer ever overwrites another's.

A store deletes whatever it finds.  So a removal first replaces the record by a tombstone, which is a step like any
other, and deletes that last.  Everything else lies in a folder of its run, which no later execution has, and may be
deleted at any time; only the key of the record is used again.  A tombstone therefore belongs to who wrote it, for
`_GRACE` seconds: that process deletes it within `_PROMPT` seconds, or writes it again first; others leave it alone so
long, and only then replace it.  No two clocks are compared, unless a tombstone is older than `_ABANDONED` seconds: that
is given up at once.  What remains is a deletion that the store carries out more than `_GRACE` - `_PROMPT` seconds after
it was sent, or a second time because its answer was lost.  It would delete an execution of the same id that has begun
meanwhile: the holder of that is then told that it is fenced off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeAlias

from ..codec import Codec
from ..errors import Fenced, StorageError
from ..storage import CLOSED, Record, Result, as_record, refuses, settle
from .bucket import Bucket, Conflict, Damaged, Kept, check_missing, nonce
from .bucket_requests import explained
from .clients import ClientJournal, Recent, extra, plain_or_async
from .objects_state import (
    TAIL,
    Keep,
    State,
    Value,
    add,
    check_held,
    decode,
    decode_body,
    decode_result,
    encode,
    shorten,
)

with extra("objects"):
    from obstore.store import from_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_INLINE = 1 << 14
"""Bytes from which a value is an object of its own."""

_PAGE = 1 << 20
_SEGMENTS = _PAGE // TAIL

_KNOWN = 256
"""How many executions are remembered as they were last seen, so that a holder need not read before each commit."""

_ATTEMPTS = 100
"""How often a change is tried while others change the same execution: each time, one of them has succeeded."""

_PROMPT, _GRACE, _ABANDONED = 1.0, 6.0, 60.0

_Change: TypeAlias = Callable[[State, Keep], Awaitable[State | None]]


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
        self._known = Recent[State](_KNOWN)
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
            options = {"mkdir": True, "automatic_cleanup": True, **options}
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
                await self._outlive(wanted.id, state)
                return State(wanted, await keep(f"{wanted.run}/input", wanted.input), gone=state.gone)
            if record.lease > now or refuses(record, wanted, create):
                return None
            return state._replace(record=record._replace(token=record.token + 1, lease=wanted.lease))

        state, done = await self._change(wanted.id, change)
        record = wanted if done and state.record == wanted else await self._whole(state)
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

        await self._change(record.id, change, (record.run, token))

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""

        async def change(state: State, keep: Keep) -> State | None:
            check_held(state, record, record.token)
            return await add(state, record.run, result, keep)

        await self._change(record.id, change, (record.run, record.token))

    async def _restart(self, record: Record, held: Record) -> None:
        doomed: list[str] = []

        async def change(state: State, keep: Keep) -> State | None:
            check_held(state, held, held.token)
            gone = (held.run, *state.gone)
            doomed[:] = await self._remains(held.id, gone)
            signals: dict[str, Value | None] = {}
            for name, data in state.signals.items():
                if data is not None:  # a large one moves on to the folder of the new run
                    signals[name] = await keep(f"{record.run}/signal-{name}", await self._load(held.id, data))
            return State(record, await keep(f"{record.run}/input", record.input), signals, gone=gone)

        state, _ = await self._change(record.id, change, (held.run, held.token))
        await self._bucket.delete(doomed)
        self._known.put(record.id, state._replace(gone=()))

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:  # noqa: ARG002
        """Read a page of results."""
        state = self._known.get(record.id) or State()
        # Whoever holds this token has written, through here, all that there is.
        if state.record is None or (state.record.run, state.record.token) != (record.run, record.token):
            state = await self._fetch(record.id)
            if state.record is None or state.record.run != record.run:
                return []
            self._known.put(record.id, state)
        try:
            return await self._page(state, record.id, start, stop)
        except FileNotFoundError as error:
            await self._fetch_after(record, error)
            return []

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        state = await self._fetch(id)
        if state.record is not None:
            self._known.put(id, state)
        return await self._whole(state)

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring, and finish the removals that others have left half done."""

        async def look(id: str) -> Record | None:
            try:
                state = await self._fetch(id)
            except Damaged:  # nobody can go on with it, and it is not to be in the way of others
                return None
            if _is_abandoned(state):
                await settle(self.remove(id))
            at = state.record.rings_at if state.record else None
            return await self._whole(state) if at is not None and at <= now else None

        found = await self._bucket.requests.together(look, await self._bucket.folders())
        return sorted(filter(None, found), key=lambda record: record.rings_at or 0.0)[:limit]

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""

        async def look(id: str) -> Record | None:
            state = await self._fetch(id)
            record = state.record
            if record is None or status not in {None, record.status} or workflow not in {None, record.workflow}:
                return None
            return await self._whole(state)

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

        state, done = await self._change(id, change)
        return await self._whole(state), done

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        state = await self._fetch(record.id)
        data = state.signals.get(name)
        if state.record is None or data is None:
            return None
        try:
            return await self._load(record.id, data)
        except FileNotFoundError as error:
            await self._fetch_after(state.record, error)
            return None

    async def _remove(self, id: str, held: Record | None) -> None:
        doomed: list[str] = []

        async def change(state: State, _: Keep) -> State | None:
            if held is not None:
                check_held(state, held, held.token)
            if state.record is None and not _is_abandoned(state):
                return None
            gone = state.gone if state.record is None else (state.record.run, *state.gone)
            doomed[:] = await self._remains(id, gone)
            return State(gone=gone)

        since = monotonic(), time()
        state, done = await self._change(id, change, held and (held.run, held.token))
        if not done or (found := state.found) is None:
            return
        await self._bucket.delete(doomed)
        for _ in range(_ATTEMPTS):
            # The monotonic clock stands still while a machine sleeps, and the other may be set.
            if max(monotonic() - since[0], time() - since[1]) < _PROMPT:
                await self._bucket.erase(id, found)
                return
            since = monotonic(), time()
            try:
                found = await self._bucket.swap(id, found.data, found)
            except Conflict:
                return

    async def _change(self, id: str, change: _Change, held: tuple[str, int] | None = None) -> tuple[State, bool]:
        """Replace what is kept of an execution by what `change` makes of it, until nobody else comes in between.

        Args:
            id: Which.
            change: Returns what to write in the place of what it is given, or ``None`` to leave that alone; it is also
                given a function for values that may be large.
            held: The run and the token of a holder, who need not read what he himself has written here.

        Returns:
            What is kept now, and whether this has written it.
        """
        state = self._known.put(id, None)
        if state is None or state.record is None or (state.record.run, state.record.token) != held:
            state = await self._fetch(id)
        made: dict[str, Kept] = {}

        async def keep(name: str, data: bytes, inline: int = _INLINE) -> Value:
            if len(data) < inline:
                return data
            if name not in made:
                made[name] = Kept(f"{name}-{nonce()}", len(data))
                await self._bucket.keep(id, made[name], data)
            return made[name]

        try:
            for _ in range(_ATTEMPTS):
                try:
                    new = await change(state, keep)
                    if new is None:
                        await self._bucket.discard(id, made.values())
                        return state, False
                    new = await shorten(new, keep)
                    body = encode(new)
                    found = await self._bucket.swap(id, body, state.found)
                except Conflict as conflict:
                    state = decode(conflict.found)
                    continue
                new = new._replace(found=found)
                if new.record:
                    self._known.put(id, new if found.data is body else decode(found))
                return new, True
        except Fenced:
            await self._bucket.discard(id, made.values())
            raise
        raise StorageError(f"object store: too many write {id!r} at once: try again")

    async def _outlive(self, id: str, state: State) -> None:
        """Wait for the end of a removal; return only when the remover must have died.

        Raises:
            Conflict: When it has ended.
        """
        until = monotonic() + (0.0 if self._bucket.requests.is_local else _GRACE)
        while state.found and monotonic() < until and not _is_abandoned(state):
            await self._bucket.requests.pause(_GRACE / 100)
            later = await self._bucket.get(id)
            if later is None or later.nonces != state.found.nonces:
                raise Conflict(later)

    async def _page(self, state: State, id: str, start: int, stop: int) -> list[Result]:
        async def read(segment: tuple[int, int, Kept]) -> dict[int, bytes]:
            return decode_body(await self._load(id, segment[2])).tail

        async def load(item: tuple[Result, Kept | None]) -> Result:
            result, kept = item
            return result if kept is None else result._replace(data=await self._load(id, kept))

        wanted = sorted(segment for segment in state.segments if segment[0] < stop and segment[1] >= start)
        items: dict[int, bytes] = {}
        count, until = 0, start
        while not items and until < stop:
            count += _SEGMENTS
            until = wanted[count][0] if count < len(wanted) else stop  # from there on, another segment has steps too
            tails = dict(zip(wanted, await self._bucket.requests.together(read, wanted[:count]), strict=False))
            for tail in [*(tails[segment] for segment in state.segments if segment in tails), state.tail]:
                items.update((step, item) for step, item in tail.items() if start <= step < until)
        page: list[tuple[Result, Kept | None]] = []
        total = 0
        for _, item in sorted(items.items()):
            result, kept = decode_result(item)
            total += kept.size if kept else len(result.data)
            if page and total > _PAGE:
                break
            page.append((result, kept))
        return await self._bucket.requests.together(load, page)

    async def _whole(self, state: State) -> Record | None:
        """Return the record with its input."""
        while state.record is not None:
            try:
                return state.record._replace(input=await self._load(state.record.id, state.input))
            except FileNotFoundError as error:
                state = await self._fetch_after(state.record, error)
        return None

    async def _fetch_after(self, record: Record, error: FileNotFoundError) -> State:
        """Return what is kept now that something was missed."""
        state = await self._fetch(record.id)
        check_missing(record, state.record, error)
        return state

    async def _load(self, id: str, value: Value) -> bytes:
        return await self._bucket.load(id, value) if isinstance(value, Kept) else value

    async def _remains(self, id: str, runs: tuple[str, ...]) -> list[str]:
        return await self._bucket.remains(id, runs, "record")

    async def _fetch(self, id: str) -> State:
        return decode(await self._bucket.get(id))


def _is_abandoned(state: State) -> bool:
    """Whether it is a tombstone that has been there for long."""
    return state.record is None and state.found is not None and time() - state.found.modified > _ABANDONED
