"""Keep an invocation's lease while a call outlasts a third of it.

A slow tool must not be taken for a dead process, or another invocation would run it again.  While a call
blocks, nothing but a second thread can write, so one waits beside it; while a call is awaited, a timer of
the event loop does, and no thread is needed.
"""

from __future__ import annotations

import sys
from _thread import LockType, allocate_lock, start_new_thread  # `threading` takes longer to import than all of this
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from .blocking import is_async, needs_event_loop
from .errors import EventLoopNeeded
from .storage import Maybe, Record, settle

T = TypeVar("T")


_LONGEST = 86_400.0
"""Seconds between two renewals at most: what waits cannot wait for ever."""


class Lease:
    """The lease of one invocation.

    Args:
        renew: Writes a record again with a later end of its lease.  A renewal that comes too late is refused
            by the record's token, and one that fails leaves the lease as it was, so its errors are of no concern.
        length: How long a lease is, in seconds.
    """

    __slots__ = ("_end", "_every", "_held", "_renew", "_renewing")

    def __init__(self, renew: Callable[[Record], Maybe[None]], length: float) -> None:
        self._renew = renew
        self._every = min(length / 3, _LONGEST)
        self._held: Record | None = None
        self._renewing = allocate_lock()
        self._end: LockType | None = None

    def hold(self, record: Record, call: object) -> None:
        """Keep the lease of `record` from now on, though `call` may block this thread."""
        if record.lease:
            if self._end is None and not is_async(call):
                self._end = allocate_lock()
                self._end.acquire()
                with suppress(RuntimeError):  # there are no threads (WebAssembly): only awaited calls are covered
                    start_new_thread(self._watch, (self._end,))
            self._held = record

    def let_go(self) -> None:
        """Keep it no longer; if a renewal is just being written, wait for that."""
        self._held = None
        if self._renewing.locked():
            with self._renewing:
                pass

    async def hold_during(self, outcome: Awaitable[T], record: Record) -> T:
        """Return what `outcome` comes to, and keep the lease of `record` meanwhile."""
        loop = _running_loop()
        if loop is None:
            return await _without_loop(outcome)
        self.let_go()
        if not record.lease:
            return await outcome
        renewal: Any = None
        timer: Any = None

        async def renew() -> None:
            with suppress(Exception):
                await settle(self._renew(record))

        def tick() -> None:
            nonlocal renewal, timer
            renewal = loop.create_task(renew())
            timer = loop.call_later(self._every, tick)

        timer = loop.call_later(self._every, tick)
        try:
            return await outcome
        finally:
            timer.cancel()
            if renewal is not None:
                await renewal  # many a client refuses two writes at once

    def end(self) -> None:
        """Let the thread go, if there is one."""
        if self._end is not None:
            self._end.release()

    def _watch(self, end: LockType) -> None:
        while not end.acquire(timeout=self._every):
            with self._renewing, suppress(Exception):
                if self._held is not None:
                    written = self._renew(self._held)
                    if isinstance(written, Coroutine):  # an async store belongs to its loop, not to this thread
                        written.close()


def _running_loop() -> Any:
    """Return the running event loop, or ``None``; where asyncio was never imported there is none."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio and asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _without_loop(outcome: Awaitable[T]) -> T:
    try:
        return await outcome
    except RuntimeError as error:
        if needs_event_loop(error):
            raise EventLoopNeeded from error
        raise
