"""What a workflow may yield, what each request means, and that nothing else is taken for one."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Generator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequential import (
    Diverged,
    Event,
    EventLoopNeeded,
    Fenced,
    FlowExecutor,
    IdInUse,
    InvalidId,
    InvalidName,
    InvalidYield,
    NotEncodable,
    NotSupported,
    Paused,
    ToolError,
    UnknownExecution,
    UnknownTool,
    again,
    current,
    save,
    sleep,
    tool,
    version,
    wait,
)
from sequential.blocking import settle
from sequential.record import CLOSED_NAMES, state_of
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, JournalAround
from tests.lab import Lab
from tests.support import AsyncJournal, PlainStorage, echo

Flow = Generator[Any, Any, Any]
HERE = str(Path(__file__))
MINUTE, DAY = 60.0, 86_400.0


class Dies(BaseException):
    """The process dies within a tool."""


def dies_at(*names: str) -> Callable[..., Any]:
    """Make a hook that answers with the tool's name, but dies once at some."""
    left = list(names)

    def call(category: str, name: str, input: Any) -> Any:
        if name in left:
            left.remove(name)
            raise Dies
        return name

    return call


def yields(*requests: Any) -> Callable[[], Flow]:
    """Make a workflow that returns what its requests are answered with."""

    def workflow() -> Flow:
        answers: list[Any] = []
        for request in requests:
            answer = yield request
            answers.append(answer)
        return answers

    return workflow


def asked(flow: Any, id: str = "id") -> list[str]:
    return [step["asked"] for step in flow.history(id)]


# The forms.

FORMS: list[tuple[Any, Any, Any]] = [
    (tool("api", "user", {"id": 1}), {"__tool": ["api", "user", {"id": 1}]}, ["user", {"id": 1}]),
    (tool("api", "none"), {"__tool": ("api", "none", {})}, ["none", {}]),
    (tool("api", "pay", 5, once=True), {"__tool": ["api", "pay", 5], "__once": True}, ["pay", 5]),
    ([tool("api", "a", [1]), tool("api", "b")], ({"__tool": ["api", "a", (1,)]}, tool("api", "b")), [["a", [1]], ["b", {}]]),
    ([], (), []),
    (save(), {"__save": True}, None),
    (sleep(60), {"__sleep": 60.0}, None),
    (sleep(-1), {"__sleep": -1}, None),
    (wait("go"), {"__wait": ["go", None]}, "payload"),
    (wait("no", timeout=5), {"__wait": ("no", 5)}, {"__error": "timeout"}),
    (version(), {"__version": True}, 7),
]  # fmt: skip
"""A helper's request, its plain value, and what it is answered with."""


@pytest.mark.parametrize("budget", [0.0, math.inf])
def test_helpers_and_plain_values_mean_the_same_and_mix(lab: Lab, budget: float) -> None:
    invocations = 0

    def workflow() -> Flow:
        at, answers = invocations, []
        for number, form in enumerate(FORMS):
            answers.append((yield form[(at + number) % 2]))  # another one at each replay
        return answers

    flow = lab.flow(call=lambda _, name, input: [name, input], version=7, budget=budget)
    flow.start(workflow, "id")
    flow.signal("id", "go", "payload")
    while isinstance(value := flow.execute(workflow, "id"), Paused):
        invocations += 1
        assert invocations < 20
        lab.clock.advance(MINUTE)
    assert value == [answer for _, _, answer in FORMS]
    assert invocations == (6 if budget == 0 else 2)  # the calls, the save and the timeout; not what is over or has come


def test_what_takes_no_step_is_not_in_the_history(lab: Lab) -> None:
    flow = lab.flow(call=echo, budget=math.inf, retain=True)
    flow.execute(yields(version(), [], (), tool("a", "b"), save()), "id")
    flow.execute(yields(version(), [], (), tool("a", "b"), save()), "id")
    assert asked(flow) == ["tool a.b", "save"]


# What is no request.

MARKER = "a-secret-of-the-user"


class Strange:
    def __repr__(self) -> str:
        return MARKER


_LEAVES = st.sampled_from([MARKER, MARKER.encode(), Strange(), None, frozenset({MARKER}), ValueError(MARKER), object])
_KEYS = st.sampled_from([MARKER, 5, None])
JUNK = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3), st.tuples(inner, inner), st.dictionaries(_KEYS, inner, max_size=2)
    ),
    max_leaves=5,
)
"""Values with the marker anywhere in them, and nothing in them that is a request."""

_ASKED = st.sampled_from(["__tool", "__save", "__sleep", "__wait", "__version"])
_CALL = tool(MARKER, MARKER, {MARKER: MARKER})
NEARLY = st.one_of(
    st.builds(lambda key, value: {key: value}, _ASKED, JUNK.filter(lambda value: type(value) not in {list, tuple})),
    st.builds(lambda key, value: {key: [value]}, _ASKED, JUNK),
    st.builds(lambda form, value: {**form[1], MARKER: value}, st.sampled_from([f for f in FORMS if isinstance(f[1], dict)]), JUNK),
    st.builds(lambda value: {"__tool": [MARKER, value, MARKER]}, JUNK.filter(lambda value: value != MARKER)),
    st.builds(lambda value: {**_CALL, "__once": value}, st.one_of(JUNK, st.sampled_from([False, 1, 0]))),
    st.builds(wait, st.sampled_from(["", " ", f"{MARKER}/", 5]), st.none()),
    st.builds(lambda timeout: wait(MARKER, timeout), st.sampled_from([math.nan, math.inf, MARKER, 2e12])),
    st.builds(sleep, st.sampled_from([math.nan, -math.inf, MARKER, None, 2e12, 10**400])),
    st.builds(lambda value, where: [_CALL] * where + [value] + [_CALL] * (2 - where), JUNK, st.integers(0, 2)),
    st.builds(lambda form: [_CALL, form[0]], st.sampled_from([form for form in FORMS if "__tool" not in form[0]])),
)  # fmt: skip
"""What looks like a request, or a list of them, and is none."""


