"""The blocking twin of an ``async`` method, from the same body and without an event loop."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

from .errors import EventLoopNeeded

P = ParamSpec("P")
T = TypeVar("T")

Maybe: TypeAlias = T | Awaitable[T]
"""What a method returns that may be plain or ``async``."""

COROUTINE = 0x80
"""How CPython marks an ``async def`` function's code (inspect.CO_COROUTINE)."""


_blocked: ContextVar[Any] = ContextVar("sequential.blocked", default=False)
"""The event loop that a blocking twin was called under, or ``None``; ``False`` outside of such a call."""


class CannotWait(BaseException):
    """What is thrown into a coroutine that waits; no ``except Exception`` of a user's takes it for a tool's error."""


async def settle(value: Maybe[T]) -> T:
    """Return `value`, awaited if it can be."""
    anything: Any = value
    # In a fifth of the time of isinstance(value, Awaitable), and this is asked often.
    settled: T = await anything if hasattr(type(anything), "__await__") else anything
    return settled


def blocking(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Return a function that runs `method` to its end in the calling thread.

    Raises:
        EventLoopNeeded: From the returned function, when something in it waits for an event loop.
    """

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _blocked.set(running_loop())
        try:
            return complete(method(*args, **kwargs))
        finally:
            _blocked.reset(token)

    run.__name__ += "_sync"
    run.__qualname__ += "_sync"
    run.__doc__ = f"Do what {method.__name__}() does, without an event loop."
    return run


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in the calling thread.

    As long as every hook and the storage answer at once, it never suspends, and a single send carries it through.

    Raises:
        EventLoopNeeded: When something in it waits for an event loop.
    """
    try:
        coroutine.send(None)
        # Thrown in where it waits, so that it cleans up after itself.
        coroutine.throw(CannotWait())
    except StopIteration as stop:
        value: T = stop.value
        return value
    except CannotWait:
        pass
    except RuntimeError as error:
        if needs_event_loop(error):
            raise EventLoopNeeded from error
        raise
    finally:
        coroutine.close()
    raise EventLoopNeeded


def is_blocked() -> bool:
    """Whether what runs here cannot wait: a blocking twin has called it, and no event loop since."""
    return _blocked.get() is running_loop()


def usable_loop() -> Any:
    """Return the event loop that what runs here may wait for, or ``None``: under a blocking twin, none."""
    return None if is_blocked() else running_loop()


def running_loop() -> Any:
    """Return the running event loop, or ``None``; where asyncio was never imported there is none."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio and asyncio.get_running_loop()
    except RuntimeError:
        return None


async def pause(seconds: float) -> None:
    """Let time pass: in a blocking twin by blocking."""
    if usable_loop() is None:
        from time import sleep  # noqa: PLC0415 - seldom needed

        sleep(seconds)  # noqa: ASYNC251 - there is no loop
    else:
        await sys.modules["asyncio"].sleep(seconds)


def needs_event_loop(error: BaseException) -> bool:
    """Whether `error` is asyncio's own complaint that no event loop runs in this thread."""
    return type(error) is RuntimeError and str(error) in {"no running event loop", "There is no current event loop"}


def is_async(function: object) -> bool:
    """Whether `function` was written with ``async def``: told as `inspect` does, which is too slow to import."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return bool(code and code.co_flags & COROUTINE)
