"""What each request means beyond the plain tool call: gather, sleep, wait, once, again; and cancel, fork and list."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from sequential import (
    AlreadyEnded,
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
    UnknownExecution,
    UnknownTool,
    again,
    current,
    save,
    sleep,
    tool,
    wait,
)
from sequential.setup import GRACE
from sequential.storage import Journal, Record, Result
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock, crash_points
from tests.support import AsyncJournal, PlainStorage, echo

Flow = Generator[Any, Any, Any]
DAY = 86_400.0


class Dies(BaseException):
    """The process dies within a tool."""


class Counting(MemoryStorage):
    """Counts what is written, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: Counter[str] = Counter()

    def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        super().commit(record, token, result, **signal)
        self.writes["commit"] += 1

    def save(self, record: Record, result: Result) -> None:
        super().save(record, result)
        self.writes["save"] += 1


def status_of(flow: FlowExecutor, id: str) -> Any:
    status = flow.status_sync(id)
    assert status is not None
    return status


def dies_at(*names: str) -> Callable[..., Any]:
    left = list(names)

    def call(category: str, name: str, input: Any) -> Any:
        if name in left:
            left.remove(name)
            raise Dies
        return name

    return call


class TestGather:
    def test_each_call_takes_a_step_of_its_own(self) -> None:
        def workflow() -> Flow:
            first = yield [tool("api", "a", 1), tool("api", "b", 2)]
            return [first, (yield tool("api", "c", 3))]

        flow = FlowExecutor(MemoryStorage(), call=lambda _, name, input: [name, input, current().step])
        assert flow.execute_sync(workflow, "g") == {"paused": "g", "step": 1}
        assert [(step["step"], step["asked"]) for step in flow.history_sync("g")] == [
            (0, "tool api.a"),
            (1, "tool api.b"),
        ]
        assert flow.execute_sync(workflow, "g") == {"paused": "g", "step": 2}
        assert flow.execute_sync(workflow, "g") == [[["a", 1, 0], ["b", 2, 1]], ["c", 3, 2]]

    def test_an_empty_one_is_answered_at_once_and_takes_no_step(self) -> None:
        def workflow() -> Flow:
            return [(yield []), (yield ())]

        storage = MemoryStorage()
        assert FlowExecutor(storage, call=echo).execute_sync(workflow, "g") == [[], []]

    def test_an_error_is_a_value_in_the_list(self) -> None:
        def workflow() -> Flow:
            return (yield (tool("api", "a"), tool("api", "bad"), tool("api", "b")))

        def call(category: str, name: str, input: Any) -> Any:
            if name == "bad":
                raise ValueError("no")
            return name

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        assert flow.execute_sync(workflow) == ["a", {"__error": "no"}, "b"]

    def test_a_hundred_branches_are_one_invocation_and_one_update_of_the_record(self) -> None:
        def workflow() -> Flow:
            return (yield [tool("api", "n", number) for number in range(100)])

        storage, events = Counting(), list[Event]()
        flow = FlowExecutor(storage, call=lambda *call: call[2], observe=events.append)
        assert flow.execute_sync(workflow, "g") == {"paused": "g", "step": 99}
        assert storage.writes == {"save": 99, "commit": 1}
        assert [event.step for event in events if event.kind == "called"] == list(range(100))
        assert [event.step for event in events if event.kind == "committed"] == list(range(1, 101))
        assert flow.execute_sync(workflow, "g") == list(range(100))

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_a_crash_in_the_midst_repeats_only_what_was_not_finished(self, asynchronous: bool) -> None:
        def workflow() -> Flow:
            yield tool("api", "first")
            return (yield [tool("api", name) for name in "abcd"])

        performed: Counter[str] = Counter()
        inner = dies_at("c")

        def call(category: str, name: str, input: Any) -> Any:
            performed[name] += 1
            return inner(category, name, input)

        async def async_call(*call_: Any) -> Any:
            return call(*call_)

        clock, storage = FakeClock(), MemoryStorage()
        flow = FlowExecutor(storage, call=async_call if asynchronous else call, clock=clock, budget=math.inf)
        with pytest.raises(Dies):
            flow.execute_sync(workflow, "g")
        assert flow.execute_sync(workflow, "g") == list("abcd")
        assert performed == {"first": 1, "a": 1, "b": 1, "c": 2, "d": 1}

    def test_async_tools_run_together_and_are_saved_as_they_finish(self) -> None:
        storage, saved, order = MemoryStorage(), list[list[int]](), list[str]()

        def workflow() -> Flow:
            return (yield [tool("api", name) for name in "abc"])

        def steps_saved() -> list[int]:
            record = storage.read("g")
            assert record is not None
            return [result.step for result in storage.results(record, 0, 3)]

        async def main() -> Any:
            events = {name: asyncio.Event() for name in "abc"}
            before = {"a": "b", "b": "c"}

            async def call(category: str, name: str, input: Any) -> Any:
                if name in before:
                    await events[before[name]].wait()
                    while len(steps_saved()) < len(order):  # noqa: ASYNC110 - nothing tells when the store has it
                        await asyncio.sleep(0)
                order.append(f"{name}{current().step}")
                saved.append(steps_saved())
                events[name].set()
                return name

            return await FlowExecutor(storage, call=call, budget=math.inf).execute(workflow, "g")

        assert asyncio.run(main()) == ["a", "b", "c"]
        assert order == ["c2", "b1", "a0"]
        assert saved == [[], [2], [1, 2]]

    @pytest.mark.parametrize("store", [MemoryStorage, AsyncJournal])
    def test_plain_and_async_calls_mix(self, store: Callable[[], Journal]) -> None:
        def workflow() -> Flow:
            return (yield [tool("api", name) for name in ("later", "now", "later", "bad")])

        async def later(name: str) -> Any:
            await asyncio.sleep(0)
            if name == "bad":
                raise KeyError
            return [name, current().step]

        def call(category: str, name: str, input: Any) -> Any:
            return [name, current().step] if name == "now" else later(name)

        flow = FlowExecutor(store(), call=call, budget=math.inf)
        found = asyncio.run(flow.execute(workflow, "g"))
        assert found == [["later", 0], ["now", 1], ["later", 2], {"__error": "KeyError"}]

    def test_a_fenced_gather_cancels_what_runs(self) -> None:
        storage, cancelled = MemoryStorage(), list[str]()

        def workflow() -> Flow:
            yield [tool("api", name) for name in ("quick", "slow")]

        async def call(category: str, name: str, input: Any) -> Any:
            if name == "quick":
                storage.remove("g")
                return name
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(name)
                raise

        with pytest.raises(Fenced):
            asyncio.run(FlowExecutor(storage, call=call).execute(workflow, "g"))
        assert cancelled == ["slow"]

    def test_a_cancelled_invocation_cancels_what_runs_and_gives_the_lease_back(self) -> None:
        storage, began, cancelled = MemoryStorage(), list[str](), list[str]()

        def workflow() -> Flow:
            return (yield [tool("api", name) for name in "ab"])

        async def call(category: str, name: str, input: Any) -> Any:
            began.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(name)

        async def main() -> None:
            task = asyncio.create_task(FlowExecutor(storage, call=call).execute(workflow, "g"))
            while len(began) < 2:  # noqa: ASYNC110 - no event could be told from what runs
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert cancelled == ["a", "b"]
        record = storage.read("g")
        assert record is not None
        assert (record.lease, record.step) == (0.0, 0)

    def test_an_error_of_ours_is_not_recorded(self) -> None:
        def workflow() -> Flow:
            return (yield [tool("api", name) for name in ("good", "unknown", "good")])

        known = False

        async def call(category: str, name: str, input: Any) -> Any:
            if name == "unknown" and not known:
                raise UnknownTool("api.unknown", "nothing is")
            return name

        storage = MemoryStorage()
        flow = FlowExecutor(storage, call=call, budget=math.inf)
        with pytest.raises(UnknownTool, match=r"no tool 'api.unknown' is registered: nothing is"):
            asyncio.run(flow.execute(workflow, "g"))
        known = True
        assert asyncio.run(flow.execute(workflow, "g")) == ["good", "unknown", "good"]

    def test_what_was_called_off_before_it_ran_is_not_interrupted(self) -> None:
        """The hook knows only of the last call that there is no such tool."""

        def workflow() -> Flow:
            names = ("coroutine", "plain", "future", "unknown")
            return (yield [tool("api", name, once=name != "plain") for name in names])

        async def later(name: str) -> str:
            return name

        cancelled: list[bool] = []
        registered = False

        def call(category: str, name: str, input: Any) -> Any:
            if name == "unknown" and not registered:
                raise UnknownTool("api.unknown", "nothing is")
            if name != "future":
                return later(name)
            future = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda future: cancelled.append(future.cancelled()))
            return future

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        with pytest.raises(UnknownTool):
            asyncio.run(flow.execute(workflow, "g"))
        assert cancelled == [True]
        registered = True
        found = asyncio.run(flow.execute(workflow, "g"))
        assert found == ["coroutine", "plain", {"__error": "interrupted"}, "unknown"]

    def test_nothing_is_left_behind_when_the_coroutine_is_closed(self) -> None:
        def workflow() -> Flow:
            yield [tool("api", name) for name in "ab"]

        async def later() -> None:
            raise AssertionError

        async def main() -> None:
            flow = FlowExecutor(Suspending(), call=lambda _, name, __: later() if name == "a" else 1)
            invocation = flow.execute(workflow, "g")
            while not suspended:
                invocation.send(None)
            invocation.close()

        suspended: list[int] = []

        class Suspending(AsyncJournal):
            async def save(self, record: Record, result: Result) -> None:
                suspended.append(result.step)
                await asyncio.sleep(0)

        asyncio.run(main())
        assert suspended == [1]

    def test_the_lease_is_kept_while_async_calls_run(self) -> None:
        class Watched(AsyncJournal):
            renewals = 0

            async def commit(
                self, record: Record, token: int, result: Result | None = None, **signal: str | None
            ) -> None:
                self.renewals += record.token == token
                await super().commit(record, token, result, **signal)

        storage = Watched()

        def workflow() -> Flow:
            return (yield [tool("api", name) for name in "ab"])

        async def call(category: str, name: str, input: Any) -> Any:
            for _ in range(20_000):
                if storage.renewals >= 3:
                    return name
                await asyncio.sleep(0.001)
            raise AssertionError

        flow = FlowExecutor(storage, call=call, lease=0.06, budget=math.inf)
        assert asyncio.run(flow.execute(workflow, "g")) == ["a", "b"]

    def test_on_five_methods_a_crash_repeats_the_whole(self) -> None:
        def workflow() -> Flow:
            return (yield [tool("api", name) for name in "ab"])

        storage, performed = PlainStorage(), Counter[str]()
        inner = dies_at("b")

        def call(category: str, name: str, input: Any) -> Any:
            performed[name] += 1
            return inner(category, name, input)

        flow = FlowExecutor(storage, call=call)
        with pytest.raises(Dies):
            flow.execute_sync(workflow, "g")
        assert storage.states == {}
        assert flow.execute_sync(workflow, "g") == {"paused": "g", "step": 1}
        assert storage.states == {"g": {"step": 2}}
        assert storage.writes[-2:] == [("set_result", "g", 1, "b"), ("set", "g", {"step": 2})]
        assert flow.execute_sync(workflow, "g") == ["a", "b"]
        assert performed == {"a": 2, "b": 2}

    def test_on_five_methods_there_is_no_lease_to_keep(self) -> None:
        def workflow() -> Flow:
            return (yield [tool("api", name) for name in "ab"])

        async def call(category: str, name: str, input: Any) -> Any:
            await asyncio.sleep(0)
            return name

        flow = FlowExecutor(PlainStorage(), call=call, budget=math.inf, lease=1e-9)
        assert asyncio.run(flow.execute(workflow, "g")) == ["a", "b"]

    def test_another_call_in_the_list_is_diverged(self) -> None:
        names = ["a", "b", "c"]

        def workflow() -> Flow:
            yield [tool("api", name) for name in names]
            return (yield save())

        flow = FlowExecutor(MemoryStorage(), call=dies_at("c"))
        with pytest.raises(Dies):
            flow.execute_sync(workflow, "g")
        names[1] = "x"  # b was saved ahead of the record
        with pytest.raises(Diverged) as caught:
            flow.execute_sync(workflow, "g")
        assert (caught.value.step, caught.value.recorded, caught.value.asked) == (1, "tool api.b", "tool api.x")
        names[1] = "b"
        assert flow.execute_sync(workflow, "g") == {"paused": "g", "step": 2}
        names[2] = "x"
        with pytest.raises(Diverged, match=r"'tool api.c' at step 2, but its workflow now asks for 'tool api.x'"):
            flow.execute_sync(workflow, "g")

    @pytest.mark.parametrize(
        "wrong",
        [
            [[tool("a", "b")]], [tool("a", "b"), save()], [sleep(1)], [None], (tool("a", "b"), [tool("a", "b")]), [{}],
            [wait("x")], {tool("a", "b")["__tool"][0]},
        ],
    )  # fmt: skip
    def test_a_list_of_anything_else_is_refused(self, wrong: Any) -> None:
        def workflow() -> Flow:
            yield wrong

        with pytest.raises(InvalidYield, match=r"a list of nothing but tool\(...\)"):
            FlowExecutor(MemoryStorage(), call=echo).execute_sync(workflow)

    def test_a_list_that_holds_itself_is_refused(self) -> None:
        endless: list[Any] = []
        endless.append(endless)

        def workflow() -> Flow:
            yield endless

        with pytest.raises(InvalidYield):
            FlowExecutor(MemoryStorage(), call=echo).execute_sync(workflow)

    def test_replay_crosses_pages_within_a_list(self, tmp_path: Path) -> None:
        def workflow() -> Flow:
            first = yield [tool("api", "n", number) for number in range(5)]
            yield save()
            return [len(each) for each in first]

        with_pages = SQLiteStorage(tmp_path / "flows.db")
        flow = FlowExecutor(with_pages, call=lambda *call: "x" * 700_000 * (1 + call[2] % 2), budget=math.inf)
        assert flow.execute_sync(workflow, "g") == {"paused": "g", "step": 5}
        assert flow.execute_sync(workflow, "g") == [700_000, 1_400_000, 700_000, 1_400_000, 700_000]
        with_pages.close()


