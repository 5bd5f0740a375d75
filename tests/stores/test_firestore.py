"""Firestore, by a model of its documented rules: no test here has seen Google's emulator, or Firestore itself.

Google's own client speaks real gRPC to the model.  With FIRESTORE_EMULATOR_HOST set, all tests but those that need the
model run on the server there.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from sequential import FlowExecutor, Paused, again, tool, wait
from sequential.errors import Fenced, InvalidId, InvalidName, NotInstalled, StorageError
from sequential.storage import Journal, Record, Result, settle
from sequential.stores import open as open_storage
from sequential.stores.clients import Recent
from sequential.testing import (
    CapabilityTests,
    JournalTests,
)
from sequential.testing.conformance import FEW_POINTS
from sequential.testing.crash import count_crash_points
from tests.conftest import FirestoreServer
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

if TYPE_CHECKING:
    from tests.servers.firestore import FirestoreModel

WRITERS = 32
ROUNDS = 10  # a request takes the model milliseconds, and a round takes at least 32


@pytest.fixture(autouse=True)
def own_model(firestore_server: FirestoreServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FirestoreModel | None]:
    """An empty model for each test: for each query it looks through all that it has."""
    if firestore_server.model is None:
        yield None
        return
    from tests.servers.firestore import FirestoreModel

    with FirestoreModel() as model:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", model.address)
        yield model


class FirestoreTests:
    """Where the suites find a storage: a collection of its own for each test."""

    async def make(self) -> Journal:  # within the loop to which an async client binds itself
        self.collection, self.opened = new_collection(), list[Any]()
        storage: Journal = self.another(None)
        return storage

    async def discard(self, storage: Any) -> None:
        for opened in self.opened:
            await settle(opened.close())

    def another(self, storage: Any) -> Any:
        from sequential.stores.firestore import FirestoreStorage

        self.opened.append(FirestoreStorage(self.connect(), collection=self.collection, timeout=20))
        return self.opened[-1]

    def connect(self) -> Any:
        raise NotImplementedError


class TestClient(FirestoreTests, JournalTests):
    steps = 1

    def connect(self) -> Any:
        from google.cloud.firestore import Client

        return Client(project="test")

    def test_every_request_survives_death_at_any_point(self) -> None:
        """Or nearly every one."""
        points = self.runner.run(count_crash_points(waiting, 2, echo, self.storage, {"go": [None]}))
        assert points > FEW_POINTS


class TestAsyncClient(FirestoreTests, CapabilityTests):
    """All of the suite but the five methods, which are the core's."""

    def connect(self) -> Any:
        from google.cloud.firestore import AsyncClient

        return AsyncClient(project="test")

    def test_a_workflow_survives_death_at_any_point(self) -> None:
        points = self.runner.run(count_crash_points(waiting, 1, echo, self.storage, {"go": [None]}))
        assert points > FEW_POINTS // 2


def waiting(rounds: int) -> Generator[Any, Any, Any]:
    if rounds > 1:
        yield [tool("a", "b", 1), tool("a", "b", 2)]
        return again(rounds - 1)
    return (yield wait("go"))


def new_collection() -> str:
    return f"test-{uuid4().hex}"


def new_storage(collection: str = "", **options: Any) -> Any:
    from google.cloud.firestore import Client

    from sequential.stores.firestore import FirestoreStorage

    return FirestoreStorage(Client(project="test"), collection=collection or new_collection(), **options)


@pytest.fixture
def storage() -> Iterator[Any]:
    with closing(new_storage(timeout=20)) as made:
        yield made


@pytest.fixture
def other(storage: Any) -> Iterator[Any]:
    """A second storage over the same data, as another process has it."""
    with closing(new_storage(storage._records.id)) as made:
        yield made


@pytest.fixture
def model(own_model: FirestoreModel | None) -> FirestoreModel:
    if own_model is None:
        pytest.skip("only the model of Firestore counts requests, and fails when it is told to")
    return own_model


