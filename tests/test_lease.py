"""A lease is kept while a call outlasts a third of it, and only then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from time import monotonic
from typing import Any

import pytest

from sequential import FlowExecutor, again, tool
from sequential.lease import Lease, _Watch, _watch
from sequential.storage import Record, Result
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing.around import JournalAround
from tests.support import AsyncJournal, PlainStorage

LEASE = 0.06
PATIENCE = 20.0
MB = 1 << 20


class Watched(MemoryStorage):
    """Counts renewals, which are commits that keep their token."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals = 0
        self.renewed = threading.Condition()
        self.failing = False

    def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        if record.token == token:
            with self.renewed:
                self.renewals += 1
                self.renewed.notify_all()
            if self.failing:
                raise OSError("away")
        super().commit(record, token, result, **signal)

    def wait_for(self, renewals: int) -> None:
        with self.renewed:
            assert self.renewed.wait_for(lambda: self.renewals >= renewals, PATIENCE)


def workflow() -> Generator[Any, Any, Any]:
    yield tool("api", "one")
    return (yield tool("api", "two"))


def wait_until_no_thread_is_left() -> None:
    deadline = monotonic() + PATIENCE
    while _watch._running:
        assert monotonic() < deadline


def blocking_call(storage: Watched, seen: list[Any]) -> Callable[..., Any]:
    def call(category: str, name: str, input: Any) -> Any:
        before = storage.read("l")
        storage.wait_for(storage.renewals + 3)
        after = storage.read("l")
        assert before is not None
        assert after is not None
        seen.append((after.token - before.token, after.lease > before.lease))
        return name

    return call


def test_a_blocking_call_is_covered_by_a_thread_which_ends_with_the_invocation() -> None:
    storage, seen = Watched(), list[Any]()
    flow = FlowExecutor(storage, call=blocking_call(storage, seen), lease=LEASE, budget=1e9)
    assert flow.execute_sync(workflow, "l") == "two"
    assert seen == [(0, True)] * 2
    assert not _watch.leases
    wait_until_no_thread_is_left()


def test_a_blocking_call_under_an_event_loop_is_covered_too() -> None:
    storage, seen = Watched(), list[Any]()
    flow = FlowExecutor(storage, call=blocking_call(storage, seen), lease=LEASE, budget=1e9)
    assert asyncio.run(flow.execute(workflow, "l")) == "two"
    assert seen == [(0, True)] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("disguised", [False, True])
def test_an_awaited_call_is_covered_by_the_event_loop(asynchronous: bool, disguised: bool) -> None:
    watched = Watched()
    storage = AsyncJournal(watched) if asynchronous else watched
    watched_by_thread: list[int] = []

    async def call(category: str, name: str, input: Any) -> Any:
        watched_by_thread.append(len(_watch.leases))
        renewals, deadline = watched.renewals, monotonic() + PATIENCE
        while watched.renewals < renewals + 3:
            assert monotonic() < deadline
            await asyncio.sleep(0.001)
        return name

    def looks_plain(category: str, name: str, input: Any) -> Any:
        return call(category, name, input)

    flow = FlowExecutor(storage, call=looks_plain if disguised else call, lease=LEASE, budget=1e9)
    assert asyncio.run(flow.execute(workflow, "l")) == "two"
    assert disguised or watched_by_thread == [0, 0]


