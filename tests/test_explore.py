"""Every interleaving of two invocations, a sweep, a signaller and a canceller on each kind of workflow, and what breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import pytest

from sequential import FlowExecutor, again, save, sleep, tool, wait
from sequential import record as records
from sequential.errors import Cancelled
from sequential.invocation import Invocation
from sequential.record import Record
from sequential.stores.memory import MemoryStorage
from sequential.testing import explore

INTERRUPTED, TIMEOUT = {"__error": "interrupted"}, {"__error": "timeout"}


def call(_category: str, name: str, input: Any) -> Any:
    """Answer the same input alike."""
    return [name, input]


def steps(_input: Any) -> Generator[Any, Any, Any]:
    first = yield tool("t", "first", 1)
    return [first, (yield tool("t", "second", first))]


def once(_input: Any) -> Generator[Any, Any, Any]:
    return (yield tool("t", "charge", 1, once=True))


def together(_input: Any) -> Generator[Any, Any, Any]:
    return (yield [tool("t", "left", 1), tool("t", "right", 2, once=True)])


def timers(_input: Any) -> Generator[Any, Any, Any]:
    yield sleep(10)
    yield save()
    return (yield tool("t", "after", 1))


def waits(_input: Any) -> Generator[Any, Any, Any]:
    return [(yield wait("go", timeout=600)), (yield tool("t", "after", 1))]


def queue(_input: Any) -> Generator[Any, Any, Any]:
    return [(yield wait("go")), (yield wait("go"))]


def rounds(input: Any) -> Generator[Any, Any, Any]:
    if not input:
        yield tool("t", "round", 1)
        return again({"last": True})
    return (yield wait("go"))


def undoes(_input: Any) -> Generator[Any, Any, Any]:
    try:
        yield tool("t", "do", 1)
        yield tool("t", "more", 2)
    except Cancelled:
        yield tool("t", "undo", 1)
        raise
    return "done"


def sends_queue(payload: Any) -> Callable[[FlowExecutor, str], Any]:
    """Return a task that sends a signal of which several are kept."""

    async def signal(flow: FlowExecutor, id: str) -> bool:
        return await flow.signal(id, "go", payload, queue=True)

    return signal


async def force(flow: FlowExecutor, id: str) -> bool:
    """End it at once, whoever is at work."""
    return await flow.cancel(id, force=True)


def fails(_input: Any) -> Generator[Any, Any, Any]:
    yield tool("t", "first", 1)
    raise LookupError("as ever")


SENT = ("signal", "go", "sent")
LATER = {"go": "later"}

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "steps": (steps, {"tasks": ["invoke", "invoke"]}),
    "steps, to the end": (steps, {"tasks": ["invoke", "invoke", "sweep"], "budget": math.inf, "preemptions": 1}),
    "steps, cancelled": (steps, {"tasks": ["invoke", "sweep", "cancel"], "budget": math.inf, "preemptions": 1}),
    "steps, ended by force": (steps, {"tasks": ["invoke", force], "budget": math.inf, "preemptions": 1}),
    "fails": (fails, {"tasks": ["invoke", "sweep"], "budget": math.inf, "preemptions": 1}),
    "once": (once, {"tasks": ["invoke", "invoke", "sweep"], "allowed": [INTERRUPTED]}),
    "together": (
        together,
        {"tasks": ["invoke", "invoke"], "budget": math.inf, "allowed": [[["left", 1], INTERRUPTED]]},
    ),
    "timers": (timers, {"tasks": ["invoke", "invoke", "sweep"], "preemptions": 1}),
    "waits": (
        waits,
        {
            "tasks": ["invoke", "invoke", SENT],
            "signals": LATER,
            "preemptions": 1,
            "allowed": [["sent", ["after", 1]], [TIMEOUT, ["after", 1]]],
        },
    ),
    "waits, cancelled": (
        waits,
        {
            "tasks": ["invoke", SENT, "cancel", "sweep"],
            "signals": LATER,
            "preemptions": 1,
            "allowed": [["sent", ["after", 1]], [TIMEOUT, ["after", 1]]],
        },
    ),
    "queue": (
        queue,
        {
            "tasks": ["invoke", sends_queue(1), sends_queue(2)],
            "signals": LATER,
            "allowed": [[1, 2], [2, 1], [1, "later"], [2, "later"]],
        },
    ),
    "rounds": (
        rounds,
        {
            "tasks": ["invoke", "invoke", SENT],
            "signals": LATER,
            "budget": math.inf,
            "allowed": ["sent"],
            "preemptions": 1,
        },
    ),
    "undoes": (undoes, {"tasks": ["invoke", "invoke", "cancel"], "budget": math.inf, "preemptions": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_no_schedule_loses_or_doubles_anything(name: str) -> None:
    workflow, options = CASES[name]
    explored = explore(workflow, call=call, extra=100, **options)
    print(name, explored)
    assert explored.ends > 20
    assert explored.states > explored.schedules / 2


def test_a_broken_promise_is_told_with_its_schedule() -> None:
    def forgetful(_category: str, _name: str, input: Any) -> Any:
        return next(numbers)

    numbers = iter(range(10_000))
    with pytest.raises(AssertionError, match="it came to") as raised:
        explore(steps, call=forgetful)
    assert "after this schedule: invoke begin, invoke read" in "".join(raised.value.__notes__)


def test_a_workflow_that_never_ends_is_told() -> None:
    with pytest.raises(AssertionError, match="it did not end within 60 undisturbed invocations"):
        explore(queue, call=call)


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(ValueError, match="tasks="):
        explore(steps, call=call, tasks=["swep"])


# Each row of the theory in sequential/record.py, broken.


class ComparesNothing(MemoryStorage):
    def write(self, old: Record | None, new: Record | None, *values: Any, **options: Any) -> bool:
        stored, _ = self.read((old or new).id)  # type: ignore[union-attr]
        return super().write(stored, new, *values, **options)


class KeepsEntriesOfRefusedWrites(MemoryStorage):
    def write(self, old: Record | None, new: Record | None, entries: Any = (), **options: Any) -> bool:
        stored, _ = self.read((old or new).id)  # type: ignore[union-attr]
        return super().write(old, new, entries, **options) or (
            bool(stored and entries) and super().write(stored, stored, entries, **options) and False
        )


def takes_held_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "is_held", lambda *_: False)


def looks_at_no_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_ours", lambda record, _: (record, records.state_of(record)))


def rings_before_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = Invocation._leave

    async def broken(self: Invocation, *values: Any, **options: Any) -> Any:
        await self._setup.ring(self.record)
        return await leave(self, *values, **options)

    monkeypatch.setattr(Invocation, "_leave", broken)


def forgets_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    signalled = records.signalled

    def broken(record: Any, _: Any, known: Any, signal: Any, *values: Any) -> Any:
        fresh = signal._replace(nonce=records.nonce())
        return signalled(record, None, known, fresh, *values)

    monkeypatch.setattr(records, "signalled", broken)


def answers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = records.answered

    def broken(record: Any, since: Any, hold: Any, now: Any, answers: Any) -> Any:
        return answered(record, since, hold, now, answers._replace(step=record.step + 1))

    monkeypatch.setattr(records, "answered", broken)


BROKEN: dict[str, Any] = {
    "compare nothing": ({"storage": ComparesNothing}, "steps", "could not go on|no longer|written over"),
    "keep the entries of a refused write": ({"storage": KeepsEntriesOfRefusedWrites}, "steps, to the end", "over"),
    "take a held lease": (takes_held_leases, "steps", "a lease was taken that somebody holds"),
    "take over a stamp without looking at the holder": (looks_at_no_holder, "steps", "holds the execution no longer"),
    "ring before writing": (rings_before_writing, "steps", "rung before the lease was given back"),
    "forget the nonce of a signal": (forgets_nonces, "queue", "it came to|taken twice"),
    "answer again after a lost answer": (answers_twice, "undoes", "could not go on|cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_that_is_broken_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, case, text = BROKEN[name]
    workflow, options = CASES[case]
    if callable(broken):
        broken(monkeypatch)
        broken = {}
    with pytest.raises(AssertionError, match=text):
        explore(workflow, call=call, **{**options, **broken})
