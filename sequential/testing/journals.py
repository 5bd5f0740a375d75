"""What a Journal must do beyond the five methods: what its own four promise, and workflows run over them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from math import inf, nextafter
from os import urandom
from typing import Any, TypeVar

from ..blocking import Maybe, settle
from ..codec import encode_json
from ..record import INPUT, LAST, STATUSES, Changed, Entry, Record, nonce
from .around import JournalAround
from .conformance import FEW_POINTS, StorageSuite, StorageTests, echo, every_request
from .conformance import workflow as ordinary
from .crash import count_crash_points

T = TypeVar("T")
At = tuple[int, int]

LARGE = 4 << 20
"""Bytes that are enough for a test, where a store takes more at once."""

MANY = 20
"""Small entries that a page has at least: a log must not be read by a request for each."""

NOW = 1_700_000_000.0
RUN, LATER = "5eed5eed5eed5eed", "1a7e1a7e1a7e1a7e"

_TEXT = "größe.<locals>.e\u0301 \u2028 \U0001f600 \x7f\t '\"\\ %s {0} $1 :a ?"
_FIELDS: tuple[dict[str, Any], ...] = (
    *({"status": status} for status in sorted(STATUSES)),
    *({"workflow": name} for name in (_TEXT, "w" * 300, "")),
    *({"due": due, "changed": due or NOW} for due in (None, 0.0, 0.1 + 0.2, nextafter(NOW, inf), 1e12 + 1 / 3)),
    *({"step": step} for step in (1, 2**31 - 2)),
    *({"state": encode_json({"format": 1, "error": error})} for error in (_TEXT, "\0", "é" * 70_000)),
    {"run": LATER},
)
"""What a record may hold."""

_ABOUT = encode_json({"asked": f"tool {_TEXT}\0"})
_DATA = (b"", b"\0", bytes(range(256)), "é\u2028".encode(), b"\r\n'\"\\%s ", urandom(1 << 20))
_IDS = ["--", "-a", "0", "9", ":", "@", "A", "Aa", "B", "Z", "_", "a", "a-", "a.", "a0", "a:", "aA", "aa", "b", "~"]
"""In the order of their bytes, which is not that of any language."""


def entry(place: int, part: int = 0, run: str = RUN, about: str = "{}", data: bytes = b"null") -> Entry:
    """Return an entry."""
    return Entry(run, place, part, about, data)


def same(found: object, wanted: object) -> bool:
    """Whether they are the same to the last bit, types and all; what shows how large ones differ would never end."""
    return repr(found) == repr(wanted)


class JournalSuite(StorageSuite):
    """A record to begin with, and short ways to write and to read."""

    def record(self, id: str = "one", **fields: Any) -> Record:
        """Return a record under a new stamp."""
        return Record(id, RUN, nonce(), 0, "workflow", "running", NOW, NOW, '{"format":1}')._replace(**fields)

    def write(self, old: Record | None, new: Record | None, *entries: Entry, flush: bool = True) -> bool:
        """Write, and return whether it was."""
        written: bool = self.ask(partial(self.storage.write, flush=flush), old, new, entries)
        return written

    def put(self, old: Record | None, new: Record, *entries: Entry, flush: bool = True) -> Record:
        """Write what nothing speaks against, under a new stamp, and return the record."""
        new = new._replace(stamp=nonce())
        assert self.write(old, new, *entries, flush=flush) is True
        return new

    def begin(self, id: str, entries: list[Entry]) -> Any:
        """Create an execution, in as many writes as it takes."""
        return self.ask(self.storage.update, id, None, lambda *_: (self.record(id), entries))

    def read(self, id: str = "one", start: At = (-(2**31), 0), stop: int = LAST) -> tuple[Record | None, list[Entry]]:
        """Read a record, without the store's own handle, and all entries of a range, page by page."""
        record, page = self.ask(self.storage.read, id, start, stop)
        found = list(page)
        while page:
            assert page[0][1:3] >= start, f"a page from {start} on begins before it"
            start = page[-1].place, page[-1].part + 1
            page = self.ask(self.storage.read, id, start, stop)[1]
            found += page
        return record and record._replace(version=None), found

    def due(self, now: float = 2e12, limit: int = 99) -> list[Record]:
        """List what is due, without the store's own handles."""
        return [record._replace(version=None) for record in self.ask(self.storage.due, now, limit)]

    def find(self, after: str = "", limit: int = 99, *only: Any) -> list[Record]:
        """List records, without the store's own handles."""
        return [record._replace(version=None) for record in self.ask(self.storage.find, after, limit, *only)]

    def handles(self) -> list[Any]:
        """Return two handles on the same data."""
        return [self.storage, self.ask(self.another, self.storage)]


