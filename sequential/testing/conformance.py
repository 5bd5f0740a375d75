"""What a storage must do, as test classes for pytest: derive one, write ``make``, run.

A storage of five methods::

    class TestMyStorage(StorageTests):
        def make(self):
            return MyStorage()

A Journal runs `sequential.testing.JournalTests`, which has these among them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Any, TypeVar

from ..blocking import Maybe, settle
from ..errors import NotEncodable
from ..executor import FlowExecutor
from ..five import journal_for
from ..requests import again, save, sleep, tool, version, wait
from ..setup import Paused
from .crash import count_crash_points

T = TypeVar("T")


def _nest(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**80,
    0.1,
    1e308,
    5e-324,
    "",
    "text",
    "\x00 \n \u2028 \U0001f600 é",
    -(10**400),
    -0.0,
    1.7976931348623157e308,
    _nest(400),
    [],
    {},
    [[[]], {"": None}],
    {"b": 1, "a": [1, 2.5, None, False, {"deep": ["x"]}]},
    "x" * 2_000_000,
    ["y" * 100] * 20_000,
)
"""JSON of every kind and size; what goes in must come out."""


class StorageSuite(ABC):
    """An empty storage for each test, and a way to ask it, be it plain or ``async``."""

    @abstractmethod
    def make(self) -> Maybe[Any]:
        """Return an empty storage; may be ``async``."""

    def another(self, storage: Any) -> Maybe[Any]:
        """Return a second handle on the same data, as another process would have; by default the same one."""
        return storage

    def discard(self, storage: Any) -> Maybe[None]:  # noqa: B027 - to be overridden by those who need it
        """Release what `make` has acquired; by default nothing."""

    def setup_method(self) -> None:
        """Make the storage."""
        self.runner = asyncio.Runner()
        self.storage: Any = self.ask(self.make)
        journal_for(self.storage)  # says which methods are missing

    def teardown_method(self) -> None:
        """Discard it."""
        self.ask(self.discard, self.storage)
        self.runner.close()

    def ask(self, method: Callable[..., Maybe[T]], *arguments: Any) -> T:
        """Call a method, plain or ``async``, to its end."""

        async def call() -> T:
            return await settle(method(*arguments))

        return self.runner.run(call())

    def together(self, *calls: Callable[[], Any]) -> list[Any]:
        """Make calls at the same time, plain ones in threads of their own; an exception is an outcome."""
        ready = Barrier(len(calls))

        def begin(one: Callable[[], Any]) -> Any:
            ready.wait()  # or the first would be done before the last has its thread
            return one()

        async def call_all(threads: ThreadPoolExecutor) -> list[Any]:
            async def call(one: Callable[[], Any]) -> Any:
                return await settle(await asyncio.get_running_loop().run_in_executor(threads, begin, one))

            return await asyncio.gather(*(call(one) for one in calls), return_exceptions=True)

        with ThreadPoolExecutor(len(calls)) as threads:
            return self.runner.run(call_all(threads))


class StorageTests(StorageSuite):
    """The five methods, and workflows run over nothing but them.

    For pytest: derive a class whose name begins with ``Test`` and write ``make``::

        class TestMyStorage(StorageTests):
            def make(self):
                return MyStorage()
    """

    steps = 3
    """How many calls the workflow makes that dies at every point: fewer where each request takes its time."""

    def test_an_unknown_id_has_no_state(self) -> None:
        assert self.ask(self.storage.get, "nobody") is None

    def test_the_last_state_that_was_set_is_the_one_kept(self) -> None:
        for step in (1, 2, 10, 3):
            self.ask(self.storage.set, "one", {"step": step})
            assert self.ask(self.storage.get, "one") == {"step": step}

    def test_every_value_comes_back_as_it_went_in(self) -> None:
        for step, value in enumerate(_VALUES):
            self.ask(self.storage.set_result, "one", step, value)
            self.ask(self.storage.set, "one", {"step": step + 1})
        for step, value in enumerate(_VALUES):
            found = self.ask(self.storage.get_result, "one", step)
            assert _strict(found) == _strict(value), f"step {step}: {found!r:.100} instead of {value!r:.100}"

    def test_what_is_not_json_is_refused_and_nothing_written(self) -> None:
        flow = FlowExecutor(_Five(self.storage), call=lambda *_: {"lone": ["\ud800"]})
        with suppress(NotEncodable):
            self.runner.run(flow.execute(workflow, "one", {"of": 1}))
        assert self.ask(self.storage.get, "one") is None

    def test_a_result_may_come_before_any_state(self) -> None:
        self.ask(self.storage.set_result, "one", 0, {"early": True})
        assert self.ask(self.storage.get_result, "one", 0) == {"early": True}

    def test_a_second_result_replaces_the_first(self) -> None:
        for value in ("first", "second"):
            self.ask(self.storage.set_result, "one", 0, value)
        assert self.ask(self.storage.get_result, "one", 0) == "second"

    def test_executions_do_not_see_each_other(self) -> None:
        for id in ("a", "a:0", "a.b", "A", "a-1", "a~1", "@"):
            self.ask(self.storage.set_result, id, 0, f"of {id}")
            self.ask(self.storage.set, id, {"step": len(id)})
        self.ask(self.storage.delete, "a")
        assert self.ask(self.storage.get, "a") is None
        for id in ("a:0", "a.b", "A", "a-1", "a~1", "@"):
            assert self.ask(self.storage.get, id) == {"step": len(id)}
            assert self.ask(self.storage.get_result, id, 0) == f"of {id}"

    def test_deleting_is_no_error_twice_and_leaves_a_fresh_start(self) -> None:
        self.ask(self.storage.set_result, "one", 0, "a result that must go too")
        self.ask(self.storage.set, "one", {"step": 5})
        for _ in range(2):
            self.ask(self.storage.delete, "one")
        assert self.ask(self.storage.get, "one") is None
        left: Any = None
        with suppress(Exception):  # how a storage says that there is none is its own affair
            left = self.ask(self.storage.get_result, "one", 0)
        assert left is None, "the result outlived its execution"
        self.ask(self.storage.set, "one", {"step": 1})
        assert self.ask(self.storage.get, "one") == {"step": 1}

    def test_a_workflow_runs_over_the_five_methods(self) -> None:
        five = _Five(self.storage)
        flow = FlowExecutor(five, call=echo)
        seen: list[Any] = []
        while len(seen) < FEW_POINTS and (not seen or isinstance(seen[-1], Paused)):
            seen.append(self.runner.run(flow.execute(workflow, "one", {"of": 3})))
        assert seen == [{"paused": "one", "step": step} for step in range(4)] + [_RETURNED]
        assert self.ask(self.storage.get, "one") is None

    def test_a_workflow_survives_death_at_any_point(self) -> None:
        points = self.runner.run(count_crash_points(workflow, {"of": self.steps}, echo, _Five(self.storage)))
        assert points > FEW_POINTS * self.steps / 3


class _Five:
    """A Journal's five methods, and nothing else of it."""

    def __init__(self, storage: Any) -> None:
        self.get, self.set, self.delete = storage.get, storage.set, storage.delete
        self.get_result, self.set_result = storage.get_result, storage.set_result


