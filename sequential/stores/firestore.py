"""Executions in Firestore: a document for each, and collections below it for its results and signals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from math import inf
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..codec import Codec
from ..errors import Fenced, InvalidId, InvalidName, StorageError
from ..storage import CLOSED, Record, Result, is_name, new_run, refuses, settle
from . import firestore_documents as docs
from .clients import ClientJournal, Recent, extra, plain_or_async
from .firestore_documents import ABSENT, Fields, Stored, Value, Write
from .firestore_requests import TOGETHER, Requests

with extra("firestore"):
    from google.cloud.firestore import AsyncClient, Client, FieldFilter

_PAGE = 1 << 20
"""Bytes after which a page of results ends."""

_ATTEMPTS = 100
"""How often a change is tried while others change the same execution: each time one of them has succeeded."""

_KNOWN = 1000
"""Records of which the last version is remembered, so that a commit need not read it first."""


class FirestoreStorage(ClientJournal):
    """A Journal in Firestore (native mode), which needs no index but those that Firestore makes by itself.

    An execution is the document ``{collection}/x-{id}``, its results are ``steps`` below it, its signals ``signals``.
    Google advises to write to a document no more than about once a second for long, and to a collection no more than
    about 500 times a second: an execution of many quick steps is better kept elsewhere.

    What a process leaves behind that dies while it removes an execution, or writes a large value, is never read; it
    goes when that id is next removed, or by a time-to-live policy.  Results need no index of their data, which saves
    money::

        gcloud firestore indexes fields update data --collection-group=steps --disable-indexes

    It is tested against a model of Firestore's documented rules, spoken to by Google's own client over gRPC, not
    against Google's emulator or Firestore itself.

    Args:
        client: A client of google-cloud-firestore, plain or ``async``; an ``async`` one belongs to the event loop in
            which it is first used.
        collection: The name of the executions' collection.
        ttl: Seconds that an execution outlives its last change, or its next one if that is known (the end of a sleep).
            Left out, for ever.  The same in all processes, and with a policy for each of the collections, here
            ``executions``, ``steps`` and ``signals``::

                gcloud firestore fields ttls update expires --collection-group=executions --enable-ttl

        codec: How values become bytes; strict JSON when left out.
        timeout: Seconds to try again for while Firestore cannot be reached, or is too busy.

    Raises:
        StorageError: From every method, naming what failed, and the remedy.
        ValueError: When `collection` cannot be the name of a collection, or `ttl` is not a number above 0.
    """

    def __init__(
        self,
        client: Client | AsyncClient,
        *,
        collection: str = "executions",
        ttl: float | None = None,
        codec: Codec | None = None,
        timeout: float = 30.0,
    ) -> None:
        super().__init__(codec)
        if not re.fullmatch(r"(?!\.{1,2}$|__.*__$)[^/\s]{1,200}", collection):
            raise ValueError(
                f"collection= is the name of a collection, 1 to 200 characters without / and spaces, and not like "
                f"__this__: not {collection!r}"
            )
        if ttl is not None and not 0 < ttl < inf:
            raise ValueError(f"ttl= is in seconds, and above 0: not {ttl!r} (leave it out to keep executions for ever)")
        self._client: Any = client
        self._records: Any = self._client.collection(collection)
        self._ttl = ttl
        self._requests = Requests(client, timeout)
        self._known = Recent[Stored](_KNOWN)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> FirestoreStorage:
        """Return a storage over a new client.

        Args:
            url: ``firestore://project/database?collection=executions``; what is left out, Google's client looks for in
                the environment, and an emulator in ``FIRESTORE_EMULATOR_HOST``.
            options: As for the class; the URL's collection comes first.

        Raises:
            StorageError: When there are no credentials, or no project.
            ValueError: When the URL is another one.
        """
        parts = urlsplit(url)
        query, database = dict(parse_qsl(parts.query)), unquote(parts.path).strip("/")
        if parts.scheme != "firestore" or query.keys() - {"collection"} or "/" in database:
            raise ValueError(f"{url!r} is not like firestore://project/database?collection=executions")
        with docs.explained():
            client = Client(project=parts.netloc or None, database=database or None)
        return cls(client, **{**options, **query})

    def is_async(self) -> bool:
        """Whether the client is an ``AsyncClient``."""
        return self._requests.is_async

    @plain_or_async
    async def close(self) -> None:
        """Close the client's connections."""
        await settle(self._client._firestore_api.transport.close())  # noqa: SLF001 - the only way to close them

    @plain_or_async
    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        nonce = new_run()
        for _ in range(_ATTEMPTS):
            stored, record = await self._load(wanted.id)
            if record is None:
                if not create:
                    return None, False
                record, changes = wanted, docs.fields_of(wanted) | {"pending": []}
                value = self._large_input(wanted)  # not that of an attempt before, which may have been removed
            elif stored.fields["claim"] == nonce:  # the answer was lost, and Google's client has asked again
                return record, True
            elif record.lease > now or refuses(record, wanted, create):
                return record, False
            else:
                record = record._replace(token=record.token + 1, lease=wanted.lease)
                changes, value = docs.changing(record), None
            if await self._put(wanted.id, stored, changes | {"claim": nonce}, value):
                return record, True
            await self._abandon(value)
        raise _refused(wanted.id)

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        value = None if result is None else self._result(record, result)
        await self._change(record._replace(token=token), docs.changing(record), value, absent=absent, taken=taken)

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        await self._change(record, {}, self._result(record, result))

    async def _restart(self, record: Record, held: Record) -> None:
        gone = await self._all_of(held.id, "steps")
        await self._change(held, docs.fields_of(record), self._large_input(record), gone)

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:  # noqa: ARG002
        """Read a page of results."""
        keys = (docs.step_key(record.run, start), docs.step_key(record.run, stop))
        page = await self._read_values(self._below(record.id, "steps"), *keys)
        return [Result(*(fields[name] for name in Result._fields)) for fields in page]

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        return (await self._load(id))[1]

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        return await self._list(self._records.where(filter=FieldFilter("rings", "<=", now)).order_by("rings"), limit)

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        query = self._records.order_by("__name__").start_after({"__name__": self._document(after)})
        query = query.end_before({"__name__": self._records.document("x.")})
        for field, value in (("status", status), ("workflow", workflow)):
            if value is not None:
                query = query.where(filter=FieldFilter(field, "==", value))
        return await self._list(query, limit)

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        if not is_name(name):
            raise InvalidName(name)
        sent, run, value = set[str](), None, None
        for _ in range(_ATTEMPTS):
            stored, record = await self._load(id)
            pending = docs.pending(stored.fields)
            if sent & {stored.fields.get("signal"), *pending.values()}:  # Google's client has asked again, as in claim
                return record, True
            if record is None or record.status in CLOSED or name in pending or name in stored.fields["closed"]:
                await self._abandon(value)
                return record, False
            if value is None or record.run != run:  # what lay below another run may have been removed
                await self._abandon(value)
                run, key = record.run, new_run()
                value = Value(self._below(id, "signals").document(key), {"name": name, "data": data}, key, set())
            entry = docs.entry_of(value)
            sent.add(entry)
            if not docs.has_room(stored.fields, entry):
                raise StorageError(
                    f"Firestore: the signals of execution {id!r} fill its document, and this one was not recorded: let "
                    f"it take those that wait, or forget those it took by again()"
                )
            if record.waits == name and not record.lease:
                record = record._replace(due=now)
            changes = docs.changing(record) | {"pending": [*pending.values(), entry], "signal": entry}
            if await self._put(id, stored, changes, value):
                return record, True
        raise _refused(id)

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        for is_known in (True, False):  # what is remembered may be outdated
            stored = (self._known.get(record.id) or ABSENT) if is_known else await self._get(record.id)
            if entry := docs.pending(stored.fields).get(name):
                data = await self._read_value(record.id, "signals", docs.keys_of(entry)[0])
                if data is not None:
                    return data
        return None

    async def _remove(self, id: str, held: Record | None) -> None:
        """Remove an execution, and all that others have left behind below it."""

        def fits(stored: Stored) -> bool:
            return stored.time is not None if held is None else docs.is_held(stored, held)

        stored, repeated = self._known.get(id) or ABSENT, False
        for _ in range(_ATTEMPTS):
            # What is there before the record is removed, or seen to be absent, no later one can come to use.
            below = [*await self._all_of(id, "steps"), *await self._all_of(id, "signals")]
            if not fits(stored):
                stored = await self._get(id)
            if stored.time is None and (held is None or repeated):  # it is gone, and it may be we who did it
                await self._requests.send_each(below, docs.removal)
                return
            if held is not None and not fits(stored):
                raise Fenced(id, held.token)
            done = await self._apply(id, stored, None, gone=below)
            if done:
                return
            stored, repeated = ABSENT, repeated or done is None
        raise _refused(id)

    async def _change(
        self,
        held: Record,
        changes: Fields,
        value: Value | None,
        gone: Sequence[Any] = (),
        *,
        absent: str | None = None,
        taken: str | None = None,
    ) -> None:
        """Write changes and a value, and remove documents, as long as the record is held."""
        stored = self._known.get(held.id) or ABSENT
        for _ in range(_ATTEMPTS):
            if not docs.is_held(stored, held, absent):
                stored = await self._get(held.id)
            if not docs.is_held(stored, held, absent):
                await self._abandon(value)
                raise Fenced(held.id, held.token)
            names, entries = docs.take(stored.fields, absent, taken)
            doomed = [*gone, *self._signal_documents(held.id, entries)]
            if await self._put(held.id, stored, names | changes, value, doomed):
                return
            stored = ABSENT
        raise _refused(held.id)

    async def _put(
        self, id: str, stored: Stored, changes: Fields, value: Value | None = None, gone: Sequence[Any] = ()
    ) -> bool:
        """Write a record that is still as it was read, and a value with it; tell whether it was."""
        old, lives = stored.fields, None
        if value is not None and stored.time is None and docs.parts_of(value):  # so that a removal is noticed
            await self._apply(id, stored, docs.RESERVED)
            return False
        if self._ttl is not None:
            expires = docs.expires_at(old | changes, self._ttl)
            until, lives = old.get("until", 0.0), old.get("promised", 0.0)
            if expires > lives:
                lives = expires + self._ttl
                if old:  # who writes a document from now on must know of this, before the older ones can follow
                    await self._apply(id, stored, {"promised": lives})
                    return False
            if expires > until:
                until = lives
                renew = partial(docs.renewal, lives=until)
                if not await self._requests.send_each(await self._belongings(id, old), renew):
                    return False
            changes = changes | docs.expiring(expires) | {"until": until, "promised": lives}
        if value is None:
            return bool(await self._apply(id, stored, changes, gone=gone))
        if lives not in value.written:
            await self._requests.send_all(docs.parts_to_write(value, lives), TOGETHER)
            value.written.add(lives)
        return bool(await self._apply(id, stored, changes, docs.head_of(value, lives), gone=gone))

    async def _abandon(self, value: Value | None) -> None:
        """Remove the parts of a value that was refused, unless it was written after all."""
        if value is not None and value.written and (parts := docs.parts_of(value)):
            with suppress(StorageError):
                head = await self._requests.ask(value.document.get)
                if (head.to_dict() or {}).get("parts") != value.stem:
                    await self._requests.send_each(parts, docs.removal)

    async def _apply(
        self, id: str, stored: Stored, changes: Fields | None, *others: Write, gone: Sequence[Any] = ()
    ) -> list[Any] | None:
        """Do all this in one request if the record is still as it was read, or else nothing.

        Args:
            id: Whose record.
            stored: The record as it was read.
            changes: What to write of it; ``None`` removes it.
            others: What else to do.
            gone: Documents that nobody reads afterwards; more than one request can hold are removed after it.

        Returns:
            As `Requests.send`.
        """
        unchanged = None if stored.time is None else self._client.write_option(last_update_time=stored.time)
        write = docs.write_of(self._document(id), stored, changes, unchanged)
        along = TOGETHER - 2  # besides the record and a value
        done = await self._requests.send([write, *others, *map(docs.removal, gone[:along])])
        self._known.put(id, None)
        if done:
            if changes is not None:
                self._remember(id, Stored(done[0].update_time, stored.fields | changes))
            with suppress(StorageError):
                await self._requests.send_each(gone[along:], docs.removal)
        return done

    async def _get(self, id: str) -> Stored:
        """Read a record's document."""
        found = docs.stored(await self._requests.ask(self._document(id).get))
        self._remember(id, found)
        return found

    def _remember(self, id: str, stored: Stored) -> None:
        fields = {name: value for name, value in stored.fields.items() if name != "input"}
        self._known.put(id, Stored(stored.time, fields))

    async def _load(self, id: str) -> tuple[Stored, Record | None]:
        """Read a record with its input."""
        seen = None
        while (stored := await self._get(id)).fields:
            record = await self._record(id, stored)
            if record is not None:
                return stored, record
            if stored.time == seen:
                raise StorageError(f"Firestore: the input of execution {id!r} is missing: delete({id!r})")
            seen = stored.time
        return stored, None

    async def _record(self, id: str, stored: Stored) -> Record | None:
        """Return the record of a document; none if that has expired, or its input was removed in the meantime."""
        fields, input = stored.fields, stored.fields.get("input")
        if fields and input is None:
            input = await self._read_value(id, "steps", docs.step_key(fields["run"], docs.INPUT))
        return None if input is None else Record(id, *({**fields, "input": input}[name] for name in Record._fields[1:]))

    async def _list(self, query: Any, limit: int) -> list[Record]:
        """Return up to `limit` records of a query that are there and have not expired."""
        found = list[Record]()
        while True:
            page = await self._requests.ask(query.limit(limit).get)
            for each in page:
                if docs.is_execution(each) and (record := await self._record(each.id[2:], docs.stored(each))):
                    found.append(record)
            if len(page) < limit or len(found) >= limit:
                return found[:limit]
            query = query.start_after(page[-1])

    async def _read_value(self, id: str, name: str, key: str) -> bytes | None:
        """Return the data of one document, if it is there."""
        page = await self._read_values(self._below(id, name), key, f"{key}!")
        return page[0]["data"] if page else None

    async def _read_values(self, collection: Any, start: str, stop: str) -> list[Fields]:
        """Return values in full: the first there is, and more as long as their size stays moderate."""
        page, room, whole = list[Fields](), _PAGE, BytesIO()

        def take(found: Any) -> bool:
            nonlocal room
            page.append(found.to_dict())
            room -= len(page[-1]["data"])
            return room > 0 and "parts" not in page[-1]

        await self._requests.stream(docs.between(collection, start, stop), take)
        if not page or "parts" not in page[-1]:
            return page
        *small, large = page
        if small:
            return small
        stem = large["parts"]
        parts = docs.between(collection, f"{stem}-", f"{stem}.")
        await self._requests.stream(parts, lambda part: whole.write(part.get("data")))
        return [large | {"data": whole.getvalue()}] if whole.tell() == large["size"] else []

    async def _all_of(self, id: str, name: str, start: str = "!", stop: str = "~~") -> list[Any]:
        """Return the documents in a collection below a record."""
        return await self._requests.find(docs.between(self._below(id, name), start, stop))

    async def _belongings(self, id: str, fields: Fields) -> list[Any]:
        """Return all that belongs to an execution."""
        results = await self._all_of(id, "steps", f"{fields['run']}-", f"{fields['run']}.") if fields else []
        return results + self._signal_documents(id, fields.get("pending", ()))

    def _signal_documents(self, id: str, entries: Iterable[str]) -> list[Any]:
        signals = self._below(id, "signals")
        return [signals.document(key) for entry in entries for key in docs.keys_of(entry)]

    def _document(self, id: str) -> Any:
        if "/" in id:
            raise InvalidId(id)
        return self._records.document(f"x-{id}")  # names like __this__ are not allowed

    def _below(self, id: str, name: str) -> Any:
        return self._document(id).collection(name)

    def _result(self, record: Record, result: Result) -> Value:
        document = self._below(record.id, "steps").document(docs.step_key(record.run, result.step))
        return Value(document, result._asdict(), f"{record.run}-p{new_run()}", set())

    def _large_input(self, record: Record) -> Value | None:
        large = Result(docs.INPUT, "input", data=record.input)
        return self._result(record, large) if len(record.input) > docs.INLINE else None


def _refused(id: str) -> StorageError:
    return StorageError(f"Firestore: others have changed execution {id!r} {_ATTEMPTS} times before we could: try again")
