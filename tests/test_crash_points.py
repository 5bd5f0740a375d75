"""The crash kit finds what it is there to find."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from sequential import (
    FlowExecutor,
    HookNotConfigured,
    Paused,
    ToolError,
    again,
    install,
    save,
    sleep,
    tool,
    version,
    wait,
)
from sequential.record import Entry, Record, state_of, state_text
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import JournalAround, crash_points
from tests.support import AsyncJournal, AsyncPlainStorage, PlainStorage, echo

Flow = Generator[Any, Any, Any]


def workflow(input: Any) -> Flow:
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


class Small(MemoryStorage):
    """A store that takes hardly anything in one write."""

    part_size = write_size = 10


def test_values_that_take_several_writes_survive_death_in_their_midst() -> None:
    assert crash_points(workflow, "x" * 50, call=echo, storage=Small()) > 100


def everything(input: Any) -> Flow:
    """One of every request, in two rounds; a call that fails ends its list."""
    got: list[Any] = [(yield version())]
    try:
        got.append((yield [tool("api", name, input, once=name == "b") for name in "abc"]))
    except ToolError as error:
        got.append(str(error))
    yield sleep(60)
    got.append((yield wait("go", timeout=1)))
    try:
        got.append((yield wait("never", timeout=60)))
    except ToolError as error:
        got.append(str(error))
    yield save()
    return again({"round": 2, "got": got}) if input["round"] == 1 else got


@pytest.mark.parametrize(("errors", "fails", "round"), [("value", "b", 1), ("raise", "b", 2), ("raise", "", 2)])
def test_every_request_survives_death_anywhere_in_both_modes(errors: Any, fails: str, round: int) -> None:
    async def call(category: str, name: str, input: Any) -> Any:
        await asyncio.sleep("abc".index(name) / 10_000)
        if name == fails:
            raise ConnectionError(name)
        return [name, input]

    signals = {"go": "now"}
    assert crash_points(everything, {"round": round}, call=call, signals=signals, errors=errors, version=3) > 60


def test_there_is_a_place_before_and_after_everything_that_an_undisturbed_run_does() -> None:
    done: list[str] = []

    def two() -> Flow:
        yield [tool("api", "one", once=True), tool("api", "two")]
        yield tool("api", "three")

    def call(*called: Any) -> Any:
        done.append("tool")

    class Counting(JournalAround):
        async def around(self, what: str, method: Any, *arguments: Any, **options: Any) -> Any:
            done.append(what)
            return method(*arguments, **options)

    for budget in (0.0, math.inf):
        flow = FlowExecutor(Counting(MemoryStorage()), call=call, resume=done.append, budget=budget, retain=True)
        while isinstance(flow.execute_sync(two, "x"), Paused):
            pass
    with install(call=echo):
        assert crash_points(two) == 2 * len(done)


def test_a_workflow_that_fails_fails_the_same_way_everywhere() -> None:
    def fails() -> Flow:
        yield tool("api", "one")
        raise AssertionError("always")

    assert crash_points(fails, call=echo) > 10


numbers = itertools.count()


def counts() -> Flow:
    yield tool("api", "one")
    return next(numbers)


def other_input() -> Flow:
    yield tool("api", "one", {"n": next(numbers)})
    yield tool("api", "two")


def other_path() -> Flow:
    yield tool("api", f"call-{next(numbers)}")
    yield tool("api", "two")


def answers() -> Flow:
    return (yield tool("api", "one"))


def ignores() -> Flow:
    yield tool("api", "one")


@pytest.mark.parametrize(
    ("unsteady", "text"),
    [
        (counts, r"died before read \(point 0, budget 0.0\), the workflow \('returned', \d+\) instead of .*: let it"),
        (other_input, r"undisturbed, .* recorded 'tool api.one' at step 0, but .* 'tool api.one with another input'"),
        (other_path, r"undisturbed, the workflow goes another way on replay: .* 'tool api.call-\d+' at step 0, but"),
        (ignores, r"died before read \(point 0, budget 0.0\), .*'tool api.one', None, \d+.* was recorded instead of"),
        (answers, r"died before read \(point 0, budget 0.0\), the workflow \('returned', \d+\) instead of"),
    ],
)
def test_what_depends_on_more_than_the_input_and_the_steps_is_found(unsteady: Any, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        crash_points(unsteady, call=lambda *_: next(numbers))


class Swept(MemoryStorage):
    """A store that tells how often it was swept, which is once after each death."""

    sweeps = 0

    def due(self, now: float, limit: int) -> list[Record]:
        self.sweeps += 1
        return super().due(now, limit)


def test_what_goes_another_way_only_after_a_death_is_found() -> None:
    storage = Swept()

    def unsteady() -> Flow:
        yield tool("api", "one", {"n": storage.sweeps})
        yield tool("api", "two")

    text = r"after the process died after write of step 0 .*Diverged: .* now asks for 'tool api.one with another input'"
    with pytest.raises(AssertionError, match=text):
        crash_points(unsteady, call=lambda *_: 0, storage=storage)


class Losing(MemoryStorage):
    """A store that has lost the last answer of a process that died: as if it had not waited for the disk."""

    def due(self, now: float, limit: int) -> list[Record]:
        for id, record in self._records.items():
            if state_of(record).lease and record.step:
                self._records[id] = record._replace(step=record.step - 1)
        return super().due(now, limit)


class Forgetful(MemoryStorage):
    """A store that forgets which calls were begun."""

    def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> bool:
        if new is not None:
            new = new._replace(state=state_text(state_of(new)._replace(once=())))
        return super().write(old, new, entries, flush=flush)


def once(input: Any) -> Flow:
    yield tool("api", "one", input, once=True)
    return (yield [tool("api", "two", input), tool("api", "three", input, once=True)])


@pytest.mark.parametrize(
    ("storage", "text"),
    [
        (Losing, r"died .*\(point \d+, .*\), (.* was called, )?step 0 of round 1 was recorded a second time$"),
        (Forgetful, r"died after tool api.one \(.*\), \.\.\.:\w+:0 was called a second time$"),
    ],
)
def test_a_storage_that_does_not_keep_what_it_has_written_is_found(storage: Any, text: str) -> None:
    assert crash_points(once, {"n": 1}, call=echo) > 40
    with pytest.raises(AssertionError, match=text):
        crash_points(once, {"n": 1}, call=echo, storage=storage())


def test_a_workflow_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sequential.testing.drive._INVOCATIONS", 100)

    def endless() -> Flow:
        while True:
            yield save()

    class Empty(PlainStorage):
        def get(self, id: str) -> None:
            return None

    with pytest.raises(AssertionError, match="the workflow did not end within 100 invocations"):
        crash_points(endless, call=echo, storage=Empty())


def waits() -> Flow:
    return (yield wait("go"))


@pytest.mark.parametrize(
    ("signals", "text"),
    [
        ({}, r"the workflow waits for 'go' for ever: give it in signals="),
        ({"go": 1, "to": 2, "Go": 3}, r"never waited for 'Go', 'to', given in signals=; it returned 1$"),
    ],
)
def test_signals_that_are_missing_or_too_many_are_told(signals: Any, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        crash_points(waits, signals=signals)


@pytest.mark.parametrize("wrong", [5, "x", {}])
def test_what_cannot_perform_a_tool_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="call= must be a function, got"):
        crash_points(workflow, call=wrong)


def test_a_hook_that_takes_something_else_is_told_at_once() -> None:
    with pytest.raises(HookNotConfigured, match="is not to be called with a category, a name and an input"):
        crash_points(workflow, {}, call=lambda: None)  # type: ignore[misc, arg-type]


def test_a_tool_that_raises_a_type_error_has_failed_like_any_other() -> None:
    def call(category: str, name: str, input: Any) -> Any:
        raise TypeError("not of this kind")

    answers = []

    def flow() -> Flow:
        answers.append((yield tool("api", "x")))

    assert crash_points(flow, call=call) > 10
    assert {"__error": "not of this kind"} in answers
    assert all(answer == answers[0] for answer in answers)
