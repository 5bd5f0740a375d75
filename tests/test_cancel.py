"""Cancelling: what a workflow may still do, and what ends an execution at once."""

# Loops here take at least one turn, and a `try` that is left has been entered.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sequential import AlreadyEnded, Cancelled, Event, Fenced, Paused, again, current, save, sleep, tool, wait
from sequential.blocking import settle
from sequential.testing import JournalAround
from tests.lab import PLAIN, Asked, Lab, open_lab
from tests.support import echo

Flow = Generator[Any, Any, Any]


class Dies(BaseException):
    """The process dies within a tool."""


def asked(flow: Asked, id: str = "id") -> list[str]:
    return [step["asked"] for step in flow.history(id)]


def leaves_it(input: Any) -> Flow:
    try:
        yield from ask(input)
    except Exception as error:
        raise AssertionError from error
    yield tool("api", "next")


def ask(what: str) -> Flow:
    """Ask for something of each kind."""
    yield tool("api", "first")
    yield {
        "tool": tool("api", "second"),
        "list": [tool("api", "second"), tool("api", "third")],
        "save": save(),
        "sleep": sleep(5),
        "wait": wait("go"),
        "wait with timeout": wait("go", 5),
    }[what]


KINDS = ("tool", "list", "save", "sleep", "wait", "wait with timeout")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rests", [0, 1])
def test_uncaught_it_ends_the_execution_at_its_next_invocation(lab: Lab, kind: str, rests: int) -> None:
    calls: list[str] = []
    flow = lab.flow(call=lambda category, name, input: calls.append(name), workflows=[leaves_it])
    flow.start(leaves_it, "id", kind)
    for _ in range(rests):
        flow.resume("id")
    before, log = calls[:], asked(flow)
    lab.rung.clear()
    assert flow.cancel("id") is True
    assert (lab.status("id").status, lab.status("id").busy, lab.rung) == ("cancelling", False, ["id"])
    assert flow.resume("id") is None
    assert (calls, asked(flow)) == (before, [*log, "cancel"])
    status = lab.status("id")
    assert (status.status, status.step, status.due, status.error) == ("cancelled", len(log) + 1, None, None)
    assert flow.resume("id") is None
    with pytest.raises(AlreadyEnded) as caught:
        flow.execute(leaves_it, "id")
    assert (caught.value.id, caught.value.status) == ("id", "cancelled")
    lab.clock.advance(1e6)
    assert flow.sweep() == []


@pytest.mark.parametrize("kind", KINDS[2:])
def test_what_rests_is_cancelled_too(lab: Lab, kind: str) -> None:
    flow = lab.flow(call=echo, budget=1e9, workflows=[leaves_it])
    assert isinstance(flow.execute(leaves_it, "id", kind), Paused)
    assert flow.cancel("id")
    lab.clock.advance(10.0)  # what is over meanwhile does not count: the cancellation was first
    assert flow.resume("id") is None
    assert lab.status("id").status == "cancelled"
    assert asked(flow)[-1] == "cancel"
    assert "tool api.next" not in asked(flow)


def undoes(input: Any) -> Flow:
    try:
        for number in range(5):
            yield tool("api", f"do {number}")
    except Cancelled:
        undone = yield tool("api", "undo 1")
        yield sleep(60)
        yield [tool("api", "undo 2", undone), tool("api", "undo 3")]
        answer = yield wait("confirmed")
        yield tool("api", "undo 4", answer)
        if input == "swallows":
            return "undone"
        raise


UNDONE = ["tool api.undo 1", "sleep", "tool api.undo 2", "tool api.undo 3", "wait confirmed", "tool api.undo 4"]


