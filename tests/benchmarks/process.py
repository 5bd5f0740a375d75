"""Fresh processes: what importing costs, and what a whole short-lived function costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.benchmarks.table import Found, Row, directory, side_by_side

BARE = """if True:
    import json, sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE executions (id TEXT PRIMARY KEY, step INTEGER)")
    connection.execute("CREATE TABLE results (id TEXT, step INTEGER, data TEXT, PRIMARY KEY (id, step))")
    connection.execute("INSERT INTO executions VALUES ('x', 0)")
    for step in range(3):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO results VALUES ('x', ?, ?)", (step, json.dumps({"number": step})))
        connection.execute("UPDATE executions SET step = ? WHERE id = 'x'", (step + 1,))
        connection.execute("COMMIT")
"""
OURS = """if True:
    import math, sys
    from sequential import FlowExecutor, tool
    from sequential.stores.sqlite import SQLiteStorage
    def workflow():
        for number in range(3):
            yield tool("api", "call", {"number": number})
    flow = FlowExecutor(SQLiteStorage(sys.argv[1]), call=lambda category, name, input: input, budget=math.inf)
    flow.execute_sync(workflow, "x")
"""


def run(code: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run code in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)


@contextmanager
def compiled() -> Iterator[dict[str, str]]:
    """An environment in which modules are compiled once, as an installer leaves them, whatever ours says of that."""
    with directory() as path:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(path)
        for code in ("import asyncio", "import sequential.stores.sqlite, threading"):
            run(code, environment=environment)
        yield environment


def import_time() -> Found:
    """``import sequential`` beside ``import asyncio``."""
    with compiled() as environment:
        runs = (partial(run, code, environment=environment) for code in ("pass", "import sequential", "import asyncio"))
        nothing, ours, asyncio = side_by_side(61, *runs)
    row = Row("import sequential", "ms", 1e3 * (ours - nothing), 1e3 * (asyncio - nothing), "import asyncio", 1 / 3)
    return [row], []


def fresh_process() -> Found:
    """A process that imports, opens SQLite, runs three steps and exits."""
    with compiled() as environment, directory() as path:
        files = (str(path / f"{number}.db") for number in range(1_000_000))
        ours, bare = side_by_side(
            61,
            lambda: run(OURS, next(files), environment=environment),
            lambda: run(BARE, next(files), environment=environment),
        )
    what = "a process with bare sqlite3 and json: the same three transactions"
    return [Row("a fresh process, three steps on SQLite", "ms", 1e3 * ours, 1e3 * bare, what, 1.5)], []
