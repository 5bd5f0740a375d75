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

from sequential import FlowExecutor, again, save, sleep, tool, version, wait
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, replay

Flow = Generator[Any, Any, Any]
EXAMPLE = Path(__file__).parent.parent / "examples" / "versions.py"


def today(input: dict[str, Any]) -> Flow:
    if (yield version()) >= 2:
        yield tool("api", "new")
    user = yield tool("api", "user", {"id": input["id"]})
    both = yield [tool("api", "a", user), tool("api", "b", user, once=True)]
    yield sleep(10)
    answer = yield wait("approval")
    yield save()
    return [both, answer]


def call(category: str, name: str, input: Any) -> Any:
    return {"name": name, "input": input}


def exported(steps: int, version: int = 1) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run as far as some steps, and export as JSON."""
    clock = FakeClock()
    flow = FlowExecutor(MemoryStorage(), call=call, workflows=[today], version=version, clock=clock, retain=True)
    flow.start_sync(today, {"id": 5}, "x")
    flow.signal_sync("x", "approval", "yes")
    while True:
        status = flow.status_sync("x")
        assert status is not None
        if status.step >= steps or status.status == "finished":
            found = {"input": status.input, "version": status.version}
            return json.loads(json.dumps([found, flow.history_sync("x")]))  # type: ignore[no-any-return]
        clock.advance(10)
        flow.resume_sync("x")


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("version", [1, 2])
def test_a_history_of_the_same_code_fits_wherever_it_stands(steps: int, version: int) -> None:
    options, history = exported(steps, version)
    replay(today, history, **options)


def test_it_calls_nothing() -> None:
    options, history = exported(1)
    called: list[str] = []

    def cautious(input: dict[str, Any]) -> Flow:
        try:
            return (yield from today(input))
        except Exception as error:
            called.append(repr(error))
            raise

    cautious.__name__ = "today"
    replay(cautious, history, **options)
    assert called == []


def test_another_tool_is_told_with_its_step() -> None:
    def changed(input: dict[str, Any]) -> Flow:
        yield tool("api", "user", {"id": input["id"]})
        yield tool("api", "other")

    options, history = exported(4)
    text = "step 1 of the history is 'tool api.a', but changed now asks for 'tool api.other': executions like this one"
    with pytest.raises(AssertionError, match=re.escape(text)):
        replay(changed, history, **options)


def test_ending_too_early_is_told() -> None:
    def changed(input: dict[str, Any]) -> Flow:
        return (yield tool("api", "user", {"id": input["id"]}))

    options, history = exported(4)
    with pytest.raises(
        AssertionError, match=r"step 1 of the history is 'tool api.a', but changed now asks for 'return'"
    ):
        replay(changed, history, **options)


def test_another_input_is_told_with_its_step() -> None:
    def changed(input: dict[str, Any]) -> Flow:
        user = yield tool("api", "user", {"id": input["id"] + 1})
        yield [tool("api", "a", user), tool("api", "b", [user])]

    options, history = exported(3)
    with pytest.raises(
        AssertionError, match=r"with another input .* at step 0 \(tool api.user\), step 2 \(tool api.b\)"
    ):
        replay(changed, history, **options)


def test_what_the_workflow_raises_is_raised() -> None:
    def changed(input: dict[str, Any]) -> Flow:
        user = yield tool("api", "user", {"id": input["id"]})
        raise KeyError(user["name"])

    options, history = exported(1)
    with pytest.raises(KeyError, match="user"):
        replay(changed, history, **options)


def test_what_is_no_history_is_refused() -> None:
    wrongs: list[Any] = [{"history": []}, "[]"]
    for wrong in wrongs:
        with pytest.raises(TypeError, match=r"replay\(\) takes the list that FlowExecutor.history returns, not"):
            replay(today, wrong)


def test_the_next_round_is_not_entered() -> None:
    def rounds(input: dict[str, Any]) -> Flow:
        yield tool("api", "x")
        return again()

    flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
    replay(rounds, [])
    with pytest.raises(AssertionError):
        replay(rounds, [{"asked": "save", "fingerprint": None, "result": None}])
    assert flow.list_sync() == []


def test_the_example_of_a_changed_workflow_prints_what_it_shows() -> None:
    """It is run here rather than in a process: the same lines as its docstring promises, without any time."""
    printed = io.StringIO()
    unfit = "step 0 of the history is 'tool bank.charge', but order now asks for 'tool bank.check'"
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = [line.split("  ")[-1].strip() for line in printed.getvalue().splitlines()]
    assert lines == [
        "{'paused': 'order-1', 'step': 0}",
        "order-1 recorded 'tool bank.charge' at step 0, and 'tool bank.check' is asked for",
        "it is diverged, and keeps its 1 recorded step",
        "Wednesday: order-1 ends as ['bank.charge(1)', 'post.ship(1)']",
        "order-2 ends as ['bank.check(2)', 'bank.charge(2)', 'post.ship(2)']",
        f"Monday's history does not fit Tuesday's code: {unfit}",
        "Monday's history fits Wednesday's code",
    ]
