"""Kill a workflow at every place where a process can die, and see that it makes no difference."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..codec import JSONCodec
from ..executor import FlowExecutor
from ..hooks import Call, find_call
from ..invocation import Paused
from ..observe import Event
from ..storage import Journal, Maybe, PlainJournal, Record, Result, Storage, journal_for, new_id, settle
from ..stores.memory import MemoryStorage
from ..workflow import Workflow
from .fakes import FakeClock

_INVOCATIONS = 10_000
"""More than any workflow worth enumerating takes: beyond it, one goes round in circles."""


def crash_points(
    workflow: Workflow[Any],
    input: Any = None,
    *,
    call: Call | None = None,
    storage: Storage | None = None,
) -> int:
    """Run a workflow once for each place where its process could die, die there, and go on in another.

    The places are: before and after every call of the storage, of a tool and of the resume hook, each with one
    step per invocation and with all steps in one.  Every run must end as the undisturbed one does.  On a
    `Journal` each step must be recorded exactly once; a storage of five methods cannot promise that.

    Args:
        workflow: The workflow.
        input: Its input.
        call: Performs a tool, plain or ``async``; it may be called more than once for a step, and should give
            the same result for the same step.  Left out, the process-wide hook.
        storage: Where to run it, plain or ``async``; left out, a new `MemoryStorage`.  Each run has an id of its
            own there.

    Returns:
        How many places there were.

    Raises:
        AssertionError: When a run ends differently, records a step twice or not at all, or asks a tool for
            something else on replay; the text says where the process had died.
    """
    return asyncio.run(count_crash_points(workflow, input, call, MemoryStorage() if storage is None else storage))


async def count_crash_points(workflow: Workflow[Any], input: Any, call: Call | None, storage: Storage) -> int:
    """Do what `crash_points` does, in the event loop that runs."""
    points = 0
    for budget in (0.0, math.inf):
        expected, point, died = await _run(workflow, input, call, storage, budget=budget), 0, True
        while died:
            found = await _run(workflow, input, call, storage, budget=budget, point=point)
            where = f"after the process died {found.place or 'nowhere'} (point {point}, budget {budget})"
            assert not found.changed, f"{where}, a tool was asked for with other input than before: {found.changed}"
            assert found.outcome == expected.outcome, (
                f"{where}, the workflow {found.outcome!r} instead of {expected.outcome!r}: "
                f"let it depend on nothing but its input and the results of its steps"
            )
            assert found.recorded == expected.recorded, (
                f"{where}, {found.recorded!r} was recorded instead of {expected.recorded!r}: "
                f"the storage does not commit atomically, or lets a writer commit who was fenced off"
            )
            died = found.place is not None
            points, point = points + died, point + 1
    return points


class _Death(BaseException):
    """The process dies; no code that runs in it learns of this in reality."""


class _Run(NamedTuple):
    """How a run ended."""

    outcome: tuple[str, Any]
    recorded: list[Any]
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


class _MortalJournal(Journal):
    """A Journal with a place to die before and after each call; it keeps a list of what was recorded."""

    def __init__(self, journal: Journal, process: _Process) -> None:
        self.codec = journal.codec
        self.recorded: list[tuple[int, str]] = []
        self._journal, self._process = journal, process

    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        claimed: tuple[Record | None, bool] = await self._process.around(
            "claim", self._journal.claim, wanted, now, create
        )
        return claimed

    async def commit(self, record: Record, token: int, result: Result | None = None) -> None:
        async def commit_and_note() -> None:
            await settle(self._journal.commit(record, token, result))
            if result is not None:
                self.recorded.append((result.step, result.asked))

        await self._process.around(f"commit of step {record.step} as {record.status}", commit_and_note)

    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        page: list[Result] = await self._process.around("results", self._journal.results, record, start, stop, brief)
        return page

    async def read(self, id: str) -> Record | None:
        return await settle(self._journal.read(id))

    async def due(self, now: float, limit: int) -> list[Record]:
        return await settle(self._journal.due(now, limit))

    async def remove(self, id: str, held: Record | None = None) -> None:
        await self._process.around("remove", self._journal.remove, id, held)


async def _run(  # noqa: C901 - the parts of one experiment, in their order
    workflow: Workflow[Any], input: Any, call: Call | None, storage: Storage, *, budget: float, point: int | None = None
) -> _Run:
    """Run a workflow to its end, in as many processes as it takes, one of which dies at `point`."""
    process, clock, changed, id = _Process(point), FakeClock(), list[str](), f"crash-{new_id()}"
    journal = journal_for(storage)
    mortal = None if isinstance(journal, PlainJournal) else _MortalJournal(journal, process)

    async def mortal_call(category: str, name: str, input: Any) -> Any:
        tool = f"tool {category}.{name}"
        return await process.around(tool, call or find_call(tool), category, name, input)

    async def mortal_resume(id: str) -> None:
        await process.around("resume", lambda _: None, id)

    def observe(event: Event) -> None:
        if event.kind == "input changed":
            changed.append(f"{event.detail} (step {event.step})")

    flow = FlowExecutor(
        mortal or _MortalStorage(storage, process),
        call=mortal_call,
        resume=mortal_resume,
        budget=budget,
        retain=mortal is not None,
        observe=observe,
        clock=clock,
    )
    for _ in range(_INVOCATIONS):
        try:
            outcome = await _invoke(flow, workflow, id, input)
        except _Death:
            process.dead = False
            clock.advance(1000.0)  # the lease of the dead one ends
            if mortal is not None:
                await flow.sweep()
        else:
            if outcome is not None:
                break
    else:
        raise AssertionError(f"the workflow did not end within {_INVOCATIONS} invocations")
    process.left = None
    recorded = list[Any]()
    if mortal is not None and await flow.status(id) is not None:
        recorded = [mortal.recorded, [(step["asked"], step["result"]) for step in await flow.history(id)]]
    await flow.delete(id)
    return _Run(outcome, recorded, process.place, changed)


async def _invoke(flow: FlowExecutor, workflow: Workflow[Any], id: str, input: Any) -> tuple[str, Any] | None:
    """Run one invocation and return how the workflow ended, if it did."""
    try:
        value = await flow.execute(workflow, id, input)
    except Exception as error:
        return ("raised", f"{type(error).__name__}: {error}".replace(id, "..."))
    if isinstance(value, Paused):
        return None
    codec = JSONCodec()  # a plain storage does not have the final value encoded
    return ("returned", codec.loads(codec.dumps(value)))
