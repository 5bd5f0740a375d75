"""Random workflows under random schedules end as they would have undisturbed.

Hypothesis writes the workflows (loops, branches on results, failing tools, saves, results of every JSON shape) and
the schedule: invocations advance one storage call or tool call at a time, interleaved at will; they die, are
cancelled, or are delivered twice; callbacks are lost; the clock jumps; sweeps run in between.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Generator
from types import CoroutineType
from typing import Any, NamedTuple, TypeAlias, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from sequential import Fenced, FlowExecutor, Paused, save, tool, version
from sequential.storage import Journal, Record, Result
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock

Invocation: TypeAlias = "CoroutineType[Any, Any, Any]"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=6,
)
statements = st.recursive(
    st.one_of(
        st.tuples(st.just("tool"), json_values),
        st.tuples(st.just("flaky"), st.text(max_size=5)),
        st.tuples(st.just("echo last")),
        st.tuples(st.just("save")),
        st.tuples(st.just("version")),
    ),
    lambda children: st.one_of(
        st.tuples(st.just("loop"), st.integers(0, 3), st.lists(children, max_size=3)),
        st.tuples(st.just("if last"), st.lists(children, max_size=2), st.lists(children, max_size=2)),
    ),
    max_leaves=6,
)
programs = st.lists(statements, max_size=5).flatmap(
    lambda program: st.sampled_from([program, [*program, ("raise", "on purpose")]])
)


def workflow(program: list[Any]) -> Generator[Any, Any, Any]:
    """Interpret a program; the value is all that its requests were answered with."""
    answers: list[Any] = []

    def run(block: list[Any]) -> Generator[Any, Any, None]:
        for kind, *rest in block:
            if kind == "loop":
                for _ in range(rest[0]):
                    yield from run(rest[1])
            elif kind == "if last":
                yield from run(rest[0] if answers and answers[-1] else rest[1])
            elif kind == "raise":
                raise RuntimeError(rest[0])
            elif kind == "save":
                answers.append((yield save()))
            elif kind == "version":
                answers.append((yield version()))
            else:
                input = answers[-1:] if kind == "echo last" else rest[0]
                answers.append((yield tool("test", kind, input)))

    yield from run(program)
    return answers


def perform(kind: str, input: Any) -> Any:
    if kind == "flaky":
        raise ConnectionError(input)
    return {"got": input}


class Expected(NamedTuple):
    """What an execution comes to if nothing disturbs it."""

    value: Any
    error: str | None
    steps: list[tuple[str, Any]]


def undisturbed(program: list[Any]) -> Expected:
    """Run a program with a bare loop over the generator."""
    answer: Any = None
    generator, steps = workflow(program), list[tuple[str, Any]]()
    try:
        while True:
            request = generator.send(answer)
            if request == version():
                answer = 7
                continue
            if request == save():
                answer = None
                steps.append(("save", None))
                continue
            _, kind, input = request["__tool"]
            try:
                answer = perform(kind, input)
            except ConnectionError as error:
                answer = {"__error": str(error) or "ConnectionError"}
            steps.append((f"tool test.{kind}", answer))
    except StopIteration as stop:
        return Expected(stop.value, None, steps)
    except RuntimeError as error:
        return Expected(None, f"RuntimeError: {error}", steps)


class Suspend:
    """A place where an invocation can be interrupted, die, or wait while others go on."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Interruptible(Journal):
    """A journal with a place to be interrupted before and after each call, and a count of what was recorded."""

    def __init__(self, inner: Journal) -> None:
        self.inner = inner
        self.codec = inner.codec
        self.recorded: Counter[tuple[str, int]] = Counter()

    async def claim(self, wanted: Record, now: float, create: bool) -> Any:
        return await self.around(self.inner.claim, wanted, now, create)

    async def commit(self, record: Record, token: int, result: Result | None = None) -> None:
        def commit() -> None:
            self.inner.commit(record, token, result)
            if result is not None:
                self.recorded[record.id, result.step] += 1

        await self.around(commit)

    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> Any:
        # Pages of one, so that a replay can be interrupted too.
        return await self.around(self.inner.results, record, start, start + 1)

    async def read(self, id: str) -> Any:
        return await self.around(self.inner.read, id)

    async def due(self, now: float, limit: int) -> Any:
        return await self.around(self.inner.due, now, limit)

    async def remove(self, id: str, held: Record | None = None) -> None:
        await self.around(self.inner.remove, id, held)

    async def around(self, method: Any, *arguments: Any) -> Any:
        await Suspend()
        done = method(*arguments)
        await Suspend()
        return done


