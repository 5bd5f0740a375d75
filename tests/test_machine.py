"""Random workflows under random schedules end as they would have undisturbed.

Hypothesis writes the workflows (loops, branches on results, failing tools, lists, sleeps, waits, calls that may be made
once only, retries, sagas, several rounds, results of every JSON shape, errors as values or raised, undoing when they are
cancelled) and the schedule: invocations advance one storage call or tool call at a time, interleaved at will; they die,
are cancelled, or are delivered twice; callbacks and the store's answers are lost; signals come early, late and twice;
the clock jumps; sweeps run in between; executions are cancelled.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Coroutine, Generator
from functools import partial
from pathlib import Path
from types import CoroutineType
from typing import Any, NamedTuple, TypeAlias, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, precondition, rule

from sequential import (
    AlreadyEnded,
    Cancelled,
    Fenced,
    FlowExecutor,
    Paused,
    ToolError,
    again,
    current,
    save,
    sleep,
    tool,
    version,
    wait,
)
from sequential.errors import StorageError, describe
from sequential.journal import Journal
from sequential.patterns import check, retry, saga
from sequential.record import Entry, Record, state_of
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock, JournalAround
from tests.support import PlainStorage

Flow = Generator[Any, Any, Any]
Invocation: TypeAlias = "CoroutineType[Any, Any, Any]"

KINDS = ("tool", "flaky", "once")
NAMES = ("yes", "no")
VERSION = 7
LEASE = 60.0

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=6,
)


def programs_of(kinds: tuple[str, ...], *more: Any) -> Any:
    """Programs of requests that any storage can carry, and `more`."""
    simple = st.one_of(
        st.tuples(st.just("tool"), json_values),
        st.tuples(st.just("flaky"), st.text(max_size=5)),
        st.tuples(st.just("echo last")),
        st.tuples(st.just("save")),
        st.tuples(st.just("list"), st.lists(st.tuples(st.sampled_from(kinds), st.text(max_size=3)), max_size=4)),
        *more,
    )
    blocks = st.recursive(
        simple,
        lambda children: st.one_of(
            st.tuples(st.just("loop"), st.integers(0, 3), st.lists(children, max_size=3)),
            st.tuples(st.just("if last"), st.lists(children, max_size=2), st.lists(children, max_size=2)),
            st.tuples(st.just("try"), st.lists(children, max_size=3)),
        ),
        max_leaves=6,
    )
    return st.lists(blocks, min_size=1, max_size=5).flatmap(
        lambda program: st.sampled_from([program, program, program, [*program, ("raise", "on purpose")]])
    )


TELLING = [
    ("once", "a"),
    ("list", [("once", "a"), ("tool", "b"), ("once", "c")]),
    ("try", [("list", [("tool", "a"), ("flaky", "b"), ("once", "c")]), ("wait", "no", None)]),
    ("loop", 2, [("wait", "yes", 1000), ("save",)]),
    ("try", [("sleep", 10), ("wait", "yes", None)]),
]
"""What chance would seldom put together."""

any_programs = programs_of(
    KINDS,
    st.tuples(st.just("version")),
    st.tuples(st.just("once"), json_values),
    st.tuples(st.just("retry"), st.sampled_from(KINDS), st.text(max_size=3)),
    st.tuples(st.just("saga"), st.lists(st.sampled_from(KINDS), max_size=3)),
    st.tuples(st.just("sleep"), st.sampled_from([0, 10, 1000])),
    st.tuples(st.just("wait"), st.sampled_from(NAMES), st.sampled_from([None, 0, 1000])),
    *map(st.just, TELLING),
)


plan: dict[str, Any] = {"program": any_programs, "rounds": st.sampled_from([1, 1, 1, 2, 3]), "raises": st.booleans()}


def ask(kind: str, input: Any) -> dict[str, Any]:
    return tool("test", kind, input, once=kind == "once")


def workflow(input: dict[str, Any]) -> Flow:  # noqa: C901 - one line for each kind
    """Interpret a program; the value is all that its requests were answered with in the last round."""
    answers: list[Any] = []

    def run(block: list[Any]) -> Flow:  # noqa: C901, PLR0912
        for kind, *rest in block:
            if kind == "loop":
                for _ in range(rest[0]):
                    yield from run(rest[1])
            elif kind == "if last":
                yield from run(rest[0] if answers and answers[-1] else rest[1])
            elif kind == "try":
                try:
                    yield from run(rest[0])
                except ToolError as error:
                    answers.append((yield ask("tool", str(error))))
                except Cancelled:
                    answers.append((yield ask("tool", "undo")))
                    raise
            elif kind == "raise":
                raise RuntimeError(rest[0])
            elif kind == "save":
                answers.append((yield save()))
            elif kind == "version":
                answers.append((yield version()))
            elif kind == "list":
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


def book(kinds: list[str]) -> Flow:
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


def perform(kind: str, input: Any) -> Any:
    if kind == "flaky":
        raise ConnectionError(input)
    return {"got": input}


def answer_of(kind: str, input: Any) -> Any:
    try:
        return perform(kind, input)
    except ConnectionError as error:
        return {"__error": str(error) or "ConnectionError"}


class Told(NamedTuple):
    """How a workflow ends by its log."""

    value: Any
    error: BaseException | None


def told(input: dict[str, Any], log: list[dict[str, Any]], raises: bool) -> Told | None:
    """Send a log into a bare generator, make sure that it answers what is asked for, and return how that ends, if it does.

    In which order the calls of a list have ended, which signals came in time, what was interrupted, and when a
    cancellation was seen: that is as the log has it.
    """
    generator, entries, branches = workflow(input), log.copy(), 1
    answer: Any = None
    error: BaseException | None = None
    try:
        while True:
            request = generator.send(answer) if error is None else generator.throw(error)
            answer = error = None
            if request == version():
                answer = VERSION
                continue
            pending, got = {0: request}, dict[int, Any]()
            if isinstance(request, list):
                pending = dict(enumerate(request, branches))
                branches += len(request)
            while pending:
                if not entries:
                    return None
                entry = entries.pop(0)
                if entry["asked"] in {"end", "cancel"}:
                    assert error is not None or entry["asked"] == "cancel"
                    error = Cancelled() if entry["asked"] == "cancel" else error
                    break
                asked = pending.pop(entry["branch"])
                got[entry["branch"]] = result = entry["result"]
                label = answers(entry, asked)
                if raises and error is None and isinstance(result, dict) and [*result] == ["__error"]:
                    error = ToolError(result["__error"], label)
            answer = [got[branch] for branch in sorted(got)] if isinstance(request, list) else got.get(0)
    except StopIteration as stop:
        ended = Told(stop.value, None)
    except (RuntimeError, ToolError, Cancelled) as raised:
        ended = Told(None, raised)
    assert entries == []
    return ended


def answers(entry: dict[str, Any], asked: dict[str, Any]) -> str:
    """Make sure that an entry is a possible answer to a request, and return what the request is for."""
    result, took = entry["result"], entry["ended"] - entry["started"]
    if "__tool" in asked:
        _, kind, input = asked["__tool"]
        possible = [answer_of(kind, input), *([{"__error": "interrupted"}] if "__once" in asked else [])]
        assert repr(result) in map(repr, possible)
        label = f"test.{kind}"
    elif "__wait" in asked:
        name, timeout = asked["__wait"]
        assert result["signal"] == name if "signal" in entry else (result == {"__error": "timeout"} and took >= timeout)
        label = f"wait {name}"
    else:
        assert result is None
        assert took >= asked.get("__sleep", 0) * 0.8  # a retry's jitter is another here
        label = "sleep" if "__sleep" in asked else "save"
    assert entry["asked"].removeprefix("tool ") == label
    return label


class Suspend:
    """A place where an invocation can be interrupted, die, or wait while others go on."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Lost(Exception):
    """The store did not answer."""


