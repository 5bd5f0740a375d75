"""What the tests of several stores need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, Protocol

from sequential import FlowExecutor, Paused, save, tool
from sequential.errors import Fenced, StorageError

STEPS = 5


def squares(input: dict[str, int]) -> Generator[Any, Any, Any]:
    """Add up the results of several calls, with a pause now and then."""
    total = 0
    for number in range(input["steps"]):
        total += yield tool("math", "square", number)
        if number % 3 == 1:
            yield save()
    return total


def square(category: str, name: str, input: int) -> int:
    return input**2


class Server(Protocol):
    """One that can be killed."""

    def kill(self) -> None: ...

    def restart(self) -> None: ...


class Crowd:
    """Many executions at once, on a server that is killed and started again in their midst.

    Args:
        flow: Runs them; it keeps what is finished.
        size: How many.
    """

    def __init__(self, flow: FlowExecutor, size: int) -> None:
        self.flow, self.size, self.ended = flow, size, 0
        self.moved = asyncio.Event()

    async def run_and_kill(self, server: Server) -> None:
        """Kill the server when a quarter has ended, and when half of them has; all must end right nevertheless."""
        ids = [f"id-{number}" for number in range(self.size)]
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            group.create_task(self.kill(server))
            for id in ids:
                group.create_task(self.finish(id))
        for id in ids:
            history = await self.flow.history(id)
            assert [step["step"] for step in history] == list(range(len(history)))
            assert [step["result"] for step in history if step["asked"] != "save"] == [n**2 for n in range(STEPS)]

    async def finish(self, id: str) -> None:
        while True:
            try:
                outcome = await self.flow.execute(squares, id, {"steps": STEPS})
            except (StorageError, Fenced):
                outcome = Paused(id, 0, "busy")
            if not isinstance(outcome, Paused):
                break
            await asyncio.sleep(0.02 if outcome.reason == "busy" else 0)
        assert outcome == sum(number**2 for number in range(STEPS))
        self.ended += 1
        self.moved.set()

    async def kill(self, server: Server) -> None:
        for share in (4, 2):
            while self.ended < self.size // share:
                self.moved.clear()
                await self.moved.wait()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)


class Death(BaseException):
    """The end of a process."""


def dies(storage: Any, method: str, point: int, action: Callable[[], Any]) -> bool:
    """Do something, die before or after the request that `point` stands for, and tell whether there was one.

    Args:
        storage: Whose requests they are.
        method: The name of its method that makes one.
        point: Twice the number of requests before, and one more to die after this one.
        action: What to do.
    """
    request, left = getattr(storage, method), [point]

    async def request_or_die(*arguments: Any, **options: Any) -> Any:
        may_die()
        done = await request(*arguments, **options)
        may_die()
        return done

    def may_die() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Death

    setattr(storage, method, request_or_die)
    try:
        action()
    except Death:
        return True
    finally:
        setattr(storage, method, request)
    return False


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time; an exception is an outcome."""
    barrier = Barrier(len(calls))

    def call(one: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return one()
        except Fenced as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))
