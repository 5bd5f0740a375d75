"""Every transition of an execution, without a store: a table for each, and what holds in any order of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sequential import AlreadyEnded, Damaged, Fenced, FlowExecutor, Paused, again, save, sleep, tool, wait
from sequential.blocking import Maybe, settle
from sequential.errors import StorageError, UnknownExecution
from sequential.record import (
    ATTEMPTS,
    ENDED,
    FORMAT,
    GRACE,
    LONGEST_WAIT,
    PARKED,
    RESTING,
    STATUSES,
    Answers,
    Entry,
    Hold,
    Record,
    Signal,
    State,
    answered,
    begun_anew,
    cancelled,
    claimed,
    finished,
    is_holder,
    is_to_be_removed,
    marked,
    not_rung,
    parked,
    paused,
    released,
    renewed,
    rung,
    signalled,
    state_of,
    state_text,
    swept,
    unmarked,
)
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, JournalAround

NOW = 1_000_000.0
ME, YOU = Hold("id", "run", "me", "my process", 60.0), Hold("id", "run", "you", "your process", 60.0)
GO, MORE, STOP = Signal("go", -7, "n1"), Signal("go", -8, "n2"), Signal("stop", -9, "n3")
FREE = {"lease": 0.0, "over": 0.0}
LONG = {"lease": NOW + 60, "over": NOW + 90}
TAKEN = {"holder": "you", "owner": "your process", **LONG}
RESTED = {**FREE, "attempts": 0, "error": "", "waits": ()}
EVERYTHING = {
    "attempts": 3,
    "error": "away",
    "waits": ("go",),
    "once": ("0.1",),
    "signals": (GO, STOP),
    "closed": ("old",),
}

Fields = dict[str, Any]
Expected = Fields | type[Exception] | None
"""What is other than before; what is raised; or ``None``: nothing is to be written."""


def put(record: Record, **fields: Any) -> Record:
    """Change fields of a record, or of its state."""
    told = {name: fields.pop(name) for name in list(fields) if name in State._fields}
    return record._replace(**fields, state=state_text(state_of(record)._replace(**told)) if told else record.state)


def held(**fields: Any) -> Record:
    """Return an execution that I hold, a moment after I took it."""
    state = State("me", "my process", lease=NOW + 50, over=NOW + 80, started=NOW - 500, input=12)
    record = Record("id", "run", "stamp", 3, "flow", "running", NOW + 80, NOW - 100, state_text(state))
    return put(record, **fields)


def is_dead(owner: str) -> bool:
    return owner == "dead process"


def comes_to(expected: Expected, before: Record | None, change: Callable[[], Record | None]) -> None:
    if isinstance(expected, type):
        with pytest.raises(expected):
            change()
    else:
        assert change() == (None if expected is None else put(cast("Record", before), **expected))


def table(*rows: tuple[Any, ...], **named: tuple[Any, ...]) -> Any:
    """Parametrize a test by rows: a title, the fields before, the test's other arguments, what is expected."""
    names = ["before", "given", "expected"] if len(rows[0]) == 4 else ["before", "expected"]
    return pytest.mark.parametrize(names, [pytest.param(*row[1:], id=row[0]) for row in rows])


# Who may write.

HOLDERS: dict[str, Callable[[Record | None, Sequence[Entry] | None], object]] = {
    "answered": lambda record, since: answered(record, since, ME, NOW, Answers(4)),
    "marked": lambda record, since: marked(record, since, ME, NOW, ["0.3"], []),
    "unmarked": lambda record, since: unmarked(record, since, ME, NOW, "0.1"),
    "renewed": lambda record, since: renewed(record, since, ME, NOW),
    "begun anew": lambda record, since: begun_anew(record, since, ME, NOW, "next", (GO, STOP), 0),
    "removed": lambda record, since: is_to_be_removed(record, since, ME) or None,
    "paused": lambda record, since: paused(record, since, ME, NOW, "running", NOW, (), None),
    "parked": lambda record, since: parked(record, since, ME, NOW, "failed", "E"),
    "released": lambda record, since: released(record, since, ME, NOW, None),
    "finished": lambda record, since: finished(record, since, ME, NOW, "finished", None, ""),
}
GIVING_BACK = ("paused", "parked", "released")
LOST: dict[str, Record | None] = {
    "gone": None,
    "another run": held(run="another"),
    "another holder": held(**TAKEN),
    "another had it": held(**TAKEN | FREE),
    "ended by force": held(status="cancelled", holder="", **FREE),
    "given back": held(**FREE),
}


