"""Every transition of an execution, without a store: a table for each, and what holds in any order of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from itertools import product
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import sequential.record as core
from sequential import AlreadyEnded, Damaged, Fenced, FlowExecutor, Paused, again, save, sleep, tool, wait
from sequential.errors import StorageError, UnknownExecution
from sequential.record import Answers, Entry, Hold, Record, Signal, Since, State, state_of, state_text
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock

Fields = dict[str, Any]
Expected = Fields | type[Exception] | None
"""What is other than before; what is raised; or ``None``: nothing is to be written."""
Change = Callable[[Record | None, Since], Record | None]

NOW = 1_000_000.0
ME, YOU = Hold("id", "run", "me", "my process", 60.0), Hold("id", "run", "you", "your process", 60.0)
GO, MORE, STOP = Signal("go", -7, "n1"), Signal("go", -8, "n2"), Signal("stop", -9, "n3")
FREE = {"lease": 0.0, "over": 0.0}
LONG = {"lease": NOW + 60, "over": NOW + 90}
TAKEN: Fields = {"holder": "you", "owner": "your process", **LONG}
AT_REST = {**FREE, "attempts": 0, "error": "", "waits": ()}
FULL: Fields = {
    "attempts": 3,
    "error": "E",
    "waits": ("go",),
    "once": ("0.1",),
    "signals": (GO, STOP),
    "closed": ("old",),
}
HUNDRED = tuple(f"n{number}" for number in range(100))


def put(record: Record, **fields: Any) -> Record:
    """Change fields of a record, or of its state."""
    told = {name: fields.pop(name) for name in list(fields) if name in State._fields}
    return record._replace(**fields, state=state_text(state_of(record)._replace(**told)) if told else record.state)


def held(**fields: Any) -> Record:
    """Return an execution that I hold, a moment after I took it."""
    state = State("me", "my process", lease=NOW + 50, over=NOW + 80, started=NOW - 500, input=12)
    return put(Record("id", "run", "stamp", 3, "flow", "running", NOW + 80, NOW - 100, state_text(state)), **fields)


def free(status: str = "running", **fields: Any) -> Fields:
    return {"status": status, **FREE, **fields}


def is_dead(owner: str) -> bool:
    return owner == "dead process"


def comes_to(expected: Expected, before: Fields | None, change: Callable[[Any], Record | None]) -> None:
    record = None if before is None else held(**before)
    if isinstance(expected, type):
        with pytest.raises(expected):
            change(record)
    else:
        assert change(record) == (None if expected is None else put(cast("Record", record), **expected))


def table(*rows: tuple[Any, ...]) -> pytest.MarkDecorator:
    """Parametrize a test by rows: a title, the fields before, the test's other arguments, what is expected."""
    names = ["before", "given", "expected"] if len(rows[0]) == 4 else ["before", "expected"]
    return pytest.mark.parametrize(names, [pytest.param(*row[1:], id=row[0]) for row in rows])


# Who may write.


def writes(  # noqa: PLR0917 - what they take between them
    hold: Hold,
    now: float,
    run: str = "next",
    copied: Collection[Signal] = (GO, STOP),
    waits: Collection[str] = (),
    answers: Answers | None = None,
) -> dict[str, Change]:
    """Return everything that a holder does."""
    return {
        "answered": lambda record, since: core.answered(record, since, hold, now, answers or Answers(4)),
        "marked": lambda record, since: core.marked(record, since, hold, now, ["0.3"], waits),
        "unmarked": lambda record, since: core.unmarked(record, since, hold, now, ["0.1"]),
        "renewed": lambda record, since: core.renewed(record, since, hold, now),
        "begun anew": lambda record, since: core.begun_anew(record, since, hold, now, run, copied, 0),
        "removed": lambda record, since: record if core.is_to_be_removed(record, since, hold) else None,
        "paused": lambda record, since: core.paused(record, since, hold, now, "waiting", None, waits, answers),
        "parked": lambda record, since: core.parked(record, since, hold, now, "failed", "E", answers),
        "released": lambda record, since: core.released(record, since, hold, now, None),
        "finished": lambda record, since: core.finished(record, since, hold, now, "finished", None, ""),
    }