@pytest.mark.parametrize("input", ["ends", "swallows"])
@pytest.mark.parametrize("dies_at", [None, 1, 2, 3, 4])
def test_caught_it_is_undone_durably_by_further_steps(lab: Lab, input: str, dies_at: int | None) -> None:
    left = [f"undo {dies_at}"]
    keys = dict[str, str]()

    def call(category: str, name: str, input: Any) -> str:
        assert keys.setdefault(name, current().key) == current().key
        if name in left:
            left.remove(name)
            raise Dies
        return f"{name} done"

    flow = lab.flow(call=call, workflows=[undoes], retain=True)
    flow.execute(undoes, "id", input)
    flow.cancel("id")
    flow.signal("id", "confirmed", "yes")
    statuses = set[str]()
    for _ in range(12):
        try:
            value = flow.resume("id")
        except Dies:
            continue
        if not isinstance(value, Paused):
            break
        statuses.add(lab.status("id").status)
        assert flow.cancel("id")  # the second time it changes nothing
        lab.clock.advance(60.0)
    assert value == ("undone" if input == "swallows" else None)
    assert lab.status("id").status == ("finished" if input == "swallows" else "cancelled")
    assert statuses == {"cancelling"}
    assert asked(flow) == ["tool api.do 0", "cancel", *UNDONE]
    assert [step["result"] for step in flow.history("id")] == [
        "do 0 done", None, "undo 1 done", None, "undo 2 done", "undo 3 done", "yes", "undo 4 done",
    ]  # fmt: skip
    assert len(set(keys.values())) == len(keys)


def test_what_could_not_be_undone_shows_in_the_status(lab: Lab) -> None:
    def notes() -> Flow:
        try:
            yield save()
        except Cancelled as cancelled:
            cancelled.add_note("the flight is still booked")
            cancelled.add_note("the car, too")
            raise

    flow = lab.flow(workflows=[notes])
    flow.start(notes, "id")
    flow.cancel("id")
    assert flow.resume("id") is None
    status = lab.status("id")
    assert (status.status, status.error) == ("cancelled", "the flight is still booked; the car, too")


def test_swallowed_the_workflow_goes_on_and_is_not_cancelled_again(lab: Lab) -> None:
    def swallows() -> Flow:
        for number in range(3):
            try:
                yield tool("api", str(number))
            except Cancelled:
                yield tool("api", "swallowed")
        return "end"

    flow = lab.flow(call=echo, workflows=[swallows], retain=True)
    flow.execute(swallows, "id")
    flow.cancel("id")
    while isinstance(value := flow.resume("id"), Paused):
        assert lab.status("id").status == "cancelling"
        flow.cancel("id")
    assert value == "end"
    assert asked(flow) == ["tool api.0", "cancel", "tool api.swallowed", "tool api.2"]
    with pytest.raises(AlreadyEnded):
        flow.cancel("id")


def two_lists(input: Any) -> Flow:
    try:
        yield tool("api", "before")
        yield [tool("api", name) for name in "abc"]
        yield tool("api", "after")
    except Cancelled:
        yield tool("api", "undo")
        raise


def cancelling_in_flight(lab: Lab, asynchronous: bool, at: str) -> tuple[Asked, list[str]]:
    """Run `two_lists`, cancelled from within the call `at`, and return the executor and the names that were called."""
    calls: list[str] = []

    def call(category: str, name: str, input: Any) -> str:
        calls.append(name)
        if name == at:
            assert flow.cancel("id") is True
            assert (lab.status("id").status, lab.status("id").busy) == ("cancelling", True)
        return name

    async def call_async(category: str, name: str, input: Any) -> str:
        calls.append(name)
        await asyncio.sleep(0)
        if name == at:
            assert flow.cancel("id") is True
        for _ in range(5):
            await asyncio.sleep(0)
        return name

    flow = lab.flow(call=call_async if asynchronous else call, workflows=[two_lists], budget=1e9)
    with pytest.raises(AlreadyEnded):
        flow.execute(two_lists, "id")
    return flow, calls


@pytest.mark.parametrize(
    ("at", "asynchronous", "recorded"),
    [
        ("before", False, ["before"]),
        ("before", True, ["before"]),
        ("a", False, ["before", "a"]),
        ("b", False, ["before", "a", "b"]),
        ("c", False, ["before", "a", "b", "c"]),
        ("a", True, ["before", "a", "b", "c"]),
        ("c", True, ["before", "a", "b", "c"]),
    ],
)
def test_calls_in_flight_are_recorded_and_no_other_begins(
    lab: Lab, at: str, asynchronous: bool, recorded: list[str]
) -> None:
    flow, calls = cancelling_in_flight(lab, asynchronous, at)
    assert calls == [*recorded, "undo"]
    assert asked(flow) == [*(f"tool api.{name}" for name in recorded), "cancel", "tool api.undo"]
    history = flow.history("id")
    assert [step["result"] for step in history] == [*recorded, None, "undo"]
    assert lab.status("id").status == "cancelled"


