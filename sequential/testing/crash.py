"""Kill a workflow at every place where a process can die, and see that it makes no difference."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

from ..blocking import Maybe, settle
from ..branches import END
from ..calls import INTERRUPTED
from ..checks import check_functions
from ..context import current
from ..errors import Diverged, SequentialError, describe
from ..executor import FlowExecutor
from ..five import Storage
from ..hooks import Call, find_call, refuse_unfit
from ..record import MAKING, Entry, Record, fresh_id, state_of
from ..setup import Paused
from ..stores.memory import MemoryStorage
from ..workflow import Workflow
from .around import JournalAround
from .drive import drive, no_ring
from .fakes import FakeClock

T = TypeVar("T")

_FIVE = ("get", "set", "delete", "get_result", "set_result")

_LEASE = 0.3
"""Seconds: so short that waiting for the end of a dead process's lease is the end of hardly any timeout."""


def crash_points(
    workflow: Workflow[Any],
    input: Any = None,
    *,
    call: Call | None = None,
    storage: Storage | None = None,
    signals: Mapping[str, Any] | None = None,
    errors: Literal["value", "raise"] = "value",
    version: int = 0,
) -> int:
    """Run a workflow once for each place where its process could die, die there, and go on in another.

    The places are: before and after every call of the storage, of a tool and of the resume hook, each with one
    step per invocation and with all steps in one.  Every run must end as the undisturbed one does.  On a
    `Journal` each step must be recorded exactly once; a storage of five methods cannot promise that.  Time is a
    `FakeClock`, which moves on whenever the workflow sleeps.

    Args:
        workflow: The workflow.
        input: Its input; left out, ``{}``.
        call: Performs a tool, plain or ``async``; it may be called more than once for a step, and should give
            the same result for the same step.  Left out, the process-wide hook.
        storage: Where to run it, an empty one, plain or ``async``; left out, a new `MemoryStorage`.  Each run has an
            id of its own there, and leaves nothing.
        signals: Payloads by the name of the signal, each sent whenever the workflow waits for it; other waits
            run into their timeouts.
        errors: As for `FlowExecutor`.
        version: Likewise.

    Returns:
        How many places there were.

    Raises:
        AssertionError: When a run ends differently, records a step twice or not at all, calls a tool of
            ``once=True`` twice, or asks for something else on replay; the text says where the process had
            died.  An exception of the workflow itself is an end like any other.
        SequentialError: When the undisturbed run is ended by one.
        TypeError: When `call` is no function.
    """
    check_functions(call=call)
    storage = MemoryStorage() if storage is None else storage
    return asyncio.run(count_crash_points(workflow, input, call, storage, signals, errors=errors, version=version))


async def count_crash_points(
    workflow: Workflow[Any], input: Any, call: Call | None, storage: Storage, signals: Any = None, **options: Any
) -> int:
    """Do what `crash_points` does, in the event loop that runs."""
    points, signals = 0, signals or {}
    for budget in (0.0, math.inf):
        options["budget"] = budget
        undisturbed = await _Run(math.inf, call, storage, options).go(workflow, input, signals)
        error = undisturbed.error
        assert not isinstance(error, Diverged), f"undisturbed, the workflow goes another way on replay: {error}"
        if isinstance(error, SequentialError):
            raise error  # nothing that dying could change
        if missed := set(signals) - undisturbed.waits:
            names, ended = ", ".join(map(repr, sorted(missed))), " ".join(map(str, undisturbed.outcome))
            raise AssertionError(f"the workflow never waited for {names}, given in signals=; it {ended}") from error
        # A call of once=True that was interrupted may change all that follows.
        expected, point = {tuple(undisturbed.interrupted): undisturbed}, 0
        while (found := await _Run(point, call, storage, options).go(workflow, input, signals)).place:
            usual = expected.setdefault(tuple(found.interrupted), found)
            where = f"after the process died {found.place} (point {point}, budget {budget})"
            assert not found.twice, f"{where}, {found.twice} a second time"
            assert found.outcome == usual.outcome, (
                f"{where}, the workflow {found.outcome!r} instead of {usual.outcome!r}: "
                f"let it depend on nothing but its input and the results of its steps"
            )
            assert _agree(found.answers, usual.answers), (
                f"{where}, {found.answers!r} was recorded instead of {usual.answers!r}: a tool has answered another "
                f"call of the same step with something else, or the storage does not write all or nothing"
            )
            point += 1
        points += point
    return points


class _Death(BaseException):
    """The process dies; no code that runs in it learns of this in reality."""


