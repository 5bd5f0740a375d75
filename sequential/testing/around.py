"""A Journal around another, with one place through which every call goes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..blocking import Maybe
from ..journal import Journal
from ..record import Entry, Record

T = TypeVar("T")


class JournalAround(Journal):
    """A Journal that hands every call on to another: write `around` to delay, count, refuse or interrupt them.

    Args:
        inner: Where the calls go.
    """

    def __init__(self, inner: Journal) -> None:
        self.inner = inner
        self.codec, self.part_size, self.write_size = inner.codec, inner.part_size, inner.write_size

    @abstractmethod
    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        """Make a call, ``await settle(method(*arguments, **options))``, and whatever belongs before and after it.

        Args:
            what: ``"read"``, ``"write"``, ``"due"`` or ``"find"``.
            method: The inner Journal's method of this name.
            arguments: Its arguments.
            options: Those it takes by name.
        """

    async def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> tuple[Record | None, list[Entry]]:
        """Hand on."""
        return await self.around("read", self.inner.read, id, start, stop)

    async def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> bool:
        """Hand on."""
        return await self.around("write", self.inner.write, old, new, entries, flush=flush)

    async def due(self, now: float, limit: int) -> list[Record]:
        """Hand on."""
        return await self.around("due", self.inner.due, now, limit)

    async def find(
        self,
        after: str,
        limit: int,
        status: str | None = None,
        workflow: str | None = None,
        before: float | None = None,
    ) -> list[Record]:
        """Hand on."""
        return await self.around("find", self.inner.find, after, limit, status, workflow, before)

    def create_schema(self) -> Any:
        """Hand on."""
        return self.inner.create_schema()

    def close(self) -> Any:
        """Hand on."""
        return self.inner.close()