DOUBT = pytest.mark.parametrize("since", [None, []], ids=["no doubt", "after a lost answer"])


@DOUBT
@pytest.mark.parametrize(("name", "how"), list(product(HOLDERS, LOST)))
def test_what_is_not_held_is_not_written(name: str, how: str, since: list[Entry] | None) -> None:
    is_doubtful = since is not None and how != "given back"
    is_done = name in GIVING_BACK and (is_doubtful or how == "given back")
    if name in {"finished", "removed"} and is_doubtful:
        is_done = how in {"gone", "another run"}
    comes_to(None if is_done else Fenced, None, lambda: cast("Any", HOLDERS[name](LOST[how], since)))


@DOUBT
@pytest.mark.parametrize("name", HOLDERS)
def test_a_lease_that_is_over_is_still_the_holders_until_another_takes_it(name: str, since: list[Entry] | None) -> None:
    assert HOLDERS[name](held(lease=NOW - 500, over=NOW - 400, **EVERYTHING), since)


# One table for each transition.


@table(
    ("free", {**FREE}, {}, TAKEN),
    ("free and due before", {**FREE, "due": NOW + 5}, {}, {**TAKEN, "due": NOW + 5}),
    ("free and due later", {**FREE, "due": NOW + 1000}, {}, {**TAKEN, "due": NOW + 90}),
    ("free and never due", {**FREE, "due": None}, {}, {**TAKEN, "due": NOW + 90}),
    ("held", {}, {}, None),
    ("over by less than half of it", {"lease": NOW - 29, "over": NOW + 1}, {}, None),
    ("over by half of it", {"lease": NOW - 30, "over": NOW}, {}, TAKEN),
    ("held by a dead process", {"owner": "dead process"}, {}, TAKEN),
    ("taken already, the answer being lost", TAKEN, {}, None),
    *((f"{status}, held", {"status": status}, {"take_parked": True}, None) for status in sorted(STATUSES - ENDED)),
    *((status, {"status": status, **FREE}, {}, TAKEN) for status in (*sorted(RESTING), "running", "cancelling")),
    *((status, {"status": status, **FREE}, {"take_parked": True}, None) for status in (*sorted(ENDED), "making")),
    *((status, {"status": status, **FREE}, {}, None) for status in sorted(PARKED)),
    *(
        (
            f"{status}, to be taken up",
            {"status": status, **FREE, "due": None, **EVERYTHING},
            {"take_parked": True},
            {**TAKEN, "status": "running", "due": NOW, "changed": NOW, "attempts": 0, "error": ""},
        )
        for status in sorted(PARKED)
    ),
    (
        "failed while it was undone",
        {"status": "failed", **FREE, "cancel": "done"},
        {"take_parked": True},
        {**TAKEN, "status": "cancelling", "due": NOW, "changed": NOW},
    ),
    ("marks stay", {**FREE, **EVERYTHING, "cancel": "asked"}, {}, TAKEN),
    ("rung for this step", FREE, {"run": "run", "step": 3}, TAKEN),
    ("rung for an earlier step", FREE, {"run": "run", "step": 2}, None),
    ("rung for another run", FREE, {"run": "another", "step": 3}, None),
    ("rung for an earlier step, parked", {"status": "failed", **FREE}, {"run": "run", "step": 2, "take_parked": True}, None),
)  # fmt: skip
def test_claimed(before: Fields, given: Fields, expected: Expected) -> None:
    rang = {"run": None, "step": 0, "take_parked": False, **given}
    comes_to(expected, record := held(**before), lambda: claimed(record, YOU, NOW, is_dead, **rang))


STEP = {"step": 4, "changed": NOW}
HUNDRED = tuple(f"n{number}" for number in range(100))