ALL = list(writes(ME, NOW))
GIVING_BACK = ("paused", "parked", "released")
LOST: dict[str, Fields | None] = {
    "gone": None,
    "another run": {"run": "another"},
    "another holder": TAKEN,
    "another had it": TAKEN | FREE,
    "ended by force": free("cancelled", holder=""),
    "given back": FREE,
}
DOUBT = pytest.mark.parametrize("since", [None, []], ids=["no doubt", "after a lost answer"])


@DOUBT
@pytest.mark.parametrize(("name", "how"), list(product(ALL, LOST)))
def test_what_is_not_held_is_not_written(name: str, how: str, since: Since) -> None:
    is_doubtful = since is not None and how != "given back"
    is_done = name in GIVING_BACK and (is_doubtful or how == "given back")
    if name in {"finished", "removed"} and is_doubtful:
        is_done = how in {"gone", "another run"}
    comes_to(None if is_done else Fenced, LOST[how], lambda record: writes(ME, NOW)[name](record, since))


@DOUBT
@pytest.mark.parametrize("name", ALL)
def test_a_lease_that_is_over_is_still_the_holders_until_another_takes_it(name: str, since: Since) -> None:
    assert writes(ME, NOW)[name](held(lease=NOW - 500, over=NOW - 400, **FULL), since)


# One table for each transition.

TAKEN_UP = {"status": "running", "due": NOW, "changed": NOW, "attempts": 0, "error": ""}


@table(
    ("free", FREE, {}, TAKEN),
    ("due before", free(due=NOW + 5), {}, {**TAKEN, "due": NOW + 5}),
    ("due later", free(due=NOW + 1000), {}, {**TAKEN, "due": NOW + 90}),
    ("never due", free(due=None), {}, {**TAKEN, "due": NOW + 90}),
    ("over by less than half of it", {"lease": NOW - 29, "over": NOW + 1}, {}, None),
    ("over by half of it", {"lease": NOW - 30, "over": NOW}, {}, TAKEN),
    ("held by a dead process", {"owner": "dead process"}, {}, TAKEN),
    ("taken already, the answer being lost", TAKEN, {}, None),
    *((f"{status}, held", {"status": status}, {"take_parked": True}, None) for status in sorted(core.STATUSES - core.PARKED)),
    *((status, free(status), {}, TAKEN) for status in (*sorted(core.RESTING), "running", "cancelling")),
    *((status, free(status), {"take_parked": True}, None) for status in (*sorted(core.ENDED), "making")),
    *((status, free(status), {}, None) for status in sorted(core.PARKED)),
    *((f"{status}, taken up", free(status, **FULL), {"take_parked": True}, {**TAKEN, **TAKEN_UP}) for status in sorted(core.PARKED)),
    ("failed, undoing", free("failed", cancel="done"), {"take_parked": True}, {**TAKEN, **TAKEN_UP, "status": "cancelling"}),
    ("marks stay", free(cancel="asked", **FULL), {}, TAKEN),
    ("rung for this step", FREE, {"run": "run", "step": 3}, TAKEN),
    ("rung for an earlier step", FREE, {"run": "run", "step": 2}, None),
    ("rung for another run", FREE, {"run": "another", "step": 3}, None),
    ("parked, rung for an earlier step", free("failed"), {"run": "run", "step": 2, "take_parked": True}, None),
)  # fmt: skip
def test_claimed(before: Fields, given: Fields, expected: Expected) -> None:
    rang = {"run": None, "step": 0, "take_parked": False, **given}
    comes_to(expected, before, lambda record: core.claimed(record, YOU, NOW, is_dead, **rang))


@table(
    ("nothing", None, True),
    ("its own first parts", {"status": "making", "run": "new"}, True),
    ("another's first parts", {"status": "making", "changed": NOW - 89}, False),
    ("another's first parts, left alone for half a lease more", {"status": "making", "changed": NOW - 90}, True),
    *((status, {"status": status, "run": "new"}, False) for status in sorted(core.STATUSES - {"making"})),
)
def test_is_new(before: Fields | None, expected: bool) -> None:
    assert core.is_new(None if before is None else held(**before), held(run="new", changed=NOW), 60.0) == expected