class TestSleep:
    def test_nothing_happens_before_its_time(self) -> None:
        def workflow() -> Flow:
            yield tool("api", "before")
            yield sleep(30 * DAY)
            return (yield tool("api", "after"))

        clock, rung, events = FakeClock(), list[str](), list[Event]()
        flow = FlowExecutor(
            MemoryStorage(), call=echo, resume=rung.append, workflows=[workflow], clock=clock, observe=events.append
        )
        flow.execute_sync(workflow, "s")
        asleep = flow.resume_sync("s")
        assert (asleep, asleep.reason) == ({"paused": "s", "step": 0}, "sleep")
        assert rung == ["s"]
        wake = clock.now + 30 * DAY
        status = status_of(flow, "s")
        assert (status.status, status.due, status.busy, status.step) == ("sleeping", wake, False, 1)
        clock.advance(29 * DAY)
        events.clear()
        for _ in range(3):
            assert flow.resume_sync("s").reason == "sleep"
            assert flow.sweep_sync() == []
        assert [event.kind for event in events] == ["claimed", "replayed", "paused"] * 3
        assert status_of(flow, "s").due == wake
        clock.now = wake
        assert flow.sweep_sync() == rung[1:] == ["s"]
        assert flow.resume_sync("s") == {"paused": "s", "step": 1}
        assert flow.resume_sync("s") == {"paused": "s", "step": 2}
        assert flow.resume_sync("s") == {}

    def test_it_needs_no_callback_but_a_sweep_with_any_budget(self) -> None:
        def workflow() -> Flow:
            yield sleep(5)
            yield sleep(0.5)
            return "awake"

        clock = FakeClock()
        flow = FlowExecutor(MemoryStorage(), workflows=[workflow], clock=clock, budget=math.inf)
        assert flow.execute_sync(workflow, "s") == {"paused": "s", "step": -1}
        clock.advance(5)
        assert flow.sweep_sync() == ["s"]
        assert flow.resume_sync("s") == {"paused": "s", "step": 0}
        clock.advance(0.5)
        assert flow.resume_sync("s") == "awake"

    @pytest.mark.parametrize("seconds", [0, -1, -1e12, 0.0])
    def test_none_at_all_is_no_pause(self, seconds: float) -> None:
        def workflow() -> Flow:
            return [(yield sleep(seconds))]

        flow = FlowExecutor(MemoryStorage(), budget=math.inf)
        assert flow.execute_sync(workflow) == [None]

    @pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, "5", None, 2e12, 10**400])
    def test_no_time_at_all_is_refused(self, seconds: Any) -> None:
        def workflow() -> Flow:
            yield sleep(seconds)

        with pytest.raises(InvalidYield, match=r"is not a request: yield sleep\(seconds\)"):
            FlowExecutor(MemoryStorage()).execute_sync(workflow)

    def test_a_fast_clock_elsewhere_does_not_put_off_the_waking(self) -> None:
        def workflow() -> Flow:
            yield sleep(1000)
            return "awake"

        clock, fast, storage = FakeClock(), FakeClock(), MemoryStorage()
        flow = FlowExecutor(storage, workflows=[workflow], clock=clock, budget=math.inf)
        flow.execute_sync(workflow, "s")
        wake = status_of(flow, "s").due
        fast.now = wake + 600
        assert FlowExecutor(storage, clock=fast).sweep_sync() == ["s"]
        assert flow.resume_sync("s").reason == "sleep"
        status = status_of(flow, "s")
        assert (status.due, status.attempts) == (wake, 0)

    def test_what_was_asleep_when_it_was_parked_wakes_when_it_would_have(self) -> None:
        broken = True

        def workflow() -> Flow:
            yield tool("api", "other" if broken and asleep else "same")
            yield sleep(1000)
            return "awake"

        asleep, clock = False, FakeClock()
        flow = FlowExecutor(MemoryStorage(), call=echo, workflows=[workflow], clock=clock, budget=math.inf)
        flow.execute_sync(workflow, "s")
        asleep = True
        clock.advance(1000)
        with pytest.raises(Diverged):
            flow.resume_sync("s")
        assert (status_of(flow, "s").status, status_of(flow, "s").due) == ("diverged", None)
        broken = False
        assert flow.resume_sync("s") == "awake"

    def test_cleanup_that_fails_when_it_falls_asleep_is_told(self) -> None:
        def workflow() -> Flow:
            try:
                yield sleep(5)
            finally:
                raise ValueError("on leaving")

        flow = FlowExecutor(MemoryStorage())
        with pytest.raises(ValueError, match="on leaving"):
            flow.execute_sync(workflow, "s")
        assert status_of(flow, "s").status == "failed"


