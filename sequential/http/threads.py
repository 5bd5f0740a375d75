"""Blocking work beside an event loop."""

from collections.abc import Callable
from contextvars import copy_context
from typing import Any


async def in_thread(work: Callable[[], Any]) -> Any:
    """Do some work in a thread of its own, and wait for it.

    In the threads that the loop shares out, of which there are few, a ring would wait for the steps of others.
    """
    from asyncio import get_running_loop  # noqa: PLC0415 - whoever gets here has imported it
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - and this with it

    thread = ThreadPoolExecutor(1, "sequential")
    try:
        return await get_running_loop().run_in_executor(thread, copy_context().run, work)
    finally:
        thread.shutdown(wait=False)