@settings(max_examples=300)
@given(st.one_of(JUNK, NEARLY))
def test_nothing_else_is_a_request_and_no_value_is_quoted(wrong: Any) -> None:
    def workflow() -> Flow:
        yield tool("api", "first")
        yield wrong

    calls: list[str] = []
    flow = FlowExecutor(MemoryStorage(), call=lambda _, name, __: calls.append(name), budget=math.inf)
    with pytest.raises(InvalidYield) as caught:
        flow.execute_sync(workflow, "id")
    text, line = str(caught.value), workflow.__code__.co_firstlineno + 2
    assert f"({HERE}:{line}), which is not a request: " in text
    assert text.startswith("test_nothing_else_is_a_request_and_no_value_is_quoted.<locals>.workflow yielded a")
    status = flow.status_sync("id")
    assert status is not None
    assert (status.status, status.step, calls) == ("failed", 1, ["first"])
    assert status.error == f"InvalidYield: {text}"
    assert MARKER not in text


def endless() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


ANY_FORM = r"yield tool\(category, name, input\) with texts .*; or save\(\); or sleep\(.*; or wait\(.*; or version\(\); or a list of nothing"


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (5, f"yielded a int .*: {ANY_FORM}"),
        ([None], f"yielded a list with a NoneType in it .*: {ANY_FORM}"),
        ([tool("a", "b"), sleep(5)], f"yielded a list with a dict with __sleep in it .*: {ANY_FORM}"),
        ([tool("a", "b"), {"x": save()}, "y"], f"yielded a list with a dict, a str in it .*: {ANY_FORM}"),
        (endless(), "yielded a list with "),
        ({"__tool": "user"}, r"yielded a dict with __tool .*: yield tool\(category, name, input\) with texts for"),
        ({"__tool": ["a", "b\ud800", {}]}, r"yielded a dict with __tool .*: yield tool\(category, name, input\)"),
        (sleep("5"), r"yielded a dict with __sleep .*: yield sleep\(seconds\) with a number of at most 1e12$"),  # type: ignore[arg-type]
        (
            wait("a b"),
            r"a dict with __wait .*: yield wait\(name, timeout\) with a name of letters, digits and _ \. : @",
        ),
        (save() | version(), r"a dict with __save, __version .*: yield save\(\); or version\(\)$"),
        (again(), r"yielded a dict with __again .*: write `return again\(input\)`$"),
        ((each for each in range(1)), r"yielded a generator .*: yield a list: write \[\.\.\.\] instead of \(\.\.\.\)$"),
        (yields(save())(), r"yielded a generator .*: write `yield from` before workflow\(\.\.\.\), which is a gener"),
        ("__save", "yielded a str .*: write `yield` instead of `yield from` before a request$"),
    ],
)
def test_the_form_that_was_meant_is_told(wrong: Any, remedy: str) -> None:
    with pytest.raises(InvalidYield, match=remedy):
        FlowExecutor(MemoryStorage(), call=echo).execute_sync(yields(wrong))


def test_the_place_is_that_of_the_sub_workflow_whose_yield_it_is() -> None:
    def inner() -> Flow:
        yield 5

    def workflow() -> Flow:
        yield from inner()

    with pytest.raises(
        InvalidYield, match=re.escape(f"inner yielded a int ({HERE}:{inner.__code__.co_firstlineno + 1})")
    ):
        FlowExecutor(MemoryStorage(), call=echo).execute_sync(workflow)


# What is returned.


@pytest.mark.parametrize(
    "data",
    [{"__again": {"n": 1}}, {"__tool": ["api", "user", {}]}, {"__save": True}, {"__error": "no"}, [{"__sleep": 5}]],
)
def test_what_a_workflow_returns_is_data_whatever_its_keys(any_lab: Lab, data: Any) -> None:
    calls: Counter[str] = Counter()

    def workflow() -> Flow:
        return (yield tool("remote", "ask"))

    def call(category: str, name: str, input: Any) -> Any:
        calls[name] += 1
        return data

    flow = any_lab.flow(call=call, budget=math.inf)
    assert flow.execute(workflow, "id") == data
    assert calls == {"ask": 1}


@pytest.mark.parametrize("request_", [tool("api", "x", MARKER), save(), sleep(5), wait(MARKER), version()])
def test_a_request_of_a_helper_that_is_returned_is_refused(any_lab: Lab, request_: Any) -> None:
    def workflow() -> Flow:
        yield tool("api", "first")
        return request_

    with pytest.raises(
        InvalidYield, match=r"workflow returned a dict with __\w+ .*: write `return \(yield \.\.\.\)`"
    ) as caught:
        any_lab.flow(call=echo, budget=math.inf).execute(workflow, "id")
    assert HERE in str(caught.value)
    assert MARKER not in str(caught.value)


# Lists of calls.


@settings(max_examples=40)
@given(st.permutations(range(5)), st.booleans())
def test_answers_come_in_the_list_s_order_and_the_history_has_that_of_finishing(order: list[int], waits: bool) -> None:
    replayed = False

    def workflow() -> Flow:
        answers = yield [tool("api", "n", number) for number in range(5)]
        yield save()
        return answers

    async def main() -> None:
        turns = {number: asyncio.Event() for number in range(5)}
        turns[order[0]].set()

        async def call(category: str, name: str, number: int) -> int:
            assert not replayed
            await turns[number].wait()
            for following in order[order.index(number) + 1 :][:1]:
                turns[following].set()
            return number * 10

        nonlocal replayed
        flow = FlowExecutor(AsyncJournal() if waits else MemoryStorage(), call=call)
        assert await flow.execute(workflow, "id") == {"paused": "id", "step": 4}
        replayed = True
        steps = await flow.history("id")
        assert [(step["step"], step["branch"], step["result"]) for step in steps] == [
            (step, number + 1, number * 10) for step, number in enumerate(order)
        ]
        await flow.execute(workflow, "id")
        assert await flow.execute(workflow, "id") == [0, 10, 20, 30, 40]

    asyncio.run(main())