def approval() -> Flow:
    yield tool("api", "ask")
    answer = yield wait("approval", timeout=30 * DAY)
    return {"answer": answer}


class TestWait:
    def make(self, storage: Journal | None = None, **options: Any) -> tuple[FlowExecutor, FakeClock, list[str]]:
        clock, rung = FakeClock(), list[str]()
        given: dict[str, Any] = {"call": echo, "resume": rung.append, "workflows": [approval, forever, twice]}
        options = given | options
        return FlowExecutor(storage or MemoryStorage(), clock=clock, budget=math.inf, **options), clock, rung

    def test_a_signal_answers_and_rings(self) -> None:
        flow, clock, rung = self.make()
        waiting = flow.execute_sync(approval, "w")
        assert (waiting, waiting.reason) == ({"paused": "w", "step": 0}, "wait")
        status = status_of(flow, "w")
        assert (status.status, status.waits, status.due) == ("waiting", "approval", clock.now + 30 * DAY)
        assert rung == []
        assert flow.signal_sync("w", "approval", {"by": "Ann"}) is True
        assert rung == ["w"]
        assert flow.resume_sync("w") == {"answer": {"by": "Ann"}}

    def test_a_lost_ring_after_a_signal_is_rung_again_by_the_sweep(self) -> None:
        flow, clock, _ = self.make()
        flow.execute_sync(forever, "w")
        assert status_of(flow, "w").due is None
        clock.advance(1000 * DAY)
        assert flow.sweep_sync() == []
        flow.signal_sync("w", "go", 1)
        assert flow.sweep_sync() == ["w"]
        assert flow.resume_sync("w") == 1

    def test_the_timeout_answers_when_nobody_does(self) -> None:
        flow, clock, rung = self.make()
        flow.execute_sync(approval, "w")
        clock.advance(30 * DAY - 1)
        assert flow.sweep_sync() == []
        assert flow.resume_sync("w").reason == "wait"
        clock.advance(1)
        assert flow.sweep_sync() == rung == ["w"]
        assert flow.resume_sync("w") == {"answer": {"__error": "timeout"}}

    def test_none_is_a_payload_and_no_timeout(self) -> None:
        flow, clock, _ = self.make()
        flow.execute_sync(approval, "w")
        flow.signal_sync("w", "approval")
        clock.advance(31 * DAY)
        assert flow.resume_sync("w") == {"answer": None}

    def test_a_signal_before_the_wait_is_kept_and_the_first_one_wins(self) -> None:
        flow, _, rung = self.make()
        flow.start_sync(approval, None, "w")
        assert flow.signal_sync("w", "approval", "first") is True
        assert flow.signal_sync("w", "approval", "second") is False
        assert flow.signal_sync("w", "other", "ignored") is True
        assert rung == ["w"]  # by start alone: nothing waits yet
        assert flow.resume_sync("w") == {"answer": "first"}

    def test_a_late_second_signal_learns_that_it_is_late(self) -> None:
        def workflow() -> Flow:
            first = yield wait("approval")
            yield save()
            return first

        flow, _, _ = self.make()
        flow.execute_sync(workflow, "w")
        assert flow.signal_sync("w", "approval", "yes") is True
        assert flow.execute_sync(workflow, "w").reason == "save"
        assert flow.signal_sync("w", "approval", "no") is False
        assert flow.execute_sync(workflow, "w") == "yes"

    def test_a_name_is_open_again_once_it_is_waited_for_again(self) -> None:
        flow, _, _ = self.make()
        flow.execute_sync(twice, "w")
        for payload in ("one", "two"):
            assert flow.signal_sync("w", "message", payload) is True
            assert flow.signal_sync("w", "message", "too many") is False
            last = flow.resume_sync("w")
        assert last == ["one", "two"]

    def test_no_execution_gets_the_signal_of_another(self) -> None:
        flow, _, _ = self.make()
        for id in ("a", "b"):
            flow.execute_sync(forever, id)
        flow.signal_sync("a", "go", "for a")
        assert flow.resume_sync("b").reason == "wait"
        assert flow.resume_sync("a") == "for a"
        flow.signal_sync("b", "go", "for b")
        flow.delete_sync("b")
        assert flow.execute_sync(forever, "b").reason == "wait"

    def test_a_signal_while_the_invocation_runs_is_not_missed(self) -> None:
        """It comes after the store was asked, and before the record says that the execution waits."""
        rung: list[str] = []

        class Meanwhile(MemoryStorage):
            def received(self, record: Record, name: str) -> bytes | None:
                found = super().received(record, name)
                if found is None and not rung:
                    assert other.signal_sync("w", "go", "just in time") is True
                return found

        storage = Meanwhile()
        other = FlowExecutor(storage)
        flow, clock, _ = self.make(storage, resume=rung.append)
        assert flow.execute_sync(forever, "w").reason == "wait"
        assert rung == ["w"]
        assert status_of(flow, "w").due == clock.now
        assert flow.resume_sync("w") == "just in time"

    def test_a_signal_while_a_spurious_resume_looks_is_not_missed(self) -> None:
        rung: list[str] = []

        class Meanwhile(MemoryStorage):
            spurious = False

            def received(self, record: Record, name: str) -> bytes | None:
                found = super().received(record, name)
                if self.spurious and found is None:
                    assert other.signal_sync("w", "go", "just in time") is True
                return found

        storage = Meanwhile()
        other = FlowExecutor(storage)
        flow, _, _ = self.make(storage, resume=rung.append)
        flow.execute_sync(forever, "w")
        storage.spurious = True
        assert flow.resume_sync("w").reason == "wait"
        assert rung == ["w"]
        assert flow.resume_sync("w") == "just in time"

    def test_a_fence_at_the_wait_is_still_a_fence(self) -> None:
        class Removed(MemoryStorage):
            def received(self, record: Record, name: str) -> bytes | None:
                self.remove(record.id)
                return super().received(record, name)

        flow, _, _ = self.make(Removed())
        with pytest.raises(Fenced):
            flow.execute_sync(forever, "w")

    def test_a_failed_look_is_made_up_for_by_the_sweep(self) -> None:
        class Away(MemoryStorage):
            away = False

            def received(self, record: Record, name: str) -> bytes | None:
                if self.away:
                    raise OSError("away")
                return super().received(record, name)

        storage = Away()
        flow, clock, _ = self.make(storage)
        flow.execute_sync(forever, "w")
        storage.away = True
        with pytest.raises(OSError, match="away"):
            flow.resume_sync("w")
        assert status_of(flow, "w").due == clock.now + GRACE
        storage.away = False
        clock.advance(GRACE)
        assert flow.sweep_sync() == ["w"]
        assert flow.resume_sync("w").reason == "wait"
        assert status_of(flow, "w").due is None

    def test_a_signal_for_what_cannot_get_one_is_an_error(self) -> None:
        flow, _, _ = self.make(retain=True)
        with pytest.raises(UnknownExecution, match="there is no execution 'nobody' in the store"):
            flow.signal_sync("nobody", "approval")
        flow.execute_sync(forever, "w")
        flow.signal_sync("w", "go")
        flow.resume_sync("w")
        with pytest.raises(AlreadyEnded, match=r"execution 'w' is finished, and nothing more .* use another id"):
            flow.signal_sync("w", "go")
        with pytest.raises(InvalidName, match="'a b' cannot be the name of a signal: use 1 to 200 characters of A-Z"):
            flow.signal_sync("w", "a b")
        with pytest.raises(InvalidId):
            flow.signal_sync("a b", "go")
        with pytest.raises(NotEncodable, match="the payload of signal 'go' cannot be stored: value is a set"):
            flow.signal_sync("w", "go", {1})

    @pytest.mark.parametrize("wrong", [wait(""), wait("a b"), wait("x", math.nan), wait("x", "5"), {"__wait": "x"}])  # type: ignore[arg-type]
    def test_a_wait_for_nothing_is_refused(self, wrong: Any) -> None:
        def workflow() -> Flow:
            yield wrong

        with pytest.raises(InvalidYield, match=r"wait\(name, timeout\) with a name of letters, digits and _ . : @ ~ -"):
            FlowExecutor(MemoryStorage()).execute_sync(workflow)

    def test_observers_are_told(self) -> None:
        events: list[Event] = []
        flow, _, _ = self.make(observe=events.append)
        flow.execute_sync(forever, "w")
        flow.signal_sync("w", "go")
        assert [(event.kind, event.detail) for event in events[-3:]] == [
            ("paused", "wait"),
            ("signalled", "go"),
            ("rang", ""),
        ]