class _Run(JournalAround):
    """A workflow on its way to its end, in as many processes as that takes, and the Journal as they see it.

    Args:
        point: How many places the first process passes before it dies.
        call: Performs a tool.
        storage: Where to run.
        options: Of the executor.
    """

    def __init__(self, point: float, call: Call | None, storage: Storage, options: dict[str, Any]) -> None:
        self._left, self.place = point, ""
        """How many places are still to be passed, and where the process died."""
        self.outcome: tuple[str, Any] = ("", None)
        self.error: Exception | None = None
        """How it ended, and by which error."""
        self.answers: dict[Any, Any] = {}
        """What the last round began with, and what it has recorded: by branch, for the calls of a list end in any
        order."""
        self.interrupted: list[tuple[int, int]] = []
        """The calls of ``once=True`` that were found unfinished, by round and step."""
        self.waits: set[str] = set()
        self._calls, self._steps, self._once = Counter[str](), Counter[str](), set[str]()
        self._runs: list[str] = []
        self._id, self._clock, self._call = f"crash-{fresh_id()}", FakeClock(), call
        self._onlooker = FlowExecutor(storage, resume=no_ring, clock=self._clock)
        super().__init__(self._onlooker.setup.journal)
        keeps = not self._onlooker.setup.is_five
        five = {name: partial(self.around, name, getattr(storage, name)) for name in _FIVE}
        mortal: Any = self if keeps else SimpleNamespace(**five)
        hooks: dict[str, Any] = {"call": self._perform, "resume": partial(self.around, "resume", no_ring)}
        self._flow = FlowExecutor(mortal, **hooks, retain=keeps, lease=_LEASE, clock=self._clock, **options)

    @property
    def twice(self) -> str:
        """What was done a second time."""
        calls = [f"{key.replace(self._id, '...')} was called" for key in sorted(self._once) if self._calls[key] > 1]
        steps = [f"{step} was recorded" for step, times in self._steps.items() if times > 1]
        return ", ".join(calls + steps)

    async def go(self, workflow: Workflow[Any], input: Any, signals: Mapping[str, Any]) -> _Run:
        """Run to the end, and leave nothing in the storage."""

        async def invoke() -> Any:
            wait = MAKING
            try:
                value = await self._flow.execute(workflow, self._id, input)
            except _Death:
                self._left, value, wait = math.inf, Paused(self._id, -1, "busy"), 2 * _LEASE
            except Exception as error:
                self.error = error
                return "raised", describe(error).replace(self._id, "...")
            if not isinstance(value, Paused):
                return "returned", value
            if value.reason == "busy":
                self._clock.advance(wait)
                if self._flow.setup.retain:
                    await self._onlooker.sweep()
            return value

        self.outcome = await drive(self._onlooker, self._clock, signals, invoke)
        if self._flow.setup.retain:
            status, before = await self._onlooker.status(self._id), Counter[Any]()
            self.answers["input"] = status and status.input
            for step in await self._onlooker.history(self._id):
                branch = END if step["asked"] == END else step["branch"]
                self.answers[branch, before[branch]] = step["asked"], step["error"], step["result"]
                before[branch] += 1
        await self._onlooker.delete(self._id)
        return self

    async def around(self, what: str, method: Callable[..., Maybe[T]], *arguments: Any, **options: Any) -> T:
        """Make a call, with a place to die before and after it."""
        place = _place(what, *arguments)
        self._may_die(f"before {place}")
        done = await settle(method(*arguments, **options))
        if what == "write" and done:
            self._note(*arguments)
        self._may_die(f"after {place}")
        return done

    def _may_die(self, place: str) -> None:
        if self._left == 0:
            self.place = self.place or place
            raise _Death
        self._left -= 1

    def _note(self, old: Record | None, new: Record, entries: Iterable[Entry]) -> None:
        """Note what a write has done."""
        if old is None or old.run != new.run:
            self._runs.append(new.run)
        else:
            self._steps.update(f"step {step} of round {len(self._runs)}" for step in range(old.step, new.step))
        state, interrupted = state_of(new), f'"error":"{INTERRUPTED}"'
        self.waits.update(state.waits)
        self._once.update(f"{new.id}:{new.run}:{mark.removeprefix('0.')}" for mark in state.once)
        self.interrupted += [(len(self._runs), entry.place) for entry in entries if interrupted in entry.about]

    async def _perform(self, category: str, name: str, input: Any) -> Any:
        label = f"tool {category}.{name}"
        hook = self._call or find_call(label)

        def perform() -> Any:
            self._calls[current().key] += 1
            try:
                return hook(category, name, input)
            except TypeError as error:
                refuse_unfit(hook, label, error)
                raise

        return await self.around(label, perform)


def _place(what: str, *arguments: Any) -> str:
    """Say what is about to be done."""
    if what == "write":
        old, new, *_ = arguments
        return f"write of step {new.step - 1}" if old and new and new.step > old.step else f"write as {new.status}"
    return " ".join([what, *map(str, arguments[1:2])]) if what in _FIVE else what


def _agree(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether the same was recorded; of a list that an error has ended early, less may be."""
    alike = all(one[key] == other[key] for key in one.keys() & other.keys())
    return alike and (one.keys() == other.keys() or (END, 0) in {**one, **other})
