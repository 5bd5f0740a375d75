"""A lease is kept while a call outlasts a third of it, and only then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from sequential import FlowExecutor, tool
from sequential.lease import Lease, _Watch, _watch
from sequential.record import Entry, Record, state_of
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from tests.support import AsyncJournal, PlainStorage

LEASE = 0.06
PATIENCE = 20.0


def is_renewal(old: Record | None, new: Record | None) -> bool:
    """Whether a write changes nothing but until when the lease is held."""
    if old is None or new is None:
        return False
    state = state_of(new)
    return state_of(old)._replace(lease=state.lease, over=state.over) == state and old.step == new.step


class Watched(MemoryStorage):
    """Counts renewals."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals = 0
        self.renewed = threading.Condition()
        self.failing = False

    def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> bool:
        if is_renewal(old, new):
            assert not flush
            with self.renewed:
                self.renewals += 1
                self.renewed.notify_all()
            if self.failing:
                raise OSError("away")
        return super().write(old, new, entries, flush=flush)

    def wait_for(self, renewals: int) -> None:
        with self.renewed:
            assert self.renewed.wait_for(lambda: self.renewals >= renewals, PATIENCE)

    async def wait_for_async(self, renewals: int) -> None:
        deadline = monotonic() + PATIENCE
        while self.renewals < renewals:
            assert monotonic() < deadline
            await asyncio.sleep(0.001)


def workflow() -> Generator[Any, Any, Any]:
    yield tool("api", "one")
    return (yield tool("api", "two"))


def several() -> Generator[Any, Any, Any]:
    return (yield [tool("api", "one"), tool("api", "two")])


def blocking_call(storage: Watched, seen: list[bool]) -> Callable[..., Any]:
    def call(category: str, name: str, input: Any) -> Any:
        before = storage.read("l")[0]
        storage.wait_for(storage.renewals + 3)
        after = storage.read("l")[0]
        seen.append(is_renewal(before, after) and before != after)
        return name

    return call


def test_a_blocking_call_is_covered_by_a_thread_which_ends_with_the_invocation() -> None:
    storage, seen = Watched(), list[bool]()
    flow = FlowExecutor(storage, call=blocking_call(storage, seen), lease=LEASE, budget=1e9)
    assert flow.execute_sync(workflow, "l") == "two"
    assert seen == [True] * 2
    assert not _watch.leases
    deadline = monotonic() + PATIENCE
    while _watch._running:
        assert monotonic() < deadline


@pytest.mark.parametrize("asks", [workflow, several])
def test_a_blocking_call_under_an_event_loop_is_covered_too(asks: Any) -> None:
    storage, seen = Watched(), list[bool]()
    flow = FlowExecutor(storage, call=blocking_call(storage, seen), lease=LEASE, budget=1e9)
    assert asyncio.run(flow.execute(asks, "l")) == ("two" if asks is workflow else ["one", "two"])
    assert seen == [True] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("disguised", [False, True])
@pytest.mark.parametrize("asks", [workflow, several])
def test_an_awaited_call_is_covered_by_the_event_loop(asynchronous: bool, disguised: bool, asks: Any) -> None:
    watched = Watched()
    storage = AsyncJournal(watched) if asynchronous else watched
    watched_by_thread: list[int] = []

    async def call(category: str, name: str, input: Any) -> Any:
        watched_by_thread.append(len(_watch.leases))
        await watched.wait_for_async(watched.renewals + 3)
        return name

    def looks_plain(category: str, name: str, input: Any) -> Any:
        return call(category, name, input)

    flow = FlowExecutor(storage, call=looks_plain if disguised else call, lease=LEASE, budget=1e9)
    assert asyncio.run(flow.execute(asks, "l")) == ("two" if asks is workflow else ["one", "two"])
    assert disguised or watched_by_thread == [0, 0]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_is_renewed_after_a_call_and_nothing_during_a_short_one(asynchronous: bool) -> None:
    async def at_once(*_: Any) -> None:
        await asyncio.sleep(0)

    storage = Watched()
    flow = FlowExecutor(storage, call=at_once if asynchronous else lambda *_: "at once")
    asyncio.run(flow.execute(workflow, "l"))
    asyncio.run(flow.execute(several, "m"))
    assert storage.renewals == 0
    for id in "lm":
        status = flow.status_sync(id)
        assert status is not None
        assert not status.busy


def test_one_timer_serves_all_awaited_calls_and_renews_during_them_alone() -> None:
    renewed = asyncio.Event()
    count: list[float] = []

    async def renew() -> None:
        count.append(monotonic())
        renewed.set()

    async def run() -> None:
        lease = Lease(renew, LEASE, True)
        await lease.hold_during(asyncio.sleep(0))
        await asyncio.sleep(LEASE)
        assert not count
        await asyncio.wait_for(lease.hold_during(renewed.wait()), PATIENCE)
        lease.end()
        renewals = len(count)
        await asyncio.sleep(LEASE)
        assert len(count) == renewals

    asyncio.run(run())


