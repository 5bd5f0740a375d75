"""What a storage must do, as test classes for pytest: derive one, write ``make``, run.

A storage of five methods::

    class TestMyStorage(StorageTests):
        def make(self):
            return MyStorage()

A Journal runs `JournalTests`, which is all of them together; each capability is a class of its own, so that
a store under construction can run what it has.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ..errors import Fenced
from ..executor import FlowExecutor
from ..invocation import Paused
from ..requests import save, tool
from ..storage import Journal, Maybe, Record, Result, journal_for, settle
from .crash import count_crash_points

T = TypeVar("T")

_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**80,
    0.1,
    1e308,
    5e-324,
    "",
    "text",
    "\x00 \n \u2028 \U0001f600 é",
    [],
    {},
    [[[]], {"": None}],
    {"b": 1, "a": [1, 2.5, None, False, {"deep": ["x"]}]},
    "x" * 2_000_000,
    ["y" * 100] * 20_000,
)
"""JSON of every kind and size; what goes in must come out."""


class _Tests(ABC):
    """An empty storage for each test, and a way to ask it, be it plain or ``async``."""

    @abstractmethod
    def make(self) -> Maybe[Any]:
        """Return an empty storage; may be ``async``."""

    def another(self, storage: Any) -> Maybe[Any]:
        """Return a second handle on the same data, as another process would have; by default the same one."""
        return storage

    def discard(self, storage: Any) -> Maybe[None]:  # noqa: B027 - to be overridden by those who need it
        """Release what `make` has acquired; by default nothing."""

    def setup_method(self) -> None:
        """Make the storage."""
        self._runner = asyncio.Runner()
        self.storage: Any = self.ask(self.make)
        journal_for(self.storage)  # says which methods are missing

    def teardown_method(self) -> None:
        """Discard it."""
        self.ask(self.discard, self.storage)
        self._runner.close()

    def ask(self, method: Callable[..., Maybe[T]], *arguments: Any) -> T:
        """Call a method, plain or ``async``, to its end."""

        async def call() -> T:
            return await settle(method(*arguments))

        return self._runner.run(call())

    def together(self, *calls: Callable[[], Any]) -> list[Any]:
        """Make calls at the same time, plain ones in threads of their own; an exception is an outcome."""

        async def call_all() -> list[Any]:
            async def call(one: Callable[[], Any]) -> Any:
                return await settle(await asyncio.to_thread(one))

            return await asyncio.gather(*(call(one) for one in calls), return_exceptions=True)

        return self._runner.run(call_all())


class StorageTests(_Tests):
    """The five methods, and workflows run over nothing but them.

    For pytest: derive a class whose name begins with ``Test`` and write ``make``::

        class TestMyStorage(StorageTests):
            def make(self):
                return MyStorage()
    """

    def test_an_unknown_id_has_no_state(self) -> None:
        assert self.ask(self.storage.get, "nobody") is None

    def test_the_last_state_that_was_set_is_the_one_kept(self) -> None:
        for step in (1, 2, 10, 3):
            self.ask(self.storage.set, "one", {"step": step})
            assert self.ask(self.storage.get, "one") == {"step": step}

    def test_every_value_comes_back_as_it_went_in(self) -> None:
        for step, value in enumerate(_VALUES):
            self.ask(self.storage.set_result, "one", step, value)
            self.ask(self.storage.set, "one", {"step": step + 1})
        for step, value in enumerate(_VALUES):
            found = self.ask(self.storage.get_result, "one", step)
            assert _strict(found) == _strict(value), f"step {step}: {found!r:.100} instead of {value!r:.100}"

    def test_a_result_may_come_before_any_state(self) -> None:
        self.ask(self.storage.set_result, "one", 0, {"early": True})
        assert self.ask(self.storage.get_result, "one", 0) == {"early": True}

    def test_a_second_result_replaces_the_first(self) -> None:
        for value in ("first", "second"):
            self.ask(self.storage.set_result, "one", 0, value)
        assert self.ask(self.storage.get_result, "one", 0) == "second"

    def test_executions_do_not_see_each_other(self) -> None:
        for id in ("a", "a:0", "a.b", "A", "a-1", "a~1", "@"):
            self.ask(self.storage.set_result, id, 0, f"of {id}")
            self.ask(self.storage.set, id, {"step": len(id)})
        self.ask(self.storage.delete, "a")
        assert self.ask(self.storage.get, "a") is None
        for id in ("a:0", "a.b", "A", "a-1", "a~1", "@"):
            assert self.ask(self.storage.get, id) == {"step": len(id)}
            assert self.ask(self.storage.get_result, id, 0) == f"of {id}"

    def test_deleting_is_no_error_twice_and_leaves_a_fresh_start(self) -> None:
        self.ask(self.storage.set_result, "one", 0, "a result that must go too")
        self.ask(self.storage.set, "one", {"step": 5})
        for _ in range(2):
            self.ask(self.storage.delete, "one")
        assert self.ask(self.storage.get, "one") is None
        left: Any = None
        with suppress(Exception):  # how a storage says that there is none is its own affair
            left = self.ask(self.storage.get_result, "one", 0)
        assert left is None, "the result outlived its execution"
        self.ask(self.storage.set, "one", {"step": 1})
        assert self.ask(self.storage.get, "one") == {"step": 1}

    def test_a_workflow_runs_over_the_five_methods(self) -> None:
        five = _Five(self.storage)
        flow = FlowExecutor(five, call=_echo)
        seen: list[Any] = []
        while len(seen) < _FEW_POINTS and (not seen or isinstance(seen[-1], Paused)):
            seen.append(self._runner.run(flow.execute(_workflow, "one", {"of": 3})))
        assert seen == [{"paused": "one", "step": step} for step in range(4)] + [_RETURNED]
        assert self.ask(self.storage.get, "one") is None

    def test_a_workflow_survives_death_at_any_point(self) -> None:
        points = self._runner.run(count_crash_points(_workflow, {"of": 3}, _echo, _Five(self.storage)))
        assert points > _FEW_POINTS


class _JournalTests(_Tests):
    """A record to begin with, and how to read all of an execution's results."""

    def record(self, id: str = "one", **fields: Any) -> Record:
        """Return a record as the executor creates it, held until `_NOW` plus a minute."""
        record = Record(id, f"run of {id}", 1, 0, "running", "workflow", b'{"n":1}', 7, _NOW, _NOW + 60.0)
        return record._replace(**fields)

    def create(self, id: str = "one", **fields: Any) -> Record:
        """Store a record and return it."""
        record = self.record(id, **fields)
        assert self.ask(self.storage.claim, record, _NOW, True) == (record, True)
        return record

    def step(self, record: Record, data: bytes = b"null", **fields: Any) -> Record:
        """Commit the next result and return the record as it then stands."""
        result = Result(record.step, f"tool t.{record.step}", record.step + 5, _NOW, _NOW + 0.25, None, data)
        record = record._replace(token=record.token + 1, step=record.step + 1, **fields)
        self.ask(self.storage.commit, record, record.token - 1, result)
        return record

    def refused(self, method: Callable[..., Maybe[Any]], *arguments: Any) -> bool:
        """Whether the store answers with `Fenced`."""
        try:
            self.ask(method, *arguments)
        except Fenced:
            return True
        return False

    def all_results(self, record: Record, start: int = 0) -> list[Result]:
        """Read all results from `start` on, page by page."""
        found: list[Result] = []
        while start + len(found) < record.step:
            found += self.ask(self.storage.results, record, start + len(found), record.step)
        return found