STEP = {"step": 4, "changed": NOW}
CLOSED = {**STEP, "waits": (), "closed": ("go",)}


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
    ("its name is closed", {"waits": ("go",)}, {"ended": ["go"]}, CLOSED),
    ("a signal is taken", {"waits": ("go",), "signals": (GO, STOP, MORE)}, {"signal": "n1", "ended": ["go"]}, {**CLOSED, "signals": (STOP, MORE)}),
    ("another waits for it", {"waits": ("go",)}, {"waits": ["go", "go"], "ended": ["go"]}, {**STEP, "waits": ("go",)}),
    ("waited for again", {"closed": ("go", "x")}, {"waits": ["go"]}, {**STEP, "waits": ("go",), "closed": ("x",)}),
    ("a hundred names", {"closed": HUNDRED}, {"ended": ["go"]}, {**STEP, "closed": (*HUNDRED[1:], "go")}),
    ("closed once more", {"closed": HUNDRED}, {"ended": ["n0"]}, {**STEP, "closed": (*HUNDRED[1:], "n0")}),
    ("a timeout", {"waits": ("go",), "signals": (STOP,)}, {"is_timeout": True, "ended": ["go"]}, CLOSED),
    ("a timeout whose signal is there", {"signals": (GO,)}, {"is_timeout": True, "ended": ["go"]}, None),
    ("a timeout, another's signal is there", {"signals": (GO,)}, {"is_timeout": True, "ended": ["x"], "waits": ["go"]}, None),
    ("a timeout and a cancellation", {"cancel": "asked"}, {"is_timeout": True, "ended": ["go"]}, None),
)  # fmt: skip
@DOUBT
def test_answered(before: Fields, given: Fields, expected: Expected, since: Since) -> None:
    comes_to(expected, before, lambda record: core.answered(record, since, ME, NOW, Answers(4, **given)))


def test_the_text_of_the_state_is_the_same_object_after_a_plain_step() -> None:
    before = held()
    after = core.answered(before, None, ME, NOW, Answers(4))
    assert after is not None
    assert after.state is before.state


@table(
    ("once calls", {"once": ("0.1",)}, (["0.2", "0.1"], []), {"once": ("0.1", "0.2")}),
    ("a wait opens its name", {"closed": ("go", "x")}, ([], ["go"]), {"waits": ("go",), "closed": ("x",)}),
    ("a signal and a cancellation stay", {"signals": (GO,), "cancel": "asked"}, (["0.1"], []), {"once": ("0.1",)}),
    ("nothing new", {"once": ("0.1",), "waits": ("go",)}, (["0.1"], ["go"]), None),
)
def test_marked(before: Fields, given: tuple[Any, Any], expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.marked(record, None, ME, NOW, *given))


@table(("its mark", {"once": ("0.1", "0.2")}, {"once": ("0.2",)}), ("taken back already", {"once": ("0.2",)}, {}))
def test_unmarked(before: Fields, expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.unmarked(record, None, ME, NOW, ["0.1"]))


def test_renewed() -> None:
    comes_to(LONG, {**FULL, "cancel": "asked"}, lambda record: core.renewed(record, None, ME, NOW))


LATER = {**FREE, "due": NOW + core.GRACE}
ANSWER = {"answers": Answers(4)}
WAIT = {"status": "waiting", "waits": ["go"]}