@table(
    ("a step", {}, {}, STEP),
    ("after a lost answer, written", {"step": 4}, {}, None),
    ("after a rest", {"status": "sleeping"}, {}, {**STEP, "status": "running"}),
    ("after failed rings", {"attempts": 2, "error": "E"}, {}, {**STEP, "attempts": 0, "error": ""}),
    ("a third of the lease has gone", {"lease": NOW + 39}, {}, {**STEP, **LONG}),
    ("not yet a third", {"lease": NOW + 40}, {}, STEP),
    ("a signal has come", {"signals": (GO,)}, {}, STEP),
    ("a cancellation was asked for", {"cancel": "asked"}, {}, {**STEP, "status": "cancelling"}),
    ("the cancellation", {"cancel": "asked"}, {"is_cancel": True}, {**STEP, "status": "cancelling", "cancel": "done"}),
    ("while undoing", {"cancel": "done", "status": "cancelling"}, {}, STEP),
    ("a once call", {"once": ("0.1", "2.0")}, {"once": "0.1"}, {**STEP, "once": ("2.0",)}),
    ("its name is closed", {"waits": ("go",)}, {"ended": ["go"]}, {**STEP, "waits": (), "closed": ("go",)}),
    (
        "a signal is taken",
        {"waits": ("go",), "signals": (GO, STOP, MORE)},
        {"signal": "n1", "ended": ["go"]},
        {**STEP, "waits": (), "closed": ("go",), "signals": (STOP, MORE)},
    ),
    ("another waits for it", {"waits": ("go",)}, {"waits": ["go", "go"], "ended": ["go"]}, {**STEP, "waits": ("go",)}),
    ("waited for again", {"closed": ("go", "x")}, {"waits": ["go"]}, {**STEP, "waits": ("go",), "closed": ("x",)}),
    ("a hundred names", {"closed": HUNDRED}, {"ended": ["go"]}, {**STEP, "closed": (*HUNDRED[1:], "go")}),
    ("a timeout", {"waits": ("go",), "signals": (STOP,)}, {"is_timeout": True, "ended": ["go"]}, {**STEP, "waits": (), "closed": ("go",)}),
    ("a timeout whose signal is there", {"signals": (GO,)}, {"is_timeout": True, "ended": ["go"]}, None),
    ("a timeout, another's signal there", {"signals": (GO,)}, {"is_timeout": True, "ended": ["x"], "waits": ["go"]}, None),
    ("a timeout and a cancellation", {"cancel": "asked"}, {"is_timeout": True, "ended": ["go"]}, None),
)  # fmt: skip
def test_answered(before: Fields, given: Fields, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: answered(record, None, ME, NOW, Answers(4, **given)))
    comes_to(expected, record, lambda: answered(record, [], ME, NOW, Answers(4, **given)))


def test_the_text_of_the_state_is_the_same_object_after_a_plain_step() -> None:
    before = held()
    after = answered(before, None, ME, NOW, Answers(4))
    assert after is not None
    assert after.state is before.state


def test_a_name_that_is_closed_once_more_is_the_last_one_closed() -> None:
    first = answered(held(closed=HUNDRED), None, ME, NOW, Answers(4, ended=["n0"]))
    after = answered(first, None, ME, NOW, Answers(5, ended=["other"]))
    assert after is not None
    assert state_of(after).closed == (*HUNDRED[2:], "n0", "other")


@table(
    ("once calls", {"once": ("0.1",)}, (["0.2", "0.1"], []), {"once": ("0.1", "0.2")}),
    ("a wait opens its name", {"closed": ("go", "x")}, ([], ["go"]), {"waits": ("go",), "closed": ("x",)}),
    ("a signal and a cancellation stay", {"signals": (GO,), "cancel": "asked"}, (["0.1"], []), {"once": ("0.1",)}),
    ("nothing new", {"once": ("0.1",), "waits": ("go",)}, (["0.1"], ["go"]), None),
)
def test_marked(before: Fields, given: tuple[Any, Any], expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: marked(record, None, ME, NOW, *given))


@table(
    ("its mark", {"once": ("0.1", "0.2"), "signals": (GO,)}, {"once": ("0.2",)}),
    ("taken back already", {"once": ("0.2",)}, None),
)
def test_unmarked(before: Fields, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: unmarked(record, None, ME, NOW, "0.1"))


@table(("held", {}, LONG), ("marks stay", {**EVERYTHING, "cancel": "asked"}, LONG))
def test_renewed(before: Fields, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: renewed(record, None, ME, NOW))


LATER = {**FREE, "due": NOW + GRACE}
ANSWER = {"answers": Answers(4)}
SLEEPING = {"status": "sleeping", "changed": NOW}


