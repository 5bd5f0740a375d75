"""DynamoDB, as moto simulates it: boto3 speaks to it over HTTP, but none of its rules is Amazon's own code.

With SEQUENTIAL_TEST_DYNAMODB set, all tests run on the server there: Amazon's DynamoDB Local passes them too.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from enum import Enum
from functools import partial
from itertools import count
from time import time
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from sequential import FlowExecutor, Paused, tool, wait
from sequential.errors import Fenced, NotInstalled, StorageError
from sequential.storage import Record, Result, settle
from sequential.stores import open as open_storage
from sequential.stores.clients import Recent
from sequential.testing import ClaimTests, CommitTests, JournalTests
from sequential.testing.conformance import FEW_POINTS
from sequential.testing.crash import count_crash_points
from tests.servers.dynamodb import DynamoServer
from tests.servers.proxy import Proxy
from tests.stores.support import (
    LARGE,
    NOW,
    commit_and_die,
    dies,
    held,
    one_commits,
    one_takes_the_lease,
    peaks,
    square,
    squares,
    step,
    together,
)
from tests.support import echo

PART = 1 << 18
WRITERS = 32
ROUNDS = 4  # of 32 commits, of which moto does one at a time, in some ten milliseconds


class Threaded:
    """A client of boto3 whose methods return coroutines, as those of aiobotocore do.

    aiobotocore itself passes the suites too, but it would draw boto3 back to an older release.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return partial(asyncio.to_thread, getattr(self.client, name))

    def get_waiter(self, name: str) -> Threaded:
        return Threaded(self.client.get_waiter(name))

    async def close(self) -> None:
        self.client.close()


class DynamoDBTests:
    """Where the suites find a storage: a table of its own for each test."""

    server: ClassVar[DynamoServer]
    ttl: float | None = None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def find_server(cls, dynamodb_server: DynamoServer) -> None:
        cls.server = dynamodb_server

    async def make(self) -> Any:
        self.table, self.opened = new_table(), list[Any]()
        storage = self.another(None)
        await settle(storage.create_schema())
        return storage

    async def discard(self, storage: Any) -> None:
        await settle(storage._table.client.delete_table(TableName=self.table))
        for opened in self.opened:
            await settle(opened.close())

    def another(self, storage: Any) -> Any:
        from sequential.stores.dynamodb import DynamoDBStorage

        self.opened.append(DynamoDBStorage(self.connect(), table=self.table, ttl=self.ttl))
        return self.opened[-1]

    def connect(self) -> Any:
        return new_client(self.server)


class TestClient(DynamoDBTests, JournalTests):
    """The deaths that take moto minutes are those of a shorter workflow here."""

    steps = 1

    def test_every_request_survives_death_at_any_point(self) -> None:
        points = self.runner.run(count_crash_points(waiting, None, echo, self.storage, {"go": [None]}))
        assert points > FEW_POINTS / 3


class TestAsyncClientAndExpiry(DynamoDBTests, ClaimTests, CommitTests):
    ttl = 1e6

    def connect(self) -> Any:
        return Threaded(new_client(self.server))


def once() -> Generator[Any, Any, Any]:
    return (yield tool("a", "b", 1))


def waiting() -> Generator[Any, Any, Any]:
    return (yield wait("go"))


def new_table() -> str:
    return f"test-{uuid4().hex}"


def new_client(server: DynamoServer, **options: Any) -> Any:
    import boto3

    return boto3.client("dynamodb", **server.options | options)


@pytest.fixture
def storage(dynamodb_server: DynamoServer) -> Iterator[Any]:
    from sequential.stores.dynamodb import DynamoDBStorage

    with closing(DynamoDBStorage(new_client(dynamodb_server), table=new_table())) as made:
        made.create_schema()
        yield made
        made._table.client.delete_table(TableName=made._table.name)


@pytest.fixture
def other(storage: Any, dynamodb_server: DynamoServer) -> Iterator[Any]:
    """A second storage over the same table, as another process has it."""
    with closing(another(storage, dynamodb_server)) as made:
        yield made


def another(storage: Any, server: DynamoServer, ttl: float | None = None, **options: Any) -> Any:
    from sequential.stores.dynamodb import DynamoDBStorage

    return DynamoDBStorage(new_client(server, **options), table=storage._table.name, ttl=ttl)


def impatient(storage: Any, server: DynamoServer, **options: Any) -> Any:
    """A second storage over the same table, whose client repeats nothing."""
    from botocore.config import Config

    return another(storage, server, config=Config(retries={"total_max_attempts": 1}), **options)


def items(storage: Any, id: str = "one") -> dict[str, dict[str, Any]]:
    """All that is stored of an execution."""
    found = storage._table.client.get_paginator("query").paginate(
        TableName=storage._table.name,
        ConsistentRead=True,
        KeyConditionExpression="id = :id",
        ExpressionAttributeValues={":id": {"S": id}},
    )
    return {item["part"]["S"]: item for page in found for item in page["Items"]}


def alter(storage: Any, part: str, name: str, value: Any, id: str = "one") -> None:
    """Give an item another number, as only time could."""
    storage._table.client.update_item(
        TableName=storage._table.name,
        Key={"id": {"S": id}, "part": {"S": part}},
        UpdateExpression="SET #name = :value",
        ExpressionAttributeNames={"#name": name},
        ExpressionAttributeValues={":value": {"N": str(value)}},
    )


def requests_of(storage: Any) -> list[str]:
    """A list that grows by the name of each request that goes over the wire."""
    sent = list[str]()
    storage._table.client.meta.events.register(
        "before-send.dynamodb", lambda event_name, **_: sent.append(event_name.split(".")[-1])
    )
    return sent


def answer(storage: Any, operation: str, *errors: dict[str, Any], status: int = 400) -> None:
    """Let these errors be what comes back over the wire from the next requests."""
    from botocore.awsrequest import AWSResponse

    left = list(errors)

    def send(request: Any, **_: Any) -> Any:
        if not left:
            return None
        body = json.dumps({"Message": "no", **left.pop(0)}).encode()
        return AWSResponse(request.url, status, {}, SimpleNamespace(stream=lambda: [body]))

    storage._table.client.meta.events.register(f"before-send.dynamodb.{operation}", send)


def throttle(storage: Any, number: int) -> None:
    """Let the request that goes over the wire after so many others be refused."""
    from botocore.awsrequest import AWSResponse

    sent, body = count(), b'{"__type": "com.amazonaws.dynamodb#ProvisionedThroughputExceededException"}'

    def send(request: Any, **_: Any) -> Any:
        return (
            AWSResponse(request.url, 400, {}, SimpleNamespace(stream=lambda: [body])) if next(sent) == number else None
        )

    storage._table.client.meta.events.register("before-send.dynamodb", send)


def cancelled(*codes: str, message: str = "") -> dict[str, Any]:
    reasons = [{"Code": code, "Message": message} for code in codes]
    return {"__type": "com.amazonaws.dynamodb#TransactionCanceledException", "CancellationReasons": reasons}


@contextmanager
def preceded(
    storage: Any, operation: str, action: Callable[[], Any], times: float = math.inf, every: int = 1
) -> Iterator[None]:
    """Let something happen before requests of a storage: before the first `times`, or each one after `every`."""
    ask, seen = storage._table.ask, count(1)

    async def ask_after_another(asked: str, *arguments: Any, **options: Any) -> Any:
        if asked == operation and (number := next(seen)) <= times and number % every == 0:
            action()
        return await ask(asked, *arguments, **options)

    storage._table.ask = ask_after_another
    yield
    storage._table.ask = ask


