"""Redis, on a real server and on a real cluster of one node, which refuses what one of many would refuse."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import count, product
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from sequential import FlowExecutor, Paused, stores
from sequential.blocking import blocking
from sequential.errors import Fenced, NotInstalled, StorageError
from sequential.storage import Journal, Record, Result, settle
from sequential.stores import redis as module
from sequential.stores import redis_lua as lua
from sequential.stores.redis import RedisStorage
from sequential.stores.redis_macros import FOUND, TAKEN
from sequential.testing import (
    CapabilityTests,
    JournalTests,
    StorageTests,
    crash_points,
)
from sequential.testing.conformance import StorageSuite
from tests.conftest import OwnServer, required
from tests.servers.processes import until
from tests.servers.proxy import Proxy
from tests.servers.valkey import ValkeyServer
from tests.stores.support import LARGE, NOW, Crowd, commit_and_die, dies, held, peaks, race, square, squares, take
from tests.stores.support import step as do_step

KINDS = ("Redis", "RedisCluster")

_numbers = count()


def new_prefix() -> str:
    return f"test{os.getpid()}-{next(_numbers)}:"  # a server of someone else's may have keys of an earlier run


def connect(server: ValkeyServer, kind: str, url: str = "", **options: Any) -> Any:
    import redis
    import redis.asyncio

    home = redis.asyncio if kind.startswith("Async") else redis
    return getattr(home, kind.removeprefix("Async")).from_url(url or server.url, **options)


@pytest.fixture(scope="session")
def plain_server() -> Iterator[ValkeyServer]:
    """One that does not wait for its disk, which these tests do not take away."""
    with required(ValkeyServer("--appendonly", "no", address=os.environ.get(ValkeyServer.variable))) as server:
        yield server


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[ValkeyServer]:
    with required(ValkeyServer("--appendonly", "no", cluster=True)) as server:
        yield server


class RedisTests(StorageSuite):
    """Where the suite finds a storage: a prefix of its own for each test."""

    server: ClassVar[ValkeyServer]
    kind: ClassVar[str]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def find_server(cls, plain_server: ValkeyServer, cluster_server: ValkeyServer) -> None:
        cls.server = cluster_server if "Cluster" in cls.kind else plain_server

    def make(self) -> Journal:
        self.prefix, self.opened = new_prefix(), list[RedisStorage]()
        return self.another(None)

    def another(self, storage: Any) -> RedisStorage:
        self.opened.append(RedisStorage(connect(self.server, self.kind), prefix=self.prefix))
        return self.opened[-1]

    async def discard(self, storage: Any) -> None:
        for opened in self.opened:
            await settle(opened.close())


class TestRedis(RedisTests, JournalTests):
    kind = "Redis"


class TestAsyncRedis(RedisTests, StorageTests, CapabilityTests):
    kind = "AsyncRedis"


class TestRedisCluster(RedisTests, StorageTests, CapabilityTests):
    kind = "RedisCluster"


class TestAsyncRedisCluster(RedisTests, StorageTests, CapabilityTests):
    kind = "AsyncRedisCluster"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def server(kind: str, plain_server: ValkeyServer, cluster_server: ValkeyServer) -> ValkeyServer:
    return cluster_server if "Cluster" in kind else plain_server


@pytest.fixture
def storage(kind: str, server: ValkeyServer) -> Iterator[Any]:
    with closing(RedisStorage(connect(server, kind), prefix=new_prefix())) as made:
        yield made


@pytest.fixture
def plain(plain_server: ValkeyServer) -> Iterator[Any]:
    with closing(RedisStorage(connect(plain_server, "Redis"), prefix=new_prefix())) as made:
        yield made


@pytest.fixture
def clustered(cluster_server: ValkeyServer) -> Iterator[Any]:
    with closing(RedisStorage(connect(cluster_server, "RedisCluster"), prefix=new_prefix())) as made:
        yield made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART_SIZE", 1000)


def keys(storage: Any) -> dict[str, str]:
    """The types of all keys of a storage, by what follows its prefix."""
    client, prefix = storage._scripts.client, storage._keys._prefix
    found = client.scan_iter(match=f"*{prefix}*", count=1000)
    return {key.decode().replace(prefix, ""): client.type(key).decode() for key in found}


def another(storage: Any, **options: Any) -> Any:
    return RedisStorage(storage._scripts.client, prefix=storage._keys._prefix, **options)


class TestTogether:
    def test_one_of_32_commits_a_thousand_times(self, plain_server: ValkeyServer) -> None:
        self.race(plain_server, "AsyncRedis", "_commit", 1000)  # without looking up what became of the refused ones

    def test_one_of_32_commits(self, kind: str, server: ValkeyServer) -> None:
        self.race(server, f"Async{kind}", "commit", 30)

    def race(self, server: ValkeyServer, kind: str, method: str, rounds: int) -> None:
        async def run() -> None:
            storage: Any = RedisStorage(connect(server, kind), prefix=new_prefix())
            commit, nothing = getattr(storage, method), () if method == "commit" else (None, None)
            await race(storage, rounds, lambda new, token, result: commit(new, token, result, *nothing))
            await storage.close()

        asyncio.run(run())

    def test_one_of_32_takes_the_lease(self, kind: str, server: ValkeyServer) -> None:
        async def run() -> None:
            storage: Any = RedisStorage(connect(server, f"Async{kind}"), prefix=new_prefix())
            await take(storage, 50)
            await storage.close()

        asyncio.run(run())


class TestSizes:
    def test_a_hundred_megabytes_go_in_and_out(self, storage: Any) -> None:
        record, data = held(storage), b"\x00\xff\x80 " * (LARGE // 4)
        new = record._replace(token=2, step=1)
        storage.commit(new, 1, Result(0, "large", data=data))
        storage.save(new, Result(1, "small", data=b"1"))
        ((_, _, _, found, *_),) = storage.results(new, 0, 2)
        assert found == data
        assert [result.data for result in storage.results(new, 1, 2)] == [b"1"]
        storage.remove("one")
        assert not [key for key in keys(storage) if key.startswith("{one}:0")]

    def test_large_inputs_and_signals(self, storage: Any) -> None:
        data = b"\x00" * 20_000_000
        record = held(storage, input=data)
        assert storage.read("one") == record
        assert storage.find("", 5) == storage.due(NOW + 60, 5) == [record]
        assert storage.claim(record._replace(lease=NOW + 99), NOW + 60, True) == (
            record._replace(token=2, lease=NOW + 99),
            True,
        )
        assert storage.signal("one", "yes", data, NOW) == (record._replace(token=2, lease=NOW + 99), True)
        assert storage.received(record, "yes") == data
        again = record._replace(run="again", input=data[1:])
        storage.restart(again, record._replace(token=2))
        assert storage.read("one") == again
        small = again._replace(run="small", input=b"{}")
        storage.restart(small, again)
        assert storage.read("one") == small
        assert [key for key in keys(storage) if key.startswith("{one}:-1")] == []
        storage.remove("one")
        assert {key for key in keys(storage) if "void" not in key} == set()

    def test_an_input_whose_creator_dies_or_comes_second(self, storage: Any, small_parts: None) -> None:
        record, point = Record("one", "run", input=b"1" * 2500, lease=NOW + 60), 0
        other = record._replace(run="other", input=b"2" * 3500)
        while dies(storage._scripts, "run", point, partial(storage.claim, record, NOW, True)):
            found = storage.read("one")
            assert found in {None, record}
            claimed, taken = storage.claim(other._replace(lease=NOW + 100), NOW + 60 * (found is not None), True)
            assert taken
            expected = record._replace(token=1) if found else other
            assert claimed == storage.read("one") == expected._replace(lease=NOW + 100)
            storage.remove("one")
            point += 1
        assert point > 8
        left = [key for key in keys(storage) if key.startswith("{one}:-1")]
        used = storage._scripts.client.hget(f"{storage._keys._prefix}{{one}}", "large").decode()
        assert left
        ttls = {key: storage._scripts.client.ttl(f"{storage._keys._prefix}{key}") for key in left}
        assert ttls.pop(f"{{one}}:{used}") == -1
        assert all(0 < ttl <= 86400 for ttl in ttls.values()), ttls

    def test_an_input_whose_parts_are_gone(self, storage: Any, small_parts: None) -> None:
        record = Record("one", "run", input=b"1" * 2500, lease=NOW + 60)
        between(storage, 4, drop_parts, partial(refused, storage, record))
        assert storage.read("one") is None
        held(storage, input=record.input)
        drop_parts(storage)
        with pytest.raises(StorageError, match="parts of the input of execution 'one' are gone: let the server evict"):
            storage.read("one")

    def test_an_input_that_is_replaced_while_it_is_read(self, storage: Any, small_parts: None) -> None:
        record = held(storage, input=b"1" * 2500)
        again = record._replace(run="again", input=b"2" * 2500)
        found = between(storage, 2, lambda other: other.restart(again, record), partial(storage.read, "one"))
        assert found == again
        assert between(storage, 2, lambda other: other.remove("one"), partial(storage.read, "one")) is None

    def test_a_large_result_that_is_deleted_while_it_is_read(self, storage: Any, small_parts: None) -> None:
        record = held(storage)
        storage.commit(record._replace(token=2, step=1), 1, Result(0, data=b"1" * 1001))
        with pytest.raises(Fenced):
            between(storage, 2, lambda other: other.remove("one"), partial(storage.results, record, 0, 1))

    def test_a_writer_dies_between_any_two_parts(self, storage: Any, small_parts: None) -> None:
        results = [Result(0, "first", data=b"1" * 3001), Result(0, "second", data=b"2" * 2001)]

        def removed(id: str) -> None:
            assert {key for key in keys(storage) if "void" not in key} == set()

        requests = (storage._scripts, "run")
        for goes_on in (True, False):  # what nobody has overwritten is removed, too
            points = commit_and_die(storage, storage, requests, results, removed=removed, goes_on=goes_on)
            assert points > 8

    def test_a_large_result_replaces_another(self, storage: Any, small_parts: None) -> None:
        record = held(storage)
        for size in (3500, 4500, 10, 2500):
            storage.save(record, Result(0, data=b"x" * size))
            storage.save(record, Result(1, data=b"y" * 1500))
            assert [len(storage.results(record, step, 2)[0].data) for step in range(2)] == [size, 1500]
            assert len([key for key in keys(storage) if key.count(":") == 2]) == 1 + (size > 1000)
            parts = storage._scripts.client.hget(f"{storage._keys._prefix}{{one}}", "large").split()
            assert len(parts) == 1 + (size > 1000)

    def test_memory_stays_within_a_few_results(self, plain_server: ValkeyServer) -> None:
        written, read = peaks(
            "import redis\n"
            "from sequential.stores.redis import RedisStorage\n"
            f"storage = RedisStorage(redis.Redis.from_url({plain_server.url!r}), prefix={new_prefix()!r})\n"
        )
        assert written < 1.5 * LARGE
        assert read < 2.5 * LARGE


def refused(storage: Any, record: Record) -> None:
    with pytest.raises(StorageError, match="the parts of the input are gone: nothing was recorded"):
        storage.claim(record, NOW, True)


def drop_parts(storage: Any) -> None:
    for key in keys(storage):
        if key.startswith("{one}:-1"):
            storage._scripts.client.delete(f"{storage._keys._prefix}{key}")


def between(storage: Any, requests: int, interrupt: Callable[[Any], Any], action: Callable[[], Any]) -> Any:
    """Do something, and when it has made so many requests, something else by another storage."""
    evaluate, left = storage._scripts.run, [requests]

    async def evaluate_or_interrupt(*arguments: Any) -> Any:
        if left[0] == 0:
            interrupt(another(storage))
        left[0] -= 1
        return await evaluate(*arguments)

    storage._scripts.run = evaluate_or_interrupt
    try:
        return action()
    finally:
        storage._scripts.run = evaluate
        assert left[0] < 0 or requests > 99


def record_requests(storage: Any) -> tuple[list[tuple[Any, ...]], Callable[..., Any]]:
    """A list to which all is added that a storage sends from now on, and what sends such a request again."""
    evaluate, sent = storage._scripts.run, list[tuple[Any, ...]]()

    async def evaluate_and_keep(*arguments: Any) -> Any:
        sent.append(arguments)
        return await evaluate(*arguments)

    storage._scripts.run = evaluate_and_keep
    return sent, blocking(evaluate)


def all_of_one(storage: Any) -> tuple[Any, ...]:
    """All that there is of an execution, and what of it is going to expire."""
    record, begin = storage.read("one"), f"{storage._keys._prefix}{{one}}"
    kept = record and (storage.results(record, 0, 9), [storage.received(record, name) for name in ("go", "other")])
    closed = sorted(name for name in storage._scripts.client.hkeys(f"{begin}:signals") if name.endswith(b" taken"))
    parts = (storage._scripts.client.hget(begin, "large") or b"").decode().split()
    expiries = [storage._scripts.client.ttl(f"{begin}:{part}") for part in parts]
    return record, kept, closed, expiries, storage.due(9e9, 9), storage.find("", 9)


def entries(storage: Any, index: str) -> list[str]:
    return [entry.decode() for entry in storage._scripts.client.zrange(getattr(storage._keys, index), 0, -1)]


def check_index(storage: Any, *ids: str) -> None:
    """Whatever exists is listed, when it should ring and by its id; and having listed it, nothing else is."""
    records = [record for id in sorted(ids) if (record := storage.read(id))]
    for record in records:
        if record.rings_at is not None:
            assert record in storage.due(record.rings_at, 99)
    assert storage.find("", 99) == records
    assert storage.due(9e9, 99) == sorted(
        (record for record in records if record.rings_at is not None), key=lambda record: record.rings_at or 0.0
    )
    in_due = [entry.rpartition(" ")[0] if storage._scripts.is_cluster else entry for entry in entries(storage, "_due")]
    assert sorted(in_due) == [record.id for record in records if record.rings_at is not None]


def prepare(storage: Any, id: str) -> dict[str, Callable[[Any], Any]]:
    """Every act that writes the index, by the id of what it is done to; one of these can be done, beside another."""
    kinds: dict[str, dict[str, Any]] = {
        **{name: {} for name in ("pause", "rest", "park", "restart", "remove")},
        "claim": {"lease": 0.0, "due": None},
        "claim later": {"lease": 0.0, "due": NOW},
        "signal": {"lease": 0.0, "due": None, "status": "waiting", "waits": "yes"},
    }
    records = {name: held(storage, name, **fields) for name, fields in kinds.items() if name in {id, "claim later"}}

    def commit(id: str, **fields: Any) -> Callable[[Any], Any]:
        return lambda storage: storage.commit(records[id]._replace(token=2, **fields), 1, Result(0, data=b"0"))

    def claim(id: str) -> Callable[[Any], Any]:
        return lambda storage: storage.claim(Record(id, "new", token=1, lease=NOW + 90), NOW + 1, True)

    return {
        "pause": commit("pause", lease=0.0, due=NOW + 30, step=1),
        "rest": commit("rest", lease=0.0, due=NOW + 3000, step=1),
        "park": commit("park", lease=0.0, due=None, step=1),
        "restart": lambda storage: storage.restart(
            records["restart"]._replace(run="later", token=2, lease=0.0, due=NOW - 9), records["restart"]
        ),
        "remove": lambda storage: storage.remove("remove"),
        "claim": claim("claim"),
        "claim later": claim("claim later"),
        "signal": lambda storage: storage.signal("signal", "yes", b"1", NOW + 2),
        "create": claim("create"),
    }


ACTS = ("pause", "rest", "park", "restart", "remove", "claim", "claim later", "signal", "create")


class TestIndex:
    @pytest.mark.parametrize("id", ACTS)
    def test_whoever_dies_leaves_nothing_unlisted(self, kind: str, server: ValkeyServer, id: str) -> None:
        point, died = 0, True
        while died:
            with closing(RedisStorage(connect(server, kind), prefix=new_prefix())) as storage:
                acts = prepare(storage, id)
                died = dies(storage._scripts, "run", point, partial(acts[id], storage))
                check_index(storage, *acts)
                assert storage.find("", 99) == another(storage).find("", 99)
                point += 1
        assert point > 2

    @pytest.mark.parametrize("id", ACTS)
    def test_whoever_lists_meanwhile_leaves_nothing_unlisted(self, clustered: Any, id: str) -> None:
        """However far an act has come, and again between any two requests of it."""
        for requests in range(8):
            for times in (1, 99):
                storage: Any = RedisStorage(clustered._scripts.client, prefix=new_prefix())
                acts, others = prepare(storage, id), another(storage)
                interleave(storage, requests, times, partial(acts[id], storage), partial(mend, others))
                check_index(storage, *acts)

    def test_a_signal_and_a_sweep_in_each_others_midst(self, clustered: Any) -> None:
        """Each is interrupted by all of the other, after any number of its requests."""

        def signal(storage: Any, id: str, *_: Any) -> None:
            storage.signal(id, "yes", b"1", NOW + 2)

        for requests in range(8):
            for first, second in ((partial(mend, clustered), signal), (partial(signal, clustered), mend)):
                id = f"{requests}-{'sweep' if second is signal else 'signal'}"
                held(clustered, id, lease=0.0, due=None, waits="yes")
                interleave(clustered, requests, 1, partial(first, id), partial(second, another(clustered), id))
                signal(clustered, id)
                assert id in [record.id for record in clustered.due(NOW + 2, 99)]

    def test_what_a_claim_finds_may_go_before_its_second_request(self, clustered: Any) -> None:
        others = another(clustered)
        for requests in range(5):
            for name, due in (("held", NOW), ("waits", None)):
                held(others, "one", run=name, lease=0.0, due=due)
                others.due(9e9, 9)  # what waits has no entry now
                new = Record("one", "new", token=1, lease=NOW + 60)
                interleave(
                    clustered, requests, 1, partial(clustered.claim, new, NOW, True), lambda _: others.remove("one")
                )
                check_index(others, "one")
                others.remove("one")

    def test_the_earliest_come_first_however_their_entries_stand(self, storage: Any) -> None:
        record = Record("", "")
        for number in range(5):
            record = held(storage, f"id-{number}")
            storage.commit(record._replace(token=2, lease=0.0, due=NOW + 50 - number), 1)
            record = record._replace(token=3, lease=0.0, due=NOW + 100 - number)
            storage.commit(record, 2)  # not before its entry, which stays
        assert [record.id for record in storage.due(NOW + 200, 3)] == ["id-4", "id-3", "id-2"]
        assert storage.due(NOW + 96, 3) == [record]

    def test_all_that_are_due_come_at_once_however_many_entries_move(self, storage: Any) -> None:
        for limit, now in product((1, 3, 31, 32, 99), (NOW + 15, NOW + 25, NOW + 200)):
            ours: Any = RedisStorage(storage._scripts.client, prefix=new_prefix())
            records: list[Any] = []
            for first, last in ((10, 20), (10, 100), (10, 10), (90, 95)):
                for number in range(8):
                    record = held(ours, f"{first}-{last}-{number}", lease=0.0, due=NOW + first + number / 100)
                    if last > first:
                        record = record._replace(token=2, due=NOW + last + number / 100)
                        ours.commit(record, 1)
                    records.append(record)
            records.sort(key=lambda record: record.due)
            assert ours.due(now, limit) == [record for record in records if record.due <= now][:limit]

    def test_an_entry_that_nobody_names_any_more_goes(self, clustered: Any) -> None:
        with pytest.raises(StorageError):
            interleave(clustered, 2, 1, partial(held, clustered), fail)
        assert (len(entries(clustered, "_due")), len(entries(clustered, "_ids"))) == (1, 1)
        assert clustered.due(NOW + 60, 9) == clustered.find("", 9) == []
        assert entries(clustered, "_due") == entries(clustered, "_ids") == []
        record = held(clustered)
        interleave(clustered, 1, 9, partial(clustered.remove, "one"), fail)
        assert (len(entries(clustered, "_due")), len(entries(clustered, "_ids"))) == (1, 1)
        assert clustered.read("one") is None
        clustered.claim(record, NOW, True)
        check_index(clustered, "one")

    def test_a_request_that_comes_again_much_later(self, clustered: Any) -> None:
        record = held(clustered)
        sent, send = record_requests(clustered)
        clustered.commit(record._replace(lease=NOW + 30), 1)
        commit = [arguments for arguments in sent if arguments[0] == lua.COMMIT][-1]
        clustered.commit(record._replace(lease=NOW + 90), 1)
        assert clustered.due(NOW + 40, 9) == []
        send(*commit)
        check_index(clustered, "one")

    def test_only_so_many_are_read(self, storage: Any) -> None:
        for number in range(1010):
            held(storage, f"id-{number:04}", status="failed" if number == 1005 else "running")
        assert [record.id for record in storage.find("id-0002", 2)] == ["id-0003", "id-0004"]
        if not storage._scripts.is_cluster:
            assert [record.id for record in storage.find("", 2, "failed")] == ["id-1005"]


def mend(storage: Any, *_: Any) -> None:
    storage.due(9e9, 99)
    storage.find("", 99)


def fail(_: Any) -> None:
    raise StorageError("the server is away")


def interleave(
    storage: Any, requests: int, times: int, action: Callable[[], Any], interrupt: Callable[[Any], Any]
) -> None:
    """Do something, and something else so many times before each request, after the first few."""
    evaluate, made = storage._scripts.run, [0]

    async def evaluate_or_interrupt(*arguments: Any) -> Any:
        made[0] += 1
        if requests < made[0] <= requests + times:
            interrupt(storage)
        return await evaluate(*arguments)

    storage._scripts.run = evaluate_or_interrupt
    try:
        action()
    finally:
        storage._scripts.run = evaluate


class TestTrouble:
    def test_an_answer_that_is_lost_and_a_driver_that_asks_again(self, plain_server: ValkeyServer, plain: Any) -> None:
        """As redis-py does by default, though not when it is made from a URL."""
        import redis

        with (
            Proxy(plain_server.url) as proxy,
            closing(RedisStorage(redis.Redis(port=urlsplit(proxy.url).port or 0), prefix=plain._keys._prefix)) as ours,
        ):
            storage: Any = ours
            storage.read("one")

            def lose(act: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
                proxy.lose_after = 0
                done = act(*arguments, **options)
                assert proxy.lose_after is None
                return done

            record = Record("one", "run", token=1)
            assert lose(storage.claim, record, NOW, True) == (record, True)
            record = record._replace(token=2, lease=NOW + 60)
            assert lose(storage.claim, record, NOW, True) == (record, True)
            for step in range(3):
                new = record._replace(token=record.token + 1, step=step + 1, due=NOW + step)
                lose(storage.commit, new, record.token, Result(step, "once"))
                assert plain.read("one") == new
                record = new
            assert [result.asked for result in plain.results(record, 0, 9)] == ["once"] * 3
            lose(storage.save, record, Result(3, "ahead"))
            assert lose(storage.signal, "one", "yes", b"1", NOW) == (record, True)
            assert storage.signal("one", "yes", b"2", NOW) == (record, False)
            again = record._replace(run="again", token=99)
            lose(storage.restart, again, record)
            assert plain.read("one") == again
            lose(storage.remove, "one", again)
            assert plain.read("one") is None
            with pytest.raises(Fenced):
                storage.remove("one", again)

    def test_a_claim_that_comes_again_takes_nothing_back(self, storage: Any) -> None:
        """From another, who has it by now."""
        record = held(storage, lease=0.0)
        sent, send = record_requests(storage)
        claimed, _ = storage.claim(record._replace(lease=NOW + 60), NOW, True)
        claim = [arguments for arguments in sent if arguments[0] == lua.CLAIM][-1]
        assert send(*claim)[2] == TAKEN
        cancelled = claimed._replace(token=3, status="cancelled", lease=0.0, due=None)
        storage.commit(cancelled, 2)
        assert send(*claim)[2] == FOUND
        assert storage.read("one") == cancelled

    def test_no_request_that_comes_again_changes_anything(self, storage: Any, small_parts: None) -> None:
        """However late it comes: after each act, all that was sent for the earlier ones is sent once more."""
        record = Record("one", "run", "workflow", b"1" * 2500, token=1, lease=NOW + 60, changed=NOW)
        again = record._replace(run="again", input=b"2" * 3500, token=5)
        mark = Result(1, "tool bank.pay", 7, b"{}", NOW, None, "interrupted")
        signal, remove = partial(storage.signal, "one"), partial(storage.remove, "one")
        acts: list[Callable[[], Any]] = [
            partial(storage.claim, record, NOW, True),
            partial(storage.save, record, mark),
            partial(storage.save, record, mark._replace(data=b"paid", ended=NOW + 1, error=None)),
            partial(storage.commit, record._replace(token=2, step=2), 1, Result(0, data=b"x" * 2500)),
            partial(signal, "go", b"1", NOW),
            partial(signal, "other", b"2", NOW),
            partial(storage.commit, record._replace(token=3, step=3), 2, Result(2), taken="go"),
            partial(storage.commit, record._replace(token=4, step=3), 3, absent="go"),
            partial(signal, "go", b"3", NOW),
            partial(storage.restart, again, record._replace(token=4)),
            partial(remove, again),
            partial(storage.claim, record._replace(run="anew"), NOW, True),
            partial(signal, "go", b"4", NOW),
            partial(remove),
            partial(storage.claim, record._replace(run="last", input=b"{}"), NOW, True),
        ]
        sent, send = record_requests(storage)
        for act in acts:
            act()
            before, count = all_of_one(another(storage)), len(sent)
            for request in sent[:count]:
                with suppress(StorageError):  # parts that are gone
                    send(*request)
                assert all_of_one(another(storage)) == before
        assert storage.read("one") == record._replace(run="last", input=b"{}")

    def test_a_signal_that_is_sent_again_was_kept(self, storage: Any) -> None:
        """Whatever has come, or was taken, in between."""
        record = held(storage)
        sent, send = record_requests(storage)
        for name in ("go", "other"):
            assert storage.signal("one", name, b"1", NOW)[1]
        storage.commit(record._replace(token=2), 1, taken="go")
        storage.commit(record._replace(token=3), 2, absent="go")
        for request in [arguments for arguments in sent if arguments[0] == lua.SIGNAL]:
            assert send(*request)[2] == 1
        assert storage.received(record, "go") is None
        assert storage.signal("one", "go", b"2", NOW)[1]
        assert not storage.signal("one", "go", b"3", NOW)[1]

    def test_an_answer_that_is_lost_and_a_driver_that_gives_up(self, plain_server: ValkeyServer, plain: Any) -> None:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        with Proxy(plain_server.url) as proxy:
            client = connect(plain_server, "Redis", proxy.url, retry=Retry(NoBackoff(), 0))
            with closing(RedisStorage(client, prefix=plain._keys._prefix)) as ours:
                storage: Any = ours
                record = held(storage)
                new = record._replace(token=2, step=1)
                proxy.lose_after = 0
                storage.commit(new, 1, Result(0, "once"))
                assert plain.read("one") == new
                proxy.lose_after = 0
                with pytest.raises(StorageError, match=r"Redis: .*: check that it runs and can be reached"):
                    storage.signal("one", "yes", b"", NOW)

    def test_no_server(self, plain_server: ValkeyServer) -> None:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = connect(plain_server, "Redis", "redis://127.0.0.1:1/0", retry=Retry(NoBackoff(), 0))
        storage: Any = RedisStorage(client)
        with pytest.raises(StorageError, match=r"Redis: Error 111 .* refused.*: check that it runs and can be reached"):
            storage.read("one")

    def test_a_server_that_takes_no_writes(self, own_server: OwnServer) -> None:
        server = own_server(ValkeyServer())
        with closing(RedisStorage(connect(server, "Redis"))) as ours:
            storage: Any = ours
            record, before = held(storage), keys(storage)
            writes = every_write(storage, record)
            storage._scripts.client.replicaof("127.0.0.1", 1)
            for write in writes:
                with pytest.raises(StorageError, match="it takes no writes: connect to the primary"):
                    write()
                assert (storage.read("one"), keys(storage)) == (record, before)
            storage._scripts.client.replicaof("NO", "ONE")
            assert (storage.read("one"), keys(storage)) == (record, before)
            storage._scripts.client.config_set("maxmemory", 1)
            for write in writes[:-2]:
                with pytest.raises(StorageError, match="raise its maxmemory, with maxmemory-policy noeviction"):
                    write()
                assert (storage.read("one"), keys(storage)) == (record, before)
            writes[-2]()  # a script that has begun is not stopped
            assert storage.read("one").step == len(storage.results(record, 0, 9)) == 1
            writes[-1]()
            assert storage.read("one") is None
            storage._scripts.client.config_set("maxmemory", 0)

    def test_what_makes_room_is_done_on_a_server_that_is_full(self, own_server: OwnServer, kind: str) -> None:
        server = own_server(ValkeyServer("--appendonly", "no", cluster="Cluster" in kind))
        with closing(RedisStorage(connect(server, kind))) as ours:
            storage: Any = ours
            records = [held(storage, f"{number}", lease=0.0) for number in range(4)]
            storage.commit(records[0]._replace(token=2, due=None, status="finished"), 1)
            if storage._scripts.is_cluster:  # leave entries that no record names
                with pytest.raises(StorageError):
                    interleave(storage, 2, 1, partial(held, storage, "dies"), fail)
            storage.remove("unknown")  # by now the server knows the scripts, which would take memory, too
            storage._scripts.client.config_set("maxmemory", 1)
            assert storage.due(NOW, 9) == records[1:]
            assert len(storage.find("", 9)) == 4
            storage.remove("1")
            storage.remove("2", records[2])
            storage.remove("unknown")
            assert [record.id for record in storage.find("", 9)] == ["0", "3"]
            with pytest.raises(StorageError, match="raise its maxmemory, with maxmemory-policy noeviction"):
                held(storage)
            storage._scripts.client.config_set("maxmemory", 0)
            check_index(storage, "0", "3")

    def test_a_user_who_may_not(self, own_server: OwnServer) -> None:
        server = own_server(ValkeyServer())
        admin = connect(server, "Redis")
        admin.acl_setuser("guest", enabled=True, passwords=["+secret"], keys=["mine:*"], commands=["+@all"])
        allow = (
            r"allow this user the keys of the prefix \(exec:\*, in a cluster {exec:}\* too\), scripts, and the commands"
        )
        for options, message in (
            ({"username": "guest", "password": "secret"}, allow),
            ({"username": "guest", "password": "wrong"}, "give the client its username= and password="),
        ):
            with closing(RedisStorage(connect(server, "Redis", **options))) as ours:
                storage: Any = ours
                with pytest.raises(StorageError, match=message):
                    storage.claim(Record("one", "run"), NOW, True)
        assert admin.dbsize() == 0
        admin.close()

    @pytest.mark.parametrize("ttl", [None, 1000.0])
    def test_a_user_who_may_not_do_all_loses_nothing(self, own_server: OwnServer, ttl: float | None) -> None:
        server = own_server(ValkeyServer("--appendonly", "no"))
        admin, commands = (
            connect(server, "Redis"),
            ("ZADD", "ZREM", "HKEYS", "HDEL", "UNLINK", "SET", "HSET", "PERSIST"),
        )
        refused = set[str]()
        for command in (*commands, "PEXPIREAT", "TIME", "EXISTS", "HEXISTS", "HMGET", "ZCARD", "GETRANGE"):
            admin.acl_setuser(
                "guest", enabled=True, reset=True, passwords=["+secret"], keys=["*"], commands=["+@all", f"-{command}"]
            )
            for name in ("restart", "remove", "commit"):
                with (
                    closing(RedisStorage(admin, prefix=new_prefix(), ttl=ttl)) as made,
                    closing(connect(server, "Redis", username="guest", password="secret")) as client,
                ):
                    storage: Any = made
                    record = held(storage)
                    storage.commit(record._replace(token=2, step=1), 1, Result(0, data=b"1"))
                    storage.signal("one", "other", b"1", NOW)
                    storage.commit(record._replace(token=3, step=2), 2, Result(1, data=b"2"), taken="other")
                    storage.signal("one", "go", b"1", NOW)
                    before, new = all_of_one(storage), record._replace(token=4, step=3, lease=0.0, due=None)
                    guest: Any = RedisStorage(client, prefix=made._keys._prefix, ttl=ttl)
                    acts = {
                        "restart": partial(guest.restart, new._replace(run="later", step=0), record._replace(token=3)),
                        "remove": partial(guest.remove, "one", record._replace(token=3)),
                        "commit": partial(guest.commit, new, 3, Result(2, data=b"3"), taken="go"),
                    }
                    try:
                        acts[name]()
                    except StorageError as error:
                        assert "no permission" in str(error)
                        assert str(error).endswith("scripts, and the commands in them")
                        assert all_of_one(storage)[:2] == before[:2]
                        refused.add(f"{name}: {command}")
                    else:
                        left = storage.read("one")
                        assert (
                            left == {"restart": new._replace(run="later", step=0), "remove": None, "commit": new}[name]
                        )
        assert {"restart: HKEYS", "restart: HDEL", "remove: SET", "remove: UNLINK", "commit: HDEL"} <= refused

    @pytest.mark.parametrize("index", ["_due", "_ids"])
    def test_an_index_of_someone_else(self, plain: Any, index: str) -> None:
        record = held(plain, lease=0.0)
        new = do_step(plain, record, data=b"1")
        plain._scripts.client.rename(getattr(plain._keys, index), f"{plain._keys._prefix}away")
        plain._scripts.client.set(getattr(plain._keys, index), "another's")
        for act in (partial(plain.remove, "one"), partial(plain.remove, "one", new)):
            with pytest.raises(StorageError, match="another program has keys like these: give a prefix= of your own"):
                act()
        plain._scripts.client.rename(f"{plain._keys._prefix}away", getattr(plain._keys, index))
        assert plain.results(new, 0, 9) == [Result(0, data=b"1")]
        check_index(plain, "one")

    def test_the_keys_of_someone_else(self, storage: Any) -> None:
        storage._scripts.client.set(f"{storage._keys._prefix}{{one}}", "taken")
        with pytest.raises(StorageError, match="another program has keys like these: give a prefix= of your own"):
            storage.claim(Record("one", "run"), NOW, True)

    def test_a_plain_client_of_a_cluster(self, cluster_server: ValkeyServer) -> None:
        with closing(RedisStorage(connect(cluster_server, "Redis"))) as ours:
            storage: Any = ours
            with pytest.raises(StorageError, match="it is part of a cluster: give a RedisCluster client"):
                storage.claim(Record("one", "run"), NOW, True)

    def test_an_execution_that_is_moved_to_another_node(
        self, own_server: OwnServer, cluster_server: ValkeyServer, clustered: Any
    ) -> None:
        """Key by key, so that a script would find some of them, and not the others."""
        here, there = clustered._scripts.client, connect(own_server(ValkeyServer(cluster=True)), "Redis")
        there.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)
        there.execute_command("CLUSTER MEET", "127.0.0.1", cluster_server.port, cluster_server.bus)
        target = there.execute_command("CLUSTER MYID").decode()
        record, key = held(clustered), f"{clustered._keys._prefix}{{one}}"
        slot, node = here.keyslot(key), here.get_node_from_key(key)
        until(lambda: target in str(here.execute_command("CLUSTER NODES", target_nodes=node)), "the node is known")
        here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target, target_nodes=node)
        with pytest.raises(StorageError, match="it moves this execution to another node: try again, nothing was rec"):
            clustered.commit(record._replace(token=2, step=1), 1, Result(0))
        here.execute_command("CLUSTER SETSLOT", slot, "STABLE", target_nodes=node)
        here.execute_command("CLUSTER FORGET", target, target_nodes=node)
        assert clustered.read("one") == record
        there.close()

    def test_a_result_that_is_missing_is_not_skipped(self, storage: Any) -> None:
        record = held(storage)
        for step in range(3):
            new = record._replace(token=record.token + 1, step=step + 1)
            storage.commit(new, record.token, Result(step))
            record = new
        storage._scripts.client.delete(f"{storage._keys._prefix}{{one}}:1")
        assert storage.results(record, 0, 3) == [Result(0)]
        assert storage.results(record, 1, 3) == []

    def test_what_the_driver_has_not_raised_goes_through(self, storage: Any) -> None:
        def evalsha(*_: Any) -> None:
            raise ZeroDivisionError

        storage._scripts.client.evalsha = evalsha
        with pytest.raises(ZeroDivisionError):
            storage.read("one")

    @pytest.mark.parametrize("options", [{}, {"single_connection_client": True}])
    @pytest.mark.parametrize("kind_of_error", [KeyboardInterrupt, ZeroDivisionError])
    def test_an_answer_that_a_signal_handler_has_left_unread(
        self, server: ValkeyServer, kind: str, options: dict[str, Any], kind_of_error: type[BaseException]
    ) -> None:
        import redis

        address = urlsplit(server.url)
        client: Any = connect(server, kind) if "Cluster" in kind else redis.Redis(port=address.port or 0, **options)
        with closing(RedisStorage(client, prefix=new_prefix())) as ours:
            storage: Any = ours
            record, other = held(storage), held(storage, "other")
            node = client.get_nodes()[0].redis_connection if "Cluster" in kind else client

            def interrupted(*_: Any, **__: Any) -> None:
                del node.parse_response
                raise kind_of_error

            node.parse_response = interrupted
            with pytest.raises(kind_of_error):
                storage.read("one")
            assert storage.read("other") == other
            assert storage.read("one") == record

    def test_more_at_once_than_there_are_connections(self, plain_server: ValkeyServer) -> None:
        import redis

        pool: Any = redis.BlockingConnectionPool.from_url(plain_server.url, max_connections=1, timeout=0.001)
        with closing(RedisStorage(redis.Redis(connection_pool=pool))) as ours:
            storage: Any = ours
            pool.get_connection()
            with pytest.raises(StorageError, match="give the client more connections, or call fewer at once"):
                storage.read("one")

    def test_a_server_that_has_forgotten_all_scripts(self, storage: Any) -> None:
        record = held(storage)
        storage._scripts.client.script_flush()
        storage.commit(record._replace(token=2, step=1), 1, Result(0, "a"))
        assert storage.results(record, 0, 1) == [Result(0, "a")]

    @pytest.mark.parametrize(("budget", "size"), [(0, 200), (math.inf, 200)])
    def test_the_server_is_killed_in_the_midst_of_200_executions(
        self, own_server: OwnServer, budget: float, size: int
    ) -> None:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        server = own_server(ValkeyServer())

        async def call(category: str, name: str, input: int) -> int:
            return input**2

        async def run() -> None:
            once_more = Retry(NoBackoff(), 1)  # or the first request on each connection that was idle would fail
            storage: Any = RedisStorage(connect(server, "AsyncRedis", retry=once_more))
            flow = FlowExecutor(storage, call=call, budget=budget, lease=0.5, retain=True)
            await Crowd(flow, size).run_and_kill(server)
            await storage.close()

        asyncio.run(run())


class TestAtOnce:
    """Scripts for many executions on one ``async`` client share requests."""

    @pytest.fixture
    def run(self, plain_server: ValkeyServer) -> Iterator[Callable[[Any], None]]:
        """Runs a test with a proxy, a storage behind it, and 64 records that are held."""
        with Proxy(plain_server.url) as proxy:

            async def begin(test: Any) -> None:
                storage: Any = RedisStorage(connect(plain_server, "AsyncRedis", proxy.url), prefix=new_prefix())
                records = [Record(f"{number}", "run", token=1, lease=NOW) for number in range(64)]
                claimed = await asyncio.gather(*(storage.claim(record, 0.0, True) for record in records))
                assert claimed == [(record, True) for record in records]
                await test(proxy, storage, records)
                await storage.close()

            yield lambda test: asyncio.run(begin(test))

    def test_each_has_its_own_outcome(self, run: Any) -> None:
        async def test(proxy: Proxy, storage: Any, records: list[Record]) -> None:
            await storage._scripts.client.script_flush()
            stale = [number % 7 == 3 for number in range(64)]
            kinds = [
                StorageError if number == 40 else Fenced if each else type(None) for number, each in enumerate(stale)
            ]
            data = [b"%d" % number * (50_000 if number == 5 else 50) for number in range(64)]
            before, new = 0, records
            for step in range(2):  # at first the server does not know the script
                before = proxy.round_trips
                new = [record._replace(token=step + 2, step=step + 1) for record in records]
                new[40] = new[40]._replace(waits="a\0b")
                tokens = [0 if each else step + 1 for each in stale]
                commits = map(storage.commit, new, tokens, [Result(step, data=each) for each in data])
                done = await asyncio.gather(*commits, return_exceptions=True)
                assert [type(each) for each in done] == kinds
            assert proxy.round_trips - before < 30
            for record, kind, each in zip(new, kinds, data, strict=True):
                kept = [Result(step, data=each) for step in range(2)] if kind is type(None) else []
                assert await storage.results(record, 0, 9) == kept

        run(test)

    def test_an_answer_that_is_lost_is_looked_up_by_each(self, run: Any) -> None:
        async def test(proxy: Proxy, storage: Any, records: list[Record]) -> None:
            new = records
            for lost in range(2):  # of the first alone, then of those that have come after it
                new = [record._replace(token=lost + 2, step=lost + 1) for record in records]
                proxy.lose_after = lost
                await asyncio.gather(*(storage.commit(each, lost + 1, Result(lost, data=b"1")) for each in new))
                assert await asyncio.gather(*(storage.read(each.id) for each in new)) == new
            proxy.lose_after = 1
            signals = (storage.signal(each.id, "go", b"1", NOW) for each in new)
            told = [type(each) for each in await asyncio.gather(*signals, return_exceptions=True)]
            assert {*told} == {tuple, StorageError}

        run(test)

    @pytest.mark.parametrize("passes", range(6))
    def test_who_is_cancelled_takes_no_other_along(self, run: Any, passes: int) -> None:
        async def test(proxy: Proxy, storage: Any, records: list[Record]) -> None:
            new = [record._replace(token=2, step=1) for record in records]
            tasks = [asyncio.create_task(storage.commit(each, 1, Result(0, data=b"1"))) for each in new]
            for _ in range(passes):
                await asyncio.sleep(0)
            for task in tasks[5::9]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [number for number, each in enumerate(done) if each is not None] == [*range(5, 64, 9)]
            for number, each in enumerate(done):
                assert isinstance(each, asyncio.CancelledError) or await storage.read(f"{number}") == new[number]

        run(test)

    @pytest.mark.parametrize("only_the_request", [False, True])
    @pytest.mark.parametrize("passes", range(8))
    def test_nobody_waits_for_what_was_cancelled(self, run: Any, passes: int, only_the_request: bool) -> None:
        async def test(proxy: Proxy, storage: Any, records: list[Record]) -> None:
            commit = partial(storage.commit, token=1, result=Result(0, data=b"1"))
            tasks = {asyncio.create_task(commit(each._replace(token=2, step=1))) for each in records}
            for _ in range(passes):
                await asyncio.sleep(0)
            others: set[Any] = tasks if only_the_request else set()
            for task in asyncio.all_tasks() - {asyncio.current_task()} - others:
                task.cancel()
            async with asyncio.timeout(10):
                await asyncio.wait(tasks)
            assert {(await storage.read(each.id)).token for each in records} <= {1, 2}

        run(test)

    def test_a_loop_that_ends_before_it_has_sent_anything(self, plain_server: ValkeyServer) -> None:
        storage: Any = RedisStorage(connect(plain_server, "AsyncRedis"), prefix=new_prefix())
        loop = asyncio.new_event_loop()

        async def ask_and_leave() -> list[Any]:
            return [loop.create_task(storage.read(id)) for id in ("one", "two")]

        left = loop.run_until_complete(ask_and_leave())
        loop.close()

        async def ask() -> list[Any]:
            async with asyncio.timeout(10):
                found = await asyncio.gather(*(storage.read(id) for id in ("three", "four")))
            await storage.close()
            return found

        assert asyncio.run(ask()) == [None, None]
        for task in left:
            task._log_destroy_pending = False
            task.get_coro().close()


def every_write(storage: Any, record: Record) -> list[Callable[[], Any]]:
    """One of each, the last two of which begin with a removal."""
    new = record._replace(token=2, step=1)
    return [
        partial(storage.claim, Record("two", "run"), NOW, True),
        partial(storage.claim, record._replace(lease=NOW + 99), NOW + 90, True),
        partial(storage.commit, new, 1, Result(0, "small", data=b"1")),
        partial(storage.commit, new, 1, Result(0, "large", data=b"1" * 5_000_000)),
        partial(storage.commit, new, 1, absent="yes"),
        partial(storage.commit, new, 1, taken="yes"),
        partial(storage.save, record, Result(0)),
        partial(storage.restart, new._replace(run="later"), record),
        partial(storage.signal, "one", "yes", b"1", NOW),
        partial(storage.commit, new._replace(lease=0.0, due=None), 1, Result(0)),
        partial(storage.remove, "one"),
    ]


def expiries(storage: Any) -> dict[str, float]:
    """In how many seconds the keys of an execution expire, by what follows the prefix."""
    names = [name for name in keys(storage) if "{one}" in name and "void" not in name]
    return {name: storage._scripts.client.pttl(f"{storage._keys._prefix}{name}") / 1000 for name in names}


class TestExpiry:
    def test_what_is_over_expires_and_leaves_nothing(self, storage: Any, small_parts: None) -> None:
        ours = another(storage, ttl=0.25)
        now = time.time()
        record = held(ours, run="earlier", input=b"1" * 1001, due=None, lease=now, changed=now)
        for step, size in enumerate((1, 1001, 1)):
            new = record._replace(token=record.token + 1, step=step + 1)
            ours.commit(new, record.token, Result(step, data=b"x" * size))
            record = new
        ours.signal("one", "yes", b"1", now)
        ours.commit(record._replace(token=9, lease=0.0, due=None, status="finished", changed=now), record.token)
        assert ours.read("one") is not None
        until(lambda: storage.read("one") is None, "it has expired")
        now = time.time()
        later = ours.claim(record._replace(run="later", input=b"", step=0, lease=now, changed=now), now, True)[0]
        ours.save(later, Result(4, "ahead"))
        assert ours.results(later, 0, 9) == [Result(4, "ahead")]
        assert ours.received(later, "yes") is None
        ours.commit(later._replace(token=99, lease=0.0, changed=now - 9), later.token)
        until(
            lambda: not [key for key in keys(storage) if "void" not in key and key.startswith("{one}")], "all expired"
        )
        assert ours.due(9e9, 9) == ours.find("", 9) == []
        assert entries(storage, "_due") == entries(storage, "_ids") == []

    def test_what_sleeps_or_goes_on_stays_and_so_do_its_results(self, storage: Any, small_parts: None) -> None:
        ours = another(storage, ttl=1000)
        now = start = int(time.time()) + 0.5
        record = held(ours, input=b"1" * 1001, lease=now + 60, changed=now)
        ours.signal("one", "yes", b"1", now)
        for number in range(60):
            now += 90
            fields: dict[str, Any] = {"lease": now + 60}
            if number % 20 == 10:
                fields = {"lease": 0.0, "due": None, "wake": now + 5000}
            new = do_step(ours, record, data=b"x" * (1001 if number == 7 else 1), changed=now, **fields)
            record = new._replace(wake=None)
            expected = 1000 + max(now + 60 * bool(new.lease), new.wake or 0.0) - start
            left = expiries(storage)
            assert left.pop("{one}") == pytest.approx(expected, abs=60)
            assert len(left) == number + 3 + (number >= 7), left
            assert min(left.values()) >= expected - 60, left
            voids = [f"{storage._keys._prefix}{name}" for name in keys(storage) if "void" in name]
            assert all(0 < storage._scripts.client.ttl(void) <= 3600 for void in voids)

    def test_five_methods_alone_do_not_let_it_expire_at_once(self, storage: Any) -> None:
        ours = another(storage, ttl=1000)
        ours.set_result("one", 0, "x")
        ours.set("one", {"step": 1})
        assert ours.get_result("one", 0) == "x"
        assert 900 < expiries(storage)["{one}"] <= 1001  # its clocks differ

    @pytest.mark.parametrize("end", [math.inf, 4e9])
    def test_a_time_without_end(self, storage: Any, small_parts: None, end: float) -> None:
        ours = another(storage, ttl=1000)
        record = held(ours, input=b"1" * 1001, lease=end)
        assert ours.read("one") == record
        assert ours.due(3e9, 9) == []
        new = record._replace(token=2, step=1)
        ours.commit(new, 1, Result(0, data=b"1" * 1001))
        ours.signal("one", "yes", b"1", NOW)
        assert min(expiries(storage).values()) > 50_000
        ours.commit(new._replace(token=3, lease=0.0, due=None, status="finished"), 2)
        left = expiries(storage)
        assert 0 < left.pop("{one}") <= 1001 < min(left.values()) <= max(left.values()) <= 2001

    def test_a_clock_that_is_far_behind_the_servers(self, storage: Any) -> None:
        ours = another(storage, ttl=1000)
        record = held(ours, lease=NOW + 60, changed=NOW)
        assert do_step(ours, record, lease=0.0, due=None, status="finished") == ours.read("one")
        assert min(expiries(storage).values()) > 900

    @pytest.mark.parametrize("act", ["claim", "commit", "save", "signal", "restart"])
    def test_nothing_expires_any_more_without_a_time(self, storage: Any, small_parts: None, act: str) -> None:
        mortal = another(storage, ttl=1000)
        record = do_step(mortal, held(mortal, input=b"1" * 1001), data=b"1" * 1001)
        mortal.signal("one", "other", b"1", NOW)
        assert min(expiries(storage).values()) > 0
        new = record._replace(token=3, step=2)
        acts = {
            "claim": partial(storage.claim, record._replace(lease=NOW + 99), NOW + 90, True),
            "commit": partial(storage.commit, new, 2, Result(1, data=b"1" * 1001)),
            "save": partial(storage.save, record, Result(2)),
            "signal": partial(storage.signal, "one", "yes", b"1", NOW),
            "restart": partial(storage.restart, new._replace(run="again", input=b"2" * 1001), record),
        }
        acts[act]()
        assert set(expiries(storage).values()) == {-0.001}
        do_step(mortal, storage.read("one"))
        assert min(expiries(storage).values()) > 0

    def test_the_list_of_ids_does_not_grow_for_ever(self, plain: Any) -> None:
        ours = another(plain, ttl=0.001)
        for number in range(300):
            held(ours, f"id-{number}", lease=0.0, due=None, changed=NOW)
        assert len(entries(plain, "_ids")) < 50


class TestUse:
    def test_a_client_that_decodes(self, server: ValkeyServer, kind: str) -> None:
        for name in (kind, f"Async{kind}"):
            client = connect(server, name, decode_responses=True)
            with pytest.raises(ValueError, match="client= decodes what it reads, and results are bytes: give one with"):
                RedisStorage(client)
            if name == kind:
                client.close()

    def test_what_is_no_client(self) -> None:
        import redis

        wrong: list[Any] = ["redis://127.0.0.1", redis.Redis, None, redis.Redis().pipeline(), redis.ConnectionPool()]
        for client in wrong:
            with pytest.raises(TypeError, match=r"is none: from a URL, a storage is made by RedisStorage\.from_url"):
                RedisStorage(client)

    @pytest.mark.parametrize("prefix", ["", "{a}", "a{", "}", "a\0", "\udc80", b"exec:", None, 5])
    def test_prefixes_that_would_not_do(self, storage: Any, prefix: Any) -> None:
        with pytest.raises(ValueError, match="prefix= begins the names of keys; it is not empty and has no braces"):
            RedisStorage(storage._scripts.client, prefix=prefix)

    @pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, True, Decimal(5), Fraction(5), "5", b"5", 5j])
    def test_times_that_would_not_do(self, storage: Any, ttl: Any) -> None:
        with pytest.raises(ValueError, match="ttl= is a number of seconds above 0, or left out to"):
            RedisStorage(storage._scripts.client, ttl=ttl)

    def test_a_time_that_writes_itself_in_another_way(self, storage: Any) -> None:
        class Time(float):
            def __repr__(self) -> str:
                return f"Time({float(self)})"

        held(another(storage, ttl=Time(1000.5)), lease=0.0, due=None)
        assert 900 < expiries(storage)["{one}"] <= 1001

    def test_a_text_that_no_encoding_has(self, storage: Any) -> None:
        for act in (partial(storage.find, "\ud800", 9), partial(storage.claim, Record("one", "\ud800"), NOW, True)):
            with pytest.raises(StorageError, match=r"no text may have a lone surrogate \(.*: nothing was recorded"):
                act()

    def test_a_signal_that_no_server_takes(self, storage: Any) -> None:
        held(storage)
        with pytest.raises(
            StorageError, match="'yes' has 536870913 bytes, and a server takes 536870912 at once: keep th"
        ):
            storage.signal("one", "yes", bytes((1 << 29) + 1), NOW)

    def test_from_a_url(self, plain_server: ValkeyServer, plain: Any) -> None:
        storage: Any = stores.open(plain_server.url, prefix=plain._keys._prefix, ttl=5.0)
        with closing(storage):
            held(storage, changed=time.time())
            assert plain._scripts.client.pttl(f"{plain._keys._prefix}{{one}}") > 0

    def test_a_url_that_is_none(self) -> None:
        for url in ("redis://localhost:abc/0", "localhost:6379", "http://localhost", "redis://h?colour=red"):
            with pytest.raises(StorageError, match=r"^Redis: .*: write a URL like redis://user:password@host:6379/0$"):
                RedisStorage.from_url(url)

    def test_a_connection_that_was_idle_when_the_server_was_started_anew(self, own_server: OwnServer) -> None:
        server = own_server(ValkeyServer())
        with closing(RedisStorage.from_url(server.url)) as made:
            storage: Any = made
            record = held(storage)
            server.kill()
            server.restart()
            assert storage.read("one") == record

    def test_keys_that_people_can_read(self, storage: Any) -> None:
        flow = FlowExecutor(storage, call=square, clock=lambda: NOW)
        flow.execute_sync(squares, "order-1", {"steps": 3})
        flow.execute_sync(squares, "order-1")
        flow.signal_sync("order-1", "approval", "yes")
        begin = f"{storage._keys._prefix}{{order-1}}"
        index = ("{}due", "{}ids") if storage._scripts.is_cluster else ("due", "ids")
        found = {name: type for name, type in keys(storage).items() if "void" not in name}
        assert found == {
            "{order-1}": "hash",
            "{order-1}:0": "string",
            "{order-1}:1": "string",
            "{order-1}:signals": "hash",
            **dict.fromkeys(index, "zset"),
        }
        line, data = storage._scripts.client.get(f"{begin}:1").decode().split("\n")
        assert line.startswith('["')
        assert '"tool math.square"' in line
        assert data == "1"
        record = storage._scripts.client.hgetall(begin)
        assert (record[b"workflow"], record[b"input"]) == (b"squares", b'{"steps":3}')
        assert record[b"state"].split(b"\0")[:2] == [b"2", b"running"]

    def test_of_thousands_of_results_nothing_is_left(self, storage: Any) -> None:
        record = held(storage)
        for step in range(2001):
            storage.save(record, Result(step, data=b"1"))
        restarted = record._replace(run="later", token=2)
        storage.restart(restarted, record)
        assert set(keys(storage)) - {"due", "ids", "{}due", "{}ids"} == {"{one}"}
        for step in range(1000):
            storage.save(restarted, Result(step, data=b"1"))
        storage.remove("one")
        assert not [key for key in keys(storage) if ":void:" not in key]

    def test_a_step_far_ahead_of_all_results_is_no_work_for_the_server(self, storage: Any) -> None:
        record = held(storage)
        far = record._replace(token=2, step=10**9)
        storage.commit(far, 1)
        storage.save(far, Result(10, data=b"10"))
        storage.commit(far._replace(token=3, step=10**9 + 1), 2, Result(0, data=b"0"))
        assert storage.results(far, 0, 10**9) == [Result(0, data=b"0")]
        storage.restart(record._replace(run="later", token=4, step=10**9), far._replace(token=3))
        assert set(keys(storage)) - {"due", "ids", "{}due", "{}ids"} == {"{one}"}
        storage.remove("one")
        assert not [key for key in keys(storage) if ":void:" not in key]

    def test_extremes_come_back(self, storage: Any) -> None:
        text = "\x01\n\u2028\U0001f600 é \\ \" '"
        record = held(
            storage, run=text, workflow=text, version=2**63 - 1, first_input=-(2**63), token=2**62, step=2**31,
            lease=0.1 + 0.2, due=5e-324, wake=1.7976931348623157e308, error=text, changed=NOW + 1e-6, attempts=2**31,
        )  # fmt: skip
        assert storage.read("one") == record
        taken = record._replace(token=2**62 + 1, lease=NOW + 1 / 3)
        assert storage.claim(taken, NOW, False) == (taken, True)
        empty = taken._replace(token=2**63 - 1, error="", due=None, wake=None)
        result = Result(0, text, 2**64 - 1, b"\n\x00\xff", -0.1, 1e300, text)
        storage.commit(empty, 2**62 + 1, result)
        assert storage.read("one") == empty
        assert storage.results(empty, 0, 9) == [result]

    def test_a_nul_is_refused_and_not_taken_for_the_end_of_a_text(self, storage: Any) -> None:
        for text in ("\0", "a\0b", "\0" * 5):
            with pytest.raises(StorageError, match=r"no text may have a NUL.*: nothing was recorded"):
                storage.claim(Record("one", "run", text), NOW, True)
        assert keys(storage) == {}
        record = held(storage)
        with pytest.raises(StorageError, match="no text may have a NUL"):
            storage.commit(record._replace(token=2, waits="a\0b"), 1)
        failed = record._replace(token=2, error="a\0b")
        storage.commit(failed, 1)
        assert storage.read("one") == failed

    @pytest.mark.parametrize("budget", [0, math.inf])
    def test_round_trips(self, plain_server: ValkeyServer, plain: Any, budget: float) -> None:
        with (
            Proxy(plain_server.url) as proxy,
            closing(RedisStorage(connect(plain_server, "Redis", proxy.url), prefix=plain._keys._prefix)) as storage,
        ):
            for id in ("warm", "one"):  # by now the server knows the scripts
                flow = FlowExecutor(storage, call=square, retain=True, budget=budget)
                counted: list[int] = []
                outcome: Any = Paused("", 0, "")
                while isinstance(outcome, Paused):
                    before = proxy.round_trips
                    outcome = flow.execute_sync(squares, id, {"steps": 6})
                    counted.append(proxy.round_trips - before)
        assert outcome == 55
        if budget:
            assert counted == [4, 6, 4]  # claim, history (but at first), a commit of each step and the end
        else:
            assert counted == [2, *[3] * (len(counted) - 1)]  # claim, commit; then claim, history, commit

    def test_requests_on_a_cluster(self, clustered: Any) -> None:
        """One for each act, but for three to create, and three more at the first pause."""
        evaluate, made = clustered._scripts.run, [0]

        async def evaluate_and_count(*arguments: Any) -> Any:
            made[0] += 1
            return await evaluate(*arguments)

        clustered._scripts.run = evaluate_and_count
        flow = FlowExecutor(clustered, call=square, retain=True)
        counted: list[int] = []
        outcome: Any = Paused("", 0, "")
        while isinstance(outcome, Paused):
            made[0] = 0
            outcome = flow.execute_sync(squares, "one", {"steps": 6})
            counted.append(made[0])
        assert outcome == 55
        assert counted == [3 + 4, *[3] * (len(counted) - 1)]

    def test_crash_points_of_everything(self, storage: Any) -> None:
        assert crash_points(squares, {"steps": 2}, call=square, storage=storage) > 30

    def test_a_workflow_on_an_async_client(self, kind: str, server: ValkeyServer) -> None:
        async def run() -> Any:
            storage: Any = RedisStorage(connect(server, f"Async{kind}"), prefix=new_prefix())
            flow = FlowExecutor(storage, call=square, budget=math.inf)
            outcome: Any = Paused("", 0, "")
            while isinstance(outcome, Paused):
                outcome = await flow.execute(squares, "one", {"steps": 4})
            await storage.close()
            return outcome

        assert asyncio.run(run()) == 14

    def test_a_missing_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "redis", None)
        with pytest.raises(NotInstalled, match=r"'redis' is not installed: pip install 'sequential-flow\[redis\]'"):
            stores.open("redis://127.0.0.1")

    def test_the_driver_is_found_beside_the_module_of_its_name(self) -> None:
        code = "import sequential.stores.redis, redis; assert redis.Redis and redis is not sequential.stores.redis"
        subprocess.run([sys.executable, "-c", code], check=True)