class SlowToWrite(Watched):
    """Takes longer than a lease to write what is large."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: list[str] = []

    def take_long(self, what: str, data: bytes) -> None:
        if len(data) > MB:
            self.slow.append(what)
            self.wait_for(self.renewals + 3)

    def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        if result is not None:
            self.take_long("commit", result.data)
        super().commit(record, token, result, **signal)

    def save(self, record: Record, result: Result) -> None:
        self.take_long("save", result.data)
        super().save(record, result)

    def restart(self, record: Record, held: Record) -> None:
        self.take_long("restart", record.input)
        super().restart(record, held)


class SlowToAwait(JournalAround):
    """The same, awaited."""

    def __init__(self) -> None:
        self.watched, self.slow = Watched(), list[str]()
        super().__init__(self.watched)

    async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
        what, _, _ = what.partition(" ")
        written = values[0].input if what == "restart" else getattr(values[-1], "data", b"")
        renewals, deadline = self.watched.renewals, monotonic() + PATIENCE
        while len(written) > MB and self.watched.renewals < renewals + 3:
            assert monotonic() < deadline
            await asyncio.sleep(0.001)
        if len(written) > MB:
            self.slow.append(what)
        return method(*values, **options)


def grows(size: int) -> Generator[Any, Any, Any]:
    yield tool("api", "one", size)
    yield [tool("api", "two", size), tool("api", "three", size)]
    return again("x" * size) if isinstance(size, int) else "end"


@pytest.mark.parametrize("kind", [SlowToWrite, SlowToAwait])
def test_what_takes_long_to_write_is_covered_too(kind: type[SlowToWrite | SlowToAwait]) -> None:
    storage = kind()
    flow = FlowExecutor(storage, call=lambda *_: "x" * 2 * MB, lease=LEASE, budget=1e9)
    assert asyncio.run(flow.execute(grows, "l", 2 * MB)) == "end"
    assert [*dict.fromkeys(storage.slow)] == ["commit", "save", "restart"]


def test_nothing_is_renewed_after_a_call_and_nothing_during_a_short_one() -> None:
    storage = Watched()
    flow = FlowExecutor(storage, call=lambda *_: "at once")
    flow.execute_sync(workflow, "l")
    assert storage.renewals == 0
    record = storage.read("l")
    assert record is not None
    assert record.lease == 0.0


def test_one_timer_serves_all_awaited_calls_and_renews_during_them_alone() -> None:
    renewed = asyncio.Event()
    count: list[Record] = []

    def renew(record: Record) -> None:
        count.append(record)
        renewed.set()

    async def run() -> None:
        lease, record = Lease(renew, LEASE), Record("l", "run", lease=1.0)
        await lease.hold_during(asyncio.sleep(0), record)
        await asyncio.sleep(LEASE)
        assert not count
        await asyncio.wait_for(lease.hold_during(renewed.wait(), record), PATIENCE)
        lease.end()
        renewals = len(count)
        await asyncio.sleep(LEASE)
        assert len(count) == renewals

    asyncio.run(run())


def test_a_renewal_that_fails_is_tried_again() -> None:
    storage, seen = Watched(), list[Any]()
    storage.failing = True
    flow = FlowExecutor(storage, call=lambda *_: storage.wait_for(3), lease=LEASE)
    assert flow.execute_sync(workflow, "l") == {"paused": "l", "step": 0}

    async def call(category: str, name: str, input: Any) -> Any:
        await asyncio.to_thread(storage.wait_for, storage.renewals + 3)

    assert asyncio.run(FlowExecutor(storage, call=call, lease=LEASE).execute(workflow, "m")) == {
        "paused": "m",
        "step": 0,
    }
    assert seen == []


def test_a_thread_leaves_an_async_store_to_its_loop() -> None:
    """A blocking call under an async store cannot be covered; it must not disturb the store either."""
    tried = threading.Event()

    class Touchy(AsyncJournal):
        async def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
            assert threading.current_thread() is threading.main_thread()
            await super().commit(record, token, result, **signal)

    class Noting(Touchy):
        def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> Any:
            if record.token == token:
                tried.set()
            return super().commit(record, token, result, **signal)

    def call(category: str, name: str, input: Any) -> Any:
        assert tried.wait(PATIENCE)

    flow = FlowExecutor(Noting(), call=call, lease=LEASE)
    assert asyncio.run(flow.execute(workflow, "t")) == {"paused": "t", "step": 0}


def test_a_renewal_in_flight_is_waited_for() -> None:
    writing, go_on = threading.Event(), threading.Event()

    class Slow(Watched):
        def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
            if record.token == token:
                writing.set()
                assert go_on.wait(PATIENCE)
            else:
                assert not writing.is_set() or go_on.is_set()
            super().commit(record, token, result, **signal)

    def call(category: str, name: str, input: Any) -> None:
        assert writing.wait(PATIENCE)
        threading.Timer(0.05, go_on.set).start()

    assert FlowExecutor(Slow(), call=call, lease=LEASE).execute_sync(workflow, "w") == {"paused": "w", "step": 0}


def test_where_there_are_no_threads_a_call_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("sequential.lease.start_new_thread", refuse)
    assert FlowExecutor(MemoryStorage(), call=lambda *_: 1).execute_sync(workflow, "n") == {"paused": "n", "step": 0}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_the_thread_does(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as above, in this thread, where coverage can see it."""
    renewed: list[float] = []
    watch = _Watch()
    monkeypatch.setattr("sequential.lease._watch", watch)
    monkeypatch.setattr("sequential.lease.start_new_thread", lambda *_: None)

    def renew(record: Record) -> Any:
        renewed.append(monotonic())
        if len(renewed) == 3:
            watch.leases.clear()
        return later() if asynchronous else None

    async def later() -> None:
        raise AssertionError

    slow, quick = Lease(renew, 3000.0), Lease(renew, 0.006)
    began = monotonic()
    slow.hold(Record("slow", "run", lease=1.0), print)
    quick.hold(Record("quick", "run", lease=1.0), print)
    assert watch._running
    watch.run()
    assert not watch._running
    assert len(renewed) == 3
    assert began + 0.002 <= renewed[0] <= renewed[1] - 0.001
    quick.let_go()
    quick.renew()
    assert len(renewed) == 3


