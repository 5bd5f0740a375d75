"""The crash kit finds what it is there to find."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Generator
from typing import Any

import pytest

from sequential import install, save, tool
from sequential.storage import Record, Result
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock, crash_points
from tests.support import AsyncJournal, AsyncPlainStorage, PlainStorage, echo


def workflow(input: Any) -> Generator[Any, Any, Any]:
    first = yield tool("api", "first", input)
    yield save()
    second = yield tool("api", "second", first)
    return (first, second)


async def echo_async(category: str, name: str, input: Any) -> Any:
    await asyncio.sleep(0)
    return input


@pytest.mark.parametrize("call", [echo, echo_async])
@pytest.mark.parametrize(
    "storage", [None, AsyncJournal, PlainStorage, AsyncPlainStorage, lambda: SQLiteStorage(":memory:")]
)
def test_a_good_workflow_survives_death_anywhere_on_every_storage(call: Any, storage: Any) -> None:
    assert crash_points(workflow, {"n": 1}, call=call, storage=storage and storage()) > 40


def test_the_number_of_places_is_exact() -> None:
    """For each of two tools: claim, tool, commit, resume; page, claim and final commit: each before and after."""

    def one() -> Generator[Any, Any, Any]:
        yield tool("api", "one")

    with install(call=echo):
        one_step_per_invocation = 2 * len(["claim", "tool", "commit", "resume", "claim", "results", "commit"])
        all_in_one = 2 * len(["claim", "tool", "commit", "commit"])
        assert crash_points(one) == one_step_per_invocation + all_in_one


def test_a_workflow_that_fails_fails_the_same_way_everywhere() -> None:
    def fails() -> Generator[Any, Any, Any]:
        yield tool("api", "one")
        raise ValueError("always")

    assert crash_points(fails, call=echo) > 10


def test_a_workflow_that_depends_on_more_than_its_steps_is_found() -> None:
    numbers = itertools.count()

    def counts() -> Generator[Any, Any, Any]:
        yield tool("api", "one")
        return next(numbers)

    with pytest.raises(
        AssertionError, match=r"after the process died .* \(point 0, budget 0.0\), the workflow .* instead of"
    ):
        crash_points(counts, call=echo)


def test_other_input_on_replay_is_found() -> None:
    numbers = itertools.count()

    def unsteady() -> Generator[Any, Any, Any]:
        yield tool("api", "one", {"n": next(numbers)})
        yield tool("api", "two")

    with pytest.raises(
        AssertionError, match=r"a tool was asked for with other input than before: \['tool api.one \(step 0\)"
    ):
        crash_points(unsteady, call=echo)


def test_another_path_on_replay_is_found() -> None:
    names = itertools.count()

    def diverges() -> Generator[Any, Any, Any]:
        yield tool("api", f"call-{next(names)}")
        yield tool("api", "two")

    with pytest.raises(AssertionError):
        crash_points(diverges, call=echo)


def test_a_tool_that_does_not_repeat_itself_is_found() -> None:
    results = itertools.count()

    def one() -> Generator[Any, Any, Any]:
        return (yield tool("api", "one"))

    with pytest.raises(AssertionError, match="instead of"):
        crash_points(one, call=lambda *_: next(results))


def test_a_storage_that_does_not_fence_is_found() -> None:
    class Torn(MemoryStorage):
        """Writes the record a moment before the result, and forgets the result if that was a new process's first."""

        def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
            super().commit(record._replace(step=max(0, record.step - (token % 2))), token, result)

    with pytest.raises(AssertionError):
        crash_points(workflow, {"n": 1}, call=echo, storage=Torn())


def test_a_workflow_without_end_is_given_up() -> None:
    def endless() -> Generator[Any, Any, Any]:
        while True:
            yield save()

    class Forgetful(PlainStorage):
        def get(self, id: str) -> None:
            return None

    with pytest.raises(AssertionError, match="the workflow did not end within 10000 invocations"):
        crash_points(endless, call=echo, storage=Forgetful())


def test_the_fake_clock_moves_only_when_told() -> None:
    clock = FakeClock(5.0)
    assert clock() == clock() == 5.0
    clock.advance(2.5)
    assert clock() == 7.5


@pytest.mark.parametrize("wrong", [5, "x", {}])
def test_what_cannot_perform_a_tool_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="call= must be a function, got"):
        crash_points(workflow, call=wrong)