class ClaimTests(_JournalTests):
    """Taking and creating, in one atomic step."""

    def test_what_is_not_there_is_created_only_on_demand(self) -> None:
        assert self.ask(self.storage.claim, self.record(), _NOW, False) == (None, False)
        assert self.ask(self.storage.read, "one") is None
        assert self.ask(self.storage.claim, self.record(), _NOW, True) == (self.record(), True)
        assert self.ask(self.storage.read, "one") == self.record()

    def test_a_free_lease_is_taken_and_nothing_else_changes(self) -> None:
        stored = self.create(lease=0.0, due=None, attempts=3, status="failed", error="E: e", step=4, version=None)
        wanted = self.record(run="another", workflow="other", input=b"{}", lease=_NOW + 99.0)
        taken = stored._replace(token=stored.token + 1, lease=_NOW + 99.0)
        for create in (True, False):
            assert self.ask(self.storage.claim, wanted, _NOW, create) == (taken, True)
            assert self.ask(self.storage.read, "one") == taken
            taken = taken._replace(token=taken.token + 1)
            self.ask(self.storage.commit, taken._replace(lease=0.0), taken.token - 1, None)
            taken = taken._replace(token=taken.token + 1)

    def test_a_held_lease_is_not_taken_before_it_ends(self) -> None:
        stored = self.create(lease=_NOW + 60.0)
        wanted = self.record(lease=_NOW + 120.0)
        assert self.ask(self.storage.claim, wanted, _NOW + 59.0, True) == (stored, False)
        taken = stored._replace(token=stored.token + 1, lease=_NOW + 120.0)
        assert self.ask(self.storage.claim, wanted, _NOW + 60.0, True) == (taken, True)

    def test_a_claim_without_a_lease_takes_nothing(self) -> None:
        stored = self.create(lease=0.0)
        assert self.ask(self.storage.claim, self.record(lease=0.0), _NOW, True) == (stored, False)
        assert self.ask(self.storage.read, "one") == stored

    def test_what_has_ended_is_never_taken(self) -> None:
        for status in ("finished", "cancelled"):
            stored = self.create(status, lease=0.0, status=status)
            assert self.ask(self.storage.claim, self.record(status), _NOW, True) == (stored, False)