def test_a_plain_hook_is_called_in_turn_and_each_answer_is_recorded_as_it_comes(lab: Lab) -> None:
    recorded: list[int] = []

    def call(category: str, name: str, input: int) -> int:
        recorded.append(lab.status("id").step)
        if input == 1:
            raise ValueError("no")
        return input

    requests = [tool("api", "n", number) for number in range(100)]
    flow = lab.flow(call=call)
    assert flow.to_end(yields(requests, tool("api", "n", 0)), "id")[0] == {"paused": "id", "step": 99}
    assert recorded == [*range(101)]


@pytest.mark.parametrize("kind", ["plain", "async", "threads"])
def test_a_crash_in_the_midst_repeats_only_what_was_not_finished(lab: Lab, kind: str) -> None:
    performed, inner = Counter[str](), dies_at("c")

    def call(category: str, name: str, input: Any) -> Any:
        performed[name] += 1
        return inner(category, name, input)

    async def later(*asked: Any) -> Any:
        if kind == "threads":
            return await asyncio.to_thread(call, *asked)
        return call(*asked)

    flow = lab.flow(call=call if kind == "plain" else later, budget=math.inf)
    workflow = yields(tool("api", "first"), [tool("api", name) for name in "abcd"])
    with pytest.raises(Dies):
        flow.execute(workflow, "id")
    lab.clock.advance(1000)
    assert flow.execute(workflow, "id") == ["first", list("abcd")]
    assert (performed["first"], performed["c"]) == (1, 2)
    assert performed.total() == 6 if kind == "plain" else performed.total() <= 8


@pytest.mark.parametrize("kind", ["memory", "async", "five"])
def test_plain_and_async_calls_mix(kind: str) -> None:
    async def later(name: str) -> str:
        await asyncio.sleep(0)
        if name == "bad":
            raise KeyError
        return name

    def call(category: str, name: str, input: Any) -> Any:
        return name if name == "now" else later(name)

    store: Any = {"memory": MemoryStorage, "async": AsyncJournal, "five": PlainStorage}[kind]()
    workflow = yields([tool("api", name) for name in ("later", "now", "later", "bad")])
    found = asyncio.run(FlowExecutor(store, call=call, budget=math.inf).execute(workflow, "id"))
    assert found == [["later", "now", "later", {"__error": "KeyError"}]]


def test_in_a_list_what_was_called_off_before_it_ran_is_not_interrupted() -> None:
    """The hook knows only of the last call that there is no such tool."""
    cancelled: list[bool] = []
    registered = False

    async def later(name: str) -> str:
        return name

    def call(category: str, name: str, input: Any) -> Any:
        if name == "unknown" and not registered:
            raise UnknownTool("api.unknown", "nothing is")
        if name != "future":
            return later(name)
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda future: cancelled.append(future.cancelled()))
        return future

    workflow = yields([tool("api", name, once=name != "plain") for name in ("coroutine", "plain", "future", "unknown")])
    flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
    with pytest.raises(UnknownTool):
        asyncio.run(flow.execute(workflow, "id"))
    assert cancelled == [True]
    registered = True
    found = asyncio.run(flow.execute(workflow, "id"))
    assert found == [["coroutine", "plain", {"__error": "interrupted"}, "unknown"]]


@pytest.mark.parametrize("once", [False, True])
def test_a_blocking_method_in_an_event_loop_calls_off_what_it_cannot_await(once: bool) -> None:
    async def call(category: str, name: str, input: Any) -> str:
        return name

    flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
    workflow = yields([tool("api", name, once=once) for name in "ab"])

    async def main() -> None:
        with pytest.raises(EventLoopNeeded):
            flow.execute_sync(workflow, "id")

    asyncio.run(main())
    assert asyncio.run(flow.execute(workflow, "id")) == [["a", "b"]]


def test_on_five_methods_a_crash_repeats_what_comes_behind_in_a_list() -> None:
    storage, performed, inner = PlainStorage(), Counter[str](), dies_at("b")

    def call(category: str, name: str, input: Any) -> Any:
        performed[name] += 1
        return inner(category, name, input)

    flow, workflow = FlowExecutor(storage, call=call), yields([tool("api", "a"), tool("api", "b"), tool("api", "c")])
    with pytest.raises(Dies):
        flow.execute_sync(workflow, "id")
    assert storage.states == {"id": {"step": 1}}
    assert flow.execute_sync(workflow, "id") == {"paused": "id", "step": 2}
    assert flow.execute_sync(workflow, "id") == [["a", "b", "c"]]
    assert performed == {"a": 1, "b": 2, "c": 1}


def test_on_five_methods_what_ends_at_once_waits_for_what_is_before_it_in_a_list() -> None:
    async def later(name: str) -> str:
        await asyncio.sleep(0)
        return name

    def call(category: str, name: str, input: Any) -> Any:
        return later(name) if name in "bd" else name

    def workflow() -> Flow:
        answers = yield [tool("api", name) for name in "abcde"]
        yield save()
        return answers

    async def main() -> Any:
        flow = FlowExecutor(PlainStorage(), call=call, budget=math.inf)
        assert await flow.execute(workflow, "id") == {"paused": "id", "step": 5}
        return await flow.execute(workflow, "id")

    assert asyncio.run(main()) == list("abcde")


def test_on_five_methods_an_error_that_is_raised_ends_its_list_without_a_step() -> None:
    performed = Counter[str]()

    def call(category: str, name: str, input: Any) -> Any:
        performed[name] += 1
        if name == "a":
            raise ValueError(name)
        return name

    async def call_async(category: str, name: str, input: Any) -> Any:
        await asyncio.sleep(0)
        return call(category, name, input)

    def workflow() -> Flow:
        charged = None
        try:
            yield [tool("api", name) for name in "zabc"]
        except ToolError:
            charged = yield tool("bank", "charge")
        yield save()
        return [charged, (yield tool("api", "e"))]

    for hook in (call, call_async):
        performed.clear()
        flow = FlowExecutor(PlainStorage(), call=hook, budget=math.inf, errors="raise")
        assert asyncio.run(flow.execute(workflow, "id")) == {"paused": "id", "step": 3}
        assert asyncio.run(flow.execute(workflow, "id")) == ["charge", "e"]
        assert performed["charge"] == performed["e"] == performed["a"] == 1