@pytest.mark.parametrize("asks", [workflow, several])
def test_a_renewal_that_fails_is_tried_again(asks: Any) -> None:
    storage = Watched()
    storage.failing = True
    step = 0 if asks is workflow else 1

    def call(category: str, name: str, input: Any) -> None:
        storage.wait_for(storage.renewals + 3)

    async def call_async(category: str, name: str, input: Any) -> None:
        await storage.wait_for_async(storage.renewals + 3)

    assert FlowExecutor(storage, call=call, lease=LEASE).execute_sync(asks, "l") == {"paused": "l", "step": step}
    flow = FlowExecutor(storage, call=call_async, lease=LEASE)
    assert asyncio.run(flow.execute(asks, "m")) == {"paused": "m", "step": step}


def test_a_thread_leaves_an_async_store_to_its_loop() -> None:
    """A blocking call under an async store cannot be covered; it must not disturb the store either."""

    class Touchy(AsyncJournal):
        async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
            assert threading.current_thread() is threading.main_thread()
            assert what != "write" or not is_renewal(*values[:2])
            return await super().around(what, method, *values, **options)

    other = Watched()

    def call(category: str, name: str, input: Any) -> Any:
        if category == "api":  # another lease is renewed three times meanwhile
            FlowExecutor(other, call=lambda *_: other.wait_for(3), lease=LEASE).execute_sync(workflow, "other")

    flow = FlowExecutor(Touchy(), call=call, lease=LEASE)
    assert asyncio.run(flow.execute(workflow, "t")) == {"paused": "t", "step": 0}
    assert other.renewals >= 3


def test_a_renewal_in_flight_is_waited_for() -> None:
    writing, go_on = threading.Event(), threading.Event()

    class Slow(MemoryStorage):
        def write(
            self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
        ) -> bool:
            if is_renewal(old, new):
                writing.set()
                assert go_on.wait(PATIENCE)
            else:
                assert not writing.is_set() or go_on.is_set()
            return super().write(old, new, entries, flush=flush)

    def call(category: str, name: str, input: Any) -> None:
        assert writing.wait(PATIENCE)
        threading.Timer(0.05, go_on.set).start()

    assert FlowExecutor(Slow(), call=call, lease=LEASE).execute_sync(workflow, "w") == {"paused": "w", "step": 0}


def test_where_there_are_no_threads_a_call_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("sequential.lease.start_new_thread", refuse)
    assert FlowExecutor(MemoryStorage(), call=lambda *_: 1).execute_sync(workflow, "n") == {"paused": "n", "step": 0}


@pytest.mark.parametrize("waits", [False, True])
def test_what_the_thread_does(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as above, in this thread, where coverage can see it."""
    renewed: list[float] = []
    watch = _Watch()
    monkeypatch.setattr("sequential.lease._watch", watch)
    monkeypatch.setattr("sequential.lease.start_new_thread", lambda *_: None)

    async def renew() -> None:
        renewed.append(monotonic())
        if len(renewed) == 3:
            watch.leases.clear()
        if waits:
            await asyncio.sleep(1)  # there is no event loop to wait for, and so nothing comes of it

    slow, quick = Lease(renew, 3000.0, True), Lease(renew, 0.006, True)
    began = monotonic()
    slow.hold(print)
    quick.hold(print)
    assert watch._running
    watch.run()
    assert not watch._running
    assert len(renewed) == 3
    assert began + 0.002 <= renewed[0] <= renewed[1] - 0.001
    quick.let_go()
    quick.renew()
    assert len(renewed) == 3


def test_a_shorter_lease_wakes_the_thread() -> None:
    storage, started, done = Watched(), threading.Event(), threading.Event()

    def waits(category: str, name: str, input: Any) -> None:
        started.set()
        assert done.wait(PATIENCE)

    long = FlowExecutor(MemoryStorage(), call=waits, lease=600.0)
    thread = threading.Thread(target=long.execute_sync, args=(workflow, "a"))
    thread.start()
    assert started.wait(PATIENCE)
    try:
        flow = FlowExecutor(storage, call=lambda *_: storage.wait_for(2), lease=LEASE)
        assert flow.execute_sync(workflow, "b") == {"paused": "b", "step": 0}
    finally:
        done.set()
        thread.join()


def test_a_plain_storage_has_no_lease_to_keep() -> None:
    counts: list[int] = []

    async def call(category: str, name: str, input: Any) -> None:
        counts.append(len(_watch.leases))

    FlowExecutor(PlainStorage(), call=lambda *_: counts.append(len(_watch.leases))).execute_sync(workflow, "p")
    asyncio.run(FlowExecutor(PlainStorage(), call=call).execute(workflow, "p"))
    assert counts == [0] * 2


def test_a_slow_tool_outlives_its_lease_and_is_not_run_twice(tmp_path: Path) -> None:
    calls: list[str] = []
    outcomes: list[Any] = []
    storage, other = SQLiteStorage(tmp_path / "flows.db"), SQLiteStorage(tmp_path / "flows.db")

    def call(category: str, name: str, input: Any) -> str:
        calls.append(name)
        leases, deadline = set[float](), monotonic() + PATIENCE
        while len(leases) < 6:
            assert monotonic() < deadline
            record = other.read("s")[0]
            assert record is not None
            if (lease := state_of(record).lease) not in leases:
                leases.add(lease)
                outcomes.append(FlowExecutor(other, call=call, lease=0.3).execute_sync(workflow, "s"))
        return name

    assert FlowExecutor(storage, call=call, lease=0.3).execute_sync(workflow, "s") == {"paused": "s", "step": 0}
    assert calls == ["one"]
    assert [outcome.reason for outcome in outcomes] == ["busy"] * 6
    storage.close()
    other.close()