class CommitTests(_JournalTests):
    """Record and result in one atomic step, or neither."""

    def test_record_and_result_are_written_together(self) -> None:
        record = self.step(self.create(), b'{"a":1}', status="failed", due=None, lease=0.0, attempts=2, error="E: é")
        assert self.ask(self.storage.read, "one") == record
        assert self.all_results(record) == [Result(0, "tool t.0", 5, _NOW, _NOW + 0.25, None, b'{"a":1}')]

    def test_every_field_of_a_held_record_is_written(self) -> None:
        record = self.create()
        changes: list[dict[str, Any]] = [{"due": _NOW + 5}, {"lease": _NOW + 80}, {"attempts": 1}, {"error": "E"}]
        changes += [{"status": "stuck"}, {"due": None}]
        for fields in changes:
            record = self.step(record, **fields)
            assert self.ask(self.storage.read, "one") == record

    def test_a_stale_token_writes_nothing(self) -> None:
        record = self.step(self.create())
        result = Result(1, "tool t.stale")
        for token in (record.token - 1, record.token + 1):
            for lease in (0.0, _NOW + 500.0):
                new = record._replace(token=token + 1, step=2, lease=lease)
                assert self.refused(self.storage.commit, new, token, result)
        assert self.ask(self.storage.read, "one") == record
        assert self.refused(self.storage.results, record, 1, 2)

    def test_another_run_writes_nothing(self) -> None:
        record = self.create()
        stale = record._replace(run="an earlier run", token=record.token + 1, step=1)
        assert self.refused(self.storage.commit, stale, record.token, Result(0))
        assert self.refused(self.storage.results, record, 0, 1)
        assert self.refused(self.storage.results, stale, 0, 1)

    def test_what_is_gone_is_not_written(self) -> None:
        record = self.create()
        self.ask(self.storage.remove, "one")
        assert self.refused(self.storage.commit, record._replace(token=2), 1, Result(0))
        assert self.ask(self.storage.read, "one") is None

    def test_a_renewal_keeps_its_token(self) -> None:
        record = self.create()
        renewed = record._replace(lease=record.lease + 60)
        self.ask(self.storage.commit, renewed, record.token)
        assert self.ask(self.storage.read, "one") == renewed
        stepped = self.step(renewed)
        assert self.refused(self.storage.commit, renewed, record.token)
        assert self.ask(self.storage.read, "one") == stepped


