"""The conformance suite: good storages pass it, and one that does not keep what it promises is found."""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import normalize

import pytest

from sequential.blocking import Maybe, settle
from sequential.errors import StorageError
from sequential.record import LAST, Entry, Record
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import JournalAround, JournalTests, ListTests, ReadTests, StorageTests, WriteTests
from tests.support import AsyncJournal, AsyncPlainStorage, PlainStorage

T = TypeVar("T")
ALL = (-(2**31), 0), LAST


class TestMemoryStorage(JournalTests):
    page_size = math.inf

    def make(self) -> MemoryStorage:
        return MemoryStorage()


class TestAsynchronousJournal(JournalTests):
    page_size = math.inf

    def make(self) -> AsyncJournal:
        return AsyncJournal(MemoryStorage())


class TestJournalOfSmallParts(JournalTests):
    def make(self) -> MemoryStorage:
        storage = MemoryStorage()
        storage.part_size, storage.write_size = 1000, 3000
        return storage


class TestSQLiteStorage(JournalTests):
    def make(self) -> SQLiteStorage:
        self.folder = tempfile.TemporaryDirectory()
        self.opened: list[SQLiteStorage] = []
        return self.open()

    def open(self) -> SQLiteStorage:
        self.opened.append(SQLiteStorage(Path(self.folder.name, "flows.db"), synchronous="NORMAL"))
        return self.opened[-1]

    def another(self, storage: SQLiteStorage) -> SQLiteStorage:
        return self.open()

    def discard(self, storage: SQLiteStorage) -> None:
        for handle in self.opened:
            handle.close()
        self.folder.cleanup()


class TestFiveMethods(StorageTests):
    def make(self) -> PlainStorage:
        return PlainStorage()


class TestFiveAsynchronousMethods(StorageTests):
    def make(self) -> AsyncPlainStorage:
        return AsyncPlainStorage()


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


class MethodTests(WriteTests, ReadTests, ListTests):
    """What a Journal's own four methods promise, without workflows, which take longer."""


class Broken(JournalAround):
    """A good Journal with holes: functions in the place of its methods, given the good one and the arguments."""

    inner: MemoryStorage

    def __init__(self, **holes: Callable[..., Any]) -> None:
        super().__init__(MemoryStorage())
        self.part_size, self.write_size, self.holes = JournalAround.part_size, JournalAround.write_size, holes

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        if what not in self.holes:
            return await settle(method(*arguments, **options))
        done: T = await settle(self.holes[what](self.inner, *arguments, **options))
        return done

    def create_schema(self) -> Any:
        make: Callable[..., Any] = self.holes.get("create_schema", MemoryStorage.create_schema)
        return make(self.inner)


def run(suite: type, test: str, make: Callable[[], Any], **attributes: Any) -> None:
    """Run one test of a suite on a storage."""

    def another(_: Any, storage: Any) -> Any:
        return storage.holes["another"]() if "another" in storage.holes else storage

    tests = type("Suite", (suite,), {"make": lambda _: make(), "another": another, **attributes})()
    tests.setup_method()
    try:
        getattr(tests, test)()
    finally:
        tests.teardown_method()


Entries = Sequence[Entry]


def stored(store: MemoryStorage, *records: Record | None) -> Record | None:
    """Return what is stored under the id of these."""
    return store.read(next(record.id for record in records if record))[0]


