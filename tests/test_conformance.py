"""The conformance suite refuses storages that do not keep what they promise."""

from __future__ import annotations

from typing import Any

import pytest

from sequential.storage import Record, Result
from sequential.stores.memory import MemoryStorage
from sequential.testing import (
    ClaimTests,
    CommitTests,
    ConcurrencyTests,
    DueTests,
    RemoveTests,
    ResultsTests,
    StorageTests,
)
from tests.support import PlainStorage


class NoFence(MemoryStorage):
    def _check(self, record: Record, token: int) -> None: ...


class NoLease(MemoryStorage):
    def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        return super().claim(wanted, 1e12, create)


class OneRun(MemoryStorage):
    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        stored = self.read(record.id)
        return super().results(stored or record, start, stop)


class Gaps(MemoryStorage):
    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        return super().results(record, start, stop)[::2]


class AlwaysDue(MemoryStorage):
    def due(self, now: float, limit: int) -> list[Record]:
        return super().due(1e12, limit)


class Leftovers(MemoryStorage):
    def remove(self, id: str, held: Record | None = None) -> None:
        kept = self._results.get(id, {})
        super().remove(id, held)
        self._results[id] = kept

    def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        kept = self._results.get(wanted.id, {})
        claimed = super().claim(wanted, now, create)
        self._results[wanted.id] = kept
        return claimed


class Forgetful(PlainStorage):
    def set(self, id: str, state: dict[str, int]) -> None:
        self.states.setdefault(id, state)


class Keeping(PlainStorage):
    def delete(self, id: str) -> None:
        self.states.pop(id, None)


class Sloppy(PlainStorage):
    def get_result(self, id: str, step: int) -> Any:
        value = super().get_result(id, step)
        return float(value) if isinstance(value, int) else value


class Sharing(PlainStorage):
    def get_result(self, id: str, step: int) -> Any:
        return super().get_result(id.lower(), step)

    def set_result(self, id: str, step: int, data: Any) -> None:
        super().set_result(id.lower(), step, data)


def failures(suite: type, storage: type) -> list[str]:
    """Run a suite against a storage and return the names of the tests that fail."""
    tests = type("Suite", (suite,), {"make": lambda self: storage()})()
    failed: list[str] = []
    for name in dir(tests):
        if name.startswith("test_"):
            tests.setup_method()
            try:
                getattr(tests, name)()
            except Exception:
                failed.append(name)
            finally:
                tests.teardown_method()
    return failed


@pytest.mark.parametrize(
    ("suite", "storage", "test"),
    [
        (CommitTests, NoFence, "test_a_stale_token_writes_nothing"),
        (CommitTests, NoFence, "test_another_run_writes_nothing"),
        (RemoveTests, NoFence, "test_only_the_holder_may_remove"),
        (ConcurrencyTests, NoFence, "test_one_of_two_commits"),
        (ClaimTests, NoLease, "test_a_held_lease_is_not_taken_before_it_ends"),
        (ConcurrencyTests, NoLease, "test_one_of_two_takes_the_lease"),
        (ResultsTests, OneRun, "test_of_a_run_that_is_gone_there_is_nothing"),
        (ResultsTests, Gaps, "test_pages_come_in_order_and_without_gaps"),
        (DueTests, AlwaysDue, "test_the_earliest_come_first_and_only_those_whose_time_has_come"),
        (RemoveTests, Leftovers, "test_nothing_of_a_removed_run_is_seen_by_the_next"),
        (StorageTests, Forgetful, "test_the_last_state_that_was_set_is_the_one_kept"),
        (StorageTests, Keeping, "test_deleting_is_no_error_twice_and_leaves_a_fresh_start"),
        (StorageTests, Sloppy, "test_every_value_comes_back_as_it_went_in"),
        (StorageTests, Sharing, "test_executions_do_not_see_each_other"),
    ],
)
def test_a_storage_that_breaks_a_promise_is_found(suite: type, storage: type, test: str) -> None:
    assert test in failures(suite, storage)


@pytest.mark.parametrize("suite", [StorageTests, ClaimTests, CommitTests, ResultsTests, DueTests, RemoveTests])
def test_a_good_storage_passes(suite: type) -> None:
    assert failures(suite, MemoryStorage) == []
