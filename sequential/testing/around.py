"""A Journal around another, with one place through which every call goes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from ..storage import Journal, Maybe, Record, Result

T = TypeVar("T")


class JournalAround(Journal):
    """A Journal that hands every call on to another: write `around` to delay, count, refuse or interrupt them.

    Args:
        inner: Where the calls go.
    """

    def __init__(self, inner: Journal) -> None:
        self.inner = inner
        self.codec = inner.codec

    @abstractmethod
    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        """Make a call, ``await settle(method(*arguments, **options))``, and whatever belongs before and after it.

        Args:
            what: The method's name, and what it is for.
            method: The inner Journal's method.
            arguments: Its arguments.
            options: Those it takes by name.
        """

    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Hand on."""
        return await self.around("claim", self.inner.claim, wanted, now, create)

    async def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        """Hand on."""
        what = f"commit of step {record.step} as {record.status}"
        await self.around(what, self.inner.commit, record, token, result, **signal)

    async def save(self, record: Record, result: Result) -> None:
        """Hand on."""
        await self.around(f"save of step {result.step}", self.inner.save, record, result)

    async def restart(self, record: Record, held: Record) -> None:
        """Hand on."""
        await self.around("restart", self.inner.restart, record, held)

    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        """Hand on."""
        return await self.around("results", self.inner.results, record, start, stop, brief)

    async def read(self, id: str) -> Record | None:
        """Hand on."""
        return await self.around("read", self.inner.read, id)

    async def due(self, now: float, limit: int) -> list[Record]:
        """Hand on."""
        return await self.around("due", self.inner.due, now, limit)

    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """Hand on."""
        return await self.around("find", self.inner.find, after, limit, status, workflow)

    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Hand on."""
        return await self.around(f"signal {name}", self.inner.signal, id, name, data, now)

    async def received(self, record: Record, name: str) -> bytes | None:
        """Hand on."""
        return await self.around("received", self.inner.received, record, name)

    async def remove(self, id: str, held: Record | None = None) -> None:
        """Hand on."""
        await self.around("remove", self.inner.remove, id, held)

    def create_schema(self) -> Any:
        """Hand on."""
        return self.inner.create_schema()

    def close(self) -> Any:
        """Hand on."""
        return self.inner.close()
