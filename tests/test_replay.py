"""Replay is strict, data is not control, and what is wrong with a request is told without quoting values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator
from typing import Any

import pytest

from sequential import Diverged, Event, FlowExecutor, IdInUse, InvalidYield, Paused, save, sleep, tool, version, wait
from sequential.stores.memory import MemoryStorage
from tests.lab import Lab
from tests.support import PlainStorage, echo

Flow = Generator[Any, Any, Any]


def one(input: Any) -> Flow:
    return (yield tool("api", "one", input))


@pytest.mark.parametrize(
    ("asks", "shown"),
    [
        (tool("api", "other"), "tool api.other"),
        (tool("api.first", "first"), "tool 'api.first'.first"),
        (save(), "save"),
        (sleep(5), "sleep"),
        (wait("first"), "wait first"),
        (None, "return"),
        (tool("api", "first", {"n": 2}), "tool api.first with another input"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_replay_of_something_else_is_refused_and_loses_nothing(lab: Lab, asks: Any, shown: str) -> None:
    is_changed = False
    calls: list[str] = []

    def changing() -> Flow:
        if is_changed and asks is None:
            return "early"
        first = yield asks if is_changed else tool("api", "first", {"n": 1})
        return [first, (yield tool("api", "second"))]

    def call(category: str, name: str, input: Any) -> str:
        calls.append(name)
        return name

    flow = lab.flow(call=call, workflows=[changing])
    flow.execute(changing, "id")
    is_changed = True
    for method, *arguments in ((flow.resume, "id"), (flow.execute, changing, "id")):
        with pytest.raises(Diverged) as caught:
            method(*arguments)
        error = caught.value
        assert (error.id, error.step, error.recorded, error.asked) == ("id", 0, "tool api.first", shown)
        status = lab.status("id")
        assert (status.status, status.step, status.due) == ("diverged", 1, None)
    is_changed = False
    assert isinstance(flow.execute(changing, "id"), Paused)
    assert flow.resume("id") == ["first", "second"]
    assert calls == ["first", "second"]


def test_a_call_that_has_become_a_list_is_told_from_what_was_recorded(lab: Lab) -> None:
    def changing() -> Flow:
        first = tool("api", "first")
        yield [first] if is_changed else first

    is_changed, flow = False, lab.flow(call=echo)
    flow.execute(changing, "id")
    is_changed = True
    with pytest.raises(Diverged) as caught:
        flow.execute(changing, "id")
    assert caught.value.asked != caught.value.recorded


def test_two_calls_of_a_list_that_are_swapped_are_refused(lab: Lab) -> None:
    names = ["a", "b"]

    def swaps() -> Flow:
        got = yield [tool("api", "echo", name) for name in names]
        yield save()
        return got

    flow = lab.flow(call=echo)
    flow.execute(swaps, "id")
    names.reverse()
    with pytest.raises(Diverged, match="with another input"):
        flow.execute(swaps, "id")
    names.reverse()
    assert flow.to_end(swaps, "id")[-1] == ["a", "b"]


def test_a_changed_input_is_told_and_goes_on_if_replay_is_not_strict(lab: Lab) -> None:
    numbers, calls, events = itertools.count(), list[Any](), list[Event]()

    def unsteady() -> Flow:
        first = yield tool("api", "first", {"n": next(numbers)})
        yield tool("api", "second", {"b": 1, "a": 2})
        return first

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(input)
        return input

    strict = lab.flow(call=call, workflows=[unsteady])
    lenient = lab.flow(call=call, workflows=[unsteady], strict=False, observe=events.append)
    strict.execute(unsteady, "id")
    with pytest.raises(Diverged):
        strict.execute(unsteady, "id")
    assert lenient.to_end(unsteady, "id")[-1] == {"n": 0}
    assert calls == [{"n": 0}, {"b": 1, "a": 2}]
    changed = [(event.step, event.detail) for event in events if event.kind == "input changed"]
    assert changed == [(0, "tool api.first")] * 2


def test_a_plain_storage_cannot_tell_that_a_workflow_has_changed() -> None:
    is_long = True

    def shrinking() -> Flow:
        if is_long:
            yield tool("api", "first")
        return "end"

    flow = FlowExecutor(PlainStorage(), call=echo)
    flow.execute_sync(shrinking, "s")
    is_long = False
    assert flow.execute_sync(shrinking, "s") == "end"


# Data is not control.

LOOKALIKES: list[Any] = [
    {"__again": {"page": 2}},
    {"__tool": ["api", "user", {}]},
    {"__save": True},
    {"__error": "of a remote service"},
    [{"__tool": ["api", "user", {}]}, {"__again": 1}],
]


@pytest.mark.parametrize("answer", LOOKALIKES, ids=repr)
def test_what_a_workflow_returns_is_data(any_lab: Lab, answer: Any) -> None:
    calls: list[str] = []

    def hands_on() -> Flow:
        return (yield tool("remote", "ask"))

    def literal() -> Flow:
        yield tool("remote", "ask")
        return answer

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(name)
        return answer

    flow = any_lab.flow(call=call, **({} if "five" in any_lab.kind else {"retain": True}))
    for workflow in (hands_on, literal):
        assert flow.to_end(workflow, workflow.__name__)[-1] == answer
    assert calls == ["ask"] * 2


@pytest.mark.parametrize("request_", [tool("a", "b"), save(), sleep(5), wait("go"), version()])
def test_a_request_that_is_returned_is_a_mistake(lab: Lab, request_: Any) -> None:
    def forgets() -> Flow:
        yield tool("a", "first")
        return request_

    flow = lab.flow(call=echo, budget=1e9)
    message = r"forgets returned a dict with __\w+ \(.*test_replay.py\), a request that nobody has performed: write `return \(yield ...\)`$"
    with pytest.raises(InvalidYield, match=message):
        flow.execute(forgets, "id")
    assert (lab.status("id").status, lab.status("id").step) == ("failed", 1)


def test_a_wrong_yield_is_told_with_its_kind_and_its_place() -> None:
    def sub() -> Flow:
        yield {"__tool": ["api", "a secret"]}

    def wrong() -> Flow:
        yield from sub()

    with pytest.raises(InvalidYield) as caught:
        FlowExecutor(MemoryStorage(), call=echo).execute_sync(wrong, "y")
    line = sub.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"test_a_wrong_yield_is_told_with_its_kind_and_its_place.<locals>.sub yielded a dict with __tool "
        f"({__file__}:{line}), which is not a request: yield tool(category, name, input) with texts for category and name"
    )


def _calls() -> Flow:
    yield tool("a", "b")


EVERY_FORM = (
    "yield tool(category, name, input) with texts for category and name; or save(); or sleep(seconds) with a number of at "
    "most 1e12; or wait(name, timeout) with a name of letters, digits and _ . : @ ~ -, and a number of seconds or None; or "
    "version(); or a list of nothing but tool(...)"
)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: (tool("a", "b") for _ in range(2)), "yield a list: write [...] instead of (...)"),
        (_calls, "write `yield from` before _calls(...), which is a generator"),
        (lambda: "__tool", "write `yield` instead of `yield from` before a request"),
        (lambda: {"__again": {}}, "write `return again(input)`"),
        (lambda: {"__sleep": "a secret"}, "yield sleep(seconds) with a number of at most 1e12"),
        (lambda: ["a secret"], EVERY_FORM),
        (lambda: 5, EVERY_FORM),
    ],
)
def test_frequent_mistakes_are_told_with_their_remedy(make: Callable[[], Any], remedy: str) -> None:
    def mistaken() -> Flow:
        yield make()

    with pytest.raises(InvalidYield) as caught:
        FlowExecutor(MemoryStorage(), call=echo).execute_sync(mistaken)
    assert str(caught.value).endswith(f"which is not a request: {remedy}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("several", [list, tuple])
def test_the_calls_of_a_list_one_by_one_are_told_with_the_remedy(several: Any) -> None:
    def one_by_one() -> Flow:
        yield from several([tool("a", "b"), tool("a", "c")])

    with pytest.raises(AttributeError, match="has no attribute 'send'") as caught:
        FlowExecutor(MemoryStorage(), call=echo, budget=math.inf).execute_sync(one_by_one)
    assert caught.value.__notes__ == [
        "a list of calls is yielded as it is: write `yield [...]`, not `yield from [...]`"
    ]


def test_an_id_belongs_to_one_workflow_and_one_input_and_no_value_is_quoted(lab: Lab) -> None:
    def other(input: Any) -> Flow:
        yield tool("api", "other")

    flow = lab.flow(call=echo)
    flow.execute(one, "id", {"user": "a secret", "b": 2})
    before = lab.record("id")
    for what, *begin in (
        ("workflow", other, "id"),
        ("input", one, "id", {"user": "another secret"}),
        ("input", one, "id", {}),
    ):
        for method in (flow.execute, flow.start, flow.run):
            with pytest.raises(IdInUse) as caught:
                method(*begin)
            assert (caught.value.id, caught.value.what) == ("id", what)
            remedy = ", leave the input out to go on with this one" if what == "input" else ""
            assert str(caught.value) == (
                f"execution 'id' was started with another {what}: use another id for another execution{remedy}, or "
                f"delete('id') to begin anew"
            )
            assert caught.value.__cause__ is None
    assert lab.record("id") == before
    assert flow.execute(one, "id", {"b": 2, "user": "a secret"}) == {"user": "a secret", "b": 2}