class ResultsTests(_JournalTests):
    """Results in order, in pages."""

    def test_pages_come_in_order_and_without_gaps(self) -> None:
        record, sizes = self.create(), [1, 100, 300_000, 800_000, 1_500_000, 10, 3_000_000, 7, 0, 2_000_000]
        for size in sizes:
            record = self.step(record, bytes([size % 251]) * size)
        for start in range(len(sizes)):
            found = self.all_results(record, start)
            assert [saved.step for saved in found] == list(range(start, len(sizes)))
            assert [saved.data == bytes([size % 251]) * size for saved, size in zip(found, sizes[start:], strict=True)]
            assert [len(saved.data) for saved in found] == sizes[start:]

    def test_a_page_of_small_results_holds_many(self) -> None:
        record = self.create()
        for _ in range(60):
            record = self.step(record)
        assert len(self.ask(self.storage.results, record, 0, 60)) >= _MANY
        assert [saved.step for saved in self.ask(self.storage.results, record, 3, 5)] == [3, 4]

    def test_a_missing_result_says_that_the_run_is_gone(self) -> None:
        record = self.step(self.create())
        assert self.refused(self.storage.results, record, 1, 2)
        self.ask(self.storage.remove, "one")
        assert self.refused(self.storage.results, record, 0, 1)
        later = self.create(run="a later run")
        assert self.refused(self.storage.results, record, 0, 1)
        self.step(later)
        assert self.refused(self.storage.results, record, 0, 1)


class DueTests(_JournalTests):
    """What the sweep should ring."""

    def test_the_earliest_come_first_and_only_those_whose_time_has_come(self) -> None:
        self.create("waiting", lease=0.0, due=_NOW + 20)
        self.create("held", lease=_NOW + 10, due=_NOW - 100)
        self.create("parked", lease=0.0, due=None, status="failed")
        self.create("late", lease=0.0, due=_NOW - 5)
        self.create("abandoned while parked", lease=_NOW + 15, due=None)

        def due(now: float, limit: int = 10) -> list[str]:
            return [record.id for record in self.ask(self.storage.due, now, limit)]

        assert due(_NOW - 6) == []
        assert due(_NOW - 5) == ["late"]
        assert sorted(due(_NOW + 10)) == ["held", "late"]
        assert sorted(due(_NOW + 99)) == ["abandoned while parked", "held", "late", "waiting"]
        assert len(due(_NOW + 99, 3)) == 3

    def test_records_come_whole(self) -> None:
        record = self.create(lease=0.0, due=_NOW)
        assert self.ask(self.storage.due, _NOW, 1) == [record]

    def test_a_commit_moves_the_time(self) -> None:
        record = self.create(lease=0.0, due=_NOW)
        moved = record._replace(token=record.token + 1, due=_NOW + 30)
        self.ask(self.storage.commit, moved, record.token)
        assert self.ask(self.storage.due, _NOW + 29, 5) == []
        assert self.ask(self.storage.due, _NOW + 30, 5) == [moved]


class RemoveTests(_JournalTests):
    """Removing an execution with all its results."""

    def test_an_unknown_id_is_no_error(self) -> None:
        self.ask(self.storage.remove, "nobody")

    def test_only_the_holder_may_remove(self) -> None:
        record = self.step(self.create())
        for stale in (record._replace(token=record.token - 1), record._replace(run="an earlier run")):
            assert self.refused(self.storage.remove, "one", stale)
        assert self.ask(self.storage.read, "one") == record
        self.ask(self.storage.remove, "one", record)
        assert self.ask(self.storage.read, "one") is None
        assert self.refused(self.storage.remove, "one", record)

    def test_nothing_of_a_removed_run_is_seen_by_the_next(self) -> None:
        first = self.step(self.step(self.create(run="first")))
        self.ask(self.storage.remove, "one")
        second = self.create(run="second")
        assert self.refused(self.storage.results, second, 0, 1)
        assert self.refused(self.storage.results, first, 0, 1)
        assert self.refused(self.storage.commit, first._replace(token=first.token + 1), first.token, Result(2))
        assert self.ask(self.storage.due, _NOW + 1000, 5) == [second]