class Recorder(JournalAround):
    """A journal that counts what was recorded, and finds leases that were taken too early."""

    def __init__(self, inner: Journal) -> None:
        super().__init__(inner)
        self.recorded: Counter[tuple[Any, ...]] = Counter()
        self.taken_early: list[str] = []

    async def around(self, what: str, method: Any, *arguments: Any, **options: Any) -> Any:
        done = method(*arguments, **options)
        if what == "write" and done:
            self.note(*arguments)
        return done

    def note(self, old: Record | None, new: Record | None, entries: list[Entry]) -> None:
        if old is not None and new is not None and old.run == new.run:
            held, holds = state_of(old), state_of(new)
            is_taken = held.lease > 0 and holds.lease > 0 and held.holder != holds.holder
            if is_taken and holds.lease < held.lease + 1.5 * LEASE:
                self.taken_early.append(new.id)
            self.recorded.update((new.id, new.run, step) for step in range(old.step, new.step))
            told = [json.loads(entry.about) for entry in entries if entry.place >= old.step]
            self.recorded.update((new.id, "signal", about["signal"]) for about in told if "signal" in about)


class Interruptible(JournalAround):
    """A journal with a place to be interrupted before and after each call."""

    lost: str | None = None
    """When the next call fails: before it has done anything, or after."""

    async def around(self, what: str, method: Any, *arguments: Any, **options: Any) -> Any:
        await Suspend()
        lost, self.lost = self.lost, None
        if lost == "before":
            raise Lost
        done = await method(*arguments, **options)
        if lost == "after":
            raise Lost
        await Suspend()
        # Pages of one, so that a replay can be interrupted too.
        return (done[0], done[1][:1]) if what == "read" else done