@table(
    ("a pause", {"attempts": 2, "error": "E"}, {}, {**LATER, "error": ""}),
    ("a rest", {"attempts": 2}, {"status": "sleeping"}, {**LATER, "status": "sleeping", "changed": NOW, "attempts": 0}),
    ("the same rest again", {"status": "sleeping"}, {"status": "sleeping"}, LATER),
    ("a wait without a timeout", {"closed": ("go",), "status": "waiting"}, {**WAIT, "due": None}, free("waiting", due=None, waits=("go",), closed=())),
    ("an answer and a pause", {}, ANSWER, {**STEP, **LATER}),
    ("an answer and a pause, the answer being written", {"step": 4}, ANSWER, LATER),
    ("a cancellation was asked for", {"cancel": "asked"}, {"status": "sleeping"}, None),
    ("an answer and a cancellation", {"cancel": "asked"}, ANSWER, {**STEP, "status": "cancelling"}),
    ("an answer, written, and a cancellation", {"cancel": "asked", "step": 4}, ANSWER, None),
    ("while undoing", {"cancel": "done"}, {"status": "sleeping"}, {**LATER, "status": "cancelling", "changed": NOW}),
    ("a rest while undoing", {"attempts": 2, "cancel": "done"}, {"status": "sleeping"}, {**LATER, "status": "cancelling", "changed": NOW, "attempts": 0}),
    ("the signal that is waited for has come", {"signals": (STOP, GO)}, WAIT, None),
    ("an answer and such a signal", {"signals": (GO,)}, {**ANSWER, **WAIT}, STEP),
    ("another signal has come", {"signals": (STOP,)}, {"waits": ["go"]}, {**LATER, "waits": ("go",)}),
)  # fmt: skip
def test_paused(before: Fields, given: Fields, expected: Expected) -> None:
    told = {"status": "running", "due": NOW + core.GRACE, "waits": (), "answers": None, **given}
    comes_to(expected, before, lambda record: core.paused(record, None, ME, NOW, **told))


FAILED = {**AT_REST, "error": "E: x", "status": "failed", "due": None, "changed": NOW}


@table(
    ("it failed", FULL, {}, FAILED),
    ("with its last answer", {}, ANSWER, {**FAILED, "step": 4}),
    ("with its last answer, written already", {"step": 4}, ANSWER, FAILED),
    ("a cancellation was asked for", {"cancel": "asked"}, {}, {**FAILED, "status": "cancelled"}),
    ("which removes it later", {"cancel": "asked"}, {"due": 5.0}, {**FAILED, "status": "cancelled", "due": 5.0}),
    ("while undoing", {"cancel": "done", "status": "cancelling"}, {"due": 5.0}, FAILED),
)
def test_parked(before: Fields, given: Fields, expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.parked(record, None, ME, NOW, "failed", "E: x", **given))


@table(
    ("an error", {"attempts": 2, "error": "E"}, "F", {**FREE, "error": "F"}),
    ("no error of its own", {"attempts": 2, "error": "E"}, None, FREE),
    ("a cancellation was asked for", {"cancel": "asked"}, None, {**FREE, "due": NOW}),
    ("a signal that is waited for", {"signals": (GO,), "waits": ("go",)}, None, {**FREE, "due": NOW}),
    ("another signal", {"signals": (STOP,), "waits": ("go",)}, None, FREE),
)
def test_released(before: Fields, given: str | None, expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.released(record, None, ME, NOW, given))


NEXT: Fields = {"run": "next", "step": 0, "status": "running", "due": NOW + core.GRACE, "changed": NOW, "version": 2}
NEXT |= {"started": NOW, "attempts": 0, "error": "", "waits": (), "once": (), "cancel": "", **LONG}


@table(
    ("what is kept", {**FULL, "errors": "raise"}, (STOP, GO), NEXT),
    ("a cancellation was asked for", {"cancel": "asked"}, (), {**NEXT, "cancel": "asked", "status": "cancelling"}),
    ("it was cancelled before", {"cancel": "done", "status": "cancelling"}, (), NEXT),
    ("a signal has come meanwhile", {"signals": (GO, STOP)}, (GO,), None),
    ("after a lost answer, written", {"run": "next"}, (), None),
    ("after a lost answer, written and taken by another", {"run": "next", **TAKEN}, (), None),
)
def test_begun_anew(before: Fields, given: tuple[Signal, ...], expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.begun_anew(record, None, ME, NOW, "next", given, 2))


VALUE = {**AT_REST, "error": "E: x", "due": NOW + 5, "changed": NOW, "signals": (), "closed": ()}