def forever() -> Flow:
    return (yield wait("go"))


def twice() -> Flow:
    return [(yield wait("message")), (yield wait("message"))]


class TestOnce:
    def workflow(self) -> Flow:
        return (yield tool("pay", "card", {"amount": 5}, once=True))

    def test_it_is_called_once_and_no_more(self) -> None:
        calls: list[str] = []

        def call(category: str, name: str, input: Any) -> Any:
            calls.append(current().key)
            raise Dies

        flow = FlowExecutor(MemoryStorage(), call=call)
        with pytest.raises(Dies):
            flow.execute_sync(self.workflow, "o")
        assert flow.execute_sync(self.workflow, "o") == {"paused": "o", "step": 0}
        assert flow.execute_sync(self.workflow, "o") == {"__error": "interrupted"}
        assert len(calls) == 1

    def test_undisturbed_it_is_like_any_other(self) -> None:
        storage = Counting()
        flow = FlowExecutor(storage, call=lambda *_: "paid")
        flow.execute_sync(self.workflow, "o")
        assert storage.writes == {"save": 1, "commit": 1}
        (step,) = flow.history_sync("o")
        assert (step["asked"], step["error"], step["result"]) == ("tool pay.card", None, "paid")
        assert flow.execute_sync(self.workflow, "o") == "paid"

    @pytest.mark.parametrize("gathered", [False, True])
    def test_what_was_never_started_is_not_interrupted(self, gathered: bool) -> None:
        def workflow() -> Flow:
            request = tool("pay", "card", once=True)
            return (yield [request] if gathered else request)

        registered = False

        def call(category: str, name: str, input: Any) -> Any:
            if not registered:
                raise UnknownTool("pay.card", "nothing is")
            return "paid"

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        with pytest.raises(UnknownTool):
            flow.execute_sync(workflow, "o")
        registered = True
        assert flow.execute_sync(workflow, "o") == (["paid"] if gathered else "paid")

    def test_a_result_that_cannot_be_stored_was_still_a_call(self) -> None:
        flow = FlowExecutor(MemoryStorage(), call=lambda *_: {1, 2}, budget=math.inf)
        with pytest.raises(NotEncodable):
            flow.execute_sync(self.workflow, "o")
        assert flow.execute_sync(self.workflow, "o") == {"__error": "interrupted"}

    def test_in_a_list_only_what_was_started_is_interrupted(self) -> None:
        def workflow() -> Flow:
            return (yield [tool("pay", name, once=name != "b") for name in "abcd"])

        flow = FlowExecutor(MemoryStorage(), call=dies_at("c"), budget=math.inf)
        with pytest.raises(Dies):
            flow.execute_sync(workflow, "o")
        assert flow.execute_sync(workflow, "o") == ["a", "b", {"__error": "interrupted"}, "d"]