class Schedule(RuleBasedStateMachine):
    """One execution or two, and any number of invocations of them, in any order."""

    executions = Bundle("executions")
    invocations = Bundle("invocations")

    def make(self) -> Journal:
        return MemoryStorage()

    def __init__(self) -> None:
        super().__init__()
        self.recorder = Recorder(self.make())
        self.journal = Interruptible(self.recorder)
        self.clock = FakeClock()
        self.callbacks: list[str] = []
        self.raises: dict[str, bool] = {}
        self.cancelled: set[str] = set()
        self.once: Counter[str] = Counter()
        self.inputs: dict[str, set[str]] = {}
        self.unexpected: list[BaseException] = []
        self.launched: list[Invocation] = []
        options: dict[str, Any] = {
            "workflows": [workflow], "retain": True, "version": VERSION, "clock": self.clock, "lease": LEASE
        }  # fmt: skip

        def note(kind: str, input: Any) -> None:
            key = current().key
            self.inputs.setdefault(key, set()).add(repr((kind, input)))
            self.once[key] += kind == "once"

        def calm_call(category: str, kind: str, input: Any) -> Any:
            note(kind, input)
            return perform(kind, input)

        async def call(category: str, kind: str, input: Any) -> Any:
            note(kind, input)
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
        self.calm = FlowExecutor(self.recorder, call=calm_call, **options)
        self.calm_raising = FlowExecutor(self.recorder, errors="raise", **options)

    @initialize(target=executions, **plan)
    def start(self, program: list[Any], rounds: int, raises: bool) -> str:
        id = f"e{len(self.raises)}"
        self.raises[id] = raises
        flow = self.calm_raising if raises else self.calm
        return flow.start_sync(workflow, id, {"program": program, "rounds": rounds})

    @precondition(lambda self: len(self.raises) < 2)  # so that each is met again
    @rule(target=executions, **plan)
    def start_another(self, **plan: Any) -> Any:
        return self.start(**plan)

    @rule(target=invocations, id=executions, flow=st.integers(0, 1), name=st.sampled_from(NAMES), queue=st.booleans())
    def signal(self, id: str, flow: int, name: str, queue: bool) -> Invocation:
        return self.launch(self.flows[flow].signal(id, name, {"signal": name}, queue=queue))

    @rule(target=invocations, id=executions, flow=st.integers(0, 1), force=st.sampled_from([False, False, False, True]))
    def cancel(self, id: str, flow: int, force: bool) -> Invocation:
        self.cancelled.add(id)
        invocation = self.launch(self.flows[flow].cancel(id, force=force))
        self.go_on(invocation, 3)
        return invocation

    @rule(target=invocations, id=executions, flow=st.integers(0, 1), steps=st.integers(0, 60))
    def invoke(self, id: str, flow: int, steps: int) -> Invocation:
        invocation = self.launch(self.flows[flow].resume(id))
        self.go_on(invocation, steps)
        return invocation

    @rule(target=invocations, id=executions, turns=st.lists(st.integers(0, 1), max_size=60))
    def meet(self, id: str, turns: list[int]) -> Any:
        both = [self.launch(flow.resume(id)) for flow in self.flows]
        for turn in turns:
            self.advance(both[turn])
        return multiple(*both)

    @rule(id=executions, flow=st.integers(0, 1), steps=st.integers(0, 20))
    def die_in_the_midst(self, id: str, flow: int, steps: int) -> None:
        """Any lease that is in the way has ended, and this one ends too."""
        self.clock.advance(1.6 * LEASE)
        self.die(self.invoke(id, flow, steps))
        self.clock.advance(1.6 * LEASE)

    @rule(target=invocations, data=st.data(), flow=st.integers(0, 1), again=st.booleans())
    def deliver(self, data: st.DataObject, flow: int, again: bool) -> Invocation:
        if not self.callbacks:
            return self.launch(self.flows[flow].resume("nobody"))
        index = data.draw(st.integers(0, len(self.callbacks) - 1))
        return self.launch(self.flows[flow].resume(self.callbacks[index] if again else self.callbacks.pop(index)))

    @rule(target=invocations, flow=st.integers(0, 1))
    def sweep(self, flow: int) -> Invocation:
        return self.launch(self.flows[flow].sweep())

    @rule(target=invocations, id=executions)
    def ring(self, id: str) -> Invocation:
        return self.launch(self.flows[0].ring(id))

    @rule()
    def lose_all_callbacks(self) -> None:
        self.callbacks.clear()

    @rule(lost=st.sampled_from(["before", "after", "after"]))
    def lose_an_answer(self, lost: str) -> None:
        self.journal.lost = lost

    @rule(invocation=invocations, steps=st.integers(1, 30))
    def go_on(self, invocation: Invocation, steps: int) -> None:
        for _ in range(steps):
            if not self.advance(invocation):
                break

    @rule(invocation=consumes(invocations))
    def die(self, invocation: Invocation) -> None:
        invocation.close()

    @rule(invocation=invocations)
    def interrupt(self, invocation: Invocation) -> None:
        if invocation.cr_frame is not None and invocation.cr_await is not None:
            self.advance(invocation, KeyboardInterrupt())

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.0, 31.0, 1.4 * LEASE, 1.6 * LEASE, 4000.0, -200.0]))
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
        except (StopIteration, Fenced, AlreadyEnded, KeyboardInterrupt, Lost, ToolError):
            return False
        except BaseException as error:
            if (
                str(error) != "on purpose" and type(error) is not StorageError
            ):  # it cannot tell whether a signal was kept
                self.unexpected.append(error)
            return False
        return True

    def teardown(self) -> None:
        """Whatever happened: let time pass, sweep and resume; wake the frozen, who change nothing; compare."""
        self.journal.lost = None
        for id in self.raises:
            self.finish(id)
        for invocation in self.launched:
            while self.advance(invocation):
                pass
        assert self.unexpected == []
        for id, raises in self.raises.items():
            value = self.finish(id)
            status, history = self.calm.status_sync(id), self.calm.history_sync(id)
            assert status is not None
            ended = told(status.input, history, raises)
            assert [step["asked"] for step in history].count("cancel") <= (id in self.cancelled)
            if status.status == "cancelled":
                assert id in self.cancelled
            else:
                assert ended is not None
                error = ended.error and describe(ended.error)
                assert (status.status, status.error) == ("failed" if error else "finished", error)
                assert repr(value) == repr(status.value) == repr(ended.value)
        assert self.recorder.taken_early == []
        assert set(self.recorder.recorded.values()) <= {1}, self.recorder.recorded
        assert set(self.once.values()) <= {0, 1}, self.once
        assert all(len(inputs) == 1 for inputs in self.inputs.values()), self.inputs

    def finish(self, id: str) -> Any:
        """Let an execution end, undisturbed."""
        for _ in range(1000):
            self.clock.advance(10_000.0)
            self.calm.sweep_sync()
            status = self.calm.status_sync(id)
            assert status is not None
            if status.due is None:
                for name in status.waits:
                    self.calm.signal_sync(id, name, {"signal": name})
            try:
                value = self.calm.resume_sync(id, parked=True)
            except (RuntimeError, ToolError):
                return None
            if not isinstance(value, Paused):
                return value
        raise AssertionError(f"{id} is stuck: {self.calm.status_sync(id)}")


