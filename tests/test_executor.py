"""What an executor does with workflows, storages and hooks, on every kind of storage."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import pickle
import time
import weakref
from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Any

import pytest

from sequential import (
    Diverged,
    Event,
    Fenced,
    FlowExecutor,
    HookNotConfigured,
    IdInUse,
    InvalidId,
    InvalidYield,
    NotEncodable,
    NotSupported,
    Paused,
    SequentialError,
    StorageError,
    UnknownExecution,
    UnknownWorkflow,
    again,
    current,
    run_until,
    save,
    sleep,
    tool,
    version,
    wait,
)
from sequential.codec import JSONCodec
from sequential.context import ends_at
from sequential.setup import GRACE
from sequential.storage import Record, Result, journal_for, settle
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock
from sequential.testing.around import JournalAround
from tests.support import AsyncJournal, AsyncPlainStorage, PlainStorage, echo

Flow = Generator[Any, Any, Any]


def workflow(input: dict[str, Any]) -> Flow:
    user = yield tool("api", "user", {"id": input["user_id"]})
    yield save()
    posts = yield {"__tool": ["api", "posts", {"uid": user["id"]}]}
    return {"user": user, "posts": posts}


RETURNED = {"user": {"id": 123}, "posts": {"uid": 123}}


def run_to_end(flow: FlowExecutor, *arguments: Any) -> list[Any]:
    """Execute until it no longer pauses; a storage that waits gets an event loop."""
    outcomes: list[Any] = []
    with asyncio.Runner() as runner:
        while not outcomes or isinstance(outcomes[-1], Paused):
            outcomes.append(runner.run(flow.execute(*arguments)))
    return outcomes


@pytest.mark.parametrize("storage", [MemoryStorage, AsyncJournal, PlainStorage, AsyncPlainStorage])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_tool_call_per_invocation_on_every_kind_of_storage(storage: Callable[[], Any], asynchronous: bool) -> None:
    calls: list[tuple[str, str, Any]] = []
    rung: list[str] = []

    def call(category: str, name: str, input: Any) -> Any:
        calls.append((category, name, input))
        return input

    async def call_async(category: str, name: str, input: Any) -> Any:
        await asyncio.sleep(0)
        return call(category, name, input)

    async def resume_async(id: str) -> None:
        await asyncio.sleep(0)
        rung.append(id)

    hooks: dict[str, Any] = {"call": call, "resume": rung.append}
    if asynchronous:
        hooks = {"call": call_async, "resume": resume_async}
    flow = FlowExecutor(storage(), **hooks)
    outcomes = run_to_end(flow, workflow, "exec-1", {"user_id": 123})
    assert outcomes == [
        {"paused": "exec-1", "step": 0},
        {"paused": "exec-1", "step": 1},
        {"paused": "exec-1", "step": 2},
        RETURNED,
    ]
    assert [outcome.reason for outcome in outcomes[:-1]] == ["tool", "save", "tool"]
    assert calls == [("api", "user", {"id": 123}), ("api", "posts", {"uid": 123})]
    assert rung == ["exec-1"] * 3


def test_a_plain_storage_sees_raw_results_before_steps_and_nothing_else() -> None:
    storage = PlainStorage()
    run_to_end(FlowExecutor(storage, call=echo), workflow, "e", {"user_id": 123})
    assert storage.writes == [
        ("set_result", "e", 0, {"id": 123}),
        ("set", "e", {"step": 1}),
        ("set_result", "e", 1, None),
        ("set", "e", {"step": 2}),
        ("set_result", "e", 2, {"uid": 123}),
        ("set", "e", {"step": 3}),
        ("delete", "e"),
    ]
    assert storage.states == {}
    assert storage.results == {}


def test_a_workflow_may_take_no_argument_and_an_id_may_be_left_out() -> None:
    def no_argument() -> Flow:
        return (yield tool("api", "now"))

    flow = FlowExecutor(MemoryStorage(), call=lambda category, name, input: [category, name, input])
    first = flow.execute_sync(no_argument)
    assert isinstance(first, Paused)
    assert len(first["paused"]) == 21
    assert flow.execute_sync(no_argument, first["paused"]) == ["api", "now", {}]


def test_paused_is_a_dict_and_survives_pickling() -> None:
    paused = Paused("a", 3, "budget")
    again = pickle.loads(pickle.dumps(paused))
    assert (again, again.reason, type(again)) == ({"paused": "a", "step": 3}, "budget", Paused)


def test_a_budget_goes_on_while_time_is_left() -> None:
    clock = FakeClock()

    def slow(category: str, name: str, input: Any) -> Any:
        clock.advance(4.0)
        return input

    def five() -> Flow:
        for number in range(5):
            yield tool("slow", "call", {"number": number})
        return "done"

    flow = FlowExecutor(MemoryStorage(), call=slow, budget=10.0, clock=clock)
    first = flow.execute_sync(five, "b")
    assert isinstance(first, Paused)
    assert (first["step"], first.reason) == (2, "budget")
    assert flow.execute_sync(five, "b") == "done"


def test_without_end_of_budget_only_a_save_pauses() -> None:
    flow = FlowExecutor(MemoryStorage(), call=echo, budget=math.inf)
    assert flow.execute_sync(workflow, "i", {"user_id": 123}) == {"paused": "i", "step": 1}
    assert flow.execute_sync(workflow, "i") == RETURNED


def test_an_error_of_a_tool_is_a_value() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    errors = iter([ValueError("no such user"), KeyError(), Silent(), OSError("lone \ud800 surrogate")])

    def fails(category: str, name: str, input: Any) -> Any:
        raise next(errors)

    def four() -> Flow:
        first = yield tool("api", "flaky")
        second = yield tool("api", "flaky")
        third = yield tool("api", "flaky")
        return [first, second, third, (yield tool("api", "flaky"))]

    flow = FlowExecutor(MemoryStorage(), call=fails, budget=math.inf, retain=True)
    assert flow.execute_sync(four, "e") == [
        {"__error": "no such user"},
        {"__error": "KeyError"},
        {"__error": "Silent"},
        {"__error": "lone \\ud800 surrogate"},
    ]
    assert [step["error"] for step in flow.history_sync("e")] == ["ValueError", "KeyError", "Silent", "OSError"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, StopAsyncIteration, Fenced])
def test_what_is_no_result_is_not_recorded_and_gives_the_lease_back(error: type[BaseException]) -> None:
    raising = True

    def call(category: str, name: str, input: Any) -> Any:
        if raising:
            raise Fenced("another execution", 5) if error is Fenced else error
        return input

    storage, clock = MemoryStorage(), FakeClock()
    flow = FlowExecutor(storage, call=call, clock=clock)
    if issubclass(error, Exception) and not issubclass(error, SequentialError):
        flow.execute_sync(workflow, "k", {"user_id": 123})
        assert flow.history_sync("k")[0]["error"] == error.__name__
        return
    with pytest.raises(error):
        flow.execute_sync(workflow, "k", {"user_id": 123})
    status = flow.status_sync("k")
    assert status is not None
    assert (status.status, status.step, status.busy) == ("running", 0, False)
    assert flow.sweep_sync() == ["k"]
    raising = False
    assert flow.execute_sync(workflow, "k") == {"paused": "k", "step": 0}


def test_an_exception_of_the_workflow_parks_it_until_it_is_mended() -> None:
    broken = True

    def fragile(input: dict[str, int]) -> Flow:
        first = yield tool("api", "one", input)
        if broken:
            raise ValueError("not yet \ud800")
        return first

    clock, rung = FakeClock(), list[str]()
    flow = FlowExecutor(MemoryStorage(), call=echo, resume=rung.append, workflows=[fragile], clock=clock)
    flow.execute_sync(fragile, "f", {"n": 1})
    rung.clear()
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            flow.resume_sync("f")
        status = flow.status_sync("f")
        assert status is not None
        assert (status.status, status.step, status.due, status.error) == (
            "failed",
            1,
            None,
            "ValueError: not yet \\ud800",
        )
    clock.advance(1e6)
    assert flow.sweep_sync() == rung == []
    broken = False
    assert flow.resume_sync("f") == {"n": 1}


def test_an_exception_in_the_middle_of_a_replay_parks_it_too() -> None:
    broken = False

    def fragile() -> Flow:
        first = yield tool("api", "one", {"n": 1})
        if broken:
            raise ValueError("of a bad deployment")
        second = yield tool("api", "two", {"n": 2})
        return [first, second]

    flow = FlowExecutor(MemoryStorage(), call=echo)
    for _ in range(2):
        flow.execute_sync(fragile, "f")
    broken = True
    with pytest.raises(ValueError, match="bad deployment"):
        flow.execute_sync(fragile, "f")
    status = flow.status_sync("f")
    assert status is not None
    assert (status.status, status.step) == ("failed", 2)
    broken = False
    assert flow.execute_sync(fragile, "f") == [{"n": 1}, {"n": 2}]


def test_replay_of_another_tool_is_refused_and_loses_nothing() -> None:
    asked = "tool"
    calls: list[str] = []

    def changing() -> Flow:
        if asked == "return":
            return "early"
        first = yield (tool("api", "first") if asked == "tool" else save() if asked == "save" else tool("api", asked))
        second = yield tool("api", "second")
        return [first, second]

    def call(category: str, name: str, input: Any) -> str:
        calls.append(name)
        return name

    flow = FlowExecutor(MemoryStorage(), call=call, workflows=[changing])
    flow.execute_sync(changing, "d")
    for now, shown in (("other", "tool api.other"), ("save", "save"), ("return", "return")):
        asked = now
        with pytest.raises(Diverged) as caught:
            flow.resume_sync("d")
        assert (caught.value.id, caught.value.step, caught.value.recorded, caught.value.asked) == (
            "d",
            0,
            "tool api.first",
            shown,
        )
        status = flow.status_sync("d")
        assert status is not None
        assert (status.status, status.step, status.due) == ("diverged", 1, None)
    asked = "tool"
    flow.resume_sync("d")
    assert flow.resume_sync("d") == ["first", "second"]
    assert calls == ["first", "second"]


def test_a_plain_storage_cannot_tell_that_a_workflow_ends_too_early() -> None:
    long = True

    def shrinking() -> Flow:
        if long:
            yield tool("api", "first")
        return "end"

    flow = FlowExecutor(PlainStorage(), call=echo)
    flow.execute_sync(shrinking, "s")
    long = False
    assert flow.execute_sync(shrinking, "s") == "end"


def test_other_input_on_replay_is_told_to_whoever_observes() -> None:
    numbers = itertools.count()

    def unsteady() -> Flow:
        yield tool("api", "first", {"n": next(numbers)})
        yield tool("api", "second", {"b": 1, "a": 2})
        yield tool("api", "third", {1, 2})

    events: list[Event] = []
    flow = FlowExecutor(MemoryStorage(), call=lambda *_: None, observe=events.append)
    for _ in range(4):
        flow.execute_sync(unsteady, "u")
    changed = [event for event in events if event.kind == "input changed"]
    assert [(event.step, event.detail) for event in changed] == [(0, "tool api.first")] * 3


def test_the_version_is_that_of_the_beginning() -> None:
    def versioned() -> Flow:
        first = yield version()
        yield tool("api", "call")
        return [first, (yield version())]

    storage = MemoryStorage()
    FlowExecutor(storage, call=echo, version=3).execute_sync(versioned, "v")
    assert FlowExecutor(storage, call=echo, version=4).execute_sync(versioned, "v") == [3, 3]
    assert FlowExecutor(storage, call=echo, version=4, budget=1e9).execute_sync(versioned, "w") == [4, 4]


def test_current_tells_a_tool_its_idempotency_key() -> None:
    keys: list[str] = []

    def two() -> Flow:
        yield tool("api", "one")
        yield tool("api", "two")

    storage = MemoryStorage()
    flow = FlowExecutor(storage, call=lambda *_: keys.append(current().key))
    flow.execute_sync(two, "k")
    flow.execute_sync(two, "k")
    run = storage.read("k")
    assert run is not None
    assert keys == [f"k:{run.run}:0", f"k:{run.run}:1"]
    plain = FlowExecutor(PlainStorage(), call=lambda *_: keys.append(current().key))
    plain.execute_sync(two, "p")
    assert keys[2:] == ["p:0:0"]
    with pytest.raises(LookupError, match="while a call or resume hook runs"):
        current()


def test_current_tells_the_resume_hook_which_step_it_rings_for() -> None:
    rung: list[tuple[str, int]] = []

    def two() -> Flow:
        yield tool("api", "one")
        return again({}) if len(rung) < 3 else None

    def ring(id: str) -> None:
        rung.append((current().run, current().step))

    storage, clock = MemoryStorage(), FakeClock()
    flow = FlowExecutor(storage, call=echo, resume=ring, workflows=[two], clock=clock)
    flow.start_sync(two, id="k")
    first = storage.read("k")
    flow.resume_sync("k")
    flow.resume_sync("k")
    clock.advance(31)
    flow.sweep_sync()
    second = storage.read("k")
    assert first is not None
    assert second is not None
    assert first.run != second.run
    assert rung == [(first.run, 0), (first.run, 1), (second.run, 0), (second.run, 0)]
    with pytest.raises(LookupError):
        current()


def test_a_hook_that_returns_false_has_not_rung_and_that_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []

    def one() -> Flow:
        yield tool("api", "one")

    FlowExecutor(MemoryStorage(), call=echo, resume=lambda _: False, observe=told.append).execute_sync(one, "k")
    assert [event.kind for event in told][-1] == "not rung"
    FlowExecutor(MemoryStorage(), call=echo, resume=lambda _: False).execute_sync(one, "k")
    assert caplog.messages == []


def test_an_invocation_ends_a_margin_before_the_platform_does() -> None:
    clock = FakeClock()

    def five(input: Any) -> Flow:
        for number in range(5):
            yield tool("api", str(number))
        return "done"

    def call(category: str, name: str, input: Any) -> None:
        clock.advance(10)

    flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf, clock=clock)
    with run_until(clock() + 35, margin=5):
        assert flow.execute_sync(five, "inf") == {"paused": "inf", "step": 2}
        with run_until(clock() + 1e6):  # of two deadlines the earlier one counts
            assert flow.execute_sync(five, "inf") == {"paused": "inf", "step": 3}
    with run_until(clock() - 5):  # one that is over does a step all the same, or nothing would ever be done
        answer = flow.execute_sync(five, "inf")
    assert isinstance(answer, Paused)
    assert (answer["step"], answer.reason) == (4, "budget")
    assert flow.execute_sync(five, "inf") == "done"

    one_step = FlowExecutor(MemoryStorage(), call=call, clock=clock)
    with run_until(math.inf):
        assert one_step.execute_sync(five, "zero") == {"paused": "zero", "step": 0}
    short = FlowExecutor(MemoryStorage(), call=call, budget=15, clock=clock)
    with run_until(clock() + 1000):
        assert short.execute_sync(five, "short") == {"paused": "short", "step": 1}


@pytest.mark.parametrize("wrong", [("in a minute",), (1e9, "1"), (math.nan,)])
def test_a_deadline_that_is_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"a deadline is in seconds since the epoch, and margin= in seconds: got dead"):
        run_until(*wrong)


@pytest.mark.parametrize("wrong", ["5", None, math.nan])
def test_a_clock_that_cannot_be_advanced_so_stands_still(wrong: Any) -> None:
    clock = FakeClock(5)
    with pytest.raises(ValueError, match=f"time passes by a number of seconds, not {wrong!r}"):
        clock.advance(wrong)
    assert clock() == 5
    with pytest.raises(ValueError, match=f"time passes by a number of seconds, not {wrong!r}"):
        FakeClock(wrong)


@pytest.mark.parametrize(("left", "margin"), [(3.0, 1.0), (30.0, 6.0), (900.0, 10.0), (-1.0, 1.0)])
def test_the_margin_is_a_part_of_the_time_that_is_left(left: float, margin: float) -> None:
    deadline = time.time() + left
    with run_until(deadline):
        assert ends_at.get() == pytest.approx(deadline - margin, abs=0.2)
    assert ends_at.get() == math.inf


def test_a_retried_step_keeps_its_key_and_current_reaches_threads() -> None:
    keys: list[str] = []

    async def call(category: str, name: str, input: Any) -> Any:
        keys.append(await asyncio.to_thread(lambda: current().key))
        if len(keys) == 1:
            raise asyncio.CancelledError
        return None

    def one() -> Flow:
        yield tool("api", "one")

    flow = FlowExecutor(MemoryStorage(), call=call)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(flow.execute(one, "k"))
    asyncio.run(flow.execute(one, "k"))
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_a_workflow_sees_values_as_a_database_gives_them_back() -> None:
    seen: list[Any] = []

    def looks(input: Any) -> Flow:
        seen.append(input)
        seen.append((yield tool("api", "tuple")))

    flow = FlowExecutor(MemoryStorage(), call=lambda *_: ({1: (2,)},), budget=math.inf)
    flow.execute_sync(looks, "l", ((), {2: "x"}))
    assert seen == [[[], {"2": "x"}], [{"1": [2]}]]


@pytest.mark.parametrize("storage", [MemoryStorage, PlainStorage])
def test_a_result_that_cannot_be_stored_is_not_recorded(storage: Callable[[], Any]) -> None:
    results: list[Any] = [{"items": [1, {"when": {1, 2}}]}, {"user_id": 1}]

    def call(category: str, name: str, input: Any) -> Any:
        return results[0]

    def one() -> Flow:
        return (yield tool("api", "one"))

    flow = FlowExecutor(storage(), call=call)
    with pytest.raises(NotEncodable) as caught:
        flow.execute_sync(one, "n")
    assert str(caught.value) == (
        "the result of tool api.one (step 0 of execution 'n') cannot be stored: value['items'][1]['when'] is a set, "
        "and JSON has dict, list, str, int, float, bool and None only"
    )
    results.pop(0)
    assert flow.execute_sync(one, "n") == {"paused": "n", "step": 0}
    assert flow.execute_sync(one, "n") == {"user_id": 1}


def test_a_final_value_that_cannot_be_kept_parks_the_execution() -> None:
    value: Any = {1, 2}

    def ends() -> Flow:
        yield tool("api", "one")
        return value

    flow = FlowExecutor(MemoryStorage(), call=echo, retain=True, budget=math.inf)
    with pytest.raises(NotEncodable, match="the final value of execution 'n' cannot be stored: value is a set"):
        flow.execute_sync(ends, "n")
    status = flow.status_sync("n")
    assert status is not None
    assert (status.status, status.step) == ("failed", 1)
    value = (1, 2)
    assert flow.execute_sync(ends, "n") == [1, 2]
    assert flow.execute_sync(ends, "n") == [1, 2]


def test_a_finished_execution_is_deleted_or_kept_with_its_value() -> None:
    storage, clock, rung = MemoryStorage(), FakeClock(), list[str]()
    flow = FlowExecutor(storage, call=echo, budget=math.inf, workflows=[workflow], clock=clock)
    flow.execute_sync(workflow, "x", {"user_id": 123})
    assert flow.resume_sync("x") == RETURNED
    assert flow.status_sync("x") is None
    assert flow.resume_sync("x") is None
    with pytest.raises(UnknownExecution, match="there is no execution 'x' in the store"):
        flow.history_sync("x")

    flow = FlowExecutor(
        storage, call=echo, budget=math.inf, workflows=[workflow], retain=True, resume=rung.append, clock=clock
    )
    flow.execute_sync(workflow, "x", {"user_id": 123})
    assert flow.resume_sync("x") == RETURNED
    for outcome in (
        flow.resume_sync("x"),
        flow.execute_sync(workflow, "x"),
        flow.execute_sync(workflow, "x", {"user_id": 123}),
    ):
        assert outcome == RETURNED
    with pytest.raises(IdInUse):
        flow.execute_sync(workflow, "x", {"user_id": 124})
    status = flow.status_sync("x")
    assert status is not None
    assert (status.status, status.step, status.value, status.due) == ("finished", 3, RETURNED, None)
    rung.clear()
    assert flow.start_sync(workflow, {"user_id": 123}, "x") == "x"
    clock.advance(1e6)
    assert flow.sweep_sync() == rung == []
    flow.delete_sync("x")
    assert flow.status_sync("x") is None


def test_history_is_json_and_reads_pages() -> None:
    clock = FakeClock()

    def many() -> Flow:
        for number in range(1500):
            yield tool("api", "call", {"n": number})
        yield save()

    flow = FlowExecutor(MemoryStorage(), call=lambda c, n, input: [input["n"]], budget=math.inf, clock=clock)
    flow.execute_sync(many, "h")
    history = flow.history_sync("h")
    assert [step["step"] for step in history] == list(range(1501))
    assert [step["result"] for step in history] == [[n] for n in range(1500)] + [None]
    first, last = dict(history[0]), history[-1]
    assert isinstance(first.pop("fingerprint"), int)
    assert first == {
        "step": 0,
        "asked": "tool api.call",
        "started": clock.now,
        "ended": clock.now,
        "error": None,
        "result": [0],
    }
    assert (last["asked"], last["fingerprint"]) == ("save", None)


def test_start_records_and_rings_and_may_be_repeated() -> None:
    rung: list[str] = []
    storage, clock = MemoryStorage(), FakeClock()
    flow = FlowExecutor(storage, call=echo, resume=rung.append, workflows=[workflow], clock=clock)
    id = flow.start_sync(workflow, {"user_id": 123})
    assert rung == [id]
    assert flow.start_sync(workflow, {"user_id": 123}, id) == id
    assert flow.start_sync(workflow, id=id) == id
    assert rung == [id] * 3
    with pytest.raises(IdInUse):
        flow.start_sync(workflow, {"user_id": 5}, id)
    status = flow.status_sync(id)
    assert status is not None
    assert (status.step, status.busy, status.due) == (0, False, clock.now + GRACE)
    for _ in range(3):
        flow.resume_sync(id)
    assert flow.resume_sync(id) == RETURNED


def test_an_id_belongs_to_one_workflow_and_one_input() -> None:
    def other(input: Any) -> Flow:
        yield tool("api", "other")

    storage = MemoryStorage()
    flow = FlowExecutor(storage, call=echo)
    flow.execute_sync(workflow, "i", {"user_id": 1, "b": 2})
    before = storage.read("i")
    with pytest.raises(IdInUse) as caught:
        flow.execute_sync(other, "i")
    assert str(caught.value) == (
        "execution 'i' was started with workflow workflow, not other: use another id for another execution, "
        "leave the input out to go on with this one, or delete('i') to begin anew"
    )
    with pytest.raises(IdInUse, match=r"was started with input \{'user_id': 1, 'b': 2\}, not \{\}"):
        flow.execute_sync(workflow, "i", {})
    after = storage.read("i")
    assert before is not None
    assert after is not None
    assert after._replace(token=before.token) == before
    assert flow.execute_sync(workflow, "i", {"b": 2, "user_id": 1}) == {"paused": "i", "step": 1}


def test_a_held_execution_is_busy_and_nothing_runs() -> None:
    outcomes: list[Any] = []

    def call(category: str, name: str, input: Any) -> Any:
        outcomes.append(flow.execute_sync(workflow, "b"))
        outcomes.append(flow.resume_sync("b"))
        outcomes.append(flow.status_sync("b"))
        return {"id": 1}

    flow = FlowExecutor(MemoryStorage(), call=call, workflows=[workflow])
    flow.execute_sync(workflow, "b", {"user_id": 1})
    assert outcomes[:2] == [{"paused": "b", "step": -1}] * 2
    assert outcomes[0].reason == outcomes[1].reason == "busy"
    assert outcomes[2].busy
    status = flow.status_sync("b")
    assert status is not None
    assert not status.busy


def test_who_lost_the_lease_writes_nothing_and_rings_nobody() -> None:
    clock, rung = FakeClock(), list[str]()
    events: list[Event] = []
    storage = MemoryStorage()

    def call(category: str, name: str, input: Any) -> Any:
        if clock.now < 1_700_000_100:
            clock.advance(121.0)
            assert other.execute_sync(workflow, "l") == {"paused": "l", "step": 0}
        return {"id": 123}

    other = FlowExecutor(storage, call=call, clock=clock)
    flow = FlowExecutor(storage, call=call, resume=rung.append, clock=clock, observe=events.append)
    with pytest.raises(Fenced) as caught:
        flow.execute_sync(workflow, "l", {"user_id": 123})
    assert (caught.value.id, caught.value.token) == ("l", 1)
    assert rung == []
    assert [event.kind for event in events] == ["claimed", "replayed", "called", "fenced"]
    status = other.status_sync("l")
    assert status is not None
    assert (status.step, status.busy) == (1, False)


@pytest.mark.parametrize("retain", [False, True])
def test_an_execution_deleted_meanwhile_stays_deleted(retain: bool) -> None:
    def call(category: str, name: str, input: Any) -> Any:
        flow.delete_sync("g")
        return {"id": 1}

    flow = FlowExecutor(MemoryStorage(), call=call, retain=retain)
    with pytest.raises(Fenced):
        flow.execute_sync(workflow, "g", {"user_id": 1})
    assert flow.status_sync("g") is None


def test_the_sweep_rings_what_is_late_with_backoff_and_parks_what_is_stuck() -> None:
    clock, rung, events = FakeClock(), list[str](), list[Event]()
    flow = FlowExecutor(
        MemoryStorage(), call=echo, resume=rung.append, clock=clock, workflows=[workflow], observe=events.append
    )
    flow.execute_sync(workflow, "s", {"user_id": 123})
    rung.clear()
    assert flow.sweep_sync() == []
    waits: list[float] = []
    began = clock.now
    while not any(event.kind == "stuck" for event in events):
        status = flow.status_sync("s")
        assert status is not None
        assert status.due is not None
        waits.append(status.due - clock.now)
        clock.now = status.due
        flow.sweep_sync()
    assert rung == ["s"] * 10
    assert waits[0] == GRACE
    for attempt, waited in enumerate(waits[1:]):
        usual = min(GRACE * 2**attempt, 3600.0)
        assert 0.75 * usual <= waited <= 1.25 * usual
    assert 3 * 3600 < clock.now - began < 5 * 3600
    status = flow.status_sync("s")
    assert status is not None
    assert (status.status, status.due, status.error) == (
        "stuck",
        None,
        "no progress in 10 attempts of the sweep: mend what is wrong, then resume it",
    )
    clock.advance(1e9)
    assert flow.sweep_sync() == []
    flow.resume_sync("s")
    status = flow.status_sync("s")
    assert status is not None
    assert (status.status, status.attempts, status.step) == ("running", 0, 2)


def test_the_sweep_takes_over_from_the_dead_and_two_sweeps_ring_once() -> None:
    storage, clock, rung = MemoryStorage(), FakeClock(), list[str]()
    flow = FlowExecutor(storage, call=echo, resume=rung.append, clock=clock, workflows=[workflow])
    stored, _ = storage.claim(
        Record("z", "r", "workflow", b'{"user_id":123}', 0, token=1, due=clock.now, lease=clock.now + 120),
        clock.now,
        True,
    )
    assert stored is not None
    clock.advance(119.0)
    assert flow.sweep_sync() == []
    clock.advance(1.0)

    class Twice(AsyncJournal):
        async def due(self, now: float, limit: int) -> list[Record]:
            found = self.inner.due(now, limit)
            assert not isinstance(found, Generator)
            return [*found, *found]  # type: ignore[misc]

    twice = FlowExecutor(Twice(storage), resume=rung.append, clock=clock)
    assert asyncio.run(twice.sweep()) == ["z"]
    assert rung == ["z"]
    assert flow.resume_sync("z") == {"paused": "z", "step": 0}


def test_a_record_that_cannot_be_written_does_not_keep_the_sweep_from_others() -> None:
    class Full(JournalAround):
        async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
            if what.startswith("commit") and values[0].id in full:
                raise StorageError(f"{values[0].id} is full")
            return await settle(method(*values, **options))

    events, full = list[Event](), set[str]()
    clock = FakeClock()
    flow = FlowExecutor(Full(MemoryStorage()), call=echo, clock=clock, workflows=[workflow], observe=events.append)
    for id in ("a", "b", "c"):
        flow.execute_sync(workflow, id, {"user_id": 1})
    full |= {"a", "c"}
    clock.advance(60.0)
    events.clear()
    assert flow.sweep_sync() == ["b"]
    assert [(event.kind, event.id, str(event.error)) for event in events if event.kind == "ring failed"] == [
        ("ring failed", "a", "a is full"),
        ("ring failed", "c", "c is full"),
    ]
    full.add("b")
    clock.advance(600.0)
    with pytest.raises(StorageError, match="a is full"):
        flow.sweep_sync()


def test_a_record_that_cannot_be_written_again_when_nobody_could_be_rung_keeps_no_other_from_it() -> None:
    class Filling(JournalAround):
        async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
            if "a" in unreached and what.startswith("commit") and values[0].id == "a":
                raise StorageError("a is full")
            return await settle(method(*values, **options))

    def resume(id: str) -> None:
        unreached.append(id)
        raise OSError("nobody is there")

    clock, unreached = FakeClock(), list[str]()
    flow = FlowExecutor(Filling(MemoryStorage()), call=echo, clock=clock, workflows=[workflow], resume=resume)
    for id in ("a", "b"):
        flow.execute_sync(workflow, id, {"user_id": 1})
    clock.advance(60.0)
    unreached.clear()
    assert flow.sweep_sync() == []
    assert unreached == ["a", "b"]


def test_a_sweep_rings_no_more_than_it_was_told_to() -> None:
    clock = FakeClock()
    flow = FlowExecutor(MemoryStorage(), call=echo, clock=clock)
    for number in range(5):
        flow.execute_sync(workflow, f"m{number}", {"user_id": number})
    clock.advance(GRACE)
    assert len(flow.sweep_sync(limit=2)) == 2
    assert len(flow.sweep_sync()) == 3


def test_a_failing_resume_hook_fails_nothing_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def ring(id: str) -> None:
        raise ConnectionError("nobody there")

    events: list[Event] = []
    flow = FlowExecutor(MemoryStorage(), call=echo, resume=ring, observe=events.append)
    assert flow.execute_sync(workflow, "r", {"user_id": 1}) == {"paused": "r", "step": 0}
    assert [(event.kind, str(event.error)) for event in events if "ring" in event.kind] == [
        ("ring failed", "nobody there")
    ]
    assert caplog.records == []
    FlowExecutor(MemoryStorage(), call=echo, resume=ring).execute_sync(workflow, "r", {"user_id": 1})
    (record,) = caplog.records
    assert record.name == "sequential"
    assert record.getMessage() == "ring failed: execution 'r', step 1: the sweep will ring again"


def test_everything_that_happens_is_told_in_order() -> None:
    events: list[Event] = []
    flow = FlowExecutor(MemoryStorage(), call=echo, resume=lambda id: None, observe=events.append, workflows=[workflow])
    for _ in range(2):
        flow.execute_sync(workflow, "o", {"user_id": 1})
    assert [(event.kind, event.step, event.detail) for event in events] == [
        ("claimed", 0, ""),
        ("replayed", 0, "0 steps"),
        ("called", 0, "tool api.user"),
        ("committed", 1, "tool api.user"),
        ("paused", 1, "tool"),
        ("rang", 1, ""),
        ("claimed", 1, ""),
        ("replayed", 1, "1 steps"),
        ("committed", 2, "save"),
        ("paused", 2, "save"),
        ("rang", 2, ""),
    ]
    events.clear()
    flow.resume_sync("o")
    flow.resume_sync("o")
    assert [event.kind for event in events[-3:]] == ["claimed", "replayed", "finished"]
    assert all(event.id == "o" for event in events)


def test_an_observer_that_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def observe(event: Event) -> None:
        raise RuntimeError(event.kind)

    flow = FlowExecutor(MemoryStorage(), call=echo, observe=observe)
    assert flow.execute_sync(workflow, "o", {"user_id": 1}) == {"paused": "o", "step": 0}
    assert (
        caplog.records[0].getMessage()
        == "the observer raised at 'claimed': execution 'o', step 0: RuntimeError('claimed')"
    )


def test_finally_runs_at_every_pause() -> None:
    """The trap that generators have, as the README tells it."""
    ran: list[str] = []

    def trapped() -> Flow:
        try:
            yield tool("api", "one")
            yield tool("api", "two")
        finally:
            ran.append("cleanup")

    flow = FlowExecutor(MemoryStorage(), call=echo)
    for _ in range(3):
        flow.execute_sync(trapped, "t")
    assert ran == ["cleanup"] * 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_yield_in_finally_is_an_error_that_loses_nothing() -> None:
    def trapped() -> Flow:
        try:
            got = yield tool("api", "one", {"n": 1})
        finally:
            yield tool("api", "cleanup")
        return got

    storage = MemoryStorage()
    flow = FlowExecutor(storage, call=echo)
    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit") as caught:
        flow.execute_sync(trapped, "t")
    assert "must neither yield nor fail" in caught.value.__notes__[0]
    status = flow.status_sync("t")
    assert status is not None
    assert (status.status, status.step) == ("failed", 1)
    assert [step["result"] for step in flow.history_sync("t")] == [{"n": 1}]


def test_what_finally_raises_is_the_workflow_s_own_exception() -> None:
    def trapped() -> Flow:
        try:
            yield tool("api", "one")
        finally:
            raise ConnectionError("while cleaning up")

    events: list[Event] = []
    flow = FlowExecutor(MemoryStorage(), call=echo, observe=events.append)
    with pytest.raises(ConnectionError, match="while cleaning up"):
        flow.execute_sync(trapped, "t")
    assert [event.kind for event in events][-2:] == ["committed", "failed"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SequentialError])
def test_an_interruption_in_the_workflow_itself_gives_the_lease_back(interruption: type[BaseException]) -> None:
    def interrupted() -> Flow:
        raise interruption("now")
        yield

    flow = FlowExecutor(MemoryStorage())
    with pytest.raises(interruption):
        flow.execute_sync(interrupted, "i")
    status = flow.status_sync("i")
    assert status is not None
    assert (status.busy, status.status) == (False, "failed" if interruption is SequentialError else "running")


def test_cancelling_a_task_gives_the_lease_back() -> None:
    async def main() -> Any:
        called = asyncio.Event()

        async def call(category: str, name: str, input: Any) -> Any:
            called.set()
            await asyncio.Event().wait()

        flow = FlowExecutor(AsyncJournal(), call=call)
        task = asyncio.create_task(flow.execute(workflow, "c", {"user_id": 1}))
        await called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await flow.status("c")

    status = asyncio.run(main())
    assert (status.status, status.step, status.busy) == ("running", 0, False)


def test_a_coroutine_that_is_thrown_away_awaits_nothing_more() -> None:
    storage = MemoryStorage()

    async def call(category: str, name: str, input: Any) -> Any:
        await _Suspend()

    coroutine = FlowExecutor(AsyncJournal(storage), call=call, clock=FakeClock()).execute(workflow, "g", {"user_id": 1})
    while not isinstance(coroutine.send(None), str):
        pass
    coroutine.close()
    record = storage.read("g")
    assert record is not None
    assert record.lease > 0


class _Suspend:
    def __await__(self) -> Generator[Any, Any, None]:
        yield "suspended"


def test_resume_finds_the_workflow_by_name() -> None:
    flow = FlowExecutor(MemoryStorage(), call=echo)
    flow.execute_sync(workflow, "r", {"user_id": 1})
    with pytest.raises(UnknownWorkflow) as caught:
        flow.resume_sync("r")
    assert str(caught.value) == (
        "execution 'r' runs workflow 'workflow', which is not among FlowExecutor(..., workflows=[]): add it there"
    )
    status = flow.status_sync("r")
    assert status is not None
    assert not status.busy


def test_five_methods_make_no_more_of_a_journal_than_they_can() -> None:
    journal, record = journal_for(PlainStorage()), Record("x", "0")
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("again()", lambda: journal.restart(record, record)),
        ("wait()", lambda: journal.received(record, "x")),
    ]
    for what, call in refused:
        with pytest.raises(NotSupported) as caught:
            call()
        assert caught.value.what == what


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (lambda flow: flow.resume("p"), "resume by id alone"),
        (lambda flow: flow.start(workflow, {"user_id": 1}), "start"),
        (lambda flow: flow.sweep(), "sweep"),
        (lambda flow: FlowExecutor(PlainStorage(), retain=True), "retain=True"),
    ],
)
def test_a_plain_storage_refuses_what_it_cannot_promise(method: Callable[[FlowExecutor], Any], what: str) -> None:
    storage = PlainStorage()
    with pytest.raises(NotSupported) as caught:
        asyncio.run(method(FlowExecutor(storage, call=echo)))
    assert str(caught.value).startswith(f"{what} needs more than the five storage methods of PlainStorage can promise")
    assert "SQLiteStorage" in str(caught.value)
    assert storage.writes == []


def test_a_plain_storage_knows_no_version_but_status_history_and_delete() -> None:
    def versioned() -> Flow:
        yield version()

    flow = FlowExecutor(PlainStorage(), call=echo)
    with pytest.raises(NotSupported, match=r"version\(\) needs more"):
        flow.execute_sync(versioned, "v")
    flow.execute_sync(workflow, "p", {"user_id": 1})
    status = flow.status_sync("p")
    assert status is not None
    assert (status.step, status.status, status.busy, status.due) == (1, "running", False, None)
    assert [step["result"] for step in flow.history_sync("p")] == [{"id": 1}]
    flow.delete_sync("p")
    assert flow.status_sync("p") is None


def test_a_plain_storage_that_answers_nonsense_is_named() -> None:
    class Nonsense(PlainStorage):
        answer: Any = 5

        def get(self, id: str) -> Any:
            return self.answer

        def get_result(self, id: str, step: int) -> Any:
            return {1, 2}

    flow = FlowExecutor(Nonsense(), call=echo)
    with pytest.raises(TypeError, match=r"Nonsense.get\('n'\) returned 5, not \{'step': int\} or None"):
        flow.execute_sync(workflow, "n", {"user_id": 1})
    Nonsense.answer = {"step": 1}
    with pytest.raises(
        NotEncodable, match=r"what Nonsense.get_result\('n', 0\) returned cannot be stored: value is a set"
    ):
        flow.execute_sync(workflow, "n", {"user_id": 1})


def test_sub_workflows_compose_with_yield_from() -> None:
    def sub(number: int) -> Flow:
        return (yield tool("api", "sub", {"n": number}))

    def whole() -> Flow:
        one = yield from sub(1)
        two = yield from sub(2)
        return [one, two]

    flow = FlowExecutor(MemoryStorage(), call=echo)
    assert run_to_end(flow, whole, "w")[-1] == [{"n": 1}, {"n": 2}]


def test_a_wrong_yield_is_told_with_its_place() -> None:
    def sub() -> Flow:
        yield {"__tool": ["api", "user"]}

    def wrong() -> Flow:
        yield from sub()

    flow = FlowExecutor(MemoryStorage(), call=echo)
    with pytest.raises(InvalidYield) as caught:
        flow.execute_sync(wrong, "y")
    line = sub.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"test_a_wrong_yield_is_told_with_its_place.<locals>.sub yielded {{'__tool': ['api', 'user']}} "
        f"({__file__}:{line}), which is not a request: yield tool(category, name, input) with texts for category and name"
    )
    status = flow.status_sync("y")
    assert status is not None
    assert status.status == "failed"


@pytest.mark.parametrize(
    "wrong",
    [
        None, 5, "tool", {}, {"__save": 1}, {"__save": False}, {"__version": None}, {"__tool": "abc"}, {"__tool": ["a", 1, {}]},
        {"__tool": [1, "a", {}]}, {"__tool": ["a", "b", {}], "extra": 1}, {"__tool": ["a", "b", {}, 1]}, {"__call": []},
        iter([]), {"__tool": {"a", "b", "c"}}, tool("a\ud800", "b"),
    ],
)  # fmt: skip
def test_what_is_not_a_request_is_refused(wrong: Any) -> None:
    def yields() -> Flow:
        yield wrong

    with pytest.raises(InvalidYield, match=r"which is not a request: yield [a-z]"):
        FlowExecutor(MemoryStorage(), call=echo).execute_sync(yields)


def test_frequent_mistakes_are_told_with_their_remedy() -> None:
    def sub() -> Flow:
        yield tool("a", "b")

    def without_from() -> Flow:
        yield sub()

    def too_much_from() -> Flow:
        yield from tool("a", "b")

    def yields_again() -> Flow:
        yield {"__again": {}}

    def yields_an_odd_sleep() -> Flow:
        yield {"__sleep": "5"}

    def yields_a_number() -> Flow:
        yield 5

    def yields_a_generator_of_calls() -> Flow:
        yield (tool("a", "b") for _ in range(2))

    for workflow, remedy in [
        (yields_a_generator_of_calls, "yield a list: write [...] instead of (...)"),
        (without_from, "write `yield from` before sub(...), which is a generator"),
        (too_much_from, "write `yield` instead of `yield from` before a request"),
        (yields_again, "write `return again(input)`"),
        (yields_an_odd_sleep, "yield sleep(seconds) with a number of at most 1e12"),
        (
            yields_a_number,
            (
                "yield tool(category, name, input) with texts for category and name; or save(); or sleep(seconds) with "
                "a number of at most 1e12; or wait(name, timeout) with a name of letters, digits and _ . : @ ~ -, and "
                "a number of seconds or None; or version(); or a list of nothing but tool(...)"
            ),
        ),
    ]:
        with pytest.raises(InvalidYield) as caught:
            FlowExecutor(MemoryStorage(), call=echo).execute_sync(workflow)
        assert str(caught.value).endswith(f"which is not a request: {remedy}")


@pytest.mark.parametrize("several", [list, tuple])
def test_the_calls_of_a_list_one_by_one_are_told_with_the_remedy(several: Any) -> None:
    def one_by_one() -> Flow:
        yield from several([tool("a", "b"), tool("a", "c")])

    with pytest.raises(AttributeError, match="has no attribute 'send'") as caught:
        FlowExecutor(MemoryStorage(), call=echo, budget=math.inf).execute_sync(one_by_one)
    assert caught.value.__notes__ == [
        "a list of calls is yielded as it is: write `yield [...]`, not `yield from [...]`"
    ]


@pytest.mark.parametrize("request_", [tool("a", "b"), save(), sleep(5), wait("go"), version()])
def test_a_request_that_is_returned_is_a_mistake(request_: Any) -> None:
    def forgets(input: Any) -> Flow:
        yield tool("a", "first")
        if input["mended"]:
            return "mended"
        return request_

    flow = FlowExecutor(MemoryStorage(), call=echo, budget=math.inf)
    message = (
        r"forgets returned .*test_executor.py\), a request that nobody has performed: write `return \(yield ...\)`$"
    )
    with pytest.raises(InvalidYield, match=message):
        flow.execute_sync(forgets, "f", {"mended": False})
    status = flow.status_sync("f")
    assert status is not None
    assert (status.status, status.step) == ("failed", 1)


def test_what_a_tool_raises_is_told(caplog: pytest.LogCaptureFixture) -> None:
    failure = KeyError("id")

    def fail(category: str, name: str, input: Any) -> Any:
        raise failure

    async def fail_later(category: str, name: str, input: Any) -> Any:
        raise failure

    caplog.set_level("INFO", "sequential")
    for call in (fail, fail_later):
        events: list[Event] = []
        flow = FlowExecutor(MemoryStorage(), call=call, observe=events.append)
        asyncio.run(flow.execute(workflow, "t", {"user_id": 1}))
        assert [(event.detail, event.error) for event in events if event.kind == "called"] == [
            ("tool api.user", failure)
        ]
        assert caplog.records == []
        asyncio.run(FlowExecutor(MemoryStorage(), call=call).execute(workflow, "t", {"user_id": 1}))
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == (
            "INFO",
            "a tool raised: execution 't', step 0: tool api.user",
        )
        assert record.exc_info is not None
        assert record.exc_info[1] is failure
        caplog.clear()


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


def test_an_error_that_is_not_recorded_shows_in_the_status() -> None:
    events: list[Event] = []
    clock, storage = FakeClock(), MemoryStorage()
    flow = FlowExecutor(storage, workflows=[workflow], observe=events.append, clock=clock)
    with pytest.raises(HookNotConfigured):
        flow.execute_sync(workflow, "e", {"user_id": 1})
    status = flow.status_sync("e")
    assert status is not None
    assert status.status == "running"
    assert status.error is not None
    assert status.error.startswith("HookNotConfigured: tool api.user cannot be performed")
    assert (events[-1].kind, type(events[-1].error)) == ("released", HookNotConfigured)
    with pytest.raises(IdInUse):
        flow.execute_sync(workflow, "e", {"user_id": 2})
    for _ in range(11):
        clock.advance(5000)
        flow.sweep_sync()
    status = flow.status_sync("e")
    assert status is not None
    assert status.error is not None
    assert status.error.startswith("no progress in 10 attempts of the sweep, the last error being HookNotConfigured: ")
    working = FlowExecutor(storage, call=echo, workflows=[workflow], clock=clock)
    assert working.resume_sync("e") == {"paused": "e", "step": 0}
    status = flow.status_sync("e")
    assert status is not None
    assert status.error is None


@pytest.mark.parametrize("id", ["", "a b", "é", "a/b", ".", "..", "x" * 201, 5, b"a", "a\n", "a%20"])
def test_an_id_that_no_store_could_carry_is_refused(id: Any) -> None:
    storage = MemoryStorage()
    flow = FlowExecutor(storage, call=echo, workflows=[workflow])
    calls: list[Callable[[], Any]] = [
        lambda: flow.execute_sync(workflow, id),
        lambda: flow.start_sync(workflow, None, id),
        lambda: flow.resume_sync(id),
        lambda: flow.status_sync(id),
        lambda: flow.history_sync(id),
        lambda: flow.delete_sync(id),
    ]
    for call in calls:
        with pytest.raises(InvalidId, match="cannot be an execution id: use 1 to 200 characters of A-Z a-z 0-9"):
            call()
    assert storage.due(math.inf, 10) == []
    with pytest.raises(InvalidId, match="an input is no id, and has a place of its own"):
        flow.execute_sync(workflow, {"user_id": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("id", ["x" * 200, "a.b:c@d~e-f_G9", "...", "-", "0"])
def test_an_id_that_every_store_can_carry_is_taken(id: str) -> None:
    assert FlowExecutor(MemoryStorage(), call=echo).execute_sync(workflow, id, {"user_id": 1}) == {
        "paused": id,
        "step": 0,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"lease": 0},
        {"lease": -1.0},
        {"lease": "120"},
        {"budget": -1},
        {"budget": math.nan},
        {"lease": math.nan},
        {"budget": None},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lease= is a number of seconds above 0, and budget= one not below 0"):
        FlowExecutor(MemoryStorage(), **options)


def test_an_input_that_cannot_be_stored_writes_nothing() -> None:
    storage = MemoryStorage()
    with pytest.raises(NotEncodable, match=r"the input of execution 'n' cannot be stored: value\['x'\] is nan"):
        FlowExecutor(storage).execute_sync(workflow, "n", {"x": math.nan})
    assert storage.read("n") is None


def test_a_commit_that_the_store_refuses_is_not_taken_for_done() -> None:
    class Full(MemoryStorage):
        full = True

        def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
            if self.full:
                raise OSError("disk full")
            super().commit(record, token, result, **signal)

    storage, clock = Full(), FakeClock()
    flow = FlowExecutor(storage, call=echo, clock=clock)
    with pytest.raises(OSError, match="disk full"):
        flow.execute_sync(workflow, "d", {"user_id": 123})
    assert flow.execute_sync(workflow, "d") == {"paused": "d", "step": -1}
    storage.full = False
    clock.advance(120.0)
    assert run_to_end(flow, workflow, "d")[-1] == RETURNED


def test_a_tool_may_change_its_input_and_the_workflow_keeps_its_own() -> None:
    def sorting() -> Flow:
        rows = yield tool("db", "rows")
        best = yield tool("calc", "max", {"rows": rows})
        yield tool("api", "log", best)
        return [rows, best]

    def call(category: str, name: str, input: Any) -> Any:
        if name == "max":
            input["rows"].sort()
            return input.pop("rows")[-1]
        return [3, 1, 2]

    for budget in (0.0, 1e9):
        flow = FlowExecutor(MemoryStorage(), call=call, budget=budget)
        assert run_to_end(flow, sorting, "s")[-1] == [[3, 1, 2], 3]


def test_a_lease_nearly_used_up_by_replay_is_renewed_before_the_call() -> None:
    clock, leases = FakeClock(), list[float]()
    storage = MemoryStorage()

    def thinks() -> Flow:
        clock.advance(100.0)
        yield tool("api", "one")
        clock.advance(130.0)
        yield tool("api", "two")

    def call(category: str, name: str, input: Any) -> None:
        record = storage.read("t")
        assert record is not None
        leases.append(record.lease - clock.now)

    flow = FlowExecutor(storage, call=call, clock=clock, budget=1e9)
    flow.execute_sync(thinks, "t")
    assert leases == [120.0, 120.0]


def test_what_a_finally_raises_at_a_pause_does_not_cost_the_step() -> None:
    calls: list[str] = []

    def exits() -> Flow:
        try:
            yield tool("api", "one")
            yield tool("api", "two")
        finally:
            raise SystemExit

    flow = FlowExecutor(MemoryStorage(), call=lambda category, name, input: calls.append(name))
    for _ in range(2):
        with pytest.raises(SystemExit):
            flow.execute_sync(exits, "x")
    assert calls == ["one", "two"]
    status = flow.status_sync("x")
    assert status is not None
    assert (status.step, status.status, status.busy) == (2, "running", False)


def test_a_nested_flow_that_was_fenced_does_not_fence_the_outer() -> None:
    events: list[Event] = []

    def call(category: str, name: str, input: Any) -> None:
        raise Fenced("inner", 1)

    flow = FlowExecutor(MemoryStorage(), call=call, observe=events.append)
    with pytest.raises(Fenced):
        flow.execute_sync(workflow, "outer", {"user_id": 1})
    assert "fenced" not in [event.kind for event in events]


def test_tools_whose_names_differ_only_in_a_dot_are_told_apart() -> None:
    names = iter([("a.b", "c"), ("a", "b.c")])

    def dotted() -> Flow:
        yield tool(*next(names))
        yield save()

    flow = FlowExecutor(MemoryStorage(), call=echo)
    flow.execute_sync(dotted, "d")
    with pytest.raises(
        Diverged, match=r"recorded \"tool 'a.b'.c\" at step 0, but its workflow now asks for 'tool a.b.c'"
    ):
        flow.execute_sync(dotted, "d")


@pytest.mark.parametrize("version", ["1", 2**70, None])
def test_a_version_that_no_store_could_keep_is_refused(version: Any) -> None:
    with pytest.raises(ValueError, match="version must be an int of at most 64 bits"):
        FlowExecutor(MemoryStorage(), version=version)


def test_a_tool_may_have_a_name_in_any_script() -> None:
    def named() -> Flow:
        return (yield tool("größe", "名前", {"n": 1}))

    flow = FlowExecutor(MemoryStorage(), call=echo, budget=1e9)
    assert flow.execute_sync(named, "n") == {"n": 1}


def test_an_endless_lease_is_no_trouble() -> None:
    flow = FlowExecutor(MemoryStorage(), call=echo, lease=math.inf)
    assert flow.execute_sync(workflow, "l", {"user_id": 1}) == {"paused": "l", "step": 0}


@pytest.mark.parametrize("options", [{"call": 3}, {"resume": "http://x"}, {"observe": 3}, {"clock": 3}])
def test_a_hook_that_cannot_be_called_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(options))}= must be a function, got"):
        FlowExecutor(MemoryStorage(), **options)


def test_a_codec_that_returns_no_bytes() -> None:
    class Text(JSONCodec):
        def dumps(self, value: Any) -> Any:
            return json.dumps(value)

    storage = MemoryStorage(codec=Text())
    with pytest.raises(
        NotEncodable, match=r"the input of execution 'x' cannot be stored: Text.dumps\(\) returned a str"
    ):
        FlowExecutor(storage, call=echo).execute_sync(one_tool, "x")
    with pytest.raises(TypeError, match="returned a str, not bytes"):
        storage.set_result("x", 0, {})
    assert storage.read("x") is None


def one_tool() -> Generator[Any, Any, Any]:
    return (yield tool("a", "b"))


class Odd(float):
    """Such as numpy's numbers are, whose repr() is no number."""

    def __add__(self, other: float) -> Odd:
        return Odd(float(self) + other)

    __radd__ = __add__

    def __repr__(self) -> str:
        return f"Odd({float(self)})"


class Release(IntEnum):
    SECOND = 2


class PlainOnly(JournalAround):
    """Refuses numbers that a store might write in a way that nobody can read."""

    async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
        for value in values:
            for part in value if isinstance(value, tuple) else [value]:
                assert type(part) in {int, float, str, bytes, bool, type(None)}, (what, part)
        return await settle(method(*values, **options))


def test_a_store_gets_plain_numbers_whatever_was_given() -> None:
    def workflow() -> Generator[Any, Any, Any]:
        yield sleep(Odd(5.0))
        yield wait("go", Odd(7.0))
        return (yield version())

    clock, rounds = FakeClock(), itertools.count()
    flow = FlowExecutor(
        PlainOnly(MemoryStorage()), call=echo, lease=Odd(60), budget=Odd(0), version=Release.SECOND,
        clock=lambda: Odd(clock()), workflows=[workflow], retain=True,
    )  # fmt: skip
    outcome: Any = flow.execute_sync(workflow, "odd")
    while isinstance(outcome, Paused):
        clock.advance(3.0)
        outcome = flow.resume_sync("odd")
        assert next(rounds) < 9
    assert outcome == 2
    assert flow.sweep_sync() == []
    assert flow.purge_sync(Odd(0.0)) == ["odd"]