@table(
    ("a pause", {"attempts": 2, "error": "E"}, {}, {**LATER, "error": ""}),
    ("a rest", {"attempts": 2}, {"status": "sleeping"}, {**LATER, **SLEEPING, "attempts": 0}),
    ("the same rest again", {"status": "sleeping"}, {"status": "sleeping"}, LATER),
    ("a wait without a timeout", {"closed": ("go",)}, {"status": "waiting", "due": None, "waits": ["go", "go"]}, {**FREE, "due": None, "status": "waiting", "changed": NOW, "waits": ("go",), "closed": ()}),
    ("an answer and a pause", {}, ANSWER, {**STEP, **LATER}),
    ("an answer and a pause, the answer having been written", {"step": 4}, ANSWER, LATER),
    ("a cancellation was asked for", {"cancel": "asked"}, {"status": "sleeping"}, None),
    ("an answer and a cancellation", {"cancel": "asked"}, ANSWER, {**STEP, "status": "cancelling"}),
    ("an answer, written, and a cancellation", {"cancel": "asked", "step": 4}, ANSWER, None),
    ("while undoing", {"cancel": "done"}, {"status": "sleeping"}, {**LATER, "status": "cancelling", "changed": NOW}),
    ("the signal that is waited for has come", {"signals": (STOP, GO)}, {"status": "waiting", "waits": ["go"]}, None),
    ("an answer and such a signal", {"signals": (GO,)}, {**ANSWER, "waits": ["go"]}, STEP),
    ("another signal has come", {"signals": (STOP,)}, {"waits": ["go"]}, {**LATER, "waits": ("go",)}),
)  # fmt: skip
def test_paused(before: Fields, given: Fields, expected: Expected) -> None:
    told = {"status": "running", "due": NOW + GRACE, "waits": (), "answers": None, **given}
    comes_to(expected, record := held(**before), lambda: paused(record, None, ME, NOW, **told))


FAILED = {**RESTED, "error": "E: x", "status": "failed", "due": None, "changed": NOW}


@table(
    ("it failed", EVERYTHING, {}, FAILED),
    ("with its last answer", {}, ANSWER, {**FAILED, "step": 4}),
    ("with its last answer, written already", {"step": 4}, ANSWER, FAILED),
    ("a cancellation was asked for", {"cancel": "asked"}, {}, {**FAILED, "status": "cancelled"}),
    ("while undoing", {"cancel": "done", "status": "cancelling"}, {}, FAILED),
)
def test_parked(before: Fields, given: Fields, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: parked(record, None, ME, NOW, "failed", "E: x", **given))


@table(
    ("an error", {"attempts": 2, "error": "E"}, "F", {**FREE, "error": "F"}),
    ("no error of its own", {"attempts": 2, "error": "E"}, None, FREE),
    ("a cancellation was asked for", {"cancel": "asked"}, None, {**FREE, "due": NOW}),
    ("a signal that is waited for", {"signals": (GO,), "waits": ("go",)}, None, {**FREE, "due": NOW}),
    ("another signal", {"signals": (STOP,), "waits": ("go",)}, None, FREE),
)
def test_released(before: Fields, given: str | None, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: released(record, None, ME, NOW, given))


NEXT = {
    **{"run": "next", "step": 0, "status": "running", "due": NOW + GRACE, "changed": NOW, "version": 2, "started": NOW},
    **{"attempts": 0, "error": "", "waits": (), "once": (), "cancel": "", **LONG},
}


@table(
    ("what is kept", {**EVERYTHING, "errors": "raise"}, (STOP, GO), NEXT),
    ("a cancellation was asked for", {"cancel": "asked"}, (), {**NEXT, "cancel": "asked", "status": "cancelling"}),
    ("it was cancelled before", {"cancel": "done", "status": "cancelling"}, (), NEXT),
    ("a signal has come meanwhile", {"signals": (GO, STOP)}, (GO,), None),
    ("after a lost answer, written", {"run": "next"}, (), None),
    ("after a lost answer, written and taken by another", {"run": "next", **TAKEN}, (), None),
)
def test_begun_anew(before: Fields, given: tuple[Signal, ...], expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: begun_anew(record, None, ME, NOW, "next", given, 2))


@table(
    *((f"cancel {cancel!r}", {**EVERYTHING, "cancel": cancel}, {**RESTED, "error": "E: x"}) for cancel in ("", "asked", "done")),
)  # fmt: skip
@pytest.mark.parametrize("status", sorted(ENDED))
def test_finished(status: str, before: Fields, expected: Fields) -> None:
    expected = {**expected, "status": status, "due": NOW + 5, "changed": NOW, "signals": (), "closed": ()}
    comes_to(expected, record := held(**before), lambda: finished(record, None, ME, NOW, status, NOW + 5, "E: x"))
    assert is_to_be_removed(record, None, ME)


TAKEN_ENTRY = Entry("run", 3, 0, '{"asked":"wait go","signal":"n1","started":1.0,"ended":2.0}', b"")


