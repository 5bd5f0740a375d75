"""What an executor does with workflows, storages and hooks, on every kind of storage."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from sequential import (
    Diverged,
    FlowExecutor,
    NotEncodable,
    NotSupported,
    Paused,
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
from sequential.blocking import settle
from sequential.context import ends_at
from sequential.five import journal_for
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, JournalAround
from tests.lab import Lab
from tests.support import AsyncJournal, PlainStorage, echo

Flow = Generator[Any, Any, Any]


def workflow(input: dict[str, Any]) -> Flow:
    user = yield tool("api", "user", {"id": input["user_id"]})
    yield save()
    posts = yield {"__tool": ["api", "posts", {"uid": user["id"]}]}
    return {"user": user, "posts": posts}


def one(input: Any) -> Flow:
    return (yield tool("api", "one", input))


INPUT = {"user_id": 123}
RETURNED = {"user": {"id": 123}, "posts": {"uid": 123}}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_tool_call_per_invocation_on_every_kind_of_storage(any_lab: Lab, asynchronous: bool) -> None:
    calls: list[tuple[str, str, Any]] = []

    def call(category: str, name: str, input: Any) -> Any:
        calls.append((category, name, input))
        return input

    async def call_async(category: str, name: str, input: Any) -> Any:
        await asyncio.sleep(0)
        return call(category, name, input)

    async def resume_async(id: str) -> None:
        await asyncio.sleep(0)
        any_lab.rung.append(id)

    flow = any_lab.flow(call=call)
    if asynchronous:
        flow = any_lab.flow(call=call_async, resume=resume_async)
    outcomes = flow.to_end(workflow, "exec-1", INPUT)
    assert outcomes == [*({"paused": "exec-1", "step": step} for step in range(3)), RETURNED]
    assert [outcome.reason for outcome in outcomes[:-1]] == ["tool", "save", "tool"]
    assert calls == [("api", "user", {"id": 123}), ("api", "posts", {"uid": 123})]
    assert any_lab.rung == ["exec-1"] * 3
    assert flow.status("exec-1") is None


def test_a_plain_storage_sees_raw_results_before_steps_and_nothing_else() -> None:
    storage = PlainStorage()
    flow = FlowExecutor(storage, call=echo)
    while isinstance(flow.execute_sync(workflow, "e", INPUT), Paused):
        pass
    assert storage.writes == [
        ("set_result", "e", 0, {"id": 123}),
        ("set", "e", {"step": 1}),
        ("set_result", "e", 1, None),
        ("set", "e", {"step": 2}),
        ("set_result", "e", 2, {"uid": 123}),
        ("set", "e", {"step": 3}),
        ("delete", "e"),
    ]
    assert not storage.states
    assert not storage.results


def test_a_journal_is_a_storage_of_five_methods_too(lab: Lab) -> None:
    flow, storage = lab.flow(call=echo), lab.plain
    flow.execute(workflow, "id", INPUT)
    assert (storage.get("id"), storage.get_result("id", 0)) == ({"step": 1}, {"id": 123})
    flow.execute(workflow, "id")
    flow.execute(workflow, "id")
    assert (storage.get("id"), storage.get_result("id", 2)) == ({"step": 3}, {"uid": 123})
    storage.delete("id")
    assert flow.status("id") is None


def test_a_workflow_may_take_no_argument_and_an_id_may_be_left_out(any_lab: Lab) -> None:
    def no_argument() -> Flow:
        return (yield tool("api", "now"))

    flow = any_lab.flow(call=lambda category, name, input: [category, name, input])
    first = flow.execute(no_argument)
    assert isinstance(first, Paused)
    assert len(first["paused"]) == 21
    assert flow.execute(no_argument, first["paused"]) == ["api", "now", {}]


def test_paused_is_a_dict_that_tells_its_reason_and_survives_pickling() -> None:
    paused = Paused("a", 3, "budget")
    again = pickle.loads(pickle.dumps(paused))
    assert (again, again.reason, type(again)) == ({"paused": "a", "step": 3}, "budget", Paused)
    assert repr(paused) == "Paused({'paused': 'a', 'step': 3}, reason='budget')"


def test_sub_workflows_compose_with_yield_from(any_lab: Lab) -> None:
    def sub(number: int) -> Flow:
        return (yield tool("api", "sub", {"n": number}))

    def whole() -> Flow:
        first = yield from sub(1)
        return [first, (yield from sub(2))]

    assert any_lab.flow(call=echo).to_end(whole, "w")[-1] == [{"n": 1}, {"n": 2}]


# How far an invocation goes.


def five() -> Flow:
    for number in range(5):
        yield tool("api", "slow", {"number": number})
    return "done"


def test_a_budget_goes_on_while_time_is_left(any_lab: Lab) -> None:
    def slow(category: str, name: str, input: Any) -> Any:
        any_lab.clock.advance(4.0)
        return input

    flow = any_lab.flow(call=slow, budget=10.0)
    first = flow.execute(five, "b")
    assert (first, first.reason) == ({"paused": "b", "step": 2}, "budget")
    assert flow.execute(five, "b") == "done"


def test_without_end_of_budget_only_a_save_pauses(any_lab: Lab) -> None:
    flow = any_lab.flow(call=echo, budget=math.inf)
    assert flow.execute(workflow, "i", INPUT) == {"paused": "i", "step": 1}
    assert flow.execute(workflow, "i", INPUT) == RETURNED


def test_what_costs_nothing_costs_no_invocation(lab: Lab) -> None:
    def rests() -> Flow:
        yield sleep(60)
        got = [(yield wait("first")), (yield wait("never", timeout=0)), (yield wait("second"))]
        yield sleep(0)
        got.append((yield [tool("api", "one"), tool("api", "two")]))
        yield sleep(-5)
        return [*got, (yield tool("api", "three"))]

    flow = lab.flow(call=lambda category, name, input: name)
    assert flow.execute(rests, "id").reason == "sleep"
    flow.signal("id", "second", 2)
    flow.signal("id", "first", 1)
    lab.clock.advance(120.0)
    paused = flow.execute(rests, "id")
    assert (paused, paused.reason) == ({"paused": "id", "step": 6}, "tool")
    assert flow.execute(rests, "id") == {"paused": "id", "step": 8}
    assert flow.execute(rests, "id") == [1, {"__error": "timeout"}, 2, ["one", "two"], "three"]


def test_an_invocation_ends_a_margin_before_the_platform_does(any_lab: Lab) -> None:
    clock = any_lab.clock

    def call(category: str, name: str, input: Any) -> None:
        clock.advance(10)

    flow = FlowExecutor(any_lab.plain, call=call, budget=math.inf, clock=clock)
    with run_until(clock() + 35, margin=5):
        assert flow.execute_sync(five, "inf") == {"paused": "inf", "step": 2}
        with run_until(clock() + 1e6):  # of two deadlines the earlier one counts
            assert flow.execute_sync(five, "inf") == {"paused": "inf", "step": 3}
    with run_until(clock() - 5):  # one that is over does a step all the same, or nothing would ever be done
        answer = flow.execute_sync(five, "inf")
    assert isinstance(answer, Paused)
    assert (answer["step"], answer.reason) == (4, "budget")
    assert flow.execute_sync(five, "inf") == "done"
    with run_until(math.inf):
        one_step = FlowExecutor(any_lab.plain, call=call, clock=clock)
        assert one_step.execute_sync(five, "zero") == {"paused": "zero", "step": 0}
    with run_until(clock() + 1000):
        short = FlowExecutor(any_lab.plain, call=call, budget=15, clock=clock)
        assert short.execute_sync(five, "short") == {"paused": "short", "step": 1}


@pytest.mark.parametrize("wrong", [("in a minute",), (1e9, "1"), (math.nan,)])
def test_a_deadline_that_is_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"a deadline is in seconds since the epoch, and margin= in seconds: got dead"):
        run_until(*wrong)


@pytest.mark.parametrize(("left", "margin"), [(3.0, 1.0), (30.0, 6.0), (900.0, 10.0), (-1.0, 1.0)])
def test_the_margin_is_a_part_of_the_time_that_is_left(left: float, margin: float) -> None:
    deadline = time.time() + left
    with run_until(deadline):
        assert ends_at.get() == pytest.approx(deadline - margin, abs=0.5)
    assert ends_at.get() == math.inf


# What is told to tools, hooks and workflows.


def test_the_version_is_that_of_the_beginning(lab: Lab) -> None:
    def versioned() -> Flow:
        first = yield version()
        yield tool("api", "call")
        return [first, (yield version())]

    lab.flow(call=echo, version=3).execute(versioned, "v")
    assert lab.flow(call=echo, version=4).execute(versioned, "v") == [3, 3]
    assert lab.flow(call=echo, version=4, budget=1e9).execute(versioned, "w") == [4, 4]


def test_current_tells_a_tool_its_idempotency_key(any_lab: Lab) -> None:
    told: list[Any] = []

    def asks() -> Flow:
        yield tool("api", "one")
        yield [tool("api", "two"), tool("api", "three")]
        yield [tool("api", "four")]
        yield tool("api", "five")

    flow = any_lab.flow(call=lambda *_: told.append(current()), budget=1e9)
    flow.execute(asks, "id")
    run = told[0].run
    assert {(each.id, each.run) for each in told} == {("id", run)}
    assert [each.key for each in told] == [f"id:{run}:{n}" for n in ("0", "1.0", "2.0", "3.0", "3")]
    if "five" in any_lab.kind:
        assert run == "0"
    else:
        assert [each.step for each in told] == [0, 1, 2, 3, 4]
    with pytest.raises(LookupError, match="while a call or resume hook runs"):
        current()


def test_a_retried_step_keeps_its_key_and_current_reaches_threads(any_lab: Lab) -> None:
    class Dies(BaseException):
        pass

    keys: list[str] = []

    async def call(category: str, name: str, input: Any) -> None:
        keys.append(await asyncio.to_thread(lambda: current().key))
        if len(keys) == 1:
            raise Dies

    flow = any_lab.flow(call=call)
    with pytest.raises(Dies):
        flow.execute(one, "id")
    flow.execute(one, "id")
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_current_tells_the_resume_hook_which_step_it_rings_for(lab: Lab) -> None:
    rung: list[tuple[str, int]] = []

    def rounds() -> Flow:
        yield tool("api", "one")
        return again() if len(rung) < 3 else None

    flow = lab.flow(call=echo, resume=lambda id: rung.append((current().run, current().step)), workflows=[rounds])
    flow.start(rounds, "id")
    first = lab.record("id").run
    flow.resume("id")
    flow.resume("id")
    lab.clock.advance(31.0)
    flow.sweep()
    second = lab.record("id").run
    assert first != second
    assert rung == [(first, 0), (first, 1), (second, 0), (second, 0)]
    with pytest.raises(LookupError):
        current()


def test_a_workflow_sees_values_as_a_database_gives_them_back(any_lab: Lab) -> None:
    seen: list[Any] = []

    def looks(input: Any) -> Flow:
        seen.append(input)
        seen.append((yield tool("api", "tuple")))
        yield save()

    flow = any_lab.flow(call=lambda *_: ({1: (2,)},), budget=math.inf)
    for _ in range(2):
        flow.execute(looks, "l", ((), {2: "x"}))
    assert seen == [[[], {"2": "x"}], [{"1": [2]}]] * 2


@pytest.mark.parametrize("several", [False, True])
def test_a_tool_gets_a_copy_of_its_input(any_lab: Lab, several: bool) -> None:
    got: list[Any] = []

    def asks() -> Flow:
        rows = [3, (1, 2), {"a": ()}]
        request = tool("calc", "change", {"rows": rows})
        yield [request, tool("calc", "change", rows)] if several else request
        return rows

    def call(category: str, name: str, input: Any) -> Any:
        rows = input["rows"] if isinstance(input, dict) else input
        got.append(json.dumps(rows))
        rows.sort(key=str)
        rows.clear()

    assert repr(any_lab.flow(call=call, budget=1e9).execute(asks, "id")) == "[3, (1, 2), {'a': ()}]"
    assert got == ['[3, [1, 2], {"a": []}]'] * (1 + several)


@pytest.mark.parametrize(
    ("category", "name", "label"),
    [
        ("a", "b", "a.b"),
        ("a.b", "c", "'a.b'.c"),
        ("a", "b.c", "a.b.c"),
        ("größe", "名前", "größe.名前"),
        ("", '"', '."'),
    ],
)
def test_a_tool_may_have_any_name_and_is_told_from_all_others(lab: Lab, category: str, name: str, label: str) -> None:
    names = [(category, name), ("a.b.c", "")]

    def named() -> Flow:
        yield tool(*names[0])
        yield save()

    flow = lab.flow(call=echo)
    flow.execute(named, "id")
    assert flow.history("id")[0]["asked"] == f"tool {label}"
    names.reverse()
    with pytest.raises(Diverged) as caught:
        flow.execute(named, "id")
    assert (caught.value.recorded, caught.value.asked) == (f"tool {label}", "tool 'a.b.c'.")


# What is recorded.


def test_history_is_json_and_reads_pages(any_lab: Lab) -> None:
    def many() -> Flow:
        for number in range(600):
            yield [tool("api", "call", {"n": number}), tool("api", "call", {"n": -number})]
        yield save()

    flow = any_lab.flow(call=lambda c, n, input: [input["n"]], budget=math.inf)
    flow.execute(many, "id")
    history = flow.history("id")
    assert json.loads(json.dumps(history)) == history
    assert [step["step"] for step in history] == list(range(1201))
    assert [step["result"] for step in history] == [[sign * n] for n in range(600) for sign in (1, -1)] + [None]
    first, last = dict(history[0]), history[-1]
    assert set(first) == {"step", "branch", "asked", "fingerprint", "started", "ended", "error", "result"}
    if "five" in any_lab.kind:
        return
    assert isinstance(first.pop("fingerprint"), int)
    now = any_lab.clock.now
    assert first == {
        "step": 0, "branch": 1, "asked": "tool api.call", "started": now, "ended": now, "error": None, "result": [0],
    }  # fmt: skip
    assert (last["branch"], last["asked"], last["fingerprint"]) == (0, "save", None)


def test_a_finished_execution_is_gone(lab: Lab) -> None:
    flow = lab.flow(call=echo, budget=math.inf, workflows=[workflow])
    flow.execute(workflow, "id", INPUT)
    assert flow.resume("id") == RETURNED
    assert flow.resume("id") is flow.status("id") is None
    with pytest.raises(UnknownExecution, match="there is no execution 'id' in the store"):
        flow.history("id")
    assert flow.list() == flow.sweep() == []


def test_resume_finds_the_workflow_by_name_or_takes_nothing(lab: Lab) -> None:
    flow = lab.flow(call=echo)
    flow.execute(workflow, "id", INPUT)
    before = lab.record("id")
    with pytest.raises(UnknownWorkflow) as caught:
        flow.resume("id")
    assert str(caught.value) == (
        "execution 'id' runs workflow 'workflow', which is not among FlowExecutor(..., workflows=[]): add it there"
    )
    assert lab.record("id") == before


@pytest.mark.parametrize("fails_for", [1, 99])
def test_a_commit_that_the_store_refuses_is_not_taken_for_done(lab: Lab, fails_for: int) -> None:
    class Full(JournalAround):
        left = 0

        async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
            if what == "write" and values[1].step == 1 and self.left:
                self.left -= 1
                raise OSError("disk full")
            return await settle(method(*values, **options))

    calls: list[str] = []
    journal = Full(lab.plain)
    flow = lab.flow(on=journal, call=lambda category, name, input: calls.append(name))
    journal.left = fails_for
    if fails_for == 1:  # whoever has tried again has it written
        assert flow.execute(one, "id") == {"paused": "id", "step": 0}
        assert calls == ["one"]
        return
    with pytest.raises(OSError, match="disk full"):
        flow.execute(one, "id")
    assert (lab.status("id").step, lab.status("id").busy) == (0, False)
    journal.left = 0
    assert flow.execute(one, "id") == {"paused": "id", "step": 0}
    assert calls == ["one", "one"]


def test_a_coroutine_that_is_thrown_away_awaits_nothing_more() -> None:
    class Suspends:
        def __await__(self) -> Generator[Any, Any, None]:
            yield "suspended"

    async def call(category: str, name: str, input: Any) -> Any:
        await Suspends()

    storage = MemoryStorage()
    flow = FlowExecutor(AsyncJournal(storage), call=call, clock=FakeClock())
    coroutine = flow.execute(one, "id")
    while not isinstance(coroutine.send(None), str):
        pass
    coroutine.close()
    status = FlowExecutor(storage, clock=FakeClock()).status_sync("id")
    assert status is not None
    assert status.busy


# What five methods cannot promise.


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (lambda flow: flow.resume("p"), "resume by id alone"),
        (lambda flow: flow.start(workflow), "start"),
        (lambda flow: flow.ring("p"), "ring"),
        (lambda flow: flow.sweep(), "sweep"),
        (lambda flow: flow.list(), "list"),
        (lambda flow: flow.purge(1), "purge"),
        (lambda flow: flow.cancel("p"), "cancel"),
        (lambda flow: flow.signal("p", "go"), "signal"),
        (lambda flow: flow.fork("p", 0), "fork"),
        (lambda flow: FlowExecutor(PlainStorage(), retain=True), "retain="),
        (lambda flow: FlowExecutor(PlainStorage(), retain=5), "retain="),
    ],
)
def test_five_methods_refuse_what_they_cannot_promise(method: Callable[[FlowExecutor], Any], what: str) -> None:
    storage = PlainStorage()
    with pytest.raises(NotSupported) as caught:
        asyncio.run(method(FlowExecutor(storage, call=echo)))
    assert str(caught.value).startswith(f"{what} needs more than the five storage methods of PlainStorage can promise")
    assert "SQLiteStorage" in str(caught.value)
    assert storage.writes == []
    refusing: list[Callable[[], Any]] = [
        lambda: journal_for(storage).due(1, 1),
        lambda: journal_for(storage).find("", 1),
    ]
    for ask in refusing:
        with pytest.raises(NotSupported):
            ask()


def test_five_methods_know_status_history_and_delete() -> None:
    flow = FlowExecutor(PlainStorage(), call=echo)
    flow.execute_sync(workflow, "p", INPUT)
    status = flow.status_sync("p")
    assert status is not None
    assert (status.step, status.status, status.busy, status.due) == (1, "running", False, None)
    assert [step["result"] for step in flow.history_sync("p")] == [{"id": 123}]
    flow.delete_sync("p")
    assert flow.status_sync("p") is None


def test_a_plain_storage_that_answers_nonsense_is_named() -> None:
    class Nonsense(PlainStorage):
        answer: Any = 5

        def get(self, id: str) -> Any:
            return self.answer

        def get_result(self, id: str, step: int) -> Any:
            return {1, 2}

    flow, text = (
        FlowExecutor(Nonsense(), call=echo),
        r"Nonsense.get\('n'\) returned something else than \{'step': int\}",
    )
    for answer in (5, {}, {"step": -1}, {"step": "1"}):
        Nonsense.answer = answer
        with pytest.raises(TypeError, match=text):
            flow.execute_sync(workflow, "n", INPUT)
    Nonsense.answer = {"step": 1}
    with pytest.raises(NotEncodable, match=r"what Nonsense.get_result\('n', 0\) returned cannot be stored: value is a"):
        flow.execute_sync(workflow, "n", INPUT)
