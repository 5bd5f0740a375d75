"""Executions in Firestore: a document for each, and collections below it for its results and signals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..codec import Codec
from ..errors import Fenced, InvalidName, StorageError
from ..storage import CLOSED, Record, Result, is_name, new_run, refuses, settle
from . import firestore_documents as docs
from .clients import ClientJournal, check_ttl, extra, plain_or_async
from .firestore_documents import ABSENT, Fields, Stored
from .firestore_executions import Executions
from .firestore_requests import Requests
from .firestore_values import Value, Values

with extra("firestore"):
    from google.cloud.firestore import AsyncClient, Client, FieldFilter

_ATTEMPTS = 100
"""How often a change is tried while others change the same execution: each time one of them has succeeded."""


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
        TypeError: When `client` is none.
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
        if not isinstance(client, (Client, AsyncClient)):
            raise TypeError(f"client= is a Client or an AsyncClient of google.cloud.firestore, not {client!r:.100}")
        if not re.fullmatch(r"(?!\.{1,2}$|__.*__$)[^/\s]{1,200}", collection):
            raise ValueError(
                f"collection= is the name of a collection, 1 to 200 characters without / and spaces, and not like "
                f"__this__: not {collection!r}"
            )
        self._client: Any = client
        self._records: Any = self._client.collection(collection)
        self._requests = Requests(client, timeout)
        self._values = Values(self._records, self._requests)
        self._executions = Executions(self._records, check_ttl(ttl), self._requests, self._values)

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
            stored, record = await self._executions.load(wanted.id)
            if record is None:
                if not create:
                    return None, False
                record, changes = wanted, docs.fields_of(wanted) | {"pending": []}
                value = self._values.of_input(wanted)  # not that of an attempt before, which may have been removed
            elif stored.fields["claim"] == nonce:  # the answer was lost, and Google's client has asked again
                return record, True
            elif record.lease > now or refuses(record, wanted, create):
                return record, False
            else:
                record = record._replace(token=record.token + 1, lease=wanted.lease)
                changes, value = docs.changing(record), None
            if await self._executions.put(wanted.id, stored, changes | {"claim": nonce}, value):
                return record, True
            await self._values.abandon(value)
        raise _refused(wanted.id)

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        value = None if result is None else self._values.of_result(record, result)
        await self._change(record._replace(token=token), docs.changing(record), value, absent=absent, taken=taken)

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        await self._change(record, {}, self._values.of_result(record, result))

    async def _restart(self, record: Record, held: Record) -> None:
        gone = await self._values.all_of(held.id, "steps")
        await self._change(held, docs.fields_of(record), self._values.of_input(record), gone)

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:  # noqa: ARG002
        """Read a page of results."""
        keys = (docs.step_key(record.run, start), docs.step_key(record.run, stop))
        page = await self._values.read(record.id, "steps", *keys)
        return [Result(*(fields[name] for name in Result._fields)) for fields in page]

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        return (await self._executions.load(id))[1]

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        query = self._records.where(filter=FieldFilter("rings", "<=", now)).order_by("rings")
        return await self._executions.find(query, limit)

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        query = self._records.order_by("__name__").start_after({"__name__": docs.document(self._records, after)})
        query = query.end_before({"__name__": self._records.document("x.")})
        for field, value in (("status", status), ("workflow", workflow)):
            if value is not None:
                query = query.where(filter=FieldFilter(field, "==", value))
        return await self._executions.find(query, limit)

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        if not is_name(name):
            raise InvalidName(name)
        sent, run, value = set[str](), None, None
        for _ in range(_ATTEMPTS):
            stored, record = await self._executions.load(id)
            pending = docs.pending(stored.fields)
            if sent & {stored.fields.get("signal"), *pending.values()}:  # Google's client has asked again, as in claim
                return record, True
            if record is None or record.status in CLOSED or name in pending or name in stored.fields["closed"]:
                await self._values.abandon(value)
                return record, False
            if value is None or record.run != run:  # what lay below another run may have been removed
                await self._values.abandon(value)
                run, value = record.run, self._values.of_signal(id, name, data)
            entry = docs.entry_of(name, value.stem, len(value.parts))
            sent.add(entry)
            signals = docs.add(stored.fields, entry, id)
            if record.waits == name and not record.lease:
                record = record._replace(due=now)
            if await self._executions.put(id, stored, docs.changing(record) | signals, value):
                return record, True
        raise _refused(id)

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        for is_known in (True, False):  # what is remembered may be outdated
            stored = self._executions.known(record.id) if is_known else await self._executions.get(record.id)
            if entry := docs.pending(stored.fields).get(name):
                data = await self._values.read_one(record.id, "signals", docs.keys_of(entry)[0])
                if data is not None:
                    return data
        return None

    async def _remove(self, id: str, held: Record | None) -> None:
        """Remove an execution, and all that others have left behind below it."""

        def fits(stored: Stored) -> bool:
            return stored.time is not None if held is None else docs.is_held(stored, held)

        stored, repeated = self._executions.known(id), False
        for _ in range(_ATTEMPTS):
            # What is there before the record is removed, or seen to be absent, no later one can come to use.
            below = [*await self._values.all_of(id, "steps"), *await self._values.all_of(id, "signals")]
            if not fits(stored):
                stored = await self._executions.get(id)
            if stored.time is None and (held is None or repeated):  # it is gone, and it may be we who did it
                await self._requests.send_each(below, docs.removal)
                return
            if held is not None and not fits(stored):
                raise Fenced(id, held.token)
            done = await self._executions.apply(id, stored, None, gone=below)
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
        stored = self._executions.known(held.id)
        for _ in range(_ATTEMPTS):
            if not docs.is_held(stored, held, absent):
                stored = await self._executions.get(held.id)
            if not docs.is_held(stored, held, absent):
                await self._values.abandon(value)
                raise Fenced(held.id, held.token)
            names, entries = docs.take(stored.fields, absent, taken)
            doomed = [*gone, *self._values.signal_documents(held.id, entries)]
            if await self._executions.put(held.id, stored, names | changes, value, doomed):
                return
            stored = ABSENT
        raise _refused(held.id)


def _refused(id: str) -> StorageError:
    return StorageError(f"Firestore: others have changed execution {id!r} {_ATTEMPTS} times before we could: try again")
