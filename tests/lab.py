"""Executors over any kind of store, with one clock and one bell, asked in a blocking way."""

# Loops here take at least one turn, and a `try` that is left has been entered.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sequential import FlowExecutor, Paused, Status
from sequential.blocking import is_async, running_loop, settle
from sequential.record import Record
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock
from tests.support import AsyncJournal, AsyncPlainStorage, PlainStorage

PLAIN = ("memory", "sqlite")
JOURNALS = (*PLAIN, "async")
EVERY = (*JOURNALS, "five", "async five")
MANY = 99
"""Invocations that no test needs."""


class Lab:
    """A store of one kind, and what executors over it share.

    Args:
        kind: One of `EVERY`.
        folder: Where a file may be.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.plain: Any
        """The same store for whoever cannot wait: a tool that asks for something."""
        self.storage: Any
        if kind == "five":
            self.storage = self.plain = PlainStorage()
        elif kind == "async five":
            self.storage = AsyncPlainStorage()
            self.plain = self.storage.inner
        else:
            self.plain = (
                SQLiteStorage(folder / "flows.db", synchronous="NORMAL") if kind == "sqlite" else MemoryStorage()
            )
            self.storage = AsyncJournal(self.plain) if kind == "async" else self.plain
        self.clock = FakeClock()
        self.rung: list[str] = []
        self.runner = asyncio.Runner()

    def flow(self, *, on: Any = None, **options: Any) -> Asked:
        """Return an executor over the store, or over one `on` top of it."""
        options = {"clock": self.clock, "resume": self.rung.append, **options}
        inner = FlowExecutor(self.plain, **options)
        outer = inner if on is None and self.storage is self.plain else FlowExecutor(on or self.storage, **options)
        return Asked(outer, inner, self.runner)

    def status(self, id: str) -> Status:
        """Return how an execution stands that is there."""
        status = FlowExecutor(self.plain, clock=self.clock).status_sync(id)
        assert status is not None
        return status

    def record(self, id: str) -> Record:
        """Return the record of an execution that is there."""
        record: Record | None = self.plain.read(id)[0]
        assert record is not None
        return record

    def go_on(self, id: str = "id", **options: Any) -> Any:
        """Resume an execution until it rests or ends, without a budget."""
        flow = self.flow(**options)
        for _ in range(MANY):
            value = flow.resume(id)
            if not isinstance(value, Paused) or value.reason in {"sleep", "wait", "busy", "parked"}:
                return value
        raise AssertionError(value)


class Asked:
    """The methods of an executor, each waited for: under an event loop where the store or the hook needs one.

    What asks while a loop runs, a tool, is served by an executor over the plain store.
    """

    def __init__(self, outer: FlowExecutor, inner: FlowExecutor, runner: asyncio.Runner) -> None:
        self.outer, self.inner, self.runner = outer, inner, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if running_loop() is not None:
            return getattr(self.inner, f"{name}_sync")  # type: ignore[no-any-return]
        if self.outer is self.inner and not is_async(self.outer.setup.call):
            return getattr(self.outer, f"{name}_sync")  # type: ignore[no-any-return]

        async def wait(*arguments: Any, **options: Any) -> Any:
            return await settle(getattr(self.outer, name)(*arguments, **options))

        return lambda *arguments, **options: self.runner.run(wait(*arguments, **options))

    def to_end(self, *arguments: Any) -> list[Any]:
        """Execute until it does not pause; return what each invocation returned."""
        outcomes = [self.execute(*arguments)]
        while isinstance(outcomes[-1], Paused):
            assert len(outcomes) < MANY
            outcomes.append(self.execute(*arguments))
        return outcomes


@contextmanager
def open_lab(kind: str, folder: Path) -> Iterator[Lab]:
    lab = Lab(kind, folder)
    with lab.runner:
        yield lab
    if kind == "sqlite":
        lab.plain.close()