class Name(str, Enum):  # noqa: UP042 - unlike a `StrEnum`, it is shown as what it is not
    ODD = "odd"


def test_a_text_that_is_an_enum_is_the_text_itself(lab: Lab) -> None:
    def workflow() -> Flow:
        yield tool(Name.ODD, Name.ODD)
        return (yield wait(Name.ODD))

    keys, flow = list[str](), lab.flow(call=lambda *_: keys.append(current().key), budget=math.inf)
    flow.execute(workflow, Name.ODD)
    assert flow.signal(Name.ODD, Name.ODD, 5)
    kept = lab.flow(call=echo, budget=math.inf, retain=True)
    assert kept.execute(workflow, "odd") == 5
    assert [step["asked"] for step in kept.history("odd")] == ["tool odd.odd", "wait odd"]
    assert keys == [f"odd:{lab.record('odd').run}:0"]


class Attributes(dict[str, Any]):
    """A common idiom: whatever is asked for is there, if but ``None``."""

    __getattr__ = dict.get


def test_a_result_that_has_every_attribute_is_a_result(any_lab: Lab) -> None:
    flow = any_lab.flow(call=lambda *_: Attributes(ok=1), budget=math.inf)
    assert flow.execute(yields(tool("api", "x")), "id") == [{"ok": 1}]


@pytest.mark.parametrize("case", ["unstorable", "second unstorable", "unknown tool", "interrupted"])
def test_a_once_call_that_was_not_started_is_made_later(lab: Lab, case: str) -> None:
    made, is_mended = list[str](), False

    def call(category: str, name: str, input: Any) -> Any:
        if name == "a" and case in {"unknown tool", "interrupted"} and not is_mended:
            raise UnknownTool("t.a", "") if case == "unknown tool" else KeyboardInterrupt
        made.append(name)
        return name

    def workflow() -> Flow:
        bad = {"x": object()} if "unstorable" in case and not is_mended else {}
        first = tool("t", "a", once=case == "unknown tool")
        return (
            yield [tool("t", "b", bad, once=True)] if case == "unstorable" else [first, tool("t", "b", bad, once=True)]
        )

    flow = lab.flow(call=call, budget=math.inf, strict=False)
    with pytest.raises((NotEncodable, UnknownTool, KeyboardInterrupt)):
        flow.execute(workflow, "id")
    assert state_of(lab.record("id")).once == ()
    is_mended = True
    assert flow.execute(workflow, "id") == (["b"] if case == "unstorable" else ["a", "b"])
    assert made.count("b") == 1


def test_a_stop_while_a_once_call_is_being_marked_leaves_it_to_be_made(lab: Lab) -> None:
    class Stops(JournalAround):
        async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            done = await settle(method(*arguments, **options))
            if what == "write" and state_of(arguments[1]).once and not stopped:
                stopped.append(True)
                raise KeyboardInterrupt
            return done

    stopped, made = list[bool](), list[str]()
    workflow = yields(tool("bank", "charge", once=True))
    with pytest.raises(KeyboardInterrupt):
        lab.flow(on=Stops(lab.plain), call=echo).execute(workflow, "id")
    assert (state_of(lab.record("id")).once, lab.status("id").busy) == ((), False)
    flow = lab.flow(call=lambda category, name, input: made.append(name), budget=math.inf)
    assert flow.execute(workflow, "id") == [None]
    assert made == ["charge"]


def test_once_calls_of_a_list_that_an_error_has_decided_leave_no_mark(lab: Lab) -> None:
    def call(category: str, name: str, input: Any) -> Any:
        raise ValueError(name)

    def workflow() -> Flow:
        for _ in range(3):
            try:
                yield [tool("t", "a"), tool("t", "b", once=True)]
            except ToolError as error:
                assert "a" in str(error)
        yield wait("go")

    flow = lab.flow(call=call, budget=math.inf, errors="raise")
    assert flow.execute(workflow, "id").reason == "wait"
    assert state_of(lab.record("id")).once == ()


# Keys.


def test_a_key_is_that_of_one_request_and_the_same_at_every_retry(lab: Lab) -> None:
    keys: list[str] = []
    broken = True

    def call(category: str, name: str, input: Any) -> Any:
        keys.append(current().key)
        assert current().id == "id"
        if name == "c" and broken:
            raise Dies
        return name

    workflow = yields(
        tool("api", "first"), save(), [tool("api", name) for name in "abc"], version(), [], [tool("api", "d")],
        tool("api", "last"),
    )  # fmt: skip
    flow = lab.flow(call=call, budget=math.inf)
    assert flow.execute(workflow, "id").reason == "save"
    with pytest.raises(Dies):
        flow.execute(workflow, "id")
    broken = False
    retried = len(keys) - 1
    lab.clock.advance(1000)
    flow.execute(workflow, "id")
    run = keys[0].split(":")[1]
    assert [key.removeprefix(f"id:{run}:") for key in keys[:retried]] == ["0", "1.0", "2.0"]
    assert [key.removeprefix(f"id:{run}:") for key in keys[retried:]] == ["3.0", "3.0", "4.0", "5"]


def test_keys_tell_rounds_and_executions_from_each_other(lab: Lab) -> None:
    keys: list[str] = []

    def workflow(input: int) -> Flow:
        yield tool("api", "x")
        return again(input - 1) if input else None

    flow = lab.flow(call=lambda *_: keys.append(current().key), budget=math.inf)
    for id in ("a", "b", "a"):
        flow.execute(workflow, id, 2)
    assert len(set(keys)) == 9


# Sleep and timeouts.


def test_a_sleep_costs_nothing_before_its_time_and_the_sweep_rings_when_it_is_over(lab: Lab) -> None:
    workflow = yields(tool("api", "before"), sleep(30 * DAY), tool("api", "after"))
    flow = lab.flow(call=echo, workflows=[workflow])
    flow.execute(workflow, "id")
    asleep = flow.resume("id")
    assert (asleep, asleep.reason) == ({"paused": "id", "step": 0}, "sleep")
    assert lab.rung == ["id"]
    wake = lab.clock.now + 30 * DAY
    assert (*lab.status("id")[1:4], lab.status("id").due) == ("sleeping", 1, False, wake)
    lab.clock.advance(29 * DAY)
    for _ in range(3):
        assert flow.resume("id").reason == "sleep"
        assert flow.sweep() == []
    lab.clock.now = wake
    assert flow.sweep() == lab.rung[1:] == ["id"]
    assert flow.resume("id") == {"paused": "id", "step": 2}  # that it is over costs no invocation
    assert flow.resume("id") == [{}, None, {}]


