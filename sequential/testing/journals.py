"""What a Journal must do beyond the five methods: each capability is a class of its own, `JournalTests` is all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import Fenced
from ..storage import Journal, Maybe, Record, Result
from .conformance import FEW_POINTS, StorageSuite, StorageTests, echo, workflow
from .crash import count_crash_points

_NOW = 1_700_000_000.0
_TURNS = 40
_MANY = 20


class _JournalTests(StorageSuite):
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
        result = Result(record.step, f"tool t.{record.step}", record.step + 5, data, _NOW, _NOW + 0.25)
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
        assert self.all_results(record) == [Result(0, "tool t.0", 5, b'{"a":1}', _NOW, _NOW + 0.25)]

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
        points = self.runner.run(count_crash_points(workflow, {"of": 3}, echo, self.storage))
        assert points > FEW_POINTS

    def test_it_is_a_journal(self) -> None:
        assert isinstance(self.storage, Journal)
