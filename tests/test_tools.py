"""The ready-made call hook: what it calls, how, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import functools
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, assert_type

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequential import FlowExecutor, current, tool
from sequential.errors import UnknownTool
from sequential.stores.memory import MemoryStorage
from sequential.testing import crash_points
from sequential.tools import Tools

Flow = Generator[Any, Any, Any]


def one(name: str, input: Any = None, once: bool = False) -> Callable[[], Flow]:
    def workflow() -> Flow:
        return (yield tool("api", name, input, once))

    return workflow


def run_sync(tools: Tools, workflow: Callable[[], Flow], storage: MemoryStorage | None = None) -> Any:
    return FlowExecutor(storage or MemoryStorage(), call=tools, budget=math.inf).execute_sync(workflow, "t")


def run_async(tools: Tools, workflow: Callable[[], Flow], storage: MemoryStorage | None = None) -> Any:
    return asyncio.run(FlowExecutor(storage or MemoryStorage(), call=tools, budget=math.inf).execute(workflow, "t"))


RUNS = pytest.mark.parametrize("run", [run_sync, run_async])
Run = Callable[..., Any]


def test_a_decorated_function_stays_what_it_was() -> None:
    tools = Tools()

    @tools.add("api")
    def user(id: int) -> str:
        return f"user {id}"

    @tools.add("api", name="everyone", timeout=5.0)
    async def users(limit: int = 2) -> list[str]:
        return [user(id) for id in range(limit)]

    def posts() -> list[int]:
        return [1]

    assert_type(user(1), str)
    decorated: Callable[[int], Coroutine[Any, Any, list[str]]] = users
    assert asyncio.run(decorated(1)) == ["user 0"]
    assert_type(tools.add("api", posts), Callable[[], list[int]])
    assert tools.add("api", posts, name="again", timeout=1.0) is posts

    def workflow() -> Flow:
        return [
            (yield tool("api", "user", {"id": 1})),
            (yield tool("api", "everyone")),
            (yield tool("api", "posts")),
            (yield tool("api", "again")),
        ]

    for run in (run_sync, run_async):
        assert run(tools, workflow) == ["user 1", ["user 0", "user 1"], [1], [1]]
    assert crash_points(workflow, call=tools) > 0


def mark(function: object) -> Any:
    return getattr(function, "__sequential_tool__", None)


def test_a_function_is_marked_with_the_first_name_it_was_given() -> None:
    def fetch() -> int:
        return 1

    Tools().add("api", fetch)
    tools = Tools()
    tools.add("api", fetch, name="alias")
    assert mark(fetch) == ("api", "fetch")

    @functools.wraps(fetch)
    def logged() -> int:
        return fetch()

    assert mark(logged) == ("api", "fetch")
    tools.add("log", logged, name="logged")
    tools.add("log", logged, name="alias")
    assert mark(logged) == ("log", "logged")

    def inner() -> None: ...

    @functools.wraps(inner)
    def outer() -> None: ...

    tools.add("log", inner)
    tools.add("log", outer, name="outer")
    assert (mark(inner), mark(outer)) == (("log", "inner"), ("log", "outer"))


class Service:
    def method(self, n: int) -> int:
        return n + 1


class Slotted:
    __slots__ = ()

    def __call__(self, n: int) -> int:
        return n + 1


def add_one(n: int, step: int = 0) -> int:
    return n + step


@pytest.mark.parametrize(
    "function", [Service().method, Slotted(), functools.partial(add_one, step=1), lambda n: n + 1, int]
)
@pytest.mark.parametrize("timeout", [None, 5.0])
@RUNS
def test_whatever_can_be_called_is_a_tool(run: Run, timeout: float | None, function: Any) -> None:
    tools = Tools()
    assert tools.add("api", function, name="f", timeout=timeout) is function
    found = run(tools, one("f", {} if function is int else {"n": 1}))
    assert found == (0 if function is int else 2)


def test_a_name_is_taken_once() -> None:
    tools = Tools()
    tools.add("api", add_one)

    def other() -> None: ...

    @functools.wraps(other)
    def wrapper() -> None: ...

    for function in (wrapper, other):
        with pytest.raises(ValueError, match="already") as caught:
            tools.add("api", function, name="add_one")
        lines = [f"{function.__code__.co_firstlineno}" for function in (add_one, other)]
        where = "test_a_name_is_taken_once.<locals>.other"
        assert str(caught.value) == (
            f"tool api.add_one is add_one ({__file__}:{lines[0]}) already, and cannot be {where} "
            f"({__file__}:{lines[1]}) too: give one of them another name="
        )
    with pytest.raises(ValueError, match=r"cannot be len too"):
        tools.add("api", len, name="add_one")
    assert tools("api", "add_one", {"n": 1}) == 1
    tools.add("other", add_one)


def wrong(tools: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        tools.add(*args, **kwargs)
    with pytest.raises(UnknownTool, match="nor is any other"):
        tools("api", "x", {})
    return f"{caught.type.__name__}: {caught.value}"


def test_what_cannot_be_a_tool_is_refused_with_the_remedy() -> None:
    tools = Tools()
    text = "ValueError: a tool's category and name are texts that UTF-8 can encode, not "
    remedy = ": write @tools.add('category') or @tools.add('category', name='name')"
    assert wrong(tools, 5, add_one) == f"{text}5 and None{remedy}"
    assert wrong(tools, "api", add_one, name=0) == f"{text}'api' and 0{remedy}"
    assert wrong(tools, "\ud800", add_one, name="x") == f"{text}'\\ud800' and 'x'{remedy}"
    assert wrong(tools, add_one) == f"{text}{add_one!r} and None{remedy}"  # @tools.add without parentheses
    assert wrong(tools, "api", "user") == (
        "TypeError: tools.add('api', ...) was given a str, which is no function: the second argument is the function, "
        "and the tool's name is name="
    )
    for nameless in (functools.partial(add_one), lambda: 1):
        assert wrong(tools, "api", nameless) == (
            f"ValueError: a {type(nameless).__name__} has no name to be called by: tools.add('api', ..., name=) gives "
            f"it one"
        )
    for timeout in (0, -1.0, math.nan, math.inf, "3"):
        assert wrong(tools, "api", timeout=timeout) == (
            "ValueError: the timeout of a tool is an int or a float above 0, in seconds, and at most "
            f"{threading.TIMEOUT_MAX:g}, not {timeout!r}: leave it out for none"
        )


def user(id: int, *, deep: bool = False) -> Any:
    return id + None  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(**arguments: Any) -> Any:
        return function("session", **arguments)

    return wrapper


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **arguments: Any) -> Any:
        return function(*args, **arguments)

    return wrapper


@pytest.mark.parametrize(
    ("function", "timeout"), [(user, None), (user, 5.0), (logged(user), None), (Service().method, None)]
)
@pytest.mark.parametrize(
    ("input", "reason"),
    [
        ({}, "(): missing a required argument: {argument}"),
        ({"uid": "secret"}, "('uid'): missing a required argument: {argument}"),
        ({"n": "secret", "id": "secret"}, "('id', 'n'): got an unexpected keyword argument {other}"),
        (["secret"], "a list: an input is a dict of arguments by name"),
        (5, "a int: an input is a dict of arguments by name"),
    ],
)
@RUNS
def test_an_input_that_does_not_fit_is_an_error_value_that_quotes_none_of_it(
    run: Run, function: Any, timeout: float | None, input: Any, reason: str
) -> None:
    tools = Tools()
    tools.add("api", function, name="f", timeout=timeout)
    method = function.__name__ == "method"
    shown = "(n: 'int') -> 'int'" if method else "(id: 'int', *, deep: 'bool' = False) -> 'Any'"
    reason = reason.format(argument="'n'" if method else "'id'", other="'id'" if method else "'n'")
    storage = MemoryStorage()

    def workflow() -> Flow:
        answer = yield {"__tool": ["api", "f", input]}
        yield tool("api", "absent")
        return answer

    with pytest.raises(UnknownTool):
        run(tools, workflow, storage)
    (step,) = FlowExecutor(storage).history_sync("t")
    assert (step["error"], step["result"]) == (
        "TypeError",
        {"__error": f"tool api.f{shown} cannot be called with {reason}"},
    )


def test_long_names_are_cut_short_and_an_unknown_signature_is_left_out() -> None:
    tools = Tools()
    strange: Any = type("Strange", (), {"__signature__": 5, "__call__": lambda self: 1})()
    tools.add("api", strange, name="strange")
    tools.add("api", add_one)
    with pytest.raises(
        TypeError, match=r"^tool api\.strange\(\.\.\.\) cannot be called with a list: an input is a dict"
    ):
        tools("api", "strange", ["x"])
    with pytest.raises(TypeError, match=r"<lambda>\(\) got an unexpected keyword argument 'n'"):
        tools("api", "strange", {"n": 1})
    for input in ({"n": 1, "x" * 9999: 2}, {f"x{number}": 1 for number in range(999)}, {1: 2}):
        with pytest.raises(
            TypeError, match=r"^tool api\.add_one\(n: 'int', step: 'int' = 0\) -> 'int' cannot be"
        ) as caught:
            tools("api", "add_one", input)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("timeout", [None, 5.0])
@RUNS
def test_a_type_error_of_the_functions_own_is_left_as_it_is(run: Run, timeout: float | None) -> None:
    tools = Tools()

    @with_session
    def inject(session: str, n: int) -> Any:
        return user(n)

    @with_session
    def strict(session: str, n: int) -> Any:
        return session + n  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]

    async def waits(id: int) -> Any:
        return user(id)

    def opaque(**arguments: Any) -> Any:
        return user(**arguments)

    for function in (user, inject, strict, waits, opaque):
        tools.add("api", function, timeout=timeout)
    tools.add("api", functools.partial(user, deep=True), name="partial", timeout=timeout)
    own = "unsupported operand type(s) for +: 'int' and 'NoneType'"
    for name in ("user", "waits", "opaque", "partial"):
        assert run(tools, one(name, {"id": 1})) == {"__error": own}
    assert run(tools, one("inject", {"n": 1})) == {"__error": own}
    assert run(tools, one("strict", {"n": 1})) == {"__error": 'can only concatenate str (not "int") to str'}
    assert run(tools, one("opaque", {"n": 1})) == {"__error": "user() got an unexpected keyword argument 'n'"}


def hint_of(tools: Tools, category: str, name: str) -> str:
    with pytest.raises(UnknownTool) as caught:
        tools(category, name, {})
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    start, end = (
        f"no tool '{category}.{name}' is registered: ",
        (
            f" tools.add({category!r}, function, name={name!r}) registers it, in a module that this process has to import"
        ),
    )
    text = str(caught.value)
    assert text.startswith(start)
    assert text.endswith(end)
    return text[len(start) : -len(end)]


def test_an_unknown_tool_is_told_with_what_there_is_instead() -> None:
    tools = Tools()
    assert hint_of(tools, "api", "user") == "nor is any other;"
    for name in ("user", "users", "posts"):
        tools.add("api", add_one, name=name)
    tools.add("db", add_one, name="query")
    assert hint_of(tools, "api", "usr") == "did you mean 'api.user' or 'api.users'?"
    assert hint_of(tools, "ap", "posts") == "did you mean 'api.posts'?"
    assert hint_of(tools, "api", "zzzzzzzzzz") == "category 'api' has 'posts', 'user', 'users';"
    assert hint_of(tools, "zzzzzz", "zzzzzz") == "the categories are 'api', 'db';"
    for number in range(12):
        tools.add("many", add_one, name=f"n{number:02}")
    names = ", ".join(f"'n{number:02}'" for number in range(10))
    assert hint_of(tools, "many", "zzzzzzzzzzzz") == f"category 'many' has {names} and 2 more;"


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("gathered", [False, True])
@RUNS
def test_an_unknown_tool_leaves_nothing_recorded_and_may_come_later(run: Run, gathered: bool, once: bool) -> None:
    tools, storage = Tools(), MemoryStorage()
    tools.add("api", add_one, name="known")

    def workflow() -> Flow:
        first = yield tool("api", "known", {"n": 1})
        if gathered:
            return [first, *(yield [tool("api", "known", {"n": 2}), tool("api", "late", {"n": 3}, once)])]
        return [first, 2, (yield tool("api", "late", {"n": 3}, once))]

    with pytest.raises(UnknownTool):
        run(tools, workflow, storage)
    recorded = [step["result"] for step in FlowExecutor(storage).history_sync("t")]
    assert recorded == ([1, 2] if gathered else [1])
    tools.add("api", add_one, name="late")
    assert run(tools, workflow, storage) == [1, 2, 3]


@RUNS
def test_a_plain_function_that_hangs_is_given_up_but_goes_on(run: Run) -> None:
    tools, go, threads = Tools(), threading.Event(), list[threading.Thread]()
    ended = list[bool]()

    @tools.add("api", timeout=0.01)
    def hang() -> int:
        threads.append(threading.current_thread())
        ended.append(go.wait(30))
        return 1

    @tools.add("api", timeout=30)
    def quick() -> int:
        return 2

    def workflow() -> Flow:
        return [(yield tool("api", "hang")), (yield tool("api", "quick"))]

    assert run(tools, workflow) == [{"__error": "tool api.hang took longer than 0.01 s"}, 2]
    (thread,) = threads
    assert (thread.is_alive(), thread.daemon, thread.name) == (True, True, "tool api.hang")
    go.set()
    thread.join(30)
    assert ended == [True]


def test_an_async_function_that_hangs_is_cancelled() -> None:
    tools, cancelled = Tools(), list[str]()

    @tools.add("api", timeout=0.01)
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("hang")
            raise

    @tools.add("api", timeout=30)
    async def quick() -> int:
        await asyncio.sleep(0)
        return 2

    def workflow() -> Flow:
        return [(yield tool("api", "hang")), (yield [tool("api", "quick"), tool("api", "hang")])]

    slow = {"__error": "tool api.hang took longer than 0.01 s"}
    assert run_async(tools, workflow) == [slow, [2, slow]]
    assert cancelled == ["hang", "hang"]


def test_a_timeout_covers_what_a_plain_function_returns_to_be_awaited() -> None:
    tools = Tools()

    class Hanging:
        def __await__(self) -> Generator[Any, Any, Any]:
            return asyncio.Event().wait().__await__()

    async def quick() -> str:
        return current().key

    tools.add("api", Hanging, name="hang", timeout=0.01)
    tools.add("api", functools.partial(quick), name="quick", timeout=30)
    assert run_async(tools, one("hang")) == {"__error": "tool api.hang took longer than 0.01 s"}
    for run in (run_sync, run_async):
        assert run(tools, one("quick")).endswith(":0")


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("timeout", [None, 30.0])
@RUNS
def test_an_error_of_the_function_is_recorded_as_its_own(run: Run, timeout: float | None, threads: bool) -> None:
    tools = Tools(threads=threads)

    @tools.add("api", timeout=timeout)
    def slow() -> None:
        raise TimeoutError("of its own")

    @tools.add("api", timeout=timeout)
    async def slow_async() -> None:
        raise TimeoutError("of its own")

    @tools.add("api", timeout=timeout)
    def empty() -> Any:
        return next(iter([]))

    assert run(tools, one("slow")) == {"__error": "of its own"}
    assert run(tools, one("slow_async")) == {"__error": "of its own"}
    assert run(tools, one("empty"))["__error"] in {"StopIteration", "coroutine raised StopIteration"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("timeout", [None, 30.0])
def test_what_is_no_error_propagates_and_is_not_recorded(
    timeout: float | None, threads: bool, error: type[BaseException]
) -> None:
    tools = Tools(threads=threads)

    @tools.add("api", timeout=timeout)
    def interrupt() -> None:
        raise error

    for run in (run_sync, run_async):
        storage = MemoryStorage()
        with pytest.raises(error):
            run(tools, one("interrupt"), storage)
        assert FlowExecutor(storage).history_sync("t") == []


def barred(parties: int) -> Callable[..., int]:
    barrier = threading.Barrier(parties)

    def meet(n: int) -> int:
        barrier.wait(30)
        return n

    return meet


@pytest.mark.parametrize(("threads", "timeout"), [(True, None), (False, 30.0), (True, 30.0)])
def test_plain_functions_of_one_list_run_at_the_same_time_in_threads(threads: bool, timeout: float | None) -> None:
    tools = Tools(threads=threads)
    tools.add("api", barred(40), name="meet", timeout=timeout)

    def workflow() -> Flow:
        return (yield [tool("api", "meet", {"n": n}) for n in range(40)])

    assert run_async(tools, workflow) == list(range(40))


def test_plain_functions_run_in_the_executors_thread_unless_asked() -> None:
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    async def where_async() -> bool:
        return where()

    for threads, run, expected in (
        (False, run_sync, [True, True]),
        (False, run_async, [True, True]),
        (True, run_sync, [True, True]),
        (True, run_async, [False, True]),
    ):
        tools = Tools(threads=threads)
        tools.add("api", where)
        tools.add("api", where_async)
        assert [run(tools, one("where")), run(tools, one("where_async"))] == expected


@given(
    kinds=st.lists(st.sampled_from(["plain", "plain_limited", "later", "later_limited"]), min_size=1, max_size=5),
    threads=st.booleans(),
    gathered=st.booleans(),
    run=st.sampled_from([run_sync, run_async]),
)
def test_every_tool_sees_its_own_key(kinds: list[str], threads: bool, gathered: bool, run: Run) -> None:
    tools = Tools(threads=threads)

    def plain() -> Any:
        return current().key

    async def later() -> Any:
        before = current()
        if run is run_async:
            await asyncio.sleep(0)
        assert current() == before
        return before.key

    tools.add("api", plain)
    tools.add("api", plain, name="plain_limited", timeout=30)
    tools.add("api", later)
    tools.add("api", later, name="later_limited", timeout=30)

    def workflow() -> Flow:
        if gathered:
            return (yield [tool("api", kind) for kind in kinds])
        answers = []
        for kind in kinds:
            answer = yield tool("api", kind)
            answers.append(answer)
        return answers

    seen = [key.split(":") for key in run(tools, workflow)]
    assert [(id, n) for id, _, n in seen] == [
        ("t", f"{number + 1}.0" if gathered else str(number)) for number in range(len(kinds))
    ]
    assert len({run for _, run, _ in seen}) == 1


def test_importing_it_and_calling_a_tool_imports_nothing_slow() -> None:
    code = """
import sys
from sequential.tools import Tools
tools = Tools(threads=True)
@tools.add("api", timeout=5)
async def later(n):
    return n
@tools.add("api")
def user(n):
    return n
assert tools("api", "user", {"n": 1}) == 1
tools("api", "later", {"n": 1}).close()
slow = {"asyncio", "inspect", "difflib", "concurrent", "threading", "logging"}
assert not slow & {name.partition(".")[0] for name in sys.modules}, slow & set(sys.modules)
"""
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