class TestTogether:
    def test_the_server_itself_honours_conditions(self, storage: Any) -> None:
        def put(writer: int) -> bool:
            try:
                storage._table.client.put_item(
                    TableName=storage._table.name,
                    Item={"id": {"S": "x"}, "part": {"S": "y"}, "writer": {"N": str(writer)}},
                    ConditionExpression="attribute_not_exists(id)",
                )
            except storage._table.client.exceptions.ConditionalCheckFailedException:
                return False
            return True

        won = together(*(partial(put, writer) for writer in range(8)))
        assert won.count(True) == 1
        assert items(storage, "x")["y"]["writer"] == {"N": str(won.index(True))}

    def test_one_of_32_commits(self, storage: Any) -> None:
        one_commits(storage, ROUNDS, WRITERS)

    def test_one_of_32_takes_the_lease(self, storage: Any) -> None:
        one_takes_the_lease(storage, ROUNDS // 2, WRITERS)

    def test_one_of_32_creates(self, storage: Any) -> None:
        wanted = [
            Record("one", f"run {who}", input=bytes([who]) * 9000, token=1, lease=NOW + 9) for who in range(WRITERS)
        ]
        found = together(*(partial(storage.claim, record, NOW, True) for record in wanted))
        (winner,) = (who for who, (_, taken) in enumerate(found) if taken)
        assert {stored for stored, _ in found} == {wanted[winner]}
        assert len(items(storage)) == 2

    def test_results_saved_ahead_at_the_same_time(self, storage: Any) -> None:
        record = held(storage)
        results = [Result(number, "tool a.b") for number in range(WRITERS)]
        assert together(*(partial(storage.save, record, result) for result in results)) == [None] * WRITERS
        assert storage.results(record, 0, WRITERS) == results
        assert storage.read("one") == record

    def test_a_claim_and_a_commit_at_once(self, storage: Any, other: Any) -> None:
        for number in range(ROUNDS):
            record = held(storage, f"id-{number}")
            wanted = record._replace(lease=NOW + 500)
            committed, (_, taken) = together(
                partial(step, storage, record, lease=NOW + 200), partial(other.claim, wanted, NOW + 100, False)
            )
            assert taken is isinstance(committed, Fenced)
            stored = other.read(record.id)
            assert (stored.token, stored.step) == (2, 0 if taken else 1)
            assert len(other.results(stored, 0, 1)) == stored.step


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many requests as for what is nearly a thousand times as large."""
    monkeypatch.setattr("sequential.stores.dynamodb_items.PART", 300)


class TestSizes:
    def test_a_hundred_megabytes_go_in_and_out_in_little_memory(
        self, storage: Any, dynamodb_server: DynamoServer
    ) -> None:
        written, read = peaks(
            "import boto3\n"
            "from sequential.stores.dynamodb import DynamoDBStorage\n"
            f"client = boto3.client('dynamodb', **{dynamodb_server.options!r})\n"
            f"storage = DynamoDBStorage(client, table={storage._table.name!r})\n"
        )
        assert written < 1.7 * LARGE  # the result is one of them
        assert read < 2.7 * LARGE
        assert items(storage) == {}

    def test_large_inputs_and_signals(self, storage: Any, other: Any) -> None:
        data = b"\x00" * 2_000_000
        record = held(storage, input=data, lease=0.0)
        assert storage.signal("one", "yes", data, NOW) == (record, True)
        assert other.read("one") == record
        assert other.received(record, "yes") == storage.received(record, "yes") == data
        assert storage.find("", 5) == storage.due(NOW, 5) == [record]
        assert storage.claim(record, NOW, True) == (record, False)
        again = record._replace(run="again", token=2, input=data + b"1")
        storage.restart(again, record)
        assert other.read("one") == again
        assert other.received(again, "yes") == data
        assert other.received(record, "yes") is None
        storage.commit(again._replace(token=3), 2, taken="yes")
        assert other.received(again, "yes") is None
        storage.remove("one")
        assert items(storage) == {}

    def test_large_signals_that_were_taken(self, storage: Any, other: Any) -> None:
        """They go with the commit of who has read them, or with the next run; what nobody has taken stays."""
        data, record = b"1" * 1000, held(storage)
        for name in ("read", "unread", "kept"):
            assert storage.signal("one", name, data, NOW)[1]
        assert storage.received(record, "read") == data
        assert len(items(storage)) == 4
        for name in ("read", "unread"):
            record = record._replace(token=record.token + 1)
            storage.commit(record, record.token - 1, taken=name)
            assert len(items(storage)) == 3
        for run in ("second", "third"):
            new = record._replace(run=run, token=record.token + 1)
            storage.restart(new, record)
            assert len(items(storage)) == 2
            assert other.received(new, "kept") == storage.received(new, "kept") == data
            record = new
        storage.commit(record._replace(token=9), record.token, taken="kept")
        assert list(items(storage)) == ["record"]

    def test_more_large_signals_than_are_remembered(self, storage: Any) -> None:
        storage._large = Recent(2)
        record = held(storage)
        for name in ("a", "b", "c"):
            storage.signal("one", name, b"1" * 1000, NOW)
            assert storage.received(record, name) == b"1" * 1000
        for name in ("a", "b", "c"):
            storage.commit(record, 1, taken=name)
        assert len(items(storage)) == 2  # what was forgotten is left to the next run
        storage.restart(record._replace(run="another"), record)
        assert list(items(storage)) == ["record"]

    @pytest.mark.parametrize("size", [0, 256, 257, 4096, 4097, PART, PART + 1])
    def test_sizes_at_which_something_changes(self, storage: Any, other: Any, size: int) -> None:
        data = bytes(size % 251 for size in range(size))
        record = step(storage, held(storage, input=data), data)
        storage.signal("one", "yes", data, NOW)
        assert other.read("one") == record
        assert other.received(record, "yes") == data
        assert other.results(record, 0, 1) == [Result(0, data=data)]

    def test_more_than_a_page(self, storage: Any, other: Any) -> None:
        """Of results, and of what is to be removed."""
        record = held(storage, "zero")
        for number in range(30):
            storage.save(record, Result(number, data=bytes([number]) * 100_000))
        found: list[Result] = []
        while page := other.results(record, len(found), 99):
            assert len(page) < 12
            found += page
        assert [result.data for result in found] == [bytes([number]) * 100_000 for number in range(30)]
        new = record._replace(run="again", token=2)
        storage.restart(new, record)
        assert len(items(storage, "zero")) == 1

    def test_more_than_a_page_of_records(self, storage: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sequential.stores.dynamodb_indexes._PAGE", 5)
        ids = [f"id-{number:02}" for number in range(60)]
        for number, id in enumerate(ids):
            storage.claim(Record(id, "run", "w", due=NOW + number), NOW, True)
        assert [record.id for record in other.find("", 999)] == ids
        assert [record.id for record in other.find("id-03", 5, workflow="w")] == ids[4:9]
        assert [record.id for record in other.find("id-50", 120, "running", "w")] == ids[51:]
        assert other.find("", 120, "failed") == []
        assert [record.id for record in other.due(NOW + 58, 999)] == ids[:59]
        assert [record.id for record in other.due(NOW + 99, 7)] == ids[:7]
        for id in ids[:20]:  # they are still in the indexes, as others are for a moment
            alter(storage, "record", "expires", 1, id)
        assert [record.id for record in other.find("", 5)] == ids[20:25]
        assert [record.id for record in other.due(NOW + 99, 999)] == ids[20:]

    def test_a_writer_dies_between_any_two_requests(self, storage: Any, other: Any, small_parts: None) -> None:
        results = [Result(0, "first", data=b"1" * 6001), Result(0, "second", data=b"2" * 5700)]

        def removed(id: str) -> None:
            assert items(storage, id) == {}

        # Before and after two requests for parts, and one for the record, and nowhere.
        assert commit_and_die(storage, other, (storage._table, "ask"), results, removed=removed) == 7

    @pytest.mark.parametrize("what", ["claim", "signal", "restart", "remove", "save"])
    def test_death_within_anything_else(self, storage: Any, other: Any, what: str, small_parts: None) -> None:
        large = b"3" * 5_000
        point, died = 0, True
        while died:
            id = f"{what}-{point}"
            old = Record(id, "run", "workflow", b"{}", token=1, lease=NOW + 60)
            new = Record(id, "another", "workflow", large, token=2, lease=NOW + 60)
            if what != "claim":
                storage.claim(old, NOW, True)
                storage.commit(old, 1, Result(0, data=large))
            actions = {
                "claim": partial(storage.claim, new, NOW, True),
                "signal": partial(storage.signal, id, "yes", large, NOW),
                "restart": partial(storage.restart, new, old),
                "remove": partial(storage.remove, id, old),
                "save": partial(storage.save, old, Result(0, "second", data=large + b"4")),
            }
            died = dies(storage._table, "ask", point, actions[what])
            found = other.read(id)
            expected = {"claim": (None, new), "restart": (old, new), "remove": (old, None)}
            assert found in expected.get(what, (old,))
            if found == old:
                saved = [Result(0, data=large), Result(0, "second", data=large + b"4")]
                assert other.results(old, 0, 1) in ([saved[:1], saved[1:]] if what == "save" else [saved[:1]])
                received = other.received(old, "yes")
                assert received in ((None, large) if what == "signal" else (None,))
                assert other.signal(id, "yes", b"", NOW) == (old, received is None)
                other.remove(id)
                assert items(storage, id) == {}
            elif found == new:
                assert other.results(new, 0, 1) == []
                assert other.claim(new._replace(lease=NOW + 200), NOW + 100, False)[1]
            elif what == "remove":  # whatever was left: another run sees nothing of it, and removes it
                later = old._replace(run="later")
                assert other.claim(later, NOW, True) == (later, True)
                assert other.results(later, 0, 1) == []
                other.remove(id)
                assert items(storage, id) == {}
            point += 1
        assert point > 4

    def test_what_a_broken_removal_has_left(self, storage: Any, other: Any, small_parts: None) -> None:
        """The next one removes it."""
        point, died = 0, True
        while died:
            record = step(storage, held(storage, f"id-{point}"), b"1" * 12_000)
            died = dies(storage._table, "ask", point, partial(storage.remove, record.id, record))
            other.remove(record.id)
            assert items(storage, record.id) == {}
            point += 1
        assert point > 6

    def test_a_removal_and_a_creation_at_once(self, storage: Any, other: Any, small_parts: None) -> None:
        """What an earlier run has left is removed, but no part of an execution that is only half there."""
        for id in ("one", "two"):
            step(storage, held(storage, id), b"1" * 5000)
            assert dies(storage._table, "ask", 3, partial(storage.remove, id))
            assert other.read(id) is None
            assert items(storage, id)
        new = Record("one", "another", input=b"2" * 5000, token=1, lease=NOW + 60)
        with preceded(storage, "put_item", partial(other.remove, "one"), times=1):
            assert storage.claim(new, NOW, True) == (new, True)
        assert other.read("one") == new
        assert not any(part.startswith("run") for part in items(storage))
        with preceded(storage, "get_item", partial(held, other, "two"), times=1):
            storage.remove("two")
        assert items(storage, "two") == {}

    def test_a_large_value_of_which_a_part_is_missing(self, storage: Any, other: Any, small_parts: None) -> None:
        record = step(storage, held(storage, input=b"1" * 5000, lease=NOW), b"2" * 5000)
        storage.signal("one", "yes", b"3" * 5000, NOW)
        for part in items(storage):
            if part.endswith(":000002"):
                storage._table.client.delete_item(
                    TableName=storage._table.name, Key={"id": {"S": "one"}, "part": {"S": part}}
                )
        with pytest.raises(Fenced):
            other.results(record, 0, 1)
        assert other.received(record, "yes") is None
        assert other.find("", 5) == []
        gone = "DynamoDB: execution 'one' changed under each of 10 attempts, or parts of its input were deleted: try ag"
        for request in (
            partial(other.read, "one"),
            partial(other.claim, record._replace(lease=NOW + 9), NOW, True),
            partial(other.signal, "one", "no", b"", NOW),
        ):
            with pytest.raises(StorageError, match=gone):
                request()
        other.remove("one")
        assert items(storage) == {}


class TestTrouble:
    def test_answers_that_are_lost_after_the_write(self, storage: Any, dynamodb_server: DynamoServer) -> None:
        """The client repeats the request, and is refused by its own success."""
        with (
            Proxy(dynamodb_server.url) as proxy,
            closing(another(storage, dynamodb_server, endpoint_url=proxy.url)) as mine,
        ):

            def lose(answered: int = 0) -> Any:
                """Lose the next answer but some, on a connection that is there already."""
                mine.read("nobody")
                proxy.lose_after = answered
                return mine

            record = held(lose(1))
            new = record._replace(token=2, lease=NOW + 200)
            assert lose().claim(new, NOW + 100, False) == (new, True)
            record = step(lose(), new)
            lose().save(record, Result(1, "ahead"))
            assert storage.results(record, 0, 9) == [Result(0, data=b"null"), Result(1, "ahead")]
            renewed = record._replace(lease=NOW + 300)
            lose().commit(renewed, record.token)
            assert lose(1).signal("one", "yes", b"1", NOW) == (renewed, True)
            assert storage.received(record, "yes") == b"1"
            lose().commit(renewed._replace(token=9), renewed.token, taken="yes")
            again = renewed._replace(run="again", token=10, step=0)
            lose().restart(again, renewed._replace(token=9))
            assert storage.read("one") == again
            lose(1).remove("one", again)
            assert items(storage) == {}
            with pytest.raises(Fenced):
                mine.remove("one", again)
            assert proxy.lose_after is None

    def test_a_claim_of_what_is_due_later_is_lost(self, storage: Any, dynamodb_server: DynamoServer) -> None:
        """It takes more requests than others; after any of them it is repeated and knows itself again."""
        with (
            Proxy(dynamodb_server.url) as proxy,
            closing(another(storage, dynamodb_server, endpoint_url=proxy.url)) as mine,
        ):
            for answered in range(3):
                record = held(storage, f"id-{answered}", lease=0.0, due=NOW + 99)
                taken = record._replace(token=2, lease=NOW + 60)
                mine.read("nobody")
                proxy.lose_after = answered
                assert mine.claim(taken, NOW, False) == (taken, True)
                assert storage.read(record.id) == taken

    def test_a_lost_signal_that_is_taken_before_it_is_repeated(
        self, storage: Any, other: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        update_item, record = storage._table.client.update_item, held(storage)

        def repeat(meanwhile: Callable[[], Any], **request: Any) -> Any:
            update_item(**request)
            meanwhile()
            return update_item(**request)

        taken = record._replace(token=2)
        for name, meanwhile, expected in (
            ("yes", partial(other.commit, taken, 1, taken="yes"), taken),
            ("no", partial(other.signal, "one", "more", b"", NOW), taken),
        ):
            monkeypatch.setattr(storage._table.client, "update_item", partial(repeat, meanwhile))
            assert storage.signal("one", name, b"1", NOW) == (expected, True)
            monkeypatch.undo()
            assert storage.signal("one", name, b"2", NOW) == (expected, False)
        assert other.received(taken, "no") == b"1"

    def test_answers_that_are_lost_when_nothing_is_repeated(self, storage: Any, dynamodb_server: DynamoServer) -> None:
        """A connection that was cut is an error of the storage, and a commit looks whether it was written."""
        with (
            Proxy(dynamodb_server.url) as proxy,
            closing(impatient(storage, dynamodb_server, endpoint_url=proxy.url)) as mine,
        ):
            record = held(storage)
            new = record._replace(token=2, step=1)
            renewed = new._replace(token=3, lease=NOW + 90)
            again = renewed._replace(run="again", token=4, step=0)
            for write, written in {
                partial(mine.commit, new, 1, Result(0, data=b"1")): new,
                partial(mine.commit, renewed, 2): renewed,
                partial(mine.restart, again, renewed): again,
            }.items():
                mine.read("nobody")
                proxy.lose_after = 0
                write()
                assert storage.read("one") == written
                assert proxy.lose_after is None
            cut = "DynamoDB: Connection was closed before we received a valid response .*: check that it can be reached"
            for ask in (partial(mine.read, "one"), partial(mine.save, again, Result(0))):
                mine.read("nobody")
                proxy.lose_after = 0
                with pytest.raises(StorageError, match=cut):
                    ask()

    def test_requests_that_meet_others(self, storage: Any, other: Any) -> None:
        """The next one comes through."""
        conflict = {"__type": "com.amazonaws.dynamodb#TransactionConflictException"}
        progress = {"__type": "com.amazonaws.dynamodb#TransactionInProgressException"}
        answer(storage, "UpdateItem", conflict, conflict)
        answer(
            storage,
            "TransactWriteItems",
            cancelled("TransactionConflict", "None"),
            progress,
            cancelled("ThrottlingError"),
        )
        record = step(storage, held(storage))
        assert other.read("one") == record
        assert len(other.results(record, 0, 1)) == 1

    def test_others_that_never_cease(self, storage: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sequential.stores.dynamodb_items.ATTEMPTS", 3)
        record = held(storage)
        answer(storage, "TransactWriteItems", *[cancelled("None", "TransactionConflict", message="Busy.")] * 3)
        told = (
            r"DynamoDB: An error .* \(TransactionCanceledException\) .* Busy\.: others write the same execution: try ag"
        )
        with pytest.raises(StorageError, match=told):
            step(storage, record)
        assert storage.read("one") == record
        state = [record]

        def change(**fields: Any) -> None:
            new = state[-1]._replace(token=state[-1].token + 1, **fields)
            other.commit(new, state[-1].token)
            state.append(new)

        def restart() -> None:
            new = state[-1]._replace(run=uuid4().hex, token=state[-1].token + 1)
            other.restart(new, state[-1])
            state.append(new)

        restless = "DynamoDB: execution 'one' changed under each of 3 attempts"
        change(lease=0.0, due=NOW + 9999)
        with preceded(storage, "update_item", change, every=2), pytest.raises(StorageError, match=restless):
            storage.claim(record._replace(lease=NOW + 99), NOW, False)
        waits = iter(["yes", None] * 3)

        def change_waits() -> None:
            change(waits=next(waits))

        with preceded(storage, "update_item", change_waits), pytest.raises(StorageError, match=restless):
            storage.signal("one", "yes", b"1", NOW)
        with preceded(storage, "delete_item", restart), pytest.raises(StorageError, match=restless):
            storage.remove("one")
        assert other.read("one") == state[-1]
        assert list(items(other)) == ["record"]

    def test_others_that_write_in_between(self, storage: Any, other: Any) -> None:
        record = held(storage)
        resting = record._replace(token=2, waits="yes", due=None, lease=0.0)
        with preceded(storage, "update_item", partial(other.commit, resting, 1, absent="yes"), times=1):
            assert storage.signal("one", "yes", b"1" * 999, NOW) == (resting._replace(due=NOW), True)
        with preceded(storage, "update_item", partial(other.signal, "one", "no", b"first", NOW), times=1):
            assert storage.signal("one", "no", b"second" * 999, NOW) == (resting._replace(due=NOW), False)
        assert other.received(resting, "no") == b"first"
        assert len(items(storage)) == 2  # nothing is left of the second
        new = resting._replace(token=3)
        with preceded(storage, "delete_item", partial(other.restart, new._replace(run="again"), resting), times=1):
            storage.remove("one")
        assert items(storage) == {}
        record = held(storage)
        take = partial(other.commit, record._replace(token=2), 1)
        with preceded(storage, "delete_item", take, times=1), pytest.raises(Fenced):
            storage.remove("one", record)
        with preceded(storage, "delete_item", partial(other.remove, "one"), times=1):
            storage.remove("one", record._replace(token=2))
        with preceded(storage, "put_item", partial(held, other, lease=NOW), times=1):
            later = record._replace(run="later", lease=NOW + 9)
            assert storage.claim(later, NOW, True) == (record._replace(token=2, lease=NOW + 9), True)

    def test_what_is_removed_while_it_is_read(self, storage: Any, other: Any) -> None:
        held(storage, input=b"1" * 300_000)
        with preceded(storage, "batch_get_item", partial(other.remove, "one"), times=1):
            assert storage.read("one") is None
        record = held(storage, input=b"1" * 300_000, lease=0.0)
        with preceded(storage, "batch_get_item", partial(other.remove, "one"), times=1):
            assert storage.claim(record._replace(lease=NOW + 9), NOW, False) == (None, False)
        held(storage, input=b"1" * 300_000)
        with preceded(storage, "batch_get_item", partial(other.remove, "one"), times=1):
            assert storage.signal("one", "yes", b"", NOW) == (None, False)

    @pytest.mark.parametrize("what", ["remove", "restart"])
    def test_what_is_done_is_no_error(self, storage: Any, dynamodb_server: DynamoServer, what: str) -> None:
        """Whichever request is throttled; what is left goes with the next removal."""
        for number in range(5):
            old = step(storage, held(storage, f"id-{number}"))
            new = old._replace(run="another", token=3, step=0)
            with closing(impatient(storage, dynamodb_server)) as mine:
                act = {"remove": partial(mine.remove, old.id, old), "restart": partial(mine.restart, new, old)}[what]
                throttle(mine, number)
                try:
                    act()
                except StorageError:
                    assert storage.read(old.id) == old
                else:
                    assert storage.read(old.id) == {"remove": None, "restart": new}[what]
            storage.remove(old.id)
            assert items(storage, old.id) == {}

    def test_who_asks_for_a_removal_learns_that_something_is_left(
        self, storage: Any, dynamodb_server: DynamoServer
    ) -> None:
        for number in range(5):
            old = step(storage, held(storage, f"id-{number}"))
            with closing(impatient(storage, dynamodb_server)) as mine:
                throttle(mine, number)
                try:
                    mine.remove(old.id)
                except StorageError:
                    assert items(storage, old.id) != {}
                    storage.remove(old.id)
            assert items(storage, old.id) == {}

    def test_who_has_lost_a_race_need_not_clean_up(self, storage: Any, dynamodb_server: DynamoServer) -> None:
        record, large = Record("one", "run", token=1, lease=NOW + 60), b"1" * 9000
        with closing(impatient(storage, dynamodb_server)) as mine:
            throttle(mine, 3)
            with preceded(mine, "put_item", partial(storage.claim, record, NOW, True), times=1):
                assert mine.claim(record._replace(run="another", input=large), NOW, True) == (record, False)
        with closing(impatient(storage, dynamodb_server)) as mine:
            throttle(mine, 3)
            with preceded(mine, "update_item", partial(storage.signal, "one", "yes", b"first", NOW), times=1):
                assert mine.signal("one", "yes", large, NOW) == (record, False)
        assert storage.received(record, "yes") == b"first"
        assert len(items(storage)) == 3  # both have left something

    def test_requests_that_are_done_in_part(self, storage: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """As DynamoDB does when a table is busy, or an answer would be too large."""
        client, table = storage._table.client, storage._table.name
        write, read = client.batch_write_item, client.batch_get_item

        def write_some(RequestItems: Any) -> Any:  # noqa: N803 - its name in boto3
            write(RequestItems={table: RequestItems[table][:3]})
            return {"UnprocessedItems": {table: RequestItems[table][3:]} if RequestItems[table][3:] else {}}

        def read_some(RequestItems: Any) -> Any:  # noqa: N803
            keys = RequestItems[table]["Keys"]
            found = read(RequestItems={table: {"Keys": keys[-3:], "ConsistentRead": True}})["Responses"]
            rest = {table: {"Keys": keys[:-3], "ConsistentRead": True}} if keys[:-3] else {}
            return {"Responses": found, "UnprocessedKeys": rest}

        monkeypatch.setattr(client, "batch_write_item", write_some)
        monkeypatch.setattr(client, "batch_get_item", read_some)
        data = bytes(range(256)) * (PART * 7 // 256)
        record = step(storage, held(storage), data)
        assert storage.results(record, 0, 1) == other.results(record, 0, 1) == [Result(0, data=data)]
        monkeypatch.setattr(client, "batch_get_item", lambda **request: {"UnprocessedKeys": request["RequestItems"]})
        monkeypatch.setattr("sequential.stores.dynamodb_items.ATTEMPTS", 3)
        busy = (
            "DynamoDB: batch_get_item was not completed in 3 attempts: raise the table's throughput, or try again lat"
        )
        with pytest.raises(StorageError, match=busy):
            storage.results(record, 0, 1)

    def test_a_server_that_is_away(self, storage: Any, dynamodb_server: DynamoServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        record = held(storage)
        with closing(impatient(storage, dynamodb_server, endpoint_url=url)) as away:
            for request in (
                partial(away.read, "one"),
                partial(step, away, record),
                partial(away.save, record, Result(0)),
            ):
                with pytest.raises(
                    StorageError, match=r'DynamoDB: Could not connect .* "http.*": check that it can be re'
                ):
                    request()
        assert storage.read("one") == record
        assert storage.results(record, 0, 1) == []

    def test_a_table_that_is_not_there(self, storage: Any, dynamodb_server: DynamoServer) -> None:
        with closing(another(storage, dynamodb_server)) as lost:
            lost._table.name = "lost"
            missing = r"DynamoDB: .*ResourceNotFoundException.*: its table is not there: call create_schema\(\) once"
            for request in (partial(lost.read, "one"), partial(held, lost), partial(lost.due, NOW, 1)):
                with pytest.raises(StorageError, match=missing):
                    request()

    def test_errors_that_have_a_remedy(self, storage: Any) -> None:
        for code, remedy in {
            "AccessDeniedException": "grant these credentials what is missing",
            "ExpiredTokenException": "give the client valid credentials",
            "ItemCollectionSizeLimitExceededException": "nothing was recorded",
        }.items():
            answer(storage, "GetItem", {"__type": f"com.amazonaws.dynamodb#{code}"})
            with pytest.raises(StorageError, match=rf"DynamoDB: An error occurred \({code}\) .*: no: {remedy}"):
                storage.read("one")

    def test_errors_that_do_not_say_whether_anything_was_recorded(
        self, storage: Any, dynamodb_server: DynamoServer
    ) -> None:
        record = held(storage)
        with closing(impatient(storage, dynamodb_server)) as mine:
            for code, status in {"InternalServerError": 500, "ServiceUnavailable": 503}.items():
                answer(mine, "TransactWriteItems", {"__type": f"com.amazonaws.dynamodb#{code}"}, status=status)
                told = (
                    rf"DynamoDB: An error occurred \({code}\) .*: no: it may have been recorded or not: look, or try ag"
                )
                with pytest.raises(StorageError, match=told):
                    mine.save(record, Result(0))

    def test_a_record_full_of_signals(self, storage: Any) -> None:
        """It takes no more of them, but whatever else has to be written."""
        from sequential.stores import dynamodb_items as ddb

        record = held(storage, lease=0.0)
        storage.signal("one", "taken", b"", NOW)
        storage.commit(record, 1, taken="taken")
        item = items(storage)["record"]
        item["others"] = {"S": "x" * (ddb.FULL - ddb.size(item) - 500)}
        storage._table.client.put_item(TableName=storage._table.name, Item=item)
        for name in ("a", "b"):
            assert storage.signal("one", name * 200, b"1" * 9000, NOW) == (record, True)
        before = items(storage)
        full = (
            "DynamoDB: execution 'one' has no room for another signal, for an item holds at most 400 KB: send it fewer,"
        )
        with pytest.raises(StorageError, match=full):
            storage.signal("one", "c" * 200, b"1" * 9000, NOW)
        assert items(storage) == before
        assert storage.signal("one", "a" * 200, b"", NOW) == (record, False)
        record, taken = storage.claim(record._replace(lease=NOW + 60.1), NOW, False)
        assert taken
        failed = record._replace(token=3, status="failed", lease=0.0, wake=NOW + 0.1, waits="w" * 200)
        failed = failed._replace(error="😀" * 5300)  # of an error's text 5,000 characters are kept
        storage.commit(failed, 2, Result(0))
        assert storage.read("one") == failed
        again = failed._replace(run="again", token=4, input=b"1" * 4096, error=None)
        storage.restart(again, failed)
        assert storage.read("one") == again

    def test_what_is_too_large_for_a_record(self, storage: Any) -> None:
        record = held(storage)
        new = record._replace(token=2, step=1, status="failed", error="x" * 450_000)
        large = r"DynamoDB: .* size .*: an item holds at most 400 KB, a number 38 digits, and table= must name what create_schema\(\) has made"
        with pytest.raises(StorageError, match=large):
            storage.commit(new, 1, Result(0))
        assert storage.read("one") == record
        assert storage.results(record, 0, 1) == []
        with pytest.raises(StorageError, match=large):  # which moto has then written in part
            storage.commit(new, 1)


class TestSchema:
    def test_any_number_may_create_it_at_once(self, dynamodb_server: DynamoServer) -> None:
        from sequential.stores.dynamodb import DynamoDBStorage

        table = new_table()
        opened = [DynamoDBStorage(new_client(dynamodb_server), table=table, ttl=1e6) for _ in range(4)]
        assert together(*(one.create_schema for one in opened)) == [None] * 4
        record = held(opened[0])
        opened[1].create_schema()
        assert opened[2].read("one") == record
        client: Any = opened[0]._table.client
        described = client.describe_table(TableName=table)["Table"]
        assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        lives = client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
        assert (lives["AttributeName"], lives["TimeToLiveStatus"]) == ("expires", "ENABLED")
        client.delete_table(TableName=table)
        for one in opened:
            one.close()

    def test_a_later_one_is_refused(self, storage: Any, other: Any) -> None:
        record = held(storage, lease=0.0)
        alter(storage, "record", "schema", 2)
        newer = "DynamoDB: the table is of version 2, this release knows 1: upgrade sequential-flow"
        for request in (
            partial(other.claim, record._replace(lease=NOW), NOW, True),
            partial(other.read, "one"),
            partial(other.signal, "one", "yes", b"", NOW),
            partial(other.due, NOW, 1),
            partial(other.find, "", 1),
        ):
            with pytest.raises(StorageError, match=newer):
                request()
        alter(storage, "schema", "schema", 2, id="#")
        with pytest.raises(StorageError, match=newer):
            other.create_schema()
        assert items(storage)["record"]["token"] == {"N": "1"}

    def test_a_table_that_is_never_ready(self, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sequential.stores.dynamodb_table._PATIENCE", {"Delay": 0, "MaxAttempts": 2})
        answer(storage, "DescribeTable", *[{"__type": "com.amazonaws.dynamodb#ResourceNotFoundException"}] * 2)
        with pytest.raises(
            StorageError, match=r"DynamoDB: Waiter TableExists failed: Max attempts exceeded.*: check that"
        ):
            storage.create_schema()

    @pytest.fixture
    def create(self, storage: Any, dynamodb_server: DynamoServer) -> Iterator[Callable[..., Any]]:
        """Let a table be there that differs from ours, and return a storage over it."""
        from sequential.stores.dynamodb_indexes import TABLE

        made = list[Any]()

        def create(**fields: Any) -> Any:
            made.append(created := another(storage, dynamodb_server, ttl=1e6))
            created._table.name = new_table()
            wanted = {name: value for name, value in (TABLE | fields).items() if value}
            named = re.findall(r"'AttributeName': '(\w+)', 'KeyType'", str(wanted))
            wanted["AttributeDefinitions"] = [
                {"AttributeName": name, "AttributeType": "N" if name == "rings" else "S"} for name in sorted({*named})
            ]
            created._table.client.create_table(TableName=created._table.name, **wanted)
            return created

        yield create
        for created in made:
            created._table.client.delete_table(TableName=created._table.name)
            created.close()

    def test_a_table_of_another_kind(self, create: Callable[..., Any]) -> None:
        foreign = create(KeySchema=[{"AttributeName": "name", "KeyType": "HASH"}])
        with pytest.raises(StorageError, match=r"DynamoDB: .*table= must name what create_schema\(\) has made"):
            foreign.create_schema()

    def test_a_table_without_all_that_is_needed(self, create: Callable[..., Any]) -> None:
        from sequential.stores.dynamodb_indexes import TABLE

        due, ids = TABLE["GlobalSecondaryIndexes"]
        no_due, no_ids = "an index 'due' of shard, rings", "an index 'ids' of shard, id, status, workflow"
        for indexes, missing in (
            ([], f"{no_due}, {no_ids}"),
            ([ids], no_due),
            ([due, ids | {"IndexName": "names"}], no_ids),
            ([due | {"KeySchema": ids["KeySchema"]}, ids], no_due),
            ([due, ids | {"Projection": due["Projection"]}], no_ids),
        ):
            told = (
                rf"DynamoDB: table 'test-.*' lacks {missing}: add what is missing, or let table= name what create_sch"
            )
            with pytest.raises(StorageError, match=told):
                create(GlobalSecondaryIndexes=indexes).create_schema()

    def test_a_table_with_more_than_is_needed(self, create: Callable[..., Any]) -> None:
        from sequential.stores.dynamodb_indexes import TABLE

        due, ids = (index | {"Projection": {"ProjectionType": "ALL"}} for index in TABLE["GlobalSecondaryIndexes"])
        made = create(GlobalSecondaryIndexes=[due, ids, ids | {"IndexName": "more"}])
        made.create_schema()
        record = held(made)
        assert made.find("", 9, "running", "workflow") == made.due(NOW + 99, 9) == [record]

    @pytest.mark.parametrize("status", ["ENABLING", "ENABLED", "DISABLED", "of another attribute"])
    def test_expiry_that_has_just_been_asked_for(self, create: Callable[..., Any], status: str) -> None:
        """Amazon may refuse to be told so again for an hour."""
        told = "Time to live has been modified multiple times within a fixed interval"
        storage = create()
        answer(
            storage, "UpdateTimeToLive", {"__type": "com.amazon.coral.validate#ValidationException", "Message": told}
        )
        described: dict[str, Any] = {"TimeToLiveStatus": status, "AttributeName": "expires"}
        if status == "DISABLED":
            del described["AttributeName"]
        if status.startswith("of"):
            described = {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}
        answer(storage, "DescribeTimeToLive", {"TimeToLiveDescription": described}, status=200)
        if status in {"ENABLING", "ENABLED"}:
            storage.create_schema()
        else:
            with pytest.raises(StorageError, match=f"DynamoDB: .*{told}"):
                storage.create_schema()


def lives(storage: Any, id: str = "one") -> int:
    """Check that nothing expires before its record, now or as long as it is renewed, and return when that expires."""
    found = items(storage, id)
    expires, until = (int(found["record"][name]["N"]) for name in ("expires", "until"))
    assert expires <= until
    for part, item in found.items():
        assert part == "record" or int(item["expires"]["N"]) >= until, part
    return expires


class TestExpiry:
    TTL = 1000.0

    @pytest.fixture
    def mortal(self, storage: Any, dynamodb_server: DynamoServer) -> Iterator[Any]:
        with closing(another(storage, dynamodb_server, ttl=self.TTL)) as made:
            yield made

    def test_everything_outlives_its_record(self, mortal: Any) -> None:
        now, data = time(), b"1" * 300_000
        record = held(mortal, lease=now + 60, due=now, input=data, changed=now)
        assert now + 60 + self.TTL <= lives(mortal) <= now + 62 + self.TTL
        mortal.signal("one", "yes", data, now)
        record = step(mortal, record, data, lease=0.0, due=now + 30)
        mortal.save(record, Result(1, data=data))
        assert now + 30 + self.TTL <= lives(mortal) < now + 40 + self.TTL
        record = step(mortal, record, status="sleeping", wake=now + 10**6, due=now + 10**6)
        assert lives(mortal) == math.ceil(now + 10**6 + self.TTL)
        mortal.signal("one", "no", data, now)
        mortal.save(record, Result(4, data=data))
        assert lives(mortal) == math.ceil(now + 10**6 + self.TTL)
        record, taken = mortal.claim(record._replace(lease=now + 99), now, False)
        assert taken
        assert lives(mortal) == math.ceil(now + 10**6 + self.TTL)
        record = step(mortal, record, wake=None, due=now)
        assert lives(mortal) < now + 200 + self.TTL
        mortal.restart(record._replace(run="again", token=99, wake=now + 10**7), record)
        assert lives(mortal) == math.ceil(now + 10**7 + self.TTL)

    def test_what_time_brings(self, mortal: Any) -> None:
        """Everything is renewed only when the record would outlive it."""
        now, data = time(), b"1" * 300_000
        record = step(mortal, held(mortal, lease=now, due=now), data)
        mortal.signal("one", "yes", data, now)
        sent = requests_of(mortal)
        record = step(mortal, record)
        assert sent == ["TransactWriteItems"]

        def let_time_pass() -> None:
            for part in items(mortal):
                alter(mortal, part, "expires", int(now) + 10)
            for name in ("until", "target"):
                alter(mortal, "record", name, int(now) + 10)
            sent.clear()

        let_time_pass()
        record = step(mortal, record)
        assert lives(mortal) > now + 900
        assert Counter(sent)["UpdateItem"] == 2 + len(items(mortal)) - 2  # all but the record and the new result
        let_time_pass()
        record, taken = mortal.claim(record._replace(lease=now + 60), now + 1, False)
        assert taken
        assert lives(mortal) > now + 900
        let_time_pass()
        waiting = record._replace(token=record.token + 1, lease=0.0, waits="go", due=None)
        mortal.commit(waiting, record.token, absent="go")
        let_time_pass()
        assert mortal.signal("one", "go", data, now + 1)[1]
        assert lives(mortal) > now + 900

    def test_a_renewal_that_takes_more_than_one_invocation(self, mortal: Any) -> None:
        """Each goes on where the one before it was broken off."""
        now = time()
        record = held(mortal, lease=0.0, due=now)
        for number in range(30):
            mortal.save(record, Result(number))
        for part in items(mortal):
            alter(mortal, part, "expires", int(now) + 10)
        for name in ("until", "target"):
            alter(mortal, "record", name, int(now) + 10)
        attempts, died = 0, True
        while died and attempts < 9:
            attempts += 1
            record = record._replace(lease=now + 60 * attempts)
            died = dies(mortal._table, "ask", 20, partial(mortal.claim, record, now, False))
        assert not died
        assert mortal.read("one") == record._replace(token=2)
        assert lives(mortal) == math.ceil(record.lease + self.TTL)
        assert len(mortal.results(record, 0, 99)) == 30

    def test_others_that_renew_at_the_same_time(self, mortal: Any, dynamodb_server: DynamoServer) -> None:
        now = time()
        with closing(another(mortal, dynamodb_server, ttl=self.TTL)) as other:
            record = step(mortal, held(mortal, lease=now, due=now))
            ask, times = mortal._table.ask, list[int]()

            async def ask_after_another(operation: str, **arguments: Any) -> Any:
                """Before each request, someone else has raised until when new items must live."""
                if operation == "update_item" and len(times) < 5:
                    times.append(len(times))
                    alter(other, "record", "target", int(now) + 10**7 + len(times))
                return await ask(operation, **arguments)

            mortal._table.ask = ask_after_another
            record = record._replace(token=record.token + 1, wake=now + 10**6)
            mortal.commit(record, record.token - 1)
            assert len(times) == 5
            assert lives(mortal) == math.ceil(now + 10**6 + self.TTL)
            assert other.read("one") == record
            mortal._table.ask = ask

    def test_others_that_never_cease_to_renew(self, mortal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sequential.stores.dynamodb_items.ATTEMPTS", 3)
        now = time()
        record = held(mortal, lease=now)
        targets = iter(range(int(now) + 10**6, int(now) + 10**7))

        def renew() -> None:
            alter(mortal, "record", "target", next(targets))

        restless = "DynamoDB: execution 'one' changed under each of 3 attempts"
        with preceded(mortal, "transact_write_items", renew), pytest.raises(StorageError, match=restless):
            step(mortal, record)
        assert mortal.read("one") == record

    def test_what_has_expired_is_absent(self, mortal: Any) -> None:
        now = time()
        record = step(mortal, held(mortal, lease=now + 60, due=now))
        mortal.signal("one", "yes", b"1", now)
        alter(mortal, "record", "expires", int(now) - 1)
        assert mortal.read("one") is None
        assert mortal.received(record, "yes") is None
        assert mortal.find("", 1) == mortal.due(now + 99, 1) == []
        assert mortal.claim(record._replace(lease=now + 200), now + 100, False) == (None, False)
        assert mortal.signal("one", "no", b"", now) == (None, False)
        for write in (partial(step, mortal, record), partial(mortal.save, record, Result(1))):
            with pytest.raises(Fenced):
                write()
        later = record._replace(run="later", token=1, step=0, lease=now + 300)
        assert mortal.claim(later, now, True) == (later, True)
        assert mortal.results(later, 0, 1) == []
        assert mortal.received(later, "yes") is None
        mortal.remove("one")
        assert items(mortal) == {}

    def test_it_may_begin_when_there_are_executions(self, storage: Any, mortal: Any) -> None:
        now = time()
        record = step(storage, held(storage, lease=0.0, due=now, input=b"1" * 5000))
        storage.signal("one", "yes", b"1" * 999, now)
        record, taken = mortal.claim(record._replace(lease=now + 60), now, False)
        assert taken
        assert lives(mortal) > now + self.TTL
        assert len(items(storage)) == 4


class TestRoundTrips:
    def test_each_takes_as_few_as_there_can_be(self, storage: Any) -> None:
        sent = requests_of(storage)

        def made() -> list[str]:
            done, sent[:] = sent[:], []
            return done

        record = held(storage, lease=NOW + 60)
        assert made() == ["UpdateItem", "PutItem"]
        storage.claim(Record("two", "run"), NOW, True)
        assert made() == ["PutItem"]
        record, _ = storage.claim(record._replace(lease=NOW + 200), NOW + 100, True)
        assert made() == ["UpdateItem"]
        assert storage.claim(record._replace(lease=NOW + 200), NOW + 100, True) == (record, False)
        assert made() == ["UpdateItem"]
        record = step(storage, record)
        assert made() == ["TransactWriteItems"]
        storage.save(record, Result(1))
        assert made() == ["TransactWriteItems"]
        assert len(storage.results(record, 0, 9)) == 2
        assert made() == ["Query"]
        assert storage.results(record, 9, 9) == []
        assert made() == []
        storage.commit(record._replace(lease=0.0, due=NOW), record.token)
        assert made() == ["UpdateItem"]
        assert storage.read("one")
        assert made() == ["GetItem"]
        assert storage.due(NOW, 9)
        assert Counter(made()) == {"Query": 4, "BatchGetItem": 1}
        storage.signal("one", "yes", b"1", NOW)
        assert made() == ["GetItem", "UpdateItem"]
        assert storage.received(record, "yes") == b"1"
        assert made() == ["GetItem"]
        storage.commit(record, record.token, taken="yes")
        assert made() == ["UpdateItem"]
        storage.remove("one")
        assert made() == ["Query", "DeleteItem", "BatchWriteItem"]

    def test_a_long_history_is_one_page(self, storage: Any) -> None:
        from sequential.stores import dynamodb_items as ddb

        record = held(storage)
        for first in range(0, 1000, 25):
            puts = [
                {
                    "PutRequest": {
                        "Item": ddb.key("one", ddb.key_of(record, number))
                        | {"data": {"B": b"x" * 200}}
                        | ddb.encode(Result(number, "tool a.b"), ddb.ABOUT)
                    }
                }
                for number in range(first, first + 25)
            ]
            storage._table.client.batch_write_item(RequestItems={storage._table.name: puts})
        sent = requests_of(storage)
        assert [result.step for result in storage.results(record, 0, 1000)] == list(range(1000))
        assert sent == ["Query"]

    def test_commits_leave_the_indexes_be(self, storage: Any) -> None:
        """A commit that goes on with the next step moves the end of the lease, but not what the indexes show."""
        record = held(storage, lease=NOW - NOW % 64)
        indexed = ("shard", "rings", "id", "status", "workflow")
        before = [items(storage)["record"][name] for name in indexed]
        for seconds in (1, 20, 63):
            record = step(storage, record, lease=NOW - NOW % 64 + seconds)
            assert [items(storage)["record"][name] for name in indexed] == before
        assert storage.due(record.lease - 0.1, 9) == []
        assert storage.due(record.lease, 9) == [record]


class TestValues:
    def test_what_comes_back_is_what_went_in(self, storage: Any, other: Any) -> None:
        record = held(
            storage, lease=math.inf, due=0.1 + 0.2, wake=5e-324, changed=1e308, version=-(2**63), first_input=2**64 - 1
        )
        assert other.read("one") == record
        new = record._replace(
            token=2**63, step=2**31, error="\x01 \u2028 \U0001f600", waits="", lease=NOW + 0.1, workflow=""
        )
        storage.commit(new, 1)
        assert other.read("one") == new._replace(workflow="workflow")
        result = Result(7, "tool é.\U0001f600", 2**64 - 1, b"\x00\xff", 0.1 + 0.2, 5e-324, "")
        storage.save(new, result)
        assert other.results(new, 0, 99) == [result]

    @pytest.mark.parametrize("ttl", [None, 1e6])
    @pytest.mark.parametrize("now", [0.0, -0.0, 5e-324, -5e-324, 1e-200, 1e-90, 0.1, -1e9, -1e300, 1e16, 1e300])
    def test_any_clock(self, storage: Any, dynamodb_server: DynamoServer, now: float, ttl: float | None) -> None:
        with closing(another(storage, dynamodb_server, ttl=ttl)) as mine:
            record = Record("one", "run", token=1, due=now, wake=now, changed=now)
            assert mine.claim(record, now, True) == (record, True)
            assert mine.read("one") == record
            assert mine.due(now, 1) == [record]
            mine.commit(record._replace(token=2), 1, Result(0, started=now, ended=now))
            assert mine.results(record, 0, 1) == [Result(0, started=now, ended=now)]
            assert mine.signal("one", "yes", b"", now) == (record._replace(token=2), True)

    def test_numbers_of_other_types(self, storage: Any, other: Any) -> None:
        class Seconds(float):
            def __repr__(self) -> str:
                return f"Seconds({float(self)})"

        class Version(int, Enum):
            TWO = 2

        times: Any = {name: Seconds(NOW + 0.1) for name in ("due", "wake", "changed")}
        record = Record("one", "run", version=Version.TWO, token=1, step=Version.TWO, **times)
        assert storage.claim(record, Seconds(NOW), True) == (record, True)
        held = record._replace(token=2, lease=Seconds(NOW + 60.1))
        assert storage.claim(held, Seconds(NOW + 1), False) == (held, True)
        result = Result(2, fingerprint=Version.TWO, started=Seconds(0.1), ended=Seconds(0.2))
        storage.commit(held._replace(token=3), 2, result)
        assert other.read("one") == held._replace(token=3)
        assert other.results(held, 0, 9) == [result]
        assert other.due(NOW + 99, 1) == other.find("", 1) == [held._replace(token=3)]

    def test_signals_of_any_name(self, storage: Any, other: Any) -> None:
        record = held(storage)
        names = ["a.b", "a", "b", "@~-:_", "0", "#", "x" * 200, "status", "é"]
        for name in names:
            assert storage.signal("one", name, name.encode(), NOW) == (record, True)
        for name in names:
            assert other.received(record, name) == name.encode()
            assert storage.signal("one", name, b"", NOW) == (record, False)
            storage.commit(record, 1, taken=name)
            assert other.received(record, name) is None

    def test_what_is_due_later_than_a_lease_ends(self, storage: Any, other: Any) -> None:
        record = held(storage, lease=0.0, due=NOW + 10**6)
        taken = record._replace(token=2, lease=NOW + 60)
        assert storage.claim(taken, NOW, False) == (taken, True)
        assert other.due(NOW + 59, 9) == []
        assert other.due(NOW + 60, 9) == [taken]

    def test_the_earliest_comes_first(self, storage: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Though in the index what is held stands earlier, and among others, in any order."""
        monkeypatch.setattr("sequential.stores.dynamodb_indexes._PAGE", 1)
        start, due = NOW - NOW % 64, list[Record]()
        for number in range(40):
            seconds = start + 1 + number * 37 % 101
            times = {"lease": seconds, "due": None} if number % 3 else {"lease": 0.0, "due": seconds}
            due.append(held(storage, f"id-{number}", **times))
        due.sort(key=lambda record: record.rings_at or 0.0)
        for limit in (1, 2, 7, 39, 99):
            assert other.due(start + 102, limit) == due[:limit]

    def test_arguments(self, storage: Any) -> None:
        import boto3

        from sequential.stores.dynamodb import DynamoDBStorage

        others: list[Any] = [None, boto3, boto3.client("s3", region_name="eu-north-1")]
        for client in others:
            with pytest.raises(TypeError, match=r'client= is boto3\.client\("dynamodb"\), or one of aiobotocore, not'):
                DynamoDBStorage(client)
        for table in ("ab", "a b", "a/b", "x" * 256, ""):
            with pytest.raises(
                ValueError, match=r"table= is the name of a table, 3 to 255 characters of A-Z a-z 0-9 _ . -,"
            ):
                DynamoDBStorage(storage._table.client, table=table)
        for ttl in (0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="ttl= is a number of seconds above 0, or left out to"):
                DynamoDBStorage(storage._table.client, ttl=ttl)

    def test_without_the_driver(self) -> None:
        code = (
            "import sys; sys.modules['botocore'] = None\n"
            "from sequential.errors import NotInstalled\n"
            "try: import sequential.stores.dynamodb\n"
            "except NotInstalled as error: print(error)\n"
        )
        ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert "is not installed: pip install 'sequential-flow[dynamodb]'" in ran.stdout


class TestUrls:
    @pytest.fixture(autouse=True)
    def environment(self, dynamodb_server: DynamoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", "nowhere")
        for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in dynamodb_server.options.items():
            monkeypatch.setenv(name.upper(), value)

    def test_a_workflow_over_a_url(self, dynamodb_server: DynamoServer) -> None:
        table, region = new_table(), dynamodb_server.options["region_name"]
        storage: Any = open_storage(f"dynamodb://{region}/{table}?endpoint={dynamodb_server.url}", ttl=1e6)
        with closing(storage):
            storage.create_schema()
            flow = FlowExecutor(storage, call=square, retain=True)
            outcome = flow.execute_sync(squares, "one", {"steps": 5})
            while isinstance(outcome, Paused):
                outcome = flow.execute_sync(squares, "one")
            assert outcome == 30
            assert [step["result"] for step in flow.history_sync("one")] == [0, 1, None, 4, 9, 16, None]
            storage._table.client.delete_table(TableName=table)

    def test_what_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sequential.stores.dynamodb import DynamoDBStorage

        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
        with closing(DynamoDBStorage.from_url("dynamodb://")) as storage:
            assert storage._table.name == "sequential"
            assert storage._table.client.meta.region_name == "eu-west-3"
            assert storage._table.client.meta.endpoint_url == "https://dynamodb.eu-west-3.amazonaws.com"

    def test_no_region(self) -> None:
        with pytest.raises(
            StorageError, match=r"DynamoDB: You must specify a region.: check that it can be reached, and the"
        ):
            open_storage("dynamodb:///table")

    @pytest.mark.parametrize(
        "url",
        [
            "redis://host/table",
            "dynamodb://region/table?ttl=3",
            "dynamodb://r/t?endpoint=x&a=b",
            "dynamodb://region:8000/table",
            "dynamodb://key:secret@region/table",
            "dynamodb://:secret@region/table",
            "dynamodb://region/table#secret",
            "dynamodb://region/table?endpoint=",
            "dynamodb://region/table?endpoint=nonsense",
            "dynamodb://region/table?endpoint=localhost:8000",
            "dynamodb://region/table?endpoint=http://",
        ],
    )
    def test_other_urls(self, url: str) -> None:
        from sequential.stores.dynamodb import DynamoDBStorage

        with pytest.raises(
            ValueError, match=r"DynamoDB's URLs are dynamodb://region/table\?endpoint=http://host:port, not"
        ) as told:
            DynamoDBStorage.from_url(url)
        assert ":secret" not in str(told.value)

    def test_without_boto3(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sequential.stores.dynamodb import DynamoDBStorage

        monkeypatch.setitem(sys.modules, "boto3", None)
        with pytest.raises(NotInstalled, match=r"'boto3' is not installed: pip install 'sequential-flow\[dynamodb\]'"):
            DynamoDBStorage.from_url("dynamodb://eu-west-3/table")


def test_workflows_at_once_over_an_async_client(storage: Any, dynamodb_server: DynamoServer) -> None:
    from sequential.stores.dynamodb import DynamoDBStorage

    async def run() -> None:
        client: Any = Threaded(storage._table.client)
        mine: Any = DynamoDBStorage(client, table=storage._table.name)
        flow = FlowExecutor(mine, call=square, budget=math.inf)

        async def finish(steps: int) -> Any:
            while isinstance(outcome := await flow.execute(squares, f"id-{steps}", {"steps": steps}), Paused):
                continue
            return outcome

        assert await asyncio.gather(*map(finish, range(6))) == [0, 0, 1, 5, 14, 30]
        assert await mine.find("", 9) == []
        answer(storage, "UpdateItem", {"__type": "com.amazonaws.dynamodb#TransactionConflictException"})
        assert (await mine.claim(Record("one", "run", lease=NOW), NOW, True))[1]

    asyncio.run(run())