class TestAgain:
    def test_each_round_begins_with_an_empty_history_under_the_same_id(self) -> None:
        def workflow(input: dict[str, Any]) -> Flow:
            seen = yield tool("api", "round", input)
            return again({"n": input["n"] + 1}) if input["n"] < 3 else seen

        keys, clock, rung = list[str](), FakeClock(), list[str]()

        def call(category: str, name: str, input: Any) -> Any:
            keys.append(current().key)
            return input["n"] * 10

        flow = FlowExecutor(MemoryStorage(), call=call, resume=rung.append, clock=clock)
        seen = [flow.execute_sync(workflow, "a", {"n": 1}) for _ in range(6)]
        assert seen == [{"paused": "a", "step": step} for step in (0, -1, 0, -1, 0)] + [30]
        assert [pause.reason for pause in seen if isinstance(pause, Paused)] == [
            "tool",
            "budget",
            "tool",
            "budget",
            "tool",
        ]
        assert rung == ["a"] * 5
        assert len(set(keys)) == 3

    def test_with_a_budget_the_rounds_follow_each_other(self) -> None:
        def workflow(input: dict[str, Any]) -> Flow:
            yield tool("api", "round")
            return again({"n": input["n"] + 1}) if input["n"] < 5 else input

        storage = MemoryStorage()
        flow = FlowExecutor(storage, call=echo, budget=math.inf, retain=True)
        assert flow.execute_sync(workflow, "a", {"n": 1}) == {"n": 5}
        assert len(flow.history_sync("a")) == 1
        assert flow.execute_sync(workflow, "a", {"n": 1}) == {"n": 5}
        with pytest.raises(IdInUse):
            flow.execute_sync(workflow, "a", {"n": 2})

    @pytest.mark.parametrize("store", ["memory", "sqlite"])
    def test_a_loop_of_many_rounds_keeps_the_store_small(self, store: str, tmp_path: Path) -> None:
        """On SQLite the benchmarks have as many."""
        rounds = 100_000 if store == "memory" else 2_000

        def workflow(input: dict[str, Any]) -> Flow:
            yield tool("api", "round", {"text": "x" * 50})
            return again({"n": input["n"] + 1}) if input["n"] < rounds else input

        storage = MemoryStorage() if store == "memory" else SQLiteStorage(tmp_path / "f.db", synchronous="NORMAL")
        sizes: list[int] = []

        def call(category: str, name: str, input: Any) -> Any:
            record = storage.read("a")
            assert record is not None
            sizes.append(len(storage.results(record, 0, 99)))
            return "y" * 1000

        flow = FlowExecutor(storage, call=call, budget=math.inf)
        assert flow.execute_sync(workflow, "a", {"n": 1}) == {"n": rounds}
        assert (len(sizes), max(sizes)) == (rounds, 0)
        assert storage.find("", 9) == []
        if isinstance(storage, SQLiteStorage):
            storage.close()
            assert (tmp_path / "f.db").stat().st_size < 200_000

    def test_the_next_round_has_the_version_of_today(self) -> None:
        def workflow(input: dict[str, Any]) -> Flow:
            seen = [*input.get("seen", []), (yield {"__version": True})]
            yield save()
            return again({"seen": seen}) if len(seen) < 2 else seen

        storage = MemoryStorage()
        old, new = (FlowExecutor(storage, version=version, workflows=[workflow]) for version in (1, 2))
        old.execute_sync(workflow, "a")
        assert new.resume_sync("a") == {"paused": "a", "step": -1}
        assert new.resume_sync("a") == {"paused": "a", "step": 0}
        assert old.resume_sync("a") == [1, 2]

    def test_an_early_signal_is_kept_for_the_next_round(self) -> None:
        def workflow(input: dict[str, Any]) -> Flow:
            message = yield wait(f"message-{input['n']}")
            return again({"n": 2}) if input["n"] == 1 else message

        flow = FlowExecutor(MemoryStorage(), budget=math.inf)
        flow.execute_sync(workflow, "a", {"n": 1})
        assert flow.signal_sync("a", "message-2", "early") is True
        assert flow.signal_sync("a", "message-1", "first") is True
        assert flow.execute_sync(workflow, "a") == "early"

    def test_an_input_that_cannot_be_stored_is_told(self) -> None:
        def workflow() -> Flow:
            yield save()
            return again({1})

        flow = FlowExecutor(MemoryStorage())
        flow.execute_sync(workflow, "a")
        with pytest.raises(NotEncodable, match="the next input of execution 'a' cannot be stored: value is a set"):
            flow.execute_sync(workflow, "a")
        assert status_of(flow, "a").status == "failed"

    def test_left_out_the_next_input_is_empty(self) -> None:
        assert again() == {"__again": {}}
        assert again(0) == {"__again": 0}

    def test_yielded_it_is_no_request(self) -> None:
        def workflow() -> Flow:
            yield again()

        with pytest.raises(InvalidYield, match=r"write `return again\(input\)`"):
            FlowExecutor(MemoryStorage()).execute_sync(workflow)


