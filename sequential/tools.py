"""A ready-made ``call`` hook, which dispatches to registered functions."""

from __future__ import annotations

from _thread import TIMEOUT_MAX, allocate_lock  # `threading` is imported only by those who need a thread
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NamedTuple, TypeVar, overload

from .blocking import is_async, usable_loop
from .checks import is_number
from .errors import UnknownTool
from .requests import parse, tool

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__sequential_tool__"

_LISTED = 10
"""Names in an error's text: more are not read."""


class Tools:
    """Functions by category and name, to be given as ``FlowExecutor(storage, call=tools)``.

    A tool's input is a dict, and becomes the function's keyword arguments.  Functions may be plain or ``async``; a
    plain one runs in the thread of the executor, unless it has a timeout or `threads` is set.

    Args:
        threads: Whether plain functions run in threads while an event loop runs, each in one of its own, so that
            they do not block the loop, and those of one list run at the same time.  A function that has to stay in
            the loop's thread can be written with ``async def``.
    """

    def __init__(self, *, threads: bool = False) -> None:
        self._tools: dict[tuple[str, str], _Function] = {}
        self._threads = threads

    def __call__(self, category: str, name: str, input: Any) -> Any:
        """Perform a tool; the executor calls this.

        Args:
            category: The tool's category.
            name: The tool's name.
            input: The function's arguments by name.

        Returns:
            What the function returns, or something to be awaited for it.

        Raises:
            UnknownTool: When there is no such tool; the executor records nothing.
            TypeError: When `input` is not a dict, or does not fit the function's signature.
            TimeoutError: When the function took longer than its timeout.
            Exception: What the function raises.
        """
        found = self._tools.get((category, name))
        if found is None:
            raise UnknownTool(f"{category}.{name}", self._hint(category, name))
        if not isinstance(input, dict):
            raise TypeError(found.refusal(input, "an input is a dict of arguments by name"))
        if (found.threaded or found.timeout is not None) and usable_loop() is not None:
            return found.perform_in_loop(input)
        if found.threaded and found.timeout is not None:
            return found.perform_in_time(input, found.timeout)
        return found.perform(input)

    @overload
    def add(
        self, category: str, function: None = None, *, name: str | None = None, timeout: float | None = None
    ) -> Callable[[F], F]: ...

    @overload
    def add(self, category: str, function: F, *, name: str | None = None, timeout: float | None = None) -> F: ...

    def add(
        self, category: str, function: F | None = None, *, name: str | None = None, timeout: float | None = None
    ) -> F | Callable[[F], F]:
        """Register a function as a tool: ``@tools.add("api")``, or ``tools.add("api", function)``.

        It may be registered under several names; `sequential.patterns.call` asks for the first of them.

        Args:
            category: The tool's category.
            function: The function; left out, a decorator is returned.
            name: The tool's name; left out, the function's.
            timeout: Seconds after which the call is given up with a `TimeoutError`, which the workflow gets as an
                error value.  An ``async`` function is cancelled.  A plain one cannot be stopped: it runs in a
                thread, which goes on, and what it comes to is dropped.  Without an event loop (in a ``..._sync``
                method) an ``async`` function cannot wait, and has no timeout.

        Returns:
            The function itself.

        Raises:
            TypeError: When `function` cannot be called.
            ValueError: When the tool exists already, or the category, the name or the timeout cannot be one.
        """
        if parse(tool(category, "" if name is None else name)) is None:
            raise ValueError(
                f"a tool's category and name are texts that UTF-8 can encode, not {category!r:.100} and "
                f"{name!r:.100}: write @tools.add('category') or @tools.add('category', name='name')"
            )
        if timeout is not None and not (is_number(timeout, 0, TIMEOUT_MAX) and timeout > 0):
            raise ValueError(
                f"the timeout of a tool is an int or a float above 0, in seconds, and at most {TIMEOUT_MAX:g}, not "
                f"{timeout!r:.100}: leave it out for none"
            )
        if function is None:
            return lambda function: self.add(category, function, name=name, timeout=timeout)
        if not callable(function):
            raise TypeError(
                f"tools.add({category!r}, ...) was given a {type(function).__name__}, which is no function: the second "
                f"argument is the function, and the tool's name is name="
            )
        name = _name_of(category, function) if name is None else name
        threaded = (self._threads or timeout is not None) and not is_async(function)
        added = _Function(function, f"{category}.{name}", timeout, threaded)
        held = self._tools.setdefault((category, name), added)
        if held is not added:
            raise ValueError(
                f"tool {added.label} is {_place(held.function)} already, and cannot be {_place(function)} too: "
                f"give one of them another name="
            )
        # functools.wraps copies the mark of the function inside, which is another tool.  A function's own mark stays:
        # a later alias must not change what a workflow asks for.
        if getattr(function, _MARK, None) in (None, getattr(getattr(function, "__wrapped__", None), _MARK, None)):
            with suppress(AttributeError, TypeError):
                setattr(function, _MARK, (category, name))
        return function

    def _hint(self, category: str, name: str) -> str:
        """Say what is registered instead of a tool, and how to register it."""
        from difflib import get_close_matches  # noqa: PLC0415 - slow to import, and seldom needed

        names = [known for known_category, known in self._tools if known_category == category]
        if names:
            near = [f"{category}.{known}" for known in get_close_matches(name, names)]
        else:
            near = get_close_matches(f"{category}.{name}", [known.label for known in self._tools.values()])
        if near:
            instead = f"did you mean {' or '.join(map(repr, near))}?"
        elif names:
            instead = f"category {category!r} has {_listed(names)};"
        elif self._tools:
            instead = f"the categories are {_listed({known for known, _ in self._tools})};"
        else:
            instead = "nor is any other;"
        return (
            f"{instead} tools.add({category!r}, function, name={name!r}) registers it, "
            f"in a module that this process has to import"
        )


