"""Steps per second on SQLite beside raw `sqlite3`, in one invocation and in one invocation per step."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Generator
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

from sequential import FlowExecutor, Paused, tool
from sequential.stores.sqlite import SQLiteStorage
from tests.benchmarks.table import Found, Row, directory, side_by_side

RESULT = {"text": "x" * 188}  # 200 bytes as JSON


def workflow(steps: int) -> Generator[Any, Any, None]:
    """Ask for a tool many times."""
    for number in range(steps):
        yield tool("api", "call", {"number": number})


def call(category: str, name: str, input: Any) -> Any:
    """Perform the tool."""
    return RESULT


class Raw:
    """What one would write by hand: a transaction per step, which inserts a result and updates a row."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            f"PRAGMA synchronous = {synchronous}",
            "CREATE TABLE executions (id TEXT PRIMARY KEY, step INTEGER)",
            "CREATE TABLE results (id TEXT, step INTEGER, data TEXT, PRIMARY KEY (id, step))",
        ):
            self.connection.execute(statement)

    def begin(self, id: str) -> None:
        """Create the row."""
        self.connection.execute("INSERT INTO executions VALUES (?, 0)", (id,))

    def step(self, id: str, step: int) -> None:
        """Record one step."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("INSERT INTO results VALUES (?, ?, ?)", (id, step, json.dumps(RESULT)))
        self.connection.execute("UPDATE executions SET step = ? WHERE id = ?", (step + 1, id))
        self.connection.execute("COMMIT")

    def read(self, id: str) -> None:
        """Read and decode what is recorded, in one query."""
        for (data,) in self.connection.execute("SELECT data FROM results WHERE id = ? ORDER BY step", (id,)):
            json.loads(data)

    def end(self, id: str) -> None:
        """Remove all."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("DELETE FROM results WHERE id = ?", (id,))
        self.connection.execute("DELETE FROM executions WHERE id = ?", (id,))
        self.connection.execute("COMMIT")


def throughput() -> Found:
    """All steps in one invocation."""
    rows: list[Row] = []
    levels: tuple[tuple[Literal["FULL", "NORMAL"], float], ...] = (("FULL", 0.75), ("NORMAL", 0.5))
    steps = 1000
    for synchronous, bound in levels:
        with directory() as path:
            raw, ids = Raw(path / "raw.db", synchronous), (f"id-{number}" for number in count())
            storage = SQLiteStorage(path / "ours.db", synchronous=synchronous)
            flow = FlowExecutor(storage, call=call, budget=math.inf)

            def run_ours(ids: Any = ids, flow: FlowExecutor = flow) -> None:
                flow.execute_sync(workflow, next(ids), steps)

            def run_raw(ids: Any = ids, raw: Raw = raw) -> None:
                id = next(ids)
                raw.begin(id)
                for step in range(steps):
                    raw.step(id, step)
                raw.end(id)

            ours, floor = side_by_side(31, run_ours, run_raw)
            storage.close()
            raw.connection.close()
        what = "raw sqlite3: one transaction per step, same pragmas and payload"
        name = f"steps per second, synchronous={synchronous}"
        rows.append(Row(name, "1/s", steps / ours, steps / floor, what, bound, "at least"))
    return rows, []


def invocations() -> Found:
    """One invocation per step, with a new executor each time."""
    rows: list[Row] = []
    times: dict[int, tuple[float, float]] = {}
    bounds = {300: 2.0, 1000: 2.5}
    for steps, rounds in ((300, 25), (1000, 9), (3000, 1)):
        with directory() as path:
            raw, ids = Raw(path / "raw.db", "FULL"), (f"id-{number}" for number in count())
            storage = SQLiteStorage(path / "ours.db")

            def run_ours(steps: int = steps, ids: Any = ids, storage: SQLiteStorage = storage) -> None:
                id, outcome = next(ids), cast("Any", Paused("", 0, "tool"))
                while isinstance(outcome, Paused):
                    outcome = FlowExecutor(storage, call=call).execute_sync(workflow, id, steps)

            def run_raw(steps: int = steps, ids: Any = ids, raw: Raw = raw) -> None:
                id = next(ids)
                raw.begin(id)
                for step in range(steps):
                    raw.read(id)
                    raw.step(id, step)
                raw.read(id)
                raw.end(id)

            ours, floor = side_by_side(rounds, run_ours, run_raw)
            times[steps] = (ours, floor)
            storage.close()
            raw.connection.close()
        what = "raw sqlite3: read and decode in one query, then one transaction, per step"
        rows.append(Row(f"{steps} invocations of one step", "s", ours, floor, what, bounds.get(steps)))
    ours, raw_loop = (math.log(times[3000][which] / times[1000][which]) / math.log(3) for which in (0, 1))
    read = math.log((3000 * 3001) / (1000 * 1001)) / math.log(3)
    what = "the exponent of the bytes that must be read: each invocation reads what all before it have written"
    rows.append(Row("exponent from 1,000 to 3,000 invocations", "", ours, read, what, 1.0))
    return rows, [f"The raw loop's own exponent from 1,000 to 3,000 invocations was {raw_loop:.3f}."]
