"""Where the hooks come from, and what is said when there is none."""

from __future__ import annotations

from collections.abc import Generator
from functools import cache, partial
from typing import Any

import pytest

import sequential.hooks
from sequential import FlowExecutor, HookNotConfigured, install, tool
from sequential.stores.memory import MemoryStorage
from sequential.testing import crash_points


@pytest.fixture(autouse=True)
def _restored() -> Generator[None]:
    with install():
        yield


def workflow() -> Generator[Any, Any, Any]:
    return (yield tool("api", "user"))


def test_no_call_hook_is_an_error_that_records_nothing() -> None:
    flow = FlowExecutor(MemoryStorage())
    with pytest.raises(HookNotConfigured) as caught:
        flow.execute_sync(workflow, "h")
    assert str(caught.value) == (
        "tool api.user cannot be performed, because no call hook is configured: pass FlowExecutor(..., call=f), or "
        "sequential.install(call=f), where f(category, name, input) performs a tool and returns its result"
    )
    status = flow.status_sync("h")
    assert status is not None
    assert (status.step, status.busy, status.status) == (0, False, "running")
    install(call=lambda category, name, input: "now")
    assert flow.execute_sync(workflow, "h") == {"paused": "h", "step": 0}
    assert flow.execute_sync(workflow, "h") == "now"


def of_two(name: str, input: Any) -> str:
    return "never"


async def of_two_awaited(name: str, input: Any) -> str:
    return "never"


@pytest.mark.parametrize("call", [of_two, of_two_awaited, partial(of_two, input={}), lambda: "never"])
@pytest.mark.parametrize("once", [False, True])
def test_a_call_hook_of_other_arguments_is_an_error_that_records_nothing(call: Any, once: bool) -> None:
    def ask() -> Generator[Any, Any, Any]:
        return (yield tool("api", "user", once=once))

    storage = MemoryStorage()
    with pytest.raises(
        HookNotConfigured, match=r"^tool api.user cannot be .*: write it as f\(category, name, input\)$"
    ):
        FlowExecutor(storage, call=call).execute_sync(ask, "h")
    with pytest.raises(HookNotConfigured, match="write it as f"):
        crash_points(ask, call=call)
    flow = FlowExecutor(storage, call=lambda category, name, input: "now")
    assert flow.history_sync("h") == []
    assert flow.execute_sync(ask, "h") == {"paused": "h", "step": 0}
    assert flow.execute_sync(ask, "h") == "now"


def test_a_type_error_within_a_tool_is_the_tools_own() -> None:
    def call(category: str, name: str, input: Any) -> Any:
        return of_two(name)  # type: ignore[call-arg]

    flow = FlowExecutor(MemoryStorage(), call=call)
    flow.execute_sync(workflow, "h")
    assert flow.execute_sync(workflow, "h")["__error"].startswith("of_two() missing 1 required positional argument")
    flow = FlowExecutor(MemoryStorage(), call=cache(call))
    flow.execute_sync(workflow, "cached")
    assert flow.execute_sync(workflow, "cached") == {"__error": "unhashable type: 'dict'"}
    untold: Any = int  # it does not tell what it takes
    with pytest.raises(TypeError) as refused:
        untold("api", "user", {})
    flow = FlowExecutor(MemoryStorage(), call=untold)
    flow.execute_sync(workflow, "builtin")
    assert flow.execute_sync(workflow, "builtin") == {"__error": str(refused.value)}


def test_the_executors_own_hooks_come_first() -> None:
    rung: list[str] = []
    install(call=lambda *_: "process", resume=lambda id: rung.append(f"process {id}"))
    own = FlowExecutor(MemoryStorage(), call=lambda *_: "own", resume=lambda id: rung.append(f"own {id}"))
    own.execute_sync(workflow, "a")
    assert own.execute_sync(workflow, "a") == "own"
    shared = FlowExecutor(MemoryStorage())
    shared.execute_sync(workflow, "b")
    assert shared.execute_sync(workflow, "b") == "process"
    assert rung == ["own a", "process b"]


@pytest.mark.parametrize("options", [{"call": 5}, {"resume": "https://host"}])
def test_what_cannot_be_called_is_not_installed(options: dict[str, Any]) -> None:
    install(call=print, resume=print)
    with pytest.raises(TypeError, match=f"{next(iter(options))}= must be a function, got"):
        install(**options)
    assert vars(sequential.hooks)["__call"] is vars(sequential.hooks)["__resume"] is print


def test_install_is_a_with_block_that_restores() -> None:
    install(call=lambda *_: "outer", resume=print)
    before = vars(sequential.hooks)["__call"], vars(sequential.hooks)["__resume"]
    with install(call=lambda *_: "inner"):
        assert vars(sequential.hooks)["__call"] is not before[0]
        assert vars(sequential.hooks)["__resume"] is print
    assert (vars(sequential.hooks)["__call"], vars(sequential.hooks)["__resume"]) == before


def spelled_as_in_the_seeds(hook: Any) -> None:
    sequential.hooks.__call = hook


def test_the_literal_spelling_works_outside_of_classes() -> None:
    spelled_as_in_the_seeds(lambda *_: "literal")
    flow = FlowExecutor(MemoryStorage(), budget=1e9)
    assert flow.execute_sync(workflow, "l") == "literal"


def test_a_name_that_python_mangled_is_found_and_told() -> None:
    class SomeClass:
        def set_up(self) -> None:
            sequential.hooks.__call = lambda *_: None

    SomeClass().set_up()
    try:
        with pytest.raises(
            HookNotConfigured, match="found '_SomeClass__call': inside a class body Python renames __call"
        ):
            FlowExecutor(MemoryStorage()).execute_sync(workflow, "m")
    finally:
        delattr(sequential.hooks, "_SomeClass__call")
