"""What the tests of several stores need."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, ClassVar, Protocol

import pytest

from sequential import FlowExecutor, Paused, save, tool
from sequential.errors import Fenced, StorageError
from sequential.storage import Record, Result

STEPS = 5
NOW = 1_700_000_000.0
LARGE = 100_000_000
"""Bytes that a result may well have."""


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


def held(storage: Any, id: str = "one", **fields: Any) -> Record:
    """A record that was created, and is held."""
    common = Record(id, f"run of {id}", "workflow", b"{}", token=1, due=NOW, lease=NOW + 60, changed=NOW)
    record = common._replace(**fields)
    assert storage.claim(record, NOW, True) == (record, True)
    return record


def step(storage: Any, record: Record, data: bytes = b"null", **fields: Any) -> Record:
    """The record after a step."""
    new = record._replace(token=record.token + 1, step=record.step + 1, **fields)
    storage.commit(new, record.token, Result(record.step, data=data))
    return new


class OnServer:
    """Tests that all need one server, of which their class names the fixture."""

    server_fixture: ClassVar[str]
    server: ClassVar[Any]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def find_server(cls, request: pytest.FixtureRequest) -> None:
        cls.server = request.getfixturevalue(cls.server_fixture)


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


def commit_and_die(
    storage: Any,
    other: Any,
    requests: tuple[Any, str],
    results: list[Result],
    *,
    removed: Callable[[str], object],
    goes_on: bool = True,
) -> int:
    """Let a writer of a large result die before and after each of its requests, and return at how many places.

    What it wrote is never seen, and never in the way of who goes on.

    Args:
        storage: The writer's.
        other: The storage of those who come after it.
        requests: Whose method makes a request, and its name.
        results: What the first one writes, and what the next one does.
        removed: Called with the id of an execution that was removed.
        goes_on: Whether another one writes after it.
    """
    point, died = 0, True
    while died:
        record = held(storage, f"id-{point}")
        write = partial(storage.commit, record._replace(token=2, step=1), 1, results[0])
        died = dies(*requests, point, write)
        stored = other.read(record.id)
        assert other.results(stored, 0, 1) == results[: stored.step]
        if not stored.step:
            claimed, _ = other.claim(record._replace(lease=NOW + 500), NOW + 100, False)
            with pytest.raises(Fenced):  # the first writer was only slow, and goes on
                write()
            if goes_on:
                other.commit(claimed._replace(token=3, step=1), 2, results[1])
                assert other.results(claimed, 0, 1) == results[1:]
                with pytest.raises(Fenced):
                    write()
                assert other.results(claimed, 0, 1) == results[1:]
        other.remove(record.id)
        removed(record.id)
        point += 1
    return point


def peaks(make: str) -> tuple[int, int]:
    """Write and read a large result in a process of its own, and return its peak memory for the one and for both.

    Args:
        make: Statements that make ``storage``.
    """
    code = f"""
import resource
from sequential.storage import Record, Result
{make}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
record = Record("one", "run", token=1, lease=2e9)
storage.claim(record, 1.0, True)
start = peak()
data = bytes(range(250)) * ({LARGE} // 250)
storage.commit(record._replace(token=2, step=1), 1, Result(0, data=data))
written = peak() - start
assert storage.results(record, 0, 1).pop().data == data
print(written, peak() - start)
storage.remove("one")
storage.close()
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    written, read = map(int, ran.stdout.split())
    return written, read


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


def one_commits(storage: Any, rounds: int, writers: int) -> None:
    """Let writers in threads commit at the same time; one wins, each time."""
    record = held(storage)
    for number in range(rounds):
        new = record._replace(token=record.token + 1, step=number + 1)
        commits = [partial(storage.commit, new, record.token, Result(number, f"by {who}")) for who in range(writers)]
        won = _won(together(*commits), number)
        assert storage.results(new, number, number + 1) == [won]
        record = new


def one_takes_the_lease(storage: Any, rounds: int, writers: int) -> None:
    """Let writers in threads claim at the same time; one takes the lease, each time, and all see whose it is."""
    for number in range(rounds):
        record = held(storage, f"id-{number}", lease=0.0)
        leases = [NOW + 60 + who for who in range(writers)]
        found = together(*(partial(storage.claim, record._replace(lease=lease), NOW, False) for lease in leases))
        (winner,) = (who for who, (_, taken) in enumerate(found) if taken)
        assert {stored for stored, _ in found} == {record._replace(token=2, lease=leases[winner])}


async def race(
    storage: Any, rounds: int, commit: Callable[[Record, int, Result], Any] | None = None, writers: int = 32
) -> None:
    """Do as `one_commits` in one event loop, by `commit` or that of the storage."""
    record = Record("one", "run", token=1, lease=NOW + 60)
    await storage.claim(record, NOW, True)
    for number in range(rounds):
        new = record._replace(token=record.token + 1, step=number + 1)
        results = [Result(number, f"by {who}") for who in range(writers)]
        commits = [(commit or storage.commit)(new, record.token, result) for result in results]
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert await storage.results(new, number, number + 1) == [_won(outcomes, number)]
        record = new


async def take(storage: Any, rounds: int, writers: int = 32) -> None:
    """Let writers in one event loop create at the same time; one takes the lease, each time."""
    for number in range(rounds):
        record = Record(f"id-{number}", "run", token=1)
        claims = [storage.claim(record._replace(lease=NOW + 60 + who), NOW, True) for who in range(writers)]
        outcomes = await asyncio.gather(*claims)
        assert sorted(taken for _, taken in outcomes) == [False] * (writers - 1) + [True]
        assert len({found for found, _ in outcomes}) == 1


def _won(outcomes: list[Any], step: int) -> Result:
    """The result of the one who was not fenced off."""
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Fenced"] * (len(outcomes) - 1) + ["NoneType"]
    return Result(step, f"by {outcomes.index(None)}")