class ScheduleOnSQLite(Schedule):
    """The same on the other store."""

    def make(self) -> Journal:
        self.folder = tempfile.TemporaryDirectory()
        return SQLiteStorage(Path(self.folder.name) / "flows.db")

    def teardown(self) -> None:
        super().teardown()
        self.recorder.close()
        self.folder.cleanup()


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestScheduleOnSQLite = ScheduleOnSQLite.TestCase
TestScheduleOnSQLite.settings = settings(TestSchedule.settings, max_examples=25)


class InterruptibleFive:
    """Five methods with a place to die before and after each."""

    def __init__(self) -> None:
        self.inner = PlainStorage()

    def __getattr__(self, name: str) -> Any:
        async def method(*arguments: Any) -> Any:
            await Suspend()
            done = getattr(self.inner, name)(*arguments)
            await Suspend()
            return done

        return method


@given(
    program=programs_of(("tool", "flaky")),
    errors=st.sampled_from(["value", "raise"]),
    budget=st.sampled_from([0.0, math.inf]),
    deaths=st.lists(st.integers(0, 40), max_size=5),
)
@settings(deadline=None)
def test_on_five_methods_whoever_dies_the_next_one_goes_on(
    program: list[Any], errors: Any, budget: float, deaths: list[int]
) -> None:
    async def call(category: str, kind: str, input: Any) -> Any:
        await Suspend()
        return perform(kind, input)

    def outcome(run: Any) -> str:
        try:
            return repr(run())
        except (RuntimeError, ToolError) as error:
            return describe(error)

    def end() -> Any:
        while True:
            steps = deaths.pop() if deaths else 10_000
            invocation = flow.execute(workflow, "x", input)
            try:
                for _ in range(steps):
                    invocation.send(None)
                invocation.close()
            except StopIteration as stop:
                if not isinstance(stop.value, Paused):
                    return stop.value

    input = {"program": program, "rounds": 1}
    storage: Any = InterruptibleFive()
    flow = FlowExecutor(storage, call=call, errors=errors, budget=budget)
    calm = FlowExecutor(MemoryStorage(), call=lambda _, *asked: perform(*asked), errors=errors)
    assert outcome(end) == outcome(lambda: calm.run_sync(workflow, "x", input))