@table(
    ("held", {}, {}, (True, {"signals": (GO,)})),
    ("held and waited for", {"waits": ("go",)}, {}, (True, {"signals": (GO,)})),
    ("waited for", {"status": "waiting", "waits": ("go",), **FREE}, {}, (True, {"signals": (GO,), "due": NOW})),
    ("another waited for", {"status": "waiting", "waits": ("x",), **FREE}, {}, (True, {"signals": (GO,)})),
    ("after others", {"signals": (STOP,)}, {}, (True, {"signals": (STOP, GO)})),
    ("parked", {"status": "failed", "due": None, **FREE}, {}, (True, {"signals": (GO,)})),
    ("cancelling", {"cancel": "asked", "status": "cancelling"}, {}, (True, {"signals": (GO,)})),
    ("its name is taken", {"signals": (MORE,)}, {}, (False, None)),
    ("its name is closed", {"closed": ("go",)}, {}, (False, None)),
    ("queued", {"signals": (MORE, STOP)}, {"queue": True}, (True, {"signals": (MORE, STOP, GO)})),
    ("queued, its name closed", {"closed": ("go",)}, {"queue": True}, (True, {"signals": (GO,)})),
    ("kept already", {"signals": (STOP, GO), "closed": ("go",)}, {"since": []}, (True, None)),
    ("queued already", {"signals": (GO, MORE)}, {"since": [], "queue": True}, (True, None)),
    ("taken already", {"step": 4, "closed": ("go",)}, {"since": [TAKEN_ENTRY]}, (True, None)),
    ("taken, and it has ended since", {"step": 4, "status": "finished", **FREE}, {"since": [TAKEN_ENTRY]}, (True, None)),
    ("not written, and the name taken", {"signals": (MORE,)}, {"since": []}, (False, None)),
    ("not written", {}, {"since": []}, (True, {"signals": (GO,)})),
    *((status, {"status": status, **FREE}, {}, AlreadyEnded) for status in sorted(ENDED)),
    ("making", {"status": "making", **FREE}, {}, UnknownExecution),
    ("another run", {"run": "another"}, {}, (True, {"signals": (GO,)})),
    ("after a lost answer, another run", {"run": "another"}, {"since": []}, StorageError),
)  # fmt: skip
def test_signalled(before: Fields, given: Fields, expected: type[Exception] | tuple[bool, Expected]) -> None:
    record, told = held(**before), {"since": None, "queue": False, **given}
    kept = list[bool]()

    def change() -> Record | None:
        is_kept, new = signalled(record, told["since"], held(), GO, NOW, told["queue"])
        kept.append(is_kept)
        return new

    comes_to(expected if isinstance(expected, type) else expected[1], record, change)
    assert kept == ([] if isinstance(expected, type) else [expected[0]])


def test_after_a_lost_answer_nobody_can_tell_whether_a_signal_was_kept_by_what_is_gone() -> None:
    with pytest.raises(UnknownExecution):
        signalled(None, None, held(), GO, NOW, queue=False)
    with pytest.raises(StorageError, match=r"'go' of execution 'id'.*send it again"):
        signalled(None, [], held(), GO, NOW, queue=False)


ENDED_NOW = {**RESTED, "holder": "", "status": "cancelled", "due": NOW + 9, "changed": NOW, "signals": (), "closed": ()}
ASKED = {"status": "cancelling", "changed": NOW, "cancel": "asked"}


@table(
    ("held", EVERYTHING, False, ASKED),
    *((status, {"status": status, **FREE}, False, {**ASKED, "due": NOW}) for status in ("running", *sorted(RESTING))),
    ("asked for before", {"status": "cancelling", "cancel": "asked"}, False, None),
    ("being undone", {"status": "cancelling", "cancel": "done", **FREE}, False, None),
    *((status, {"status": status, **FREE, **EVERYTHING}, False, ENDED_NOW) for status in sorted(PARKED)),
    ("failed while undoing", {"status": "failed", "cancel": "done", **FREE}, False, ENDED_NOW),
    *(
        (f"{status}, by force", {"status": status, **EVERYTHING}, True, ENDED_NOW)
        for status in sorted(STATUSES - ENDED - {"making"})
    ),
    *((f"cancelled, force={force}", {"status": "cancelled", **FREE}, force, None) for force in (False, True)),
    *((f"finished, force={force}", {"status": "finished", **FREE}, force, AlreadyEnded) for force in (False, True)),
    *((f"making, force={force}", {"status": "making", **FREE}, force, UnknownExecution) for force in (False, True)),
)
def test_cancelled(before: Fields, given: bool, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: cancelled(record, "id", NOW, given, NOW + 9))