@pytest.mark.parametrize("request_", [sleep(60), wait("go")])
def test_of_who_only_looks_whether_it_is_time_observers_hear_that(lab: Lab, request_: Any) -> None:
    events: list[Event] = []
    workflow = yields(request_)
    flow = lab.flow(workflows=[workflow], observe=events.append)
    flow.start(workflow, "id")
    events.clear()
    flow.resume("id")
    assert [event.kind for event in events] == ["claimed", "replayed", "paused"]


SECONDS = {"sleep": 70, "wait": 90}
TIMED = [tool("api", "slow"), [tool("api", "slow"), tool("api", "slow")], sleep(70), wait("never", timeout=90)]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(TIMED), max_size=5), st.lists(st.sampled_from([0, 1, 69, 70, 90]), max_size=9))
def test_a_timer_counts_from_the_entry_that_led_to_it_whenever_somebody_looks(
    requests: list[Any], gaps: list[int]
) -> None:
    def call(category: str, name: str, input: Any) -> None:
        clock.advance(20)

    clock, workflow = FakeClock(), yields(*requests)
    start, flow = clock.now, FlowExecutor(MemoryStorage(), call=call, clock=clock)
    flow.start_sync(workflow, "id")
    for _ in range(30):
        if not isinstance(paused := flow.execute_sync(workflow, "id"), Paused):
            return
        status = flow.status_sync("id")
        assert status is not None
        if paused.reason in SECONDS:
            led = max([start, *(step["ended"] for step in flow.history_sync("id"))])
            assert status.due == led + SECONDS[paused.reason] > clock.now
        clock.advance(gaps.pop() if gaps else 1000)
    raise AssertionError(gaps)


@pytest.mark.parametrize("seconds", [0, -1, -1e12, 0.0])
def test_no_time_at_all_is_no_pause(lab: Lab, seconds: float) -> None:
    flow = lab.flow(budget=math.inf)
    assert flow.execute(yields(sleep(seconds), wait("x", timeout=seconds))) == [None, {"__error": "timeout"}]


def test_what_was_asleep_when_it_was_parked_wakes_when_it_would_have(lab: Lab) -> None:
    first, asleep = "same", yields(tool("api", "same"), sleep(1000))
    flow = lab.flow(call=echo, workflows=[asleep], budget=math.inf)
    flow.execute(asleep, "id")
    lab.clock.advance(1000)
    mistaken = yields(tool("api", "other"), sleep(1000))
    with pytest.raises(Diverged):
        flow.execute(mistaken, "id")
    assert (lab.status("id").status, lab.status("id").due) == ("diverged", None)
    assert flow.execute(asleep, "id") == [{}, None], first


def test_a_wait_or_a_sleep_that_is_mended_takes_effect(lab: Lab) -> None:
    flow, start = lab.flow(budget=math.inf), lab.clock.now
    flow.execute(yields(wait("aproval")), "id")
    for request, waits, due in (
        (wait("approval", timeout=100), ("approval",), 100),
        (sleep(1000), (), 1000),
        (sleep(5), (), 5),
    ):
        lab.clock.advance(1)
        flow.execute(yields(request), "id")
        assert (lab.status("id").waits, lab.status("id").due) == (waits, start + due)
    lab.clock.advance(5)
    assert flow.execute(yields(sleep(5)), "id") == [None]


# Signals.

NAMES = ("a", "b")


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([*NAMES, "again"]), min_size=1, max_size=6),
    st.lists(st.one_of(st.just("resume"), st.tuples(st.sampled_from(NAMES), st.booleans())), max_size=25),
)
def test_signals_follow_their_rules(plan: list[str], actions: list[Any]) -> None:
    """Of a name the first wins; it is closed after its wait, open again while one waits; a queue takes all, in order."""

    def workflow(input: dict[str, Any]) -> Flow:
        plan, got = input["plan"], input["got"]
        while plan:
            name, *plan = plan
            if name == "again":
                return again({"plan": plan, "got": got})
            got = [*got, (yield wait(name))]
        return got

    flow = FlowExecutor(MemoryStorage(), workflows=[workflow], budget=math.inf, retain=True)
    flow.start_sync(workflow, "id", {"plan": plan, "got": []})
    kept, closed, got, left = (
        list[tuple[str, int]](),
        set[str](),
        list[int](),
        [name for name in plan if name != "again"],
    )
    for number, action in enumerate([*actions, "resume"]):
        if isinstance(action, str):
            outcome = flow.resume_sync("id")
            while left and (taken := next((each for each in kept if each[0] == left[0]), None)):
                kept.remove(taken)
                got.append(taken[1])
                closed.add(left.pop(0))
            closed -= {*left[:1]}
            assert outcome == (got if not left else {"paused": "id", "step": outcome["step"]})
            if not left:
                break
        else:
            name, queue = action
            is_kept = queue or (name not in closed and name not in dict(kept))
            kept += [(name, number)] * is_kept
            assert flow.signal_sync("id", name, number, queue=queue) is is_kept


def test_a_signal_rings_whom_it_is_for_and_the_sweep_makes_up_for_a_lost_ring(lab: Lab) -> None:
    workflow = yields(tool("api", "ask"), wait("go"))
    flow = lab.flow(call=echo, workflows=[workflow], budget=math.inf)
    for id in ("one", "other"):
        assert flow.execute(workflow, id).reason == "wait"
        status = lab.status(id)
        assert (status.status, status.waits, status.due, status.step) == ("waiting", ("go",), None, 1)
    lab.clock.advance(1000 * DAY)
    assert flow.sweep() == []
    assert flow.signal("one", "else") is True
    assert lab.rung == []
    assert flow.signal("one", "go", {"by": "Ann"}) is True
    assert lab.rung == ["one"]
    assert flow.sweep() == ["one"]
    assert flow.resume("other").reason == "wait"
    assert flow.resume("one") == [{}, {"by": "Ann"}]


