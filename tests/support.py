"""Storages and hooks that several tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sequential.blocking import Maybe, settle
from sequential.journal import Journal
from sequential.stores.memory import MemoryStorage
from sequential.testing import JournalAround

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


class AsyncJournal(JournalAround):
    """A Journal, each method of which really waits for the event loop, before and after it does its work."""

    def __init__(self, inner: Journal | None = None) -> None:
        super().__init__(inner or MemoryStorage())

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        await asyncio.sleep(0)
        done = await settle(method(*arguments, **options))
        await asyncio.sleep(0)
        return done


def echo(category: str, name: str, input: Any) -> Any:
    return input