class TestCancel:
    def test_it_never_runs_again(self) -> None:
        def workflow() -> Flow:
            yield tool("api", "a")
            yield tool("api", "b")

        clock, rung, calls = FakeClock(), list[str](), list[str]()

        def call(category: str, name: str, input: Any) -> None:
            calls.append(name)

        flow = FlowExecutor(MemoryStorage(), call=call, resume=rung.append, workflows=[workflow], clock=clock)
        flow.execute_sync(workflow, "c")
        flow.cancel_sync("c")
        flow.cancel_sync("c")
        rung.clear()
        assert flow.resume_sync("c") is None
        with pytest.raises(AlreadyEnded, match="execution 'c' is cancelled"):
            flow.execute_sync(workflow, "c")
        clock.advance(1000 * DAY)
        assert flow.sweep_sync() == []
        assert flow.start_sync(workflow, None, "c") == "c"
        assert (calls, rung) == (["a"], [])
        status = status_of(flow, "c")
        assert (status.status, status.step, status.due) == ("cancelled", 1, None)
        assert len(flow.history_sync("c")) == 1
        with pytest.raises(AlreadyEnded):
            flow.signal_sync("c", "go")
        flow.delete_sync("c")
        assert flow.execute_sync(workflow, "c") == {"paused": "c", "step": 0}

    def test_an_invocation_in_flight_is_fenced_off(self) -> None:
        def workflow() -> Flow:
            yield tool("api", "a")

        started, go_on, errors = threading.Event(), threading.Event(), list[BaseException]()
        storage = MemoryStorage()

        def call(category: str, name: str, input: Any) -> None:
            started.set()
            assert go_on.wait(20)

        def run() -> None:
            try:
                FlowExecutor(storage, call=call, resume=lambda id: errors.append(AssertionError(id))).execute_sync(
                    workflow, "c"
                )
            except Fenced as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(20)
        flow = FlowExecutor(storage)
        flow.cancel_sync("c")
        go_on.set()
        thread.join()
        assert [type(error) for error in errors] == [Fenced]
        assert (status_of(flow, "c").status, status_of(flow, "c").step) == ("cancelled", 0)

    def test_a_commit_at_the_same_moment_is_no_obstacle(self) -> None:
        class Busy(MemoryStorage):
            left = 3

            def read(self, id: str) -> Record | None:
                found = super().read(id)
                if self.left and found is not None:
                    self.left -= 1
                    self.commit(found._replace(token=found.token + 1), found.token)
                return found

        def workflow() -> Flow:
            yield save()

        storage = Busy()
        flow = FlowExecutor(storage)
        flow.execute_sync(workflow, "c")
        flow.cancel_sync("c")
        assert storage.left == 0
        assert status_of(flow, "c").status == "cancelled"

    def test_of_what_has_finished_it_says_so(self) -> None:
        def workflow() -> Flow:
            yield save()

        flow = FlowExecutor(MemoryStorage(), retain=True)
        flow.execute_sync(workflow, "c")
        flow.execute_sync(workflow, "c")
        with pytest.raises(AlreadyEnded, match=r"execution 'c' is finished, .* or delete\('c'\) to begin anew"):
            flow.cancel_sync("c")
        with pytest.raises(UnknownExecution):
            flow.cancel_sync("nobody")

    def test_what_waits_or_sleeps_can_be_cancelled(self) -> None:
        flow = FlowExecutor(MemoryStorage())
        flow.execute_sync(forever, "c")
        flow.cancel_sync("c")
        status = status_of(flow, "c")
        assert (status.status, status.waits) == ("cancelled", None)


def steps(input: dict[str, int]) -> Flow:
    got: list[Any] = []
    got.append((yield tool("api", "a")))
    got += yield [tool("api", "b"), tool("api", "c"), tool("api", "d")]
    got.append((yield tool("api", "e")))
    return got


class TestFork:
    @pytest.mark.parametrize("at", range(6))
    def test_it_starts_with_the_first_results(self, at: int) -> None:
        calls: list[str] = []

        def call(category: str, name: str, input: Any) -> Any:
            calls.append(name)
            return [name, current().id]

        rung: list[str] = []
        storage = MemoryStorage()
        flow = FlowExecutor(storage, call=call, workflows=[steps], retain=True, version=3, budget=math.inf)
        flow.execute_sync(steps, "old", {"n": 1})
        calls.clear()
        ringing = FlowExecutor(storage, resume=rung.append, version=4)
        assert ringing.fork_sync("old", at, "new") == "new"
        assert rung == ["new"]
        status = status_of(flow, "new")
        assert (status.status, status.step, status.workflow) == ("running", at, "steps")
        assert flow.resume_sync("new") == [[name, "old" if index < at else "new"] for index, name in enumerate("abcde")]
        assert calls == list("abcde")[at:]
        assert status_of(flow, "old").value == [[name, "old"] for name in "abcde"]
        assert storage.read("new").version == 3  # type: ignore[union-attr]

    def test_left_out_the_id_is_a_new_one(self) -> None:
        flow = FlowExecutor(MemoryStorage(), call=echo)
        flow.execute_sync(steps, "old")
        assert len({flow.fork_sync("old", 1) for _ in range(3)}) == 3

    def test_what_cannot_be_forked_is_told(self) -> None:
        flow = FlowExecutor(MemoryStorage(), call=echo)
        flow.execute_sync(steps, "old")
        with pytest.raises(UnknownExecution):
            flow.fork_sync("nobody", 0)
        places: list[Any] = [-1, 2, "1", 0.5]
        for at in places:
            with pytest.raises(ValueError, match=f"'old' has 1 recorded steps, so at= is from 0 to that, not {at!r}"):
                flow.fork_sync("old", at)
        with pytest.raises(IdInUse, match="execution 'old' was started with a history of its own"):
            flow.fork_sync("old", 1, "old")
        with pytest.raises(InvalidId):
            flow.fork_sync("old", 1, "a b")

    def test_an_unfinished_copy_is_no_execution(self) -> None:
        class Dying(MemoryStorage):
            dead = False

            def save(self, record: Record, result: Result) -> None:
                if self.dead:
                    raise Dies
                super().save(record, result)

            def remove(self, id: str, held: Record | None = None) -> None:
                if self.dead:
                    raise Dies
                super().remove(id, held)

        storage = Dying()
        flow = FlowExecutor(storage, call=echo, workflows=[steps], clock=FakeClock())
        flow.execute_sync(steps, "old")
        storage.dead = True
        with pytest.raises(Dies):
            flow.fork_sync("old", 1, "new")
        storage.dead = False
        assert status_of(flow, "new").status == "forking"
        assert flow.resume_sync("new") is None
        assert storage.due(math.inf, 9) == [storage.read("old")]
        assert flow.fork_sync("old", 1, "new") == "new"
        assert status_of(flow, "new").status == "running"

    def test_a_closed_coroutine_leaves_an_unfinished_copy(self) -> None:
        suspended: list[int] = []

        class Suspending(AsyncJournal):
            async def save(self, record: Record, result: Result) -> None:
                suspended.append(result.step)
                await asyncio.sleep(0)

        storage = Suspending()
        flow = FlowExecutor(storage, call=echo)

        async def main() -> None:
            await flow.execute(steps, "old")
            fork = flow.fork("old", 1, "new")
            while not suspended:
                fork.send(None)
            fork.close()

        asyncio.run(main())
        assert status_of(FlowExecutor(storage.inner), "new").status == "forking"

    def test_a_failed_copy_is_removed(self) -> None:
        class Full(MemoryStorage):
            def save(self, record: Record, result: Result) -> None:
                raise OSError("full")

        flow = FlowExecutor(Full(), call=echo)
        flow.execute_sync(steps, "old")
        with pytest.raises(OSError, match="full"):
            flow.fork_sync("old", 1, "new")
        assert flow.status_sync("new") is None