@pytest.mark.parametrize("retain", [False, True])
def test_a_finish_that_was_first_wins(lab: Lab, retain: bool) -> None:
    def one() -> Flow:
        return (yield tool("api", "one"))

    def call(category: str, name: str, input: Any) -> str:
        return f"cancelled: {flow.cancel('id')}"

    flow = lab.flow(call=call, budget=1e9, retain=retain)
    assert flow.execute(one, "id") == "cancelled: True"
    status = flow.status("id")
    assert status.status == "finished" if retain else status is None
    if retain:
        assert flow.execute(one, "id") == "cancelled: True"


@pytest.mark.parametrize("retain", [False, 5])
def test_a_failure_that_was_first_ends_it_as_cancelled(lab: Lab, retain: float) -> None:
    def fails() -> Flow:
        yield tool("api", "one")
        raise ValueError("too late to be mended")

    events = list[Event]()
    flow: Asked = lab.flow(call=lambda *_: flow.cancel("id"), budget=1e9, retain=retain, observe=events.append)
    with pytest.raises(ValueError, match="too late"):
        flow.execute(fails, "id")
    assert (lab.status("id").status, events[-1].kind) == ("cancelled", "cancelled")
    lab.clock.advance(1e6)
    assert flow.sweep() == []
    assert (flow.status("id") is None) == bool(retain)  # the sweep has removed it in time


@pytest.mark.parametrize("status", ["failed", "diverged", "stuck"])
def test_what_is_parked_ends_at_once_and_what_was_mended_first_undoes(lab: Lab, status: str) -> None:
    broken = True

    def fragile() -> Flow:
        try:
            yield tool("api", "other" if broken and status == "diverged" and calls else "one")
            if broken and status == "failed":
                raise ValueError
            yield tool("api", "two")
        except Cancelled:
            yield tool("api", "undo")

    calls: list[str] = []
    flow = lab.flow(call=lambda category, name, input: calls.append(name), workflows=[fragile])
    for id in ("at-once", "mended"):
        calls.clear()
        flow.execute(fragile, id)
        if status == "stuck":
            while lab.status(id).status != "stuck":
                lab.clock.advance(8000.0)
                flow.sweep()
        else:
            with pytest.raises(Exception, match=r"^$|diverged|recorded"):
                flow.resume(id)
        assert lab.status(id).status == status
    calls.clear()
    lab.rung.clear()
    assert flow.cancel("at-once") is flow.cancel("at-once") is True
    broken = False
    assert (lab.status("at-once").status, flow.resume("at-once")) == ("cancelled", None)
    assert calls == lab.rung == []
    assert flow.ring("mended") is flow.cancel("mended") is True
    assert flow.resume("mended") == {"paused": "mended", "step": 2}
    assert calls == ["undo"]


def test_a_cancellation_goes_on_to_the_next_run_if_it_was_not_seen(lab: Lab) -> None:
    def rounds(input: Any) -> Flow:
        try:
            yield tool("api", "one", input)
        except Cancelled:
            yield tool("api", "undo", input)
            raise
        return again({"round": input["round"] + 1})

    calls: list[Any] = []

    def call(category: str, name: str, input: Any) -> None:
        calls.append((name, input["round"]))
        if input["round"] == 2 and name == "one":
            flow.cancel("id")

    flow = lab.flow(call=call, budget=1e9)
    with pytest.raises(AlreadyEnded):
        flow.execute(rounds, "id", {"round": 1})
    assert calls == [("one", 1), ("one", 2), ("undo", 3)]
    assert asked(flow) == ["cancel", "tool api.undo"]


def test_undone_and_begun_anew_it_is_no_longer_cancelled(lab: Lab) -> None:
    def rounds(input: Any) -> Flow:
        try:
            yield save()
        except Cancelled:
            return again({"round": 2})
        yield save()
        return f"round {input['round']}"

    flow = lab.flow(workflows=[rounds])
    flow.start(rounds, "id", {"round": 1})
    flow.cancel("id")
    flow.resume("id")
    assert (lab.status("id").status, lab.status("id").step) == ("running", 0)
    assert lab.go_on(workflows=[rounds]) == "round 2"