class ConcurrencyTests(_JournalTests):
    """Two at once: one wins."""

    def test_one_of_two_creates(self) -> None:
        other = self.ask(self.another, self.storage)
        for turn in range(_TURNS):
            wanted = [self.record(f"id-{turn}", run=run) for run in ("mine", "theirs")]
            found = self.together(
                partial(self.storage.claim, wanted[0], _NOW, True), partial(other.claim, wanted[1], _NOW, True)
            )
            assert sorted(taken for _, taken in found) == [False, True], found
            assert len({record for record, _ in found}) == 1, found

    def test_one_of_two_takes_the_lease(self) -> None:
        other = self.ask(self.another, self.storage)
        for turn in range(_TURNS):
            record = self.create(f"id-{turn}", lease=0.0)
            found = self.together(
                partial(self.storage.claim, record._replace(lease=_NOW + 60), _NOW, False),
                partial(other.claim, record._replace(lease=_NOW + 61), _NOW, False),
            )
            assert sorted(taken for _, taken in found) == [False, True], found
            assert {held.token for held, _ in found} == {record.token + 1}, found

    def test_one_of_two_commits(self) -> None:
        other = self.ask(self.another, self.storage)
        record = self.create()
        for turn in range(_TURNS):
            new = record._replace(token=record.token + 1, step=turn + 1, lease=(_NOW + turn) * (turn % 2))
            results = [Result(turn, who, data=f'"{who}"'.encode()) for who in ("mine", "theirs")]
            found = self.together(
                partial(self.storage.commit, new, record.token, results[0]),
                partial(other.commit, new, record.token, results[1]),
            )
            assert sorted(type(outcome).__name__ for outcome in found) == ["Fenced", "NoneType"], found
            winner = ("mine", "theirs")[found.index(None)]
            assert self.ask(self.storage.results, new, turn, turn + 1)[0].asked == winner
            record = new


class JournalTests(StorageTests, ClaimTests, CommitTests, ResultsTests, DueTests, RemoveTests, ConcurrencyTests):
    """All that a Journal must do, its five methods included, and workflows run over it."""

    def test_a_workflow_survives_death_at_any_point_of_a_journal(self) -> None:
        points = self._runner.run(count_crash_points(_workflow, {"of": 3}, _echo, self.storage))
        assert points > _FEW_POINTS

    def test_it_is_a_journal(self) -> None:
        assert isinstance(self.storage, Journal)


class _Five:
    """A Journal's five methods, and nothing else of it."""

    def __init__(self, storage: Any) -> None:
        self.get, self.set, self.delete = storage.get, storage.set, storage.delete
        self.get_result, self.set_result = storage.get_result, storage.set_result


_NOW = 1_700_000_000.0
_TURNS = 40
_MANY = 20
_FEW_POINTS = 30


def _workflow(input: dict[str, int]) -> Generator[Any, Any, Any]:
    got: list[Any] = []
    for number in range(input["of"]):
        got.append((yield tool("conformance", "echo", {"number": number, "so far": len(got)})))
    yield save()
    return got


_RETURNED = [{"number": 0, "so far": 0}, {"number": 1, "so far": 1}, {"number": 2, "so far": 2}]


def _echo(_category: str, _name: str, input: Any) -> Any:
    return input


def _strict(value: Any) -> str:
    """Tell 1 from 1.0 and from True, and one order of keys from another."""
    return repr(value)
