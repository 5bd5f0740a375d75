"""What is refused in place of a workflow, each time saying what to write instead."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest

from sequential import FlowExecutor, InvalidWorkflow, tool
from sequential.stores.memory import MemoryStorage
from tests.support import echo

Flow = Generator[Any, Any, Any]


def good(input: Any) -> Flow:
    return (yield tool("api", "call", input))


async def async_generator(input: Any) -> AsyncGenerator[Any, Any]:
    yield tool("api", "call")


async def coroutine_function(input: Any) -> None: ...


def no_yield(input: Any) -> Any:
    return tool("api", "call")


def two_arguments(one: Any, two: Any) -> Flow:
    yield tool("api", "call")


def needs_keyword(input: Any, *, other: Any) -> Flow:
    yield tool("api", "call")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (good({}), "is what calling `good` returns: give the function, and its input apart"),
        (
            async_generator,
            "async_generator is an async generator: write `def`, and `yield tool(...)` instead of `await`",
        ),
        (coroutine_function, "coroutine_function is an async function: write `def`, and `yield tool(...)` instead of"),
        (no_yield, "no_yield has no yield, so it is no workflow: `yield tool(...)` where it calls something"),
        (two_arguments, "two_arguments needs more than one argument: a workflow takes one, its input"),
        (needs_keyword, "needs_keyword needs more than one argument"),
        (functools.partial(good, {}), "is not a function: give a generator function, `def workflow(input): ... yield"),
        ({"__tool": []}, "is not a function"),
        (None, "None is not a function"),
        (print, "is not a function"),
    ],
)
def test_what_is_no_workflow_is_refused_before_anything_is_written(wrong: Any, text: str) -> None:
    storage = MemoryStorage()
    flow = FlowExecutor(storage, call=echo)
    with pytest.raises(InvalidWorkflow) as caught:
        flow.execute_sync(wrong, "w")
    assert text in str(caught.value)
    with pytest.raises(InvalidWorkflow):
        flow.start_sync(wrong, "w")
    with pytest.raises(InvalidWorkflow):
        FlowExecutor(storage, workflows=[wrong])
    assert flow.status_sync("w") is None


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Service:
    def method(self, input: Any) -> Flow:
        return (yield tool("api", "call", input))

    def without(self) -> Flow:
        return (yield tool("api", "call", {"n": 1}))

    @staticmethod
    def static(input: Any) -> Flow:
        return (yield tool("api", "call", input))

    @classmethod
    def of_class(cls, input: Any) -> Flow:
        return (yield tool("api", "call", input))


def star(*args: Any) -> Flow:
    return (yield tool("api", "call", args[0]))


def optional(input: Any, other: int = 5, *, third: int = 6) -> Flow:
    return (yield tool("api", "call", input))


@pytest.mark.parametrize(
    "workflow",
    [
        good, logged(good), logged(logged(good)), Service().method, Service().without, Service.static, Service.of_class, star,
        optional, lambda input: (yield tool("api", "call", input)),
    ],
)  # fmt: skip
def test_whatever_makes_a_generator_of_its_input_is_a_workflow(workflow: Any) -> None:
    flow = FlowExecutor(MemoryStorage(), call=echo, workflows=[workflow])
    flow.execute_sync(workflow, "w", {"n": 1})
    assert flow.resume_sync("w") == {"n": 1}


def test_a_decorator_that_returns_something_else_is_named() -> None:
    @functools.wraps(good)
    def broken(input: Any) -> Any:
        return [good(input)]

    with pytest.raises(InvalidWorkflow, match=r"returned .* not a generator: let the decorator around it return what"):
        FlowExecutor(MemoryStorage()).execute_sync(broken, "w")


def test_two_workflows_of_one_name_are_refused_but_not_one_given_twice() -> None:
    with pytest.raises(InvalidWorkflow, match=r"two workflows are named 'good': .* so rename one"):
        FlowExecutor(MemoryStorage(), workflows=[good, logged(good)])
    FlowExecutor(MemoryStorage(), workflows=[good, good])


def test_what_is_no_storage_is_refused() -> None:
    with pytest.raises(TypeError) as caught:
        FlowExecutor({})  # type: ignore[arg-type]
    assert str(caught.value) == (
        "a dict without set, delete, get_result, set_result was given as a storage: a storage has the methods get, set, "
        "delete, get_result and set_result (see sequential.five.Storage), or is built in "
        "(sequential.stores.sqlite.SQLiteStorage); sequential.stores.open(url) makes one of a URL"
    )
    with pytest.raises(TypeError, match="the class MemoryStorage, not an instance of it was given as a storage"):
        FlowExecutor(MemoryStorage)  # type: ignore[arg-type]


def test_one_workflow_in_place_of_a_list_is_refused() -> None:
    none: Any = None
    with pytest.raises(InvalidWorkflow, match="workflows= is a list of generator functions, not None"):
        FlowExecutor(MemoryStorage(), workflows=none)
    with pytest.raises(InvalidWorkflow, match=r"workflows= takes several: write workflows=\[good\]"):
        FlowExecutor(MemoryStorage(), workflows=good)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