def write_anyway(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    return store.write(stored(store, old, new), new, entries)


def go_by_version(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    now = stored(store, old, new)
    return store.write(now if old and now and old.version == now.stamp else old, new, entries)


def insist_on_version(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    return (old is None or old.version == old.stamp) and store.write(old, new, entries)


def write_refused_entries(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    written, now = store.write(old, new, entries), stored(store, old, new)
    return written or (now is not None and not store.write(now, now, entries))


def leave_refused_entries(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    written = store.write(old, new, entries)
    if new and not written and not stored(store, new):
        store.write(None, new, entries)
        del store._records[new.id]
    return written


def remove_record_alone(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    runs = dict(store._runs)
    written = store.write(old, new, entries)
    if new is None:
        store._runs = runs
    return written


def remove_run_alone(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    runs = {id: dict(runs) for id, runs in store._runs.items()}
    written = store.write(old, new, entries)
    if old and written and new is None:
        runs[old.id].pop(old.run, None)
        store._runs = runs
    return written


def remove_by_prefix(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    written = store.write(old, new, entries)
    if old and written and new is None:
        for record in store.find("", 99):
            if record.id.startswith(old.id):
                store.write(record, None)
    return written


def reuse_old_run(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    if old and new and old.run != new.run:
        entries = [*(entry._replace(run=new.run) for entry in store.read(old.id, *ALL)[1]), *entries]
    return store.write(old, new, entries)


async def check_then_write(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    now = stored(store, old, new)
    await asyncio.sleep(0)
    return (now and now.stamp) == (old and old.stamp) and write_anyway(store, old, new, entries)


async def write_entries_later(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    written = store.write(old, new)
    await asyncio.sleep(0.001)
    if new and written:
        write_anyway(store, old, stored(store, new), entries)
    return written


async def read_entries_first(store: MemoryStorage, id: str, *of: Any) -> tuple[Record | None, list[Entry]]:
    page = store.read(id, *of)[1]
    await asyncio.sleep(0)
    return store.read(id)[0], page


def refuse_large(store: MemoryStorage, old: Record | None, new: Record | None, entries: Entries) -> bool:
    if sum(len(entry.data) for entry in entries) > 3 << 20:
        raise ValueError("too large")
    return store.write(old, new, entries)


def writing(function: Callable[..., Any]) -> dict[str, Any]:
    """A hole in writing, whether or not it waits for the disk."""
    return {"write": lambda store, old, new, entries, flush: function(store, old, new, entries)}


def keeping(function: Callable[[Record, Entries], Entries]) -> dict[str, Any]:
    """A hole in writing: other entries than those that were given."""
    return writing(lambda s, old, new, entries: s.write(old, new, function(new, entries) if new else ()))


def paging(function: Callable[[list[Entry]], list[Any]]) -> dict[str, Any]:
    """A hole in reading: another page than what there is."""
    return {"read": lambda s, *of: (s.read(*of)[0], function(s.read(*of)[1]))}


def altering(function: Callable[[Record], dict[str, Any]]) -> dict[str, Any]:
    """A hole in reading: a record with other fields than it has."""

    def read(store: MemoryStorage, *of: Any) -> tuple[Record | None, list[Entry]]:
        record, page = store.read(*of)
        return record and record._replace(**function(record)), page

    return {"read": read}


STAMP = "test_without_the_right_stamp_nothing_is_written"
VERSION = "test_the_stamp_decides_whatever_the_version"
TOGETHER = "test_a_record_and_its_entries_are_written_together"
NO_DISK = "test_a_write_that_waits_for_no_disk_counts_too"
FIELDS = "test_every_field_of_a_record_comes_back_exactly"
REPLACED = "test_an_entry_replaces_only_that_of_its_run_place_and_part"
AHEAD = "test_a_run_is_written_ahead_and_takes_the_place_of_the_one_before"
REMOVED = "test_of_what_was_removed_nothing_is_left"
TABLES = "test_making_the_tables_again_keeps_what_is_stored"
WRITERS = "test_one_of_many_writers_wins"
AT_ONCE = "test_writers_at_once_lose_nothing_and_no_reader_finds_a_record_without_its_entries"
RANGE = "test_a_page_begins_at_its_start_and_ends_before_its_stop"
PAGE = "test_a_page_is_of_moderate_size"
ENTRIES = "test_every_entry_comes_back_exactly"
SIZES = "test_an_execution_is_begun_in_as_many_writes_as_it_takes"
PARTS = "test_a_large_value_is_kept_in_parts"
HANDLES = "test_another_handle_sees_all_that_this_one_does"
DUE = "test_what_is_due_comes_by_time"
ORDER = "test_ids_come_in_the_order_of_their_bytes"
ONLY = "test_only_what_is_asked_for_is_found"
FOLLOW = "test_lists_follow_every_write"
VERSIONED = altering(lambda record: {"version": record.stamp})

HOLES: list[tuple[str, dict[str, Any], str]] = [
    ("ignores the stamp", writing(write_anyway), STAMP),
    ("creates what is there", writing(lambda s, old, *new: (s.write if old else partial(write_anyway, s))(old, *new)), STAMP),
    ("removes what has changed", writing(lambda s, old, new, e: (s.write if new else partial(write_anyway, s))(old, new, e)), STAMP),
    ("writes refused entries", writing(write_refused_entries), STAMP),
    ("leaves refused entries", writing(leave_refused_entries), STAMP),
    ("goes by the version", {**VERSIONED, **writing(go_by_version)}, VERSION),
    ("insists on the version", {**VERSIONED, **writing(insist_on_version)}, VERSION),
    ("writes the record alone", keeping(lambda new, entries: ()), TOGETHER),
    ("writes one entry", keeping(lambda new, entries: entries[:1]), TOGETHER),
    ("flushes or forgets", {"write": lambda s, *new, flush: s.write(*new) if flush else True}, NO_DISK),
    ("rounds times", altering(lambda record: {"due": record.due and round(record.due, 6)}), FIELDS),
    ("takes 0 for never", altering(lambda record: {"due": record.due or None}), FIELDS),
    ("makes times whole", altering(lambda record: {"changed": int(record.changed)}), FIELDS),
    ("cuts the state", altering(lambda record: {"state": record.state[:65_535]}), FIELDS),
    ("normalizes texts", altering(lambda record: {"workflow": normalize("NFC", record.workflow)}), FIELDS),
    ("takes nothing for none", altering(lambda record: {"workflow": record.workflow or None}), FIELDS),
    ("cuts the id", altering(lambda record: {"id": record.id[:191]}), FIELDS),
    ("takes runs for one", keeping(lambda new, entries: [entry._replace(run=new.run) for entry in entries]), REPLACED),
    ("takes parts for one", keeping(lambda new, entries: [entry._replace(part=0) for entry in entries]), REPLACED),
    ("writes no run ahead", keeping(lambda new, entries: [entry for entry in entries if entry.run == new.run]), AHEAD),
    ("reuses an old run", writing(reuse_old_run), AHEAD),
    ("removes the record alone", writing(remove_record_alone), REMOVED),
    ("removes one run alone", writing(remove_run_alone), REMOVED),
    ("removes by prefix", writing(remove_by_prefix), REMOVED),
    ("makes tables anew", {"create_schema": MemoryStorage.__init__}, TABLES),
    ("checks, then writes", writing(check_then_write), WRITERS),
    ("loses updates", writing(check_then_write), AT_ONCE),
    ("writes entries later", writing(write_entries_later), AT_ONCE),
    ("reads entries first", {"read": read_entries_first}, AT_ONCE),
    ("leaves out the first", paging(lambda page: page[1:]), RANGE),
    ("leaves out the last", paging(lambda page: page[:-1]), RANGE),
    ("orders places as texts", paging(lambda page: sorted(page, key=lambda entry: str(entry.place))), RANGE),
    ("orders backwards", paging(lambda page: page[::-1]), RANGE),
    ("begins at part 0", {"read": lambda s, id, start, stop: s.read(id, (start[0], 0), stop)}, RANGE),
    ("begins after the start", {"read": lambda s, id, start, stop: s.read(id, (start[0], start[1] + 1), stop)}, RANGE),
    ("ends after the stop", {"read": lambda s, id, start, stop: s.read(id, start, stop + 1)}, RANGE),
    ("reads the log alone", {"read": lambda s, id, start, stop: s.read(id, max(start, (0, 0)), stop)}, RANGE),
    ("reads one at a time", paging(lambda page: page[:1]), PAGE),
    ("reads all at once", {}, PAGE),
    ("strips data", paging(lambda page: [entry._replace(data=entry.data.strip()) for entry in page]), ENTRIES),
    ("reads bytearrays", paging(lambda page: [Entry._make((*entry[:4], bytearray(entry.data))) for entry in page]), ENTRIES),
    ("writes JSON anew", paging(lambda page: [entry._replace(about=json.dumps(json.loads(entry.about))) for entry in page]), ENTRIES),
    ("refuses what is large", writing(refuse_large), SIZES),
    ("keeps the first part", keeping(lambda new, entries: [entry for entry in entries if not entry.part]), PARTS),
    ("keeps to itself", {"another": Broken}, HANDLES),
    ("is due after its time", {"due": lambda s, now, limit: [record for record in s.due(now, limit) if record.due < now]}, DUE),
    ("is due though parked", {"due": lambda s, now, limit: [*s.due(now, limit), *(record for record in s.find("", 9) if record.due is None)]}, DUE),
    ("takes more than due", {"due": lambda s, now, limit: s.due(now, limit + 1)}, DUE),
    ("orders what is due by id", {"due": lambda s, now, limit: sorted(s.due(now, limit))}, DUE),
    ("limits, then orders", {"due": lambda s, now, limit: sorted(sorted(s.due(now, 99))[:limit], key=lambda record: record.due)}, DUE),
    ("orders as people do", {"find": lambda s, *of: sorted(s.find(*of), key=lambda record: record.id.lower())}, ORDER),
    ("begins with the id", {"find": lambda s, after, limit, *only: [record for record in s.find("", 99, *only) if record.id >= after][:limit]}, ORDER),
    ("finds one too many", {"find": lambda s, after, limit, *only: s.find(after, limit + 1, *only)}, ORDER),
    ("limits, then selects", {"find": lambda s, after, limit, *only: [record for record in s.find(after, limit) if record in s.find("", 99, *only)]}, ONLY),
    ("finds any status", {"find": lambda s, after, limit, status, *only: s.find(after, limit, None, *only)}, ONLY),
    ("finds any workflow", {"find": lambda s, after, limit, status, workflow, before: s.find(after, limit, status, workflow or None, before)}, ONLY),
    ("finds what is too new", {"find": lambda s, after, limit, status, workflow, before: s.find(after, limit, status, workflow)}, ONLY),
    ("finds what is older", {"find": lambda s, *of: [record for record in s.find(*of) if not of[4] or record.changed < of[4]]}, ONLY),
    ("finds what was running", {"find": lambda s, after, limit, status, *only: s.find(after, limit, None if status == "running" else status, *only)}, FOLLOW),
]  # fmt: skip


@pytest.mark.parametrize(("holes", "test"), [case[1:] for case in HOLES], ids=[case[0] for case in HOLES])
def test_a_journal_with_a_hole_fails_the_test_that_names_it(holes: dict[str, Any], test: str) -> None:
    with pytest.raises((AssertionError, StorageError, ValueError)):
        run(MethodTests, test, lambda: Broken(**holes))


@pytest.mark.parametrize("test", [name for name in dir(MethodTests) if name.startswith("test_")])
def test_each_test_is_failed_by_a_hole_and_passed_without(test: str) -> None:
    assert test in {case[2] for case in HOLES}
    run(MethodTests, test, Broken, page_size=math.inf)


@pytest.mark.parametrize(
    ("storage", "test"),
    [
        (Forgetful, "test_the_last_state_that_was_set_is_the_one_kept"),
        (Keeping, "test_deleting_is_no_error_twice_and_leaves_a_fresh_start"),
        (Sloppy, "test_every_value_comes_back_as_it_went_in"),
        (Sharing, "test_executions_do_not_see_each_other"),
    ],
)
def test_five_methods_that_break_a_promise_fail_the_test_that_names_it(storage: type, test: str) -> None:
    with pytest.raises((AssertionError, LookupError)):
        run(StorageTests, test, storage)
