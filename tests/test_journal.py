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

from sequential import Damaged, Fenced, NotEncodable
from sequential.blocking import Maybe, complete, settle
from sequential.journal import Log
from sequential.record import INPUT, LAST, MAKING, Changed, Entry, Record, Since, State, state_text
from sequential.stores.memory import MemoryStorage
from sequential.testing import JournalAround

T = TypeVar("T")
FIRST = Record("id", "run", "first", 0, "", "running", 5.0, 1.0, state_text(State("me")))


class Away(Exception):
    """The store cannot be reached."""


class Death(BaseException):
    """The process is killed."""


class Faulty(JournalAround):
    """A Journal in memory, with small parts, to whose writes happens what was planned.

    Args:
        plan: A letter for each write.  ``.``: nothing.  ``b``: it fails before it takes place.  ``a``: it takes place,
            and its answer is lost.  ``t``: likewise, and another write lies on top of it.  ``c``: another write comes
            first.  ``d``: the process dies before it.  ``D``: the process dies after it.
    """

    def __init__(self, plan: str = "") -> None:
        super().__init__(MemoryStorage())
        self.part_size, self.write_size = 10, 25
        self.plan = list(plan)
        self.writes = list[tuple[Record | None, Record | None, list[Entry]]]()
        self.flushes = list[bool]()
        self.others = 0

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        fault = self.plan.pop(0) if what == "write" and self.plan else "."
        if fault == "d":
            raise Death
        if fault == "b":
            raise Away("before")
        if fault == "c":
            self.write_another()
        done = await settle(method(*arguments, **options))
        if what == "write" and done:
            old, new, entries = arguments
            self.writes.append((old, new, list(entries)))
            self.flushes.append(options["flush"])
        if fault == "t":
            self.write_another()
        if fault == "D":
            raise Death
        if fault in {"a", "t"}:
            raise Away("after")
        return done

    def write_another(self) -> None:
        """Write as another process does, an entry of its own."""
        self.others += 1
        record, _ = self.inner.read("id")  # type: ignore[misc]
        step = record.step if record else 0
        new = (record or FIRST)._replace(stamp=f"other {self.others}", step=step + 1)
        assert self.inner.write(record, new, [Entry(new.run, step, 0, '{"by":"another"}', b"")])

    def everything(self) -> tuple[Record | None, list[Entry]]:
        return complete(settle(self.inner.read("id", (-LAST, 0), LAST)))


def entry(place: int, data: bytes = b"", about: str = '{"by":"me"}', run: str = "run") -> Entry:
    return Entry(run, place, 0, about, data)


def append(*data: bytes) -> Callable[[Record | None, Since], Changed]:
    """Return a change that appends entries once, by a mark of its own."""

    def change(record: Record | None, since: Since) -> Changed:
        record = FIRST if record is None or record.status == "making" else record
        if record.workflow == "mine":
            return None
        step = record.step
        return record._replace(workflow="mine", step=step + len(data)), [entry(step + i, d) for i, d in enumerate(data)]

    return change


def kept(record: Record = FIRST, *entries: Entry, plan: str = "") -> Faulty:
    """Return a Journal that holds a record and entries."""
    journal = Faulty()
    complete(journal.update("id", None, lambda stored, _: None if stored else (record, entries)))
    journal.plan = list(plan)
    journal.writes.clear()
    return journal


def taken(journal: JournalAround, *places: int) -> list[tuple[str, bytes]]:
    """Read entries as replay does."""
    record, page = complete(journal.read("id", (min(places, default=0), 0), LAST))
    assert record is not None
    log = Log(journal, record, page, LAST)

    async def take(place: int) -> tuple[str, bytes]:
        about, box = await log.take(place)
        return about, box.pop()

    return [complete(take(place)) for place in places]


# Changes.


@pytest.mark.parametrize("is_new", [True, False])
def test_a_change_is_made_once_whatever_becomes_of_its_writes(is_new: bool) -> None:
    for plan in map("".join, product(".batc", repeat=4)):
        journal = Faulty(plan) if is_new else kept(plan=plan)
        update = journal.update("id", journal.everything()[0], append(b"x"))
        is_away = re.match("c*bc*b", plan) is not None
        if is_away:
            with pytest.raises(Away, match="before"):
                complete(update)
        else:
            assert complete(update) == journal.everything()[0]
        record, entries = journal.everything()
        written = [each for each in entries if "me" in each.about]
        assert len(written) == (not is_away)
        assert (record.step if record else 0) == len(entries) == len(written) + journal.others
        assert [each.place for each in entries] == list(range(len(entries)))


