"""The documents of executions in Firestore: written as long as they are as they were read, with all that goes along."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ..errors import StorageError
from ..storage import Record
from . import firestore_documents as docs
from .clients import Recent
from .firestore_documents import ABSENT, Fields, Stored, Write
from .firestore_requests import TOGETHER, Requests
from .firestore_values import Value, Values

_KNOWN = 1000
"""Records of which the last version is remembered, so that a commit need not read it first."""


class Executions:
    """The collection of the executions.

    Args:
        records: The collection, as the client knows it.
        ttl: Seconds that an execution outlives its last change, or its next one if that is known; ``None``: for ever.
        requests: What is asked of Firestore.
        values: What lies below them.
    """

    def __init__(self, records: Any, ttl: float | None, requests: Requests, values: Values) -> None:
        self._records, self._ttl, self._requests, self._values = records, ttl, requests, values
        self._known = Recent[Stored](_KNOWN)

    def known(self, id: str) -> Stored:
        """Return what is remembered of an execution, without its input: that may be outdated, or nothing at all."""
        return self._known.get(id) or ABSENT

    async def get(self, id: str) -> Stored:
        """Read the document of an execution."""
        found = docs.stored(await self._requests.ask(docs.document(self._records, id).get))
        self._remember(id, found)
        return found

    async def load(self, id: str) -> tuple[Stored, Record | None]:
        """Read an execution with its input."""
        seen = None
        while (stored := await self.get(id)).fields:
            record = await self._record(id, stored)
            if record is not None:
                return stored, record
            if stored.time == seen:
                raise StorageError(f"Firestore: the input of execution {id!r} is missing: delete({id!r})")
            seen = stored.time
        return stored, None

    async def find(self, query: Any, limit: int) -> list[Record]:
        """Return up to `limit` executions of a query that are there and have not expired."""
        found = list[Record]()
        while True:
            page = await self._requests.ask(query.limit(limit).get)
            for each in page:
                if docs.is_execution(each) and (record := await self._record(each.id[2:], docs.stored(each))):
                    found.append(record)
            if len(page) < limit or len(found) >= limit:
                return found[:limit]
            query = query.start_after(page[-1])

    async def put(
        self, id: str, stored: Stored, changes: Fields, value: Value | None = None, gone: Sequence[Any] = ()
    ) -> bool:
        """Create or change an execution that is still as it was read.

        Args:
            id: Which one.
            stored: What was read of it.
            changes: The fields to write.
            value: What to write below it.
            gone: As for `apply`.

        Returns:
            Whether that was done: if not, it is to be read again before the next attempt.
        """
        if value is not None and stored.time is None and value.parts:  # so that a removal is noticed
            await self.apply(id, stored, docs.RESERVED)
            return False
        old, lives = stored.fields, None
        if self._ttl is not None:
            expires = docs.expires_at(old | changes, self._ttl)
            until, lives = old.get("until", 0.0), old.get("promised", 0.0)
            if expires > lives:
                lives = expires + self._ttl
                if old:  # who writes a document from now on must know of this, before the older ones can follow
                    await self.apply(id, stored, {"promised": lives})
                    return False
            if expires > until:
                until, belongings = lives, await self._values.belongings(id, old)
                if not await self._requests.send_each(belongings, partial(docs.renewal, lives=until)):
                    return False
            changes = changes | docs.expiring(expires) | {"until": until, "promised": lives}
        if value is None:
            return bool(await self.apply(id, stored, changes, gone=gone))
        if value.parts and lives not in value.written:
            await self._values.write_parts(value, lives)
        return bool(await self.apply(id, stored, changes, value.head(lives), gone=gone))

    async def apply(
        self, id: str, stored: Stored, changes: Fields | None, *others: Write, gone: Sequence[Any] = ()
    ) -> list[Any] | None:
        """Do all this in one request if an execution is still as it was read, or else nothing.

        Args:
            id: Which one.
            stored: What was read of it.
            changes: The fields to write; ``None`` removes it.
            others: What else to do.
            gone: Documents that nobody reads afterwards; more than one request can hold are removed after it.

        Returns:
            As `Requests.send`.
        """
        write = docs.write_of(docs.document(self._records, id), stored, changes)
        along = TOGETHER - 2  # besides the record and a value
        done = await self._requests.send([write, *others, *map(docs.removal, gone[:along])])
        self._known.put(id, None)
        if done:
            if changes is not None:
                self._remember(id, Stored(done[0].update_time, stored.fields | changes))
            with suppress(StorageError):
                await self._requests.send_each(gone[along:], docs.removal)
        return done

    def _remember(self, id: str, stored: Stored) -> None:
        fields = {name: value for name, value in stored.fields.items() if name != "input"}
        self._known.put(id, Stored(stored.time, fields))

    async def _record(self, id: str, stored: Stored) -> Record | None:
        """Return the record of a document; none if that has expired, or its input was removed in the meantime."""
        fields, input = stored.fields, stored.fields.get("input")
        if fields and input is None:
            input = await self._values.read_one(id, "steps", docs.step_key(fields["run"], docs.INPUT))
        return None if input is None else Record(id, *({**fields, "input": input}[name] for name in Record._fields[1:]))
