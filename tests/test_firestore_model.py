"""The model of Firestore keeps the rules that Google documents, as Google's own client sees them.

With FIRESTORE_EMULATOR_HOST set, the tests that take only a client run on what is there.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.util
import math
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.servers.firestore import FirestoreModel

RACERS = 6
MAX_DOCUMENT = 1_048_576
MAX_FIELD = 1_048_487


def installed() -> bool:
    try:
        return importlib.util.find_spec("google.cloud.firestore_v1") is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    if not installed():
        refuse = pytest.fail if os.environ.get("SEQUENTIAL_REQUIRE") == "all" else pytest.skip
        refuse('google-cloud-firestore is not installed: pip install -e ".[test]"')


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from tests.servers.firestore import ENVIRONMENT, firestore

    with firestore(("c", "a", "b"), ("group", "n")):
        yield os.environ[ENVIRONMENT]


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    yield from clients()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[FirestoreModel]:
    """A model of the test's own, whatever the environment says."""
    from tests.servers.firestore import ENVIRONMENT, FirestoreModel

    with FirestoreModel() as model:
        monkeypatch.setenv(ENVIRONMENT, model.address)
        yield model


@pytest.fixture
def own(model: FirestoreModel) -> Iterator[Any]:
    """A client of the test's own model."""
    yield from clients()


def clients() -> Iterator[Any]:
    from google.cloud.firestore import Client

    client: Any = Client(project=f"test-{uuid.uuid4().hex}")
    yield client
    client.close()


