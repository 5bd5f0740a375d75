"""Large values in an object store, and the rest in another one."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore, ObjectStore, S3Store

from sequential import FlowExecutor, tool
from sequential.errors import EventLoopNeeded, Fenced, StorageError
from sequential.storage import Journal, Record, Result, settle
from sequential.stores import bucket
from sequential.stores.clients import ClientJournal
from sequential.stores.memory import MemoryStorage
from sequential.stores.objects import ObjectStorage
from sequential.stores.offload import Offload
from sequential.stores.sqlite import SQLiteStorage
from tests.servers.seaweed import SeaweedServer
from tests.stores.support import OnServer
from tests.stores.test_objects import FewPoints
from tests.support import AsyncJournal, PlainStorage, echo

NOW = 1_700_000_000.0

_numbers = count()


class TestMemoryAndMemory(FewPoints):
    def make(self) -> Journal:
        self.inner, self.store = self.build(), self.connect()
        return Offload(self.inner, self.store, above=3)

    def build(self) -> Journal:
        return MemoryStorage()

    def connect(self) -> ObjectStore:
        return MemoryStore()

    def another(self, storage: Any) -> Any:
        return Offload(self.inner, self.store, above=10)


class TestAsyncAndMemory(TestMemoryAndMemory):
    def build(self) -> Journal:
        return AsyncJournal()


class TestSQLiteAndS3(OnServer, TestMemoryAndMemory):
    server_fixture = "seaweed_server"

    def build(self) -> Journal:
        self.directory = tempfile.TemporaryDirectory()
        return SQLiteStorage(f"{self.directory.name}/flows.db")

    def connect(self) -> ObjectStore:
        return S3Store(**self.server.options, prefix=f"offload-{os.getpid()}-{next(_numbers)}")

    def make(self) -> Journal:
        super().make()
        return Offload(self.inner, self.store, above=1000)

    async def discard(self, storage: Any) -> None:
        await settle(storage.close())
        self.directory.cleanup()


def record(id: str = "one", **fields: Any) -> Record:
    return Record(id, f"run-of-{id}", "workflow", b"{}", token=1, due=NOW, lease=NOW + 60.0)._replace(**fields)


def step(storage: Any, held: Record, data: bytes = b"1") -> Record:
    new = held._replace(token=held.token + 1, step=held.step + 1)
    storage.commit(new, held.token, Result(held.step, "tool t.t", 1, data))
    return new


def keys(store: ObjectStore) -> list[str]:
    return sorted(each["path"] for each in obstore.list(store).collect())


LARGE = b"x" * 100


class Both:
    """An `Offload` and the two that it is made of."""

    def __init__(self, inner: Any = None) -> None:
        self.inner: Any = MemoryStorage() if inner is None else inner
        self.store = MemoryStore()
        self.storage: Any = Offload(self.inner, self.store, above=50)


@pytest.fixture
def both() -> Both:
    return Both()


def test_only_references_to_what_is_large_are_in_the_other_journal(both: Both) -> None:
    held = record(input=b"i" * 100)
    assert both.storage.claim(held, NOW, True) == (held, True)
    assert both.storage.signal("one", "go", b"s" * 100, NOW) == (held, True)
    held = step(both.storage, step(both.storage, held, LARGE), b"small")
    both.storage.save(held, Result(7, data=b"a" * 100))
    (inner,) = both.inner.find("", 9)
    data = [inner.input, both.inner.received(held, "go"), *(saved.data for saved in both.inner.results(held, 0, 9))]
    assert [each.startswith(b'{"__offloaded":"') for each in data] == [True, True, True, False, True]
    assert len(keys(both.store)) == 4
    assert both.storage.read("one") == held
    assert both.storage.find("", 9) == both.storage.due(NOW + 99, 9) == [held]
    assert both.storage.received(held, "go") == b"s" * 100
    assert [saved.data for saved in both.storage.results(held, 0, 9)] == [LARGE, b"small", b"a" * 100]
    taken, _ = both.storage.claim(held._replace(lease=NOW + 99), NOW + 60, False)
    assert taken == held._replace(token=held.token + 1, lease=NOW + 99)
    other = Offload(both.inner, both.store, above=50)
    assert step(other, taken, LARGE) == both.storage.read("one")
    both.storage.remove("one")
    assert keys(both.store) == []
    assert both.storage.read("one") is None


def test_what_looks_like_a_reference_comes_back_as_it_was(both: Both) -> None:
    false = b'{"__offloaded":"run-of-one/0-abc","size":7}'
    held = record(input=false)
    assert both.storage.claim(held, NOW, True) == (held, True)
    both.storage.signal("one", "go", false, NOW)
    held = step(both.storage, held, false)
    assert both.storage.read("one") == held
    assert both.storage.received(held, "go") == false
    assert both.storage.results(held, 0, 9)[0].data == false
    flow = FlowExecutor(Both().storage, call=echo, budget=math.inf)

    def workflow() -> Generator[Any, Any, Any]:
        return (yield tool("t", "t", {"__offloaded": "x", "size": 1}))

    assert flow.execute_sync(workflow) == {"__offloaded": "x", "size": 1}


def test_a_restart_removes_what_is_large_but_signals(both: Both) -> None:
    held = record(input=LARGE)
    both.storage.claim(held, NOW, True)
    held = step(both.storage, held, LARGE)
    both.storage.signal("one", "go", LARGE, NOW)
    new = record(run="run-2", input=b"j" * 100, token=9)
    both.storage.restart(new, held)
    assert both.storage.read("one") == new
    assert both.storage.received(new, "go") == LARGE
    assert {key.split("/")[2] for key in keys(both.store)} == {"run-2", "signals"}
    both.storage.remove("one", new)
    assert keys(both.store) == []


def test_a_fenced_writer_leaves_nothing(both: Both) -> None:
    both.storage.claim(record(input=LARGE), NOW, True)
    held, _ = both.storage.claim(record(lease=NOW + 99), NOW + 60, False)
    before = keys(both.store)
    stale = record(input=LARGE)
    for act in (
        lambda: step(both.storage, stale, LARGE),
        lambda: step(both.storage, stale),
        lambda: both.storage.save(stale, Result(0, data=LARGE)),
        lambda: both.storage.restart(record(run="later", input=b"j" * 100), stale),
        lambda: both.storage.restart(record(run="later"), stale),
        lambda: both.storage.remove("one", stale),
        lambda: step(Offload(both.inner, both.store, above=50), record(run="other", input=LARGE)),
        lambda: step(Offload(both.inner, both.store, above=50), record("nobody", input=LARGE)),
    ):
        with pytest.raises(Fenced):
            act()
        assert keys(both.store) == before
    assert both.storage.claim(record(run="new", input=LARGE), NOW, True) == (held, False)
    both.storage.signal("one", "go", b"first", NOW)
    assert both.storage.signal("one", "go", LARGE, NOW) == (held, False)
    assert keys(both.store) == before


def test_of_two_that_begin_with_a_large_input_one_is_first(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = both.inner.claim

    def other_first(wanted: Record, now: float, create: bool) -> Any:
        if create:
            claim(record(run="theirs"), now, True)
        return claim(wanted, now, create)

    monkeypatch.setattr(both.inner, "claim", other_first)
    assert both.storage.claim(record(input=LARGE), NOW, True) == (record(run="theirs"), False)
    assert keys(both.store) == []


@pytest.mark.parametrize("error", [Fenced("one", 1), StorageError("away")])
def test_a_write_the_answer_to_which_was_lost_is_found(
    both: Both, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lost(name: str) -> None:
        method = getattr(both.inner, name)

        def answer(*arguments: Any, **options: Any) -> None:
            monkeypatch.setattr(both.inner, name, method)
            method(*arguments, **options)
            raise error

        monkeypatch.setattr(both.inner, name, answer)

    held = record(input=LARGE)
    both.storage.claim(held, NOW, True)
    lost("commit")
    held = step(both.storage, held, LARGE)
    lost("save")
    with pytest.raises(type(error)):
        both.storage.save(held, Result(1, data=LARGE))
    assert [saved.data for saved in both.storage.results(held, 0, 9)] == [LARGE, LARGE]
    new = record(run="run-2", input=LARGE, token=9)
    lost("restart")
    both.storage.restart(new, held)
    assert both.storage.read("one") == new


def test_a_signal_that_a_removal_took_along_is_written_again(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    both.storage.claim(record(), NOW, True)
    signal = both.inner.signal

    def late(*arguments: Any) -> Any:
        both.storage.remove("one")
        both.storage.claim(record(run="later"), NOW, True)
        return signal(*arguments)

    monkeypatch.setattr(both.inner, "signal", late)
    assert both.storage.signal("one", "go", LARGE, NOW) == (record(run="later"), True)
    assert both.storage.received(record(run="later"), "go") == LARGE


def test_what_is_gone_is_told_from_what_was_removed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    held = record(input=LARGE)
    acts: list[Callable[[], Any]] = [
        lambda: both.storage.read("one"),
        lambda: both.storage.received(held, "go"),
        lambda: both.storage.results(held, 0, 1) or None,
    ]

    def begin() -> None:
        both.storage.claim(held, NOW, True)
        both.storage.signal("one", "go", LARGE, NOW)
        both.storage.save(held, Result(0, data=LARGE))

    begin()
    for key in keys(both.store):
        obstore.delete(both.store, key)
    for act in acts:
        with pytest.raises(StorageError, match=r"^object store: a part of 'one' is gone: restore it: .*not found"):
            act()
    get = obstore.get

    def removed_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(obstore, "get", get)
        both.storage.remove("one")
        return get(*arguments, **options)

    for act in acts:
        both.storage.remove("one")
        begin()
        monkeypatch.setattr(obstore, "get", removed_first)
        assert act() is None


def test_a_page_has_one_large_result_or_many_small_ones(both: Both) -> None:
    held = record()
    both.storage.claim(held, NOW, True)
    sizes = [10, 700_000, 700_000, 10, 3_000_000, 10, 200_000, 900_000]
    for number, size in enumerate(sizes):
        both.storage.save(held, Result(number, data=b"%d" % number * size))
    pages, start = [], 0
    while page := both.storage.results(held, start, 99):
        pages.append([len(saved.data) for saved in page])
        start = page[-1].step + 1
    assert pages == [[10, 700_000], [700_000, 10], [3_000_000, 10], [200_000], [900_000]]


class Death(BaseException):
    pass


def test_dying_at_any_request_leaves_what_was_or_what_was_to_be(  # noqa: C901 - one story
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket, "_LEFT_OVER", -60.0)
    left: int | None = None

    def mortal(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left is None:
                return function(*arguments, **options)
            left -= 1
            if left == -1 and after:
                function(*arguments, **options)
            if left < 0:
                raise Death
            return function(*arguments, **options)

        return call

    for name in ("put", "get", "delete", "list", "head"):
        monkeypatch.setattr(obstore, name, mortal(getattr(obstore, name)))

    def walk(storage: Any) -> Iterator[Record]:
        held = record(input=LARGE)
        storage.claim(held, NOW, True)
        storage.signal("one", "go", b"s" * 100, NOW)
        for _ in range(2):
            held = step(storage, held, LARGE)
            yield held
        storage.save(held, Result(5, data=LARGE))
        new = record(run="run-2", input=b"j" * 100, token=held.token + 1)
        storage.restart(new, held)
        yield new
        held = step(storage, new, LARGE)
        storage.remove("one", held)

    for after in (False, True):
        point, died = 0, True
        while died:
            both, died = Both(), False
            for name in ("claim", "signal", "commit", "save", "restart", "remove"):
                monkeypatch.setattr(both.inner, name, mortal(getattr(both.inner, name)))
            seen, left = list[Record](), point
            try:
                seen.extend(walk(both.storage))
            except Death:
                died, point = True, point + 1
            left = None
            other: Any = Offload(both.inner, both.store, above=50)
            found = other.read("one")
            if found is not None:
                assert found.token >= max([each.token for each in seen], default=0)
                assert found.input == (LARGE if found.run == "run-of-one" else b"j" * 100)
                found = step(other, found, LARGE)
                assert [saved.data for saved in other.results(found, 0, found.step)] == [LARGE] * found.step
                if other.received(found, "go") is not None:
                    assert other.received(found, "go") == b"s" * 100
            other.remove("one", found)
            assert keys(both.store) == [], (point, after)
        assert point > 20


def test_whoever_waits_decides_who_is_awaited(both: Both) -> None:
    waiting, storing = Both(AsyncJournal()), Both(ObjectStorage(MemoryStore()))

    async def within() -> None:
        for each in (both, waiting, storing):
            assert each.storage.is_async()
            assert await each.storage.claim(record(input=LARGE), NOW, True) == (record(input=LARGE), True)
            assert await settle(each.storage.read("one")) == record(input=LARGE)
            await each.storage.close()

    asyncio.run(within())
    assert both.storage.read("one") == storing.storage.read("one") == record(input=LARGE)
    assert waiting.storage.is_async()
    both.storage.close()
    with pytest.raises(EventLoopNeeded):
        FlowExecutor(waiting.storage).status_sync("one")


def test_closing_closes_the_other_one(tmp_path: Path) -> None:
    inner = SQLiteStorage(tmp_path / "flows.db")
    storage: Any = Offload(inner, MemoryStore())
    storage.claim(record(), NOW, True)
    storage.close()
    assert inner._file.connection is None


def test_what_cannot_be_used_is_refused() -> None:
    plain: Any = PlainStorage()
    with pytest.raises(TypeError, match=r"^Offload needs a Journal to keep the rest, such as .*: not <.*PlainStorage"):
        Offload(plain, MemoryStore())
    sizes: list[Any] = [-1, "256"]
    for above in sizes:
        with pytest.raises(ValueError, match=rf"^above= is a number of bytes, 0 or more: not {above!r}$"):
            Offload(MemoryStorage(), MemoryStore(), above=above)
    with pytest.raises(ValueError, match=r"^prefix= is empty, or names"):
        Offload(MemoryStorage(), MemoryStore(), prefix="large")
    assert isinstance(Offload(MemoryStorage(), MemoryStore(), prefix=""), ClientJournal)


def test_workflows_run_plain_and_async(seaweed_server: SeaweedServer, tmp_path: Path) -> None:
    store = S3Store(**seaweed_server.options, prefix=f"offload-{os.getpid()}-{next(_numbers)}")
    storage = Offload(SQLiteStorage(tmp_path / "flows.db"), store, above=1000)
    flow = FlowExecutor(storage, call=echo, budget=math.inf)

    def workflow(input: dict[str, int]) -> Generator[Any, Any, Any]:
        first = yield tool("t", "a", "x" * input["size"])
        both = yield [tool("t", "b", "y" * 5000), tool("t", "c", 2)]
        return [len(first), len(both[0]), both[1]]

    async def run_all() -> Any:
        sizes = range(0, 64_000, 1000)
        return await asyncio.gather(*(flow.execute(workflow, f"id-{size}", {"size": size}) for size in sizes))

    assert asyncio.run(run_all()) == [[size, 5000, 2] for size in range(0, 64_000, 1000)]
    assert flow.execute_sync(workflow, "plain", {"size": 5_000_000}) == [5_000_000, 5000, 2]
    assert keys(store) == []
    storage.close()


MEASURE = """if True:
    import resource, sys
    from obstore.store import LocalStore
    from sequential.storage import Record, Result
    from sequential.stores.offload import Offload
    from sequential.stores.sqlite import SQLiteStorage
    storage = Offload(SQLiteStorage(sys.argv[1] + "/flows.db"), LocalStore(sys.argv[1]))
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    held = Record("one", "run", input=b"i" * 10_000_000, token=1, lease=9.0)
    storage.claim(held, 0.0, True)
    before, data = resident(), b"0123456789abcdef" * (100 << 16)
    storage.commit(held._replace(token=2, step=1), 1, Result(0, data=data))
    assert storage.read("one") == held._replace(token=2, step=1)
    (found,) = storage.results(held, 0, 1)
    assert found.data == data
    print(resident() - before)
"""


def test_100_mb_come_back_in_little_more_than_their_own_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 270, done.stdout  # what was written, and what was read
    assert (tmp_path / "flows.db").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "data",
    [
        b'{"__offloaded":1}',
        b'{"__offloaded":"a","size":"b"}',
        b'{"__offloaded":',
        b'{"__offloaded":"a","size":0,"b":1}',
    ],
)
def test_a_value_from_before_that_looks_like_a_reference(data: bytes) -> None:
    inner = MemoryStorage()
    record = Record("one", "run", token=1, lease=2e9)
    inner.claim(record, 1.0, True)
    inner.save(record, Result(0, data=data))
    storage: Any = Offload(inner, MemoryStore())
    assert storage.results(record, 0, 1) == [Result(0, data=data)]
    assert storage.create_schema() is None


def test_objects_that_are_no_store() -> None:
    wrong: Any = "s3://bucket"
    with pytest.raises(TypeError, match=r"a store is one of obstore's, like obstore.store.S3Store\(...\), not 's3://b"):
        Offload(MemoryStorage(), wrong)
