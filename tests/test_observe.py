"""What an executor tells: events to whoever observes, or else to a log."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Generator
from typing import Any

import pytest

from sequential import Cancelled, Event, Fenced, FlowExecutor, again, save, tool, wait
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock
from tests.lab import Lab
from tests.support import echo

Flow = Generator[Any, Any, Any]


def workflow(input: Any) -> Flow:
    user = yield tool("api", "user", input)
    yield save()
    yield [tool("api", "posts", user), tool("api", "likes", user)]
    yield wait("go")
    return again("last") if input != "last" else "end"


def test_everything_that_happens_is_told_in_order(lab: Lab) -> None:
    events: list[Event] = []
    flow = lab.flow(call=echo, workflows=[workflow], observe=events.append)
    told: list[list[tuple[str, int, str]]] = []

    def then(happens: Any) -> None:
        events.clear()
        happens()
        assert {event.id for event in events} == {"id"}
        assert [type(event.error) for event in events if event.error] == [Cancelled] * (events[-1].kind == "cancelled")
        told.append([(event.kind, event.step, event.detail) for event in events])

    then(lambda: flow.execute(workflow, "id", 1))
    then(lambda: flow.resume("id"))
    then(lambda: flow.resume("id"))
    then(lambda: flow.resume("id"))
    then(lambda: flow.signal("id", "go"))
    then(lambda: flow.resume("id"))
    assert told == [
        [
            ("claimed", 0, ""),
            ("replayed", 0, "0 steps"),
            ("called", 0, "tool api.user"),
            ("committed", 1, "tool api.user"),
            ("paused", 1, "tool"),
            ("rang", 1, ""),
        ],
        [
            ("claimed", 1, ""),
            ("replayed", 1, "1 steps"),
            ("committed", 2, "save"),
            ("paused", 2, "save"),
            ("rang", 2, ""),
        ],
        [
            ("claimed", 2, ""),
            ("replayed", 2, "2 steps"),
            ("called", 2, "tool api.posts"),
            ("committed", 3, "tool api.posts"),
            ("called", 3, "tool api.likes"),
            ("committed", 4, "tool api.likes"),
            ("paused", 4, "tool"),
            ("rang", 4, ""),
        ],
        [("claimed", 4, ""), ("replayed", 4, "4 steps"), ("paused", 4, "wait")],
        [("signalled", 4, "go"), ("rang", 4, "")],
        [
            ("claimed", 4, ""),
            ("replayed", 4, "4 steps"),
            ("committed", 5, "wait go"),
            ("restarted", 0, ""),
            ("replayed", 0, "0 steps"),
            ("paused", 0, "budget"),
            ("rang", 0, ""),
        ],
    ]
    then(lambda: flow.cancel("id"))
    then(lambda: flow.resume("id"))
    assert told[-2:] == [
        [("rang", 0, "")],
        [("claimed", 0, ""), ("replayed", 0, "0 steps"), ("committed", 1, "cancel"), ("cancelled", 1, "")],
    ]


def test_an_end_is_told(lab: Lab) -> None:
    events: list[Event] = []
    flow = lab.flow(call=echo, budget=1e9, observe=events.append)
    flow.start(workflow, "id", "last")
    flow.signal("id", "go")
    assert flow.execute(workflow, "id").reason == "save"
    assert flow.execute(workflow, "id") == "end"
    assert (events[-1].kind, events[-1].step) == ("finished", 5)


def test_an_observer_that_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def observe(event: Event) -> None:
        raise RuntimeError(event.kind)

    flow = FlowExecutor(MemoryStorage(), call=echo, observe=observe)
    assert flow.execute_sync(workflow, "o") == {"paused": "o", "step": 0}
    first = "the observer raised at 'claimed': execution 'o', step 0: RuntimeError('claimed')"
    assert caplog.records[0].getMessage() == first


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_tool_raises_is_told(asynchronous: bool, caplog: pytest.LogCaptureFixture) -> None:
    failure = KeyError("id")

    def fail(category: str, name: str, input: Any) -> Any:
        raise failure

    async def fail_later(category: str, name: str, input: Any) -> Any:
        raise failure

    caplog.set_level("INFO", "sequential")
    call, events = fail_later if asynchronous else fail, list[Event]()
    asyncio.run(FlowExecutor(MemoryStorage(), call=call, observe=events.append).execute(workflow, "t"))
    told = [(event.detail, event.error) for event in events if event.kind == "called"]
    assert (told, caplog.records) == ([("tool api.user", failure)], [])
    asyncio.run(FlowExecutor(MemoryStorage(), call=call).execute(workflow, "t"))
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("INFO", "a tool raised: execution 't', step 0: tool api.user")
    assert record.exc_info is not None
    assert record.exc_info[1] is failure


@pytest.mark.parametrize("observe", [None, lambda event: None])
def test_what_a_tool_held_when_it_raised_is_let_go_at_once(observe: Any) -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def call(category: str, name: str, input: Any) -> Any:
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError

    def one() -> Flow:
        return (yield tool("api", "one"))

    def two() -> Flow:
        return (yield [tool("api", "one"), tool("api", "two")])

    gc.disable()
    try:
        for asks in (one, two):
            FlowExecutor(MemoryStorage(), call=call, observe=observe).execute_sync(asks)
        assert [large() for large in held] == [None] * 3
    finally:
        gc.enable()


def test_a_failing_resume_hook_fails_nothing_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def ring(id: str) -> None:
        raise ConnectionError("nobody there")

    events: list[Event] = []
    flow = FlowExecutor(MemoryStorage(), call=echo, resume=ring, observe=events.append)
    assert flow.execute_sync(workflow, "r") == {"paused": "r", "step": 0}
    told = [(event.kind, str(event.error)) for event in events if "ring" in event.kind]
    assert (told, caplog.records) == ([("ring failed", "nobody there")], [])
    FlowExecutor(MemoryStorage(), call=echo, resume=ring).execute_sync(workflow, "r")
    (record,) = caplog.records
    assert record.name == "sequential"
    assert record.getMessage() == "ring failed: execution 'r', step 1: the sweep will ring again"


def test_a_hook_that_returns_false_has_not_rung_and_that_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []
    FlowExecutor(MemoryStorage(), call=echo, resume=lambda _: False, observe=told.append).execute_sync(workflow, "k")
    assert told[-1].kind == "not rung"
    FlowExecutor(MemoryStorage(), call=echo, resume=lambda _: False).execute_sync(workflow, "k")
    assert caplog.messages == []


def test_who_lost_the_lease_is_told_but_not_of_another_execution() -> None:
    def call(category: str, name: str, input: Any) -> None:
        if input == "loses":
            flow.delete_sync("id")
        else:
            raise Fenced("inner")

    events: list[Event] = []
    flow = FlowExecutor(MemoryStorage(), call=call, observe=events.append, clock=FakeClock())
    for input, last in (("loses", "fenced"), ("calls what lost", "released")):
        with pytest.raises(Fenced):
            flow.execute_sync(workflow, "id", input)
        assert events[-1].kind == last