class WriteTests(JournalSuite):
    """Writing: if the stamp is right, and then all of it."""

    writers = 32
    """How many write at the same time."""

    rounds = 10
    """How often they do: fewer where each request takes its time."""

    def test_a_record_and_its_entries_are_written_together(self) -> None:
        begun = self.put(None, self.record(), entry(INPUT), entry(0))
        assert self.read() == (begun, [entry(INPUT), entry(0)])
        stored = self.put(begun, begun._replace(step=2, status="failed", due=None), entry(1), entry(-5))
        assert self.read() == (stored, [entry(-5), entry(INPUT), entry(0), entry(1)])

    def test_a_write_that_waits_for_no_disk_counts_too(self) -> None:
        begun = self.put(None, self.record(), entry(0), flush=False)
        stored = self.put(begun, begun._replace(step=2), entry(1), flush=False)
        assert not self.write(begun, self.record(step=9), entry(2), flush=False)
        assert self.read() == (stored, [entry(0), entry(1)])

    def test_every_field_of_a_record_comes_back_exactly(self) -> None:
        stored = None
        for fields in _FIELDS:
            stored = self.put(stored, (stored or self.record())._replace(**fields))
            assert same(self.read()[0], stored), f"with {fields!r:.300}"
            assert same(self.due(), [stored] if stored.due is not None else []), f"with {fields!r:.300}"
            assert same(self.find(), [stored]), f"with {fields!r:.300}"
        longest = self.put(None, self.record("-.:@_~" + "aZ09" * 48 + "--"))
        assert self.read(longest.id) == (longest, [])

    def test_without_the_right_stamp_nothing_is_written(self) -> None:
        first = self.put(None, self.record(), entry(0))
        stored = self.put(first, first._replace(step=1), entry(1))
        foreign = self.put(None, self.record("foreign", due=None))
        absent = self.record("absent")
        entries = [entry(place, run=run, about='"new"') for place in (-3, 1, 2) for run in (RUN, LATER)]
        for old in (None, first, stored._replace(stamp=nonce()), stored._replace(stamp=foreign.stamp), absent):
            new = (old or stored)._replace(stamp=nonce(), step=9, status="failed", due=NOW - 9, workflow="other")
            assert not self.write(old, new, *entries)
            assert not self.write(old, new._replace(run=LATER), *entries)
            assert old is None or not self.write(old, None)
        assert (self.read(), self.read("absent")) == ((stored, [entry(0), entry(1)]), (None, []))
        assert (self.find(), self.due()) == ([foreign, stored], [stored])
        later, begun = self.put(stored, stored._replace(run=LATER)), self.put(None, absent)
        assert (self.read(), self.read("absent")) == ((later, []), (begun, []))

    def test_the_stamp_decides_whatever_the_version(self) -> None:
        stored = begun = self.put(None, self.record())
        version = self.ask(self.storage.read, "one")[0].version
        for step, known in enumerate((version, None, version)):  # the right one, none, one of before
            stored = self.put(stored._replace(version=known), stored._replace(version=known, step=step))
        assert not self.write(begun._replace(version=self.ask(self.storage.read, "one")[0].version), None)
        assert self.read() == (stored._replace(version=None), [])

    def test_an_entry_replaces_only_that_of_its_run_place_and_part(self) -> None:
        old = [entry(0), entry(0, 1), entry(0, 2), entry(1), entry(1, 1)]
        begun = self.put(None, self.record(), *old)
        replaced = entry(0, 1, about='"longer"', data=b"[1, 2]")
        stored = self.put(begun, begun, replaced, entry(0, 2, LATER), entry(2, 0, LATER))
        assert self.read() == (stored, [old[0], replaced, *old[2:]])

    def test_a_run_is_written_ahead_and_takes_the_place_of_the_one_before(self) -> None:
        old = [entry(place) for place in (-9, INPUT, 0, 1, 2)]
        begun = self.put(None, self.record(step=3), *old)
        ahead = self.put(begun, begun, entry(INPUT, run=LATER))
        assert self.read() == (ahead, old)
        later = self.put(ahead, ahead._replace(run=LATER, step=0), entry(-8, run=LATER))
        assert self.read() == (later, [entry(-8, run=LATER), entry(INPUT, run=LATER)])
        stored = self.put(later, later._replace(step=1), entry(0, run=LATER))
        assert self.read() == (stored, [entry(place, run=LATER) for place in (-8, INPUT, 0)])

    def test_of_what_was_removed_nothing_is_left(self) -> None:
        entries = [entry(place, part, run) for place in (-4, INPUT, 0) for part in (0, 1) for run in (RUN, LATER)]
        kept, removed = (self.put(None, self.record(id), *entries) for id in ("one:1", "one"))
        for run in (RUN, LATER):
            assert self.write(removed, None)
            assert (self.read(), self.find(), self.due()) == ((None, []), [kept], [kept])
            assert not self.write(removed, None)
            assert not self.write(removed, self.record(), entry(0))
            removed = self.put(None, self.record(run=run))
            assert self.read() == (removed, [])
        assert self.read("one:1") == (kept, entries[::2])

    def test_making_the_tables_again_keeps_what_is_stored(self) -> None:
        stored = self.put(None, self.record(), entry(0))
        self.ask(self.storage.create_schema)
        assert self.read() == (stored, [entry(0)])

    def test_one_of_many_writers_wins(self) -> None:
        handles, stored = self.handles(), None
        for step in range(self.rounds):
            # Where there is one, a third of them removes it; where there is none, all create it.
            new = [None if stored and who % 3 == 0 else self.record(step=step) for who in range(self.writers)]
            log = [[entry(0, about=str(who))] if record else [] for who, record in enumerate(new)]
            writes = [partial(handles[who % 2].write, stored, new[who], log[who]) for who in range(self.writers)]
            found = self.together(*writes)
            assert Counter(map(repr, found)) == {"True": 1, "False": self.writers - 1}
            stored = new[found.index(True)]
            assert self.read() == (stored, log[found.index(True)])

    def test_writers_at_once_lose_nothing_and_no_reader_finds_a_record_without_its_entries(self) -> None:
        begun, handles, total = self.put(None, self.record()), self.handles(), 6 * self.rounds

        async def count(who: int) -> None:
            def append(record: Any, _: Any) -> Changed:
                return record._replace(step=record.step + 1), [entry(record.step, about=str(who))]

            known: Record | None = begun
            for _ in range(self.rounds):
                known = await _InThreads(handles[who % 2]).update("one", known, append)

        async def watch() -> None:
            record: Any = begun
            for _ in range(50 * total):  # more than it takes, unless a writer has failed
                start = max(0, record.step - MANY // 2)
                record, page = await _InThreads(handles[1]).read("one", (start, 0), LAST)
                places = [one.place for one in page]
                assert places[:MANY] == list(range(start, record.step))[:MANY], f"at step {record.step}: {places}"
                if record.step == total:
                    break

        assert self.together(watch, *(partial(count, who) for who in range(6))) == [None] * 7
        log = self.read()[1]
        assert [one.place for one in log] == list(range(total))
        assert Counter(one.about for one in log) == {str(who): self.rounds for who in range(6)}


class ReadTests(JournalSuite):
    """Reading: pages in order, whole, and no older than their record."""

    page_size: float = 2 << 20
    """Bytes of data that a page has at most; ``math.inf`` for a store that has all in memory anyway."""

    def test_a_page_begins_at_its_start_and_ends_before_its_stop(self) -> None:
        places = (-(2**31), -1_234_567_890, -2, INPUT, 0, 1, 9, 10, 11, 2**31 - 2)
        log = [entry(place, part) for place in places for part in range(3 if place == 1 else 1)]
        begun = self.put(None, self.record(), *log[::2])
        stored = self.put(begun, begun, *log[1::2], entry(5, 0, LATER))
        for start, stop in product([(5, 0), *(one[1:3] for one in log)], (*places, 5, LAST)):
            wanted = [one for one in log if start <= one[1:3] and one.place < stop]
            assert self.read("one", start, stop) == (stored, wanted)
        assert self.ask(self.storage.read, "one")[1] == []
        assert self.read("nobody") == (None, [])

    def test_a_page_is_of_moderate_size(self) -> None:
        for id, size, count, least in (("large", min(100_000, self.storage.part_size), 50, 1), ("small", 9, 300, MANY)):
            entries = [entry(place, data=b"%9d" % place * (size // 9)) for place in range(count)]
            self.begin(id, entries)
            page = self.ask(self.storage.read, id, (0, 0), LAST)[1]
            assert len(page) >= least
            assert sum(len(one.data) for one in page) <= self.page_size
            assert same(self.read(id)[1], entries)

    def test_every_entry_comes_back_exactly(self) -> None:
        entries = [entry(n, 0, RUN, _ABOUT, data[: self.storage.part_size]) for n, data in enumerate(_DATA)]
        self.begin("one", entries)
        for wanted, found in zip(entries, self.read()[1], strict=True):
            assert same(found, wanted)

    def test_an_execution_is_begun_in_as_many_writes_as_it_takes(self) -> None:
        size, most = min(self.storage.part_size, LARGE // 4), min(self.storage.write_size, LARGE)
        entries = [entry(place, data=b"%4d" % place * (size // 4)) for place in range(-2, 2 * most // size)]
        largest = self.put(None, self.record("largest"), *entries[: most // size])  # as much as one may have
        stored = self.begin("one", entries)
        assert same(self.read("largest"), (largest, entries[: most // size]))
        assert same(self.read(), (stored, entries))
        assert stored == self.record(stamp=stored.stamp)

    def test_a_large_value_is_kept_in_parts(self) -> None:
        large = [urandom(min(3 * self.storage.part_size + 1, LARGE) // 2).hex() for _ in range(2)]
        for step, value in enumerate((large[0], "small", large[1])):
            self.ask(self.storage.set_result, "one", step, value)
        for first in (large[0], "shorter"):
            for step, value in enumerate((first, "small", large[1])):
                assert same(self.ask(self.storage.get_result, "one", step), value)
            self.ask(self.storage.set_result, "one", 0, "shorter")
        data = b"".join(one.data for one in self.read("one", (2, 0))[1])
        assert same(data, self.storage.codec.dumps(large[1]))

    def test_another_handle_sees_all_that_this_one_does(self) -> None:
        handles, stored = self.handles(), None
        for step in range(4):
            new = self.put(stored, self.record(step=step), entry(step))
            self.storage = handles[(step + 1) % 2]
            assert self.read() == (new, [entry(place) for place in range(step + 1)])
            assert (self.find(), self.due()) == ([new], [new])
            assert not self.write(stored, self.record(step=9), entry(step))
            stored = new


class ListTests(JournalSuite):
    """Listing: what is due, and what there is."""

    def test_what_is_due_comes_by_time(self) -> None:
        times = {"d": NOW, "a": NOW + 0.5, "c": NOW - 5, "b": 0.0, "e": None, "f": NOW + 900}
        made = {id: self.put(None, self.record(id, due=due), entry(0)) for id, due in times.items()}
        order = [made[id] for id in "bcdaf"]
        assert self.due() == order
        for count, last in enumerate(order):
            assert self.due(limit=count + 1) == self.due(last.due or 0) == order[: count + 1]
            assert self.due((last.due or 0) - 3e-7) == order[:count]  # about the last bit of a time

    def test_ids_come_in_the_order_of_their_bytes(self) -> None:
        made = {id: self.put(None, self.record(id), entry(0)) for id in (_IDS[::2] + _IDS[1::2])}
        for after, limit in product(("", "A-", *_IDS), (1, 4, 99)):
            assert self.find(after, limit) == [made[id] for id in _IDS if id > after][:limit]

    def test_only_what_is_asked_for_is_found(self) -> None:
        for number in range(16):
            fields = {"status": ("running", "failed")[number % 2], "workflow": "uvw"[number % 3]}
            self.put(None, self.record(f"id-{number:02}", **fields, changed=NOW + number % 5))
        befores = (None, NOW + 2, nextafter(NOW + 2, -inf))
        for status, workflow, before in product((None, "failed", "stuck"), (None, "v", ""), befores):
            wanted = [one for one in self.find() if status in {None, one.status} and workflow in {None, one.workflow}]
            wanted = [one for one in wanted if before is None or one.changed <= before]
            assert self.find("", 99, status, workflow, before) == wanted
            assert self.find("id-03", 2, status, workflow, before) == [one for one in wanted if one.id > "id-03"][:2]

    def test_lists_follow_every_write(self) -> None:
        stored = None
        for fields in ({"status": "failed", "due": None}, {"workflow": "v"}, {"due": NOW - 9}, {"changed": NOW + 9}):
            stored = self.put(stored, (stored or self.record())._replace(**fields))
            for before, status, workflow in product((NOW, NOW + 9), ("running", "failed"), ("workflow", "v")):
                is_it = (status, workflow) == (stored.status, stored.workflow) and stored.changed <= before
                assert self.find("", 9, status, workflow, before) == [stored] * is_it
            assert self.due(NOW) == [stored] * (stored.due is not None)


class JournalTests(StorageTests, WriteTests, ReadTests, ListTests):
    """All that a Journal must do, its five methods included, and workflows run over it."""

    def test_a_workflow_survives_death_at_any_point_of_a_journal(self) -> None:
        points = self.runner.run(count_crash_points(ordinary, {"of": self.steps}, echo, self.storage))
        assert points > FEW_POINTS * self.steps / 3

    def test_every_request_survives_death_at_any_point(self) -> None:
        points = self.runner.run(count_crash_points(every_request, {"round": 1}, echo, self.storage, {"go": [None]}))
        assert points > FEW_POINTS


class _InThreads(JournalAround):
    """A Journal that makes each call in a thread, so that those of a plain one run at the same time, too."""

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:  # noqa: ARG002
        return await settle(await asyncio.to_thread(method, *arguments, **options))
