"""What goes wrong in tools, workflows and values, and what becomes of it."""

# Loops here take at least one turn, and a `try` that is left has been entered.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Generator
from typing import Any

import pytest

from sequential import (
    Cancelled,
    Event,
    Fenced,
    FlowExecutor,
    NotEncodable,
    Paused,
    SequentialError,
    ToolError,
    again,
    save,
    tool,
    wait,
)
from sequential.blocking import settle
from sequential.testing import JournalAround
from tests.lab import Lab
from tests.support import PlainStorage, echo

Flow = Generator[Any, Any, Any]


class Dies(BaseException):
    """The process dies within a tool."""


def one(input: Any) -> Flow:
    return (yield tool("api", "one", input))


def three(input: Any) -> Flow:
    return (yield [tool("api", name, input) for name in "abc"])


def asked(flow: Any) -> list[str]:
    return [step["asked"].removeprefix("tool api.") for step in flow.history("id")]


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class LikeKeyboard(BaseException):
    """What is no `Exception`."""


# Errors of tools.

ERRORS = {
    "no such user": ValueError("no such user"),
    "KeyError": KeyError(),
    "Silent": Silent(),
    "lone \\ud800 surrogate": OSError("lone \ud800 surrogate"),
    "StopAsyncIteration": StopAsyncIteration(),
    "one; KeyError; two": ExceptionGroup("some", [ValueError("one"), KeyError(), ExceptionGroup("", [OSError("two")])]),
    "CancelledError": asyncio.CancelledError(),
    "of its own": asyncio.CancelledError("of its own"),
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_an_error_of_a_tool_is_a_value(any_lab: Lab, asynchronous: bool, several: bool) -> None:
    def call(category: str, name: str, input: Any) -> Any:
        if name == "fail":
            raise ERRORS[input]
        return input

    async def call_async(category: str, name: str, input: Any) -> Any:
        await asyncio.sleep(0)
        return call(category, name, input)

    def fails() -> Flow:
        got: list[Any] = []
        for text in ERRORS:
            answers = [tool("api", "echo", text), tool("api", "fail", text), tool("api", "echo", text)]
            got.append((yield answers) if several else (yield answers[1]))
        yield save()
        return got

    flow = any_lab.flow(call=call_async if asynchronous else call, budget=1e9)
    flow.execute(fails, "id")
    failed = [step for step in flow.history("id") if step["result"] not in (*ERRORS, None)]
    assert [step["result"] for step in failed] == [{"__error": text} for text in ERRORS]
    if "five" not in any_lab.kind:
        assert [step["error"] for step in failed] == [type(error).__name__ for error in ERRORS.values()]
    values = [[text, {"__error": text}, text] if several else {"__error": text} for text in ERRORS]
    assert flow.execute(fails, "id") == values


@pytest.mark.parametrize(
    ("error", "asynchronous"),
    [
        (KeyboardInterrupt, False),
        (SystemExit, False),
        *itertools.product([LikeKeyboard, Cancelled, Fenced("another")], [False, True]),
    ],
)
@pytest.mark.parametrize("workflow", [one, three])
def test_what_is_no_result_is_not_recorded_and_gives_the_lease_back(
    lab: Lab, error: Any, asynchronous: bool, workflow: Any
) -> None:
    is_raising = True

    def call(category: str, name: str, input: Any) -> Any:
        if is_raising and name in {"one", "b"}:
            raise error
        return name

    async def call_async(category: str, name: str, input: Any) -> Any:
        return call(category, name, input)

    flow = lab.flow(call=call_async if asynchronous else call, workflows=[workflow])
    with pytest.raises(error if isinstance(error, type) else type(error)):
        flow.execute(workflow, "id", {"n": 1})
    status = lab.status("id")
    assert (status.status, status.busy) == ("running", False)
    assert not {"one", "b"} & set(asked(flow))
    lab.clock.advance(31.0)
    assert flow.sweep() == ["id"]
    is_raising = False
    assert lab.go_on(call=call, workflows=[workflow]) == ("one" if workflow is one else ["a", "b", "c"])


@pytest.mark.parametrize("workflow", [one, three])
def test_a_cancelled_invocation_is_no_error_of_its_tool(lab: Lab, workflow: Any) -> None:
    async def main() -> None:
        called = asyncio.Event()

        async def call(category: str, name: str, input: Any) -> Any:
            called.set()
            await asyncio.Event().wait()

        flow = FlowExecutor(lab.storage, call=call, clock=lab.clock)
        task = asyncio.create_task(flow.execute(workflow, "id", {"n": 1}))
        await called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    lab.runner.run(main())
    status = lab.status("id")
    assert (status.status, status.step, status.busy, status.error) == ("running", 0, False, None)
    assert lab.go_on(call=echo, workflows=[workflow]) == ({"n": 1} if workflow is one else [{"n": 1}] * 3)


# With errors="raise".


@pytest.mark.parametrize("answer", ["raised", "returned"])
def test_an_error_is_raised_where_it_would_have_been_the_answer(any_lab: Lab, answer: str) -> None:
    def tries(input: Any) -> Flow:
        try:
            yield tool("api", "one", input)
        except ToolError as error:
            caught = [error.message, error.tool, list(error.not_undone)]
        return [caught, (yield tool("api", "two", {"__error": "of two", "and": "more"}))]

    def call(category: str, name: str, input: Any) -> Any:
        if name == "one" and answer == "raised":
            raise ValueError("no seat")
        return {"__error": "no seat"} if name == "one" else input

    flow = any_lab.flow(call=call, errors="raise")
    assert flow.to_end(tries, "id")[-1] == [["no seat", "api.one", []], {"__error": "of two", "and": "more"}]


def test_an_error_that_nobody_catches_parks_the_execution(lab: Lab) -> None:
    def call(category: str, name: str, input: Any) -> Any:
        raise ValueError("no seat")

    flow = lab.flow(call=call, errors="raise", budget=1e9)
    for _ in range(2):
        with pytest.raises(ToolError, match=r"^api.one failed: no seat$"):
            flow.execute(one, "id")
        status = lab.status("id")
        assert (status.status, status.step, status.error) == ("failed", 1, "ToolError: api.one failed: no seat")


def test_a_timeout_and_an_interruption_are_raised_too(lab: Lab) -> None:
    is_dying = True

    def tries() -> Flow:
        caught: list[Any] = []
        for request in (wait("go", 60), tool("card", "charge", once=True)):
            try:
                yield request
            except ToolError as error:
                caught.append([error.message, error.tool])
        return caught

    def call(category: str, name: str, input: Any) -> Any:
        raise Dies if is_dying else AssertionError

    flow = lab.flow(call=call, errors="raise", workflows=[tries])
    flow.execute(tries, "id")
    lab.clock.advance(60.0)
    with pytest.raises(Dies):
        flow.resume("id")
    is_dying = False
    assert flow.resume("id") == [["timeout", "wait go"], ["interrupted", "card.charge"]]


def catches(input: Any) -> Flow:
    try:
        yield [tool("api", name) for name in "abcd"]
    except ToolError as error:
        caught = [error.message, error.tool, getattr(error, "__notes__", [])]
    return [caught, (yield tool("api", "after"))]


def test_an_error_decides_a_list_and_no_other_call_of_it_begins(lab: Lab) -> None:
    calls: list[str] = []

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(name)
        if name in "bd":
            raise ValueError(f"{name} failed")
        return name

    flow = lab.flow(call=call, errors="raise", retain=True)
    assert flow.to_end(catches, "id")[-1] == [["b failed", "api.b", []], "after"]
    assert calls == ["a", "b", "after"]
    assert asked(flow) == ["a", "b", "end", "after"]


@pytest.mark.parametrize("order", list(itertools.permutations("abcd"))[::3], ids="".join)
def test_calls_in_flight_are_recorded_and_later_errors_are_notes(lab: Lab, order: tuple[str, ...]) -> None:
    finished: list[str] = []

    async def call(category: str, name: str, input: Any) -> Any:
        if name in order:
            while finished != list(order[: order.index(name)]):  # noqa: ASYNC110 - the loop is all there is to wait for
                await asyncio.sleep(0)
            finished.append(name)
        if name in "bd":
            raise ValueError(f"{name} failed")
        return name

    flow = lab.flow(call=call, errors="raise", retain=True)
    value = flow.to_end(catches, "id")[-1]
    log = asked(flow)
    assert sorted(log[:4]) == ["a", "b", "c", "d"]
    first, second = sorted("bd", key=log.index)
    assert value == [[f"{first} failed", f"api.{first}", [f"and then api.{second} failed: {second} failed"]], "after"]
    assert log[4:] == ["after"]
    assert flow.execute(catches, "id") == value


def test_a_list_that_was_decided_ends_so_wherever_it_is_taken_up(lab: Lab) -> None:
    def call(category: str, name: str, input: Any) -> Any:
        if name == "b":
            raise ValueError("b failed")
        if name == "after" and (died := died_before.pop()):
            raise died
        return name

    died_before: list[Any] = [None, Dies(), Dies()]
    flow = lab.flow(call=call, errors="raise", workflows=[catches])
    other = lab.flow(call=call, errors="value", workflows=[catches])  # recorded is recorded
    assert flow.execute(catches, "id") == {"paused": "id", "step": 2}
    for executor in (flow, other):
        with pytest.raises(Dies):
            executor.execute(catches, "id")
        assert asked(flow) == ["a", "b", "end"]
    assert other.resume("id") == {"paused": "id", "step": 3}
    assert other.resume("id") == [["b failed", "api.b", []], "after"]


@pytest.mark.parametrize("mode", ["value", "raise"])
def test_the_mode_is_that_of_the_beginning(lab: Lab, mode: str) -> None:
    def tries(input: Any) -> Flow:
        got: list[Any] = []
        for number in range(3):
            try:
                got.append((yield tool("api", "one", number)))
            except ToolError:
                got.append("raised")
        return got

    def call(category: str, name: str, input: Any) -> Any:
        raise ValueError("no")

    executors = itertools.cycle(lab.flow(call=call, errors=errors) for errors in (mode, "raise", "value"))
    next(executors).start(tries, "id")
    while isinstance(value := next(executors).execute(tries, "id"), Paused):
        pass
    assert value == (["raised"] * 3 if mode == "raise" else [{"__error": "no"}] * 3)


# What cannot be stored.

UNSTORABLE = [
    (["\ud800"], "value[0] holds a lone surrogate, which UTF-8 cannot express"),
    ({"when": {1}}, "value['when'] is a set, and JSON has dict, list, str, int, float, bool and None only"),
]


@pytest.mark.parametrize(("value", "reason"), UNSTORABLE)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_an_input_that_cannot_be_stored_parks_before_the_call(
    lab: Lab, value: Any, reason: str, asynchronous: bool, several: bool
) -> None:
    calls: list[str] = []
    is_broken = True

    def asks() -> Flow:
        bad = tool("api", "bad", value if is_broken else "good")
        return (yield [tool("api", "first"), bad, tool("api", "last")] if several else bad)

    def call(category: str, name: str, input: Any) -> str:
        calls.append(name)
        return name

    async def call_async(category: str, name: str, input: Any) -> str:
        return call(category, name, input)

    flow = lab.flow(call=call_async if asynchronous else call, budget=1e9, workflows=[asks])
    for _ in range(2):
        with pytest.raises(NotEncodable) as caught:
            flow.execute(asks, "id")
        assert "bad" not in calls
        status = lab.status("id")
        where = f"the input of tool api.bad (step {status.step} of execution 'id')"
        assert (caught.value.where, caught.value.reason) == (where, reason)
        assert (status.status, status.due, status.busy) == ("failed", None, False)
        assert status.error == f"NotEncodable: {where} cannot be stored: {reason}".replace("\ud800", "\\ud800")
    lab.clock.advance(1e6)
    assert flow.sweep() == []
    is_broken = False
    assert flow.execute(asks, "id") == (["first", "bad", "last"] if several else "bad")


@pytest.mark.parametrize(("value", "reason"), UNSTORABLE)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_a_result_that_cannot_be_stored_parks_after_one_call(
    lab: Lab, value: Any, reason: str, asynchronous: bool, several: bool
) -> None:
    calls: list[str] = []
    is_broken = True

    def asks() -> Flow:
        bad = tool("card", "charge")
        return (yield [tool("api", "first"), bad, tool("api", "last")] if several else bad)

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(name)
        return value if is_broken and name == "charge" else name

    async def call_async(category: str, name: str, input: Any) -> Any:
        await asyncio.sleep(0)
        return call(category, name, input)

    flow = lab.flow(call=call_async if asynchronous else call, workflows=[asks])
    with pytest.raises(NotEncodable) as caught:
        flow.execute(asks, "id")
    assert caught.value.reason == reason
    assert caught.value.where.startswith("the result of tool card.charge (step ")
    assert lab.status("id").status == "failed"
    assert (lab.status("id").error or "").startswith("NotEncodable: the result of tool card.charge (step ")
    for _ in range(12):
        lab.clock.advance(5000.0)
        assert flow.sweep() == []
        assert flow.resume("id") == {"paused": "id", "step": lab.status("id").step - 1}
    assert calls.count("charge") == 1
    # What was answered beside it is kept.
    beside = [] if not several else ["first", "last"] if asynchronous else ["first"]
    assert sorted(asked(flow)) == beside
    is_broken = False
    assert flow.ring("id")
    assert lab.go_on(call=call, workflows=[asks]) == (["first", "charge", "last"] if several else "charge")
    assert sorted(calls) == ["charge", "charge", *(["first", "last"] if several else [])]


@pytest.mark.parametrize("what", ["input", "result"])
def test_on_five_methods_it_is_an_error_and_nothing_is_recorded(what: str) -> None:
    storage, given, calls = PlainStorage(), [{1}, 1], list[Any]()

    def asks() -> Flow:
        return (yield tool("api", "one", given[0] if what == "input" else None))

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(input)
        return given[0]

    flow = FlowExecutor(storage, call=call)
    with pytest.raises(
        NotEncodable, match=rf"the {what} of tool api.one \(step 0 of execution 'id'\) cannot be stored"
    ):
        flow.execute_sync(asks, "id")
    assert (storage.writes, len(calls)) == ([], what == "result")
    given.pop(0)
    assert flow.execute_sync(asks, "id") == {"paused": "id", "step": 0}
    assert flow.execute_sync(asks, "id") == 1


def test_an_input_of_an_execution_that_cannot_be_stored_writes_nothing(any_lab: Lab) -> None:
    flow = any_lab.flow(call=echo)
    with pytest.raises(NotEncodable, match=r"the input of execution 'id' cannot be stored: value\['x'\] is nan"):
        flow.execute(one, "id", {"x": math.nan})
    assert flow.status("id") is None


def test_a_final_value_that_cannot_be_kept_parks_the_execution(lab: Lab) -> None:
    value: Any = {1, 2}

    def ends() -> Flow:
        yield tool("api", "one")
        return value

    flow = lab.flow(call=echo, retain=True, budget=1e9)
    with pytest.raises(NotEncodable, match="the final value of execution 'id' cannot be stored: value is a set"):
        flow.execute(ends, "id")
    assert (lab.status("id").status, lab.status("id").step) == ("failed", 1)
    value = (1, 2)
    assert flow.execute(ends, "id") == flow.execute(ends, "id") == [1, 2]


# What a workflow itself does.


@pytest.mark.parametrize("when", ["at the end", "in the middle of a replay"])
def test_an_exception_of_the_workflow_parks_it_until_it_is_mended(lab: Lab, when: str) -> None:
    is_broken = False

    def fragile(input: Any) -> Flow:
        first = yield tool("api", "one", input)
        if is_broken and when != "at the end":
            raise ValueError("not yet \ud800")
        second = yield tool("api", "two", input)
        if is_broken:
            raise ValueError("not yet \ud800")
        return [first, second]

    flow = lab.flow(call=echo, workflows=[fragile])
    flow.execute(fragile, "id", {"n": 1})
    flow.resume("id")
    lab.rung.clear()
    is_broken = True
    for parked in (False, True, None):
        with pytest.raises(ValueError, match="not yet"):
            flow.execute(fragile, "id") if parked is None else flow.resume("id", parked=parked)
        status = lab.status("id")
        told = (status.status, status.step, status.due, status.error)
        assert told == ("failed", 2, None, "ValueError: not yet \\ud800")
    lab.clock.advance(1e6)
    assert flow.sweep() == lab.rung == []
    is_broken = False
    assert repr(flow.resume("id")) == "Paused({'paused': 'id', 'step': 1}, reason='parked')"
    assert flow.resume("id", parked=True) == [{"n": 1}, {"n": 1}]


def test_finally_runs_at_every_pause(any_lab: Lab) -> None:
    """The trap that generators have, as the README tells it."""
    ran: list[str] = []

    def trapped() -> Flow:
        try:
            yield tool("api", "one")
            yield tool("api", "two")
        finally:
            ran.append("cleanup")

    any_lab.flow(call=echo).to_end(trapped, "id")
    assert ran == ["cleanup"] * 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("trap", ["yield", "error", "exit"])
def test_what_a_finally_does_at_a_pause_does_not_cost_the_step(lab: Lab, trap: str) -> None:
    calls: list[str] = []

    def trapped() -> Flow:
        try:
            yield tool("api", "one")
        finally:
            if trap == "yield":
                yield tool("api", "cleanup")
            raise ConnectionError("while cleaning up") if trap == "error" else SystemExit

    events: list[Event] = []
    flow = lab.flow(call=lambda category, name, input: calls.append(name), observe=events.append)
    expected: Any = {"yield": RuntimeError, "error": ConnectionError, "exit": SystemExit}[trap]
    with pytest.raises(expected) as caught:
        flow.execute(trapped, "id")
    assert "must neither yield nor fail" in caught.value.__notes__[0]
    status = lab.status("id")
    assert (status.status, status.step, status.busy) == ("running" if trap == "exit" else "failed", 1, False)
    assert asked(flow) == calls == ["one"]
    if trap != "exit":
        assert [event.kind for event in events][-2:] == ["committed", "failed"]
        assert "make cleanup that is to happen once a step" in str(status.error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SequentialError])
