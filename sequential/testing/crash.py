"""Kill a workflow at every place where a process can die, and see that it makes no difference."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from ..calls import INTERRUPTED
from ..codec import JSONCodec
from ..context import current
from ..errors import Diverged, SequentialError, describe
from ..executor import FlowExecutor
from ..hooks import Call, check_functions, find_call, refuse_unfit
from ..observe import Event
from ..setup import Paused
from ..storage import Journal, Maybe, PlainJournal, Record, Result, Storage, journal_for, new_id, settle, then
from ..stores.memory import MemoryStorage
from ..workflow import Workflow
from .around import JournalAround
from .fakes import FakeClock

T = TypeVar("T")

_INVOCATIONS = 10_000
"""More than any workflow worth enumerating takes: beyond it, one goes round in circles."""


def crash_points(
    workflow: Workflow[Any],
    input: Any = None,
    *,
    call: Call | None = None,
    storage: Storage | None = None,
    signals: Mapping[str, Any] | None = None,
) -> int:
    """Run a workflow once for each place where its process could die, die there, and go on in another.

    The places are: before and after every call of the storage, of a tool and of the resume hook, each with one
    step per invocation and with all steps in one.  Every run must end as the undisturbed one does.  On a
    `Journal` each step must be recorded exactly once; a storage of five methods cannot promise that.  Time is a
    `FakeClock`, which moves on whenever the workflow sleeps.

    Args:
        workflow: The workflow.
        input: Its input.
        call: Performs a tool, plain or ``async``; it may be called more than once for a step, and should give
            the same result for the same step.  Left out, the process-wide hook.
        storage: Where to run it, plain or ``async``; left out, a new `MemoryStorage`.  Each run has an id of its
            own there.
        signals: Payloads by the name of the signal, each sent whenever the workflow waits for it; other waits
            run into their timeouts.

    Returns:
        How many places there were.

    Raises:
        AssertionError: When a run ends differently, records a step twice or not at all, calls a tool of
            ``once=True`` twice, or asks a tool for something else on replay; the text says where the process had
            died.  An exception of the workflow itself is an end like any other.
        SequentialError: When the undisturbed run is ended by one.
        TypeError: When `call` is no function.
    """
    check_functions(call=call)
    storage = MemoryStorage() if storage is None else storage
    return asyncio.run(count_crash_points(workflow, input, call, storage, signals))


async def count_crash_points(
    workflow: Workflow[Any],
    input: Any,
    call: Call | None,
    storage: Storage,
    signals: Mapping[str, Any] | None = None,
) -> int:
    """Do what `crash_points` does, in the event loop that runs."""
    points = 0
    for budget in (0.0, math.inf):
        world = _World(workflow, input, call, storage, signals or {}, budget)
        expected: dict[Any, _Run] = {(): await _run(world)}
        error = expected[()].error
        assert not isinstance(error, Diverged), f"undisturbed, the workflow goes another way on replay: {error}"
        if isinstance(error, SequentialError):
            raise error  # nothing that dying could change
        missed = set(world.signals) - expected[()].signalled
        if missed:
            names, ended = ", ".join(map(repr, sorted(missed))), " ".join(map(str, expected[()].outcome))
            raise AssertionError(f"the workflow never waited for {names}, given in signals=; it {ended}") from error
        point, died = 0, True
        while died:
            found = await _run(world, point)
            where = f"after the process died {found.place or 'nowhere'} (point {point}, budget {budget})"
            assert not found.changed, f"{where}, a tool was asked for with other input than before: {found.changed}"
            assert not found.twice, f"{where}, {found.twice} was called a second time in spite of once=True"
            usual = expected.setdefault(found.interrupted, found)  # an interrupted call may change all that follows
            assert found.outcome == usual.outcome, (
                f"{where}, the workflow {found.outcome!r} instead of {usual.outcome!r}: "
                f"let it depend on nothing but its input and the results of its steps"
            )
            assert found.recorded == usual.recorded, (
                f"{where}, {found.recorded!r} was recorded instead of {usual.recorded!r}: "
                f"a tool has answered another call of the same step with something else, or the storage does not "
                f"commit atomically, or lets a writer commit who was fenced off"
            )
            died = found.place is not None
            points, point = points + died, point + 1
    return points


class _World(NamedTuple):
    """What all runs have in common."""

    workflow: Workflow[Any]
    input: Any
    call: Call | None
    storage: Storage
    signals: Mapping[str, Any]
    budget: float


class _Death(BaseException):
    """The process dies; no code that runs in it learns of this in reality."""


class _Run(NamedTuple):
    """How a run ended."""

    outcome: tuple[str, Any]
    recorded: list[Any]
    interrupted: tuple[tuple[int, int], ...]
    """The calls of ``once=True`` that were found unfinished, by round and step."""
    twice: list[str]
    error: Exception | None
    """What was raised in the end."""
    signalled: set[str]
    place: str | None
    changed: list[str]


class _Process:
    """Counts the places where a process can die, and dies at one of them."""

    def __init__(self, point: int | None) -> None:
        self.left = point
        self.place: str | None = None
        self.dead = False

    def may_die(self, place: str) -> None:
        if self.dead:
            raise _Death
        if self.left == 0:
            self.place, self.dead = place, True
            self.left = None
            raise _Death
        if self.left is not None:
            self.left -= 1

    async def around(self, what: str, call: Callable[..., Maybe[Any]], *arguments: Any) -> Any:
        self.may_die(f"before {what}")
        done = await settle(call(*arguments))
        self.may_die(f"after {what}")
        return done


class _MortalStorage:
    """Five methods, each with a place to die before and after it."""

    def __init__(self, storage: Storage, process: _Process) -> None:
        self._storage, self._process = storage, process

    async def get(self, id: str) -> Any:
        return await self._process.around("get", self._storage.get, id)

    async def set(self, id: str, state: dict[str, int]) -> Any:
        return await self._process.around(f"set to step {state['step']}", self._storage.set, id, state)

    async def delete(self, id: str) -> Any:
        return await self._process.around("delete", self._storage.delete, id)

    async def get_result(self, id: str, step: int) -> Any:
        return await self._process.around(f"get_result of step {step}", self._storage.get_result, id, step)

    async def set_result(self, id: str, step: int, data: Any) -> Any:
        return await self._process.around(f"set_result of step {step}", self._storage.set_result, id, step, data)


class _MortalJournal(JournalAround):
    """A Journal with a place to die before and after each call; it keeps a list of what was recorded."""

    def __init__(self, inner: Journal, process: _Process) -> None:
        super().__init__(inner)
        self.recorded: list[Any] = []
        self.saved: set[tuple[str, int]] = set()
        self.marked: set[str] = set()
        self.interrupted: set[tuple[int, int]] = set()
        self.rounds = 0
        self._process = process

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        if what in {"read", "due"}:  # a look from outside, and a sweep, may fail anywhere
            return await settle(method(*arguments, **options))
        done: T = await self._process.around(what, method, *arguments, **options)
        return done

    async def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        def commit() -> Maybe[None]:
            written = self.inner.commit(record, token, result, **signal)
            return written if result is None else then(written, lambda _: self.recorded.append(record.step))

        await self._process.around(f"commit of step {record.step} as {record.status}", commit)

    async def save(self, record: Record, result: Result) -> None:
        def note(_: None) -> None:
            if result.error == INTERRUPTED:
                self.marked.add(f"{record.id}:{record.run}:{result.step}")
            elif (record.run, result.step) in self.saved:
                self.recorded.append(f"step {result.step} twice")
            else:
                self.saved.add((record.run, result.step))

        await self._process.around(f"save of step {result.step}", lambda: then(self.inner.save(record, result), note))

    async def restart(self, record: Record, held: Record) -> None:
        def note(_: None) -> None:
            self.rounds += 1

        await self._process.around("restart", lambda: then(self.inner.restart(record, held), note))

    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        page = await super().results(record, start, stop, brief)
        self.interrupted.update((self.rounds, result.step) for result in page if result.error == INTERRUPTED)
        return page


async def _run(world: _World, point: int | None = None) -> _Run:  # noqa: C901 - the parts of one experiment
    """Run a workflow to its end, in as many processes as it takes, one of which dies at `point`."""
    process, clock, changed, id = _Process(point), FakeClock(), list[str](), f"crash-{new_id()}"
    journal = journal_for(world.storage)
    mortal = None if isinstance(journal, PlainJournal) else _MortalJournal(journal, process)
    calls: Counter[str] = Counter()

    async def mortal_call(category: str, name: str, input: Any) -> Any:
        tool = f"tool {category}.{name}"

        def call() -> Any:
            calls[current().key] += 1
            return _perform(world.call or find_call(tool), category, name, input)

        return await process.around(tool, call)

    async def mortal_resume(id: str) -> None:
        await process.around("resume", lambda _: None, id)

    def observe(event: Event) -> None:
        if event.kind == "input changed":
            changed.append(f"{event.detail} (step {event.step})")

    flow = FlowExecutor(
        mortal or _MortalStorage(world.storage, process),
        call=mortal_call,
        resume=mortal_resume,
        budget=world.budget,
        retain=mortal is not None,
        observe=observe,
        clock=clock,
    )

    signalled = set[str]()

    async def let_time_pass(reason: str) -> None:
        """Send the signal that is waited for, or move on to when the workflow wakes, or to the end of a lease."""
        status = None if mortal is None else await flow.status(id)
        if status is not None:
            if status.waits is not None and status.waits in world.signals:
                signalled.add(status.waits)
                await flow.signal(id, status.waits, world.signals[status.waits])
            elif status.due is not None and reason in {"sleep", "wait"}:
                clock.now = max(clock.now, status.due)
            else:
                assert reason != "wait", f"the workflow waits for {status.waits!r} for ever: give crash_points signals="
        if reason == "death":
            clock.advance(1000.0)
            if mortal is not None:
                await flow.sweep()

    reason = ""
    for _ in range(_INVOCATIONS):
        try:
            await let_time_pass(reason)
            outcome = await _invoke(flow, world, id)
        except _Death:
            process.dead, reason = False, "death"
        else:
            if not isinstance(outcome, Paused):
                break
            reason = outcome.reason
    else:
        raise AssertionError(
            f"the workflow did not end within {_INVOCATIONS} invocations: let one that runs for ever end by its input"
        )
    process.left = None
    recorded = list[Any]()
    if mortal is not None and await flow.status(id) is not None:
        recorded = [mortal.recorded, [(step["asked"], step["result"]) for step in await flow.history(id)]]
    await flow.delete(id)
    interrupted = tuple(sorted(mortal.interrupted)) if mortal else ()
    twice = [key.replace(id, "...") for key in mortal.marked if calls[key] > 1] if mortal else []
    value, error = outcome
    return _Run(value, recorded, interrupted, twice, error, signalled, process.place, changed)


def _perform(hook: Call, category: str, name: str, input: Any) -> Any:
    try:
        return hook(category, name, input)
    except Exception as error:
        refuse_unfit(hook, f"tool {category}.{name}", error)
        raise


async def _invoke(flow: FlowExecutor, world: _World, id: str) -> tuple[tuple[str, Any], Exception | None] | Paused:
    """Run one invocation and return how the workflow ended, and by what error; or why it did not."""
    try:
        value = await flow.execute(world.workflow, id, world.input)
    except Exception as error:
        return ("raised", describe(error).replace(id, "...")), error
    if isinstance(value, Paused):
        return value
    codec = JSONCodec()  # a plain storage does not have the final value encoded
    return ("returned", codec.loads(codec.dumps(value))), None