@pytest.fixture
def small(own_model: FirestoreModel | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of what documents and requests may hold, so that little is large."""
    from sequential.stores import firestore_values

    monkeypatch.setattr(firestore_values, "PART", 90_000)
    if own_model is not None:
        monkeypatch.setattr("tests.servers.firestore.MAX_REQUEST", 1 << 20)


def interrupted(storage: Any, point: int, meanwhile: Callable[[], object], action: Callable[[], object]) -> bool:
    """Do something, and something else before its request of this number; tell whether there was one."""
    ask, left = storage._requests.ask, [point]

    async def ask_afterwards(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            meanwhile()
        return await ask(*arguments)

    storage._requests.ask = ask_afterwards
    try:
        action()
    except Fenced:
        pass
    finally:
        storage._requests.ask = ask
    return left[0] < 0


def documents(storage: Any, id: str = "one") -> dict[str, dict[str, Any]]:
    """All that is stored of an execution."""
    record = storage._records.document(f"x-{id}")
    below = [found for name in ("steps", "signals") for found in record.collection(name).stream()]
    return {found.id: found.to_dict() for found in (record.get(), *below) if found.exists}


class TestTogether:
    def test_one_of_32_commits(self, storage: Any) -> None:
        one_commits(storage, ROUNDS, WRITERS)

    def test_one_of_32_takes_the_lease(self, storage: Any) -> None:
        one_takes_the_lease(storage, ROUNDS // 2, WRITERS)

    def test_results_saved_ahead_at_the_same_time(self, storage: Any) -> None:
        record = held(storage)
        results = [Result(number, "tool a.b") for number in range(WRITERS)]
        assert together(*(partial(storage.save, record, result) for result in results)) == [None] * WRITERS
        assert storage.results(record, 0, WRITERS) == results
        assert storage.read("one") == record


class TestSizes:
    def test_a_hundred_megabytes_go_in_and_out_in_little_memory(self) -> None:
        written, read = peaks(
            "from google.cloud.firestore import Client\n"
            "from sequential.stores.firestore import FirestoreStorage\n"
            f"storage = FirestoreStorage(Client(project='test'), collection={new_collection()!r})\n"
        )
        assert written < 1.7 * LARGE  # the result is one of them
        assert read < 2.7 * LARGE

    def test_large_inputs_and_signals(self, storage: Any, other: Any) -> None:
        data = b"\x00" * 5_000_000
        record = held(storage, input=data, lease=0.0)
        assert storage.signal("one", "yes", data, NOW) == (record, True)
        assert other.read("one") == record
        assert other.received(record, "yes") == storage.received(record, "yes") == data
        assert storage.find("", 5) == storage.due(NOW, 5) == [record]
        again = record._replace(run="again", token=2, input=data + b"1")
        storage.restart(again, record)
        assert other.read("one") == again
        assert other.received(again, "yes") == data
        storage.commit(again._replace(token=3), 2, taken="yes")
        assert other.received(again, "yes") is None
        storage.remove("one")
        assert documents(storage) == {}

    def test_many_results_are_removed_with_several_requests(self, storage: Any, other: Any) -> None:
        record = held(storage)
        for first in range(0, 1000, 500):
            batch = storage._client.batch()
            for number in range(first, first + 500):
                batch.set(
                    storage._records.document("x-one").collection("steps").document(f"{record.run}-{number:010}"),
                    Result(number)._asdict(),
                )
            batch.commit()
        assert len(other.results(record, 0, 1000)) == 1000
        again = record._replace(run="again", token=2)
        storage.restart(again, record)
        assert len(documents(storage)) == 1
        step(storage, again)
        storage.remove("one")
        assert documents(storage) == {}

    def test_a_writer_dies_between_any_two_requests(self, storage: Any, other: Any) -> None:
        size = 9 * 900_000 + 1
        results = [Result(0, "first", data=b"1" * size), Result(0, "second", data=b"2" * (size - 900_000))]

        def removed(id: str) -> None:
            assert documents(storage, id) == {}

        # Before and after two requests for parts, and one for the record, and nowhere.
        assert commit_and_die(storage, other, (storage._requests, "ask"), results, removed=removed) == 7

    def test_more_than_a_request_may_remove(self, storage: Any, other: Any) -> None:
        record = held(storage)
        for number in range(14):
            record = step(storage, record, b"1" * (14_000_000 if number == 5 else 900_000))
        storage.signal("one", "yes", b"2" * 14_000_000, NOW)
        again = record._replace(run="again", token=record.token + 1)
        storage.restart(again, record)
        assert len(documents(storage)) == len(["record", "signal"]) + 16
        assert other.received(again, "yes") == b"2" * 14_000_000
        again = step(storage, again, b"3" * 14_000_000)
        storage.commit(again._replace(token=again.token + 1), again.token, taken="yes")
        assert len(documents(storage)) == len(["record", "result"]) + 16
        storage.remove("one")
        assert documents(storage) == {}

    @pytest.mark.parametrize("what", ["claim", "signal", "restart", "remove"])
    def test_death_within_anything_else(self, storage: Any, other: Any, small: None, what: str) -> None:
        large = b"3" * 1_500_000
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
            }
            died = dies(storage._requests, "ask", point, actions[what])
            found = other.read(id)
            assert found in {"claim": (None, new), "signal": (old,), "restart": (old, new), "remove": (old, None)}[what]
            if found == old:
                assert other.results(old, 0, 1) == [Result(0, data=large)]
                received = other.received(old, "yes")
                assert received in ((None, large) if what == "signal" else (None,))
                assert other.signal(id, "yes", b"", NOW) == (old, received is None)
            else:
                later = found or held(other, id, run="later")
                assert other.results(later, 0, 1) == other.results(old, 0, 1) == []
                assert other.received(later, "yes") is None
                assert other.find(id[:-1], 99)[-1:] == [later]
            other.remove(id)
            assert documents(storage, id) == {}
            point += 1
        assert point > 6

    def test_of_a_removal_broken_off_the_next_leaves_nothing(self, storage: Any, other: Any, small: None) -> None:
        large = b"3" * 1_500_000
        point, died = 0, True
        while died:
            record = step(storage, held(storage, f"id-{point}", input=large), large)
            storage.signal(record.id, "yes", large, NOW)
            died = dies(storage._requests, "ask", point, partial(storage.remove, record.id))
            assert other.read(record.id) in (None, record)
            other.remove(record.id)
            assert documents(storage, record.id) == {}
            point += 1
        assert point > 12

    @pytest.mark.parametrize("recreated", [False, True])
    def test_a_removal_while_an_execution_is_created(
        self, storage: Any, other: Any, small: None, recreated: bool
    ) -> None:
        large = b"4" * 1_500_000
        point, more = 0, True
        while more:
            wanted = Record(f"id-{point}", "run", "workflow", large, token=1, lease=NOW + 60)

            def meanwhile(wanted: Record = wanted) -> None:
                if recreated:
                    other.claim(wanted._replace(run="another"), NOW, True)
                other.remove(wanted.id)

            more = interrupted(storage, point, meanwhile, partial(storage.claim, wanted, NOW, True))
            assert other.read(wanted.id) == wanted
            other.remove(wanted.id)
            assert documents(storage, wanted.id) == {}
            point += 1
        assert point > 5

    def test_a_removal_while_a_signal_is_sent(self, storage: Any, other: Any, small: None) -> None:
        large = b"5" * 1_500_000
        point, more = 0, True
        while more:
            record = held(storage, f"id-{point}")

            def meanwhile(id: str = record.id) -> None:
                other.remove(id)
                held(other, id, run="later")

            more = interrupted(storage, point, meanwhile, partial(storage.signal, record.id, "yes", large, NOW))
            assert other.received(other.read(record.id), "yes") == large
            assert len(documents(storage, record.id)) == len(["record", "signal"]) + 17
            other.remove(record.id)
            assert documents(storage, record.id) == {}
            point += 1
        assert point > 3

    @pytest.mark.parametrize("left", ["an execution", "parts"])
    def test_what_is_made_while_an_earlier_execution_is_removed(
        self, storage: Any, other: Any, small: None, left: str
    ) -> None:
        large = b"6" * 1_500_000
        point, more = 0, True
        while more:
            id, made = f"id-{point}", list[Record]()
            record = step(storage, held(storage, id, input=large), large)
            if left == "parts":
                dies(storage._requests, "ask", 7, partial(storage.remove, id))
                assert other.read(id) is None
                assert documents(other, id)

            def meanwhile(record: Record = record, made: list[Record] = made) -> None:
                other.remove(record.id, record if left == "an execution" and other.read(record.id) else None)
                made.append(held(other, record.id, run="later", input=large))
                other.signal(record.id, "yes", large, NOW)
                made.append(step(other, made[-1], large))

            more = interrupted(storage, point, meanwhile, partial(storage.remove, id))
            found = other.read(id)
            assert found in (None, *made[1:])
            if found is not None:
                assert other.received(found, "yes") == large
                assert other.results(found, 0, 1) == [Result(0, data=large)]
            other.remove(id)
            assert documents(storage, id) == {}
            point += 1
        assert point > 3

    @pytest.mark.parametrize("what", ["claim", "commit", "save", "restart", "signal"])
    def test_who_is_too_late_leaves_no_parts(self, storage: Any, other: Any, small: None, what: str) -> None:
        large = b"7" * 1_500_000
        point, more = 0, True
        while more:
            id = f"id-{point}"
            old = Record(id, "run", "workflow", b"{}", token=1, lease=NOW + 60)
            new, late = old._replace(run="new", token=2, input=large), old._replace(status="finished", token=9)
            if what != "claim":
                storage.claim(old, NOW, True)
            actions: dict[str, Any] = {
                "claim": partial(storage.claim, new, NOW, True),
                "commit": partial(storage.commit, old._replace(token=2), 1, Result(0, data=large)),
                "save": partial(storage.save, old, Result(0, data=large)),
                "restart": partial(storage.restart, new, old),
                "signal": partial(storage.signal, id, "yes", large, NOW),
            }
            meanwhile = partial(other.claim, late, NOW, True) if what == "claim" else partial(other.commit, late, 1)
            more = interrupted(storage, point, meanwhile, actions[what])
            assert (other.read(id) == late) == more
            assert set(documents(storage, id)) == {f"x-{id}"} or not more
            point += 1
        assert point > 3

    @pytest.mark.parametrize("what", ["claim", "commit", "save", "restart"])
    def test_who_is_overtaken_before_knowing_of_the_success(
        self, storage: Any, other: Any, small: None, what: str
    ) -> None:
        large, put = b"8" * 1_500_000, storage._executions.put
        old = Record("one", "run", "workflow", b"{}", token=1, lease=NOW + 60)
        new, result = old._replace(run="new", token=2, input=large), Result(0, data=large)
        if what != "claim":
            storage.claim(old, NOW, True)
        actions: dict[str, Any] = {
            "claim": partial(storage.claim, new, NOW, True),
            "commit": partial(storage.commit, old._replace(token=2), 1, result),
            "save": partial(storage.save, old, result),
            "restart": partial(storage.restart, new, old),
        }

        async def put_and_lose(*arguments: Any) -> bool:
            if await put(*arguments):
                record = other.read("one")
                other.commit(record._replace(token=9), record.token)
            return False

        storage._executions.put = put_and_lose
        try:
            record, taken = actions[what]()
            assert (record, taken) == (new._replace(token=9), True)
        except Fenced:
            assert what != "claim"
        found = other.read("one")
        assert found.token == 9
        assert found.input == large or other.results(found, 0, 1) == [result]

    def test_a_large_value_of_which_a_part_is_missing(self, storage: Any, other: Any) -> None:
        record = step(storage, held(storage, input=b"1" * 2_000_000), b"2" * 2_000_000)
        storage.signal("one", "yes", b"3" * 2_000_000, NOW)
        for key in documents(storage):
            if key.endswith("-000002"):
                for name in ("steps", "signals"):
                    storage._records.document("x-one").collection(name).document(key).delete()
        assert other.results(record, 0, 1) == []
        assert other.received(record, "yes") is None
        with pytest.raises(StorageError, match=r"Firestore: the input of execution 'one' is missing: delete\('one'\)"):
            other.read("one")
        assert other.find("", 5) == []
        other.remove("one")

    def test_what_is_removed_while_it_is_read(self, storage: Any, other: Any) -> None:
        record = held(storage, input=b"1" * 2_000_000)
        storage.signal("one", "yes", b"2", NOW)
        read = other._values.read

        async def remove_and_read(*arguments: Any) -> Any:
            other._values.read = read
            storage.remove("one")
            return await read(*arguments)

        other._values.read = remove_and_read
        assert other.read("one") is None
        record = held(storage)
        storage.signal("one", "yes", b"2", NOW)
        other._values.read = remove_and_read
        assert other.received(record, "yes") is None


class TestTrouble:
    @pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED"])
    def test_answers_that_are_lost_after_the_commit(
        self, storage: Any, other: Any, model: FirestoreModel, code: str
    ) -> None:
        """Google's client repeats the request and is refused: what it says to us is that it was done."""
        from tests.servers.firestore import Code

        lose = partial(model.fail_next, "Commit", applied=True, code=Code[code])
        lose()
        record = held(storage)
        new = record._replace(token=2, lease=NOW + 200)
        lose()
        assert storage.claim(new, NOW + 100, False) == (new, True)
        lose()
        record = step(storage, new)
        lose()
        storage.save(record, Result(1, "ahead"))
        assert other.results(record, 0, 9) == [Result(0, data=b"null"), Result(1, "ahead")]
        lose()
        renewed = record._replace(lease=NOW + 300)
        storage.commit(renewed, record.token)
        lose()
        assert storage.signal("one", "yes", b"1", NOW) == (renewed, True)
        assert other.received(record, "yes") == b"1"
        again = renewed._replace(run="again", token=9, step=0)
        lose()
        storage.restart(again, renewed)
        assert other.read("one") == again
        lose()
        storage.remove("one", again)
        assert documents(storage) == {}
        with pytest.raises(Fenced):
            storage.remove("one", again)

    def test_a_commit_whose_fate_is_unknown_to_the_client(self, storage: Any, model: FirestoreModel) -> None:
        from tests.servers.firestore import Code

        record = held(storage)
        model.fail_next("Commit", applied=True, code=Code.DATA_LOSS)
        record = step(storage, record)
        assert storage.read("one") == record

    @pytest.mark.parametrize("taken", [False, True])
    def test_a_signal_that_is_not_the_last_before_its_sender_knows_that_it_was_kept(
        self, storage: Any, other: Any, taken: bool
    ) -> None:
        record, send = held(storage), storage._requests.send

        async def send_and_lose(writes: Any) -> Any:
            storage._requests.send = send
            assert await send(writes)
            if taken:
                other.commit(record._replace(token=2), 1, taken="yes")
            else:
                other.signal("one", "another", b"2", NOW)

        storage._requests.send = send_and_lose
        assert storage.signal("one", "yes", b"1", NOW) == (other.read("one"), True)
        assert storage.signal("one", "yes", b"1", NOW) == (other.read("one"), False)

    def test_parts_that_the_server_does_not_take(self, storage: Any, model: FirestoreModel) -> None:
        from tests.servers.firestore import Code

        record = held(storage)
        model.fail_next("Commit", applied=False, code=Code.INVALID_ARGUMENT, times=4)
        with pytest.raises(StorageError, match=r"Firestore: 400 .*: nothing was recorded; a document holds at most 1 "):
            storage.commit(record._replace(token=2), 1, Result(0, data=b"1" * 9_000_000))
        assert storage.read("one") == record

    def test_others_that_write_at_every_moment(self, storage: Any, other: Any) -> None:
        """A commit, a claim, a signal, a restart and a removal begin anew when the record has changed, and end right."""
        send, done = storage._requests.send, list[int]()

        async def send_after_another(writes: Any) -> Any:
            if len(done) % 2 == 0:
                other.signal("one", f"s{len(done)}", b"", NOW)
            done.append(0)
            return await send(writes)

        record = held(storage, lease=0.0)
        storage._requests.send = send_after_another
        record, taken = storage.claim(record._replace(lease=NOW + 60), NOW, False)
        assert taken
        record = step(storage, record)
        storage.save(record, Result(1, "ahead"))
        assert storage.signal("one", "yes", b"1", NOW) == (record, True)
        new = record._replace(run="again", token=9)
        storage.restart(new, record)
        assert other.read("one") == new
        storage.remove("one", new)
        assert len(done) == 13
        assert other.read("one") is None
        assert documents(storage) == {}

    def test_others_that_never_cease(
        self, storage: Any, model: FirestoreModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sequential.stores import firestore
        from tests.servers.firestore import Code

        monkeypatch.setattr(firestore, "_ATTEMPTS", 3)
        record = held(storage, lease=0.0)
        for request in (
            partial(storage.claim, record._replace(lease=NOW), NOW, False),
            partial(storage.commit, record._replace(token=2), 1),
            partial(storage.signal, "one", "yes", b"", NOW),
            partial(storage.remove, "one"),
        ):
            model.fail_next("Commit", applied=False, code=Code.FAILED_PRECONDITION, times=3)
            with pytest.raises(
                StorageError, match="others have changed execution 'one' 3 times before we could: try ag"
            ):
                request()
        assert storage.read("one") == record

    def test_one_of_two_removes(self, storage: Any, other: Any) -> None:
        record = held(storage)
        send = storage._requests.send

        async def send_after_another(writes: Any) -> Any:
            other.remove("one", record)
            return await send(writes)

        storage._requests.send = send_after_another
        with pytest.raises(Fenced):
            storage.remove("one", record)
        storage.remove("one")

    @pytest.mark.parametrize(
        ("code", "text"),
        [
            ("PERMISSION_DENIED", "403 .*: grant the client's account the role roles/datastore.user"),
            ("UNAUTHENTICATED", "401 .*: run gcloud auth application-default login, or give the client credentials="),
            ("NOT_FOUND", "404 .*: create the database, or give the client the right project= and database="),
            ("FAILED_PRECONDITION", "400 .*: the database must be in native mode, with single-field indexes"),
            ("RESOURCE_EXHAUSTED", "429 .*: a quota is used up: raise it, or wait for the next day"),
            ("ABORTED", "409 .*: too many write to one execution at once: try again"),
            ("UNAVAILABLE", "503 .*: check that it can be reached, or give a longer timeout=: try again; a write may"),
            ("DEADLINE_EXCEEDED", "504 .*: check that it can be reached, or give a longer timeout=: try again; a wri"),
            ("INTERNAL", "500 .*: try again; a write may have been recorded all the same"),
            ("UNKNOWN", "refused, as the test wants: try again; a write may have been recorded all the same"),
            ("CANCELLED", "499 .*: try again; a write may have been recorded all the same"),
            ("DATA_LOSS", "refused, as the test wants: try again; a write may have been recorded all the same"),
        ],
    )
    def test_what_the_server_says(self, storage: Any, model: FirestoreModel, code: str, text: str) -> None:
        from tests.servers.firestore import Code

        with closing(new_storage(storage._records.id, timeout=0.1)) as hasty:
            record = held(hasty)
            for rpc in ("BatchGetDocuments", "Commit", "RunQuery"):
                model.fail_next(rpc, applied=False, code=Code[code], times=9)
            with pytest.raises(StorageError, match=f"Firestore: .*{text}"):
                hasty.commit(record._replace(token=2), 1, Result(0))
            for request in (
                partial(hasty.find, "", 5),
                partial(hasty.results, record, 0, 5),
                partial(hasty.read, "one"),
            ):
                with pytest.raises(StorageError, match=f"Firestore: .*{text}"):
                    request()
            for rpc in ("BatchGetDocuments", "Commit", "RunQuery"):
                model._failures[rpc].clear()
            assert storage.read("one") == record

    def test_trouble_that_passes(self, storage: Any, model: FirestoreModel) -> None:
        from tests.servers.firestore import Code

        record = held(storage)
        for code in ("ABORTED", "UNAVAILABLE", "RESOURCE_EXHAUSTED"):
            for rpc in ("BatchGetDocuments", "Commit", "RunQuery"):
                model.fail_next(rpc, applied=False, code=Code[code])
            record = step(storage, record)
        assert storage.read("one") == record
        assert len(storage.results(record, 0, 9)) == 3

    def test_a_stream_that_breaks_before_its_first_document(self, storage: Any) -> None:
        from google.api_core import exceptions
        from google.cloud.firestore_v1 import types

        unavailable: Any = exceptions.ServiceUnavailable
        record = step(storage, held(storage, input=b"1" * 300_000))
        storage.signal("one", "yes", b"1", NOW)
        run_query = storage._client._firestore_api.run_query

        def break_down(*arguments: Any, **options: Any) -> Iterator[Any]:
            storage._client._firestore_api.run_query = run_query
            yield types.RunQueryResponse(skipped_results=0)
            raise unavailable("the connection was reset")

        for request in (
            partial(storage.results, record, 0, 1),
            partial(storage.received, record, "yes"),
            partial(storage.read, "one"),
            partial(storage.find, "", 5),
            partial(storage.due, NOW + 99, 5),
            partial(storage.restart, record._replace(token=9, run="again"), record),
            partial(storage.remove, "one"),
        ):
            storage._client._firestore_api.run_query = break_down
            with pytest.raises(StorageError, match="Firestore: 503 the connection was reset: check that it can be rea"):
                request()
            assert storage.read("one") == record
            assert storage.results(record, 0, 1) == [Result(0, data=b"null")]
            assert storage.received(record, "yes") == b"1"

    def test_no_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from google.cloud.firestore import AsyncClient

        from sequential.stores.firestore import FirestoreStorage

        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")

        async def main() -> None:
            storage: Any = FirestoreStorage(AsyncClient(project="test"), timeout=0.1)
            with pytest.raises(StorageError, match="check that it can be reached"):
                await storage.read("one")
            with pytest.raises(StorageError, match="check that it can be reached"):
                await storage.results(Record("one", "run"), 0, 5)
            await storage.close()

        asyncio.run(main())
        with closing(new_storage(timeout=0.1)) as storage:
            flow = FlowExecutor(storage, call=echo)
            with pytest.raises(
                StorageError, match=r"Firestore: .* 503 .*: check that it can be reached, or give a longer"
            ):
                flow.execute_sync(squares, "one", {"steps": 1})

    def test_the_server_goes_away_and_comes_back(self, storage: Any, model: FirestoreModel) -> None:
        calls = list[int]()
        gone = 2

        def call(category: str, name: str, input: int) -> int:
            calls.append(input)
            if input == gone and calls.count(gone) == 1:
                port = int(model.address.rpartition(":")[2])
                model.stop()
                model.start(port)
            return input**2

        flow = FlowExecutor(storage, call=call, budget=math.inf)
        outcome: Any = Paused("", 0, "")
        while isinstance(outcome, Paused):
            outcome = flow.execute_sync(squares, "one", {"steps": 5})
        assert outcome == 30
        assert calls == [0, 1, 2, 3, 4]


class TestExpiry:
    TTL = 100.0

    @pytest.fixture
    def storage(self) -> Iterator[Any]:
        with closing(new_storage(ttl=self.TTL)) as made:
            yield made

    @pytest.fixture
    def other(self, storage: Any) -> Iterator[Any]:
        with closing(new_storage(storage._records.id, ttl=self.TTL)) as made:
            yield made

    def test_what_has_expired_is_absent_before_it_is_removed(self, storage: Any) -> None:
        ended = time() - self.TTL - 1
        for number in range(5):
            held(storage, f"id-{number}", lease=0.0, due=ended if number != 3 else time(), changed=ended)
        assert [id for id in ("id-0", "id-3", "none") if storage.read(id)] == ["id-3"]
        assert [record.id for record in storage.find("", 2)] == ["id-3"]
        assert [record.id for record in storage.due(time(), 2)] == ["id-3"]
        record = Record("id-0", "another run", lease=time() + 60, changed=time(), token=1)
        assert storage.claim(record, time(), False) == (None, False)
        with pytest.raises(Fenced):
            storage.commit(record._replace(run="run of id-1", id="id-1", token=2), 1)
        assert storage.signal("id-0", "yes", b"", time()) == (None, False)
        assert storage.claim(record, time(), True) == (record, True)
        assert storage.read("id-0") == record
        with closing(new_storage(storage._records.id)) as forever:
            record = record._replace(id="id-2")
            assert forever.claim(record, time(), True) == (record, True)
            assert forever.read("id-2") == record
        storage.remove("id-1")
        assert documents(storage, "id-1") == {}

    def test_a_sleeping_execution_outlives_its_sleep(self, storage: Any) -> None:
        for wake in (time() + 1000, 1e15, math.inf):
            record = held(storage, f"{wake}", lease=time() + 60, changed=time() - 1000)
            asleep = record._replace(token=2, lease=0.0, due=None, wake=wake, status="sleeping")
            storage.commit(asleep, 1)
            expires = documents(storage, record.id)[f"x-{record.id}"]["expires"].timestamp()
            assert expires == pytest.approx(min(wake + self.TTL, 253_402_300_799))
            assert storage.read(record.id) == asleep

    def test_nothing_expires_before_its_record(self, storage: Any, other: Any) -> None:
        large = b"1" * 2_000_000
        start = time()
        record = held(storage, input=large, lease=start, changed=start)
        storage.signal("one", "yes", large, start)
        storage.save(record, Result(1, "ahead"))
        record = step(storage, record, large, lease=start + 60, changed=start)
        for number in range(1, 8):
            now = start + number * 90
            if number == 4:
                record, taken = storage.claim(record._replace(lease=now + 60), now, False)
                assert taken
            elif number == 5:
                assert storage.signal("one", f"s{number}", b"", now) == (record, True)
                other.save(record, Result(number, data=large))
            else:
                record = step(storage, record, lease=now + 60, changed=now)
            self.check(storage, record)
        record = record._replace(run="again", token=99, lease=start + 2000)
        storage.restart(record, storage.read("one"))
        self.check(storage, record)
        assert storage.read("one") == record
        assert storage.received(record, "yes") == large

    def check(self, storage: Any, record: Record) -> None:
        found = {key: fields["expires"].timestamp() for key, fields in documents(storage).items()}
        ends = found.pop("x-one")
        assert ends == pytest.approx(max(record.changed, record.lease) + self.TTL)
        assert min(found.values()) >= ends

    def test_seldom_is_anything_renewed(self, storage: Any, model: FirestoreModel) -> None:
        record, start = held(storage, lease=time(), changed=time()), time()
        before = model.calls["Commit"]
        for number in range(60):
            record = step(storage, record, lease=start + number * 10, changed=start + number * 10)
        assert model.calls["Commit"] - before <= 60 + 3 * 2 * 7
        assert model.calls["Commit"] - before > 60

    def test_a_result_saved_while_others_are_renewed(self, storage: Any, other: Any) -> None:
        start = time()
        record = step(storage, held(storage, lease=start, changed=start))
        list_them = storage._values.belongings

        async def list_and_save(id: str, fields: Any) -> Any:
            found = await list_them(id, fields)
            storage._values.belongings = list_them
            other.save(record, Result(1, "ahead"))
            return found

        storage._values.belongings = list_and_save
        record = step(storage, record, lease=start + 900)
        self.check(storage, record)

    def test_more_than_a_request_may_renew(self, storage: Any) -> None:
        start = time()
        record = held(storage, lease=start, changed=start)
        for number in range(14):
            record = step(storage, record, b"1" * (14_000_000 if number == 5 else 900_000))
        record = step(storage, record, lease=start + 900)
        self.check(storage, record)

    def test_something_removed_while_it_is_renewed(self, storage: Any) -> None:
        start = time()
        record = step(storage, held(storage, lease=start, changed=start))
        list_them = storage._values.belongings

        async def list_and_remove(id: str, fields: Any) -> Any:
            found = await list_them(id, fields)
            storage._values.belongings = list_them
            found[0].delete()
            return found

        storage._values.belongings = list_and_remove
        record = step(storage, record, lease=start + 900)
        assert len(documents(storage)) == 2
        self.check(storage, record)


class TestUse:
    @pytest.mark.parametrize("name", ["", "a/b", ".", "..", "__a__", "x y", "x" * 201])
    def test_names_that_no_collection_can_have(self, name: str) -> None:
        from google.cloud.firestore import Client

        from sequential.stores.firestore import FirestoreStorage

        clients: list[Any] = [None, Client, "project"]
        for client in clients:
            with pytest.raises(
                TypeError, match=r"client= is a Client or an AsyncClient of google\.cloud\.firestore, not"
            ):
                FirestoreStorage(client, collection=name)
        with pytest.raises(ValueError, match="collection= is the name of a collection, 1 to 200 characters without /"):
            FirestoreStorage(Client(project="test"), collection=name)

    @pytest.mark.parametrize("ttl", [0, -1.0, math.inf, math.nan])
    def test_lives_of_no_length(self, ttl: float) -> None:
        with pytest.raises(ValueError, match="ttl= is a number of seconds above 0, or left out to"):
            new_storage(ttl=ttl)

    def test_urls(self) -> None:
        from sequential.stores.firestore import FirestoreStorage

        wanted = {
            "firestore://project/other?collection=flows": ("project", "other", "flows"),
            "firestore://example.com:project": ("example.com:project", "(default)", "executions"),
            "firestore://project/(default)": ("project", "(default)", "executions"),
        }
        for url, names in wanted.items():
            storage: Any = open_storage(url, ttl=5.0)
            with closing(storage):
                assert (storage._client.project, storage._client._database, storage._records.id) == names
        with closing(FirestoreStorage.from_url("firestore://", collection="flows")) as storage:
            assert storage._records.id == "flows"
            assert storage.read("one") is None
        for url in ("firestore://project?table=x", "redis://project", "firestore://project/database/collection"):
            with pytest.raises(ValueError, match="is not like firestore://project/database"):
                FirestoreStorage.from_url(url)

    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FIRESTORE_EMULATOR_HOST")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
        with pytest.raises(StorageError, match=r"Firestore: File /nowhere.json was not found.: run gcloud auth appl"):
            open_storage("firestore://project")

    def test_a_missing_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "google.cloud.firestore", None)
        monkeypatch.delitem(sys.modules, "sequential.stores.firestore", raising=False)
        text = r"'google.cloud.firestore' is not installed: pip install 'sequential-flow\[firestore\]'"
        with pytest.raises(NotInstalled, match=text):
            importlib.import_module("sequential.stores.firestore")

    def test_documents_of_a_later_release(self, storage: Any, other: Any) -> None:
        record = held(storage)
        storage._records.document("x-one").update({"schema": 2})
        for request in (partial(other.read, "one"), partial(other.find, "", 5), partial(other.commit, record, 1)):
            with pytest.raises(
                StorageError, match="documents are of version 2, this release knows 1: upgrade sequential"
            ):
                request()

    def test_documents_of_others_in_the_collection(self, storage: Any, other: Any) -> None:
        record = held(storage)
        foreign = {"mine": {"hello": 1}, "x-ray": {"rings": 1.0}, "x-tra": {"schema": "v1", "run": "5 km"}, "x-s": {}}
        for id, fields in foreign.items():
            storage._records.document(id).set(fields)
        assert other.find("", 9) == other.find("", 1) == other.due(NOW + 99, 9) == [record]
        for id in ("ray", "tra", "s"):
            wanted = record._replace(id=id)
            for request in (
                partial(other.read, id),
                partial(other.claim, wanted, NOW, True),
                partial(other.commit, wanted, 1),
                partial(other.signal, id, "yes", b"", NOW),
                partial(other.remove, id),
            ):
                with pytest.raises(StorageError, match=f"/x-{id} is no execution: give another collection="):
                    request()
        assert {found.id: found.to_dict() for found in storage._records.get() if found.id != "x-one"} == foreign

    def test_ids_and_names(self, storage: Any, other: Any) -> None:
        for id in ("a b", "é", "__x__", ".", "..", "x" * 1400):
            record = held(storage, id)
            assert other.read(id) == record
            assert other.find("", 9) == [record]
            for name in ("", "a b", "a/b", "é"):
                with pytest.raises(InvalidName):
                    storage.signal(id, name, b"", NOW)
            assert other.read(id) == record
            other.remove(id)
            assert documents(storage, id) == {}
        for id in ("a/b", "a/b/c", "/"):
            for request in (partial(held, storage, id), partial(storage.read, id), partial(storage.remove, id)):
                with pytest.raises(InvalidId):
                    request()

    def test_a_record_full_of_signals_can_still_be_written(self, storage: Any, other: Any) -> None:
        held(storage, input=b"1" * (1 << 18))
        many = [f"{number:0200} {'k' * 16} 0" for number in range(3410)]
        storage._records.document("x-one").update(
            {"pending": many[::2], "closed": [entry[:200] for entry in many[1::2]]}
        )
        record, names = other.read("one"), list[str]()

        def fill() -> None:
            while True:
                name = f"{len(names)}".ljust(200, "~")
                assert other.signal("one", name, b"1", NOW) == (record, True)
                names.append(name)

        with pytest.raises(
            StorageError, match=r"signals of execution 'one' fill its document, and this one was not re"
        ):
            fill()
        assert names
        assert other.received(record, names[-1]) == b"1"
        assert len(documents(storage)) == 1 + len(names)
        record = step(other, record, error="\U0001f600" * 5000, waits="w" * 200, status="stuck")
        assert storage.read("one") == record
        record = record._replace(run="again", token=record.token + 1)
        storage.restart(record, other.read("one"))
        assert other.read("one") == record
        assert other.received(record, names[-1]) == b"1"
        storage.commit(record._replace(token=record.token + 1), record.token, taken=names[0])
        assert other.signal("one", "more", b"1", NOW) == (record._replace(token=record.token + 1), True)

    def test_what_no_document_can_hold(self, storage: Any) -> None:
        record = held(storage)
        with pytest.raises(StorageError, match=r"Firestore: .*: nothing was recorded; a document holds at most 1 MiB"):
            storage.commit(record._replace(token=2, error="x" * 2_000_000), 1)
        with pytest.raises(StorageError, match=r"Firestore: .*: nothing was recorded"):
            storage.commit(record._replace(token=1 << 64), 1)
        wrong: Any = object()
        with pytest.raises(TypeError, match="Cannot convert to a Firestore Value"):
            storage.commit(record._replace(token=2, error=wrong), 1)
        assert storage.read("one") == record

    def test_numbers_of_64_bits_and_any_text(self, storage: Any, other: Any) -> None:
        record = held(storage, version=2**63 - 1, first_input=-(2**63), token=2**63 - 2, lease=NOW + 0.1, changed=1 / 3)
        record = step(storage, record, error="\x01 é \u2028 \U0001f600", wake=5e-324)
        assert other.read("one") == record

    def test_many_executions_are_more_than_are_remembered(self, storage: Any) -> None:
        storage._executions._known = Recent(3)
        records = [held(storage, f"id-{number}") for number in range(8)]
        for record in records:
            assert storage.read(record.id) == record
            step(storage, record)
        assert [storage._executions._known.get(record.id) is not None for record in records] == [False] * 5 + [True] * 3
        for record in records:
            assert storage.read(record.id).step == 1

    def test_requests_are_few(self, storage: Any, model: FirestoreModel) -> None:
        counted = list[int]()

        def count(method: Callable[[], Any]) -> Any:
            before = model.calls.total()
            done = method()
            counted.append(model.calls.total() - before)
            return done

        flow = FlowExecutor(storage, call=square)
        outcome: Any = Paused("", 0, "")
        while isinstance(outcome, Paused):
            outcome = count(partial(flow.execute_sync, squares, "one", {"steps": 6}))
        assert outcome == 55
        # A claim reads and writes, a commit writes; between them the history is read; at the end all that there is
        # is listed, twice, and removed, the last two results with a request of their own.
        assert counted == [3, *[4] * (len(counted) - 2), 7]
        counted.clear()
        record = held(storage, "two", lease=0.0)
        count(partial(storage.signal, "two", "yes", b"", NOW))
        record, _ = count(partial(storage.claim, record._replace(lease=NOW + 60), NOW, False))
        count(partial(storage.received, record, "yes"))
        count(partial(storage.received, record, "no"))
        count(partial(storage.save, record, Result(1)))
        new = record._replace(token=record.token + 1, step=1)
        count(partial(storage.commit, new, record.token, Result(0), taken="yes"))
        count(partial(storage.results, new, 0, 9))
        with closing(new_storage(storage._records.id)) as fresh:
            count(partial(fresh.commit, new._replace(token=new.token + 1), new.token))
        assert counted == [2, 2, 1, 1, 1, 1, 1, 2]
        counted.clear()
        for id in "wxyz":
            storage._records.document(id).set({"status": "of others"})
        count(partial(storage.find, "", 2))
        step(storage, held(storage, "three"), b"1" * 27_000_000)
        count(partial(storage.remove, "three"))
        assert counted == [1, 2 + 1 + 4]

    def test_a_workflow_on_an_async_client(self) -> None:
        from google.cloud.firestore import AsyncClient

        from sequential.stores.firestore import FirestoreStorage

        async def main() -> None:
            storage: Any = FirestoreStorage(AsyncClient(project="test"), collection=new_collection())
            flow = FlowExecutor(storage, call=square, budget=math.inf, retain=True)
            assert isinstance(await flow.execute(squares, "one", {"steps": 2}), Paused)
            assert await flow.execute(squares, "one", {"steps": 2}) == 1
            assert await flow.execute(squares, "one") == 1
            assert len(await flow.history("one")) == 3
            result = Result(3, data=b"1" * 3_000_000)
            record = await storage.read("one")
            await storage.save(record, result)
            assert await storage.results(record, 3, 4) == [result]
            await storage.close()

        asyncio.run(main())