@table(
    *((f"{status}, cancel {cancel!r}", {**FULL, "cancel": cancel}, status, {**VALUE, "status": status}) for status in sorted(core.ENDED) for cancel in ("", "asked", "done")),
    *((f"{status} already", free(status), status, None) for status in sorted(core.ENDED)),
    ("cancelled by force, meanwhile", free("cancelled", holder=""), "cancelled", Fenced),
)  # fmt: skip
@DOUBT
def test_finished(before: Fields, given: str, expected: Expected, since: Since) -> None:
    comes_to(expected, before, lambda record: core.finished(record, since, ME, NOW, given, NOW + 5, "E: x"))


IN_THE_LOG = [Entry("run", 3, 0, '{"asked":"wait go","signal":"n1","started":1.0,"ended":2.0}', b"")]
KEPT = (True, {"signals": (GO,)})


@table(
    ("held", {}, {}, KEPT),
    ("held and waited for", {"waits": ("go",)}, {}, KEPT),
    ("waited for", free("waiting", waits=("go",)), {}, (True, {"signals": (GO,), "due": NOW})),
    ("another waited for", free("waiting", waits=("x",)), {}, KEPT),
    ("after others", {"signals": (STOP,)}, {}, (True, {"signals": (STOP, GO)})),
    ("parked", free("failed", due=None), {}, KEPT),
    ("cancelling", {"cancel": "asked", "status": "cancelling"}, {}, KEPT),
    ("its name is taken", {"signals": (MORE,)}, {}, (False, None)),
    ("its name is closed", {"closed": ("go",)}, {}, (False, None)),
    ("queued", {"signals": (MORE, STOP)}, {"queue": True}, (True, {"signals": (MORE, STOP, GO)})),
    ("queued, its name closed", {"closed": ("go",)}, {"queue": True}, KEPT),
    ("kept already", {"signals": (STOP, GO), "closed": ("go",)}, {"since": []}, (True, None)),
    ("queued already", {"signals": (GO, MORE)}, {"since": [], "queue": True}, (True, None)),
    ("taken already", {"step": 4, "closed": ("go",)}, {"since": IN_THE_LOG}, (True, None)),
    ("taken, and it has ended since", free("finished", step=4), {"since": IN_THE_LOG}, (True, None)),
    ("not written, and the name taken", {"signals": (MORE,)}, {"since": []}, (False, None)),
    ("not written", {}, {"since": []}, KEPT),
    *((status, free(status), {}, (None, AlreadyEnded)) for status in sorted(core.ENDED)),
    ("making", free("making"), {}, (None, UnknownExecution)),
    ("absent", None, {}, (None, UnknownExecution)),
    ("another run", {"run": "another"}, {}, KEPT),
    ("after a lost answer, another run", {"run": "another"}, {"since": []}, (None, StorageError)),
    ("after a lost answer, gone", None, {"since": []}, (None, StorageError)),
)  # fmt: skip
def test_signalled(before: Fields | None, given: Fields, expected: tuple[bool | None, Expected]) -> None:
    told, is_kept = {"since": None, "queue": False, **given}, None

    def change(record: Record | None) -> Record | None:
        nonlocal is_kept
        is_kept, new = core.signalled(record, told["since"], held(), GO, NOW, told["queue"])
        return new

    comes_to(expected[1], before, change)
    assert is_kept == expected[0]


def test_the_place_of_a_signal_fits_into_32_bits_and_is_below_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for byte in (b"\0", b"\xff"):
        monkeypatch.setattr(core, "urandom", byte.__mul__)
        assert -(2**31) <= core.random_place() < core.INPUT


def test_two_signals_are_never_kept_at_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def flow() -> Any:
        return [(yield wait("go")), (yield wait("stop"))]

    places = iter([-7, -7, -8, -9])
    monkeypatch.setattr(core, "random_place", lambda: next(places))
    executor = FlowExecutor(MemoryStorage(), workflows=[flow], budget=60)
    executor.start_sync(flow, "id")
    assert executor.signal_sync("id", "go", 1)
    assert executor.signal_sync("id", "stop", 2)
    assert executor.resume_sync("id") == [1, 2]


