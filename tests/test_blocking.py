"""The blocking twins: the same body, no event loop, and a clear error where one would be needed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Generator
from typing import Any

import pytest

from sequential import EventLoopNeeded, FlowExecutor, tool
from sequential.stores.memory import MemoryStorage
from tests.support import AsyncJournal, AsyncPlainStorage, echo


def workflow() -> Generator[Any, Any, Any]:
    return (yield tool("api", "user", {"n": 1}))


def several() -> Generator[Any, Any, Any]:
    return (yield [tool("api", "user"), tool("api", "likes")])


def test_every_public_method_has_a_twin_of_the_same_signature() -> None:
    methods = [name for name in vars(FlowExecutor) if not name.startswith("_") and not name.endswith("_sync")]
    assert methods == [
        "execute",
        "run",
        "start",
        "resume",
        "ring",
        "status",
        "history",
        "signal",
        "cancel",
        "fork",
        "delete",
        "sweep",
        "purge",
        "list",
        "take",
    ]
    methods.remove("take")  # which is for the other parts of the package
    for name in methods:
        method, twin = getattr(FlowExecutor, name), getattr(FlowExecutor, f"{name}_sync")
        assert inspect.iscoroutinefunction(method)
        assert not inspect.iscoroutinefunction(twin)
        assert inspect.signature(method) == inspect.signature(twin)
        assert twin.__name__ == f"{name}_sync"
        assert twin.__qualname__ == f"FlowExecutor.{name}_sync"
        assert twin.__doc__ == f"Do what {name}() does, without an event loop."


@pytest.mark.parametrize("storage", [AsyncJournal, AsyncPlainStorage])
def test_an_async_storage_needs_an_event_loop(storage: type) -> None:
    with pytest.raises(EventLoopNeeded, match="await the method of the same name without _sync"):
        FlowExecutor(storage(), call=echo).execute_sync(workflow, "a")


async def waits(category: str, name: str, input: Any) -> Any:
    await asyncio.sleep(0)


async def sleeps(category: str, name: str, input: Any) -> Any:
    await asyncio.sleep(0.01)


async def guarded(category: str, name: str, input: Any) -> Any:
    try:
        await asyncio.sleep(0)
    except Exception as error:
        raise ConnectionError("could not connect") from error


def looks_plain(category: str, name: str, input: Any) -> Any:
    return waits(category, name, input)


@pytest.mark.parametrize("call", [waits, guarded, looks_plain, sleeps])
@pytest.mark.parametrize("asks", [workflow, several])
def test_an_async_tool_needs_an_event_loop_and_is_not_recorded(call: Any, asks: Any) -> None:
    storage = MemoryStorage()
    with pytest.raises(EventLoopNeeded):
        FlowExecutor(storage, call=call).execute_sync(asks, "a")
    status = FlowExecutor(storage).status_sync("a")
    assert status is not None
    assert (status.step, status.busy) == (0, False)


def test_an_async_tool_that_waits_for_nothing_needs_none() -> None:
    async def answers(category: str, name: str, input: Any) -> Any:
        if name == "likes":
            raise RuntimeError("of another kind")
        return "at once"

    flow = FlowExecutor(MemoryStorage(), call=answers, budget=1e9)
    assert flow.execute_sync(workflow, "a") == "at once"
    assert flow.execute_sync(several, "b") == ["at once", {"__error": "of another kind"}]


def test_a_hook_that_needs_a_loop_is_told_apart_from_one_that_fails() -> None:
    class Loopless(MemoryStorage):
        message = ""

        def read(self, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - it is what a mistaken store does
            raise RuntimeError(self.message)

    storage = Loopless()
    storage.message = "no running event loop"
    with pytest.raises(EventLoopNeeded):
        FlowExecutor(storage).status_sync("a")
    storage.message = "out of order"
    with pytest.raises(RuntimeError, match="out of order"):
        FlowExecutor(storage).status_sync("a")


class _Waits:
    def __await__(self) -> Generator[None, None, None]:
        try:
            yield
        except BaseException:
            yield


def test_a_coroutine_that_waits_again_is_given_up() -> None:
    class Stubborn(AsyncJournal):
        async def read(self, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - it is what a mistaken store does
            await _Waits()

    with pytest.raises(EventLoopNeeded):
        FlowExecutor(Stubborn()).status_sync("a")