def test_a_write_gets_a_stamp_of_its_own_and_is_known_by_it() -> None:
    asked = list[Record | None]()

    def change(record: Record | None, since: Since) -> Changed:
        asked.append(record)
        return (record or FIRST)._replace(workflow="more"), ()

    journal = Faulty(".a.")
    records = [complete(journal.update("id", journal.everything()[0], change)) for _ in range(3)]
    assert len({record and record.stamp for record in records} | {"first"}) == 4
    assert asked == [None, *records[:2]]  # once each, though an answer was lost
    assert records[-1] == journal.everything()[0]


@pytest.mark.parametrize(("plan", "is_new"), [("b", True), ("bb", True), ("b", False), ("bc", False), ("cb", False)])
def test_what_raises_or_wishes_nothing_is_asked_again_only_of_what_is_there(plan: str, is_new: bool) -> None:
    journal, asked = Faulty(plan) if is_new else kept(plan=plan), list[tuple[Record | None, bool]]()

    def change(record: Record | None, since: Since) -> Changed:
        asked.append((record, since is not None))
        if len(asked) > len(plan):
            raise Fenced("id")
        return (record or FIRST)._replace(workflow="mine"), ()

    known = journal.everything()[0]
    with pytest.raises(Fenced):
        complete(journal.update("id", known, change))
    assert asked[-1][0] == journal.everything()[0]
    if not is_new:  # who creates knows of no log that could tell
        assert [doubt for _, doubt in asked] == ["b" in plan[:turn] for turn in range(len(plan) + 1)]


def test_after_a_lost_answer_a_change_gets_what_the_log_has_got_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sequential.stores.memory._PAGE", 2)
    known = FIRST._replace(step=2)
    journal = kept(known, *map(entry, range(2)), plan="t")
    known = journal.everything()[0] or known
    seen = list[list[int] | None]()

    def change(record: Record | None, since: Since) -> Changed:
        seen.append(None if since is None else [each.place for each in since])
        if since is not None:
            return None
        assert record is not None
        return record._replace(step=8), [entry(place, b"12345678901" if place == 4 else b"") for place in range(2, 8)]

    record = complete(journal.update("id", known, change))
    assert record is not None
    assert (record.step, record.stamp) == (9, "other 1")
    assert seen[0] is None
    assert [*dict.fromkeys(seen[1] or [])] == [*range(2, 9)]


def test_after_a_lost_answer_what_is_gone_is_told_apart_from_what_never_was() -> None:
    journal, seen = kept(plan="a"), list[tuple[Record | None, Since]]()

    def change(record: Record | None, since: Since) -> Changed:
        seen.append((record, since))
        return (None, ()) if record is not None else None

    known = journal.everything()[0]
    assert complete(journal.update("id", known, change)) is None
    assert seen == [(known, None), (None, [])]
    assert journal.everything() == (None, [])


class Dark(Faulty):
    """A Journal that cannot be read."""

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        if what == "read":
            raise ConnectionError
        return await super().around(what, method, *arguments, **options)