FEW_POINTS = 30
"""Less than a workflow of a few steps has: that many were tried, or the kit is broken."""


def workflow(input: dict[str, int]) -> Generator[Any, Any, Any]:
    """Ask for as many tools as the input says, then pause."""
    got: list[Any] = []
    for number in range(input["of"]):
        got.append((yield tool("conformance", "echo", {"number": number, "so far": len(got)})))
    yield save()
    return got


def every_request(input: dict[str, Any]) -> Generator[Any, Any, Any]:
    """Ask for one of everything, then begin anew and ask for some of it again."""
    got: list[Any] = [(yield [tool("conformance", "echo", number) for number in range(3)])]
    got.append((yield wait("go")))
    if input["round"] > 1:
        return input["got"] + got
    got += [(yield []), (yield version())]
    yield sleep(60)
    got.append((yield wait("never", timeout=60)))
    yield save()
    got.append((yield tool("conformance", "echo", "once", once=True)))
    got.append((yield [tool("conformance", "echo", "first", once=True), tool("conformance", "echo", "second")]))
    return again({"round": 2, "got": got})


_RETURNED = [{"number": 0, "so far": 0}, {"number": 1, "so far": 1}, {"number": 2, "so far": 2}]


def echo(_category: str, _name: str, input: Any) -> Any:
    """Return the input."""
    return input


def _strict(value: Any) -> str:
    """Tell 1 from 1.0 and from True, and one order of keys from another."""
    return repr(value)