def test_executions_are_listed_page_by_page() -> None:
    flow = FlowExecutor(MemoryStorage(), call=echo, clock=FakeClock())
    for number in range(7):
        flow.execute_sync(forever if number % 2 else steps, f"id-{number}")
    assert [status.id for status in flow.list_sync(limit=3)] == ["id-0", "id-1", "id-2"]
    assert [status.id for status in flow.list_sync(after="id-4")] == ["id-5", "id-6"]
    assert [status.id for status in flow.list_sync("waiting")] == ["id-1", "id-3", "id-5"]
    assert [status.id for status in flow.list_sync(workflow="steps", limit=2, after="id-1")] == ["id-2", "id-4"]
    assert flow.list_sync("stuck") == []
    with pytest.raises(
        ValueError, match="there is no status 'Stuck': it is one of cancelled, diverged, failed, finished"
    ):
        flow.list_sync("Stuck")
    several: Any = ["stuck"]
    with pytest.raises(ValueError, match=r"there is no status \['stuck'\]"):
        flow.list_sync(several)
    names: list[Any] = [steps, 5, "\ud800", "a\0"]
    for name in names:
        with pytest.raises(ValueError, match="workflow= is the name of a workflow, not"):
            flow.list_sync(workflow=name)
    places: list[Any] = [5, "/"]
    for after in places:
        with pytest.raises(InvalidId):
            flow.list_sync(after=after)
    assert flow.list_sync()[1] == status_of(flow, "id-1")


def test_five_methods_refuse_by_name_what_they_cannot_promise() -> None:
    def asks(request: Any, returned: Any = None) -> Callable[[], Flow]:
        def workflow() -> Flow:
            yield request
            return returned

        return workflow

    flow = FlowExecutor(PlainStorage(), call=echo, budget=math.inf)
    once = tool("a", "b", once=True)
    for request, what in [
        (sleep(1), "sleep()"),
        (wait("x"), "wait()"),
        (once, "tool(..., once=True)"),
        ([tool("a", "b"), once], "tool(..., once=True)"),
    ]:
        with pytest.raises(NotSupported) as caught:
            flow.execute_sync(asks(request))
        assert str(caught.value).startswith(f"{what} needs more than the five storage methods of")
    with pytest.raises(NotSupported, match=r"again\(\) needs more"):
        flow.execute_sync(asks([tool("a", "b"), tool("a", "b")], again(1)))
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("signal", lambda: flow.signal_sync("x", "y")),
        ("cancel", lambda: flow.cancel_sync("x")),
        ("fork", lambda: flow.fork_sync("x", 0)),
        ("list", flow.list_sync),
    ]
    for what, call in calls:
        with pytest.raises(NotSupported, match=f"{what} needs more than the five storage methods of PlainStorage"):
            call()


def test_crash_points_find_a_wait_for_ever_and_a_second_call() -> None:
    with pytest.raises(AssertionError, match="the workflow waits for 'go' for ever: give crash_points signals="):
        crash_points(forever, call=echo)
    assert crash_points(forever, call=echo, signals={"go": 1}) > 20
    with pytest.raises(AssertionError, match="the workflow never waited for 'Go', 'gone', given in signals=; it "):
        crash_points(forever, call=echo, signals={"go": 1, "Go": 2, "gone": 3})

    class Forgetful(MemoryStorage):
        def save(self, record: Record, result: Result) -> None:
            if result.error == "interrupted":
                return
            super().save(record, result)

    class Doubling(MemoryStorage):
        def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
            return [] if start == record.step and record.status == "running" else super().results(record, start, stop)

    def once() -> Flow:
        return (yield tool("pay", "card", once=True))

    def gather() -> Flow:
        return (yield [tool("api", name) for name in "abc"])

    def wrong() -> Flow:
        yield 5

    assert crash_points(once, call=echo) > 10
    with pytest.raises(InvalidYield):
        crash_points(wrong, call=echo)
    with pytest.raises(AssertionError, match="was called a second time in spite of once=True"):
        crash_points(once, call=echo, storage=Forgetful())
    with pytest.raises(AssertionError, match="step 0 twice"):
        crash_points(gather, call=echo, storage=Doubling())


