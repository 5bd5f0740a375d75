"""Keep an invocation's lease while a call outlasts a third of it.

A slow tool must not be taken for a dead process, or another invocation would run it again.  While a call is
awaited, a timer of the event loop renews.  While a call blocks, only another thread can: one serves all calls
of the process, is started by the first of them and ends when it wakes up and none is left.
"""

from __future__ import annotations

import os
from _thread import allocate_lock, start_new_thread  # `threading` takes longer to import than all of this
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from .blocking import complete, is_async, needs_event_loop, running_loop
from .errors import EventLoopNeeded

T = TypeVar("T")


_LONGEST = 86_400.0
"""Seconds between two renewals at most: what waits cannot wait for ever."""


_IDLE = 1.0
"""Seconds for which the thread stays when it has nothing to do: starting one anew takes longer than many a call."""


class Lease:
    """The lease of one invocation.

    Args:
        renew: Prolongs it in the store.  A renewal that fails leaves the lease as it was, so its errors are of no
            concern.
        seconds: How long a lease is; 0: there is none.
        in_threads: Whether the store can be asked in another thread.
    """

    __slots__ = (
        "_awaiting",
        "_every",
        "_held",
        "_in_threads",
        "_renew",
        "_renewal",
        "_renewing",
        "_timer",
        "_watched",
        "due",
    )

    def __init__(self, renew: Callable[[], Coroutine[Any, Any, None]], seconds: float, in_threads: bool) -> None:
        self._renew, self._in_threads = renew, in_threads
        self._every = min(seconds / 3, _LONGEST)
        self._held = self._awaiting = self._watched = False
        self._renewal: Any = None
        self._timer: Any = None
        self._renewing = allocate_lock()
        self.due = 0.0
        """When the next renewal is, by the monotonic clock."""

    def hold(self, call: object) -> None:
        """Keep the lease from now on, though `call` may block this thread."""
        if not self._watched:
            if not self._every or not self._in_threads or is_async(call):
                return
            self._watched, self.due = True, monotonic() + self._every
            _watch.add(self)
        self._held = True

    def let_go(self) -> None:
        """Keep it no longer; if a renewal is just being written, wait for that."""
        self._held = False
        if self._renewing.locked():
            with self._renewing:
                pass

    def end(self) -> None:
        """Hold nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watched:
            self._watched = False
            _watch.remove(self)

    def renew(self) -> None:
        """Renew while a call blocks, from another thread than the one that holds."""
        self.due = monotonic() + self._every
        with self._renewing, suppress(Exception):
            if self._held:
                complete(self._renew())

    async def hold_during(self, outcome: Awaitable[T]) -> T:
        """Return what `outcome` comes to, and keep the lease meanwhile."""
        loop = running_loop()
        if loop is None:
            return await _without_loop(outcome)
        self.let_go()
        if not self._every:
            return await outcome
        if self._timer is None:  # one for all calls: to set and cancel one takes as long as a tenth of a step
            self._timer = loop.call_later(self._every, self._tick, loop)
        self._awaiting = True
        try:
            return await outcome
        finally:
            self._awaiting = False
            if self._renewal is not None:
                renewal, self._renewal = self._renewal, None
                await renewal  # many a client refuses two writes at once

    def _tick(self, loop: Any) -> None:
        self._timer = loop.call_later(self._every, self._tick, loop)
        if self._awaiting:
            self._renewal = loop.create_task(self._renew_now())

    async def _renew_now(self) -> None:
        with suppress(Exception):
            await self._renew()


class _Watch:
    """The thread that renews while calls block, and the leases it has to look after."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin without a thread, as a forked child does."""
        self.leases: set[Lease] = set()
        self._lock, self._bell = allocate_lock(), allocate_lock()
        self._bell.acquire()
        self._running, self._wakes_at = False, 0.0

    def add(self, lease: Lease) -> None:
        with self._lock:
            self.leases.add(lease)
            if not self._running:
                with suppress(RuntimeError):  # there are no threads (WebAssembly): only awaited calls are covered
                    start_new_thread(self.run, ())
                    self._running = True
            elif lease.due < self._wakes_at and self._bell.locked():
                self._bell.release()

    def remove(self, lease: Lease) -> None:
        with self._lock:
            self.leases.discard(lease)

    def run(self) -> None:
        """Renew what is due, until there has been nothing to look after for a while."""
        idle = False
        while True:
            with self._lock:
                if idle and not self.leases:
                    self._running = False
                    return
                idle = not self.leases
                self._wakes_at = min((lease.due for lease in self.leases), default=monotonic() + _IDLE)
            self._bell.acquire(timeout=max(0.0, self._wakes_at - monotonic()))
            with self._lock:
                due = [lease for lease in self.leases if lease.due <= monotonic()]
            for lease in due:
                lease.renew()


_watch = _Watch()
getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_watch.reset)


async def _without_loop(outcome: Awaitable[T]) -> T:
    try:
        return await outcome
    except RuntimeError as error:
        if needs_event_loop(error):
            raise EventLoopNeeded from error
        raise
