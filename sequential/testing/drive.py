"""Run a workflow to its value: time passes and signals come as it needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from ..executor import FlowExecutor
from ..hooks import Call
from ..setup import Paused
from ..stores.memory import MemoryStorage
from ..workflow import Workflow
from .fakes import FakeClock

T = TypeVar("T")

_INVOCATIONS = 10_000
"""More than any workflow worth a test takes: beyond it, one goes round in circles."""


def run(
    workflow: Workflow[T],
    input: Any = None,
    *,
    call: Call | None = None,
    signals: Mapping[str, Any] | None = None,
    clock: FakeClock | None = None,
    errors: Literal["value", "raise"] = "value",
    version: int = 0,
) -> T:
    """Run a workflow on a `MemoryStorage`, with one step per invocation, and return its value.

    Nobody waits: the clock moves on whenever the workflow sleeps, or waits for what does not come.  In a running event
    loop, call it by ``asyncio.to_thread``.

    Args:
        workflow: The workflow.
        input: Its input; left out, ``{}``.
        call: Performs a tool, plain or ``async``.  Left out, the process-wide hook.
        signals: Payloads by the name of the signal, each sent whenever the workflow waits for it; an iterator
            (``iter(["no", "yes"])``) gives one payload for each wait.  Other waits run into their timeouts.
        clock: Is moved on; left out, one of its own.
        errors: As for `FlowExecutor`.
        version: Likewise.

    Raises:
        AssertionError: When the workflow waits for what is not in `signals` and has no timeout, or does not end.
        Exception: What the workflow raises, and as from `FlowExecutor.execute`.
    """
    clock = clock or FakeClock()
    flow = FlowExecutor(MemoryStorage(), call=call, resume=no_ring, errors=errors, version=version, clock=clock)
    return asyncio.run(drive(flow, clock, signals or {}, lambda: flow.execute(workflow, "run", input)))


async def drive(
    flow: FlowExecutor, clock: FakeClock, signals: Mapping[str, Any], invoke: Callable[[], Awaitable[T | Paused]]
) -> T:
    """Call `invoke` until it returns a value, and bring about in between what the execution waits for.

    Args:
        flow: Knows the execution.
        clock: Its clock.
        signals: As for `run`.
        invoke: Runs an invocation.
    """
    for _ in range(_INVOCATIONS):
        value = await invoke()
        if not isinstance(value, Paused):
            return value
        status = await flow.status(value["paused"]) if value.reason in {"sleep", "wait"} else None
        if status is None:
            continue
        known = [name for name in status.waits if name in signals]
        for name in known:
            payload = signals[name]
            if isinstance(payload, Iterator):
                payload = next(payload, payload)
                assert payload is not signals[name], f"the workflow waits for {name!r} once more than signals= has it"
            await flow.signal(status.id, name, payload)
        if not known:
            waits = ", ".join(map(repr, status.waits))
            assert status.due is not None, f"the workflow waits for {waits} for ever: give it in signals="
            clock.now = status.due
    raise AssertionError(
        f"the workflow did not end within {_INVOCATIONS} invocations: let one that runs for ever end by its input"
    )


def no_ring(_: str) -> None:
    """Ring nobody, for the next invocation comes anyway; no process-wide hook is to ring, either."""
