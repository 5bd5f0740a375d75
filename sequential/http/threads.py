"""Blocking work beside an event loop."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a function in a thread of its own, and wait for it.

    In the threads that the loop shares out, of which there are few, a ring would wait for the steps of others.
    """
    from asyncio import get_running_loop  # noqa: PLC0415 - whoever gets here has imported it
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - and this with it

    thread = ThreadPoolExecutor(1, "sequential")
    try:
        call = partial(copy_context().run, function, *arguments, **options)
        return await get_running_loop().run_in_executor(thread, call)
    finally:
        thread.shutdown(wait=False)