def test_nobody_answers_in_time(lab: Lab) -> None:
    workflow = yields(wait("go", timeout=30 * DAY), wait("go", timeout=DAY))
    flow = lab.flow(workflows=[workflow], budget=math.inf)
    flow.execute(workflow, "id")
    lab.clock.advance(30 * DAY - 1)
    assert (flow.sweep(), flow.resume("id").reason) == ([], "wait")
    lab.clock.advance(1)
    assert flow.sweep() == ["id"]
    assert flow.resume("id") == {"paused": "id", "step": 0}
    assert flow.signal("id", "go") is True  # None is a payload
    assert flow.resume("id") == [{"__error": "timeout"}, None]


@pytest.mark.parametrize("at", [-1, 0, 1, 500])
def test_a_signal_that_is_there_when_somebody_looks_is_no_timeout(lab: Lab, at: int) -> None:
    workflow = yields(wait("go", timeout=100), wait("go", timeout=100))
    flow = lab.flow(workflows=[workflow], budget=math.inf)
    flow.execute(workflow, "id")
    lab.clock.advance(100 + at)
    assert flow.signal("id", "go", "late") is True
    assert flow.resume("id").reason == "wait"
    assert flow.history("id")[0]["result"] == "late"


class Meanwhile(JournalAround):
    """A Journal in which a signal is sent just before a certain write."""

    def __init__(self, before: int) -> None:
        super().__init__(MemoryStorage())
        self.before = before

    async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if what == "write":
            self.before -= 1
            if self.before == 0:
                flow = FlowExecutor(self.inner, resume=lambda id: None)
                assert flow.signal_sync("id", "go", "just in time") is True
        return await settle(method(*arguments, **options))


@pytest.mark.parametrize("timeout", [None, 0])
@pytest.mark.parametrize("before", [2, 3])
def test_a_signal_at_the_very_moment_is_not_missed(timeout: int | None, before: int) -> None:
    """It comes once the lease is taken, and while the timeout is written, or that nothing is left but to wait."""
    workflow = yields(wait("go", timeout=timeout), save())
    flow = FlowExecutor(Meanwhile(before), workflows=[workflow])
    flow.start_sync(workflow, "id")
    paused = flow.resume_sync("id")
    assert (paused, flow.history_sync("id")[0]["result"]) == ({"paused": "id", "step": 1}, "just in time")


def test_the_last_hundred_names_stay_closed_and_so_they_do_in_the_next_round(lab: Lab) -> None:
    def workflow(input: int) -> Flow:
        for number in range(CLOSED_NAMES + 1):
            yield wait(f"name-{number}", timeout=0)
        if input:
            return again(0)
        yield wait("more")

    flow = lab.flow(workflows=[workflow], budget=math.inf)
    flow.execute(workflow, "id", 1)
    assert [flow.signal("id", f"name-{number}") for number in (0, 1, CLOSED_NAMES)] == [True, False, False]


def test_a_signal_for_what_cannot_get_one_is_an_error(lab: Lab) -> None:
    flow = lab.flow(budget=math.inf)
    with pytest.raises(UnknownExecution, match="there is no execution 'nobody' in the store"):
        flow.signal("nobody", "go")
    flow.execute(yields(wait("go")), "id")
    names: list[Any] = ["", "a b", "é", "x" * 201, 5]
    for name in names:
        with pytest.raises(InvalidName, match="cannot be the name of a signal: use 1 to 200 characters of A-Z"):
            flow.signal("id", name)
    with pytest.raises(NotEncodable, match="the payload of signal 'go' cannot be stored: value is a set"):
        flow.signal("id", "go", {1})


# Once.


def test_a_call_that_must_not_be_made_twice_is_interrupted(lab: Lab) -> None:
    calls: list[str] = []

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(name)
        raise Dies

    flow, workflow = lab.flow(call=call), yields(tool("bank", "pay", once=True), save())
    with pytest.raises(Dies):
        flow.execute(workflow, "id")
    assert flow.execute(workflow, "id") == {"paused": "id", "step": 1}
    assert flow.history("id")[0]["error"] == "interrupted"
    assert flow.execute(workflow, "id") == [{"__error": "interrupted"}, None]
    assert calls == ["pay"]


def test_in_a_list_only_what_was_begun_is_interrupted(lab: Lab) -> None:
    calls, inner = Counter[str](), dies_at("c")

    def call(category: str, name: str, input: Any) -> Any:
        calls[name] += 1
        return inner(category, name, input)

    flow = lab.flow(call=call, budget=math.inf)
    workflow = yields([tool("bank", name, once=name != "b") for name in "abc"], tool("bank", "d", once=True))
    with pytest.raises(Dies):
        flow.execute(workflow, "id")
    assert flow.execute(workflow, "id") == [["a", "b", {"__error": "interrupted"}], "d"]
    assert calls == dict.fromkeys("abcd", 1)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_was_never_started_is_not_interrupted(lab: Lab, listed: bool, asynchronous: bool) -> None:
    request, known = tool("bank", "pay", once=True), False

    def call(category: str, name: str, input: Any) -> Any:
        if not known:
            raise UnknownTool("bank.pay", "nothing is")
        return "paid"

    async def later(*asked: Any) -> Any:
        return call(*asked)

    flow, workflow = lab.flow(call=later if asynchronous else call), yields([request] if listed else request)
    with pytest.raises(UnknownTool):
        flow.execute(workflow, "id")
    known = True
    assert flow.to_end(workflow, "id")[-1] == [["paid"] if listed else "paid"]


# Again, and version.