class _Function(NamedTuple):
    """A registered function."""

    function: Callable[..., Any]
    label: str
    timeout: float | None
    threaded: bool

    def perform(self, input: dict[str, Any]) -> Any:
        """Call the function."""
        try:
            return self.function(**input)
        except TypeError as error:
            reason = self._misfit(error, input)
            if reason is None:
                raise
            raise TypeError(self.refusal(input, reason)) from error

    def perform_in_time(self, input: dict[str, Any], timeout: float) -> Any:
        """Call the function in a thread, and wait for it no longer than `timeout`."""
        done = allocate_lock()
        done.acquire()
        thread = _Thread(self, input, done.release)
        if not done.acquire(timeout=timeout):
            raise self._too_slow()
        return thread.outcome()

    async def perform_in_loop(self, input: dict[str, Any]) -> Any:
        """Call the function so that the running loop goes on, and wait for it no longer than its timeout."""
        from asyncio import Event, get_running_loop, timeout  # noqa: PLC0415 - whoever gets here has imported it

        limit = timeout(self.timeout)
        try:
            async with limit:
                if self.threaded:
                    done, loop = Event(), get_running_loop()

                    def ring() -> None:
                        with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                            loop.call_soon_threadsafe(done.set)

                    thread = _Thread(self, input, ring)
                    await done.wait()
                    outcome = thread.outcome()
                else:
                    outcome = self.perform(input)
                return await outcome if hasattr(outcome, "__await__") else outcome
        except TimeoutError:
            if limit.expired():
                raise self._too_slow() from None
            raise

    def refusal(self, input: object, reason: str) -> str:
        """Say that the function cannot be called with `input`, of which only the names are told."""
        from inspect import signature  # noqa: PLC0415 - slow to import, and seldom needed

        shown = "(...)"
        with suppress(Exception):  # some built-ins have none
            shown = str(signature(self.function))
        given = f"({_listed(map(str, input)):.200})" if isinstance(input, dict) else f"a {type(input).__name__}"
        return f"tool {self.label}{shown} cannot be called with {given}: {reason:.200}"

    def _misfit(self, error: TypeError, input: dict[str, Any]) -> str | None:
        """Return why `input` does not fit the function, or ``None`` when the error is the function's own."""
        from inspect import signature, unwrap  # noqa: PLC0415 - slow to import, and seldom needed
        from traceback import walk_tb  # noqa: PLC0415 - likewise

        code = getattr(unwrap(self.function), "__code__", None)
        if any(frame.f_code is code for frame, _ in walk_tb(error.__traceback__)):
            return None  # the function had begun; a decorator may well call it with more than it is given
        try:
            expected = signature(self.function)
        except Exception:
            return None
        try:
            expected.bind(**input)
        except TypeError as misfit:
            return str(misfit)
        return None

    def _too_slow(self) -> TimeoutError:
        return TimeoutError(f"tool {self.label} took longer than {self.timeout:g} s")


class _Thread:
    """A function at work in a thread of its own, which ends with the process whatever it does.

    A pool would make the process wait for a function that hangs, and calls wait for each other.

    Args:
        function: The function.
        input: Its arguments.
        ring: Called when it is done, in that thread.
    """

    def __init__(self, function: _Function, input: dict[str, Any], ring: Callable[[], object]) -> None:
        from threading import Thread  # noqa: PLC0415 - slow to import, and seldom needed

        self._value: Any = None
        self._error: BaseException | None = None
        context = copy_context()

        def run() -> None:
            try:
                self._value = context.run(function.perform, input)
            except BaseException as error:
                self._error = error
            ring()

        Thread(target=run, name=f"tool {function.label}", daemon=True).start()

    def outcome(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


def _name_of(category: str, function: Callable[..., Any]) -> str:
    """Return the name of a function that has one of its own."""
    name: str = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ValueError(
            f"a {type(function).__name__} has no name to be called by: tools.add({category!r}, ..., name=) gives it one"
        )
    return name


def _place(function: Callable[..., Any]) -> str:
    """Return a function's name and where it is written."""
    from inspect import unwrap  # noqa: PLC0415 - slow to import, and seldom needed

    inner = unwrap(function)
    code = getattr(inner, "__code__", None)
    if code is None:
        return str(getattr(inner, "__qualname__", f"a {type(inner).__name__}"))
    return f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"


def _listed(names: Iterable[str]) -> str:
    """Return the first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(map(repr, ordered[:_LISTED])) + more
