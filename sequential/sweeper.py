"""The sweep as a task that goes on: in an ASGI process, or behind ``python -m sequential sweep``."""

from __future__ import annotations

from asyncio import sleep
from logging import getLogger

from .checks import check_limit, is_number
from .errors import NotSupported
from .executor import FlowExecutor

_BEGINNING = 1.0
"""Seconds before the first sweep: begun in a server's lifespan, it would ring before that server listens."""


async def sweep_forever(flow: FlowExecutor, every: float = 60.0, limit: int = 100) -> None:
    """Sweep now and then, for the first time in a second, until cancelled; any number of processes may do so.

    Args:
        flow: The executor; its ``resume`` hook is what rings.
        every: Seconds from one sweep to the next; there is none when the last one has found as many as it may ring.
        limit: How many executions one sweep rings at most.

    Raises:
        NotSupported: On a storage of five methods.
        ValueError: When `every` or `limit` is out of range.
    """
    if not (is_number(every) and every > 0):
        raise ValueError(f"every= is a number of seconds above 0, not {every!r}")
    check_limit(limit)  # now, because no error of a sweep ends this
    await sleep(min(every, _BEGINNING))
    while True:
        rung: list[str] = []
        try:
            rung = await flow.sweep(limit)
        except NotSupported:
            raise
        except Exception:
            getLogger("sequential").exception("the sweep failed, and is tried again in %g seconds", every)
        await sleep(every if len(rung) < limit else 0)  # a plain store and hook would never let others run