class Schedule(RuleBasedStateMachine):
    """Any number of executions and invocations of them, in any order."""

    executions = Bundle("executions")
    invocations = Bundle("invocations")

    def make(self) -> Journal:
        return MemoryStorage()

    @initialize()
    def begin(self) -> None:
        self.inner = self.make()
        self.journal = Interruptible(self.inner)
        self.clock = FakeClock()
        self.callbacks: list[str] = []
        self.expected: dict[str, Expected] = {}
        self.unexpected: list[BaseException] = []
        self.launched: list[Invocation] = []
        options: dict[str, Any] = {"workflows": [workflow], "retain": True, "version": 7, "clock": self.clock}

        async def call(category: str, kind: str, input: Any) -> Any:
            await Suspend()
            try:
                return perform(kind, input)
            finally:
                await Suspend()

        async def resume(id: str) -> None:
            await Suspend()
            self.callbacks.append(id)

        self.flows = [
            FlowExecutor(self.journal, call=call, resume=resume, budget=budget, **options) for budget in (0.0, math.inf)
        ]
        self.calm = FlowExecutor(self.inner, call=lambda _, kind, input: perform(kind, input), **options)

    @rule(target=executions, program=programs)
    def start(self, program: list[Any]) -> str:
        id = f"e{len(self.expected)}"
        self.expected[id] = undisturbed(program)
        self.calm.start_sync(workflow, program, id)
        return id

    @rule(target=invocations, id=executions, flow=st.integers(0, 1))
    def invoke(self, id: str, flow: int) -> Invocation:
        return self.launch(self.flows[flow].resume(id))

    @rule(target=invocations, data=st.data(), flow=st.integers(0, 1), again=st.booleans())
    def deliver(self, data: st.DataObject, flow: int, again: bool) -> Invocation:
        if not self.callbacks:
            return self.launch(self.flows[flow].resume("nobody"))
        index = data.draw(st.integers(0, len(self.callbacks) - 1))
        return self.launch(self.flows[flow].resume(self.callbacks[index] if again else self.callbacks.pop(index)))

    @rule(target=invocations, flow=st.integers(0, 1))
    def sweep(self, flow: int) -> Invocation:
        return self.launch(self.flows[flow].sweep())

    @rule()
    def lose_all_callbacks(self) -> None:
        self.callbacks.clear()

    @rule(invocation=invocations, steps=st.integers(1, 30))
    def go_on(self, invocation: Invocation, steps: int) -> None:
        for _ in range(steps):
            if not self.advance(invocation):
                break

    @rule(invocation=consumes(invocations))
    def die(self, invocation: Invocation) -> None:
        invocation.close()

    @rule(invocation=invocations)
    def cancel(self, invocation: Invocation) -> None:
        if invocation.cr_frame is not None and invocation.cr_await is not None:
            self.advance(invocation, asyncio.CancelledError())

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.0, 31.0, 119.0, 121.0, 4000.0, -200.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def launch(self, coroutine: Coroutine[Any, Any, Any]) -> Invocation:
        """Let an invocation begin, as far as its first interruption."""
        invocation = cast("Invocation", coroutine)
        self.launched.append(invocation)
        self.advance(invocation)
        return invocation

    def advance(self, invocation: Invocation, thrown: BaseException | None = None) -> bool:
        """Let an invocation go on to its next interruption, and return whether it can go on from there."""
        if invocation.cr_frame is None:
            return False
        try:
            if thrown is None:
                invocation.send(None)
            else:
                invocation.throw(thrown)
        except StopIteration:
            return False
        except (Fenced, asyncio.CancelledError):
            return False
        except RuntimeError as error:
            if str(error) != "on purpose":
                self.unexpected.append(error)
            return False
        except BaseException as error:
            self.unexpected.append(error)
            return False
        return True

    def teardown(self) -> None:
        """Whatever happened: let time pass, sweep and resume; wake the frozen; compare."""
        values: dict[str, Any] = {}
        for id, expected in self.expected.items():
            value: Any = Paused(id, 0, "busy")
            for _ in range(1000):
                self.clock.advance(10_000.0)
                self.calm.sweep_sync()
                try:
                    value = self.calm.resume_sync(id)
                except RuntimeError as error:
                    assert expected.error == f"RuntimeError: {error}"
                    break
                if not isinstance(value, Paused):
                    values[id] = value
                    break
        for invocation in self.launched:
            while self.advance(invocation):
                pass
        assert self.unexpected == []
        for id, expected in self.expected.items():
            status = self.calm.status_sync(id)
            assert status is not None
            if expected.error is None:
                assert repr(values[id]) == repr(status.value) == repr(expected.value)
                assert status.status == "finished"
            else:
                assert (status.status, status.error) == ("failed", expected.error)
            history = self.calm.history_sync(id)
            assert repr([(step["asked"], step["result"]) for step in history]) == repr(expected.steps)
            assert [step["step"] for step in history] == list(range(len(expected.steps)))
        assert all(count == 1 for count in self.journal.recorded.values()), self.journal.recorded


class ScheduleOnSQLite(Schedule):
    """The same on the other store."""

    def make(self) -> Journal:
        return SQLiteStorage(":memory:")

    def teardown(self) -> None:
        super().teardown()
        assert isinstance(self.inner, SQLiteStorage)
        self.inner.close()


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestScheduleOnSQLite = ScheduleOnSQLite.TestCase
TestScheduleOnSQLite.settings = settings(TestSchedule.settings, max_examples=40)
