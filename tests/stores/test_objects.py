"""Object stores: SeaweedFS (S3) on a real server, emulators of GCS and Azure, a folder, memory."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, ObjectStore, S3Store

from sequential import FlowExecutor, again, tool, wait
from sequential.blocking import blocking
from sequential.errors import Fenced, NotInstalled, StorageError
from sequential.storage import Journal, Record, Result, settle
from sequential.stores import bucket, bucket_requests, objects, objects_removal, objects_states
from sequential.stores.clients import Recent
from sequential.stores.objects import ObjectStorage
from sequential.testing import JournalTests
from sequential.testing.crash import count_crash_points
from tests.conftest import OwnServer
from tests.servers.azurite import AzuriteServer
from tests.servers.gcs import GcsServer
from tests.servers.proxy import Proxy
from tests.servers.seaweed import SeaweedServer
from tests.stores.support import Crowd, OnServer
from tests.support import echo

NOW = 1_700_000_000.0
MB = 1 << 20

_numbers = count()


def new_prefix() -> str:
    return f"test-{os.getpid()}-{next(_numbers)}"


def plain(storage: ObjectStorage) -> ObjectStorage:
    """Let a storage use the blocking functions although an event loop runs."""
    storage._bucket.requests.is_async = lambda: False  # type: ignore[method-assign]
    return storage


def one_of_each(input: dict[str, int]) -> Generator[Any, Any, Any]:
    got = [(yield [tool("t", "a"), tool("t", "b", once=True)]), (yield wait("go"))]
    return again({"round": 2}) if input["round"] == 1 else got


class FewPoints(JournalTests):
    """The suite, its walks over all places to die being shorter: a request may take milliseconds."""

    steps = 1

    def test_every_request_survives_death_at_any_point(self) -> None:
        signals = {"go": "x" * 40_000}
        points = self.runner.run(count_crash_points(one_of_each, {"round": 2}, echo, self.storage, signals))
        assert points > 40


class TestMemoryPlain(JournalTests):
    def make(self) -> Journal:
        self.store: ObjectStore = MemoryStore()
        return plain(ObjectStorage(self.store))

    def another(self, storage: Any) -> Any:
        return plain(ObjectStorage(self.store, check=False))


class TestMemory(FewPoints):
    def make(self) -> Journal:
        self.store: ObjectStore = self.connect()
        return ObjectStorage(self.store)

    def connect(self) -> ObjectStore:
        return MemoryStore()

    def another(self, storage: Any) -> Any:
        return ObjectStorage(self.store, check=False)


class TestFolder(TestMemory):
    def connect(self) -> ObjectStore:
        self.directory = tempfile.TemporaryDirectory()
        return LocalStore(self.directory.name, automatic_cleanup=True)

    def discard(self, storage: Any) -> None:
        self.directory.cleanup()


class TestS3(OnServer, TestMemory):
    server_fixture = "seaweed_server"

    def connect(self) -> ObjectStore:
        return S3Store(**self.server.options, prefix=new_prefix())


class TestS3Plain(TestS3):
    def make(self) -> Journal:
        return plain(super().make())  # type: ignore[arg-type]

    def another(self, storage: Any) -> Any:
        return plain(super().another(storage))


class TestGcs(OnServer, TestMemory):
    server_fixture = "gcs_server"

    def connect(self) -> ObjectStore:
        return GCSStore(**self.server.options, prefix=new_prefix())


class TestAzure(OnServer, TestMemory):
    server_fixture = "azurite_server"

    def connect(self) -> ObjectStore:
        return AzureStore(**self.server.options, prefix=new_prefix())


@pytest.fixture
def s3(seaweed_server: SeaweedServer) -> S3Store:
    return S3Store(**seaweed_server.options, prefix=new_prefix())


@pytest.fixture
def azure(azurite_server: AzuriteServer) -> AzureStore:
    return AzureStore(**azurite_server.options, prefix=new_prefix())


@pytest.fixture(params=["memory", "folder", "s3", "azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param in {"s3", "azure"}:
        found: ObjectStore = request.getfixturevalue(request.param)
        return found
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path, automatic_cleanup=True)


def record(id: str = "one", **fields: Any) -> Record:
    return Record(id, f"run-of-{id}", "workflow", b"{}", token=1, due=NOW, lease=NOW + 60.0)._replace(**fields)


def create(storage: Any, **fields: Any) -> Record:
    wanted = record(**fields)
    assert storage.claim(wanted, NOW, True) == (wanted, True)
    return wanted


def step(storage: Any, held: Record, data: bytes = b"1") -> Record:
    new = held._replace(token=held.token + 1, step=held.step + 1)
    storage.commit(new, held.token, Result(held.step, "tool t.t", 1, data, NOW, NOW + 0.1, None))
    return new


def history(storage: Any, held: Record, start: int = 0) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while page := storage.results(held, start, 1 << 31):
        assert [result.step for result in page] == sorted({result.step for result in page} - set(found))
        found.update({result.step: result.data for result in page})
        start = page[-1].step + 1
    return found


def keys(store: ObjectStore) -> list[str]:
    return sorted(each["path"] for each in obstore.list(store).collect() if each["path"] != ".sequential.lock")


# Two at once.


@pytest.mark.parametrize(
    ("store", "writers", "rounds"),
    [
        ("memory", 32, 60),
        ("memory", 2, 1000),
        ("folder", 32, 30),
        ("s3", 3, 8),
        ("azure", 32, 20),
    ],  # SeaweedFS lets contenders sleep for whole seconds
    indirect=["store"],
)
def test_of_many_writers_one_commits_and_one_takes_the_lease(store: ObjectStore, writers: int, rounds: int) -> None:
    storages = [ObjectStorage(store, check=False) for _ in range(writers)]
    held = create(storages[0], lease=0.0)

    def commit(number: int) -> int | None:
        new = held._replace(token=held.token + 1, step=held.step + 1)
        try:
            storages[number].commit(new, held.token, Result(held.step, data=b"%d" % number))
        except Fenced:
            return None
        return number

    def claim(number: int) -> bool:
        return bool(storages[number].claim(held._replace(lease=NOW + 1 + number), NOW, False)[1])  # type: ignore[index]

    with ThreadPoolExecutor(writers) as pool:
        for number in range(rounds):
            winners = [winner for winner in pool.map(commit, range(writers)) if winner is not None]
            assert len(winners) == 1, winners
            held = held._replace(token=held.token + 1, step=number + 1)
            (saved,) = storages[1].results(held, number, number + 1)  # type: ignore[misc]
            assert saved.data == b"%d" % winners[0]
        assert sum(pool.map(claim, range(writers))) == 1
    assert len(history(ObjectStorage(store), held._replace(token=held.token + 1))) == rounds


def test_two_writers_of_equal_bodies_do_not_both_win(store: ObjectStore) -> None:
    folder = bucket.Bucket(store, "")
    first = ask(folder.swap("id", b"a", None))
    ask(folder.swap("id", b"b", first))
    back = ask(folder.swap("id", b"a", ask(folder.get("id"))))
    with pytest.raises(bucket.Conflict):
        ask(folder.swap("id", b"a", first))
    assert ask(folder.get("id")).nonces == back.nonces
    ask(folder.erase("id", back))
    with pytest.raises(bucket.Conflict):
        ask(folder.swap("id", b"a", back))
    again = ask(folder.swap("id", b"a", None))
    with pytest.raises(bucket.Conflict):
        ask(folder.swap("id", b"a", None))
    assert ask(folder.get("id")).nonces == again.nonces
    if folder.requests.is_local:
        ask(folder.erase("id", back))
        assert ask(folder.get("id")).nonces == again.nonces


def ask(coroutine: Any) -> Any:
    async def answer() -> Any:
        return await coroutine

    return blocking(answer)()


def test_processes_take_turns_in_a_folder(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from sequential.storage import Record
        from sequential.stores.objects import ObjectStorage
        storage = ObjectStorage.from_url("file://" + sys.argv[1])
        won = [n for n in range(100) if storage.claim(Record(f"id-{n}", sys.argv[2]), 0.0, True)[1]]
        for n in won[::2]:
            storage.remove(f"id-{n}")
        print(*won)
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path, str(n)], stdout=subprocess.PIPE) for n in range(3)
    ]
    won = [[int(word) for word in process.communicate()[0].split()] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert {n for each in won for n in each} == set(range(100))
    storage: Any = ObjectStorage.from_url(f"file://{tmp_path}")
    for found in storage.find("", 1000):
        assert int(found.id[3:]) in won[int(found.run)]


# What is large, and long.


MEASURE = """if True:
    import json, resource, sys
    from obstore.store import S3Store
    from sequential.storage import Record, Result
    from sequential.stores.objects import ObjectStorage
    storage = ObjectStorage(S3Store(**json.loads(sys.argv[1])))
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    before, size = resident(), 100 << 20
    held = Record("one", "run", input=b"i" * 10_000_000, token=1, lease=9.0)
    assert storage.claim(held, 0.0, True) == (held, True)
    data = bytearray(b"0123456789abcdef" * (size // 16))
    data[-1:] = b"!"
    new = held._replace(token=2, step=1)
    storage.commit(new, 1, Result(0, data=bytes(data)))
    written = resident()
    other = ObjectStorage(S3Store(**json.loads(sys.argv[1])))
    assert other.read("one") == new
    (found,) = other.results(new, 0, 1)
    assert found.data == data
    storage.remove("one")
    print((written - before) >> 0, resident() - before)
"""


def test_100_mb_come_back_in_little_more_than_their_own_memory(seaweed_server: SeaweedServer) -> None:
    options = json.dumps({**seaweed_server.options, "prefix": new_prefix()})
    done = subprocess.run([sys.executable, "-c", MEASURE, options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written, read = map(int, done.stdout.split())
    assert written < 250, written  # the value is there twice, as bytes and as what it was made from
    assert read < 350, read


def test_a_lone_surrogate_in_a_record_comes_back(store: ObjectStore) -> None:
    storage: Any = ObjectStorage(store)
    record = Record("one", "run", "workflow \ud800", error="x\udcffé", lease=1e12)
    assert storage.claim(record, 0.0, True) == (record, True)
    assert storage.read("one") == record


def test_long_histories_are_kept_in_segments_and_come_back_in_order(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ObjectStorage(store)
    held, expected = create(storage), dict[int, bytes]()
    for number in range(300):
        size = 40_000 if number % 50 == 7 else 1000
        expected[number] = b"%d" % number * size
        held = step(storage, held, expected[number])
    for other in (storage, ObjectStorage(store)):
        assert history(other, held) == expected
        assert history(other, held, 123) == {step: data for step, data in expected.items() if step >= 123}
        with monkeypatch.context() as patched:
            patched.setattr(objects_states, "_SEGMENTS", 2)
            assert list(history(other, held)) == list(range(300))
    assert sum("-" in key.rpartition("/")[2] for key in keys(store)) > 6
    storage.remove("one", held)
    assert keys(store) == []


def test_results_saved_ahead_in_any_order_replace_each_other(store: ObjectStore) -> None:
    storage: Any = ObjectStorage(store)
    held, expected = create(storage), dict[int, bytes]()
    steps = [1, 40, 7, 30, 7, *[3] * 60, 2, 50, *range(45, 60), 3, 7, 41]
    for number, at in enumerate(steps):
        expected[at] = b"%02d" % number * 5_000
        storage.save(held, Result(at, data=expected[at]))
    for other in (storage, ObjectStorage(store)):
        assert history(other, held) == expected
        assert list(history(other, held, 4)) == sorted(at for at in expected if at >= 4)
        assert other.results(held, 8, 30) == []


def test_the_latest_segment_counts_wherever_it_begins() -> None:
    storage: Any = ObjectStorage(MemoryStore())
    held = create(storage)
    for number, at in enumerate([10, 20, 30, 1, 20, 2, 3]):
        storage.save(held, Result(at, data=b"%d" % number * 12_000))
    assert {at: data[:1] for at, data in history(storage, held).items()} == {
        1: b"3", 2: b"5", 3: b"6", 10: b"0", 20: b"4", 30: b"2",
    }  # fmt: skip


def test_a_fenced_writer_leaves_nothing(store: ObjectStore) -> None:
    stale, storage = ObjectStorage(store), ObjectStorage(store)
    create(stale)
    held, _ = storage.claim(record(lease=NOW + 99), NOW + 60, False)  # type: ignore[misc]
    assert held
    before = keys(store)
    for data in (b"x" * 100_000, b"x"):
        with pytest.raises(Fenced):
            step(stale, record(), data)
        with pytest.raises(Fenced):
            stale.save(record(), Result(0, data=data))
        with pytest.raises(Fenced):
            stale.restart(record(run="later", input=data), record())
        with pytest.raises(Fenced):
            stale.remove("one", record())
    assert stale.claim(record(run="new", input=b"x" * 100_000), NOW, True) == (held, False)
    assert keys(store) == before
    assert history(storage, step(storage, held)) == {0: b"1"}


def test_large_inputs_and_signals_come_and_go_with_their_run(store: ObjectStore) -> None:
    storage: Any = ObjectStorage(store)
    large = os.urandom(5 * MB)
    held = create(storage, input=large)
    assert storage.read("one") == held == ObjectStorage(store).read("one")
    assert storage.signal("one", "kept", large, NOW) == (held, True)
    assert storage.signal("one", "taken", b"y" * 50_000, NOW) == (held, True)
    assert storage.received(held, "kept") == large
    assert storage.due(NOW + 99, 9) == storage.find("", 9) == [held]
    taken = held._replace(token=2, step=1)
    storage.commit(taken, 1, Result(0, data=large), taken="taken")
    assert history(storage, taken) == {0: large}
    new = record(run="run-2", input=b"z" * 40_000, token=3)
    storage.restart(new, taken)
    assert storage.received(new, "kept") == large
    assert storage.received(new, "taken") is None
    assert storage.read("one") == new
    assert {key.split("/")[2] for key in keys(store)} == {"record", "run-2"}
    storage.remove("one", new)
    assert keys(store) == []


def test_what_is_gone_is_told_from_what_was_removed() -> None:
    store = MemoryStore()
    storage: Any = ObjectStorage(store)
    held = create(storage, input=b"i" * 40_000)
    storage.signal("one", "go", b"s" * 40_000, NOW)
    held = step(storage, held, b"r" * 40_000)
    for key in keys(store):
        if key != "exec/one/record":
            obstore.delete(store, key)
    reads: list[Callable[[], Any]] = [
        lambda: storage.read("one"),
        lambda: storage.received(held, "go"),
        lambda: storage.results(held, 0, 1),
        lambda: storage.due(NOW + 99, 9),
    ]
    for lost in reads:
        with pytest.raises(StorageError, match=r"^object store: a part of 'one' is gone: restore it: .*not found"):
            lost()
    storage.remove("one")
    assert storage.read("one") is None


def test_who_reads_while_it_is_removed_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    storage, other = ObjectStorage(store), ObjectStorage(store)
    for lost in (
        lambda held: storage.read("one"),
        lambda held: storage.received(held, "go"),
        lambda held: storage.results(held, 0, 1) or None,
        lambda held: storage.claim(held._replace(lease=NOW + 99), NOW + 60, False)[0],  # type: ignore[index]
    ):
        held = create(storage, input=b"i" * 40_000)
        storage.signal("one", "go", b"s" * 40_000, NOW)
        held = step(storage, held, b"r" * 40_000)
        with before_get(monkeypatch, "run-of-one", lambda: other.remove("one")):
            assert lost(held) is None
        storage.remove("one")


@contextmanager
def before_get(monkeypatch: pytest.MonkeyPatch, part: str, act: Callable[[], Any]) -> Iterator[None]:
    """Act once, before the first object is read whose key has this part."""
    get = obstore.get
    left = [act]

    def first(store: Any, path: str, **options: Any) -> Any:
        if part in path and left:
            left.pop()()
        return get(store, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "get", first)
        yield
    assert not left


# Dying, and being cut off.


class Death(BaseException):
    pass


class Mortal:
    """Counts what is asked of obstore's blocking functions, and dies before or after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.after = False
        for name in ("put", "get", "delete", "list", "head", "list_with_delimiter"):
            monkeypatch.setattr(obstore, name, self.around(getattr(obstore, name)))

    def around(self, function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if self.left is None:
                return function(*arguments, **options)
            self.left -= 1
            if self.left == -1 and self.after:
                function(*arguments, **options)
            if self.left < 0:
                raise Death
            return function(*arguments, **options)

        return call


def walk(storage: Any) -> Iterator[Record | None]:
    """Do everything that takes several requests; yield the record after each act."""
    held = record(input=b"i" * 40_000)
    storage.claim(held, NOW, True)
    yield held
    storage.signal("one", "go", b"s" * 40_000, NOW)
    yield held
    for size in (10, 5 * MB, 12_000, 12_000, 12_000, 10):
        held = step(storage, held, b"r" * size)
        yield held
    storage.save(held, Result(20, data=b"r" * 40_000))
    yield held
    new = record(run="run-2", input=b"j" * 40_000, token=held.token + 1)
    storage.restart(new, held)
    yield new
    held = step(storage, new, b"r" * 40_000)
    yield held
    storage.remove("one", held)
    yield None


def sizes(held: Record) -> list[int]:
    return [40_000] if held.run == "run-2" else [10, 5 * MB, 12_000, 12_000, 12_000, 10]


@pytest.mark.parametrize("after", [False, True])
def test_dying_at_any_request_leaves_what_was_or_what_was_to_be(monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    monkeypatch.setattr(objects_removal, "_ABANDONED", -60.0)  # nobody waits for the dead
    monkeypatch.setattr(bucket, "_LEFT_OVER", -60.0)
    mortal, points, died = Mortal(monkeypatch), 0, True
    mortal.after = after
    while died:
        store, died = MemoryStore(), False
        storage, seen = ObjectStorage(store, check=False), list[Record | None]([None])
        mortal.left = points
        try:
            seen.extend(walk(storage))
        except Death:
            died, points = True, points + 1
        mortal.left = None
        other: Any = ObjectStorage(store, check=False)
        found = other.read("one")
        if found is not None:
            assert [len(data) for data in history(other, found._replace()).values()][: found.step] == sizes(found)[
                : found.step
            ]
            assert found.token >= max(seen[-1].token if seen[-1] else 0, 1)
            assert found.step in {seen[-1].step, seen[-1].step + 1, 0} if seen[-1] else found.step == 0
            if other.received(found, "go") is not None:
                assert other.received(found, "go") == b"s" * 40_000
            held, taken = other.claim(record(lease=NOW + 999), NOW + 99, True)
            assert taken
            held = step(other, held, b"on")
            assert history(other, held)[held.step - 1] == b"on"
            other.remove("one", held)
        else:
            assert other.due(NOW, 9) == []  # and finishes the removal
        if found is not None or not died:
            assert keys(store) == [], (points, after)
    assert points > 36


async def awaited(method: Callable[..., Any], *arguments: Any) -> Any:
    return await method(*arguments)


def test_a_removal_cut_short_is_finished_by_the_sweep_and_by_the_next_execution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mortal = Mortal(monkeypatch)
    monkeypatch.setattr(objects_removal, "_GRACE", 0.05)
    for act in ("sweep", "remove", "create", "create in a loop"):
        store = MemoryStore()
        storage: Any = ObjectStorage(store)
        held = step(storage, create(storage), b"r" * 40_000)
        mortal.left = 2  # the list and the tombstone, and no deletion
        with pytest.raises(Death):
            storage.remove("one", held)
        mortal.left = None
        assert len(keys(store)) == 2
        other: Any = ObjectStorage(store)
        assert other.read("one") is None
        assert other.find("", 9) == other.due(NOW + 99, 9) == []
        other.remove("one")  # leaves it alone: its writer may be alive
        assert len(keys(store)) == 2
        if act == "create in a loop":
            assert asyncio.run(awaited(other.claim, record(run="later"), NOW, True)) == (record(run="later"), True)
            other.remove("one")
        elif act == "create":
            assert history(other, step(other, create(other, run="later"))) == {0: b"1"}
            other.remove("one")
        else:
            with monkeypatch.context() as patched:
                patched.setattr(objects_removal, "_ABANDONED", -60.0)
                other.due(NOW, 9) if act == "sweep" else other.remove("one")
        assert keys(store) == []


def test_who_begins_again_while_it_is_removed_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    storage, other = ObjectStorage(store), ObjectStorage(store)
    held = create(storage)
    begun: list[Any] = []
    thread = threading.Thread(target=lambda: begun.append(other.claim(record(run="later"), NOW, True)))
    delete, get, seen = obstore.delete, obstore.get, threading.Event()

    def late(store: Any, path: Any) -> None:
        if path.endswith("record"):
            thread.start()
            assert seen.wait(10)
            thread.join(0.3)
            assert thread.is_alive()  # it has seen the tombstone, and waits
        delete(store, path)

    def see(store: Any, path: str, **options: Any) -> Any:
        found = get(store, path, **options)
        if threading.current_thread() is thread:
            seen.set()
        return found

    monkeypatch.setattr(obstore, "delete", late)
    monkeypatch.setattr(obstore, "get", see)
    storage.remove("one", held)
    thread.join(10)
    assert begun == [(record(run="later"), True)]
    assert other.read("one") == record(run="later")


def test_a_slow_removal_makes_sure_that_it_is_still_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    storage, other = ObjectStorage(store), ObjectStorage(store)
    monkeypatch.setattr(objects_removal, "_GRACE", 0.0)
    later = time.monotonic()
    monkeypatch.setattr(objects_removal, "monotonic", lambda: later)
    delete = obstore.delete

    def slow(store: Any, path: Any) -> None:
        nonlocal later
        later += 5
        delete(store, path)

    monkeypatch.setattr(obstore, "delete", slow)
    held = step(storage, create(storage), b"r" * 40_000)
    storage.remove("one", held)
    assert keys(store) == []

    held = step(storage, create(storage), b"r" * 40_000)

    def slower(store: Any, path: Any) -> None:
        slow(store, path)
        other.claim(record(run="later"), NOW, True)

    monkeypatch.setattr(obstore, "delete", slower)
    storage.remove("one", held)
    assert storage.read("one") == record(run="later")


def test_a_removal_that_never_comes_to_its_end_is_left_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    storage: Any = ObjectStorage(store)
    create(storage)
    ticks = count(0, 100)
    monkeypatch.setattr(objects_removal, "monotonic", lambda: next(ticks))
    storage.remove("one")
    assert storage.read("one") is None
    assert keys(store) == ["exec/one/record"]


def retries(most: int) -> Any:
    backoff = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=50), "base": 2}
    return {"max_retries": most, "backoff": backoff, "retry_timeout": timedelta(seconds=20)}


def quick(server: SeaweedServer, proxy: Proxy, most: int = 10) -> S3Store:
    options = {**server.options, "endpoint": proxy.url, "prefix": new_prefix()}
    return S3Store(**options, retry_config=retries(most))


@pytest.fixture
def proxy(seaweed_server: SeaweedServer) -> Iterator[Proxy]:
    with Proxy(seaweed_server.options["endpoint"]) as proxy:
        yield proxy


@pytest.mark.parametrize("lost", range(3))
def test_a_lost_answer_changes_nothing(seaweed_server: SeaweedServer, proxy: Proxy, lost: int) -> None:
    storage: Any = ObjectStorage(quick(seaweed_server, proxy))
    large = b"x" * 100_000

    def cut() -> None:
        proxy.lose_after = lost

    cut()
    assert storage.claim(record(lease=0.0), NOW, True) == (record(lease=0.0), True)
    cut()
    held, taken = storage.claim(record(), NOW, True)
    assert taken
    assert held == record(token=2)
    cut()
    held = step(storage, held)
    cut()
    held = step(storage, held, large)
    cut()
    storage.save(held, Result(5, data=large))
    assert history(storage, held) == {0: b"1", 1: large, 5: large}
    cut()
    assert storage.signal("one", "go", b"1", NOW) == (held, True)
    new = record(run="run-2", token=held.token + 1)
    cut()
    storage.restart(new, held)
    cut()
    storage.remove("one", new)
    proxy.lose_after = None
    assert storage.read("one") is None
    assert storage.find("", 9) == []


def test_a_commit_the_answer_to_which_was_lost_is_found_without_retries_too(
    seaweed_server: SeaweedServer, proxy: Proxy
) -> None:
    storage: Any = ObjectStorage(quick(seaweed_server, proxy, 0))
    held = create(storage)
    proxy.lose_after = 0
    held = step(storage, held)
    assert storage.read("one") == held
    proxy.lose_after = 0
    with pytest.raises(StorageError, match=r"^object store: .*: check that it can be reached: its endpoint, region"):
        storage.signal("one", "go", b"1", NOW)
    assert history(storage, step(storage, held)) == {0: b"1", 1: b"1"}


def test_a_change_lost_among_those_of_others_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    storage, other = ObjectStorage(store), ObjectStorage(store)
    held, put = create(storage), obstore.put

    def lose(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(obstore, "put", put)
        put(*arguments, **options)
        for number in range(10):
            other.signal("one", f"s{number}", b"1", NOW)
        return put(*arguments, **options)  # as a client does that tries again

    monkeypatch.setattr(obstore, "put", lose)
    held = step(storage, held)
    assert history(storage, held) == {0: b"1"}
    held = step(storage, held)
    assert storage.received(held, "s9") == b"1"


def test_signals_come_between_commits_without_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    storage, other = ObjectStorage(store), ObjectStorage(store)
    held, put = create(storage), obstore.put

    def after_a_signal(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(obstore, "put", put)
        other.signal("one", "go", b"1", NOW)
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", after_a_signal)
    held = step(storage, held, b"x" * 100_000)
    assert storage.received(held, "go") == b"1"
    assert history(other, held) == {0: b"x" * 100_000}
    assert len(keys(store)) == 2

    def always(*arguments: Any, **options: Any) -> Any:
        raise obstore.exceptions.PreconditionError

    monkeypatch.setattr(obstore, "put", always)
    with pytest.raises(StorageError, match=r"^object store: too many write 'one' at once: try again$"):
        storage.signal("one", "again", b"1", NOW)


def test_round_trips(seaweed_server: SeaweedServer, proxy: Proxy) -> None:
    store = quick(seaweed_server, proxy)
    storage: Any = ObjectStorage(store)

    def taken(function: Callable[..., Any], *arguments: Any) -> int:
        before = proxy.round_trips
        function(*arguments)
        return proxy.round_trips - before

    held = record(lease=0.0)
    assert taken(storage.claim, held, NOW, True) == 2
    assert taken(storage.claim, record(), NOW, True) == 2
    held = record(token=2)
    assert taken(step, storage, held) == 1
    held = held._replace(token=3, step=1)
    assert taken(step, storage, held, b"x" * 100_000) == 2
    held = held._replace(token=4, step=2)
    commits = 0
    for _ in range(998):
        commits += taken(step, storage, held, b"y" * 200)
        held = held._replace(token=held.token + 1, step=held.step + 1)
    segments = commits - 998
    assert segments <= 10
    other = ObjectStorage(store, check=False)
    assert taken(other.claim, record(run="", lease=NOW + 999), NOW + 99, False) == 2
    held = held._replace(token=held.token + 1)
    assert taken(history, other, held) == segments + 1  # and one that is large
    assert taken(other.remove, "one", held) <= 4 + segments + 1


def test_a_server_that_is_away_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: dict[str, Any] = {
        "bucket": "b",
        "endpoint": "http://127.0.0.1:9",
        "access_key_id": "k",
        "secret_access_key": "s",
    }
    store = S3Store(**gone, region="r", client_options={"allow_http": True}, retry_config={"max_retries": 0})
    text = r"^object store: .*127\.0\.0\.1:9.*: check that it can be reached: its endpoint, region, bucket and credent"
    with pytest.raises(StorageError, match=text) as caught:
        ObjectStorage(store)
    assert "Debug source" not in str(caught.value)
    storage: Any = ObjectStorage(store, check=False)
    for method, arguments in (
        (storage.claim, (record(), NOW, True)),
        (storage.commit, (record(), 1)),
        (storage.remove, ("one",)),
        (storage.find, ("", 9)),
        (storage.due, (NOW, 9)),
    ):
        with pytest.raises(StorageError, match=text):
            method(*arguments)


@pytest.mark.parametrize("budget", [0, math.inf])
def test_the_server_is_killed_in_the_midst_of_200_executions(own_server: OwnServer, budget: float) -> None:
    server = own_server(SeaweedServer())

    async def call(category: str, name: str, input: int) -> int:
        return input**2

    async def run() -> None:
        storage = ObjectStorage(S3Store(**server.options, retry_config=retries(5)))
        flow = FlowExecutor(storage, call=call, budget=budget, lease=0.5, retain=True)
        await Crowd(flow, 200).run_and_kill(server)

    asyncio.run(run())


# Whole workflows.


def test_workflows_run_plain_and_async_64_at_once(store: ObjectStore) -> None:
    storage = ObjectStorage(store)
    flow = FlowExecutor(storage, call=echo, budget=math.inf)

    def workflow(input: dict[str, int]) -> Generator[Any, Any, Any]:
        first = yield tool("t", "a", "x" * input["size"])
        both = yield [tool("t", "b", 1), tool("t", "c", 2)]
        return [len(first), both]

    async def run(number: int) -> Any:
        return await flow.execute(workflow, f"id-{number}", {"size": number * 1000})

    async def run_all() -> list[Any]:
        return await asyncio.gather(*map(run, range(64)))

    assert asyncio.run(run_all()) == [[number * 1000, [1, 2]] for number in range(64)]
    assert flow.execute_sync(workflow, "plain", {"size": 100_000}) == [100_000, [1, 2]]
    assert keys(store) == []


def test_a_loop_decides_which_functions_are_used(tmp_path: Path) -> None:
    storage, folder = ObjectStorage(MemoryStore()), ObjectStorage(LocalStore(tmp_path))

    async def within() -> None:
        assert storage.is_async()
        assert not folder.is_async()
        assert await settle(storage.read("one")) is None
        assert folder.read("one") is None
        assert ObjectStorage(MemoryStore()).is_async()  # its check needs no loop

    asyncio.run(within())
    assert not storage.is_async()
    assert storage.read("one") is None
    storage.close()


# What is refused.


class Deaf(BaseHTTPRequestHandler):
    """As much of S3 as a few requests need, and blind for one of two conditions."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    ignored: str

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        there = self.objects.get(self.path)
        known = self.headers["If-Match"] if self.ignored != "If-Match" else None
        fails = there is not None and self.headers["If-None-Match"] == "*" and self.ignored != "If-None-Match"
        if self.command == "GET" or (known and there is None):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.command == "DELETE" or (self.command == "POST" and "delete" in self.path):
            self.objects.clear()
        elif fails or (known and known != tag(there)):
            self.send_response(412)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        else:
            self.objects[self.path] = body
        self.send_response(200)
        self.send_header("ETag", tag(body))
        answer = b"<DeleteResult><Deleted><Key>k</Key></Deleted></DeleteResult>" if self.command == "POST" else b""
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that the base class calls

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


def tag(body: bytes | None) -> str:
    return f'"{body!r}"'


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match", ""])
def test_a_store_that_ignores_conditions_is_refused(ignored: str) -> None:
    deaf: Any = type("BoundDeaf", (Deaf,), {"objects": {}, "ignored": ignored})
    with ThreadingHTTPServer(("127.0.0.1", 0), deaf) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            store = S3Store(
                "b",
                endpoint=f"http://127.0.0.1:{listener.server_port}",
                skip_signature=True,
                client_options={"allow_http": True},
            )
            if ignored:
                with pytest.raises(
                    StorageError, match=rf"^object store: S3Store.* ignores {ignored}, so two writers at"
                ):
                    ObjectStorage(store)
            else:
                ObjectStorage(store)
                folder = bucket.Bucket(store, "")
                found = ask(folder.swap("id", b"a", None))
                ask(folder.erase("id", found))
                with pytest.raises(bucket.Conflict):  # to which S3 says that there is nothing, not that it is another
                    ask(folder.swap("id", b"a", found))
            assert deaf.objects == {}
            ObjectStorage(store, check=False)
        finally:
            listener.shutdown()
            thread.join()


def test_a_check_leaves_nothing_behind(store: ObjectStore) -> None:
    ObjectStorage(store, prefix="a/b/")
    assert keys(store) == []


def test_what_cannot_be_used_is_refused_with_a_remedy(
    seaweed_server: SeaweedServer, gcs_server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**gcs_server.options, "bucket": "no-such-bucket"}
    missing = GCSStore(**options)
    with pytest.raises(StorageError, match=r"^object store: .*: create the bucket or folder, or correct its name$"):
        ObjectStorage(missing)
    with pytest.raises(StorageError, match=r": create the bucket or folder, or correct its name$"):
        ObjectStorage(missing, check=False).claim(record(), NOW, True)
    options = {**seaweed_server.options, "secret_access_key": "wrong"}
    stranger = S3Store(**options)
    with pytest.raises(StorageError, match=r": allow to read, write, delete and list: else S3 hides what is missing$"):
        ObjectStorage(stranger)
    disabled = S3Store(**seaweed_server.options, conditional_put="disabled")
    with pytest.raises(StorageError, match=r": use a store that takes conditional writes, and leave conditional_put="):
        ObjectStorage(disabled)
    for prefix in ("exec", "/", "a//", "a/../", "a b/"):
        with pytest.raises(ValueError, match=r"^prefix= is empty, or names of A-Z .* behind each: not "):
            ObjectStorage(MemoryStore(), prefix=prefix)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(
        StorageError, match=r"^object store: LocalStore.* needs fcntl to lock files: use SQLiteStorage$"
    ):
        ObjectStorage(LocalStore(tmp_path))


def test_without_obstore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bucket_requests, bucket, objects):
        with monkeypatch.context() as patched:
            for name in ("obstore", "obstore.store"):
                patched.setitem(sys.modules, name, None)
            with pytest.raises(
                NotInstalled, match=r"^'obstore.*' is not installed: pip install 'sequential-flow\[objects\]'$"
            ):
                importlib.reload(module)


def test_what_is_damaged_or_later_is_refused() -> None:
    store = MemoryStore()
    obstore.put(store, "exec/one/record", b"sequential/2 abc\n{}\n")
    with pytest.raises(
        StorageError, match=r"^object store: 'exec/one/record' is damaged, or of a later release: restore"
    ):
        ObjectStorage(store).read("one")


@pytest.mark.parametrize("missing", [1, 100, 5_000, 15_000])
def test_what_was_cut_off_is_refused(missing: int) -> None:
    store = MemoryStore()
    storage: Any = ObjectStorage(store)
    held = create(storage, input=b"i" * 9_000)
    step(storage, held, b"x" * 9_000)
    whole = bytes(obstore.get(store, "exec/one/record").bytes())
    obstore.put(store, "exec/one/record", whole[:-missing])
    other: Any = ObjectStorage(store)
    with pytest.raises(StorageError, match=r"a record is damaged \(its end is missing\): restore it"):
        other.read("one")
    assert other.due(NOW + 99, 9) == []


def test_urls(
    seaweed_server: SeaweedServer, azurite_server: AzuriteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, azure = seaweed_server.options, azurite_server.options
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret_access_key"])
    monkeypatch.setenv("AWS_REGION", options["region"])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", azure["account_name"])
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure["account_key"])
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure["endpoint"])
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    buckets = f"s3://{options['bucket']}/{new_prefix()}", f"az://{azure['container_name']}/{new_prefix()}"
    for url in (*buckets, f"file://{tmp_path}/new", "memory:///"):
        storage: Any = ObjectStorage.from_url(url, prefix="")
        held = step(storage, create(storage))
        assert storage.find("", 9) == [held]
        storage.remove("one")
    assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new" / "one").exists()


def test_the_oldest_of_what_is_remembered_is_forgotten() -> None:
    recent = Recent[int](2)
    for number in range(3):
        assert recent.put(f"{number}", number) is None
    assert [recent.get(f"{number}") for number in range(3)] == [None, 1, 2]
    assert recent.put("1", None) == 1
    assert recent.get("1") is None


def test_what_dead_writers_left_long_ago_goes_with_the_next_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    storage = ObjectStorage(store)
    for key in ("exec/one/some-run/7-abc.0", "exec/two/some-run/7-abc.0"):
        obstore.put(store, key, b"left")
    create(storage)
    storage.remove("one")
    assert len(keys(store)) == 2
    create(storage)
    monkeypatch.setattr(bucket, "_LEFT_OVER", -60.0)
    storage.remove("one")
    assert keys(store) == ["exec/two/some-run/7-abc.0"]


def test_a_process_that_ends_at_once_ends_well() -> None:
    """What obstore's threads still hold when an answer has come must not abort the interpreter's end."""
    code = (
        "import asyncio\n"
        "from obstore.store import MemoryStore\n"
        "from sequential.stores.objects import ObjectStorage\n"
        "from sequential.storage import Record\n"
        "async def main():\n"
        "    storage = ObjectStorage(MemoryStore())\n"
        "    await storage.claim(Record('one', 'run', token=1, lease=2e9), 1.0, True)\n"
        "    assert await storage.read('one')\n"
        "asyncio.run(main())\n"
    )
    for _ in range(8):  # without the wait, every second one is aborted
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "body", [b"", b"sequential/1 aa\n", b"sequential/1 aa\n{}", b'sequential/1 aa\n{"record":{},"tail":[]}\n']
)
def test_a_damaged_record_is_in_nobody_elses_way(body: bytes) -> None:
    store = MemoryStore()
    storage: Any = ObjectStorage(store)
    record = Record("other", "run", token=1, due=1.0)
    storage.claim(record, 1.0, True)
    obstore.put(store, "exec/damaged/record", body)
    assert storage.due(2.0, 9) == [record]
    with pytest.raises(StorageError, match="damaged"):
        storage.read("damaged")