class Losing(JournalAround):
    """Loses the answer of one write, which takes place."""

    left = -1

    async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        done = await settle(method(*arguments, **options))
        if what == "write":
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("the answer was lost")
        return done


@pytest.mark.parametrize("kind", PLAIN)
def test_a_lost_answer_cancels_once_and_undoes_once(kind: str, tmp_path: Path) -> None:
    with open_lab(kind, tmp_path) as lab:
        journal = Losing(lab.plain)
        flow = lab.flow(on=journal, call=echo, workflows=[undoes], retain=True)
        for lost in range(1, 30):
            journal.left, id = -1, f"id-{lost}"
            flow.execute(undoes, id, "ends")
            journal.left = lost
            assert flow.cancel(id) is True
            assert flow.signal(id, "confirmed", None) is True
            while lab.status(id).status != "cancelled":
                assert isinstance(flow.resume(id), Paused | None)
                lab.clock.advance(60.0)
            assert asked(flow, id) == ["tool api.do 0", "cancel", *UNDONE]
            if journal.left > 0:
                break
        assert 12 < lost < 29


def test_by_force_it_ends_at_once_and_fences_who_is_at_work(lab: Lab) -> None:
    calls: list[str] = []
    events: list[Event] = []

    def call(category: str, name: str, input: Any) -> None:
        calls.append(name)
        if name == "do 1":
            lab.rung.clear()
            assert flow.cancel("id", force=True) is flow.cancel("id", force=True) is flow.cancel("id") is True
            assert (lab.status("id").status, lab.status("id").busy) == ("cancelled", False)

    flow = lab.flow(call=call, budget=1e9, observe=events.append, workflows=[undoes])
    with pytest.raises(Fenced) as caught:
        flow.execute(undoes, "id")
    assert caught.value.id == "id"
    assert calls == ["do 0", "do 1"]  # nothing is undone
    assert lab.rung == []
    assert asked(flow) == ["tool api.do 0"]
    assert [event.kind for event in events].count("cancelled") == 1
    assert flow.resume("id") is None


def test_a_cancellation_that_was_asked_for_may_still_be_forced(lab: Lab) -> None:
    calls: list[str] = []
    flow = lab.flow(call=lambda category, name, input: calls.append(name), workflows=[undoes])
    flow.execute(undoes, "id")
    flow.cancel("id")
    flow.resume("id")
    assert (lab.status("id").status, calls) == ("cancelling", ["do 0", "undo 1"])
    assert flow.cancel("id", force=True)
    assert (lab.status("id").status, flow.resume("id"), calls) == ("cancelled", None, ["do 0", "undo 1"])


def test_a_group_of_nothing_but_cancellations_is_one(lab: Lab) -> None:
    def groups(input: Any) -> Flow:
        try:
            yield wait("go")
        except* Cancelled as group:
            if input:
                raise BaseExceptionGroup("and", [Cancelled(), ValueError("undone")]) from group
            raise

    for input, status in ((False, "cancelled"), (True, "failed")):
        flow = lab.flow(workflows=[groups])
        flow.execute(groups, status, input)
        flow.cancel(status)
        with suppress(BaseExceptionGroup):
            flow.resume(status)
        assert lab.status(status).status == status


def test_a_group_with_a_stop_in_it_is_a_stop(lab: Lab) -> None:
    def stops() -> Flow:
        yield save()
        raise BaseExceptionGroup("both", [Cancelled(), KeyboardInterrupt()])

    flow = lab.flow()
    flow.execute(stops, "id")
    with pytest.raises(BaseExceptionGroup, match="both"):
        flow.execute(stops, "id")
    assert (lab.status("id").status, lab.status("id").busy) == ("running", False)


def test_what_a_cancellation_notes_can_be_stored_whatever_it_is(lab: Lab) -> None:
    def notes() -> Flow:
        try:
            yield wait("go")
        except Cancelled as cancelled:
            cancelled.add_note("\udcff\0 stays")
            raise

    flow = lab.flow(workflows=[notes])
    flow.execute(notes, "id")
    flow.cancel("id")
    assert flow.resume("id") is None
    assert (lab.status("id").status, lab.status("id").error) == ("cancelled", r"\udcff\x00 stays")
