"""Executions in this process's memory: for tests, and for scripts that need not survive."""

from __future__ import annotations

from _thread import allocate_lock
from itertools import islice

from ..codec import Codec, JSONCodec
from ..errors import Fenced
from ..storage import CLOSED, Journal, Record, Result, refuses

_PAGE = 1000
"""Results in a page: they are in memory already, so only the list itself costs anything."""


class MemoryStorage(Journal):
    """A Journal in memory, safe with any number of threads.

    It holds encoded values, so that a unit test sees exactly what a database would give back.

    Args:
        codec: How values become bytes; strict JSON when left out.
    """

    def __init__(self, *, codec: Codec | None = None) -> None:
        self.codec = codec or JSONCodec()
        self._lock = allocate_lock()
        self._records: dict[str, Record] = {}
        self._results: dict[str, dict[int, Result]] = {}
        self._signals: dict[str, dict[str, bytes | None]] = {}  # `None`: taken, and closed

    @classmethod
    def from_url(cls, url: str, *, codec: Codec | None = None) -> MemoryStorage:  # noqa: ARG003 - it says nothing more
        """Return a new storage for ``memory://``."""
        return cls(codec=codec)

    def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        with self._lock:
            record = self._records.get(wanted.id)
            if record is None:
                if not create:
                    return None, False
                record = wanted
                self._results[wanted.id] = {}
                self._signals[wanted.id] = {}
            elif record.lease <= now and not refuses(record, wanted, create):
                record = record._replace(token=record.token + 1, lease=wanted.lease)
            else:
                return record, False
            self._records[wanted.id] = record
            return record, True

    def commit(
        self,
        record: Record,
        token: int,
        result: Result | None = None,
        *,
        absent: str | None = None,
        taken: str | None = None,
    ) -> None:
        """Write a record and a result."""
        with self._lock:
            self._check(record, token)
            signals = self._signals[record.id]
            if absent is not None:
                if signals.get(absent) is not None:
                    raise Fenced(record.id, token)
                signals.pop(absent, None)
            if taken is not None:
                signals[taken] = None
            self._records[record.id] = record
            if result is not None:
                self._results[record.id][result.step] = result

    def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        with self._lock:
            self._check(record, record.token)
            self._results[record.id][result.step] = result

    def restart(self, record: Record, held: Record) -> None:
        """Replace a record and forget its results."""
        with self._lock:
            self._check(held, held.token)
            self._records[record.id] = record
            self._results[record.id] = {}
            signals = self._signals[record.id]
            self._signals[record.id] = {name: data for name, data in signals.items() if data is not None}

    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:  # noqa: ARG002
        """Read a page of results."""
        with self._lock:
            stored = self._records.get(record.id)
            saved = self._results[record.id] if stored and stored.run == record.run else {}
            return list(islice((saved[step] for step in range(start, stop) if step in saved), _PAGE))

    def read(self, id: str) -> Record | None:
        """Read a record."""
        return self._records.get(id)

    def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        with self._lock:
            ripe = [(record.rings_at, record) for record in self._records.values() if record.rings_at is not None]
        return [record for at, record in sorted(ripe, key=lambda pair: pair[0]) if at <= now][:limit]

    def find(self, after: str, limit: int, status: str | None = None, workflow: str | None = None) -> list[Record]:
        """List records."""
        with self._lock:
            found = [
                record
                for record in self._records.values()
                if record.id > after and status in {None, record.status} and workflow in {None, record.workflow}
            ]
        return sorted(found, key=lambda record: record.id)[:limit]

    def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        with self._lock:
            record = self._records.get(id)
            if record is None or record.status in CLOSED or name in self._signals[id]:
                return record, False
            self._signals[id][name] = data
            if record.waits == name and not record.lease:
                record = self._records[id] = record._replace(due=now)
            return record, True

    def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        with self._lock:
            return self._signals.get(record.id, {}).get(name)

    def remove(self, id: str, held: Record | None = None) -> None:
        """Remove an execution."""
        with self._lock:
            if held is not None:
                self._check(held, held.token)
            self._records.pop(id, None)
            self._results.pop(id, None)
            self._signals.pop(id, None)

    def _check(self, record: Record, token: int) -> None:
        stored = self._records.get(record.id)
        if stored is None or stored.run != record.run or stored.token != token:
            raise Fenced(record.id, token)