@table(
    *(
        (status, {"status": status, **FREE, **EVERYTHING}, {"due": NOW})
        for status in ("running", "sleeping", "waiting")
    ),
    ("cancelling", {"status": "cancelling", "cancel": "asked", **FREE}, {"due": NOW}),
    ("held", {}, None),
    ("held by a dead process", {"owner": "dead process"}, {"due": NOW}),
    ("the lease is over", {"over": NOW}, {"due": NOW}),
    *(
        (
            status,
            {"status": status, **FREE, **EVERYTHING},
            {"status": "running", "due": NOW, "changed": NOW, "attempts": 0, "error": ""},
        )
        for status in sorted(PARKED)
    ),
    (
        "stuck while undoing",
        {"status": "stuck", "cancel": "done", **FREE},
        {"status": "cancelling", "due": NOW, "changed": NOW},
    ),
    *((status, {"status": status, **FREE}, None) for status in sorted(ENDED)),
    ("making", {"status": "making", **FREE}, UnknownExecution),
)
def test_rung(before: Fields, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: rung(record, "id", NOW, is_dead))


@pytest.mark.parametrize(
    "change", [lambda: cancelled(None, "id", NOW, True, None), lambda: rung(None, "id", NOW, is_dead)]
)
def test_what_is_not_there_is_unknown(change: Callable[[], object]) -> None:
    with pytest.raises(UnknownExecution):
        change()


STUCK = {**RESTED, "holder": "", "status": "stuck", "due": None, "changed": NOW}


@table(
    ("held", {"attempts": ATTEMPTS, "due": NOW}, {"due": NOW + 80}),
    ("held, its lease over by less than half", {"lease": NOW - 9, "over": NOW + 9, "due": NOW}, {"due": NOW + 9}),
    ("its lease over", {"over": NOW}, {"due": NOW + 2 * GRACE, "attempts": 1}),
    ("held by a dead process", {"owner": "dead process"}, {"due": NOW + 2 * GRACE, "attempts": 1}),
    ("free", {"status": "sleeping", "attempts": 1, **FREE}, {"due": NOW + 4 * GRACE, "attempts": 2}),
    ("for the last time", {"attempts": ATTEMPTS - 1, **FREE}, {"due": NOW + 2 * LONGEST_WAIT, "attempts": ATTEMPTS}),
    ("too often", {"attempts": ATTEMPTS, "waits": ("go",), "signals": (GO,), **FREE}, {**STUCK, "error": "no progress in 10 attempts of the sweep: mend what is wrong, then ring it"}),
    ("too often, of late by a mistake", {"attempts": ATTEMPTS, "error": "E: x", "over": NOW}, {**STUCK, "error": "no progress in 10 attempts of the sweep, the last error being E: x: mend what is wrong, then ring it"}),
)  # fmt: skip
def test_swept(before: Fields, expected: Expected) -> None:
    comes_to(expected, record := held(**before), lambda: swept(record, NOW, is_dead, lambda _: 2.0))


def test_not_rung() -> None:
    before = held(attempts=4, **FREE)
    comes_to({"attempts": 3}, before, lambda: not_rung(before, 3))


# The state as it is stored.

names = st.text("ago.:", min_size=1, max_size=3)
numbers = st.floats(0, 1e13)
states = st.builds(
    State,
    holder=names | st.just(""), owner=st.text(max_size=5), lease=numbers, over=numbers, started=numbers,
    errors=st.sampled_from(["value", "raise"]), version=st.integers(-(2**63), 2**63 - 1),
    input=st.none() | st.integers(0, 2**32), attempts=st.integers(0, 10), error=st.text(max_size=5),
    waits=st.lists(names, max_size=3).map(tuple), once=st.lists(names, max_size=3).map(tuple),
    cancel=st.sampled_from(["", "asked", "done"]), closed=st.lists(names, max_size=3).map(tuple),
    signals=st.lists(st.builds(Signal, names, st.integers(-(2**31), -2), names), max_size=3).map(tuple),
)  # fmt: skip


@given(states)
def test_a_state_is_read_as_it_was_written(state: State) -> None:
    text = state_text(state)
    assert state_of(held()._replace(state=text)) == state
    assert json.loads(text)["format"] == FORMAT
    assert state_text(state_of(held()._replace(state=text))) == text


def test_only_what_differs_is_stored_and_what_a_later_release_adds_is_ignored() -> None:
    assert json.loads(state_text(State("me"))) == {"format": FORMAT, "holder": "me"}
    assert state_of(held()._replace(state='{"format":1,"mood":"good","holder":"me"}')) == State("me")


