"""What lies below an execution in Firestore, its results and signals: values of any size, large ones in parts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from math import ceil
from operator import methodcaller
from typing import Any, NamedTuple

from ..errors import StorageError
from ..storage import Record, Result, new_run
from . import firestore_documents as docs
from .clients import split
from .firestore_documents import Fields, Write
from .firestore_requests import TOGETHER, Requests

PART = 900_000
"""Bytes of data in one document: with all else in it below the limit of 1 MiB."""

_PAGE = 1 << 20
"""Bytes after which a page of results ends."""


class Value(NamedTuple):
    """What is written with a record, in parts when it is too large for one document."""

    document: Any
    fields: Fields
    stem: str
    written: set[float | None]
    """Until when those parts of it live that were written."""

    @property
    def parts(self) -> list[Any]:
        """The documents of its parts: none if it needs none."""
        size = len(self.fields["data"])
        collection, count = self.document.parent, ceil(size / PART) if size > PART else 0
        return [collection.document(docs.part_key(self.stem, number)) for number in range(count)]

    def head(self, lives: float | None) -> Write:
        """Return how to write its document, without which nobody reads its parts."""
        parts = {"data": b"", "size": len(self.fields["data"]), "parts": self.stem} if self.parts else {}
        return methodcaller("set", self.document, self.fields | docs.expiring(lives) | parts)


class Values:
    """What the collections ``steps`` and ``signals`` hold that each execution has.

    Args:
        records: The collection of the executions.
        requests: What is asked of Firestore.
    """

    def __init__(self, records: Any, requests: Requests) -> None:
        self._records, self._requests = records, requests

    def of_result(self, record: Record, result: Result) -> Value:
        """Return what is to be written of a result."""
        document = self._below(record.id, "steps").document(docs.step_key(record.run, result.step))
        return Value(document, result._asdict(), f"{record.run}-p{new_run()}", set())

    def of_input(self, record: Record) -> Value | None:
        """Return what is to be written of an input, unless it stands in the record."""
        large = Result(docs.INPUT, "input", data=record.input)
        return self.of_result(record, large) if len(record.input) > docs.INLINE else None

    def of_signal(self, id: str, name: str, data: bytes) -> Value:
        """Return what is to be written of a signal."""
        key = new_run()
        return Value(self._below(id, "signals").document(key), {"name": name, "data": data}, key, set())

    async def write_parts(self, value: Value, lives: float | None) -> None:
        """Write the parts of a value, each made when it is sent."""
        parts, expires = zip(value.parts, split(value.fields["data"], PART), strict=True), docs.expiring(lives)
        writes = (methodcaller("set", document, {"data": part, **expires}) for document, part in parts)
        await self._requests.send_all(writes, TOGETHER)
        value.written.add(lives)

    async def abandon(self, value: Value | None) -> None:
        """Remove the parts of a value that was refused, unless it was written after all."""
        if value is not None and value.written:
            with suppress(StorageError):
                head = await self._requests.ask(value.document.get)
                if (head.to_dict() or {}).get("parts") != value.stem:
                    await self._requests.send_each(value.parts, docs.removal)

    async def read_one(self, id: str, name: str, key: str) -> bytes | None:
        """Return the data of one value, if it is there."""
        page = await self.read(id, name, key, f"{key}!")
        return page[0]["data"] if page else None

    async def read(self, id: str, name: str, start: str, stop: str) -> list[Fields]:
        """Return values in full: the first there is, and more as long as their size stays moderate.

        Args:
            id: Of which execution.
            name: ``steps`` or ``signals``.
            start: The first key.
            stop: That after the last one.
        """
        collection, page, room, whole = self._below(id, name), list[Fields](), _PAGE, BytesIO()

        def take(found: Any) -> bool:
            nonlocal room
            page.append(found.to_dict())
            room -= len(page[-1]["data"])
            return room > 0 and "parts" not in page[-1]

        await self._requests.stream(docs.between(collection, start, stop), take)
        large = page.pop() if page and "parts" in page[-1] else None
        if page or large is None:
            return page
        parts = docs.between(collection, f"{large['parts']}-", f"{large['parts']}.")
        await self._requests.stream(parts, lambda part: whole.write(part.get("data")))
        return [large | {"data": whole.getvalue()}] if whole.tell() == large["size"] else []

    async def all_of(self, id: str, name: str, start: str = "!", stop: str = "~~") -> list[Any]:
        """Return the documents that there are, among them those that nobody reads."""
        query = docs.between(self._below(id, name), start, stop)
        return [found.reference for found in await self._requests.ask(query.select([]).get)]

    async def belongings(self, id: str, fields: Fields) -> list[Any]:
        """Return the documents that belong to an execution, whose own one has these fields."""
        results = await self.all_of(id, "steps", f"{fields['run']}-", f"{fields['run']}.") if fields else []
        return results + self.signal_documents(id, fields.get("pending", ()))

    def signal_documents(self, id: str, entries: Iterable[str]) -> list[Any]:
        """Return the documents of signals, and those of their parts."""
        signals = self._below(id, "signals")
        return [signals.document(key) for entry in entries for key in docs.keys_of(entry)]

    def _below(self, id: str, name: str) -> Any:
        return docs.document(self._records, id).collection(name)