@pytest.mark.parametrize(("plan", "error"), [("b", Away), ("a", Away), ("c", ConnectionError)])
def test_when_nothing_can_be_read_the_first_error_is_told(plan: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        complete(Dark(plan).update("id", None, append()))


def test_a_stop_is_no_lost_answer() -> None:
    journal = Faulty("D")
    with pytest.raises(Death):
        complete(journal.update("id", None, append(b"x")))
    assert len(journal.writes) == 1


# Values in parts.


@given(st.lists(st.binary(max_size=70), max_size=6), st.booleans())
def test_a_large_value_is_in_parts_that_count_only_with_the_last(data: list[bytes], is_new: bool) -> None:
    journal = Faulty() if is_new else kept(FIRST._replace(step=3), entry(0), entry(1), entry(2))
    known = journal.everything()[0]
    first = 0 if is_new else 3
    record = complete(journal.update("id", known, append(*data), flush=False))
    assert record is not None
    assert record.step == first + len(data)
    *before, (_, last, _) = journal.writes
    assert last == record
    for old, new, _ in before:
        assert new is not None
        assert old is None or new.stamp != old.stamp
        expected = known or record._replace(status="making", due=record.changed + MAKING)
        assert new == expected._replace(stamp=new.stamp)
    for _, _, entries in journal.writes:
        assert all(len(each.data) <= journal.part_size for each in entries)
        assert sum(len(each.data) for each in entries) <= journal.write_size
    assert not journal.flushes[-1]
    assert all(journal.flushes[:-1])
    assert taken(journal, *range(first, record.step)) == [('{"by":"me"}', each) for each in data]


@pytest.mark.parametrize("about", ["{}", '{"asked":"tool a.b","fingerprint":7}', '{"x":[{"parts":[1,"]"]}]}'])
def test_what_an_entry_is_about_comes_back_whole(about: str) -> None:
    journal = kept(FIRST, entry(0, b"x" * 55, about), entry(1, b"", about))
    assert taken(journal, 0, 1) == [(about, b"x" * 55), (about, b"")]


LARGE = random.Random(1).randbytes(95)  # ten parts, in five writes


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("plan", ["d", ".d", "..d", "...d", "....d", "D", ".D", "..D", "...D"])
def test_a_death_between_parts_leaves_nothing_that_counts(plan: str, is_new: bool) -> None:
    for sizes in ((3,), (95,), (40, 7), (200,)):
        journal = Faulty(plan) if is_new else kept(FIRST._replace(step=2), entry(0), entry(1), plan=plan)
        before, first = journal.everything()[0], 0 if is_new else 2
        with pytest.raises(Death):
            complete(journal.update("id", before, append(LARGE)))
        record, _ = journal.everything()
        if before is not None:
            assert record is not None
            assert record == before._replace(stamp=record.stamp)
            assert taken(journal, 0, 1) == [('{"by":"me"}', b"")] * 2
        else:
            assert record is None or record.status == "making"
        values = [random.Random(size).randbytes(size) for size in sizes]
        assert complete(journal.update("id", record, append(*values))) is not None
        assert [data for _, data in taken(journal, *range(first, first + len(values)))] == values


@pytest.mark.parametrize("fault", "batc")
@pytest.mark.parametrize("turn", range(5))
def test_a_lost_answer_to_a_part_doubles_nothing(fault: str, turn: int) -> None:
    journal = kept(plan="." * turn + fault)
    complete(journal.update("id", journal.everything()[0], append(LARGE)))
    record, _ = journal.everything()
    assert record is not None
    assert record.step == 1 + journal.others
    mine = journal.others if fault == "c" or turn < 4 else 0
    assert taken(journal, mine) == [('{"by":"me"}', LARGE)]


def test_parts_of_two_processes_are_never_mixed() -> None:
    journal, values = kept(), [random.Random(n).randbytes(95) for n in range(2)]
    known, _ = journal.everything()
    journal.plan = [*"..d"]
    with pytest.raises(Death):
        complete(journal.update("id", known, append(values[0])))
    journal.plan = [*".c"]  # the same step meanwhile, by another
    complete(journal.update("id", known, append(values[1])))
    assert taken(journal, 0, 1) == [('{"by":"another"}', b""), ('{"by":"me"}', values[1])]


# Reading.


class Altered(JournalAround):
    """A Journal some pages of which are not what is stored.

    Args:
        inner: Where it is stored.
        alter: What becomes of an entry.
        which: Which of the pages, counted from 0.
    """

    def __init__(self, inner: JournalAround, alter: Callable[[Entry], Entry | None], which: Container[int]) -> None:
        super().__init__(inner.inner)
        self.alter, self.which, self.pages = alter, which, 0

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        found: Any = await settle(method(*arguments, **options))
        if what == "read" and self.pages in self.which:
            found = found[0], [each for entry in found[1] if (each := self.alter(entry)) is not None]
        self.pages += 1
        return found  # type: ignore[no-any-return]


def without(*at: tuple[int, int]) -> Callable[[Entry], Entry | None]:
    return lambda entry: None if entry[1:3] in at else entry


def with_about(about: str, place: int, part: int) -> Callable[[Entry], Entry | None]:
    return lambda entry: entry._replace(about=about) if entry[1:3] == (place, part) else entry


DAMAGE = {
    "no input": (INPUT, without((INPUT, 0))),
    "no entry": (0, without((0, 0))),
    "no entry at the end": (3, without((3, 0))),
    "nothing from a place on": (2, lambda entry: entry if entry.place < 2 else None),
    "no first part": (1, without((1, 0))),
    "no part within": (1, without((1, 2))),
    "no last part": (1, without((1, 3))),
    "a part of another value": (1, with_about('"0123456789abcdef"', 1, 2)),
    "a part that says nothing": (1, with_about("", 1, 1)),
    "a first part that cannot be read": (1, with_about('{"parts":[4,"x', 1, 0)),
    "a first part that is no JSON": (1, with_about('{"parts":[4,x],"by":"me"}', 1, 0)),
    "a signal's payload": (-9, without((-9, 0))),
}


@pytest.mark.parametrize(("place", "alter"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("page", [1, 2, 1000])
def test_what_is_missing_or_does_not_fit_is_damage_if_it_is_so_at_a_second_look(
    place: int, alter: Callable[[Entry], Entry | None], page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sequential.stores.memory._PAGE", page)
    stored = [b"payload", b"input", b"zero", LARGE[:35], b"two", b"three"]
    places = (-9, INPUT, 0, 1, 2, 3)
    journal = kept(FIRST._replace(step=4), *map(entry, places, stored))
    for once in range(12):
        assert [data for _, data in taken(Altered(journal, alter, [once]), *places)] == stored
    with pytest.raises(Damaged) as caught:
        taken(Altered(journal, alter, range(99)), *places)
    assert (caught.value.id, caught.value.place) == ("id", place)


@pytest.mark.parametrize("then", [None, FIRST._replace(run="another")])
def test_a_run_that_has_ended_meanwhile_is_not_read_on(then: Record | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sequential.stores.memory._PAGE", 1)
    journal = kept(FIRST._replace(step=2), entry(0), entry(1))
    record, page = complete(journal.read("id", (0, 0), 2))
    assert record is not None
    log = Log(journal, record, page, 2)
    assert complete(log.take(0))[0] == '{"by":"me"}'
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
    ask(journal.set_result("id", 1, [2]))
    ask(journal.set_result("id", 1, value))
    ask(journal.set_result("id", 1, [3]))
    ask(journal.set("id", {"step": 2}))
    assert ask(journal.get("id")) == {"step": 2}
    assert [ask(journal.get_result("id", step)) for step in range(3)] == [value, [3], None]
    ask(journal.delete("id"))
    ask(journal.delete("id"))
    assert ask(journal.get("id")) is None
    assert ask(journal.get_result("id", 1)) is None


@pytest.mark.parametrize("use", [lambda j: j.set("id", {"step": 1}), lambda j: j.set_result("id", 0, 1), lambda j: j.delete("id")])  # fmt: skip
def test_the_five_methods_raise_what_the_store_raises_twice(use: Callable[[Faulty], Maybe[None]]) -> None:
    journal = kept(plan="bb")
    before = journal.everything()
    with pytest.raises(Away):
        ask(use(journal))
    assert journal.everything() == before


def test_a_result_that_is_not_json_is_refused_before_anything_is_read() -> None:
    with pytest.raises((ValueError, NotEncodable)):
        Dark().set_result("id", 0, {1, 2})


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("plan", ["D", ".D", "...D"])
def test_a_death_within_set_result_is_seen_by_nobody(plan: str, is_new: bool) -> None:
    journal = Faulty()
    if not is_new:
        ask(journal.set_result("id", 0, "zero"))
        ask(journal.set("id", {"step": 1}))
    place, before = (0, None) if is_new else (1, {"step": 1})
    journal.plan = [*plan]
    with pytest.raises(Death):
        ask(journal.set_result("id", place, "x" * 93))
    assert ask(journal.get("id")) == before
    ask(journal.set_result("id", place, "again"))
    assert ask(journal.get_result("id", place)) == "again"
    assert is_new or ask(journal.get_result("id", 0)) == "zero"


class Discarded(list[Any]):
    def append(self, _: Any) -> None:
        """Keep nothing."""


def test_a_large_result_is_in_memory_three_times_at_most() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    size, journal = 20_000_000, Faulty()
    journal.part_size, journal.write_size = 1 << 20, 4 << 20

    def peak(work: Callable[[], Any]) -> int:
        tracemalloc.start()
        try:
            work()
            return int(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    journal.writes = Discarded()
    assert peak(lambda: ask(journal.set_result("id", 0, "x" * size))) < 3 * size + size // 2 + size  # as stored, too
    assert peak(lambda: ask(journal.get_result("id", 0))) < 3 * size + size // 2
    assert ask(journal.get_result("id", 0)) == "x" * size