def test_a_state_of_a_later_format_is_refused_and_is_no_damage() -> None:
    with pytest.raises(StorageError, match="format 2.*upgrade") as caught:
        state_of(held()._replace(state='{"format":2}'))
    assert not isinstance(caught.value, Damaged)


BROKEN = ["", "{", "[]", "null", "{}", '{"format":null}', '{"format":1,"waits":3}', '{"format":1,"signals":[["go"]]}', '{"format":1,"lease":{}}']  # fmt: skip
HUGE = ['{"format":1,"lease":1' + 400 * "0" + "}", '{"format":1,"signals":[["go",1e999,"n"]]}', "[" * 100_000]


@pytest.mark.parametrize("text", [*BROKEN, *(pytest.param(text, id=text[:20]) for text in HUGE)])
def test_a_state_that_cannot_be_read_is_damage(text: str) -> None:
    with pytest.raises(Damaged, match="its record") as caught:
        state_of(held()._replace(state=text))
    assert caught.value.args[:2] == ("id", None)


class Watched(JournalAround):
    """A Journal that keeps every record that was ever written."""

    def __init__(self) -> None:
        super().__init__(MemoryStorage())
        self.records = list[Record]()

    async def around(self, what: str, method: Callable[..., Maybe[Any]], *arguments: Any, **options: Any) -> Any:
        if what == "write" and arguments[1] is not None:
            self.records.append(arguments[1])
        return await settle(method(*arguments, **options))


def test_a_record_never_holds_a_value() -> None:
    def flow(input: Any) -> Any:
        yield tool("api", "get", ["secret input"], once=True)
        yield [tool("api", "get", "secret input"), tool("api", "fail", "secret input")]
        yield save()
        yield sleep(5)
        yield wait("go", 50)
        return again("secret next") if input == "secret first" else "secret value"

    def call(category: str, name: str, input: Any) -> str:
        if name == "fail":
            raise ValueError("secret error")
        return "secret result"

    store, clock = Watched(), FakeClock()
    executor = FlowExecutor(store, call=call, clock=clock, retain=True)
    value = executor.execute_sync(flow, "id", "secret first")
    while isinstance(value, Paused):
        clock.advance(6)
        executor.signal_sync("id", "go", "secret payload")
        executor.signal_sync("id", "go", "secret payload", queue=True)
        value = executor.execute_sync(flow, "id")
    assert value == "secret value"
    assert len(store.records) > 10
    assert "secret" not in repr(store.records)


# Any order.