ENDED_NOW = {**VALUE, "error": "", "holder": "", "status": "cancelled"}
ASKED = {"status": "cancelling", "changed": NOW, "cancel": "asked"}


@table(
    ("held", FULL, False, ASKED),
    *((status, free(status), False, {**ASKED, "due": NOW}) for status in ("running", *sorted(core.RESTING))),
    ("asked for before", {"status": "cancelling", "cancel": "asked"}, False, None),
    ("being undone", free("cancelling", cancel="done"), False, None),
    ("failed while undoing", free("failed", cancel="done"), False, ENDED_NOW),
    *((status, free(status, **FULL), False, ENDED_NOW) for status in sorted(core.PARKED)),
    *((f"{status}, by force", {"status": status, **FULL}, True, ENDED_NOW) for status in sorted(core.STATUSES - core.ENDED - {"making"})),
    *((f"cancelled, force={force}", free("cancelled"), force, None) for force in (False, True)),
    *((f"finished, force={force}", free("finished"), force, AlreadyEnded) for force in (False, True)),
    *((f"making, force={force}", free("making"), force, UnknownExecution) for force in (False, True)),
    ("absent", None, False, UnknownExecution),
)  # fmt: skip
def test_cancelled(before: Fields | None, given: bool, expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.cancelled(record, "id", NOW, given, NOW + 5))


@table(
    *((status, free(status, **FULL), {"due": NOW}) for status in ("running", "cancelling", *sorted(core.RESTING))),
    *((status, free(status, **FULL), TAKEN_UP) for status in sorted(core.PARKED)),
    ("stuck while undoing", free("stuck", cancel="done"), {**TAKEN_UP, "status": "cancelling"}),
    ("held", {}, None),
    ("held by a dead process", {"owner": "dead process"}, {"due": NOW}),
    ("the lease is over", {"over": NOW}, {"due": NOW}),
    *((status, free(status), None) for status in sorted(core.ENDED)),
    ("making", free("making"), UnknownExecution),
    ("absent", None, UnknownExecution),
)
def test_rung(before: Fields | None, expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.rung(record, "id", NOW, is_dead))


STUCK = {**AT_REST, "holder": "", "status": "stuck", "due": None, "changed": NOW}


@table(
    ("held", {"attempts": 10, "due": NOW}, {"due": NOW + 80}),
    ("held, its lease over by less than half", {"lease": NOW - 9, "over": NOW + 9, "due": NOW}, {"due": NOW + 9}),
    ("its lease over", {"over": NOW}, {"due": NOW + 60, "attempts": 1}),
    ("held by a dead process", {"owner": "dead process"}, {"due": NOW + 60, "attempts": 1}),
    ("free", free("sleeping", attempts=1), {"due": NOW + 120, "attempts": 2}),
    ("for the last time", free(attempts=9), {"due": NOW + 7200, "attempts": 10}),
    ("too often", free(attempts=10, waits=("go",), signals=(GO,)), {**STUCK, "error": "no progress in 10 attempts of the sweep: mend what is wrong, then ring it"}),
    ("too often, by a mistake", {"attempts": 10, "error": "E: x", "over": NOW}, {**STUCK, "error": "no progress in 10 attempts of the sweep, the last error being E: x: mend what is wrong, then ring it"}),
)  # fmt: skip
def test_swept(before: Fields, expected: Expected) -> None:
    comes_to(expected, before, lambda record: core.swept(record, NOW, is_dead, lambda _: 2.0))


def test_not_rung() -> None:
    comes_to({"attempts": 3}, free(attempts=4, error="E"), lambda record: core.not_rung(record, 3))


# The state as it is stored.

names = st.text("ago.:", min_size=1, max_size=3)
many = st.lists(names, max_size=3).map(tuple)
numbers = st.floats(0, 1e13)
states = st.builds(
    State, holder=names | st.just(""), owner=st.text(max_size=5), lease=numbers, over=numbers, started=numbers,
    errors=st.sampled_from(["value", "raise"]), version=st.integers(-(2**63), 2**63 - 1), waits=many, once=many, closed=many,
    input=st.none() | st.integers(0, 2**32), attempts=st.integers(0, 10), error=st.text(max_size=5),
    cancel=st.sampled_from(["", "asked", "done"]),
    signals=st.lists(st.builds(Signal, names, st.integers(-(2**31), -2), names), max_size=3).map(tuple),
)  # fmt: skip