def test_a_shorter_lease_wakes_the_thread() -> None:
    storage, started = Watched(), threading.Event()
    done = threading.Event()

    def waits(category: str, name: str, input: Any) -> None:
        started.set()
        assert done.wait(PATIENCE)

    long = threading.Thread(
        target=FlowExecutor(MemoryStorage(), call=waits, lease=600.0).execute_sync, args=(workflow, "a")
    )
    long.start()
    assert started.wait(PATIENCE)
    try:
        flow = FlowExecutor(storage, call=lambda *_: storage.wait_for(2), lease=LEASE)
        assert flow.execute_sync(workflow, "b") == {"paused": "b", "step": 0}
    finally:
        done.set()
        long.join()


def test_a_plain_storage_has_no_lease_to_keep() -> None:
    counts: list[int] = []

    async def call(category: str, name: str, input: Any) -> None:
        counts.append(len(_watch.leases))

    FlowExecutor(PlainStorage(), call=lambda *_: counts.append(len(_watch.leases))).execute_sync(workflow, "p")
    asyncio.run(FlowExecutor(PlainStorage(), call=call).execute(workflow, "p"))
    assert counts == [0] * 2


def test_a_slow_tool_outlives_its_lease_and_is_not_run_twice(tmp_path: Any) -> None:
    calls: list[str] = []
    outcomes: list[Any] = []
    storage = SQLiteStorage(tmp_path / "flows.db")
    other = SQLiteStorage(tmp_path / "flows.db")

    def call(category: str, name: str, input: Any) -> str:
        calls.append(name)
        leases, deadline = set[float](), monotonic() + PATIENCE
        while len(leases) < 6:
            assert monotonic() < deadline
            record = other.read("s")
            assert record is not None
            if record.lease not in leases:
                leases.add(record.lease)
                outcomes.append(FlowExecutor(other, call=call, lease=0.3).execute_sync(workflow, "s"))
        return name

    assert FlowExecutor(storage, call=call, lease=0.3).execute_sync(workflow, "s") == {"paused": "s", "step": 0}
    assert calls == ["one"]
    assert [outcome.reason for outcome in outcomes] == ["busy"] * 6
    storage.close()
    other.close()