class Anything(RuleBasedStateMachine):
    """Invocations, a sender, a canceller and a sweeper take turns at one record."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.record = held(holder="", step=0, **FREE)
        self.holds = list[Hold]()
        self.log = list[Entry]()
        self.sent = list[tuple[Signal, Record, bool]]()
        self.numbers = iter(range(10**6))

    def write(self, change: Callable[[Record, list[Entry] | None], Record | None], by: Hold | None = None, taken: str = "") -> None:  # fmt: skip
        """Apply a change, and look at what it does; asked again after a lost answer, it does not do it twice."""
        before, after = self.record, change(self.record, None)
        if after is None:
            return
        old, new = state_of(before), state_of(after)
        assert after.status in STATUSES
        assert before.status not in ENDED
        assert (after.id, after.workflow, new.errors, new.input) == ("id", "flow", old.errors, old.input)
        if (after.run, after.step) != (before.run, before.step):
            assert by is not None
            assert is_holder(before, by)
            assert (by == self.holds[-1]) and (after.step == before.step + 1 or after.run != before.run)
            self.log = [] if after.run != before.run else [*self.log, Entry("", before.step, 0, f'"signal":"{taken}"', b"")]  # fmt: skip
        gone = set(old.signals) - set(new.signals)
        assert after.status in ENDED or {signal.nonce for signal in gone} <= {taken}
        kept = [signal for signal in old.signals if signal in new.signals]
        assert list(new.signals[: len(kept)]) == kept
        assert len(set(new.signals)) == len(new.signals)
        assert (new.lease > 0) <= (after.status not in ENDED | PARKED)
        self.record = after
        assert change(after, self.log[before.step :]) in (None, after)

    @rule(seconds=st.sampled_from([1.0, 30.0, 59.0, 90.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(parked=st.booleans())
    def claim(self, parked: bool) -> None:
        hold = Hold("id", self.record.run, f"h{next(self.numbers)}", "a process", 60.0)
        self.write(lambda record, _: claimed(record, hold, self.now, is_dead, None, 0, parked))
        if is_holder(self.record, hold):
            self.holds.append(hold)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def a_holder_writes(self, data: st.DataObject) -> None:
        current = is_holder(self.record, self.holds[-1])
        hold = data.draw(st.sampled_from([self.holds[-1]] * 4 + self.holds))
        what = data.draw(st.sampled_from(sorted(HOLDERS)))
        state, waits = state_of(self.record), data.draw(st.sets(st.sampled_from(["go", "stop"])))
        taken = next((signal for signal in state.signals if signal.name in state.waits), None)
        answers = Answers(self.record.step + 1, waits, state.waits, is_timeout=not taken and bool(state.waits))
        if taken and data.draw(st.booleans()):
            answers = answers._replace(signal=taken.nonce, is_timeout=False)
        elif state.cancel == "asked":
            answers = answers._replace(is_cancel=True, is_timeout=False)
        rest = data.draw(st.sampled_from([None, answers]))
        run = f"run{next(self.numbers)}"
        changes: dict[str, Callable[[Record, Any], Record | None]] = {
            "answered": lambda record, since: answered(record, since, hold, self.now, answers),
            "marked": lambda record, since: marked(record, since, hold, self.now, ["0.1"], waits),
            "unmarked": lambda record, since: unmarked(record, since, hold, self.now, "0.1"),
            "renewed": lambda record, since: renewed(record, since, hold, self.now),
            "begun anew": lambda record, since: begun_anew(record, since, hold, self.now, run, state.signals, 0),
            "removed": lambda record, since: None if is_to_be_removed(record, since, hold) else None,
            "paused": lambda record, since: paused(record, since, hold, self.now, "waiting", None, waits, rest),
            "parked": lambda record, since: parked(record, since, hold, self.now, "failed", "E", rest),
            "released": lambda record, since: released(record, since, hold, self.now, None),
            "finished": lambda record, since: finished(record, since, hold, self.now, "finished", None, ""),
        }
        if hold == self.holds[-1] and current:
            self.write(changes[what], hold, answers.signal)
            if what == "begun anew" and self.record.run == run:
                self.holds[-1] = hold._replace(run=run)
        elif (hold.holder, hold.run) == (state.holder, self.record.run) and what in (*GIVING_BACK, self.record.status):
            assert changes[what](self.record, None) is None
        else:
            with pytest.raises(Fenced):
                changes[what](self.record, None)

    @rule(name=st.sampled_from(["go", "stop"]), queue=st.booleans())
    def send(self, name: str, queue: bool) -> None:
        signal, known = Signal(name, -2 - next(self.numbers), f"n{next(self.numbers)}"), self.record
        if known.status in ENDED:
            with pytest.raises(AlreadyEnded):
                signalled(known, None, known, signal, self.now, queue)
            return
        is_kept, _ = signalled(known, None, known, signal, self.now, queue)
        self.write(lambda record, since: signalled(record, since, known, signal, self.now, queue)[1])
        assert is_kept == (signal in state_of(self.record).signals)
        if is_kept:
            self.sent.append((signal, known, queue))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_sender_asks_again_after_a_lost_answer(self, data: st.DataObject) -> None:
        signal, known, queue = data.draw(st.sampled_from(self.sent))
        if self.record.run == known.run and self.record.status not in ENDED:
            since = self.log[known.step :]
            assert signalled(self.record, since, known, signal, self.now, queue) == (True, None)

    @rule(force=st.booleans())
    def cancel(self, force: bool) -> None:
        if self.record.status == "finished":
            with pytest.raises(AlreadyEnded):
                cancelled(self.record, "id", self.now, force, None)
        else:
            self.write(lambda record, _: cancelled(record, "id", self.now, force, None))
            assert self.record.status == "cancelled" or (not force and state_of(self.record).cancel)

    @rule()
    def ring(self) -> None:
        self.write(lambda record, _: rung(record, "id", self.now, is_dead))

    @precondition(lambda self: self.record.status not in ENDED and (self.record.due or NOW * 9) <= self.now)
    @rule()
    def sweep(self) -> None:
        self.record = swept(self.record, self.now, is_dead, lambda _: 1.0)
        assert self.record.due is None or self.record.due > self.now

    @invariant()
    def somebody_looks_at_it_again(self) -> None:
        record, state = self.record, state_of(self.record)
        if record.status not in ENDED | PARKED and (state.lease or record.status not in {"waiting", "cancelling"}):
            assert record.due is not None
        if record.status not in ENDED | PARKED and not state.lease and record.due is None:
            assert state.cancel != "asked"
            assert not {signal.name for signal in state.signals} & set(state.waits)
        assert re.fullmatch(r"\{.*\}", record.state)


Anything.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnything = Anything.TestCase