@given(states)
def test_a_state_is_read_as_it_was_written_and_only_what_differs_is(state: State) -> None:
    text = state_text(state)
    assert state_of(held()._replace(state=text)) == state
    assert json.loads(text)["format"] == core.FORMAT
    assert set(json.loads(text)) == {"format", *(name for name in State._fields if getattr(state, name) != getattr(State(), name))}  # fmt: skip
    assert state_of(held()._replace(state=f'{text[:-1]},"of a later release":1}}')) == state


def test_a_state_of_a_later_format_is_refused_and_is_no_damage() -> None:
    with pytest.raises(StorageError, match=r"format 2.*upgrade") as caught:
        state_of(held()._replace(state='{"format":2}'))
    assert not isinstance(caught.value, Damaged)


BROKEN = ["", "{", "[]", "null", "{}", '{"format":null}', '{"format":1,"waits":3}', '{"format":1,"signals":[["go"]]}']
BROKEN += ['{"format":1,"lease":{}}', '{"format":1,"signals":[["go",1e999,"n"]]}', "[" * 100_000]
BROKEN += [f'{{"format":1,"lease":{10**400}}}']


@pytest.mark.parametrize("text", BROKEN, ids=[text[:30] for text in BROKEN])
def test_a_state_that_cannot_be_read_is_damage(text: str) -> None:
    with pytest.raises(Damaged, match="its record") as caught:
        state_of(held()._replace(state=text))
    assert (caught.value.id, caught.value.place) == ("id", None)


def test_a_record_never_holds_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
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

    def write(store: MemoryStorage, old: Record | None, new: Record | None, *rest: Any, **options: Any) -> bool:
        written.append(new)
        return unpatched(store, old, new, *rest, **options)

    written, unpatched, clock = list[Record | None](), MemoryStorage.write, FakeClock()
    monkeypatch.setattr(MemoryStorage, "write", write)
    executor = FlowExecutor(MemoryStorage(), call=call, clock=clock, retain=True)
    value = executor.execute_sync(flow, "id", "secret first")
    while isinstance(value, Paused):
        clock.advance(6)
        executor.signal_sync("id", "go", "secret payload", queue=True)
        value = executor.execute_sync(flow, "id")
    assert value == "secret value"
    assert len(written) > 10
    assert "secret" not in repr(written)


# Any order.