@asynccontextmanager
async def async_client() -> AsyncIterator[Any]:
    from google.cloud.firestore import AsyncClient

    client: Any = AsyncClient(project=f"test-{uuid.uuid4().hex}")
    yield client
    await client._firestore_api.transport.close()


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """What a request is refused with: the error's class in Google's client; empty when it is not."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__
    return ""


async def async_refusal(request: Awaitable[Any]) -> str:
    try:
        await request
    except Exception as error:
        return type(error).__name__
    return ""


def together(call: Callable[[int], Any], racers: int = RACERS) -> list[Any]:
    with ThreadPoolExecutor(racers) as pool:
        return list(pool.map(call, range(racers)))


def ids(found: Any) -> list[str]:
    return [each.id for each in found]


class TestDocuments:
    """Reading and writing one at a time."""

    def test_what_is_written_is_read_until_it_is_deleted(self, client: Any) -> None:
        reference = client.document("c/one")
        fields = {
            "s": "a\x00ü",
            "i": -5,
            "f": math.pi,
            "b": b"\x00\xff",
            "n": None,
            "t": True,
            "l": [1, {"x": [2]}],
            "m": {},
        }
        assert not reference.get().exists
        written = reference.set(fields)
        read = reference.get()
        assert read.to_dict() == fields
        assert read.create_time == read.update_time == written.update_time
        reference.delete()
        assert not reference.get().exists
        reference.delete()

    def test_set_replaces_and_keeps_the_time_of_creation(self, client: Any) -> None:
        reference = client.document("c/one")
        first = reference.set({"a": 1, "b": 2})
        second = reference.set({"b": 3})
        read = reference.get()
        assert read.to_dict() == {"b": 3}
        assert read.create_time == first.update_time < second.update_time == read.update_time

    def test_a_mask_leaves_the_other_fields(self, client: Any) -> None:
        from google.cloud.firestore import DELETE_FIELD

        reference = client.document("c/one")
        reference.set({"a": {"b": 1, "c": 2}, "x y": 3, "z": 4})
        reference.update({"a.b": DELETE_FIELD, "a.d.e": 5, "`x y`": 6, "q.r": DELETE_FIELD})
        assert reference.get().to_dict() == {"a": {"c": 2, "d": {"e": 5}}, "x y": 6, "z": 4}
        reference.set({"a": {"c": 7}, "n": 8}, merge=["a.c", "n"])
        reference.set({}, merge=True)
        assert reference.get().to_dict() == {"a": {"c": 7, "d": {"e": 5}}, "x y": 6, "z": 4, "n": 8}
        reference.update({"z.y": 9})
        assert reference.get().get("z") == {"y": 9}
        client.document("c/two").set({"a": {"b": 1}}, merge=True)
        assert client.document("c/two").get().to_dict() == {"a": {"b": 1}}

    def test_several_are_read_at_once(self, client: Any) -> None:
        for id in "abc":
            client.document(f"c/{id}").set({"id": id, "more": 1})
        wanted = [client.document(f"c/{id}") for id in "axc"]
        found = {each.id: each.to_dict() for each in client.get_all([*wanted, wanted[0]], field_paths=["id"])}
        assert found == {"a": {"id": "a"}, "x": None, "c": {"id": "c"}}

    def test_the_model_answers_in_another_order_than_it_was_asked_in(self, own: Any) -> None:
        assert ids(own.get_all([own.document(f"c/{id}") for id in "abca"])) == ["c", "b", "a"]

    def test_one_is_read_by_its_name(self, client: Any) -> None:
        reference = client.document("c/one")
        name = reference._document_path
        assert refusal(client._firestore_api.get_document, {"name": name}) == "NotFound"
        reference.set({"a": {"b": 1, "c": 2}, "d": 3})
        found = client._firestore_api.get_document({"name": name, "mask": {"field_paths": ["a.b"]}})
        assert (found.name, list(found.fields), list(found.fields["a"].map_value.fields)) == (name, ["a"], ["b"])

    def test_databases_are_apart(self, client: Any) -> None:
        from google.cloud.firestore import Client

        other: Any = Client(project=client.project, database="other")
        client.document("c/one").set({"a": 1})
        assert not other.document("c/one").get().exists
        other.close()

    def test_numbers_are_incremented(self, client: Any) -> None:
        from google.cloud.firestore import Increment

        reference = client.document("c/one")
        reference.set({"i": 1, "f": 0.5, "s": "text", "top": 2**63 - 2, "in": {"i": 1}})
        fields = ("i", "f", "s", "top", "new", "in.i")
        written = reference.update({field: Increment(2) for field in fields})
        assert reference.get().to_dict() == {
            "i": 3, "f": 2.5, "s": 2, "top": 2**63 - 1, "new": 2, "in": {"i": 3},
        }  # fmt: skip
        values = [value.double_value or value.integer_value for value in written.transform_results]
        assert sorted(values) == sorted([3, 2.5, 2, 2**63 - 1, 2, 3])

    def test_the_server_tells_the_time(self, client: Any) -> None:
        from google.cloud.firestore import SERVER_TIMESTAMP

        reference = client.document("c/one")
        written = reference.set({"at": SERVER_TIMESTAMP, "too": SERVER_TIMESTAMP})
        read = reference.get().to_dict()
        assert read["at"].microsecond % 1000 == 0
        assert read["at"] == read["too"] <= written.update_time < read["at"] + dt.timedelta(milliseconds=1)


class TestPreconditions:
    """What a write asks of the document, and what else it is refused for."""

    def test_what_exists_is_not_created_and_what_is_missing_not_updated(self, client: Any) -> None:
        reference, exists = client.document("c/one"), client.write_option(exists=True)
        assert refusal(reference.update, {"a": 1}) == refusal(reference.delete, exists) == "NotFound"
        reference.create({"a": 1})
        assert refusal(reference.create, {"a": 2}) == "AlreadyExists"
        assert reference.get().to_dict() == {"a": 1}
        reference.delete(exists)
        assert not reference.get().exists

    def test_a_stale_update_time_is_refused(self, client: Any) -> None:
        reference = client.document("c/one")
        stale = client.write_option(last_update_time=reference.set({"a": 1}).update_time)
        current = client.write_option(last_update_time=reference.update({"a": 2}, stale).update_time)
        assert refusal(reference.update, {"a": 3}, stale) == refusal(reference.delete, stale) == "FailedPrecondition"
        assert reference.get().to_dict() == {"a": 2}
        reference.delete(current)
        assert (
            refusal(reference.update, {"a": 3}, current) == refusal(reference.delete, current) == "FailedPrecondition"
        )
        assert not reference.get().exists

    def test_update_time_always_increases_but_not_for_a_write_that_changes_nothing(self, client: Any) -> None:
        reference = client.document("c/one")
        times = [reference.set({"a": number}).update_time for number in range(50)]
        assert times == sorted(set(times))
        assert reference.set({"a": 49}).update_time == reference.get().update_time == times[-1]

    @pytest.mark.parametrize("path", ["c/.", "c/..", "c/__x__", "c/____", "__c__/x", f"c/{'ü' * 751}", "c/x/__d__/y"])
    def test_reserved_ids_are_refused(self, client: Any, path: str) -> None:
        reference = client.document(path)
        assert refusal(reference.set, {}) == refusal(reference.get) == "InvalidArgument"

    @pytest.mark.parametrize("path", ["c/...", "c/__x", "c/x__", "c/__", "c/___", f"c/{'ü' * 750}"])
    def test_ids_like_them_are_not(self, client: Any, path: str) -> None:
        client.document(path).set({})
        assert client.document(path).get().exists

    def test_a_whole_name_has_a_limit_too(self, client: Any) -> None:
        assert refusal(client.document("/".join(["x" * 1100] * 6)).set, {}) == "InvalidArgument"

    @pytest.mark.parametrize("fields", [{"__x__": 1}, {"x" * 1501: 1}, {"a": {"__x__": 1}}])
    def test_reserved_field_names_are_refused(self, client: Any, fields: dict[str, Any]) -> None:
        assert refusal(client.document("c/one").set, fields) == "InvalidArgument"


class TestSizes:
    """Google's example of how a document's size is counted, filled up to the last byte."""

    TASK: dict[str, Any] = {"type": "Personal", "done": False, "priority": 1, "description": "Learn Cloud Firestore"}  # noqa: RUF012
    TASK_SIZE = 147

    def fits(self, client: Any, fields: dict[str, Any], size: int) -> bool:
        padding = MAX_DOCUMENT - size - len("pad") - 1
        reference = client.document("users/jeff/tasks/my_task_id")
        assert refusal(reference.set, {**fields, "pad": bytes(padding + 1)}) == "InvalidArgument"
        assert not reference.get().exists
        return bool(reference.set({**fields, "pad": bytes(padding)}))

    def test_the_example(self, client: Any) -> None:
        assert self.fits(client, self.TASK, self.TASK_SIZE)

    @pytest.mark.parametrize(
        ("value", "size"),
        [
            (None, 1),
            (0.5, 8),
            ("ü", 3),
            (dt.datetime(2020, 1, 1, tzinfo=dt.UTC), 8),
            ([1, "a", b"abc"], 13),
            ({"a": 1, "b": {"c": "d"}}, 32 + 2 + 8 + 2 + 32 + 2 + 2),
        ],
    )
    def test_other_values(self, client: Any, value: Any, size: int) -> None:
        assert self.fits(client, {**self.TASK, "v": value}, self.TASK_SIZE + 2 + size)

    def test_values_of_googles_own(self, client: Any) -> None:
        from google.cloud.firestore import GeoPoint

        fields = {"g": GeoPoint(1, 2), "r": client.document("users/jeff")}
        assert self.fits(client, {**self.TASK, **fields}, self.TASK_SIZE + 2 + 16 + 2 + 6 + 5 + 16)

    def test_a_field_has_a_limit_of_its_own(self, client: Any) -> None:
        reference = client.document("c/d")
        assert refusal(reference.set, {"x": bytes(MAX_FIELD + 1)}) == "InvalidArgument"
        reference.set({"x": bytes(MAX_FIELD)})
        assert len(reference.get().get("x")) == MAX_FIELD

    def test_an_update_counts_what_is_there_already(self, client: Any) -> None:
        reference = client.document("c/one")
        reference.set({"a": bytes(600_000)})
        assert refusal(reference.update, {"b": bytes(600_000)}) == "InvalidArgument"
        assert list(reference.get().to_dict()) == ["a"]

    @pytest.mark.parametrize(("parts", "refused"), [(10, ""), (11, "InvalidArgument")])
    def test_a_request_takes_ten_mebibytes(self, client: Any, parts: int, refused: str) -> None:
        batch = client.batch()
        for number in range(parts):
            batch.set(client.document(f"c/{number}"), {"x": bytes(1_000_000)})
        assert refusal(batch.commit) == refused
        assert len(ids(client.collection("c").list_documents())) == (0 if refused else parts)


class TestBatches:
    """All the writes of a commit, or none."""

    def test_one_that_is_refused_undoes_the_others(self, client: Any) -> None:
        client.document("c/b").set({"a": 1})
        batch = client.batch()
        batch.set(client.document("c/a"), {"a": 2})
        batch.delete(client.document("c/b"))
        batch.update(client.document("c/missing"), {"a": 2})
        assert refusal(batch.commit) == "NotFound"
        assert {each.id: each.to_dict() for each in client.collection("c").stream()} == {"b": {"a": 1}}

    def test_all_have_one_time_and_later_ones_see_earlier_ones(self, client: Any) -> None:
        batch = client.batch()
        batch.create(client.document("c/a"), {"a": 1})
        batch.update(client.document("c/a"), {"b": 2})
        batch.create(client.document("c/b"), {})
        batch.delete(client.document("c/b"))
        results = batch.commit()
        found = list(client.collection("c").stream())
        assert [(each.to_dict(), each.update_time) for each in found] == [({"a": 1, "b": 2}, batch.commit_time)]
        assert results[0].update_time == results[1].update_time == batch.commit_time

    def test_five_hundred_is_the_limit(self, own: Any) -> None:
        batches = {count: own.batch() for count in (500, 501)}
        for count, batch in batches.items():
            for number in range(count):
                batch.set(own.document(f"c{count}/{number}"), {})
        assert refusal(batches[501].commit) == "InvalidArgument"
        assert len(batches[500].commit()) == 500
        assert ids(own.collections()) == ["c500"]

    def test_batch_write_does_each_by_itself(self, client: Any) -> None:
        def write(id: str, **more: Any) -> dict[str, Any]:
            return {"update": {"name": client.document(f"c/{id}")._document_path, "fields": {}}, **more}

        def send(*writes: Any) -> Any:
            return client._firestore_api.batch_write({"database": client._database_string, "writes": writes})

        answer = send(write("a"), write("b", current_document={"exists": True}), write("c"))
        assert [status.code for status in answer.status] == [0, 5, 0]
        assert ids(client.collection("c").stream()) == ["a", "c"]
        assert refusal(send, write("d"), write("d")) == "InvalidArgument"
        assert refusal(send, *(write(f"{number}") for number in range(501))) == "InvalidArgument"

    def test_a_bulk_writer_works(self, client: Any) -> None:
        writer = client.bulk_writer()
        for number in range(50):
            writer.create(client.document(f"c/{number:02}"), {"n": number})
        writer.close()
        assert [each.get("n") for each in client.collection("c").stream()] == list(range(50))


class TestTransactions:
    """A transaction that has read what changed since is aborted."""

    def test_increments_are_not_lost(self, client: Any) -> None:
        from google.cloud.firestore import transactional

        reference = client.document("c/one")
        reference.set({"n": 0})

        def increment(_: int) -> None:
            @transactional
            def run(transaction: Any) -> None:
                seen = reference.get(transaction=transaction).get("n")
                transaction.update(reference, {"n": seen + 1})

            run(client.transaction(max_attempts=RACERS))  # each attempt that fails is one that another won

        together(increment)
        assert reference.get().to_dict() == {"n": RACERS}

    def test_one_of_six_creates(self, client: Any) -> None:
        found = together(lambda number: refusal(client.document("c/one").create, {"n": number}))
        assert sorted(found) == ["", *["AlreadyExists"] * (RACERS - 1)]
        assert client.document("c/one").get().to_dict() == {"n": found.index("")}

    def test_one_of_six_updates(self, client: Any) -> None:
        reference = client.document("c/one")
        option = client.write_option(last_update_time=reference.set({}).update_time)
        found = together(lambda number: refusal(reference.update, {"n": number}, option))
        assert sorted(found) == ["", *["FailedPrecondition"] * (RACERS - 1)]
        assert reference.get().to_dict() == {"n": found.index("")}

    @pytest.mark.parametrize("change", ["update", "delete", "create", "phantom"])
    def test_a_change_of_what_was_read_aborts(self, own: Any, change: str) -> None:
        one, new, query = own.document("c/one"), own.document("c/new"), own.collection("c").where(filter=at_least(5))
        one.set({"n": 1})
        transaction = own.transaction()
        transaction._begin()
        assert one.get(transaction=transaction).exists
        assert not new.get(transaction=transaction).exists
        assert ids(query.stream(transaction=transaction)) == []
        {"update": one.update, "create": new.create, "phantom": own.document("c/other").set}.get(
            change, lambda _: one.delete()
        )({"n": 5})
        transaction.set(own.document("c/result"), {})
        assert refusal(transaction._commit) == "Aborted"
        transaction._rollback()
        assert not own.document("c/result").get().exists

    def test_reads_see_one_moment(self, own: Any) -> None:
        one, other = own.document("c/one"), own.document("c/other")
        one.set({"n": 1})
        transaction = own.transaction(read_only=True)
        transaction._begin()
        assert one.get(transaction=transaction).get("n") == 1
        one.set({"n": 2})
        other.set({"n": 2})
        assert one.get(transaction=transaction).get("n") == 1
        assert ids(own.collection("c").stream(transaction=transaction)) == ["one"]
        assert (one.get().get("n"), ids(own.collection("c").stream())) == (2, ["one", "other"])

    def test_a_read_only_one_writes_nothing(self, client: Any) -> None:
        transaction = client.transaction(read_only=True)
        transaction._begin()
        write = {"update": {"name": client.document("c/one")._document_path}}
        request = {"database": client._database_string, "transaction": transaction.id, "writes": [write]}
        assert refusal(client._firestore_api.commit, request) == "InvalidArgument"
        assert not client.document("c/one").get().exists

    def test_one_that_has_ended_is_refused(self, client: Any) -> None:
        for end in ("_commit", "_rollback"):
            transaction = client.transaction()
            transaction._begin()
            id = transaction.id
            getattr(transaction, end)()
            for again in ("_commit", "_rollback"):
                transaction._id = id
                assert refusal(getattr(transaction, again)) == "InvalidArgument"

    def test_an_error_within_one_leaves_nothing(self, client: Any) -> None:
        from google.cloud.firestore import transactional

        @transactional
        def run(transaction: Any) -> None:
            transaction.set(client.document("c/one"), {})
            transaction.update(client.document("c/missing"), {"a": 1})

        assert refusal(run, client.transaction()) == "NotFound"
        assert ids(client.collection("c").stream()) == []


def at_least(number: int) -> Any:
    return where("n", ">=", number)


def where(path: str, op: str, value: Any) -> Any:
    from google.cloud.firestore import FieldFilter

    return FieldFilter(path, op, value)


class TestQueries:
    """What RunQuery finds, and in which order."""

    @pytest.fixture
    def numbers(self, client: Any) -> Any:
        """Documents a to e with n from 4 down to 0, the field even, and two that lack n or have a text there."""
        collection = client.collection("c")
        for number, id in enumerate("edcba"):
            collection.document(id).set({"n": number, "even": number % 2 == 0})
        collection.document("x").set({"other": 1})
        collection.document("y").set({"n": "text"})
        collection.document("a").collection("c").document("deeper").set({"n": 9})
        return collection

    @pytest.mark.parametrize(
        ("path", "op", "value", "found"),
        [
            ("n", "==", 2, "c"), ("n", "==", 2.0, "c"), ("n", "<", 2, "ed"), ("n", "<=", 2, "edc"), ("n", ">", 2, "ba"),
            ("n", ">=", 2, "cba"), ("n", ">=", "a", "y"), ("n", "==", True, ""), ("even", "==", True, "ace"),
        ],
    )  # fmt: skip
    def test_comparisons_find_values_of_the_same_type(
        self, numbers: Any, path: str, op: str, value: Any, found: str
    ) -> None:
        assert ids(numbers.where(filter=where(path, op, value)).stream()) == list(found)

    def test_all_of_several_filters_hold(self, numbers: Any) -> None:
        query = numbers.where(filter=where("n", ">", 0)).where(filter=where("n", "<=", 3))
        assert ids(query.stream()) == ["d", "c", "b"]
        query = numbers.where(filter=where("n", "==", 2)).where(filter=where("even", "==", True))
        assert ids(query.stream()) == ["c"]

    def test_documents_come_by_name_or_by_the_fields_they_have(self, numbers: Any) -> None:
        assert ids(numbers.stream()) == list("abcdexy")
        assert ids(numbers.order_by("n").stream()) == list("edcbay")
        assert ids(numbers.order_by("n", direction="DESCENDING").stream()) == list("yabcde")
        assert ids(numbers.order_by("even", direction="DESCENDING").stream()) == list("ecadb")
        assert ids(numbers.order_by("__name__", direction="DESCENDING").stream()) == list("yxedcba")

    def test_names_are_compared_with_references(self, numbers: Any) -> None:
        query = numbers.where(filter=where("__name__", ">", numbers.document("b"))).limit(3)
        assert ids(query.stream()) == ["c", "d", "e"]
        assert ids(query.where(filter=where("even", "==", True)).stream()) == ["c", "e"]

    @pytest.mark.parametrize(
        "query",
        [
            {"where": {"field_filter": {"field": {"field_path": "__name__"}, "op": 3, "value": {"string_value": "b"}}}},
            {"order_by": [{"field": {"field_path": "n"}}], "start_at": {"values": [{"integer_value": 1}] * 2}},
        ],
    )
    def test_what_the_client_would_not_send_is_refused(self, client: Any, query: dict[str, Any]) -> None:
        request = {"parent": f"{client._database_string}/documents", "structured_query": query}
        query["from_"] = [{"collection_id": "c"}]
        assert refusal(lambda: list(client._firestore_api.run_query(request))) == "InvalidArgument"

    def test_values_of_all_types_have_an_order(self, client: Any) -> None:
        values: list[Any] = [
            None,
            False,
            True,
            math.nan,
            -math.inf,
            -1,
            0.5,
            1,
            dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
        ]
        values += [
            "",
            "Z",
            "a",
            "ü",
            "\U0001f600",
            b"",
            b"a",
            client.document("c/d"),
            [],
            [1],
            [1, 2],
            [2],
            {},
            {"a": 1},
        ]
        for number, value in enumerate(values):
            client.document(f"c/{99 - number}").set({"v": value})
        assert ids(client.collection("c").order_by("v").stream()) == [f"{99 - each}" for each in range(len(values))]

    def test_cursors_begin_and_end(self, numbers: Any) -> None:
        query = numbers.order_by("n")
        assert ids(query.start_at({"n": 1}).end_at({"n": 3}).stream()) == ["d", "c", "b"]
        assert ids(query.start_after({"n": 1}).end_before({"n": 3}).stream()) == ["c"]
        down = numbers.order_by("n", direction="DESCENDING")
        assert ids(down.start_after({"n": 3}).stream()) == ["c", "d", "e"]
        named = numbers.order_by("__name__").start_after({"__name__": "b"}).limit(2)
        assert ids(named.stream()) == ["c", "d"]
        assert ids(query.start_after(numbers.document("d").get()).stream()) == ["c", "b", "a", "y"]
        even = numbers.order_by("even").order_by("__name__")
        assert ids(even.start_at({"even": True}).stream()) == ["a", "c", "e"]
        assert ids(even.start_after({"even": False, "__name__": "b"}).stream()) == ["d", "a", "c", "e"]

    def test_limit_offset_and_selection(self, numbers: Any) -> None:
        assert ids(numbers.order_by("n").offset(1).limit(2).stream()) == ["d", "c"]
        assert ids(numbers.order_by("n").limit_to_last(2).get()) == ["a", "y"]
        assert ids(numbers.offset(5).stream()) == ["x", "y"]
        assert ids(numbers.limit(0).stream()) == []
        assert [each.to_dict() for each in numbers.select(["n"]).limit(2).stream()] == [{"n": 4}, {"n": 3}]
        assert [each.to_dict() for each in numbers.select([]).limit(2).stream()] == [{}, {}]

    def test_a_collection_group_is_all_the_collections_of_a_name(self, client: Any) -> None:
        for path in ("group/a", "c/d/group/b", "c/d/group/b/group/c", "c/d/groups/e"):
            client.document(path).set({"n": len(path)})
        assert [each.reference.path for each in client.collection_group("group").stream()] == [
            "c/d/group/b", "c/d/group/b/group/c", "group/a",
        ]  # fmt: skip
        assert ids(client.collection_group("group").where(filter=at_least(9)).stream()) == ["b", "c"]

    @pytest.mark.parametrize(("equal", "order"), [("a", "b"), ("", "ab")])
    def test_a_query_of_two_fields_needs_an_index(self, client: Any, own: Any, equal: str, order: str) -> None:
        found = []
        for each in (own, client):  # the second has the indexes
            query = each.collection("c")
            for path in equal:
                query = query.where(filter=where(path, "==", 1))
            for path in order:
                query = query.order_by(path)
            each.document("c/one").set({"a": 1, "b": 2})
            found.append(refusal(lambda query=query: list(query.stream())))
        assert found == ["FailedPrecondition", ""]

    def test_other_queries_that_need_an_index(self, own: Any) -> None:
        mixed = own.collection("c").order_by("a").order_by("__name__", direction="DESCENDING")
        unequal = own.collection("c").where(filter=where("a", ">", 1)).where(filter=where("b", ">", 1))
        ordered, equal = (
            own.collection_group("group").order_by("n"),
            own.collection_group("group").where(filter=where("n", "==", 1)),
        )
        for query in (mixed, unequal, ordered, equal):
            assert refusal(lambda query=query: list(query.stream())) == "FailedPrecondition"
        with pytest.raises(Exception, match=r"requires an index: \('c', 'a', 'b'\)"):
            list(unequal.stream())


class TestListing:
    """Documents and collections."""

    def test_documents_come_page_by_page_and_those_that_only_have_something_below_them_too(self, client: Any) -> None:
        for number in range(12):
            client.document(f"c/{number:02}").set({"n": number})
        client.document("c/none/d/e").set({})
        client.document("cc/d").set({})
        assert ids(client.collection("c").list_documents(page_size=5)) == [
            *(f"{number:02}" for number in range(12)),
            "none",
        ]
        parent = client.document("c/00").parent._parent_info()[0]
        pages = client._firestore_api.list_documents({"parent": parent, "collection_id": "c", "page_size": 7}).pages
        assert [len(page.documents) for page in pages] == [7, 5]

    def test_collections_are_listed(self, client: Any) -> None:
        for path in ("a/x", "b/x", "b/y/c/z", "b/y/d/z"):
            client.document(path).set({})
        assert ids(client.collections()) == ["a", "b"]
        assert ids(client.document("b/y").collections()) == ["c", "d"]
        assert ids(client.document("b/x").collections()) == []

    def test_a_collection_is_removed_with_all_below_it(self, own: Any) -> None:
        for path in ("c/a", "c/b/d/e", "k/a"):
            own.document(path).set({})
        for reference in own.collection("c").list_documents():
            own.recursive_delete(reference)
        assert ids(own.collections()) == ["k"]


class TestAsync:
    """The asynchronous client."""

    @pytest.fixture(autouse=True)
    def _served(self, address: str) -> None:
        pass

    def test_one_of_six_creates(self) -> None:
        async def run() -> None:
            async with async_client() as client:
                one = client.document("c/one")
                found = await asyncio.gather(*(async_refusal(one.create({"n": n})) for n in range(RACERS)))
                assert sorted(found) == ["", *["AlreadyExists"] * (RACERS - 1)]
                assert (await one.get()).to_dict() == {"n": found.index("")}

        asyncio.run(run())

    def test_increments_are_not_lost(self) -> None:
        from google.cloud.firestore import async_transactional

        async def run() -> None:
            async with async_client() as client:
                one = client.document("c/one")
                await one.set({"n": 0})

                async def increment() -> None:
                    @async_transactional
                    async def body(transaction: Any) -> None:
                        seen = (await one.get(transaction=transaction)).get("n")
                        transaction.update(one, {"n": seen + 1})

                    await body(client.transaction(max_attempts=RACERS))

                await asyncio.gather(*(increment() for _ in range(RACERS)))
                assert (await one.get()).get("n") == RACERS

        asyncio.run(run())

    def test_writes_are_conditional_and_batches_atomic(self) -> None:
        async def run() -> None:
            async with async_client() as client:
                one, two = client.document("c/one"), client.document("c/two")
                stale = client.write_option(last_update_time=(await one.set({"a": 1})).update_time)
                await one.update({"a": 2}, stale)
                batch = client.batch()
                batch.create(two, {})
                batch.update(one, {"a": 3}, stale)
                assert await async_refusal(batch.commit()) == "FailedPrecondition"
                assert await async_refusal(two.set({"x": bytes(MAX_DOCUMENT)})) == "InvalidArgument"
                assert await async_refusal(two.update({"a": 1})) == "NotFound"
                assert [(each.id, each.to_dict()) async for each in client.collection("c").stream()] == [
                    ("one", {"a": 2})
                ]

        asyncio.run(run())

    def test_queries_and_lists(self) -> None:
        async def run() -> None:
            async with async_client() as client:
                collection = client.collection("c")
                for number in range(5):
                    await collection.document(f"{number}").set({"n": -number})
                query = collection.where(filter=where("n", "<", 0)).order_by("n").start_after({"n": -4}).limit(2)
                assert [each.id async for each in query.stream()] == ["3", "2"]
                assert [each.id async for each in collection.list_documents()] == ["0", "1", "2", "3", "4"]
                assert [each.id async for each in client.collections()] == ["c"]
                found = {
                    each.id: each.exists async for each in client.get_all([collection.document(id) for id in "1x"])
                }
                assert found == {"1": True, "x": False}

        asyncio.run(run())


class TestTheModelItself:
    """What a test can do with it."""

    def test_a_reply_is_lost_and_googles_client_tries_again(self, model: FirestoreModel, own: Any) -> None:
        model.fail_next("Commit", applied=True)
        assert refusal(own.document("c/one").create, {"n": 1}) == "AlreadyExists"
        assert own.document("c/one").get().to_dict() == {"n": 1}
        assert model.calls == {"Commit": 2, "BatchGetDocuments": 1}

    def test_a_reply_is_lost_and_nobody_tries_again(self, model: FirestoreModel, own: Any) -> None:
        model.fail_next("Commit", applied=True, times=2)
        refused = [refusal(own.document(f"c/{id}").set, {}, retry=None) for id in "ab"]
        assert refused == ["ServiceUnavailable"] * 2
        assert ids(own.collection("c").stream()) == ["a", "b"]

    def test_a_request_is_refused_before_it_is_done(self, model: FirestoreModel, own: Any) -> None:
        from grpc import StatusCode  # type: ignore[import-untyped]

        model.fail_next("Commit", applied=False, code=StatusCode.DEADLINE_EXCEEDED)
        assert refusal(own.document("c/one").set, {}) == "DeadlineExceeded"
        assert not own.document("c/one").get().exists
        own.document("c/one").set({})
        assert model.calls["Commit"] == 2

    def test_a_stream_fails_too(self, model: FirestoreModel, own: Any) -> None:
        model.fail_next("RunQuery", applied=True)
        own.document("c/one").set({})
        assert refusal(lambda: list(own.collection("c").stream(retry=None))) == "ServiceUnavailable"
        assert ids(own.collection("c").stream()) == ["one"]

    def test_it_goes_away_and_comes_back_with_what_it_had(self, model: FirestoreModel, own: Any) -> None:
        own.document("c/one").set({"n": 1})
        model.stop()
        assert refusal(own.document("c/one").get, retry=None, timeout=5) == "ServiceUnavailable"
        model.start(int(model.address.rpartition(":")[2]))
        assert own.document("c/one").get().to_dict() == {"n": 1}

    def test_what_it_does_not_model_it_refuses(self, own: Any) -> None:
        from google.cloud.firestore import ArrayUnion, Or

        one, collection = own.document("c/one"), own.collection("c")
        requests: list[Callable[[], Any]] = [
            lambda: one.set({"a": ArrayUnion([1])}),
            lambda: one.get(read_time=dt.datetime.now(dt.UTC)),
            lambda: list(collection.where(filter=where("a", "in", [1])).stream()),
            lambda: list(collection.where(filter=where("a", "==", None)).stream()),
            lambda: list(collection.where(filter=Or([where("a", "==", 1), where("a", "==", 2)])).stream()),
            lambda: collection.count().get(),
        ]
        assert [refusal(request) for request in requests] == ["MethodNotImplemented"] * len(requests)
        assert not one.get().exists

    def test_the_environments_server_replaces_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tests.servers.firestore import ENVIRONMENT, firestore

        monkeypatch.setenv(ENVIRONMENT, "somewhere:1")
        with firestore() as model:
            assert (model, os.environ[ENVIRONMENT]) == (None, "somewhere:1")
        monkeypatch.delenv(ENVIRONMENT)
        with firestore() as model:
            assert model
            assert os.environ[ENVIRONMENT] == model.address
        assert ENVIRONMENT not in os.environ
