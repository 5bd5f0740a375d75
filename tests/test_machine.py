"""Random workflows under random schedules end as they would have undisturbed.

Hypothesis writes the workflows (loops, branches on results, failing tools, gathers, sleeps, waits, calls that may be
made once only, retries, sagas, several rounds, results of every JSON shape) and the schedule: invocations advance one storage call or
tool call at a time, interleaved at will; they die, are cancelled, or are delivered twice; callbacks are lost; signals
come early, late and twice; the clock jumps; sweeps run in between; executions are cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Generator
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple, TypeAlias, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from sequential import AlreadyEnded, Fenced, FlowExecutor, Paused, again, current, save, sleep, tool, version, wait
from sequential.patterns import ToolError, check, retry, saga
from sequential.storage import Journal, Record, Result
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock, JournalAround

Invocation: TypeAlias = "CoroutineType[Any, Any, Any]"

KINDS = ("tool", "flaky", "once")
NAMES = ("yes", "no")

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
        st.tuples(st.just("once"), json_values),
        st.tuples(st.just("gather"), st.lists(st.tuples(st.sampled_from(KINDS), st.text(max_size=3)), max_size=4)),
        st.tuples(st.just("gather"), st.just([("once", "a"), ("tool", "b"), ("once", "c")])),
        st.tuples(st.just("retry"), st.sampled_from(KINDS), st.text(max_size=3)),
        st.tuples(st.just("saga"), st.lists(st.sampled_from(KINDS), max_size=3)),
        st.tuples(st.just("sleep"), st.sampled_from([0, 10, 1000])),
        st.tuples(st.just("wait"), st.sampled_from(NAMES), st.sampled_from([None, 0, 1000])),
    ),
    lambda children: st.one_of(
        st.tuples(st.just("loop"), st.integers(0, 3), st.lists(children, max_size=3)),
        st.tuples(st.just("if last"), st.lists(children, max_size=2), st.lists(children, max_size=2)),
    ),
    max_leaves=6,
)
programs = st.lists(statements, max_size=5).flatmap(
    lambda program: st.sampled_from([program, program, program, [*program, ("raise", "on purpose")]])
)


def ask(kind: str, input: Any) -> dict[str, Any]:
    return tool("test", kind, input, once=kind == "once")


def workflow(input: dict[str, Any]) -> Generator[Any, Any, Any]:  # noqa: C901 - one line for each kind
    """Interpret a program; the value is all that its requests were answered with in the last round."""
    answers: list[Any] = []

    def run(block: list[Any]) -> Generator[Any, Any, None]:  # noqa: C901, PLR0912
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
            elif kind == "gather":
                answers.append((yield [ask(kind, value) for kind, value in rest[0]]))
            elif kind == "retry":
                answers.append((yield from retry(ask(*rest), attempts=2, delay=10)))
            elif kind == "saga":
                answers.append((yield from book(rest[0])))
            elif kind == "sleep":
                answers.append((yield sleep(rest[0])))
            elif kind == "wait":
                answers.append((yield wait(*rest)))
            else:
                answers.append((yield ask(kind, answers[-1:] if kind == "echo last" else rest[0])))

    yield from run(input["program"])
    return again(input | {"rounds": input["rounds"] - 1}) if input["rounds"] > 1 else answers


def book(kinds: list[str]) -> Generator[Any, Any, Any]:
    """Do one thing of each kind, each undone by a call of the same kind if a later one fails."""
    trip, done = saga(attempts=2, delay=10), list[Any]()
    try:
        for number, kind in enumerate(kinds):
            done.append((yield from trip.do(ask(kind, number), undo=partial(undoing, kind))))
        check((yield ask("flaky", "at last")))
    except ToolError as error:
        done.append(str(error))
        try:
            yield from trip.undo()
        except ToolError as left:  # a call of once=True that was interrupted
            done.append(str(left))
    return done


def undoing(kind: str, result: Any) -> dict[str, Any]:
    return ask(kind, {"undo": result})


def payload(name: str) -> Any:
    return {"signal": name}


def perform(kind: str, input: Any) -> Any:
    if kind == "flaky":
        raise ConnectionError(input)
    return {"got": input}


class Expected(NamedTuple):
    """What an execution comes to if nothing disturbs it."""

    value: Any
    error: str | None
    steps: list[tuple[str, Any]]


def undisturbed(program: list[Any], recorded: list[Any]) -> Expected:  # noqa: C901
    """Run a program with a bare loop over the generator.

    Where an answer depends on the schedule, it is the one recorded, if that is among those possible.
    """
    answer: Any = None
    generator, steps = workflow({"program": program, "rounds": 1}), list[tuple[str, Any]]()

    def call(request: dict[str, Any]) -> Any:
        _, kind, input = request["__tool"]
        try:
            answer = perform(kind, input)
        except ConnectionError as error:
            answer = {"__error": str(error) or "ConnectionError"}
        if "__once" in request:
            answer = one_of(answer, {"__error": "interrupted"})
        steps.append((f"tool test.{kind}", answer))
        return answer

    def one_of(*answers: Any) -> Any:
        found = recorded[len(steps)] if len(steps) < len(recorded) else answers[0]
        assert found in answers
        return found

    try:
        while True:
            request = generator.send(answer)
            if isinstance(request, list):
                answer = [call(each) for each in request]
            elif request == version():
                answer = 7
            elif "__tool" in request:
                answer = call(request)
            elif "__wait" in request:
                name, timeout = request["__wait"]
                answer = one_of(payload(name), *([] if timeout is None else [{"__error": "timeout"}]))
                steps.append((f"wait {name}", answer))
            else:
                answer = None
                steps.append(("sleep" if "__sleep" in request else "save", None))
    except StopIteration as stop:
        return Expected(stop.value, None, steps)
    except RuntimeError as error:
        return Expected(None, f"RuntimeError: {error}", steps)


class Suspend:
    """A place where an invocation can be interrupted, die, or wait while others go on."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Interruptible(JournalAround):
    """A journal with a place to be interrupted before and after each call, and a count of what was recorded."""

    def __init__(self, inner: Journal) -> None:
        super().__init__(inner)
        self.recorded: Counter[tuple[str, str, int]] = Counter()

    async def around(self, what: str, method: Any, *arguments: Any, **options: Any) -> Any:
        await Suspend()
        done = method(*arguments, **options)
        await Suspend()
        return done

    async def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        def commit() -> None:
            self.inner.commit(record, token, result, **signal)
            if result is not None:
                self.recorded[record.id, record.run, result.step] += 1

        await self.around("commit", commit)

    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> Any:
        # Pages of one, so that a replay can be interrupted too.
        return await self.around("results", lambda: self.inner.results(record, start, stop)[:1])  # type: ignore[index]


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
        self.programs: dict[str, list[Any]] = {}
        self.cancelled: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.unexpected: list[BaseException] = []
        self.launched: list[Invocation] = []
        options: dict[str, Any] = {"workflows": [workflow], "retain": True, "version": 7, "clock": self.clock}

        async def call(category: str, kind: str, input: Any) -> Any:
            if kind == "once":
                self.calls[current().key] += 1
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

        def calm_call(category: str, kind: str, input: Any) -> Any:
            if kind == "once":
                self.calls[current().key] += 1
            return perform(kind, input)

        self.calm = FlowExecutor(self.inner, call=calm_call, **options)

    @rule(target=executions, program=programs, rounds=st.sampled_from([1, 1, 1, 2, 3]))
    def start(self, program: list[Any], rounds: int) -> str:
        id = f"e{len(self.programs)}"
        self.programs[id] = program
        self.calm.start_sync(workflow, {"program": program, "rounds": rounds}, id)
        return id

    @rule(target=invocations, id=executions, flow=st.integers(0, 1), name=st.sampled_from(NAMES))
    def signal(self, id: str, flow: int, name: str) -> Invocation:
        return self.launch(self.flows[flow].signal(id, name, payload(name)))

    @rule(target=invocations, id=executions, flow=st.integers(0, 1), often=st.integers(0, 9))
    def end(self, id: str, flow: int, often: int) -> Invocation:
        async def cancel() -> None:
            await self.flows[flow].cancel(id)
            self.cancelled.add(id)

        return self.launch(cancel() if often == 0 else self.flows[flow].resume(id))

    @rule(target=invocations, id=executions, flow=st.integers(0, 1), steps=st.integers(0, 60))
    def invoke(self, id: str, flow: int, steps: int) -> Invocation:
        invocation = self.launch(self.flows[flow].resume(id))
        self.go_on(invocation, steps)
        return invocation

    @rule(id=executions, flow=st.integers(0, 1), steps=st.integers(0, 60))
    def die_in_the_midst(self, id: str, flow: int, steps: int) -> None:
        """Any lease that is in the way has ended, and this one ends too."""
        self.clock.advance(121.0)
        self.die(self.invoke(id, flow, steps))
        self.clock.advance(121.0)

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
        except (Fenced, AlreadyEnded, asyncio.CancelledError):
            return False
        except RuntimeError as error:
            if str(error) != "on purpose":
                self.unexpected.append(error)
            return False
        except BaseException as error:
            self.unexpected.append(error)
            return False
        return True

    def teardown(self) -> None:  # noqa: C901
        """Whatever happened: let time pass, sweep and resume; wake the frozen; compare."""
        values: dict[str, Any] = {}
        for id in self.programs:
            for _ in range(1000):
                self.clock.advance(10_000.0)
                self.calm.sweep_sync()
                status = self.calm.status_sync(id)
                if status is not None and status.waits is not None and status.due is None:
                    self.calm.signal_sync(id, status.waits, payload(status.waits))
                try:
                    values[id] = self.calm.resume_sync(id)
                except RuntimeError as error:
                    assert str(error) == "on purpose"
                    break
                if not isinstance(values[id], Paused):
                    break
        for invocation in self.launched:
            while self.advance(invocation):
                pass
        assert self.unexpected == []
        for id, program in self.programs.items():
            status, history = self.calm.status_sync(id), self.calm.history_sync(id)
            assert status is not None
            assert [step["step"] for step in history] == list(range(len(history)))
            expected = undisturbed(program, [step["result"] for step in history])
            steps = [(step["asked"], step["result"]) for step in history]
            if status.status == "cancelled":
                assert repr(steps) == repr(expected.steps[: len(steps)])
                continue
            assert id not in self.cancelled
            if expected.error is None:
                assert repr(values[id]) == repr(status.value) == repr(expected.value)
                assert status.status == "finished"
            else:
                assert (status.status, status.error) == ("failed", expected.error)
            assert repr(steps) == repr(expected.steps)
        assert all(count == 1 for count in self.journal.recorded.values()), self.journal.recorded
        assert all(count == 1 for count in self.calls.values()), self.calls


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
    max_examples=250,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestScheduleOnSQLite = ScheduleOnSQLite.TestCase
TestScheduleOnSQLite.settings = settings(TestSchedule.settings, max_examples=40)
