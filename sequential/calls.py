"""Performing tool calls: one, or several together."""

import sys
from collections.abc import Awaitable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, cast

from . import hooks
from .codec import fingerprint
from .context import being_called
from .errors import HookNotConfigured, NotEncodable, SequentialError, UnknownTool, message_of
from .lease import Lease, running_loop
from .requests import Tool
from .setup import Setup
from .storage import Record, Result, settle

INTERRUPTED = "interrupted"
"""What a call with ``once=True`` is answered with when it was started and nobody knows what became of it."""


class ToolCall:
    """A tool call in progress.

    Args:
        request: What to call.
        record: The record of the execution, its ``step`` that of this call.
        started: When, in seconds since the epoch.
    """

    __slots__ = ("box", "checksum", "error", "record", "request", "started")

    def __init__(self, request: Tool, record: Record, started: float) -> None:
        self.request, self.record, self.started = request, record, started
        self.checksum = fingerprint(request.input)
        self.error: str | None = None
        """The error's type, if the tool raised."""
        self.box: list[Any] = []
        """What the tool came to, alone in a list, so that whoever needs it can take the only reference."""

    def begin(self, hook: hooks.Call) -> Awaitable[Any] | None:
        """Call the hook, and return what it returned if that is to be awaited."""
        request, token = self.request, being_called.set(self.record)
        try:
            outcome = hook(request.category, request.name, _copied(request.input))
            if hasattr(outcome, "__await__"):
                return cast("Awaitable[Any]", outcome)
            self.box.append(outcome)
        except SequentialError:
            raise
        except Exception as raised:
            self._fail(raised)
        finally:
            being_called.reset(token)
        return None

    async def finish(self, outcome: Awaitable[Any]) -> None:
        """Await what the hook returned."""
        token = being_called.set(self.record)
        try:
            self.box.append(await outcome)
        except SequentialError:
            raise
        except Exception as raised:
            self._fail(raised)
        finally:
            being_called.reset(token)

    def _fail(self, error: Exception) -> None:
        self.box, self.error = [{"__error": message_of(error)}], type(error).__name__


class Caller:
    """Performs the tool calls of one invocation.

    Args:
        setup: What the executor was given.
        lease: The invocation's lease, to be kept while calls run.
    """

    __slots__ = ("_lease", "_setup")

    def __init__(self, setup: Setup, lease: Lease) -> None:
        self._setup, self._lease = setup, lease

    async def call(self, request: Tool, record: Record) -> Result:
        """Perform the next step, and return its result, an error of the tool as a value.

        Args:
            request: What to call.
            record: The record of the execution, whose lease is kept.
        """
        call = ToolCall(request, record, self._setup.clock())
        outcome = await self._begin_once(call, record) if request.once else self._begin(call, record)
        if outcome is not None:
            await call.finish(self._lease.hold_during(outcome, record))
        return self._result(call)

    async def call_together(self, requests: dict[int, Tool], record: Record) -> list[Result]:  # noqa: C901 - one act
        """Perform several steps, and save each result as it is there, but for the last, which is to be committed.

        What the hook returns at once is there in turn; what it returns to be awaited, at the same time.

        Args:
            requests: What to call, by its step.
            record: The record of the execution, whose lease is kept.

        Returns:
            The results, in the order in which they came.
        """
        results: list[Result] = []
        begun: list[tuple[ToolCall, Awaitable[Any]]] = []
        tasks: dict[Any, ToolCall] = {}

        async def keep(call: ToolCall) -> None:
            results.append(self._result(call))
            if len(results) < len(requests):
                await settle(self._setup.journal.save(record, results[-1]))
                done = call.record._replace(step=call.record.step + 1)
                self._setup.observer.tell("committed", done, call.request.label)

        loop = running_loop()
        alone = loop is None
        try:
            for step, request in requests.items():
                call = ToolCall(request, record._replace(step=step), self._setup.clock())
                outcome = await self._begin_once(call, record) if request.once else self._begin(call, record)
                if outcome is None:
                    await keep(call)
                elif alone:
                    await call.finish(self._lease.hold_during(outcome, record))
                    await keep(call)
                else:
                    begun.append((call, outcome))
            while begun:
                call, outcome = begun.pop(0)
                tasks[loop.create_task(call.finish(outcome))] = call
            async for done in self._lease.hold_while(set(tasks), record):
                for task in sorted(done, key=lambda task: tasks[task].record.step):
                    task.result()
                    await keep(tasks[task])
        except GeneratorExit:
            _close(begun)
            raise  # nothing can be awaited any more
        except BaseException:
            for call in _close(begun):
                await self._unmark(call, record)
            if tasks:
                await _cancel(tasks)
            raise
        return results

    def _begin(self, call: ToolCall, record: Record) -> Awaitable[Any] | None:
        """Call the hook, and return what of it is to be awaited."""
        hook = hooks.find_call(call.request.label) if self._setup.call is None else self._setup.call
        self._lease.hold(record, hook)
        try:
            return call.begin(hook)
        finally:
            self._lease.let_go()

    async def _begin_once(self, call: ToolCall, record: Record) -> Awaitable[Any] | None:
        """Save beforehand what whoever finds the call unfinished is to be answered with, then do as `_begin` does."""
        journal, step = self._setup.journal, call.record.step
        answer = journal.codec.dumps({"__error": INTERRUPTED})
        mark = Result(step, call.request.label, call.checksum, answer, call.started, None, INTERRUPTED)
        await settle(journal.save(record, mark))
        try:
            return self._begin(call, record)
        except (HookNotConfigured, UnknownTool):  # nothing was started
            await self._unmark(call, record)
            raise

    async def _unmark(self, call: ToolCall, record: Record) -> None:
        """Take back that a call was started."""
        if call.request.once:
            with suppress(Exception):
                await settle(self._setup.journal.save(record, Result(call.record.step)))

    def _result(self, call: ToolCall) -> Result:
        """Encode what a call came to."""
        request, record = call.request, call.record
        self._setup.observer.tell("called", record, request.label)
        try:
            data = self._setup.journal.codec.dumps(call.box.pop())
        except Exception as refused:
            whose = f"the result of {request.label} (step {record.step} of execution {record.id!r})"
            raise NotEncodable(whose, message_of(refused)) from refused
        return Result(record.step, request.label, call.checksum, data, call.started, self._setup.clock(), call.error)


def _close(begun: list[tuple[ToolCall, Awaitable[Any]]]) -> list[ToolCall]:
    """Call off what was to be awaited, and return the calls of which nothing has run."""
    never_ran: list[ToolCall] = []
    for call, outcome in begun:
        if isinstance(outcome, Coroutine):
            outcome.close()
            never_ran.append(call)
        else:
            getattr(outcome, "cancel", int)()
    return never_ran


async def _cancel(tasks: Iterable[Any]) -> None:
    """Cancel tasks of the running loop, and wait until none of them runs."""
    for task in tasks:
        task.cancel()
    await sys.modules["asyncio"].gather(*tasks, return_exceptions=True)


def _copied(input: Any) -> Any:
    """Return an input that a tool may change: the workflow keeps its own, as it will on replay."""
    if isinstance(input, dict):
        return {key: _copied(value) for key, value in input.items()}
    if isinstance(input, list):
        return [_copied(value) for value in input]
    return input