def test_an_interruption_in_the_workflow_itself_gives_the_lease_back(lab: Lab, error: type[BaseException]) -> None:
    def interrupted() -> Flow:
        raise error("now")
        yield

    flow = lab.flow()
    with pytest.raises(error):
        flow.execute(interrupted, "id")
    status = lab.status("id")
    assert (status.busy, status.status) == (False, "failed" if error is SequentialError else "running")


class Stops(JournalAround):
    """A store during whose operation number `left`, which takes place, somebody presses Ctrl-C."""

    left = 0

    async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        done = await settle(method(*arguments, **options))
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return done


def test_a_stop_at_any_operation_of_the_store_gives_the_lease_back(lab: Lab) -> None:
    def workflow(input: Any) -> Flow:
        got = yield [tool("api", "one", input), tool("api", "two")]
        yield save()
        return again(1) if input == 0 else got

    for left in range(1, 100):
        journal, id = Stops(lab.plain), f"id-{left}"
        journal.left = left
        flow = lab.flow(on=journal, call=lambda _category, name, _input: name, budget=math.inf, retain=True)
        try:
            while isinstance(flow.execute(workflow, id, 0), Paused):
                pass
        except KeyboardInterrupt:
            status = FlowExecutor(lab.plain, clock=lab.clock).status_sync(id)
            assert status is None or not status.busy, f"it is held after operation {left}"
        else:
            break
        while isinstance(value := flow.execute(workflow, id), Paused):
            pass
        assert value == ["one", "two"]
    assert left > 12