class TestMended:
    """A workflow that is changed, or a tool that comes late, loses and doubles nothing."""

    def run(self, flow: FlowExecutor, workflow: Callable[..., Flow]) -> Any:
        return flow.execute_sync(workflow, "m")

    def test_a_list_made_longer_that_does_not_fit_keeps_what_is_recorded(self) -> None:
        calls: list[str] = []
        longer = False

        def workflow() -> Flow:
            yield [tool("api", name) for name in ("abxy" if longer else "ab")]
            yield tool("api", "charge", once=True)
            return (yield save())

        def call(category: str, name: str, input: Any) -> None:
            calls.append(name)

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        self.run(flow, workflow)
        longer = True
        with pytest.raises(Diverged, match=r"'tool api.charge' at step 2, but its workflow now asks for 'tool api.x'"):
            self.run(flow, workflow)
        assert status_of(flow, "m").step == 4
        longer = False
        assert self.run(flow, workflow) is None
        assert calls == ["a", "b", "charge"]

    @pytest.mark.parametrize("store", [MemoryStorage, PlainStorage])
    def test_a_list_made_longer_that_fits_goes_on(self, store: Callable[[], Any]) -> None:
        names = "ab"

        def workflow() -> Flow:
            return (yield [tool("api", name) for name in names])

        flow = FlowExecutor(store(), call=lambda _, name, __: name)
        self.run(flow, workflow)
        names = "abc"
        assert self.run(flow, workflow) == {"paused": "m", "step": 2}
        assert self.run(flow, workflow) == ["a", "b", "c"]

    def test_what_was_parked_is_rung_again_once_it_runs(self) -> None:
        broken = True

        def workflow() -> Flow:
            yield tool("api", "a")
            if broken:
                raise ValueError("broken")
            yield tool("api", "b")
            yield tool("api", "stop")

        clock = FakeClock()
        flow = FlowExecutor(MemoryStorage(), call=dies_at("stop"), clock=clock, budget=math.inf)
        with pytest.raises(ValueError, match="broken"):
            self.run(flow, workflow)
        broken = False
        with pytest.raises(Dies):
            self.run(flow, workflow)
        clock.advance(GRACE)
        assert flow.sweep_sync() == ["m"]

    @pytest.mark.parametrize("gathered", [False, True])
    def test_a_tool_that_an_async_hook_does_not_know_was_not_started(self, gathered: bool) -> None:
        known = False

        def workflow() -> Flow:
            request = tool("api", "late", once=True)
            return (yield [request] if gathered else request)

        async def call(category: str, name: str, input: Any) -> str:
            if not known:
                raise UnknownTool("api.late", "nothing is")
            return name

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        for execute in (flow.execute_sync, lambda *args: asyncio.run(flow.execute(*args))):
            with pytest.raises(UnknownTool):
                execute(workflow, "m")
        known = True
        assert self.run(flow, workflow) == (["late"] if gathered else "late")

    def test_a_mark_is_found_wherever_it_is(self) -> None:
        calls: list[str] = []
        together = True

        def workflow() -> Flow:
            pay = tool("api", "pay", once=True)
            requests = [tool("api", "a"), tool("api", "b")]
            if together:
                return (yield [*requests, pay])
            return [*(yield requests), (yield pay)]

        def call(category: str, name: str, input: Any) -> str:
            calls.append(name)
            if name == "pay":
                raise Dies
            return name

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        with pytest.raises(Dies):
            self.run(flow, workflow)
        together = False
        assert self.run(flow, workflow) == ["a", "b", {"__error": "interrupted"}]
        assert calls == ["a", "b", "pay"]

    def test_what_came_with_a_result_that_cannot_be_stored_is_kept(self) -> None:
        calls: Counter[str] = Counter()

        def workflow() -> Flow:
            return (yield [tool("api", "bad"), tool("api", "pay", once=True), tool("api", "good")])

        async def call(category: str, name: str, input: Any) -> Any:
            calls[name] += 1
            return {1} if calls["bad"] == 1 and name == "bad" else name

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        with pytest.raises(NotEncodable):
            asyncio.run(flow.execute(workflow, "m"))
        assert asyncio.run(flow.execute(workflow, "m")) == ["bad", "pay", "good"]
        assert calls == {"bad": 2, "pay": 1, "good": 1}

    def test_a_wait_or_a_sleep_that_is_mended_takes_effect(self) -> None:
        request: Any = wait("aproval")

        def workflow() -> Flow:
            return (yield request)

        clock = FakeClock()
        flow = FlowExecutor(MemoryStorage(), clock=clock, budget=math.inf)
        self.run(flow, workflow)
        request = wait("approval", timeout=100)
        assert self.run(flow, workflow).reason == "wait"
        assert (status_of(flow, "m").waits, status_of(flow, "m").due) == ("approval", clock.now + 100)
        request = sleep(1000)
        assert self.run(flow, workflow).reason == "sleep"
        assert (status_of(flow, "m").waits, status_of(flow, "m").due) == (None, clock.now + 1000)
        request = sleep(5)
        clock.advance(1)
        self.run(flow, workflow)
        assert status_of(flow, "m").due == clock.now + 5
        clock.advance(5)
        request = wait("approval", timeout=100)
        assert self.run(flow, workflow).reason == "wait"
        assert status_of(flow, "m").due == clock.now + 100

    @pytest.mark.parametrize("once", [False, True])
    def test_a_blocking_method_in_an_event_loop_calls_off_what_it_cannot_await(self, once: bool) -> None:
        def workflow() -> Flow:
            return (yield [tool("api", name, once=once) for name in "ab"])

        async def call(category: str, name: str, input: Any) -> str:
            return name

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)

        async def main() -> None:
            with pytest.raises(EventLoopNeeded):
                flow.execute_sync(workflow, "m")

        asyncio.run(main())
        assert not status_of(flow, "m").busy
        assert asyncio.run(flow.execute(workflow, "m")) == ["a", "b"]

    def test_a_list_of_blocking_calls_keeps_its_lease_in_an_async_store(self) -> None:
        class Watched(AsyncJournal):
            renewals = 0

            async def commit(
                self, record: Record, token: int, result: Result | None = None, **signal: str | None
            ) -> None:
                self.renewals += record.token == token
                await super().commit(record, token, result, **signal)

        def workflow() -> Flow:
            return (yield [tool("api", "n", number) for number in range(5)])

        storage = Watched()
        flow = FlowExecutor(storage, call=lambda *call: call[2], lease=1e-6, clock=FakeClock(), budget=math.inf)
        assert asyncio.run(flow.execute(workflow, "m")) == [0, 1, 2, 3, 4]
        assert storage.renewals >= 4

    def test_a_wait_without_patience_opens_its_name_too(self) -> None:
        def workflow() -> Flow:
            got: list[Any] = []
            for _ in range(4):
                got.append((yield wait("command", timeout=0)))
                yield save()
            return got

        flow = FlowExecutor(MemoryStorage())
        timeout = {"__error": "timeout"}
        flow.start_sync(workflow, None, "m")
        assert flow.signal_sync("m", "command", "one") is True
        for _ in range(4):
            self.run(flow, workflow)
        assert flow.signal_sync("m", "command", "two") is True
        for _ in range(4):
            self.run(flow, workflow)
        assert self.run(flow, workflow) == ["one", timeout, "two", timeout]

    @pytest.mark.parametrize("budget", [0.0, math.inf])
    def test_a_signal_at_the_moment_of_the_timeout_wins(self, budget: float) -> None:
        class Meanwhile(MemoryStorage):
            left = 1

            def received(self, record: Record, name: str) -> bytes | None:
                found = super().received(record, name)
                if found is None and self.left:
                    self.left -= 1
                    assert other.signal_sync("m", "go", "just in time") is True
                return found

        def workflow() -> Flow:
            answer = yield wait("go", timeout=0)
            return answer

        storage = Meanwhile()
        other = FlowExecutor(storage)
        flow = FlowExecutor(storage, budget=budget)
        if not budget:
            assert self.run(flow, workflow) == {"paused": "m", "step": 0}
        assert self.run(flow, workflow) == "just in time"

    def test_a_fence_at_a_timeout_is_still_a_fence(self) -> None:
        class Removed(MemoryStorage):
            def received(self, record: Record, name: str) -> bytes | None:
                self.remove(record.id)
                return super().received(record, name)

        def workflow() -> Flow:
            yield wait("go", timeout=0)

        with pytest.raises(Fenced):
            self.run(FlowExecutor(Removed()), workflow)

    def test_an_input_may_be_as_deep_as_any_value_and_a_tool_has_its_own(self) -> None:
        deep: Any = []
        for _ in range(490):
            deep = [deep]
        shared = {"n": [1]}

        def workflow() -> Flow:
            yield tool("api", "x", deep)
            yield tool("api", "x", {"a": shared, "b": shared, "c": [shared]})
            return shared

        def call(category: str, name: str, input: Any) -> None:
            if isinstance(input, dict):
                input["a"]["n"].append(2)
                assert input["b"] is input["a"] is input["c"][0]

        flow = FlowExecutor(MemoryStorage(), call=call, budget=math.inf)
        assert self.run(flow, workflow) == {"n": [1]}


@pytest.mark.parametrize("limit", [0, -1, 2**31, "5", 1.5, None])
def test_a_page_of_no_length_is_refused(limit: Any) -> None:
    flow = FlowExecutor(MemoryStorage())
    for call in (flow.list_sync, flow.sweep_sync):
        with pytest.raises(ValueError, match=r"limit= is a number of executions from 1 to 2,147,483,647, not"):
            call(limit=limit)


def test_a_history_that_is_deleted_while_it_is_read_says_so() -> None:
    class Deleted(MemoryStorage):
        def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
            self.remove(record.id)
            return super().results(record, start, stop)

    reads: list[Callable[[FlowExecutor], Any]] = [
        lambda flow: flow.history_sync("d"),
        lambda flow: flow.fork_sync("d", 1),
        lambda flow: flow.execute_sync(steps, "d"),
    ]
    for read in reads:
        flow = FlowExecutor(Deleted(), call=echo)
        flow.execute_sync(steps, "d")
        with pytest.raises(Fenced, match=r"execution 'd' is no longer held .* it was cancelled or deleted"):
            read(flow)
