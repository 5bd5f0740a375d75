"""What runs under Pyodide: our own tests, by pytest, and then a flow that waits for promises of JavaScript."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine, Generator
from functools import partial
from importlib import import_module
from tempfile import mkdtemp
from typing import Any
from unittest.mock import MagicMock, patch

from sequential import EventLoopNeeded, FlowExecutor, Paused, save, sleep, tool, wait
from sequential.journal import Journal
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock


class _NoSelector:
    """Waits for nothing but time: there are no sockets."""

    def select(self, timeout: float | None) -> list[Any]:
        time.sleep(timeout or 0)
        return []

    def close(self) -> None: ...


class _Loop(asyncio.BaseEventLoop):
    """An event loop that can be run until something is complete; JavaScript's own only goes on when Python returns."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NoSelector()

    def _process_events(self, events: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(main)


def run_pytest(options: list[str]) -> int:
    """Run tests that need no JavaScript, and return pytest's exit code."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # It is compiled, and not for this: a test of a property is none here.
    sys.modules["hypothesis"] = MagicMock(given=lambda *_, **__: lambda _: None, settings=lambda **_: lambda test: test)
    import pytest

    own = partial(asyncio.Runner, loop_factory=_Loop)
    outer = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        with patch.object(asyncio, "Runner", own), patch.object(asyncio, "run", _run):
            return int(pytest.main(options))
    finally:
        asyncio._set_running_loop(outer)


def journey(input: dict[str, int]) -> Generator[Any, Any, Any]:
    """Everything that pauses, and two calls at once."""
    both = yield [tool("timer", "wait", {"milliseconds": number}) for number in (20, 1)]
    yield save()
    yield sleep(60)
    word = yield wait("word")
    never = yield wait("never", timeout=60)
    return [both, word, never, (yield tool("timer", "wait", input))]


async def run_with_promises() -> None:
    """Print what came of a flow whose hooks wait for promises, over each storage."""
    print(json.dumps({"version": sys.version, "platform": sys.platform, "journeys": [
        await _travel(storage) for storage in (MemoryStorage(), SQLiteStorage(f"{mkdtemp()}/flows.db"))
    ]}))  # fmt: skip


async def _travel(storage: Journal) -> list[Any]:
    js, ffi = import_module("js"), import_module("pyodide.ffi")
    promise = import_module("pyodide.code").run_js("ms => new Promise(keep => setTimeout(() => keep(ms), ms))")
    rung, done, clock = asyncio.Queue[str](), list[int](), FakeClock()

    async def call(category: str, name: str, input: dict[str, int]) -> int:
        done.append(await promise(input["milliseconds"]))
        return done[-1]

    async def ring(id: str) -> None:
        await promise(1)
        js.queueMicrotask(ffi.create_once_callable(lambda: rung.put_nowait(id)))

    flow = FlowExecutor(storage, call=call, resume=ring, workflows=[journey], clock=clock)
    try:
        flow.execute_sync(journey, "blocking", {"milliseconds": 1})
    except EventLoopNeeded:
        await flow.delete("blocking")
    id = await flow.start(journey, input={"milliseconds": 3})
    paused: list[str] = []
    while isinstance(outcome := await flow.resume(await rung.get()), Paused):
        paused.append(outcome.reason)
        if outcome.reason in {"sleep", "wait"}:
            if (status := await flow.status(id)) and status.waits == ("word",):
                await flow.signal(id, "word", "yes")
            else:
                clock.advance(61)
                assert await flow.sweep() == [id]
    assert await flow.list() == []
    return [outcome, paused, done]
