"""Executions in this process's memory: for tests, and for scripts that need not survive."""

from __future__ import annotations

from _thread import allocate_lock
from bisect import bisect_left, insort
from collections.abc import Sequence

from ..codec import Codec, JSONCodec
from ..journal import Journal
from ..record import Entry, Record

_PAGE = 1000
"""Entries in a page: they are in memory already, so only the list itself costs anything."""


class MemoryStorage(Journal):
    """A Journal in memory, safe with any number of threads.

    It holds encoded values, so that a unit test sees exactly what a database would give back.

    Args:
        codec: How values become bytes; strict JSON when left out.
    """

    part_size = write_size = 1 << 62

    def __init__(self, *, codec: Codec | None = None) -> None:
        self.codec = codec or JSONCodec()
        self._lock = allocate_lock()
        self._records: dict[str, Record] = {}
        self._runs: dict[str, dict[str, _Run]] = {}

    @classmethod
    def from_url(cls, url: str, *, codec: Codec | None = None) -> MemoryStorage:  # noqa: ARG003 - it says nothing more
        """Return a new storage for ``memory://``."""
        return cls(codec=codec)

    def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> tuple[Record | None, list[Entry]]:
        """Read a record and a page of entries."""
        with self._lock:
            record = self._records.get(id)
            run = self._runs[id].get(record.run) if record is not None else None
            if run is None:
                return record, []
            first = bisect_left(run.order, start)
            return record, [run.entries[at] for at in run.order[first : first + _PAGE] if at[0] < stop]

    def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> bool:
        """Compare, and write."""
        with self._lock:
            id = (old or new)[0]  # type: ignore[index]
            stored = self._records.get(id)
            if (stored and stored.stamp) != (old and old.stamp):
                return False
            if new is None:
                self._records.pop(id, None)
                self._runs.pop(id, None)
                return True
            self._records[id] = new
            runs = self._runs.setdefault(id, {})
            for entry in entries:
                if entry.run not in runs:
                    runs[entry.run] = _Run()
                runs[entry.run].keep(entry)
            if old is not None and old.run != new.run:
                self._runs[id] = {new.run: runs[new.run]} if new.run in runs else {}
            return True

    def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should look at."""
        with self._lock:
            ripe = [(record.due, record) for record in self._records.values() if record.due is not None]
        return [record for at, record in sorted(ripe, key=lambda pair: pair[0]) if at <= now][:limit]

    def find(
        self,
        after: str,
        limit: int,
        status: str | None = None,
        workflow: str | None = None,
        before: float | None = None,
    ) -> list[Record]:
        """List records."""
        with self._lock:
            found = [
                record
                for record in self._records.values()
                if record.id > after
                and status in {None, record.status}
                and workflow in {None, record.workflow}
                and (before is None or record.changed <= before)
            ]
        return sorted(found, key=lambda record: record.id)[:limit]


class _Run:
    """The entries of a run, and their places and parts in order."""

    __slots__ = ("entries", "order")

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int], Entry] = {}
        self.order: list[tuple[int, int]] = []

    def keep(self, entry: Entry) -> None:
        at = entry.place, entry.part
        if at not in self.entries:
            insort(self.order, at)
        self.entries[at] = entry