class Anything(RuleBasedStateMachine):
    """Invocations, a sender, a canceller and a sweeper take turns at one record."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.record = NOW, held(holder="", step=0, **FREE)
        self.holds, self.log, self.sent = list[Hold](), list[Entry](), list[tuple[Change, Record]]()
        self.numbers = iter(range(10**6))

    def write(self, change: Change, by: Hold | None = None, taken: str = "") -> None:
        """Apply a change, and look at what it does; asked again after a lost answer, it does not do it twice."""
        before, after = self.record, change(self.record, None)
        if after is None:
            return
        old, new = state_of(before), state_of(after)
        assert before.status not in core.ENDED
        assert after.status in core.STATUSES
        assert (after.id, after.workflow, new.errors, new.input) == ("id", "flow", old.errors, old.input)
        if (after.run, after.step) != (before.run, before.step):
            assert by is not None
            assert by == self.holds[-1]
            assert core.is_holder(before, by)
            assert (after.run, after.step) in {(before.run, before.step + 1), (f"after {before.run}", 0)}
            self.log = [*self.log, Entry("", 0, 0, f'"signal":"{taken}"', b"")] if after.step else []
        gone = {signal.nonce for signal in set(old.signals) - set(new.signals)}
        assert after.status in core.ENDED or gone <= {taken}
        assert new.signals[: len(old.signals) - len(gone)] == tuple(s for s in old.signals if s.nonce not in gone)
        assert len(set(new.signals)) == len(new.signals)
        assert not (new.lease and after.status in core.ENDED | core.PARKED)
        self.record = after
        assert change(after, self.log[before.step :]) in {None, after}

    @rule(seconds=st.sampled_from([1.0, 30.0, 59.0, 90.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(parked=st.booleans())
    def claim(self, parked: bool) -> None:
        hold = Hold("id", self.record.run, f"h{next(self.numbers)}", "a process", 60.0)
        self.write(lambda record, _: record and core.claimed(record, hold, self.now, is_dead, None, 0, parked))
        if core.is_holder(self.record, hold):
            self.holds.append(hold)

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), what=st.sampled_from([name for name in ALL if name != "removed"]))
    def a_holder_writes(self, data: st.DataObject, what: str) -> None:
        record, state, hold = self.record, state_of(self.record), data.draw(st.sampled_from(self.holds[::-1]))
        waits = data.draw(st.lists(st.sampled_from(["go", "stop"]), unique=True))
        taken = next((signal.nonce for signal in state.signals if signal.name in state.waits), "")
        answer = Answers(record.step + 1, waits, state.waits, signal=taken, is_cancel=state.cancel == "asked")
        answers = data.draw(st.sampled_from([answer, answer._replace(signal="", is_timeout=True), None]))
        changes = writes(hold, self.now, f"after {record.run}", state.signals, waits, answers)
        changes["answered"] = changes["answered"] if answers else changes["marked"]
        if hold == self.holds[-1] and core.is_holder(record, hold):
            self.write(changes[what], hold, answers.signal if answers else "")
            self.holds[-1] = hold._replace(run=self.record.run)
        elif (hold.holder, hold.run) == (state.holder, record.run) and what in (*GIVING_BACK, record.status):
            assert changes[what](record, None) is None
        else:
            with pytest.raises(Fenced):
                changes[what](record, None)

    @rule(name=st.sampled_from(["go", "stop"]), queue=st.booleans())
    def send(self, name: str, queue: bool) -> None:
        known, signal = self.record, Signal(name, -2 - next(self.numbers), f"n{next(self.numbers)}")

        def change(record: Record | None, since: Since) -> Record | None:
            return core.signalled(record, since, known, signal, self.now, queue)[1]

        if known.status in core.ENDED:
            with pytest.raises(AlreadyEnded):
                change(known, None)
        else:
            is_kept, _ = core.signalled(known, None, known, signal, self.now, queue)
            self.write(change)
            assert is_kept == (signal in state_of(self.record).signals)
            self.sent += [(change, known)] if is_kept else []

    @precondition(lambda self: self.sent and self.record.status not in core.ENDED)
    @rule(data=st.data())
    def a_sender_asks_again_after_a_lost_answer(self, data: st.DataObject) -> None:
        change, known = data.draw(st.sampled_from(self.sent))
        if self.record.run == known.run:
            assert change(self.record, self.log[known.step :]) is None

    @rule(force=st.booleans())
    def cancel(self, force: bool) -> None:
        if self.record.status == "finished":
            with pytest.raises(AlreadyEnded):
                core.cancelled(self.record, "id", self.now, force, None)
        else:
            self.write(lambda record, _: core.cancelled(record, "id", self.now, force, None))
            assert self.record.status == "cancelled" or (not force and state_of(self.record).cancel)

    @rule()
    def ring(self) -> None:
        self.write(lambda record, _: core.rung(record, "id", self.now, is_dead))

    @precondition(lambda self: self.record.status not in core.ENDED and (self.record.due or NOW * 9) <= self.now)
    @rule()
    def sweep(self) -> None:
        self.record = core.swept(self.record, self.now, is_dead, lambda _: 1.0)
        assert self.record.due is None or self.record.due > self.now

    @invariant()
    def somebody_looks_at_it_again(self) -> None:
        record, state = self.record, state_of(self.record)
        if record.due is None and record.status not in core.ENDED | core.PARKED:
            assert not state.lease
            assert record.status in {"waiting", "cancelling"}
            assert state.cancel != "asked"
            assert not {signal.name for signal in state.signals} & set(state.waits)


Anything.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnything = Anything.TestCase
