"""Storages and hooks that several tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sequential.storage import Journal, Maybe, Record, Result, settle
from sequential.stores.memory import MemoryStorage

T = TypeVar("T")


class PlainStorage:
    """The five methods as a user writes them, over a dict."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, int]] = {}
        self.results: dict[tuple[str, int], Any] = {}
        self.writes: list[tuple[Any, ...]] = []

    def get(self, id: str) -> dict[str, int] | None:
        return self.states.get(id)

    def set(self, id: str, state: dict[str, int]) -> None:
        self.writes.append(("set", id, state))
        self.states[id] = state

    def delete(self, id: str) -> None:
        self.writes.append(("delete", id))
        self.states.pop(id, None)
        self.results = {key: data for key, data in self.results.items() if key[0] != id}

    def get_result(self, id: str, step: int) -> Any:
        return self.results[id, step]

    def set_result(self, id: str, step: int, data: Any) -> None:
        self.writes.append(("set_result", id, step, data))
        self.results[id, step] = data


class AsyncPlainStorage:
    """The five methods, each of which really waits for the event loop."""

    def __init__(self) -> None:
        self.inner = PlainStorage()

    async def get(self, id: str) -> dict[str, int] | None:
        await asyncio.sleep(0)
        return self.inner.get(id)

    async def set(self, id: str, state: dict[str, int]) -> None:
        await asyncio.sleep(0)
        self.inner.set(id, state)

    async def delete(self, id: str) -> None:
        await asyncio.sleep(0)
        self.inner.delete(id)

    async def get_result(self, id: str, step: int) -> Any:
        await asyncio.sleep(0)
        return self.inner.get_result(id, step)

    async def set_result(self, id: str, step: int, data: Any) -> None:
        await asyncio.sleep(0)
        self.inner.set_result(id, step, data)


class AsyncJournal(Journal):
    """A Journal, each method of which really waits for the event loop, before and after it does its work."""

    def __init__(self, inner: Journal | None = None) -> None:
        self.inner = inner or MemoryStorage()
        self.codec = self.inner.codec

    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        return await self._do(self.inner.claim, wanted, now, create)

    async def commit(self, record: Record, token: int, result: Result | None = None) -> None:
        await self._do(self.inner.commit, record, token, result)

    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        return await self._do(self.inner.results, record, start, stop)

    async def read(self, id: str) -> Record | None:
        return await self._do(self.inner.read, id)

    async def due(self, now: float, limit: int) -> list[Record]:
        return await self._do(self.inner.due, now, limit)

    async def remove(self, id: str, held: Record | None = None) -> None:
        await self._do(self.inner.remove, id, held)

    async def _do(self, method: Callable[..., Maybe[T]], *arguments: Any) -> T:
        await asyncio.sleep(0)
        done = await settle(method(*arguments))
        await asyncio.sleep(0)
        return done


def echo(category: str, name: str, input: Any) -> Any:
    return input
