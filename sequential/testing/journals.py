"""What a Journal must do beyond the five methods: each capability is a class of its own, `JournalTests` is all."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..storage import CLOSED, Journal, Record, Result
from .conformance import FEW_POINTS, StorageTests, echo, every_request, workflow
from .crash import count_crash_points
from .records import NOW, TURNS, RecordSuite
from .signals import SignalTests

MANY = 20


class ClaimTests(RecordSuite):
    """Taking and creating, in one atomic step."""

    def test_what_is_not_there_is_created_only_on_demand(self) -> None:
        assert self.ask(self.storage.claim, self.record(), NOW, False) == (None, False)
        assert self.ask(self.storage.read, "one") is None
        assert self.ask(self.storage.claim, self.record(), NOW, True) == (self.record(), True)
        assert self.ask(self.storage.read, "one") == self.record()

    def test_a_free_lease_is_taken_and_nothing_else_changes(self) -> None:
        stored = self.create(lease=0.0, due=None, attempts=3, status="failed", error="E: e", step=4, version=None)
        taken = stored._replace(token=stored.token + 1, lease=NOW + 99.0)
        for create, run in ((True, "another"), (False, "")):
            wanted = self.record(run=run, workflow="other", input=b"{}", lease=NOW + 99.0)
            assert self.ask(self.storage.claim, wanted, NOW, create) == (taken, True)
            assert self.ask(self.storage.read, "one") == taken
            taken = taken._replace(token=taken.token + 1)
            self.ask(self.storage.commit, taken._replace(lease=0.0), taken.token - 1, None)
            taken = taken._replace(token=taken.token + 1)

    def test_a_held_lease_is_not_taken_before_it_ends(self) -> None:
        stored = self.create(lease=NOW + 60.0)
        wanted = self.record(lease=NOW + 120.0)
        assert self.ask(self.storage.claim, wanted, NOW + 59.0, True) == (stored, False)
        taken = stored._replace(token=stored.token + 1, lease=NOW + 120.0)
        assert self.ask(self.storage.claim, wanted, NOW + 60.0, True) == (taken, True)

    def test_a_claim_without_a_lease_takes_nothing(self) -> None:
        stored = self.create(lease=0.0)
        assert self.ask(self.storage.claim, self.record(lease=0.0), NOW, True) == (stored, False)
        assert self.ask(self.storage.read, "one") == stored

    def test_a_step_that_is_past_is_not_claimed(self) -> None:
        stored = self.step(self.create(lease=0.0))
        lease = NOW + 99.0
        before = [(stored.run, 0), ("an earlier run", 1), ("an earlier run", 5)]
        for run, step in before:
            wanted = Record("one", run, step=step, lease=lease)
            assert self.ask(self.storage.claim, wanted, NOW, False) == (stored, False)
        assert self.ask(self.storage.read, "one") == stored
        for run, step in [(stored.run, 1), (stored.run, 2), ("", 0)]:
            wanted = Record("one", run, step=step, lease=lease)
            taken = stored._replace(token=stored.token + 1, lease=lease)
            assert self.ask(self.storage.claim, wanted, NOW, False) == (taken, True)
            stored = taken._replace(token=taken.token + 1, lease=0.0)
            self.ask(self.storage.commit, stored, taken.token, None)
        wanted = self.record(run="another", input=b'{"n":2}', lease=lease)  # to be created, if it were not there
        taken = stored._replace(token=stored.token + 1, lease=lease)
        assert self.ask(self.storage.claim, wanted, NOW, True) == (taken, True)
        assert self.ask(self.storage.claim, Record("none", "run", step=3, lease=lease), NOW, False) == (None, False)

    def test_what_has_ended_is_never_taken(self) -> None:
        for status in sorted(CLOSED):
            stored = self.create(status, lease=0.0, status=status)
            assert self.ask(self.storage.claim, self.record(status), NOW, True) == (stored, False)


class CommitTests(RecordSuite):
    """Record and result in one atomic step, or neither."""

    def test_record_and_result_are_written_together(self) -> None:
        record = self.step(self.create(), b'{"a":1}', status="failed", due=None, lease=0.0, attempts=2, error="E: é")
        assert self.ask(self.storage.read, "one") == record
        assert self.all_results(record) == [Result(0, "tool t.0", 5, b'{"a":1}', NOW, NOW + 0.25)]

    def test_every_field_of_a_held_record_is_written(self) -> None:
        record = self.create()
        changes: list[dict[str, Any]] = [{"due": NOW + 5}, {"lease": NOW + 80}, {"attempts": 1}, {"error": "E"}]
        changes += [{"status": "sleeping", "wake": NOW + 9}, {"waits": "signal"}, {"wake": None, "waits": None}]
        changes += [{"status": "stuck"}, {"due": None}]
        for fields in changes:
            record = self.step(record, **fields)
            assert self.ask(self.storage.read, "one") == record

    def test_a_stale_token_writes_nothing(self) -> None:
        record = self.step(self.create())
        result = Result(1, "tool t.stale")
        for token in (record.token - 1, record.token + 1):
            for lease in (0.0, NOW + 500.0):
                new = record._replace(token=token + 1, step=2, lease=lease)
                assert self.refused(self.storage.commit, new, token, result)
        assert self.ask(self.storage.read, "one") == record
        assert self.ask(self.storage.results, record, 1, 2) == []

    def test_another_run_writes_nothing(self) -> None:
        record = self.create()
        stale = record._replace(run="an earlier run", token=record.token + 1, step=1)
        assert self.refused(self.storage.commit, stale, record.token, Result(0))
        assert self.ask(self.storage.results, record, 0, 1) == []
        assert self.ask(self.storage.results, stale, 0, 1) == []

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


class ResultsTests(RecordSuite):
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
        assert len(self.ask(self.storage.results, record, 0, 60)) >= MANY
        assert [saved.step for saved in self.ask(self.storage.results, record, 3, 5)] == [3, 4]

    def test_of_a_run_that_is_gone_there_is_nothing(self) -> None:
        record = self.step(self.create())
        assert self.ask(self.storage.results, record, 1, 2) == []
        self.ask(self.storage.remove, "one")
        assert self.ask(self.storage.results, record, 0, 1) == []
        later = self.create(run="a later run")
        assert self.ask(self.storage.results, record, 0, 1) == []
        self.step(later)
        assert self.ask(self.storage.results, record, 0, 1) == []


class AheadTests(RecordSuite):
    """Results that are saved ahead of the record which will count them."""

    def ahead(self, record: Record, step: int, data: bytes = b"null") -> Result:
        """Save a result and return it."""
        result = Result(step, f"tool t.{step}", 7, data, NOW, NOW + 1, "Error")
        self.ask(self.storage.save, record, result)
        return result

    def test_what_is_saved_ahead_is_read_and_leaves_the_record_as_it_is(self) -> None:
        record = self.step(self.create())
        later, sooner = self.ahead(record, 4), self.ahead(record, 2)
        assert self.ask(self.storage.read, "one") == record
        assert self.ask(self.storage.results, record, 1, 9) == [sooner, later]
        assert self.ask(self.storage.results, record, 3, 5) == [later]
        assert self.ask(self.storage.results, record, 5, 9) == []
        assert [saved.step for saved in self.ask(self.storage.results, record, 0, 9)] == [0, 2, 4]

    def test_a_second_one_replaces_the_first_and_so_does_a_commit(self) -> None:
        record = self.create()
        self.ahead(record, 0, b"1")
        second = self.ahead(record, 0, b"2")
        assert self.ask(self.storage.results, record, 0, 1) == [second]
        self.step(record, b"3")
        assert [saved.data for saved in self.ask(self.storage.results, record, 0, 9)] == [b"3"]

    def test_a_large_one_comes_back_after_a_gap(self) -> None:
        record, data = self.create(), b"x" * 3_000_000
        for step in (1, 2500, 2501):
            self.ahead(record, step, data)
        found: list[Result] = []
        while page := self.ask(self.storage.results, record, found[-1].step + 1 if found else 0, 3000):
            found += page
        assert [(saved.step, saved.data == data) for saved in found] == [(1, True), (2500, True), (2501, True)]

    def test_only_the_holder_saves(self) -> None:
        record = self.step(self.create())
        result = Result(5, "tool t.stale")
        for stale in (record._replace(token=1), record._replace(token=3), record._replace(run="an earlier run")):
            assert self.refused(self.storage.save, stale, result)
        self.ask(self.storage.remove, "one")
        assert self.refused(self.storage.save, record, result)
        assert self.ask(self.storage.read, "one") is None

    def test_a_restart_replaces_the_whole_record_and_forgets_the_results(self) -> None:
        record = self.step(self.step(self.create()))
        self.ahead(record, 5)
        new = Record("one", "a later run", "other", b'{"round":2}', 8, 99, record.token + 1, 0, due=NOW + 5)
        for stale in (record._replace(token=1), record._replace(run="an earlier run")):
            assert self.refused(self.storage.restart, new, stale)
        assert self.ask(self.storage.read, "one") == record
        assert len(self.all_results(record)) == record.step
        self.ask(self.storage.restart, new, record)
        assert self.ask(self.storage.read, "one") == new
        assert self.ask(self.storage.results, new, 0, 9) == self.ask(self.storage.results, record, 0, 9) == []
        assert self.refused(self.storage.restart, new._replace(run="another one"), record)
        held = new._replace(token=new.token + 1, lease=NOW + 60)
        self.ask(self.storage.commit, held, new.token)
        assert len(self.all_results(self.step(held))) == 1


class FindTests(RecordSuite):
    """Listing, in the order of ids."""

    def test_ids_come_in_order_page_by_page(self) -> None:
        ids = ["-", "A", "Z", "a", "a.", "a1", "aa", "b", "~"]
        records = {id: self.create(id) for id in (ids[::2] + ids[1::2])}
        assert self.ask(self.storage.find, "", 99) == [records[id] for id in ids]
        assert [record.id for record in self.ask(self.storage.find, "", 4)] == ids[:4]
        assert [record.id for record in self.ask(self.storage.find, "a", 3)] == ids[4:7]
        assert self.ask(self.storage.find, "~", 3) == []

    def test_only_what_is_wanted_is_found(self) -> None:
        for number in range(12):
            fields = {"status": ("running", "failed")[number % 2], "workflow": "uvw"[number % 3]}
            self.create(f"id-{number:02}", **fields)
        find = partial(self.storage.find, "id-02", 2)
        assert [record.id for record in self.ask(find, "failed")] == ["id-03", "id-05"]
        assert [record.id for record in self.ask(find, None, "v")] == ["id-04", "id-07"]
        assert [record.id for record in self.ask(find, "failed", "v")] == ["id-07"]
        assert self.ask(find, "stuck") == self.ask(find, None, "x") == []


class DueTests(RecordSuite):
    """What the sweep should ring."""

    def test_the_earliest_come_first_and_only_those_whose_time_has_come(self) -> None:
        self.create("waiting", lease=0.0, due=NOW + 20)
        self.create("held", lease=NOW + 10, due=NOW - 100)
        self.create("parked", lease=0.0, due=None, status="failed")
        self.create("late", lease=0.0, due=NOW - 5)
        self.create("abandoned while parked", lease=NOW + 15, due=None)

        def due(now: float, limit: int = 10) -> list[str]:
            return [record.id for record in self.ask(self.storage.due, now, limit)]

        assert due(NOW - 6) == []
        assert due(NOW - 5) == ["late"]
        assert sorted(due(NOW + 10)) == ["held", "late"]
        assert sorted(due(NOW + 99)) == ["abandoned while parked", "held", "late", "waiting"]
        assert len(due(NOW + 99, 3)) == 3

    def test_records_come_whole(self) -> None:
        record = self.create(lease=0.0, due=NOW)
        assert self.ask(self.storage.due, NOW, 1) == [record]

    def test_a_commit_moves_the_time(self) -> None:
        record = self.create(lease=0.0, due=NOW)
        moved = record._replace(token=record.token + 1, due=NOW + 30)
        self.ask(self.storage.commit, moved, record.token)
        assert self.ask(self.storage.due, NOW + 29, 5) == []
        assert self.ask(self.storage.due, NOW + 30, 5) == [moved]


class RemoveTests(RecordSuite):
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
        assert self.ask(self.storage.results, second, 0, 1) == []
        assert self.ask(self.storage.results, first, 0, 1) == []
        assert self.refused(self.storage.commit, first._replace(token=first.token + 1), first.token, Result(2))
        assert self.ask(self.storage.due, NOW + 1000, 5) == [second]


class ConcurrencyTests(RecordSuite):
    """Two at once: one wins."""

    def test_one_of_two_creates(self) -> None:
        other = self.ask(self.another, self.storage)
        for turn in range(TURNS):
            wanted = [self.record(f"id-{turn}", run=run) for run in ("mine", "theirs")]
            found = self.together(
                partial(self.storage.claim, wanted[0], NOW, True), partial(other.claim, wanted[1], NOW, True)
            )
            assert sorted(taken for _, taken in found) == [False, True], found
            assert len({record for record, _ in found}) == 1, found

    def test_one_of_two_takes_the_lease(self) -> None:
        other = self.ask(self.another, self.storage)
        for turn in range(TURNS):
            record = self.create(f"id-{turn}", lease=0.0)
            found = self.together(
                partial(self.storage.claim, record._replace(lease=NOW + 60), NOW, False),
                partial(other.claim, record._replace(lease=NOW + 61), NOW, False),
            )
            assert sorted(taken for _, taken in found) == [False, True], found
            assert {held.token for held, _ in found} == {record.token + 1}, found

    def test_one_of_two_commits(self) -> None:
        other = self.ask(self.another, self.storage)
        record = self.create()
        for turn in range(TURNS):
            new = record._replace(token=record.token + 1, step=turn + 1, lease=(NOW + turn) * (turn % 2))
            results = [Result(turn, who, data=f'"{who}"'.encode()) for who in ("mine", "theirs")]
            found = self.together(
                partial(self.storage.commit, new, record.token, results[0]),
                partial(other.commit, new, record.token, results[1]),
            )
            assert sorted(type(outcome).__name__ for outcome in found) == ["Fenced", "NoneType"], found
            winner = ("mine", "theirs")[found.index(None)]
            assert self.ask(self.storage.results, new, turn, turn + 1)[0].asked == winner
            record = new


class CapabilityTests(
    ClaimTests,
    CommitTests,
    ResultsTests,
    AheadTests,
    SignalTests,
    DueTests,
    FindTests,
    RemoveTests,
    ConcurrencyTests,
):
    """What a Journal must do beyond the five methods, each method by itself."""


class JournalTests(StorageTests, CapabilityTests):
    """All that a Journal must do, its five methods included, and workflows run over it."""

    def test_a_workflow_survives_death_at_any_point_of_a_journal(self) -> None:
        points = self.runner.run(count_crash_points(workflow, {"of": self.steps}, echo, self.storage))
        assert points > FEW_POINTS * self.steps / 3

    def test_every_request_survives_death_at_any_point(self) -> None:
        points = self.runner.run(count_crash_points(every_request, {"round": 1}, echo, self.storage, {"go": [None]}))
        assert points > FEW_POINTS

    def test_it_is_a_journal(self) -> None:
        assert isinstance(self.storage, Journal)
