"""Recorded histories are checked against today's code."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import runpy
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from sequential import Cancelled, FlowExecutor, Paused, ToolError, again, install, save, sleep, tool, version, wait
from sequential.codec import Codec, JSONCodec
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, replay

Flow = Generator[Any, Any, Any]
Exported = tuple[dict[str, Any], list[dict[str, Any]]]
EXAMPLE = Path(__file__).parent.parent / "examples" / "versions.py"


def today(input: dict[str, Any]) -> Flow:
    """Every request, a list that an error decides, and an undoing."""
    if (yield version()) >= 2:
        yield tool("api", "new")
    user = yield tool("api", "user", {"id": input["id"]})
    both = yield [tool("api", "a", user), tool("größe", "b", user, once=True)]
    yield sleep(10)
    answer = yield wait("approval")
    yield save()
    try:
        yield [tool("api", "c"), tool("api", "broken"), tool("api", "d")]
    except ToolError as error:
        answer = [answer, str(error)]
    try:
        yield wait("cancellation")
    except Cancelled:
        yield tool("api", "undo", both)
        raise
    return [both, answer]


def call(category: str, name: str, input: Any) -> Any:
    if name == "broken":
        raise ConnectionError(name)
    return {"name": name, "input": input}


def exported(storage: Any = None, steps: float = math.inf, **options: Any) -> Exported:
    """Run to the end, or as far as some steps, and export as JSON."""
    clock = FakeClock()
    options = {"version": 1, "errors": "value", **options}
    storage = storage or MemoryStorage()
    flow = FlowExecutor(storage, call=call, workflows=[today], clock=clock, retain=True, **options)
    flow.start_sync(today, "x", {"id": 5})
    flow.signal_sync("x", "approval", "yes")
    while isinstance(flow.resume_sync("x"), Paused):
        status = flow.status_sync("x")
        assert status is not None
        if status.step >= steps:
            break
        if "cancellation" in status.waits:
            flow.cancel_sync("x")
        clock.advance(10)
    found = {"input": {"id": 5}, **options}
    return json.loads(json.dumps([found, flow.history_sync("x")]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("errors", ["value", "raise"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_history_of_the_same_code_fits_wherever_it_stands(errors: str, version: int) -> None:
    options, history = exported(errors=errors, version=version)
    asked = [step["asked"] for step in history]
    assert {"cancel", "tool api.undo", "wait approval", "sleep"} <= set(asked)
    assert ("end" in asked) == (errors == "raise")
    for step in range(len(history) + 1):
        replay(today, history[:step], **options)


def test_it_calls_and_rings_nobody_and_stops_where_the_history_does() -> None:
    called: list[Any] = []
    reached: list[Any] = []
    recorded: list[Any] = []

    def timers() -> Flow:
        for request in (sleep(10), sleep(-10), save(), wait("go", timeout=0), tool("api", "end")):
            reached.append(request)
            try:
                yield request
            except Exception as error:
                called.append(error)

    flow = FlowExecutor(MemoryStorage(), call=call, resume=lambda _: None, clock=(clock := FakeClock()))
    while isinstance(flow.execute_sync(timers, "x"), Paused) and len(reached) < 30:
        clock.advance(10)
        recorded.append(flow.history_sync("x"))
    history = recorded[-1]
    with install(call=lambda *asked: called.append(asked), resume=called.append):
        for step in range(len(history)):
            reached.clear()
            replay(timers, history[:step])
            assert len(reached) == step + 1
    assert called == []


def other_tool(input: dict[str, Any]) -> Flow:
    user = yield tool("api", "user", {"id": input["id"]})
    yield [tool("api", "other", user)]


def no_list(input: dict[str, Any]) -> Flow:
    yield tool("api", "user", {"id": input["id"]})
    yield tool("api", "other")


def too_short(input: dict[str, Any]) -> Flow:
    return (yield tool("api", "user", {"id": input["id"]}))


@pytest.mark.parametrize(
    ("changed", "asked"), [(other_tool, "tool api.other"), (no_list, "tool api.other"), (too_short, "return")]
)
def test_another_way_is_told_with_its_step(changed: Any, asked: str) -> None:
    options, history = exported(steps=4)
    text = f"step 1 of the history is 'tool api.a (branch 1)', but {changed.__name__} now asks for '{asked}"
    with pytest.raises(AssertionError, match=re.escape(text)):
        replay(changed, history, **options)


def test_another_input_is_told_with_its_step() -> None:
    def changed(input: dict[str, Any]) -> Flow:
        user = yield tool("api", "user", {"id": input["id"]})
        yield [tool("api", "a", user), tool("größe", "b", [user])]

    options, history = exported(steps=3)
    text = "step 2 of the history is 'tool größe.b (branch 2)', but changed now asks for 'tool größe.b (branch 2) with"
    with pytest.raises(AssertionError, match=re.escape(text)):
        replay(changed, history, **options)


class Keyed(JSONCodec):
    """A codec that tells inputs apart in a way of its own, and not all of them."""

    def fingerprint(self, value: Any) -> int | None:
        return len(str(value)) - len("{}")


class Blind(JSONCodec):
    """A codec that tells no input from another."""

    def fingerprint(self, value: Any) -> int | None:
        return None


@pytest.mark.parametrize("codec", [Keyed(), Blind()])
def test_a_codec_says_what_another_input_is(codec: Codec) -> None:
    options, history = exported(MemoryStorage(codec=codec))
    for step in range(len(history) + 1):
        replay(today, history[:step], codec=codec, **options)


def test_another_mode_is_another_way() -> None:
    options, history = exported(errors="raise")
    with pytest.raises(AssertionError, match=r"step \d+ of the history is 'end', but today now asks for"):
        replay(today, history, **{**options, "errors": "value"})


def test_what_the_workflow_raises_is_raised() -> None:
    def changed(input: dict[str, Any]) -> Flow:
        user = yield tool("api", "user", {"id": input["id"]})
        raise KeyError(user["name"])

    options, history = exported(steps=1)
    with pytest.raises(KeyError, match="user"):
        replay(changed, history, **options)


def test_what_is_no_history_is_refused() -> None:
    wrongs: list[Any] = [{"history": []}, "[]"]
    for wrong in wrongs:
        with pytest.raises(TypeError, match=r"replay\(\) takes the list that FlowExecutor.history returns, not"):
            replay(today, wrong)


def test_the_next_round_is_no_part_of_the_history() -> None:
    def rounds(input: dict[str, Any]) -> Flow:
        yield tool("api", "x")
        return again()

    flow = FlowExecutor(MemoryStorage(), call=lambda *_: 1, resume=lambda _: None)
    flow.execute_sync(rounds, "x")
    history = flow.history_sync("x")
    replay(rounds, history)
    with pytest.raises(
        AssertionError, match=r"step 1 of the history is 'tool api.x', but rounds now asks for 'return'"
    ):
        replay(rounds, history * 2)


def test_the_example_of_a_changed_workflow_prints_what_it_shows() -> None:
    """It is run here rather than in a process: the same lines as its docstring promises, without any time."""
    printed = io.StringIO()
    unfit = "step 0 of the history is 'tool bank.charge', but order now asks for 'tool bank.check'"
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = [line.split("  ")[-1].strip() for line in printed.getvalue().splitlines()]
    assert lines == [
        "Paused({'paused': 'order-1', 'step': 0}, reason='tool')",
        "order-1 recorded 'tool bank.charge' at step 0, and 'tool bank.check' is asked for",
        "it is diverged, and keeps its 1 recorded step",
        "Wednesday: order-1 ends as ['bank.charge(1)', 'post.ship(1)']",
        "order-2 ends as ['bank.check(2)', 'bank.charge(2)', 'post.ship(2)']",
        f"Monday's history does not fit Tuesday's code: {unfit}",
        "Monday's history fits Wednesday's code",
    ]
