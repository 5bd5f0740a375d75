"""Steps per second on real servers, beside what the driver alone does in the same run for the same bytes.

The floor of a step is the smallest thing that is as durable: one transaction, or one conditional write, that records
the result and moves a counter on if it stands where it should.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any, Protocol, cast

from sequential import FlowExecutor, Paused
from sequential.storage import Journal, Record, Result, settle
from tests.benchmarks.store import RESULT, call, workflow
from tests.benchmarks.table import Found, Row, side_by_side
from tests.servers.postgres import PostgresServer

AT_ONCE = 64
DATA = json.dumps(RESULT).encode()

ids = (f"id-{number}" for number in count())
times_to_claim = count(1e9, 1000.0)


class Floor(Protocol):
    """What one would write by hand over the same client; each method plain or a coroutine, as the client is."""

    what: str

    def begin(self, id: str) -> Any:
        """Create the counter."""

    def step(self, id: str, step: int, data: bytes) -> Any:
        """Record one result and move the counter on."""

    def read(self, id: str) -> Any:
        """Return all results."""

    def end(self, id: str, steps: int) -> Any:
        """Remove all."""


class PostgresFloor:
    """One statement for a step, as the storage has it."""

    what = "psycopg alone: UPDATE and INSERT in one prepared statement"

    def __init__(self, client: Any) -> None:
        self.execute = client.execute if hasattr(client, "execute") else self.execute_pooled
        self.client = client

    async def execute_pooled(self, sql: str, values: tuple[Any, ...], **options: Any) -> Any:
        """Execute on any connection of a pool."""
        async with self.client.connection() as connection:
            return await connection.execute(sql, values, **options)

    def begin(self, id: str) -> Any:
        """Create the counter."""
        return self.execute("INSERT INTO floor_executions VALUES (%s, 0)", (id,))

    def step(self, id: str, step: int, data: bytes) -> Any:
        """Record one result."""
        sql = (
            "WITH held AS (UPDATE floor_executions SET step = %s WHERE id = %s AND step = %s RETURNING id) "
            "INSERT INTO floor_results SELECT id, %s, %s FROM held"
        )
        return self.execute(sql, (step + 1, id, step, step, data))

    def read(self, id: str) -> list[bytes]:
        """Return all results."""
        sql = "SELECT data FROM floor_results WHERE id = %s ORDER BY step"
        return [data for (data,) in cast("Any", self.execute(sql, (id,), binary=True)).fetchall()]

    def end(self, id: str, steps: int) -> Any:
        """Remove all."""
        sql = "WITH gone AS (DELETE FROM floor_results WHERE id = %s) DELETE FROM floor_executions WHERE id = %s"
        return self.execute(sql, (id, id))


def one_at_a_time(name: str, storage: Journal, floor: Floor, steps: int, rounds: int) -> Row:
    """All steps of one execution in one invocation."""
    flow = FlowExecutor(storage, call=call, budget=math.inf)

    def run_ours() -> None:
        flow.execute_sync(workflow, next(ids), steps)

    def run_floor() -> None:
        id = next(ids)
        floor.begin(id)
        for step in range(steps):
            floor.step(id, step, json.dumps(RESULT).encode())
        floor.end(id, steps)

    ours, least = side_by_side(rounds, run_ours, run_floor)
    return Row(f"{name}: steps, one at a time", "1/s", steps / ours, steps / least, floor.what, 0.7, "at least")


async def many_at_once(name: str, storage: Journal, floor: Floor, steps: int, rounds: int) -> Row:
    """64 executions at once, on an async client."""

    async def answer(category: str, name: str, input: Any) -> Any:
        return RESULT

    flow = FlowExecutor(storage, call=answer, budget=math.inf)

    async def run_ours() -> None:
        await flow.execute(workflow, next(ids), steps)

    async def run_floor() -> None:
        id = next(ids)
        await settle(floor.begin(id))
        for step in range(steps):
            await settle(floor.step(id, step, json.dumps(RESULT).encode()))
        await settle(floor.end(id, steps))

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for found, run in zip(times, (run_ours, run_floor), strict=True):
            found.append(await took(run))
    ours, least = (AT_ONCE * steps / sorted(found)[rounds // 2] for found in times)
    return Row(f"{name}: steps, {AT_ONCE} at once", "1/s", ours, least, f"the same {AT_ONCE}-fold", 0.7, "at least")


async def took(run: Callable[[], Awaitable[None]]) -> float:
    """Return the seconds that 64 of them take together."""
    clock = asyncio.get_running_loop().time
    began = clock()
    await asyncio.gather(*(run() for _ in range(AT_ONCE)))
    return clock() - began


def resumed(name: str, storage: Journal, floor: Floor, saved: int = 1000) -> Row:
    """Another step after a thousand saved ones."""

    id, begun, steps = next(ids), next(ids), count(saved)
    one_step = FlowExecutor(storage, call=call)
    with suppress(Enough):
        FlowExecutor(storage, call=ends_after(saved), budget=math.inf).execute_sync(workflow, id, 10**6)
    floor.begin(begun)
    for step in range(saved):
        floor.step(begun, step, DATA)

    def run_ours() -> None:
        one_step.execute_sync(workflow, id, 10**6)

    def run_floor() -> None:
        for data in floor.read(begun):
            json.loads(data)
        floor.step(begun, next(steps), DATA)

    ours, least = side_by_side(25, run_ours, run_floor)
    what = f"{floor.what.partition(':')[0]}: read and decode them in one go, and one step"
    return Row(f"{name}: a step after {saved} saved ones", "ms", ours * 1e3, least * 1e3, what, 2.0)


class Enough(BaseException):
    """Ends an invocation from within a tool."""


def ends_after(calls: int) -> Callable[[str, str, Any], Any]:
    """Return a hook that answers so many calls."""

    def call(category: str, name: str, input: Any) -> Any:
        if input["number"] == calls:
            raise Enough
        return RESULT

    return call


def one_per_invocation(name: str, storage: Journal, floor: Floor, steps: int = 300) -> Row:
    """One invocation per step."""

    def run_ours() -> None:
        id, outcome = next(ids), cast("Any", Paused("", 0, ""))
        while isinstance(outcome, Paused):
            outcome = FlowExecutor(storage, call=call).execute_sync(workflow, id, steps)

    def run_floor() -> None:
        id = next(ids)
        floor.begin(id)
        for step in range(steps):
            for data in floor.read(id):
                json.loads(data)
            floor.step(id, step, DATA)
        floor.end(id, steps)

    ours, least = side_by_side(5, run_ours, run_floor)
    what = f"{floor.what.partition(':')[0]}: read and decode in one go, then one step, each time"
    return Row(f"{name}: {steps} invocations of one step", "s", ours, least, what, 2.0)


def postgres() -> Found:
    """On PostgreSQL."""
    import psycopg
    from psycopg_pool import AsyncConnectionPool

    from sequential.stores.postgres import PostgresStorage

    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer.from_environment())
        connection = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        storage, floor = PostgresStorage(connection), PostgresFloor(connection)
        storage.create_schema()
        connection.execute("CREATE TABLE floor_executions (id text PRIMARY KEY, step integer)")
        connection.execute("CREATE TABLE floor_results (id text, step integer, data bytea, PRIMARY KEY (id, step))")
        rows = [
            one_at_a_time("Postgres", storage, floor, 500, 15),
            resumed("Postgres", storage, floor),
            one_per_invocation("Postgres", storage, floor),
        ]

        async def at_once() -> Row:
            settings: dict[str, Any] = {"min_size": AT_ONCE, "max_size": AT_ONCE, "kwargs": {"autocommit": True}}
            async with AsyncConnectionPool(server.url, open=False, **settings) as pool:
                await pool.wait()
                return await many_at_once("Postgres", PostgresStorage(pool), PostgresFloor(pool), 30, 7)

        rows.append(asyncio.run(at_once()))
    return rows, []


def ten_million() -> Found:
    """A claim and a commit beside 1,000 results, and beside 10,000,000."""
    import psycopg

    from sequential.stores.postgres import PostgresStorage

    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer("-cmax_wal_size=8GB", "-cautovacuum=off"))
        connection = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        storages = []
        for prefix, executions, results in (("few_", 100, 10), ("many_", 10_000, 1000)):
            storages.append(PostgresStorage(connection, prefix=prefix))
            storages[-1].create_schema()
            fill(connection, prefix, executions, results)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
        claim_and_commit(storages, 1)  # a page that a checkpoint has left clean is logged whole at its first change
        few, many = claim_and_commit(storages, 10)
        plans = explained(connection, storages[1])
    rows = [
        Row(f"Postgres: {what} beside 10,000,000 results", "us", ours * 1e6, least * 1e6, "beside 1,000", 1.25)
        for what, least, ours in zip(("a claim", "a commit"), few, many, strict=True)
    ]
    return rows, ["", "How PostgreSQL finds what it needs among 10,000,000 results:", *plans]


def fill(connection: Any, prefix: str, executions: int, results: int) -> None:
    """Record so many executions with so many results each, in the server itself."""
    connection.execute(
        f"INSERT INTO {prefix}executions "
        "(id, run, workflow, input, token, step, status, lease, attempts, changed, due, rings) "
        "SELECT 'filled-' || n, md5(n::text), 'w', '{}', 1, %s, 'sleeping', 0, 0, 0, 4e9 + n, 4e9 + n "
        "FROM generate_series(1, %s) AS n",
        (results, executions),
    )
    connection.execute(
        f"INSERT INTO {prefix}results "
        "SELECT key, step, 0, 1, 'tool api.call', 1, convert_to(repeat('x', 100), 'UTF8'), 1, 1 "
        "FROM generate_series(1, %s) AS key, generate_series(0, %s) AS step",
        (executions, results - 1),
    )


def claim_and_commit(storages: list[Any], rounds: int) -> list[tuple[float, float]]:
    """Return the median seconds of a claim and of a commit, in turns on 100 executions from all parts of each store."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in storages]
    ids = [[record.id for record in storage.find("", 10_000)] for storage in storages]
    for number in range(100 * rounds):
        for storage, names, times in zip(storages, ids, found, strict=True):
            name, now = names[number % 100 * (len(names) // 100)], next(times_to_claim)
            began = perf_counter()
            record, _ = storage.claim(Record(name, "", lease=now + 60), now, False)
            claimed = perf_counter()
            new = record._replace(token=record.token + 1, step=record.step + 1, lease=0.0, due=4e9, changed=now)
            storage.commit(new, record.token, Result(record.step, "tool api.call", 1, DATA, now, now))
            for kind, took in zip(times, (claimed - began, perf_counter() - claimed), strict=True):
                kind.append(took)
    return [(median(claims), median(commits)) for claims, commits in found]


def explained(connection: Any, storage: Any) -> list[str]:
    """Return the plans of a claim and of a commit, without doing either."""
    record = storage.find("", 1)[0]
    claim = (2e9, record.id, 1e9, *record, -1, False, record.id, record.id)
    commit = (2, 1, None, 2e9, 1e9, record.id, record.run, 1, 5000, "tool", 1, DATA, 1.0, 1.0, None)
    plans: list[str] = []
    for sql, values in ((storage._sql.claim, claim), (storage._sql.step, commit)):
        lines = connection.execute(f"EXPLAIN (COSTS off) {sql}", values).fetchall()
        plans += [*(line for (line,) in lines if "Scan" in line or "Cond" in line), ""]
    return plans
