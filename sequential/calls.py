"""Performing tool calls: one, or several together."""

import sys
from collections.abc import Awaitable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from . import hooks
from .blocking import CannotWait, running_loop
from .codec import as_bytes, fingerprint
from .context import being_called
from .errors import HookNotConfigured, NotEncodable, SequentialError, UnknownTool, message_of
from .lease import LARGE, Lease
from .requests import Tool
from .setup import Setup
from .storage import Record, Result, as_result, settle

_ATOMS = frozenset({str, int, float, bool, type(None)})
"""What holds nothing that could be changed."""

INTERRUPTED = "interrupted"
"""What a call with ``once=True`` is answered with when it was started and nobody knows what became of it."""


class ToolCall:
    """A tool call in progress.

    Args:
        request: What to call.
        record: The record of the execution, its ``step`` that of this call.
        started: When, in seconds since the epoch.
    """

    __slots__ = ("box", "checksum", "error", "outcome", "raised", "record", "request", "started")

    def __init__(self, request: Tool, record: Record, started: float) -> None:
        self.request, self.record, self.started = request, record, started
        self.checksum = fingerprint(request.input)
        self.error: str | None = None
        """The error's type, if the tool raised."""
        self.raised: Exception | None = None
        self.box: list[Any] = []
        """What the tool came to, alone in a list, so that whoever needs it can take the only reference."""
        self.outcome: Awaitable[Any] | None = None
        """What the hook returned, if that is still to be awaited."""

    def begin(self, hook: hooks.Call) -> Awaitable[Any] | None:
        """Call the hook, and return what it returned if that is to be awaited."""
        request, token = self.request, being_called.set(self.record)
        try:
            outcome = hook(request.category, request.name, _copied(request.input))
            if hasattr(outcome, "__await__"):
                self.outcome = outcome
            else:
                self.box.append(outcome)
        except SequentialError:
            raise
        except Exception as raised:
            hooks.refuse_unfit(hook, request.label, raised)
            self._fail(raised)
        finally:
            being_called.reset(token)
        return self.outcome

    async def finish(self, outcome: Awaitable[Any]) -> None:
        """Await what the hook returned."""
        self.outcome, token = None, being_called.set(self.record)
        try:
            self.box.append(await outcome)
        except SequentialError:
            raise
        except Exception as raised:
            self._fail(raised)
        finally:
            being_called.reset(token)

    def _fail(self, error: Exception) -> None:
        self.box, self.error, self.raised = [{"__error": message_of(error)}], type(error).__name__, error


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
            await self._finish(call, self._lease.hold_during(outcome, record), record)
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
        calls = [ToolCall(request, record._replace(step=step), 0.0) for step, request in requests.items()]
        tasks: dict[Any, ToolCall] = {}
        loop = running_loop()
        alone = loop is None

        async def keep(call: ToolCall) -> None:
            results.append(self._result(call))
            if len(results) < len(requests):
                await self._save(record, results[-1])
                done = call.record._replace(step=call.record.step + 1)
                self._setup.observer.tell("committed", done, call.request.label)
            await self._lease.keep_up(record)

        try:
            for call in calls:
                call.started = self._setup.clock()
                outcome = await self._begin_once(call, record) if call.request.once else self._begin(call, record)
                if alone and outcome is not None:
                    await self._finish(call, self._lease.hold_during(outcome, record), record)
                if call.outcome is None:
                    await keep(call)
            for call in calls:
                if call.outcome is not None:
                    tasks[loop.create_task(self._finish(call, call.outcome, record))] = call
            async for done in self._lease.hold_while(set(tasks), record):
                failures: list[SequentialError] = []
                for task in sorted(done, key=lambda task: tasks[task].record.step):
                    try:
                        task.result()
                        await keep(tasks[task])
                    except SequentialError as error:
                        failures.append(error)
                if failures:
                    raise failures[0]
        except BaseException as error:
            await self._abandon(calls, tasks, record, error)
            raise
        return results

    async def _save(self, record: Record, result: Result) -> None:
        if len(result.data) > LARGE:
            await self._lease.hold_over(record, self._setup.journal.save, record, result)
        else:
            await settle(self._setup.journal.save(record, result))

    async def _abandon(self, calls: list[ToolCall], tasks: Iterable[Any], record: Record, error: BaseException) -> None:
        """Cancel what runs, and call off what has not begun to."""
        for task in tasks:
            task.cancel()
        if tasks and not isinstance(error, (GeneratorExit, CannotWait)):
            await sys.modules["asyncio"].gather(*tasks, return_exceptions=True)
        for call in calls:
            if call.outcome is not None and _call_off(call.outcome) and not isinstance(error, GeneratorExit):
                await self._unmark(call, record)

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

    async def _finish(self, call: ToolCall, outcome: Awaitable[Any], record: Record) -> None:
        """Await what the hook returned."""
        try:
            await call.finish(outcome)
        except (HookNotConfigured, UnknownTool):
            await self._unmark(call, record)
            raise

    async def _unmark(self, call: ToolCall, record: Record) -> None:
        """Take back that a call was started."""
        if call.request.once:
            with suppress(Exception):
                await settle(self._setup.journal.save(record, Result(call.record.step)))

    def _result(self, call: ToolCall) -> Result:
        """Encode what a call came to."""
        request, record, codec = call.request, call.record, self._setup.journal.codec
        if self._setup.observer.listens or call.raised is not None:
            self._setup.observer.tell("called", record, request.label, call.raised)
            call.raised = None  # it holds the tool's frames, and by way of them this call
        try:
            data = as_bytes(codec, codec.dumps(call.box.pop()))
        except Exception as refused:
            whose = f"the result of {request.label} (step {record.step} of execution {record.id!r})"
            raise NotEncodable(whose, message_of(refused)) from refused
        ended = self._setup.clock()
        return as_result((record.step, request.label, call.checksum, data, call.started, ended, call.error))


def _call_off(outcome: Awaitable[Any]) -> bool:
    """Call off what was to be awaited, and return whether nothing of it has run."""
    if isinstance(outcome, Coroutine):
        outcome.close()
        return True
    getattr(outcome, "cancel", int)()
    return False


def _copied(input: Any) -> Any:
    """Return an input that a tool may change: the workflow keeps its own, as it will on replay."""
    if not isinstance(input, (dict, list)):
        return input
    if _ATOMS.issuperset(map(type, input.values() if isinstance(input, dict) else input)):
        return input.copy()  # what most inputs are; it takes a third of the time
    copies: dict[int, Any] = {id(input): input.copy()}
    containers = list(copies.values())
    for container in containers:  # without recursion: it may be nested deeply, or hold itself
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, (dict, list)):
                if id(value) not in copies:
                    copies[id(value)] = value.copy()
                    containers.append(copies[id(value)])
                container[key] = copies[id(value)]
    return containers[0]