@pytest.mark.parametrize("budget", [0.0, math.inf])
def test_each_round_begins_with_an_empty_history_under_the_same_id(lab: Lab, budget: float) -> None:
    lengths: list[int] = []

    def workflow(input: dict[str, int]) -> Flow:
        seen = yield tool("api", "round", input)
        return again({"n": input["n"] + 1}) if input["n"] < 20 else seen

    def call(category: str, name: str, input: Any) -> Any:
        lengths.append(len(flow.history("id")))
        return input["n"] * 10

    flow = lab.flow(call=call, budget=budget, retain=True)
    outcomes = flow.to_end(workflow, "id", {"n": 1})
    assert outcomes[-1] == 200
    assert outcomes[:-1] == ([] if budget else [{"paused": "id", "step": step} for step in [0, -1] * 19 + [0]])
    assert lengths == [0] * 20
    assert len(flow.history("id")) == 1
    with pytest.raises(IdInUse):
        flow.execute(workflow, "id", {"n": 2})
    assert flow.execute(workflow, "id", {"n": 1}) == 200  # it is what it was started with that counts


def test_the_version_is_that_of_the_executor_that_began_the_round(lab: Lab) -> None:
    def workflow(input: dict[str, Any]) -> Flow:
        seen = [*input.get("seen", []), (yield version())]
        yield save()
        assert (yield version()) == seen[-1]
        return again({"seen": seen}) if len(seen) < 2 else seen

    old, new = (lab.flow(version=version, workflows=[workflow]) for version in (1, 2))
    old.execute(workflow, "id")
    assert lab.status("id").version == 1
    assert new.resume("id") == {"paused": "id", "step": -1}
    assert lab.status("id").version == 2
    assert old.resume("id") == {"paused": "id", "step": 0}
    assert old.resume("id") == [1, 2]


def test_an_early_signal_is_kept_for_the_next_round(lab: Lab) -> None:
    def workflow(input: int) -> Flow:
        message = yield wait(f"message-{input}")
        return again(2) if input == 1 else message

    flow = lab.flow(budget=math.inf)
    flow.execute(workflow, "id", 1)
    for name in ("message-2", "message-1"):
        assert flow.signal("id", name, f"for {name}") is True
    assert flow.execute(workflow, "id") == "for message-2"


def test_an_input_of_the_next_round_that_cannot_be_stored_parks(lab: Lab) -> None:
    def workflow() -> Flow:
        yield save()
        return again({MARKER})

    flow = lab.flow(budget=math.inf)
    flow.execute(workflow, "id")
    with pytest.raises(NotEncodable, match="the next input of execution 'id' cannot be stored: value is a set"):
        flow.execute(workflow, "id")
    assert (lab.status("id").status, lab.status("id").step) == ("failed", 1)
    assert (again(), again(0)) == ({"__again": {}}, {"__again": 0})


# A workflow that is changed while it runs.


def test_another_call_in_the_list_is_diverged_and_nothing_is_lost(lab: Lab) -> None:
    calls, inner = Counter[str](), dies_at("c")

    def call(category: str, name: str, input: Any) -> Any:
        calls[name] += 1
        return inner(category, name, input)

    flow = lab.flow(call=call, budget=math.inf)
    right = [tool("api", name, {"of": name}) for name in "abc"]
    with pytest.raises(Dies):
        flow.execute(yields(right), "id")
    for wrong, label in (
        (tool("api", "x"), "tool api.x (branch 2)"),
        (tool("api", "b"), "tool api.b (branch 2) with another input"),
    ):
        with pytest.raises(Diverged) as caught:
            flow.execute(yields([right[0], wrong, right[2]]), "id")
        assert (caught.value.step, caught.value.recorded, caught.value.asked) == (1, "tool api.b (branch 2)", label)
        assert (lab.status("id").status, lab.status("id").step) == ("diverged", 2)
    assert flow.execute(yields(right), "id") == [list("abc")]
    assert calls == {"a": 1, "b": 1, "c": 2}


def test_a_list_made_longer_that_fits_goes_on_and_one_that_does_not_keeps_what_is_recorded(lab: Lab) -> None:
    def workflow() -> Flow:
        yield [tool("api", name) for name in names]
        return (yield [tool("api", "charge", once=True)])

    names, inner = "ab", dies_at("stop")
    flow = lab.flow(call=inner)
    flow.execute(workflow, "id")
    names = "abc"
    assert flow.execute(workflow, "id") == {"paused": "id", "step": 2}
    flow.execute(workflow, "id")
    names = "abcd"
    with pytest.raises(
        Diverged, match=r"'tool api.charge .branch 4.' at step 3, but its workflow now asks for 'tool api.d .branch 4.'"
    ):
        flow.execute(workflow, "id")
    assert lab.status("id").step == 4
    names = "abc"
    assert flow.execute(workflow, "id") == ["charge"]


def test_an_input_may_be_as_deep_as_any_value_and_a_tool_has_its_own(lab: Lab) -> None:
    deep: Any = []
    for _ in range(490):
        deep = [deep]
    shared = {"n": [1]}

    def call(category: str, name: str, input: Any) -> Any:
        if isinstance(input, dict):
            for key in "ab":
                input[key]["n"].append(2)
        return input

    flow = lab.flow(call=call, budget=math.inf)
    answers = flow.execute(yields(tool("api", "x", deep), tool("api", "x", {"a": shared, "b": shared})), "id")
    assert answers == [deep, {"a": {"n": [1, 2]}, "b": {"n": [1, 2]}}]
    assert shared == {"n": [1]}


# Another execution with the same beginning, and many at a time.


def steps(input: dict[str, int]) -> Flow:
    first = yield tool("api", "a", input)
    others = yield [tool("api", "b"), tool("api", "c"), tool("api", "d")]
    return [(yield version()), first, *others, (yield tool("api", "e"))]


@pytest.mark.parametrize("at", range(6))
def test_a_fork_begins_with_the_first_answers(lab: Lab, at: int) -> None:
    calls: list[str] = []

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(name)
        return [name, current().id]

    old = lab.flow(call=call, workflows=[steps], retain=True, version=3, budget=math.inf)
    old.execute(steps, "old", {"n": 1})
    calls.clear()
    new = lab.flow(call=call, workflows=[steps], retain=True, version=4, budget=math.inf)
    assert new.fork("old", at, "new") == "new"
    assert lab.rung == ["new"]
    status = lab.status("new")
    assert (status.status, status.step, status.workflow, status.input) == ("running", at, "steps", {"n": 1})
    assert new.resume("new") == [3, *([name, "old" if index < at else "new"] for index, name in enumerate("abcde"))]
    assert calls == [*"abcde"][at:]
    assert lab.status("old").value == [3, *([name, "old"] for name in "abcde")]
    assert len({new.fork("old", 1), new.fork("old", 1)}) == 2


