"""How anything is changed: one conditional write, asked again for; and how a log is read that may be in parts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Container
from itertools import product
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequential import Damaged, Fenced
from sequential.blocking import Maybe, complete, settle
from sequential.journal import Log
from sequential.record import INPUT, LAST, MAKING, Changed, Entry, Record, Since, State, state_text
from sequential.stores.memory import MemoryStorage
from sequential.testing import JournalAround

T = TypeVar("T")
Alter = Callable[[Entry], Entry | None]
FIRST = Record("id", "run", "first", 0, "", "running", 5.0, 1.0, state_text(State("me")))
LARGE = random.Random(1).randbytes(95)  # ten parts, in five writes


class Away(Exception):
    """The store cannot be reached."""


class Death(BaseException):
    """The process is killed."""


class Faulty(JournalAround):
    """A Journal in memory, with small parts, to which happens what was planned.

    Args:
        plan: A letter for each write.  ``.``: nothing.  ``b``: it fails before it takes place.  ``a``: it takes place,
            and its answer is lost.  ``t``: likewise, and another write lies on top of it.  ``c``: another write comes
            first.  ``d``: the process dies before it.  ``D``: the process dies after it.
    """

    def __init__(self, plan: str = "") -> None:
        super().__init__(MemoryStorage())
        self.part_size, self.write_size = 10, 25
        self.plan, self.others = list(plan), 0
        self.writes = list[tuple[Record | None, Record | None, list[Entry], bool]]()
        self.is_dark = False
        """Whether nothing can be read."""
        self.keep()

    def keep(self, alter: Alter = lambda entry: entry, which: Container[int] = ()) -> None:
        """Alter some of the pages that are read from now on."""
        self.alter, self.which, self.pages = alter, which, 0

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        fault = self.plan.pop(0) if what == "write" and self.plan else "."
        if fault == "d":
            raise Death
        if fault == "b" or (what == "read" and self.is_dark):
            raise Away(what)
        if fault == "c":
            self.write_another()
        done: Any = await settle(method(*arguments, **options))
        if what == "read":
            done = done[0], [altered for entry in done[1] if (altered := self.altered(entry)) is not None]
            self.pages += 1
        elif done:
            self.writes.append((*arguments, options["flush"]))
        if fault == "t":
            self.write_another()
        if fault == "D":
            raise Death
        if fault in {"a", "t"}:
            raise Away(what)
        return done  # type: ignore[no-any-return]

    def altered(self, entry: Entry) -> Entry | None:
        return self.alter(entry) if self.pages in self.which else entry

    def write_another(self) -> None:
        """Write as another process does, an entry of its own."""
        self.others += 1
        record, _ = self.everything()
        step = record.step if record else 0
        new = (record or FIRST)._replace(stamp=f"other {self.others}", step=step + 1)
        assert complete(settle(self.inner.write(record, new, [Entry(new.run, step, 0, '{"by":"another"}', b"")])))

    def everything(self) -> tuple[Record | None, list[Entry]]:
        return complete(settle(self.inner.read("id", (-LAST, 0), LAST)))

    @property
    def record(self) -> Record:
        record, _ = self.everything()
        assert record is not None
        return record


def entry(place: int, data: bytes = b"", about: str = '{"by":"me"}', run: str = "run") -> Entry:
    return Entry(run, place, 0, about, data)


def append(*data: bytes) -> Callable[[Record | None, Since], Changed]:
    """Return a change that appends entries once, by a mark of its own."""

    def change(record: Record | None, since: Since) -> Changed:
        record = FIRST if record is None or record.status == "making" else record
        new = record._replace(workflow="mine", step=record.step + len(data))
        entries = [entry(place, each) for place, each in enumerate(data, record.step)]
        return None if record.workflow == "mine" else (new, entries)

    return change


def kept(plan: str, *entries: Entry, step: int = 0) -> Faulty:
    """Return a Journal that holds a record and entries."""
    journal, record = Faulty(), FIRST._replace(step=step)
    complete(journal.update("id", None, lambda stored, _: None if stored else (record, entries)))
    journal.plan = list(plan)
    journal.writes.clear()
    return journal


def taken(journal: Faulty, *places: int) -> list[bytes]:
    """Read entries as replay does."""
    record, page = complete(journal.read("id", (min(places, default=0), 0), LAST))
    assert record is not None
    log = Log(journal, record, page, LAST)
    found = [complete(log.take(place)) for place in places]
    assert {about for about, _ in found} <= {'{"by":"me"}', '{"by":"another"}'}
    return [data for _, (data,) in found]


# Changes.


@pytest.mark.parametrize("is_new", [True, False])
def test_a_change_is_made_once_whatever_becomes_of_its_writes(is_new: bool) -> None:
    for plan in map("".join, product(".batc", repeat=4)):
        journal = Faulty(plan) if is_new else kept(plan)
        known, asked = journal.everything()[0], list[tuple[Record | None, bool]]()

        def change(record: Record | None, since: Since, asked: Any = asked) -> Changed:
            asked.append((record, since is not None))
            return append(b"x")(record, since)

        is_away = re.match("c*bc*b", plan) is not None
        if is_away:
            with pytest.raises(Away, match="write"):
                complete(journal.update("id", known, change))
        else:
            assert complete(journal.update("id", known, change)) == journal.everything()[0]
        record, entries = journal.everything()
        written = [each for each in entries if "me" in each.about]
        assert len(written) == (not is_away)
        assert (record.step if record else 0) == len(entries) == len(written) + journal.others
        assert [each.place for each in entries] == list(range(len(entries)))
        assert len({new and new.stamp for _, new, *_ in journal.writes} | {"first"}) == len(journal.writes) + 1
        if not is_new:  # who creates knows of no log that could tell
            assert [doubt for _, doubt in asked] == [bool({*"bt"} & {*plan[:turn]}) for turn in range(len(asked))]


def test_after_a_lost_answer_a_change_gets_what_the_log_has_got_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sequential.stores.memory._PAGE", 2)
    journal, seen = kept("t", entry(0), entry(1), step=2), list[list[int] | None]()

    def change(record: Record | None, since: Since) -> Changed:
        seen.append(None if since is None else [each.place for each in since])
        return append(b"", b"", b"1234567890x", b"", b"")(record, since)

    assert complete(journal.update("id", journal.record, change)) == journal.record
    assert seen[0] is None
    assert [*dict.fromkeys(seen[1] or [])] == [*range(2, 8)]


def test_after_a_lost_answer_what_is_gone_is_told_apart_from_what_never_was() -> None:
    journal, seen = kept("a"), list[tuple[Record | None, Since]]()

    def change(record: Record | None, since: Since) -> Changed:
        seen.append((record, since))
        return (None, ()) if record is not None else None

    known = journal.record
    assert complete(journal.update("id", known, change)) is None
    assert seen == [(known, None), (None, [])]
    assert journal.everything() == (None, [])


@pytest.mark.parametrize(("plan", "error"), [("b", "write"), ("a", "write"), ("c", "read")])
def test_when_nothing_can_be_read_the_first_error_is_told(plan: str, error: str) -> None:
    journal = Faulty(plan)
    journal.is_dark = True
    with pytest.raises(Away, match=error):
        complete(journal.update("id", None, append()))


# Values in parts.


@given(st.lists(st.binary(max_size=70), max_size=6), st.booleans())
def test_a_large_value_is_in_parts_that_count_only_with_the_last(data: list[bytes], is_new: bool) -> None:
    first = 0 if is_new else 2
    journal = Faulty() if is_new else kept("", entry(0), entry(1), step=first)
    known = journal.everything()[0]
    record = complete(journal.update("id", known, append(*data), flush=False))
    assert record is not None
    *before, (_, last, _, flush) = journal.writes
    assert (last, flush, last and last.step) == (record, False, first + len(data))
    for old, new, _, flush in before:
        assert flush
        assert new is not None
        assert old is None or new.stamp != old.stamp
        unchanged = known or record._replace(status="making", due=record.changed + MAKING)
        assert new == unchanged._replace(stamp=new.stamp)
    for _, _, entries, _ in journal.writes:
        assert all(len(each.data) <= journal.part_size for each in entries)
        assert sum(len(each.data) for each in entries) <= journal.write_size
    assert taken(journal, *range(first, record.step)) == data


@pytest.mark.parametrize("about", ["{}", '{"asked":"tool a.b","fingerprint":7}', '{"x":[{"parts":[1,"]"]}]}'])
def test_what_an_entry_is_about_comes_back_whole(about: str) -> None:
    journal = kept("", entry(0, LARGE, about))
    assert complete(Log(journal, journal.record, [], 1).take(0)) == (about, [LARGE])


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("plan", ["d", ".d", "..d", "...d", "....d", "D", ".D", "..D", "...D"])
def test_a_death_between_parts_leaves_nothing_that_counts(plan: str, is_new: bool) -> None:
    for sizes in ((3,), (95,), (40, 7), (200,)):
        first = 0 if is_new else 2
        journal = Faulty(plan) if is_new else kept(plan, entry(0), entry(1), step=first)
        before = journal.everything()[0]
        with pytest.raises(Death):
            complete(journal.update("id", before, append(LARGE)))
        record, _ = journal.everything()
        if before is None:
            assert record is None or record.status == "making"
        else:
            assert record == before._replace(stamp=journal.record.stamp)
            assert taken(journal, 0, 1) == [b"", b""]
        values = [random.Random(size).randbytes(size) for size in sizes]
        assert complete(journal.update("id", record, append(*values))) == journal.record
        assert taken(journal, *range(first, first + len(values))) == values


@pytest.mark.parametrize("fault", "batc")
@pytest.mark.parametrize("turn", range(5))
def test_whatever_becomes_of_a_part_nothing_is_doubled_or_mixed(fault: str, turn: int) -> None:
    journal = kept("." * turn + fault)
    complete(journal.update("id", journal.record, append(LARGE)))
    assert journal.record.step == 1 + journal.others
    assert taken(journal, *range(journal.record.step)) in ([LARGE], [b"", LARGE], [LARGE, b""])


# Reading.


def without(place: int, part: int = 0) -> tuple[int, Alter]:
    return place, lambda entry: None if entry[1:3] == (place, part) else entry


def with_about(about: str, place: int, part: int) -> tuple[int, Alter]:
    return place, lambda entry: entry._replace(about=about) if entry[1:3] == (place, part) else entry


DAMAGE = {
    "no input": without(INPUT),
    "no payload of a signal": without(-9),
    "no entry": without(0),
    "no entry at the end": without(3),
    "nothing from a place on": (2, lambda entry: entry if entry.place < 2 else None),
    "no first part": without(1),
    "no part within": without(1, 2),
    "no last part": without(1, 9),
    "a part of another value": with_about('"0123456789abcdef"', 1, 2),
    "a part that says nothing": with_about("", 1, 1),
    "a first part that cannot be read": with_about('{"parts":[10,"x', 1, 0),
    "a first part that is no JSON": with_about('{"parts":[10,x],"by":"me"}', 1, 0),
    "a first part without a number": with_about('{"parts":["10","x"],"by":"me"}', 1, 0),
}


@pytest.mark.parametrize(("place", "alter"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("page", [1, 2, 1000])
def test_what_is_missing_or_does_not_fit_is_damage_if_it_is_so_at_a_second_look(
    place: int, alter: Alter, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sequential.stores.memory._PAGE", page)
    stored = {-9: b"payload", INPUT: b"input", 0: b"zero", 1: LARGE, 2: b"two", 3: b"three"}
    journal = kept("", *map(entry, stored, stored.values()), step=4)
    for once in range(20):
        journal.keep(alter, [once])
        assert taken(journal, *stored) == [*stored.values()]
    journal.keep(alter, range(99))
    with pytest.raises(Damaged) as caught:
        taken(journal, *stored)
    assert (caught.value.id, caught.value.place) == ("id", place)


@pytest.mark.parametrize("then", [None, FIRST._replace(run="another")])
def test_a_run_that_has_ended_meanwhile_is_not_read_on(then: Record | None) -> None:
    journal = kept("", entry(0), entry(1), step=2)
    record, page = complete(journal.read("id", (0, 0), 1))
    assert record is not None
    log = Log(journal, record, page, 2)
    assert complete(log.take(0)) == ('{"by":"me"}', [b""])
    complete(journal.write(record, then, [entry(1, b"another", run="another")] if then else []))
    with pytest.raises(Fenced) as caught:
        complete(log.take(1))
    assert caught.value.id == "id"


# The five methods over the four.


def ask(answer: Maybe[T]) -> T:
    return complete(settle(answer))


@pytest.mark.parametrize("plan", ["", *"abtc", ".a", ".b", "..c", "...a", "...b", "....t"])
def test_the_five_methods_keep_large_results_whatever_becomes_of_a_write(plan: str) -> None:
    journal, value = Faulty(plan), {"text": "x" * 80, "list": [1, None, "ü"]}
    assert ask(journal.get("id")) is None
    assert ask(journal.get_result("id", 0)) is None
    ask(journal.set_result("id", 0, value))
    ask(journal.set("id", {"step": 1}))
    for result in ([2], value, [3]):
        ask(journal.set_result("id", 1, result))
    ask(journal.set("id", {"step": 2}))
    assert ask(journal.get("id")) == {"step": 2}
    assert [ask(journal.get_result("id", step)) for step in range(3)] == [value, [3], None]
    ask(journal.delete("id"))
    ask(journal.delete("id"))
    assert ask(journal.get("id")) is None
    assert ask(journal.get_result("id", 1)) is None


@pytest.mark.parametrize("method", ["set", "set_result", "delete"])
def test_the_five_methods_raise_what_the_store_raises_twice(method: str) -> None:
    journal = kept("bb")
    before = journal.everything()
    arguments = {"set": ({"step": 1},), "set_result": (0, 1), "delete": ()}[method]
    with pytest.raises(Away):
        ask(getattr(journal, method)("id", *arguments))
    assert journal.everything() == before


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("plan", ["D", ".D", "...D"])
def test_a_death_within_set_result_is_seen_by_nobody(plan: str, is_new: bool) -> None:
    journal, place, before = Faulty(), 0, None
    if not is_new:
        ask(journal.set_result("id", 0, "zero"))
        ask(journal.set("id", before := {"step": 1}))
        place = 1
    journal.plan = [*plan]
    with pytest.raises(Death):
        ask(journal.set_result("id", place, "x" * 93))
    assert ask(journal.get("id")) == before
    ask(journal.set_result("id", place, "again"))
    assert [ask(journal.get_result("id", step)) for step in range(place + 1)] == ["zero", "again"][1 - place :]


def test_a_large_result_is_in_memory_three_times_at_most() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    size, journal = 20_000_000, MemoryStorage()
    journal.part_size, journal.write_size = 1 << 20, 4 << 20

    def peak(work: Callable[[], Any]) -> int:
        tracemalloc.start()
        try:
            work()
            return int(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    assert peak(lambda: ask(journal.set_result("id", 0, "x" * size))) < 4 * size  # one of them is in the store
    assert peak(lambda: ask(journal.get_result("id", 0))) < 3 * size
    assert ask(journal.get_result("id", 0)) == "x" * size