def test_a_fork_whose_answer_was_lost_leaves_alone_what_others_have_done_since(lab: Lab) -> None:
    class Loses(JournalAround):
        async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            done = await settle(method(*arguments, **options))
            if what == "write" and arguments[1].id == "copy" and arguments[1].status == "running":
                plain = FlowExecutor(lab.plain, call=echo, workflows=[waits], clock=lab.clock)
                assert plain.signal_sync("copy", "go", 5)
                plain.resume_sync("copy")
                raise ConnectionError("the answer is lost")
            return done

    def waits() -> Flow:
        return [(yield tool("api", "one")), (yield wait("go")), (yield tool("api", "two", once=True))]

    flow = lab.flow(call=echo, workflows=[waits])
    flow.execute(waits, "id")
    assert lab.flow(on=Loses(lab.plain), call=echo).fork("id", 1, "copy") == "copy"
    assert lab.status("copy").step == 3
    assert flow.execute(waits, "copy") == [{}, 5, {}]


def test_what_cannot_be_forked_is_told(lab: Lab) -> None:
    flow = lab.flow(call=echo)
    flow.execute(steps, "old")
    with pytest.raises(UnknownExecution):
        flow.fork("nobody", 0)
    places: list[Any] = [-1, 2, "1", 0.5]
    for at in places:
        with pytest.raises(ValueError, match=f"'old' has 1 recorded steps, so at= is from 0 to that, not {at!r}"):
            flow.fork("old", at)
    with pytest.raises(IdInUse, match="execution 'old' was started with another history"):
        flow.fork("old", 1, "old")
    with pytest.raises(InvalidId):
        flow.fork("old", 1, "a b")


def test_lists_are_pages_of_what_is_asked_for(lab: Lab) -> None:
    flow, other = lab.flow(call=echo), yields(wait("go"))
    for number in range(5):
        flow.execute(other if number % 2 else steps, f"id-{number}")

    def found(*asked: Any, **named: Any) -> list[str]:
        return [status.id for status in flow.list(*asked, **named)]

    assert found() == found(None, None, 5) == [f"id-{number}" for number in range(5)]
    assert found("waiting") == found(workflow="workflow") == ["id-1", "id-3"]
    assert found(workflow="steps", limit=2, after="id-0") == ["id-2", "id-4"]
    assert found(after="id-4") == found("stuck") == []
    assert flow.list()[1] == lab.status("id-1")._replace(input=None)
    with pytest.raises(ValueError, match="there is no status 'Stuck': it is one of cancelled, cancelling, diverged"):
        flow.list("Stuck")
    wrong: list[tuple[str, Any]] = [
        *(("status", each) for each in (["stuck"], 5)),
        *(("workflow", each) for each in (steps, 5, "\ud800", "a\0")),
        *(("limit", each) for each in (0, -1, 2**31, "5", 1.5, None)),
    ]
    for name, value in wrong:
        with pytest.raises(ValueError, match=f"there is no {name}|{name}= is "):
            flow.list(**{name: value})
    places: list[Any] = [5, "/"]
    for after in places:
        with pytest.raises(InvalidId):
            flow.list(after=after)


class Deleted(JournalAround):
    """A Journal of short pages whose execution is deleted after the first of them."""

    async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        found = await settle(method(*arguments, **options))
        if what == "read" and found[1]:
            await settle(self.inner.delete("id"))
            return found[0], found[1][:1]
        return found


@pytest.mark.parametrize(
    "read",
    [
        lambda flow: flow.history_sync("id"),
        lambda flow: flow.execute_sync(steps, "id"),
        lambda flow: flow.fork_sync("id", 4),
    ],
)
def test_a_history_that_is_deleted_while_it_is_read_says_so(read: Callable[[FlowExecutor], Any]) -> None:
    inner = MemoryStorage()
    flow = FlowExecutor(inner, call=echo)
    flow.execute_sync(steps, "id")
    flow.execute_sync(steps, "id")
    with pytest.raises(Fenced, match=r"execution 'id' is no longer held .* it was cancelled or deleted"):
        read(FlowExecutor(Deleted(inner), call=echo))


# Five methods.


def test_five_methods_refuse_by_name_what_they_cannot_promise() -> None:
    def ends_with_again() -> Flow:
        yield [tool("a", "b"), tool("a", "b")]
        return again(1)

    flow, calls = FlowExecutor(PlainStorage(), call=echo, budget=math.inf), list[tuple[str, Callable[[], Any]]]()
    for request, what in [
        (sleep(1), "sleep()"),
        (wait("x"), "wait()"),
        (version(), "version()"),
        (tool("a", "b", once=True), "tool(..., once=True)"),
        ([tool("a", "b"), tool("a", "b", once=True)], "tool(..., once=True)"),
    ]:
        calls.append((what, lambda request=request: flow.execute_sync(yields(request))))
    calls += [
        ("again()", lambda: flow.execute_sync(ends_with_again)),
        ("start", lambda: flow.start_sync(ends_with_again)),
        ("resume by id alone", lambda: flow.resume_sync("x")),
        ("ring", lambda: flow.ring_sync("x")),
        ("signal", lambda: flow.signal_sync("x", "y")),
        ("cancel", lambda: flow.cancel_sync("x")),
        ("fork", lambda: flow.fork_sync("x", 0)),
        ("list", flow.list_sync),
        ("sweep", flow.sweep_sync),
        ("purge", lambda: flow.purge_sync(1)),
        ("retain=", lambda: FlowExecutor(PlainStorage(), retain=True)),
    ]
    for what, call in calls:
        with pytest.raises(NotSupported) as caught:
            call()
        assert str(caught.value).startswith(f"{what} needs more than the five storage methods of ")
